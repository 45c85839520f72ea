"""One node that sets everything as a known few-step model wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...samplers.few_step import sample_ancestral, sample_few_step, sample_tcd
from ...samplers.noise import NoiseFamily
from ...samplers.presets import OURS, PRESETS, Preset
from ...samplers.recipe import Recipe
from ...trainers.storage.files import read_metadata
from .. import host
from ..host import folders
from .lists import levels
from .model_sampling import LCMBoundary
from .recognition import misfit, proposal, strength_told
from .schedules import pixels

FROM_FILE = "from the file's own metadata"
RECOGNISED = "recognised by the model's files"
NO_FILE = "none"


@host.signals.asked_whether_changed
class ApplyRecipe:
    RETURN_TYPES = ("MODEL", "SAMPLER", "SIGMAS", "FLOAT", "GUIDER", "FLOAT")
    RETURN_NAMES = ("model", "sampler", "sigmas", "cfg", "guider", "boundary")
    OUTPUT_TOOLTIPS = (
        "The model, its output read as the recipe says.",
        "The sampler of the recipe.",
        "The exact noise levels of the recipe.",
        "The guidance scale to sample with: 1, no guidance, for almost all of these.",
        "For SamplerCustomAdvanced: model, prompts and guidance of the recipe. Needs positive.",
        "For Two Experts: where the expert for high noise hands over; 0 for recipes of one model.",
    )
    FUNCTION = "apply"
    CATEGORY = "few-step/sampling"
    SEARCH_ALIASES = [
        "turbo",
        "lightning",
        "lcm",
        "hyper sd",
        "dmd2",
        "pcm",
        "tcd",
        "schnell",
        "qwen lightning",
        "z-image",
        "wan",
        "ltx",
        "flux 2 klein",
        "krea",
        "minimax",
        "fast",
        "detect",
    ]
    DESCRIPTION = (
        "Sets model, sampler, schedule and guidance as the authors of a well-known few-step model mean it, or as a file "
        "that FewStep made says of itself. Load the checkpoint or LoRA with the host's own loaders first."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The few-step checkpoint, or the base model with its speed LoRA."}),
                "recipe": (
                    [*PRESETS, FROM_FILE, RECOGNISED],
                    {
                        "tooltip": "Which family the file is of, and for how many steps it was made. Recognised: by "
                        "names, metadata and hashes of the files that the model is loaded from, or of the one in file; the node "
                        "says what it took."
                    },
                ),
            },
            "optional": {
                "file": (
                    [NO_FILE, *sorted(folders.recipe_files())],
                    {
                        "tooltip": f"Read with '{FROM_FILE}': a student or LoRA that FewStep made. With '{RECOGNISED}': the file "
                        "to go by, in place of those behind the model. Loads no weights."
                    },
                ),
                "positive": ("CONDITIONING", {"tooltip": "Needed for the guider output only."}),
                "negative": ("CONDITIONING", {"tooltip": "For the guider output of recipes with a cfg above 1."}),
                "width": pixels("width", what="FLUX.2 klein, Qwen-Image 2.1 LoRAs"),
                "height": pixels("height", what="FLUX.2 klein, Qwen-Image 2.1 LoRAs"),
                "latent": (
                    "LATENT",
                    {
                        "tooltip": "FLUX.2 klein, Qwen-Image 2.1 LoRAs: what is sampled; its size counts, not width and height."
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, recipe: str | None = None, file: str | None = None, input_types: Mapping[str, str] | None = None
    ) -> bool | str:
        """What is linked is None here, and known when the node runs."""

        def check() -> None:
            host.limits.require_links(cls.INPUT_TYPES(), input_types or {})
            if recipe == FROM_FILE and file is not None:
                recipe_of(file)

        return host.signals.error_of(check)

    @classmethod
    def IS_CHANGED(cls, file: str = NO_FILE, **_: Any) -> float:
        path = folders.recipe_file(file)
        return path.stat().st_mtime if path else 0.0

    def apply(
        self,
        model: Any,
        recipe: str,
        file: str = NO_FILE,
        positive: Any = None,
        negative: Any = None,
        prompt: Mapping[str, Any] | None = None,
        unique_id: str = "",
        **size: Any,
    ) -> Any:
        """The outputs; with what was recognised as the node's text, where that was asked for."""
        if recipe != RECOGNISED:
            return self._applied(model, recipe, file, positive, negative, **size)
        behind: dict[str, float | None] = host.graph.files_behind(prompt or {}, unique_id, "model")
        found = proposal([file] if file != NO_FILE else behind, fits=misfit(model))
        chosen = (FROM_FILE, found.file) if found.recipe is None else (found.recipe, file)
        said = [found.why]
        if found.recipe is not None:
            said += [*strength_told(PRESETS[found.recipe], behind.get(found.file)), *PRESETS[found.recipe].told()]
        return {"ui": {"text": said}, "result": self._applied(model, *chosen, positive, negative, **size)}

    def _applied(
        self, model: Any, recipe: str, file: str, positive: Any, negative: Any, **size: Any
    ) -> tuple[Any, Any, Tensor, float, Any, float]:
        if recipe == FROM_FILE:
            own = recipe_of(file)
            model = _read_as_told(model, own, file)
            guider = _guider(model, positive, negative, cfg=1.0, guidance_scale=None)
            return model, *as_trained(own), 1.0, guider, own.boundary or 0.0
        preset = preset_of(recipe)
        model = _read_as(model, preset, recipe)
        sigmas = preset_levels(host.models.model_sampling_of(model), preset, **size)
        guider = _guider(model, positive, negative, cfg=preset.cfg, guidance_scale=preset.guidance_scale)
        return model, _sampler(preset), sigmas, preset.cfg, guider, preset.boundary or 0.0


