"""What suits a model of each family, for those who do not want to choose: a start, and no measured optimum."""

from __future__ import annotations

import dataclasses
from typing import Any

from ....samplers.noise import NoiseFamily
from ... import host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """classes: of the host. side: of a square picture in pixels. guidance: the cfg that its pictures are usually drawn with.

    start_steps: at which the teacher draws well. flow_guided: it was distilled to take its guidance as an input, at cfg 1.
    """

    name: str
    classes: tuple[str, ...] = ()
    side: int = 1024
    guidance: float = 4.0
    start_steps: int = 32
    video: bool = False


_FAMILIES = (
    Family(name="SDXL", classes=("SDXL", "SDXLRefiner"), guidance=7.0),
    Family(name="Stable Diffusion 3", classes=("SD3",), guidance=4.5),
    Family(name="Flux", classes=("Flux", "Flux2"), guidance=1.0),
    Family(name="Chroma", classes=("Chroma", "ChromaRadiance")),
    Family(name="Qwen-Image", classes=("QwenImage",), guidance=2.5),
    Family(name="Z-Image or Lumina 2", classes=("ZImage", "Lumina2")),
    Family(name="HunyuanImage", classes=("HunyuanImage21",), guidance=3.5),
    Family(
        name="Anima, Krea 2 or another picture DiT", classes=("Anima", "Krea2", "ErnieImage", "HiDream", "Omnigen2")
    ),
    Family(name="PixArt or HunyuanDiT", classes=("PixArt", "HunyuanDiT"), guidance=4.5),
)
_OTHERS = {
    NoiseFamily.VARIANCE_EXPLODING: Family(name="Stable Diffusion 1 or 2", side=512, guidance=7.0),
    NoiseFamily.FLOW: Family(name="another flow model"),
}


def family_of(model: Any) -> Family:
    """By the classes of the host that the MODEL is of; otherwise by how it mixes sample and noise."""
    classes = host.models.classes_of(model)
    named = [family for name in classes for family in _FAMILIES if name in family.classes]
    family = named[0] if named else _OTHERS[host.models.noise_family(host.models.model_sampling_of(model))]
    return dataclasses.replace(family, video=host.data.has_frames(model) and not named)
