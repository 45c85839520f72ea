"""What is chosen for a user who says no more than which MODEL, in how many steps, and to what end; and what it takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch

from ....trainers.data.batches import Batch
from ....trainers.methods.consistency import ConsistencyOptions
from ....trainers.methods.distribution_matching import DistributionMatchingOptions
from ....trainers.methods.progressive import ProgressiveOptions
from ....trainers.methods.rollout import Rollout
from ....trainers.objective.method import Method, student_prediction
from ....trainers.storage.run_folder import RunFolder
from ....trainers.students.adapters import LoRALayers, LoRAOptions
from ....trainers.training.distillation import require_goes_on
from ....trainers.training.optimisation.options import OF_NEW_RUNS, TrainOptions
from ....trainers.training.plan import Plan
from ... import host
from ...host.teachers.data import Empty
from .. import planning, running, teacher
from ..data import training_data
from ..data.clip_sources import ClipFolder
from ..data.data_in_graph import data_in_graph
from ..data.data_sources import Sample, Texts
from ..data.edit_sources import EditFolder
from ..data.folder_sources import PictureFolder, SeenSource
from ..data.prompts_alone import PromptsAlone
from ..data.teacher_pictures import PromptSource
from ..learning import matching_method, methods, students
from ..learning import option_inputs as inputs
from ..learning.families import Family, family_of
from ..learning.starting_lora import NOTHING, StartingLoRA, require_suits
from . import from_folder
from .cards import NO_CARD, Card, cards
from .preparing import preparing

CLOSEST, SHARPEST, CHEAPEST = "closest to my model", "sharpest", "cheapest to train"
CARDS = {"what is free now": None, **{f"{size} GB": float(size) for size in (8, 12, 16, 24, 32)}}
Guided = ProgressiveOptions | ConsistencyOptions | DistributionMatchingOptions
BATCH, RANK = 16, 64
_SIDE_OF_CLIPS = 480
_DRAWN_AT_ONCE = 4
_AFTER_A_START = 400
"""Iterations of a goal that draws its own pictures where the LoRA begins as another: few hundreds do instead of thousands."""


# --- the goals -------------------------------------------------------------------------------------------------------


def _progressive(family: Family, *, steps: int, guidance: float, iterations: int) -> tuple[Guided, str]:
    chosen = ProgressiveOptions.read(
        {
            **inputs.defaults(methods.ProgressiveDistillation),
            "start_steps": family.start_steps,
            "target_steps": steps,
            "iterations": iterations or 400,
            "last_stages_iterations": 2 * (iterations or 400) if steps < 4 else 0,
            "learning_rate": 1e-4,
            "guidance_scale": guidance,
        }
    )
    return chosen, (
        f"progressive distillation from {family.start_steps} steps to {steps}: it follows your model's own pictures from the "
        "same noise, so seeds keep their meaning"
    )


def _consistency(family: Family, *, steps: int, guidance: float, iterations: int) -> tuple[Guided, str]:
    chosen = ConsistencyOptions.read(
        {
            **inputs.defaults(methods.ConsistencyDistillation),
            "steps": steps,
            "iterations": iterations or 1500,
            "guidance_scale": guidance,
        }
    )
    return chosen, f"consistency distillation, an LCM-LoRA: one stage for any number of steps; the file says {steps}"


def _matching(family: Family, *, steps: int, guidance: float, iterations: int) -> tuple[Guided, str]:
    chosen = DistributionMatchingOptions.read(
        {
            **inputs.defaults(matching_method.DistributionMatching),
            "steps": steps,
            "iterations": iterations or 1500,
            "guidance_scale": guidance,
        }
    )
    return chosen, (
        f"distribution matching in {steps} steps: the student's own samples are pulled to where your model would draw them, so "
        "no pictures are drawn beforehand; a second LoRA of the same size learns beside it"
    )


GOALS = {CLOSEST: _progressive, SHARPEST: _matching, CHEAPEST: _consistency}
_DRAWS_ITS_OWN = (SHARPEST,)
"""Goals whose method wants prompts and no pictures."""
_MOST_GUIDANCE = 5.0
"""That is chosen for matching, where more lets the contrast grow."""
_GOES_ON = "it draws without fresh noise, as what it begins as, and is matched where each step lands"


# --- what is chosen --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user asks for, and all that follows from it for the MODEL. ValueError, naming the input, for what cannot be."""

    model: Any
    steps: int
    goal: str
    vae: Any = None
    clip: Any = None
    prompts: str = ""
    folder: str = ""
    negative_prompt: str = ""
    guidance: float = 0.0
    side: int = 0
    pictures: int = 480
    iterations: int = 0
    memory: str = "what is free now"
    seed: int = 0
    latents: Any = None
    positive: Any = None
    negative: Any = None
    preset: str = NO_CARD
    start_lora: str = NOTHING
    frames: int = 0
    audio_vae: Any = None
    clip_vision: Any = None
    references: str = ""
    reference_method: str = host.editing.USUAL
    layers: LoRALayers | None = None
    """Of a run that has begun."""

    def __post_init__(self) -> None:
        from_folder.require_method(self.references, self.reference_method)
        if 0.0 < self.guidance < 1.0:
            raise ValueError(
                f"guidance is {self.guidance:g}; allowed are 1 (none) to 100, and 0 for what is usual for the model's family."
            )
        if self.from_graph:
            given = {name: getattr(self, name) for name in ("prompts", "folder", "frames", "references")}
            both = [name for name, value in given.items() if str(value or "").strip()]
            if both:
                raise ValueError(
                    f"latents or positive is connected, and {both[0]} is given too; give training data in one way."
                )
            return
        if self._place and self.prompts.strip():
            raise ValueError(f"folder or references is {self._place!r} and prompts are given too; give one of the two.")
        if self.clip is None:
            raise ValueError("clip is not connected, which encodes the texts; connect it, or latents and positive.")
        if self._place and self.vae is None:
            raise ValueError("folder is given but vae is not connected, which encodes its pictures.")
        self._require_frames()
        self._require_side()
        if not self._place:
            _ = self._empty  # which names frames of no use
        if isinstance(self._source, EditFolder):  # making it names a folder or prompts of no use
            self._source.require_told_by(self.model)

    def _require_frames(self) -> None:
        if self._place:
            of_clips = {"audio_vae": self.audio_vae, "clip_vision": self.clip_vision}
            from_folder.require_model(self.model, family=self.family, references=self.references, **of_clips)
        else:
            host.data.require_no_picture(self.model)
        if self.frames and self._place and not self.family.video:
            raise ValueError(f"frames is {self.frames}, but this model draws still pictures; set frames to 0.")
        if self.family.video and not self.frames:
            raise ValueError(
                "this is a model of video, whose training data are clips. Set frames, of each clip in folder, or of those that "
                "the model draws from the prompts, 81 for Wan, say; or connect latents of clips and positive."
            )

    def _require_side(self) -> None:
        """By the name that it has here; the sources made of it have their own."""
        if self.side:
            host.data.require_sides(self.model, side=self.side)
            if not self._place and self.side % self._side_step:
                raise ValueError(f"side is {self.side}; pictures of this model want multiples of {self._side_step}.")
            if self._place and self.side < SeenSource.bucket_step:
                raise ValueError(f"side is {self.side}; what is in a folder wants {SeenSource.bucket_step} or more.")

    @property
    def _place(self) -> str:
        """Of files that are trained on, as it is named: pictures before an edit may stand for those that nobody has drawn."""
        return self.folder.strip() or self.references.strip()

    @property
    def from_graph(self) -> bool:
        return self.latents is not None or self.positive is not None

    @functools.cached_property
    def family(self) -> Family:
        return family_of(self.model)

    @property
    def _guidance(self) -> float:
        if self.from_graph and self.negative is None and not self.guidance:
            return 1.0  # nothing to guide away from
        usual = self.family.guidance
        return self.guidance or (min(usual, _MOST_GUIDANCE) if self.goal == SHARPEST else usual)

    @property
    def _side(self) -> int:
        family = _SIDE_OF_CLIPS if self.frames else self.family.side
        usual = min(family, self._card.most_side if self._card else family)
        usual = usual // self._side_step * self._side_step
        return self.side or max(usual, SeenSource.bucket_step if self._place else 0)

    @property
    def _side_step(self) -> int:
        """Of drawn pictures, in pixels: 8, and a latent's of the model."""
        return math.lcm(8, host.data.require_sides(self.model))

    @functools.cached_property
    def _card(self) -> Card | None:
        return None if self.preset == NO_CARD else cards()[self.preset]

    @property
    def method(self) -> Guided:
        return self._chosen[0]

    @functools.cached_property
    def _chosen(self) -> tuple[Guided, str]:
        usual = _AFTER_A_START if self._begins and self.goal in _DRAWS_ITS_OWN else 0
        choose = GOALS[self.goal]
        chosen, why = choose(
            self.family, steps=self.steps, guidance=self._guidance, iterations=self.iterations or usual
        )
        start = self.student
        if isinstance(chosen, DistributionMatchingOptions) and isinstance(start, StartingLoRA) and start.gamma == 0.0:
            return dataclasses.replace(chosen, rollout=Rollout.LANDINGS), f"{why}; {_GOES_ON}"
        return chosen, why

    @property
    def _begins(self) -> bool:
        return self.start_lora != NOTHING

    @functools.cached_property
    def student(self) -> LoRAOptions:
        layers = self.layers or (LoRALayers.LINEAR if self.steps >= 4 else LoRALayers.LINEAR_AND_CONV)
        rank = self._card.rank if self._card else RANK
        lora = LoRAOptions(rank=rank, alpha=float(rank), layers=layers)
        return StartingLoRA.of(lora, file=self.start_lora, strength=1.0) if self._begins else lora

    @property
    def options(self) -> TrainOptions:
        batch_size = self._card.batch_size if self._card else BATCH
        return TrainOptions(batch_size=batch_size, checkpoint_every=100, seed=self.seed, **OF_NEW_RUNS)

    def data(self) -> dict[str, Any]:
        """As Distill Model takes it."""
        if self.from_graph:
            return {"latents": self.latents, "positive": self.positive, "negative": self.negative}
        return {"data": self._source}

    @functools.cached_property
    def _source(self) -> PictureFolder | ClipFolder | PromptsAlone | PromptSource | None:
        """Out of prompts or a folder, which is listed once; None where data are connected."""
        if self.from_graph:
            return None
        if self._place:
            return self._folder()
        return self._prompts_alone() if self.goal in _DRAWS_ITS_OWN else self._prompts()

    def _folder(self) -> PictureFolder | ClipFolder:
        return from_folder.source_of(
            self._place,
            family=self.family,
            side=self._side,
            frames=self.frames,
            negative=self.negative_prompt,
            vae=self.vae,
            clip=self.clip,
            audio_vae=self.audio_vae,
            clip_vision=self.clip_vision,
            of_edits={"references": self.references, "reference_method": self.reference_method, **self._drawn},
        )

    @property
    def _drawn(self) -> dict[str, Any]:
        """The edits of references that stand alone, which the model draws for goals that look at any."""
        drawn = self.references.strip() and not self.folder.strip() and self.goal not in _DRAWS_ITS_OWN
        return {"draw_steps": self.family.start_steps, "draw_cfg": self._guidance} if drawn else {}

    @property
    def _lines(self) -> tuple[str, ...]:
        return training_data.lines(self.prompts) or training_data.usual_prompts(self.clip)

    @property
    def _size(self) -> dict[str, Any]:
        """Of what is drawn from prompts."""
        return {"width": self._side, "height": self._side, "frames": self.frames or 1}

    @functools.cached_property
    def _empty(self) -> Empty:
        return host.data.empty(self.model, **self._size)

    def _prompts_alone(self) -> PromptsAlone:
        return PromptsAlone(prompts=self._lines, negative=self.negative_prompt, clip=self.clip, **self._size)

    def _prompts(self) -> PromptSource:
        lines = self._lines[: self.pictures]
        return PromptSource(
            prompts=lines,
            negative=self.negative_prompt,
            **self._size,
            pictures_per_prompt=math.ceil(self.pictures / max(1, len(lines))),
            steps=self.family.start_steps,
            cfg=self._guidance,
            seed=self.seed,
            batch_size=1 if self.frames else _DRAWN_AT_ONCE,
            clip=self.clip,
        )

    def told(self) -> list[str]:
        """What was chosen, and why, a line each."""
        drawn = self._source
        said = [f"your model: {self.family.name}", self._chosen[1]]
        if isinstance(drawn, PromptSource):
            count = len(drawn.prompts) * drawn.pictures_per_prompt
            left = len(self._lines) - len(drawn.prompts)
            said.append(
                f"data: {count} {_what(drawn)} that your model draws from {len(drawn.prompts)} "
                f"prompts{f'; {left} more are left out, for pictures is {self.pictures}' if left else ''}"
            )
        elif isinstance(drawn, PromptsAlone):
            said.append(f"data: {len(drawn.prompts)} prompts, for {_what(drawn)}")
        elif drawn is not None:
            said.append(from_folder.told(self.model, drawn, only_captions=self.goal in _DRAWS_ITS_OWN))
        said += from_folder.unused(self._place, audio_vae=self.audio_vae, clip_vision=self.clip_vision)
        if self._card:
            largest = f"pictures of {self._card.most_side} at most where side is 0"
            said.append(f"preset {self.preset}: batches of {self._card.batch_size}, {largest}")
        rank, layers = self.student.rank, self.student.layers.value
        said.append(
            f"student: a LoRA of rank {rank} on layers {layers}; guidance {self.method.guidance_scale:g} is baked in"
        )
        if self._begins:
            said.append(f"it begins as {self.start_lora}")
        return said

    # --- what it takes ---

    @property
    def _resolved(self) -> Method:
        guided = not self.from_graph or self.negative is not None
        return running.method_on(self.model, self.method, empty_prompt=guided)

    def require_goes_on(self, run: RunFolder) -> None:
        """ValueError, before anything is tried, where the run has begun with other settings."""
        require_goes_on(run, method=self._resolved, options=self.options, student=students.description(self.student))

    def require_start(self) -> None:
        """ValueError, naming the file, for a LoRA that a run cannot begin as. Hashes the MODEL for it."""
        if isinstance(self.student, StartingLoRA):
            predicts = host.models.prediction_type(host.models.model_sampling_of(self.model))
            require_suits(
                self.student,
                model=self.model,
                teacher_sha256=teacher.hashed(self.model).sha256,
                prediction=student_prediction(self._resolved, prediction_type=predicts),
            )

    def planned(self, run: Any) -> tuple[TrainOptions, Plan]:
        """The options as they fit into the memory, and what they take. ValueError where nothing does."""
        sample = self._sample()
        method = running.method_on(self.model, self.method, empty_prompt=sample.unconditional is not None)
        trial = planning.Trial(model=self.model, run=run, method=method, student=self.student, sample=sample)
        card = CARDS[self.memory] or (self._card.gigabytes if self._card else None)
        room = None if card is None else host.training.beside_on_card(self.model, gigabytes=card)
        before = preparing(self.model, self._source, run)
        return planning.fitted(trial, self.options, room=room, preparing=before)

    def _sample(self) -> Batch:
        """One of the run's own, or noise of the shape with the first prompt."""
        with torch.inference_mode(False):
            if self.from_graph:
                return data_in_graph(self.model, self.latents, self.positive, self.negative, dropout=0.0).data.first(1)
            empty = self._empty
            x0 = torch.randn(empty.x0.shape, generator=torch.Generator().manual_seed(0)).to(self.model.load_device)
            texts = Texts(self.model, self.clip, self.negative_prompt)
            edited = self._source.like(self.model, x0) if isinstance(self._source, EditFolder) else {}
            sample = Sample(x0, self._lines[0], streams=empty.streams, **edited)
            return texts.parts([sample])[0].first(1)


def _what(drawn: PromptSource | PromptsAlone) -> str:
    size = f"{drawn.width} x {drawn.height}"
    return f"clips of {drawn.frames} frames of {size}" if drawn.frames > 1 else f"pictures of {size}"
