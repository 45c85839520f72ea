"""Whole checkpoints: saved by the host, with what its loader tells a model's kind and noise levels by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

from ....samplers.noise import NoiseFamily
from ....trainers.storage.files import writing
from ..memory import bypass
from ..sampling.guidance import COND_PROJ, embedding_of
from ..sampling.models import example_sampling, model_sampling_of, noise_family, noise_levels, prediction_type

_PLAYGROUND = getattr(comfy.latent_formats, "SDXL_Playground_2_5", None)
_Continuous = comfy.model_sampling.ModelSamplingContinuousEDM


def require_loadable(model: Any) -> None:
    """ValueError for a MODEL of a kind that Load Checkpoint knows nothing of, such as the demo's."""
    kind = type(model.model.model_config)
    if kind not in comfy.supported_models.models:
        raise ValueError(
            f"model is of the kind {kind.__name__}, which Load Checkpoint could not read from a file; load the student with Load "
            "Distilled Student instead."
        )


def save_checkpoint(file: Path, model: Any, clip: Any, vae: Any, *, metadata: dict[str, str]) -> str | None:
    """The MODEL as wired, its LoRAs merged, in one file with text encoder and VAE, by the host's own saving.

    What Load Checkpoint will take it for, in words, where that is something else: only SDXL checkpoints say what they are.
    FileExistsError where a file of that name came meanwhile, which stays.
    """
    bypass.require_none(model)
    marks = _marks(model)
    said = _otherwise_loaded(model, marks)
    embedding = embedding_of(model)
    if embedding is not None:
        # under diffusers' name, for Guidance Embedding: no part of the network that the host saves
        marks[f"time_embedding.{COND_PROJ}"] = embedding.cond_proj
    with writing(file, new=True) as unfinished:
        comfy.sd.save_checkpoint(str(unfinished), model, clip, vae, metadata=metadata, extra_keys=marks)
    return said


def _marks(model: Any) -> dict[str, Tensor]:
    """The tensors by whose names the host's loader tells what an SDXL checkpoint predicts and on which noise levels."""
    if not isinstance(model.model.model_config, comfy.supported_models.SDXL):
        return {}
    sampling = model_sampling_of(model)
    kind, continuous = prediction_type(sampling), isinstance(sampling, _Continuous)
    if kind == "edm" and _PLAYGROUND and isinstance(model.get_model_object("latent_format"), _PLAYGROUND):
        latents = model.get_model_object("latent_format")
        return {"edm_mean": latents.latents_mean, "edm_std": latents.latents_std}
    if kind != "v_prediction":
        return {}
    if continuous:
        return {
            f"edm_vpred.{name}": torch.tensor(float(getattr(sampling, name))) for name in ("sigma_max", "sigma_min")
        }
    zero_terminal = {"ztsnr": torch.tensor([])} if _is_zero_terminal(noise_levels(sampling)) else {}
    return {"v_pred": torch.tensor([]), **zero_terminal}


def _is_zero_terminal(table: Tensor) -> bool:
    """Whether a table of SDXL's ends in noise alone (Lin et al. 2023): at the host's 4518.8 for infinity, and not at 14.6."""
    return bool(table[-1] > 100.0 * noise_levels(example_sampling())[-1])


def _otherwise_loaded(model: Any, marks: dict[str, Tensor]) -> str | None:
    """In words, what the host's loader makes of such a file, where that is another kind or has other noise levels.

    Of flow models the levels may differ: they are a choice of where to sample, and the network is told each by itself.
    """
    config = type(model.model.model_config)(model.model.model_config.unet_config)
    weights = model.model.diffusion_model.state_dict() | marks
    loaded, own = comfy.model_base.model_sampling(config, config.model_type(weights, "")), model_sampling_of(model)
    kinds = [prediction_type(sampling) for sampling in (loaded, own)]
    tables = [noise_levels(sampling) for sampling in (loaded, own)]
    same_levels = noise_family(own) is NoiseFamily.FLOW or (
        len(tables[0]) == len(tables[1]) and torch.allclose(tables[0], tables[1], rtol=1e-3)
    )
    if kinds[0] == kinds[1] and same_levels:
        return None
    found, wanted = (f"{kind} up to noise level {table[-1]:g}" for kind, table in zip(kinds, tables, strict=True))
    return (
        f"Load Checkpoint takes this file for {found}, but the student is {wanted}: connect behind it what stands behind the "
        "teacher's loader (ModelSamplingDiscrete, ModelSamplingContinuousEDM)."
    )