def _read_as(model: Any, preset: Preset, recipe: str) -> Any:
    """The model as the recipe wants it. ValueError for one of another kind or family."""
    said = misfit(model)(preset)
    if said is not None:
        raise ValueError(f"{recipe!r} {said}. Connect the model that the recipe names.")
    if preset.audio_shift is not None:
        return host.models.with_audio_shift(model, shift=preset.absolute_shift, audio_shift=preset.audio_shift)
    if preset.noise_scale is not None:
        return host.models.with_noise_scale(model, preset.noise_scale)
    if preset.prediction or preset.lcm_boundary:
        change = LCMBoundary if preset.lcm_boundary else None
        return host.models.with_model_sampling(model, prediction=preset.prediction, change=change)
    return model


def preset_levels(model_sampling: Any, preset: Preset, **size: Any) -> Tensor:
    """The noise levels of a known recipe on a model's own range. size: width, height and latent, of Few-Step Schedule."""
    wanted = {"values": preset.values, "absolute_shift": preset.absolute_shift, **size}
    return levels(model_sampling, preset.schedule, preset.steps, **wanted)


def preset_of(recipe: str) -> Preset:
    if recipe not in PRESETS:
        raise ValueError(f"there is no recipe {recipe!r}; choose one of the menu of Apply Recipe.")
    return PRESETS[recipe]


def recipe_of(file: str) -> Recipe:
    path = folders.recipe_file(file)
    if path is None:
        raise ValueError(f"file is {file!r}, but {FROM_FILE!r} reads one. Choose a student or LoRA that FewStep made.")
    try:
        return Recipe.from_metadata(read_metadata(path), source=file)
    except ValueError as error:
        raise ValueError(f"{error} Known families have recipes of their own in the menu.") from error


def as_trained(recipe: Recipe) -> tuple[Any, Tensor]:
    """(SAMPLER, SIGMAS) that a student was trained for."""
    return host.models.sampler(sample_few_step, gamma=recipe.gamma), torch.tensor(recipe.sigmas)


def _read_as_told(model: Any, recipe: Recipe, file: str) -> Any:
    """The model as the recipe in a file wants it. ValueError for one of another kind."""
    sampling = host.models.model_sampling_of(model)
    family = host.models.noise_family(sampling)
    if family.value != recipe.noise_family:
        wanted = kind_told(recipe.noise_family, recipe.prediction_type)
        found = kind_told(family.value, host.models.prediction_type(sampling))
        raise ValueError(f"{file} is for {wanted}, but the connected model is {found}.")
    require_levels(recipe, sampling, file=file)
    cond_proj = folders.guidance_embedding(file)
    if cond_proj is not None and host.guidance.embedding_of(model) is None:
        model = host.guidance.with_guidance_embedding(model, cond_proj, guidance_scale=recipe.guidance_scale)
    if recipe.prediction_type != host.models.prediction_type(sampling):
        model = host.models.with_model_sampling(model, prediction=recipe.prediction_type)
    return model


def kind_told(noise_family: str, prediction: str) -> str:
    """What a model is, with its article, in an error."""
    if noise_family != NoiseFamily.FLOW.value:
        return f"a model of Stable Diffusion's kind that predicts {prediction}"
    return "a flow model" if prediction in ("flow", "rflow") else f"a flow model that predicts {prediction}"


def require_levels(recipe: Recipe, model_sampling: Any, *, file: str) -> None:
    """ValueError where a student begins above the model's noise levels: without its teacher's zero terminal SNR, say."""
    sigma_max = float(host.models.noise_levels(model_sampling)[-1])
    if recipe.sigmas[0] > 1.001 * sigma_max:
        raise ValueError(
            f"{file} starts at noise level {recipe.sigmas[0]:g}, but the connected model's largest is {sigma_max:g}. "
            "Connect the model that it was distilled from."
        )


def _sampler(preset: Preset) -> Any:
    if preset.sampler == "tcd":
        return host.models.sampler(sample_tcd, eta=preset.eta)
    if preset.sampler == "ancestral":
        return host.models.sampler(sample_ancestral, eta=preset.eta)
    if preset.sampler not in OURS:
        return host.models.hosts_sampler(preset.sampler)
    gamma = 0.0 if preset.sampler == "lightning" else 1.0
    options = {"noise_clip": preset.noise_clip} if preset.noise_clip else {}
    return host.models.sampler(sample_few_step, gamma=gamma, unit_variance_start=preset.unit_variance_start, **options)


def _guider(model: Any, positive: Any, negative: Any, *, cfg: float, guidance_scale: float | None) -> Any:
    if positive is None:
        return host.models.no_guider("connect positive to Apply Recipe: its guider output needs a prompt.")
    if guidance_scale is not None:
        return host.guidance.guidance_distilled_guider(model, positive, guidance_scale=guidance_scale)
    if cfg != 1.0 and negative is None:
        return host.models.no_guider(f"connect negative to Apply Recipe: this recipe samples at cfg {cfg:g}.")
    # at cfg 1 it is not evaluated but where a patch asks for it (CFG Override)
    prompts = {"positive": positive} | ({} if negative is None else {"negative": negative})
    return host.models.guider(model, prompts, cfg=cfg)
