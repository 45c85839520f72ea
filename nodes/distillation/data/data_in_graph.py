"""LATENT and CONDITIONING of the graph as training data, and lists of them, as the host's own data set nodes give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.batches import TensorData
from ....trainers.data.conditions import Condition
from ....trainers.data.joining import in_buckets
from ... import host
from ...host.sampling.inputs import Shapes
from ...host.sampling.models import Conditioning
from .data_sources import DataInGraph

Latent = dict[str, Tensor]
Samples = tuple[Tensor, Shapes | None]
"""x0 (N, ...) and what its streams are packed from."""


def data_in_graph(
    model: Any,
    latents: Latent | Sequence[Latent] | None,
    positive: Conditioning | Sequence[Conditioning] | None,
    negative: Conditioning | Sequence[Conditioning] | None,
    *,
    dropout: float,
) -> DataInGraph:
    """What is connected, samples and prompts of one shape together; dropout: of captions.

    Lists of latents are one data set, of positive and of negative with one for each latent in the same order, or one for all.
    ValueError when they do not pair up.
    """
    given = [latents] if isinstance(latents, dict) else latents
    if not given or not positive:
        raise ValueError("latents or positive is empty; connect at least one picture and one prompt.")
    samples = [(host.inputs.latents_for_training(model, one), host.inputs.stream_shapes(one)) for one in given]
    counts = [len(x0) for x0, _ in samples]
    prompts = _prompts(positive, counts, name="positive")
    empty = _prompts(negative, counts, name="negative") if negative is not None else None
    of_one_shape = list(_of_one_shape(samples, prompts, empty))
    for x0, _, prompt, without in of_one_shape:
        host.data.require_picture(model, prompt, latents=x0, name="positive")
        host.data.require_picture(model, without or [], latents=x0, name="negative")
    parts = [
        part
        for x0, shapes, prompt, without in of_one_shape
        for part in _parts(model, x0, shapes, prompt, without, dropout=dropout)
    ]
    data = parts[0] if len(parts) == 1 else in_buckets(parts)
    if dropout:
        data.require_droppable()
    _say_unseen(model, of_one_shape[0][2], parts[0])
    return DataInGraph(data, lacking="latents are empty" if all(map(host.inputs.is_empty, given)) else "")


# --- lists -----------------------------------------------------------------------------------------------------------


def _prompts(given: Conditioning | Sequence[Conditioning], counts: Sequence[int], *, name: str) -> list[Conditioning]:
    """One CONDITIONING for each LATENT, or one for all of them alike. counts: samples of each LATENT. name: of the input."""
    several: list[Any] = list(given) if _is_list_of_conditioning(given) else [given]
    if len(several) == len(counts) == 1:
        return several
    rows = [host.inputs.prompts_of(one) for one in several]
    if len(rows) == len(counts) and all(len(own) in (1, n) for own, n in zip(rows, counts, strict=True)):
        return [own if len(own) == n else own * n for own, n in zip(rows, counts, strict=True)]
    flat = [row for own in rows for row in own]
    if len(flat) == 1:
        return [flat]
    if len(flat) != sum(counts):
        prompts, pictures = _listed(several, len(flat), "prompts"), _listed(counts, sum(counts), "pictures")
        raise ValueError(
            f"{name} is {prompts}, and latents are {pictures}; give one prompt for each latent in the same order, or a single "
            "one for all."
        )
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [flat[end - n : end] for end, n in zip(ends, counts, strict=True)]


def _is_list_of_conditioning(given: Any) -> bool:
    """A CONDITIONING is a list too: of entries [tensor, options]."""
    return bool(given) and not (len(given[0]) == 2 and isinstance(given[0][1], dict))


def _listed(several: Sequence[Any], whole: int, what: str) -> str:
    return f"{whole} {what}" if len(several) == 1 else f"a list of {len(several)} with {whole} {what}"


def _of_one_shape(
    samples: Sequence[Samples], prompts: Sequence[Conditioning], empty: Sequence[Conditioning] | None
) -> Iterator[tuple[Tensor, Shapes | None, Conditioning, Conditioning | None]]:
    """Samples of one shape as one, in the order of the first of each, with their prompts and negative ones."""

    def own(of: Sequence[Conditioning], alike: Sequence[int]) -> Conditioning:
        return of[0] if len(of) == 1 else [entry for i in alike for entry in of[i]]

    groups: dict[Any, list[int]] = {}
    for i, (x0, shapes) in enumerate(samples):
        groups.setdefault((x0.shape[1:], repr(shapes)), []).append(i)
    for alike in groups.values():
        x0 = torch.cat([samples[i][0] for i in alike]) if len(alike) > 1 else samples[alike[0]][0]
        yield x0, samples[alike[0]][1], own(prompts, alike), None if empty is None else own(empty, alike)


def _say_unseen(model: Any, positive: Conditioning, made: TensorData) -> None:
    if host.data.picture_unseen(positive, made.condition):
        host.signals.say(
            f"positive carries a picture, which this model ({type(model.model).__name__}) does not look at: it draws from text "
            "alone, and so will its student.",
            warning=True,
        )


# --- samples of one shape --------------------------------------------------------------------------------------------


def _parts(
    model: Any,
    x0: Tensor,
    shapes: Shapes | None,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    dropout: float,
) -> Iterator[TensorData]:
    """One, or one for each sample where prompts are of several shapes."""
    empty = None
    if negative is not None:
        empty = host.inputs.condition_for_training(model, negative, latents=x0, name="negative", shapes=shapes)
    prompts = host.inputs.conditions_for_training(model, positive, latents=x0, name="positive", shapes=shapes)
    if empty is not None:
        _require_own_pictures(prompts, empty)

    def made(samples: Tensor, condition: Condition, own: Condition | None) -> TensorData:
        """With prompts in one length where captions are dropped."""
        if dropout and own is not None:
            condition, own = host.inputs.in_one_length(model, positive, condition, own, latents=x0)
        return TensorData(x0=samples, condition=condition, unconditional=own)

    if len({host.conditions.shape_of_inputs(prompt) for prompt in prompts}) == 1:
        yield made(x0, host.conditions.joined_inputs(prompts), empty)
    else:
        each = _one_each(prompts, len(x0), what="prompts of several lengths")
        without = [None] * len(x0) if empty is None else _one_each([empty], len(x0), what="negative prompts")
        yield from map(made, x0.split(1), each, without)


def _require_own_pictures(prompts: Sequence[Condition], empty: Condition) -> None:
    """ValueError where prompts have pictures of their own, and one negative prompt has one for all.

    Guidance would then lead away from the pictures' difference too, and a dropped caption bring another's picture.
    """
    for key, value in empty.items():
        if len(value) == 1 and host.conditions.is_picture(key) and _shows_something(value):
            found = [row for prompt in prompts if key in prompt for row in prompt[key]]
            if any(row.shape != found[0].shape or not torch.equal(row, found[0]) for row in found):
                raise ValueError(
                    f"negative is one prompt with one picture for all ({key}), but the positive prompts have pictures of their "
                    "own; give one negative for each latent in the same order, with the picture of its positive, or one "
                    "without a picture."
                )


def _shows_something(picture: Tensor) -> bool:
    """False where it is the same everywhere, as what hosts give a model for no picture is."""
    return not torch.equal(picture, picture[..., :1, :1].expand_as(picture))


def _one_each(prompts: Sequence[Condition], count: int, *, what: str) -> list[Condition]:
    """A prompt for each latent, or one for all of them. ValueError when their counts differ. what: they are."""
    rows = [prompt for several in prompts for prompt in host.conditions.rows_of(several)]
    rows = rows * count if len(rows) == 1 else rows
    if len(rows) != count:
        raise ValueError(
            f"the conditioning holds {len(rows)} {what} but there are {count} latents; give one prompt for each latent in the "
            "same order, or a single one for all."
        )
    return rows
