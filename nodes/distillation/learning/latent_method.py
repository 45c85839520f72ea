"""Score distillation of a latent: where a model and a prompt move it, without any sampling or training of weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ....samplers.noise import Denoiser
from ....trainers.data.batches import TensorData
from ....trainers.data.conditions import Condition
from ....trainers.students.adapters import Adapters, LoRAOptions
from ....trainers.students.student import LoRAStudent, probe_writes_in_place
from ....trainers.training.score_distillation import Kind, LearningFake, ScoreDistillationOptions, Views, distil_latent
from ... import host
from . import option_inputs as inputs

_PROMPTS = ("positive", "negative", "empty", "source")


class ScoreDistillation:
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latent as the model and the prompt want it.",)
    FUNCTION = "distil"
    CATEGORY = "few-step/distillation"
    SEARCH_ALIASES = ["sds", "dds", "nfsd", "vsd", "dreamfusion", "edit picture", "optimise"]
    DESCRIPTION = (
        "Moves a latent to where the model sees it with a prompt, by many small steps and not by sampling. For edits that keep "
        "the rest of a picture (connect its prompt as source), and to look at what a model wants. No weights change."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = {
            "required": {
                "model": ("MODEL", {"tooltip": "Whose pictures are wanted, as wired."}),
                "positive": ("CONDITIONING", {"tooltip": "What the latent is to show."}),
                "latent": (
                    "LATENT",
                    {"tooltip": "The start: a picture to be edited, or noise. Its mask, if any, counts too."},
                ),
                "kind": (
                    [kind.value for kind in Kind],
                    {
                        "default": Kind.SDS.value,
                        "tooltip": "sds: to the likeliest picture, smooth and saturated; for edits. nfsd: without SDS' noise, "
                        "at an ordinary scale. vsd: a companion learns the latents beside; sharper, and about three times as "
                        "slow.",
                    },
                ),
                "guidance_scale": inputs.number(
                    7.5,
                    "Of the prompt over the negative one: 7.5 for edits, nfsd and vsd; 30 to 100 for sds from noise.",
                    least=1.0,
                    most=1000.0,
                    step=0.1,
                ),
                "iterations": inputs.count(
                    300, "Small steps; each costs two forwards with guidance.", least=1, most=100000
                ),
                "learning_rate": inputs.learning_rate(0.02, "Length of a step, in units of the latent. It falls to 0."),
                "level_from": inputs.number(
                    0.02, "Least noise that is looked through, as a share of the model's time."
                ),
                "level_to": inputs.number(0.98, "Most noise, at the start. Less keeps the composition."),
                "last_level_to": inputs.number(0.5, "Most noise, at the end."),
                "seed": host.limits.seed("Of the noise of every step."),
            },
            "optional": {
                "negative": ("CONDITIONING", {"tooltip": "The empty or negative prompt, for guidance."}),
                "empty": ("CONDITIONING", {"tooltip": "The empty prompt; nfsd wants it beside the negative one."}),
                "source": (
                    "CONDITIONING",
                    {
                        "tooltip": "What the latent shows at the start. What that pulls is subtracted, so that only the "
                        "difference moves. Not with vsd."
                    },
                ),
                "mask": ("MASK", {"tooltip": "White changes, black stays as it is."}),
                "companion_learning_rate": inputs.learning_rate(1e-4, "Of vsd's companion."),
                "companion_rank": inputs.count(16, "Of vsd's companion.", least=1, most=1024),
            },
        }
        return inputs.options_folded(declared)

    @classmethod
    def VALIDATE_INPUTS(cls, level_from: Any = None, level_to: Any = None, last_level_to: Any = None) -> bool | str:
        """Before anything runs."""
        given = {"level_from": level_from, "level_to": level_to, "last_level_to": last_level_to}
        return inputs.checked(lambda: ScoreDistillationOptions(**given), *given.values())

    def distil(self, model: Any, latent: dict[str, Any], kind: str, mask: Tensor | None = None, **given: Any) -> Any:
        prompts = {name: given.pop(name, None) for name in _PROMPTS}
        options = ScoreDistillationOptions(kind=Kind(kind), **given)
        with torch.inference_mode(False), torch.enable_grad(), host.training.memory_given_back():
            bare = {name: value for name, value in latent.items() if name != "noise_mask"}
            start = host.inputs.latents_for_training(model, bare).to(model.load_device)
            masks = [one for one in (mask, latent.get("noise_mask")) if one is not None]
            if masks and host.inputs.stream_shapes(latent):
                raise ValueError(
                    "a mask is connected, but latent has several streams, of video and of sound; leave the mask out."
                )
            whole = [host.inputs.mask_for_training(model, one, like=start) for one in masks]
            show = host.latent_previews.watching(model, options.iterations)
            # where latents are told in units of the model's noise, the step is as long in the latent's own
            unit = host.models.noise_scale(host.models.model_sampling_of(model))
            options = dataclasses.replace(options, learning_rate=options.learning_rate / unit)

            def observe(done: int, x: Tensor) -> None:
                host.signals.check_cancelled()
                show(done, host.inputs.as_given(host.videos.in_batch(model.model, unit * x), latent))

            with _looking(model, prompts, latent, start, options) as (views, fake):
                found = distil_latent(start, options, views, fake=fake, mask=_product(whole), observe=observe)
            shapes = host.inputs.stream_shapes(latent)
            found = host.inputs.latents_for_host(model, found, shapes=shapes).cpu()
            return ({**latent, "samples": host.inputs.as_given(found, latent)},)


@contextlib.contextmanager
def _looking(
    model: Any, prompts: dict[str, Any], latent: dict[str, Any], start: Tensor, options: ScoreDistillationOptions
) -> Iterator[tuple[Views, LearningFake | None]]:
    """The MODEL as a teacher of these prompts, and vsd's companion on it; on leaving, the MODEL is as it was."""
    shapes = host.inputs.stream_shapes(latent)

    def encoded(name: str) -> Condition:
        found = host.inputs.condition_for_training(model, prompts[name], latents=start, name=name, shapes=shapes)
        return TensorData(x0=start, condition=found).first(len(start)).condition

    host.training.loaded(model)
    given = {name: encoded(name) for name in _PROMPTS if prompts[name] is not None}
    sample = TensorData(x0=start, condition=given["positive"], unconditional=given.get("negative"))
    host.following.require_followed(model, sample.first(1))
    sampling = host.models.model_sampling_of(model)
    with host.backward.possible(), host.training.shared_network(model) as network:
        denoise = host.training.as_denoiser(network, model=model)
        views = Views(
            denoiser=denoise,
            family=host.models.noise_family(sampling),
            table=host.models.noise_levels(sampling),
            condition=given.pop("positive"),
            rule=host.guiding.rule_of(model),
            **given,
        )
        views.require_for(options)
        if options.kind is not Kind.VSD:
            yield views, None
            return
        with _companion(model, network, denoise, views, start, options) as fake:
            yield views, fake


@contextlib.contextmanager
def _companion(
    model: Any, network: Any, denoise: Denoiser, views: Views, start: Tensor, options: ScoreDistillationOptions
) -> Iterator[LearningFake]:
    lora = LoRAOptions(rank=options.companion_rank, alpha=float(options.companion_rank))
    with Adapters(network.diffusion_model, lora, device=model.load_device) as adapters:
        student = LoRAStudent(adapters, lora, denoise=denoise, names={}, seed=options.seed)
        batch = TensorData(x0=start, condition=views.condition).first(1)
        student.writes_in_place = probe_writes_in_place(student, batch)
        student.require_gradients(batch)
        companion = student.companion(rank=0, seed=options.seed % 2**63)
        yield LearningFake(companion, learning_rate=options.companion_learning_rate, views=views, start=start)


def _product(masks: list[Tensor]) -> Tensor | None:
    return torch.stack(masks).prod(dim=0) if masks else None
