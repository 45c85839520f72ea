"""Guidance inside the host's networks: their time embedding with a guidance scale in it, and sampling at one forward a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.conds
import comfy.samplers
import torch
from torch import Tensor

from ....samplers.guidance_embedding import GuidedTimeEmbedding, LearntGuidance, at_scale

Conditioning = list[list[Any]]
"""The host's CONDITIONING: [[text embedding (B, tokens, width), {options}], ...]."""

_NONE: Mapping[str, Any] = {}

COND_PROJ = "cond_proj.weight"
"""A guidance embedding's weights, in files of every layout: in the whole name or behind a dot, see is_cond_proj."""
_TIME_EMBEDDINGS = ("time_embed", "t_embedder.mlp")
"""Where a network's time goes through a Sequential that begins with a Linear: UNets; SD3 and its kind."""
_NO_GUIDANCE_INPUT = (
    "this model has no guidance input. For a full LCM checkpoint put Guidance Embedding before; models of the Flux dev "
    "kind have one of their own; any other model takes its guidance as cfg with an ordinary sampler and guider."
)

_NOT_HERE = (
    "the student is to take its guidance scale as an input, for which FewStep knows a place in UNets and in networks of SD3's "
    "kind; the connected model is of another. Choose one scale: guidance_scale_max 0 or scale_input off."
)


def _place(diffusion_model: torch.nn.Module) -> str | None:
    """The path of the time embedding; None in networks that have no such one."""
    modules = dict(diffusion_model.named_modules())
    return next((path for path in _TIME_EMBEDDINGS if isinstance(modules.get(path), torch.nn.Sequential)), None)


def embedding_of(model: Any) -> GuidedTimeEmbedding | None:
    """What makes the MODEL take its guidance scale as an input, by Guidance Embedding or as such a student."""
    place = _place(model.model.diffusion_model)
    found = model.get_model_object(f"diffusion_model.{place}") if place else None
    return found if isinstance(found, GuidedTimeEmbedding) else None


def require_place(model: Any) -> None:
    """ValueError for a MODEL whose student cannot take its guidance scale as an input."""
    if _place(model.model.diffusion_model) is None or _has_guidance_input(model.model.diffusion_model):
        raise ValueError(_NOT_HERE)


def learn_guidance(network: Any, *, guidance_scale: float) -> None:
    """The network takes its scale as an input that learns, from what it is now on; guidance_scale: where none is said."""
    place = _place(network.diffusion_model)
    if place is None:
        raise ValueError(_NOT_HERE)
    found = network.diffusion_model.get_submodule(place)
    cond_proj = found.cond_proj if isinstance(found, GuidedTimeEmbedding) else None
    learnt = LearntGuidance(found, cond_proj, guidance_scale=guidance_scale)
    _put(network.diffusion_model, place, learnt)


def fix_guidance(network: Any) -> None:
    """A network that takes its scale as an input becomes one of that scale, in its ordinary weights."""
    place = _place(network.diffusion_model)
    found = network.diffusion_model.get_submodule(place) if place else None
    if place and isinstance(found, GuidedTimeEmbedding):
        _put(network.diffusion_model, place, found.fixed())


def _put(diffusion_model: torch.nn.Module, place: str, layers: torch.nn.Sequential) -> None:
    parent, _, name = place.rpartition(".")
    setattr(diffusion_model.get_submodule(parent), name, layers)


def is_cond_proj(name: str) -> bool:
    """Whether a tensor of that name is a guidance embedding. Ideogram 4 has an llm_cond_proj, which is a layer like any other."""
    return f".{name}".endswith(f".{COND_PROJ}")


def learnt_cond_proj(student: Iterable[str], *, network: torch.nn.Module) -> str | None:
    """The name of cond_proj among a student's tensors, which the network lacks; None for one that takes no scale."""
    return next(filter(is_cond_proj, set(student) - network.state_dict().keys()), None)


@contextmanager
def taking_scale(network: Any, guidance_scale: Tensor | None) -> Iterator[None]:
    """Inside, a network that learns to take scales takes these (B,); None for the one that it has."""
    if guidance_scale is None:
        yield
        return
    learnt = next(module for module in network.modules() if isinstance(module, LearntGuidance))
    with at_scale(learnt, guidance_scale):
        yield


def _has_guidance_input(diffusion_model: torch.nn.Module) -> bool:
    """Whether the architecture itself takes a guidance scale (Flux dev, HunyuanVideo); in Flux schnell it is an Identity."""
    layer = getattr(diffusion_model, "guidance_in", None)
    return layer is not None and not isinstance(layer, torch.nn.Identity)


class OnePromptGuider(comfy.samplers.CFGGuider):
    """Without a negative prompt, and so without guidance.

    A patch may set another cfg for a step (CFG Override), and a sampler ask for the negative prediction (CFG++): the host's own
    guider takes zeros for that.
    """

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = _NONE, seed: int | None = None) -> Tensor:
        if self.cfg != 1.0:
            raise ValueError(
                f"the MODEL carries a cfg of {self.cfg:g} (CFG Override, say), but guidance needs a negative prompt: connect "
                "negative, or remove that node."
            )
        _require_none_asked(model_options, "connect negative, or take another sampler or remove that node")
        return super().predict_noise(x, timestep, model_options, seed)


