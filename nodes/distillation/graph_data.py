"""Training data that are connected in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ...trainers.data.batches import Buckets, Condition, TensorData
from ...trainers.data.cache import in_buckets
from .. import host


def data_in_graph(
    model: Any, latents: Any, positive: Any, negative: host.models.Conditioning | None, *, dropout: float = 0.0
) -> TensorData | Buckets:
    """What is connected as LATENT and CONDITIONING, prompts of one shape together; dropout: of captions."""
    x0, shapes = host.inputs.latents_for_training(model, latents), host.inputs.stream_shapes(latents)
    empty = None
    if negative is not None:
        empty = host.inputs.condition_for_training(model, negative, latents=x0, name="negative", shapes=shapes)
    prompts = host.inputs.conditions_for_training(model, positive, latents=x0, name="positive", shapes=shapes)

    def made(samples: Tensor, condition: Condition) -> TensorData:
        """With prompts in one length where captions are dropped."""
        own = empty
        if dropout and own is not None:
            condition, own = host.inputs.in_one_length(model, positive, condition, own, latents=x0)
        return TensorData(x0=samples, condition=condition, unconditional=own)

    if len({host.inputs.shape_of_inputs(prompt) for prompt in prompts}) == 1:
        data: TensorData | Buckets = made(x0, host.inputs.joined_inputs(prompts))
    else:
        data = in_buckets(made(one, prompt) for one, prompt in _pairs(x0, prompts))
    if dropout:
        data.require_droppable()
    return data


def _pairs(x0: Tensor, prompts: Sequence[Condition]) -> Iterator[tuple[Tensor, Condition]]:
    """Each latent (1, ...) with its prompt, of prompts of several shapes. ValueError when their counts differ."""
    rows = [prompt for several in prompts for prompt in host.inputs.rows_of(several)]
    if len(rows) != len(x0):
        raise ValueError(
            f"the conditioning holds {len(rows)} prompts of several lengths but there are {len(x0)} latents; give one prompt for "
            "each latent in the same order, or a single one for all."
        )
    return zip(x0.split(1), rows, strict=True)
