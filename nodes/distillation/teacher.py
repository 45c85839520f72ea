"""Which teacher a run has: by hashes, and by what it answers, for much changes what a MODEL draws and is in no weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...trainers.data.batches import Batch
from ...trainers.storage.identity import another_teacher
from ...trainers.storage.reading import identity_in
from ...trainers.storage.run_folder import RunFolder
from ...trainers.training.distillation import Recorded
from .. import host

_LEVELS = 9
"""Of the model's own table, from its first to its last, that are kept."""


class Hashes(NamedTuple):
    """Of a MODEL: all of it in one, and by part."""

    sha256: str
    parts: Mapping[str, str]


def described(model: Any, first: Batch | None, *, parts: Mapping[str, str]) -> dict[str, Any]:
    """The MODEL's "teacher_is", see storage's identity, JSON values. first: the run's first sample; without it nothing is asked.

    parts: of its Hashes. Two forward passes of one sample, through the network as training calls it.
    """
    host.training.loaded(model)
    table = host.models.noise_levels(host.models.model_sampling_of(model))
    return {
        **parts,
        "held_in": host.identity.held_in(model),
        "levels": [
            float(f"{level:.6g}") for level in table[torch.linspace(0, len(table) - 1, _LEVELS).long()].tolist()
        ],
        "changes": host.identity.changes(model),
        "answers": {} if first is None else host.identity.answers_of(model, first),
    }


def hashed(model: Any, *, begun_with: str | None = None) -> Hashes:
    """Of the MODEL as wired, its LoRAs and patches with it, wherever the host keeps its weights.

    begun_with: what a run says of its teacher; given back where it is what the first version said of this MODEL.
    """
    host.training.loaded(model)
    parts = host.identity.teacher_parts(model)
    found = host.identity.sha256_of(parts)
    is_of_old = begun_with not in (None, found) and begun_with == host.identity.of_old(model)
    return Hashes(begun_with if begun_with and is_of_old else found, parts)


def sha256_said(run: RunFolder) -> str | None:
    """What a begun run says of its teacher. ValueError when its run.json is missing or damaged."""
    return str(identity_in(run.description())["teacher_sha256"]) if run.begun else None


def require(recorded: Recorded, model: Any, *, run: RunFolder, first: Batch | None) -> dict[str, Any]:
    """The MODEL's "teacher_is". ValueError, naming what differs, when it is not the one that the run was begun with."""
    found, parts = hashed(model, begun_with=recorded.teacher_sha256)
    here = described(model, first, parts=parts)
    differing = another_teacher(recorded.teacher_is, here)
    if found != recorded.teacher_sha256 and not differing:
        differing = [f"its weights have the hash {recorded.teacher_sha256[:12]}..., those here {found[:12]}..."]
    if differing:
        raise ValueError(
            f"the run {run.name!r} was begun with another teacher. Use the same checkpoint, LoRA files and model nodes. What "
            f"differs: {'; '.join(differing)}."
        )
    return here