def _require_none_asked(model_options: Mapping[str, Any], mend: str) -> None:
    """ValueError for samplers and patches that want what is predicted for a negative prompt, whatever the cfg."""
    if model_options.get("disable_cfg1_optimization"):
        raise ValueError(
            "the sampler (one of CFG++), or a patch of the MODEL (Self-Attention Guidance), wants what is predicted for a "
            f"negative prompt, which is not evaluated here: {mend}."
        )


_NEVER_ASKED = "take another sampler, or remove that node"


class _GuidanceDistilledGuider(comfy.samplers.CFGGuider):
    """One forward a step: the positive conditioning only, its cfg inside the network."""

    guidance_scale: float

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = _NONE, seed: int | None = None) -> Tensor:
        _require_none_asked(model_options, _NEVER_ASKED)
        with _cfg_in_network(self, has=self.guidance_scale):
            return super().predict_noise(x, timestep, model_options, seed)


def guidance_distilled_guider(model: Any, positive: Conditioning, *, guidance_scale: float) -> Any:
    """A GUIDER for a model with a guidance embedding, or one whose architecture has a guidance input."""
    embedding = embedding_of(model)
    if embedding is not None:
        model = with_guidance_embedding(model, embedding.cond_proj, guidance_scale=guidance_scale)
    elif _has_guidance_input(model.model.diffusion_model):
        positive = [[embedded, {**options, "guidance": guidance_scale}] for embedded, options in positive]
    else:
        raise ValueError(_NO_GUIDANCE_INPUT)
    guider = _GuidanceDistilledGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.guidance_scale = guidance_scale
    guider.set_cfg(guidance_scale)
    return guider


def with_guidance_embedding(model: Any, cond_proj: Tensor, *, guidance_scale: float) -> Any:
    """A clone whose network takes the scale through cond_proj (channels, dim), before its first time-embedding layer."""
    place = _place(model.model.diffusion_model)
    if place is None:
        raise ValueError("this model's time embedding is of a kind that takes no guidance embedding.")
    layers = model.get_model_object(f"diffusion_model.{place}")
    channels = layers[0].in_features
    if cond_proj.ndim != 2 or cond_proj.shape[0] != channels:
        raise ValueError(
            f"the guidance embedding is of shape {tuple(cond_proj.shape)}, but the connected model's time embedding has "
            f"{channels} channels. Connect the model that was loaded from the same file."
        )
    clone = model.clone()
    embedding = GuidedTimeEmbedding(layers, cond_proj, guidance_scale=guidance_scale)
    clone.add_object_patch(f"diffusion_model.{place}", embedding)
    return clone


@contextmanager
def one_forward(guider: Any) -> Iterator[None]:
    """Inside, a running guider evaluates the positive conditioning only, its cfg as the network's guidance.

    The guider itself, since a sampler that wraps another (Detail Daemon) holds it where we cannot put another in its place.
    """
    if isinstance(guider, _GuidanceDistilledGuider):
        yield
        return
    scale, own, before = _scale_of(guider), guider.predict_noise, dict(vars(guider))

    def predict_noise(x: Tensor, timestep: Tensor, model_options: Any = _NONE, seed: int | None = None) -> Tensor:
        _require_none_asked(model_options, _NEVER_ASKED)
        with _cfg_in_network(guider, has=scale):
            return own(x, timestep, model_options, seed)

    try:
        guider.conds, guider.predict_noise = {"positive": guider.conds["positive"]}, predict_noise
        with _at_scale(guider, scale):
            yield
    finally:
        del guider.predict_noise
        vars(guider).update({name: before[name] for name in ("conds", "predict_noise") if name in before})


@contextmanager
def _cfg_in_network(guider: Any, *, has: float) -> Iterator[None]:
    """Inside, the guider has no guidance of its own; its cfg, which a patch may have set for this step, is the network's.

    has: the scale that the network is at.
    """
    cfg = guider.cfg
    try:
        guider.cfg = 1.0
        with nullcontext() if cfg == has else _at_scale(guider, cfg):
            yield
    finally:
        guider.cfg = cfg


@contextmanager
def _at_scale(guider: Any, scale: float) -> Iterator[None]:
    """Inside, the guider's network takes this guidance scale."""
    diffusion_model = guider.inner_model.diffusion_model
    place = _place(diffusion_model)
    embedding = diffusion_model.get_submodule(place) if place else None
    if isinstance(embedding, GuidedTimeEmbedding):
        with at_scale(embedding, scale):
            yield
    elif _has_guidance_input(diffusion_model):
        guidance = {"guidance": comfy.conds.CONDRegular(torch.tensor([scale]))}
        before = guider.conds["positive"]
        told = [{**entry, "model_conds": {**entry["model_conds"], **guidance}} for entry in before]
        try:
            guider.conds["positive"] = told
            yield
        finally:
            guider.conds["positive"] = before
    else:
        raise ValueError(_NO_GUIDANCE_INPUT)


def _scale_of(guider: Any) -> float:
    if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise or "negative" not in guider.conds:
        raise ValueError(
            f"a guidance-distilled sampler takes its scale from the cfg, but {type(guider).__name__} has none. Use "
            "KSampler, SamplerCustom, CFGGuider or Guidance-Distilled Guider, or an ordinary sampler with this guider."
        )
    return float(guider.cfg)
