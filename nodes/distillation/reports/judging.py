"""What a report is asked for: teacher, students and prompts, and the pictures that they draw from the same noise."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....samplers.recipe import Recipe
from ....samplers.schedules import trailing_sigmas
from ....trainers.measures import report as measures
from ....trainers.runs.watching import all_runs, students_of
from ....trainers.storage import places
from ....trainers.storage.files import read_metadata
from ....trainers.storage.run_folder import RunFolder
from ... import host
from ...host import folders
from ...host.sampling.models import Conditioning
from ..data import training_data
from ..learning import students
from ..learning.families import family_of

_FEW = 4
"""Of the prompts that come with the pack."""
TEACHER, CONNECTED = "teacher", "connected student"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """sampler, sigmas: of the host. settings: of its run, as JSON values."""

    name: str
    model: Any
    sampler: Any
    sigmas: Tensor
    cfg: float = 1.0
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The node's inputs. ValueError, naming the input, for what cannot be."""

    teacher: Any
    vae: Any
    runs: tuple[str, ...]
    seeds: int
    seed: int
    teacher_steps: int
    teacher_cfg: float
    clip: Any = None
    prompts: str = ""
    negative_prompt: str = ""
    side: int = 0
    teacher_sampler: str = host.data.SAMPLERS[0]
    latent: Any = None
    positive: Any = None
    negative: Any = None
    student: Any = None
    sampler: Any = None
    sigmas: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self._require_students()
        self._require_prompts()

    def _require_students(self) -> None:
        for name in self.runs:
            _file_of(name)
        trio = {"student": self.student, "sampler": self.sampler, "sigmas": self.sigmas}
        missing = [name for name, value in trio.items() if value is None]
        if 0 < len(missing) < len(trio):
            raise ValueError(
                f"the connected student lacks {' and '.join(missing)}; connect student, sampler and sigmas."
            )
        if missing and not self.runs:
            raise ValueError(
                "runs is empty and no student is connected; name a finished run on each line, or connect one."
            )
        _ = self.folder

    def _require_prompts(self) -> None:
        if self.clip is None and self.positive is None:
            raise ValueError(
                "neither clip nor positive is connected; connect clip, which encodes prompts, or positive."
            )
        if self.positive is not None and self.prompts.strip():
            raise ValueError("positive is connected and prompts are given too; give the prompts in one way.")
        if not host.data.shows_pictures(self.teacher):
            raise ValueError("teacher draws no pictures, so there is nothing that a report could show.")
        if self.latent is None and not host.data.makes_pictures(self.teacher):
            raise ValueError("teacher draws video with sound; connect latent, an empty one of the clips to be judged.")
        if self.side and self.latent is None:
            host.data.require_sides(self.teacher, side=self.side)
        _ = self._empty  # which is refused where nothing says of what size, before anything is drawn
        _ = self._negative

    @property
    def folder(self) -> Path:
        """Where the report goes now: of a run that was renamed or deleted meanwhile, beside those that have names."""
        if not self.name.strip() and self._home.path.is_dir():
            return self._home.place("report")
        named = places.require_name(self.name.strip() or self._home.name, what="name of the report")
        return places.place(folders.runs_root().parent, "reports", named)

    @functools.cached_property
    def _home(self) -> RunFolder:
        run = _run_of(self.runs[0]) if self.runs else None
        if run is None:
            raise ValueError(
                "name is empty, and runs begins with no run whose folder the report could go to; give one of the two."
            )
        return run

    @property
    def texts(self) -> list[str] | None:
        """None where the prompts came encoded."""
        if self.positive is not None:
            return None
        return list(training_data.lines(self.prompts)) or _few(training_data.usual_prompts(self.clip))

    @functools.cached_property
    def _conditionings(self) -> list[Conditioning]:
        if self.positive is None:
            return [self._encoder.conditioning(text) for text in self.texts or ()]
        given = self.positive if isinstance(self.positive[0][0], list) else [self.positive]
        return [[entry] for each in given for entry in host.inputs.prompts_of(each)]

    @functools.cached_property
    def _encoder(self) -> Any:
        return host.encoding.TextEncoder(self.clip, folders.encodings())

    @property
    def cfg(self) -> float:
        return self.teacher_cfg or family_of(self.teacher).guidance

    @functools.cached_property
    def _negative(self) -> Conditioning:
        if self.negative is not None:
            return list(self.negative)
        if self.positive is None:
            return list(self._encoder.conditioning(self.negative_prompt))
        if self.cfg != 1.0:
            raise ValueError(
                f"teacher_cfg is {self.cfg:g}, but negative is not connected; connect it, or set teacher_cfg to 1."
            )
        return list(self._conditionings[0])

    @functools.cached_property
    def _empty(self) -> Any:
        """Samples of a LATENT whose size is that of what is drawn."""
        if self.latent is not None:
            return self.latent["samples"]
        side = self.side or family_of(self.teacher).side
        return torch.zeros(1, *host.data.latent_shape(self.teacher, width=side, height=side))

    @property
    def labels(self) -> list[str]:
        return self.texts or [f"prompt {number + 1}" for number in range(len(self._conditionings))]

    def models(self) -> list[Model]:
        """The teacher first."""
        levels = host.models.noise_levels(host.models.model_sampling_of(self.teacher))
        found = [
            Model(
                name=TEACHER,
                model=self.teacher,
                sampler=host.models.hosts_sampler(self.teacher_sampler),
                sigmas=trailing_sigmas(self.teacher_steps, table=levels),
                cfg=self.cfg,
            )
        ]
        for name in self.runs:
            model, sampler, sigmas = students.LoadStudent().load(self.teacher, _listed(name))
            found.append(Model(name=name, model=model, sampler=sampler, sigmas=sigmas, settings=_settings_of(name)))
        if self.sigmas is not None:
            found.append(Model(name=CONNECTED, model=self.student, sampler=self.sampler, sigmas=self.sigmas))
        return found

    def drawn(self) -> list[measures.Drawn]:
        models = self.models()
        bar = host.signals.progress_bar(len(models) * len(self._conditionings) * self.seeds)
        return [self._drawn(one, bar) for one in models]

    def _drawn(self, one: Model, bar: Any) -> measures.Drawn:
        """All latents before the VAE comes, for which the host may put the model away."""
        counting, rows = host.data.counting(one.model)
        latents, seconds = [], []
        for conditioning in self._conditionings:
            for number in range(self.seeds):
                host.signals.check_cancelled()
                began = time.perf_counter()
                latents.append(self._picture(one, counting, conditioning, self.seed + number))
                seconds.append(time.perf_counter() - began)
                bar.update(1)
        pictures = torch.stack([self._decoded(each) for each in latents])
        return measures.Drawn(
            name=one.name,
            steps=len(one.sigmas) - 1,
            forwards=sum(rows) / len(latents),
            seconds=statistics.median(seconds),
            pictures=pictures.unflatten(0, (-1, self.seeds)),
            settings=one.settings,
        )

    def _picture(self, one: Model, counting: Any, conditioning: Conditioning, seed: int) -> Any:
        """Latents, nested where there is sound."""
        seed %= 2**64  # as KSampler has it
        noise = host.data.noise_like(self.teacher, self._empty, seed=seed)
        return host.models.sample(
            counting,
            one.sampler,
            one.sigmas,
            noise=noise,
            positive=conditioning,
            negative=self._negative,
            cfg=one.cfg,
            seed=seed,
        )

    def _decoded(self, latents: Any) -> Tensor:
        """(H, W, 3) in [0, 1], of video (H, 3 W, 3): its first frame, that in the middle and the last."""
        host.signals.check_cancelled()
        frames = (
            self.vae.decode(host.inputs.streams_of(latents)[0])[..., :3].float().cpu().clamp(0.0, 1.0).flatten(0, -4)
        )
        shown = [0] if len(frames) == 1 else [0, len(frames) // 2, len(frames) - 1]
        return torch.cat([frames[i] for i in shown], dim=1)


# --- students --------------------------------------------------------------------------------------------------------


def _few(lines: Sequence[str]) -> list[str]:
    return list(lines[:: len(lines) // _FEW][:_FEW])


def _listed(name: str) -> str:
    """As Load Distilled Student lists it."""
    return name if name in folders.student_files() else f"{name} (run)"


def _file_of(name: str) -> Path:
    known = folders.student_files()
    if _listed(name) not in known:
        shown = ", ".join(sorted(known)) or "none yet"
        raise ValueError(f"runs names {name!r}, which is no finished run or student; allowed are {shown}.")
    return known[_listed(name)]


def _run_of(name: str) -> RunFolder | None:
    """None for a student that no run here made."""
    file = _file_of(name)
    return next((run for run in all_runs(folders.runs_root()) if file in students_of(run)), None)


def _settings_of(name: str) -> dict[str, Any]:
    """What its run was trained with, and its recipe."""
    run, file = _run_of(name), _file_of(name)
    metadata = read_metadata(file)
    recipe = Recipe.from_metadata(metadata, source=name)
    said = {"recipe." + key: value for key, value in dataclasses.asdict(recipe).items() if key != "sigmas"}
    found = run.description()["run"] if run else {}
    return said | found | {key: value for key, value in metadata.items() if key == "fewstep.iterations"}
