"""What suits a model of each family, for those who do not want to choose: a start, and no measured optimum."""

from __future__ import annotations

import dataclasses
from typing import Any

from ....samplers.noise import NoiseFamily
from ... import host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """classes: of the host. side: of a square picture in pixels. guidance: the cfg that its pictures are usually drawn with.

    untold: the same of those of its models whose network takes no guidance as an input; 0 where that is no difference.
    start_steps: at which the teacher draws well. video: its data are clips. frame_rate: that many of their frames a second are
    drawn for; 0 where that is not known.
    """

    name: str
    classes: tuple[str, ...] = ()
    side: int = 1024
    guidance: float = 4.0
    untold: float = 0.0
    start_steps: int = 32
    video: bool = False
    frame_rate: float = 0.0


_STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1 or 2", classes=("SD15_instructpix2pix", "SD21UNCLIP"), side=512, guidance=7.0
)
_FAMILIES = (
    _STABLE_DIFFUSION,
    Family(name="SDXL", classes=("SDXL", "SDXLRefiner"), guidance=7.0),
    Family(name="Stable Diffusion 3", classes=("SD3",), guidance=4.5),
    Family(name="Flux", classes=("Flux",), guidance=1.0),
    Family(name="FLUX.2", classes=("Flux2",), guidance=1.0, untold=5.0),
    Family(name="LongCat-Image", classes=("LongCatImage",), guidance=4.5),
    Family(name="Chroma", classes=("Chroma", "ChromaRadiance")),
    Family(name="Qwen-Image", classes=("QwenImage",), guidance=2.5),
    Family(name="Z-Image or Lumina 2", classes=("ZImage", "Lumina2")),
    Family(name="HunyuanImage", classes=("HunyuanImage21",), guidance=3.5),
    Family(
        name="Anima, Krea 2 or another picture DiT",
        classes=("Anima", "Krea2", "ErnieImage", "HiDream", "Omnigen2", "JoyImage"),
    ),
    Family(name="Cosmos Predict2", classes=("CosmosPredict2",)),
    Family(name="PixArt or HunyuanDiT", classes=("PixArt", "HunyuanDiT"), guidance=4.5),
    Family(name="Stable Cascade", classes=("StableCascade_C", "StableCascade_B")),
    Family(name="HunyuanVideo", classes=("HunyuanVideo",), guidance=1.0, untold=6.0, video=True, frame_rate=24.0),
    # of video by the host's own templates: 6 of Wan 2.1, 3.5 of 2.2's two experts, which are of one class; 5 of the small one
    Family(name="Wan 2.2 5B", classes=("WAN22",), guidance=5.0, video=True, frame_rate=24.0),
    Family(name="Wan", classes=("WAN21",), guidance=5.0, video=True, frame_rate=16.0),
    Family(name="LTX-2", classes=("LTXAV",), video=True, frame_rate=25.0),
    Family(name="LTX-Video", classes=("LTXV",), guidance=3.0, video=True, frame_rate=25.0),
    Family(name="Mochi", classes=("GenmoMochi",), guidance=4.5, video=True),
    Family(name="Kandinsky 5 of pictures", classes=("Kandinsky5Image",), guidance=3.5),
    Family(name="Kandinsky 5", classes=("Kandinsky5",), guidance=5.0, video=True, frame_rate=24.0),
    Family(name="CogVideoX", classes=("CogVideoX",), guidance=6.0, video=True),
    Family(name="MiniMax H3", classes=("MiniMaxH3",), guidance=1.0, video=True, frame_rate=24.0),
    Family(name="Stable Video Diffusion", classes=("SVD_img2vid",), guidance=2.5, video=True),
    Family(name="the demo's digits", classes=("DigitModel",), side=32, guidance=1.5, start_steps=64),
)
_OTHERS = {
    NoiseFamily.VARIANCE_EXPLODING: Family(name="another model that is no flow model", guidance=7.0),
    NoiseFamily.FLOW: Family(name="another flow model"),
}


def family_of(model: Any) -> Family:
    """By the classes of the host that the MODEL is of; otherwise by how it mixes sample and noise."""
    classes = host.models.classes_of(model)
    named = [family for name in classes for family in _FAMILIES if name in family.classes]
    family = named[0] if named else _unnamed(model)
    guidance = family.guidance if not family.untold or host.models.takes_guidance(model) else family.untold
    of_a_picture = host.data.wants_a_picture(model)  # of one class with what draws pictures
    video = family.video or of_a_picture or (host.data.has_frames(model) and not named)
    return dataclasses.replace(family, guidance=guidance, video=video)


def _unnamed(model: Any) -> Family:
    sampling = host.models.model_sampling_of(model)
    noise_family = host.models.noise_family(sampling)
    if noise_family is NoiseFamily.FLOW or host.models.hosts_class(model):
        return _OTHERS[noise_family]
    large = host.models.prediction_type(sampling) == "v_prediction"  # SD2's own is of 768 pixels
    return dataclasses.replace(_STABLE_DIFFUSION, side=768) if large else _STABLE_DIFFUSION
