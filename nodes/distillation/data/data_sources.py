"""What training data are made from, as Distill Model gets it: a description, carried out when a run has no data yet."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ....samplers.schedules import trailing_sigmas
from ....trainers.data.batches import Buckets, Data, TensorData
from ....trainers.data.cache import Shard, cached_data, first_made, forget, made_so_far, write_data
from ....trainers.data.conditions import Condition
from ....trainers.data.joining import in_buckets
from ....trainers.data.streams import stream
from ....trainers.objective.choices import require_at_least_one
from ....trainers.storage.files import write_atomically
from ....trainers.storage.identity import other_answers, other_hashes
from ....trainers.storage.reading import identity_in, read_json, without_nan
from ....trainers.storage.run_folder import RunFolder
from ... import host
from ...host.sampling.models import Conditioning

SHARD_SAMPLES = 64
"""In one file of the cache: what a kill costs at most, beside the file's own overhead."""


class DataSource(Protocol):
    """A FEWSTEP_DATA, or what is connected in the graph. The caller of its methods holds the run's lock."""

    @property
    def unconditional(self) -> Condition | None:
        """The empty prompt's inputs as far as they are known before the data are made; None where there will be none."""

    @property
    def has_pictures(self) -> bool:
        """Whether there is anything to see in the data's x0."""

    def told(self) -> dict[str, float]:
        """What the model is told with every prompt; see Texts."""

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        """The run's data: read from its folder, or made and kept there."""

    def keep(self, run: RunFolder) -> None:
        """Called before training: from here on the data are in the run's folder, for another process."""


@dataclasses.dataclass(frozen=True)
class DataInGraph:
    """Data that are made already."""

    data: TensorData | Buckets
    has_pictures = True

    @property
    def unconditional(self) -> Condition | None:
        return self.data.unconditional

    def told(self) -> dict[str, float]:
        return {}  # what prompts of the graph carry is not known apart from them

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        return self.data

    def keep(self, run: RunFolder) -> None:
        write_data(run.data_folder, self.data, replace=not run.begun)


class MadeOnce:
    """Sources whose building keeps the data, which always hold an empty prompt."""

    has_pictures = True

    def encoders(self) -> dict[str, Any]:
        """What encodes, by the name of its input; None where that is not connected."""
        raise NotImplementedError

    @property
    def unconditional(self) -> Condition | None:
        return {}

    def keep(self, run: RunFolder) -> None:
        """Nothing is left to do."""

    def kept(
        self,
        model: Any,
        run: RunFolder,
        *,
        source: Mapping[str, Any],
        plan: Callable[[], Sequence[Shard]],
        newer: Collection[str] = (),
    ) -> Data:
        """The run's data, see cached_data. source: all that decides them but what encodes, which is added.

        ValueError too, saying what differs, where the run was begun with another teacher.
        """
        if run.begun:
            _require_teacher(model, run, teacher_sha256=source["teacher_sha256"])
        encoders = self.encoders()
        connected = {name: holder for name, holder in encoders.items() if holder is not None}
        known = {name: host.encoding.weights_sha256(holder) for name, holder in connected.items()}
        dtypes = {name: host.encoding.dtype_of(holder) for name, holder in connected.items()}
        return cached_data(
            run.data_folder,
            source={**source, **dict.fromkeys(encoders), **known},
            plan=plan,
            replace=not run.begun,
            device=model.load_device,
            newer=newer,
            made_with={**dict.fromkeys(encoders, ""), **dtypes},
            say=functools.partial(host.signals.say, warning=True),
        )


def _require_teacher(model: Any, run: RunFolder, *, teacher_sha256: str) -> None:
    """Before its data are asked, of which that would say no more than a hash."""
    description = run.description()
    there = identity_in(description)["teacher_sha256"]
    if there == teacher_sha256:
        return
    hashes = f"its weights have the hash {there[:12]}..., those here {teacher_sha256[:12]}..."
    known = description.get("teacher_is")
    differing = other_hashes(known, host.identity.teacher_parts(model)) if known else []
    raise ValueError(
        f"the run {run.name!r} was begun with another teacher. Use the same checkpoint, LoRA files and model nodes, or choose "
        f"another run name. What differs: {'; '.join(differing or [hashes])}."
    )


class Sample(NamedTuple):
    """x0, noise: (1, ...) each. repeats: as how many samples it is drawn."""

    x0: Tensor
    text: str
    noise: Tensor | None = None
    repeats: int = 1


class Texts:
    """Samples with their texts as training data, in one shape each."""

    def __init__(
        self, model: Any, clip: Any, negative: str, *, literal: bool = False, told: Mapping[str, float] | None = None
    ) -> None:
        """literal: the samples' texts are no prompts, in which parentheses are emphasis; the negative one always is.

        told: what the model is told with every text, by the name of the host's option; see host.inputs.told.
        """
        self._model, self._literal, self._told = model, literal, told or {}
        self._encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
        self.negative = self._with_told(self._encoder.conditioning(negative))
        # as many as a shard holds; all texts of a folder would fill the memory
        self.conditioning = functools.lru_cache(maxsize=SHARD_SAMPLES)(self._conditioning)

    def _conditioning(self, text: str) -> Conditioning:
        return self._with_told(self._encoder.conditioning(text, literal=self._literal))

    def _with_told(self, conditioning: Conditioning) -> Conditioning:
        return host.inputs.told(self._model, conditioning, self._told)

    def parts(self, samples: Iterable[Sample]) -> list[TensorData]:
        """Samples of one shape together, in order. Pieces of one clip, say, share their prompt's inputs, which may be many."""
        made: dict[tuple[str, torch.Size], tuple[Condition, Condition]] = {}

        def part(x0: Tensor, text: str, noise: Tensor | None, repeats: int) -> TensorData:
            if (text, x0.shape) not in made:
                made[text, x0.shape] = self._inputs(x0, text)
            condition, empty = made[text, x0.shape]
            repeated = None if repeats == 1 else torch.tensor([repeats])
            return TensorData(x0=x0, condition=condition, unconditional=empty, noise=noise, repeats=repeated)

        found = in_buckets(part(*sample) for sample in samples)
        return [found] if isinstance(found, TensorData) else list(found.buckets)

    def _inputs(self, x0: Tensor, text: str) -> tuple[Condition, Condition]:
        """With the prompt and with the negative one, for latents of x0's shape."""
        positive = self.conditioning(text)
        condition, empty = (
            host.inputs.condition_for_training(self._model, prompt, latents=x0, name=name)
            for prompt, name in ((positive, "positive"), (self.negative, "negative"))
        )
        condition, empty = host.inputs.in_one_length(self._model, positive, condition, empty, latents=x0)
        condition, empty = ({name: value.cpu() for name, value in inputs.items()} for inputs in (condition, empty))
        return condition, empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource(MadeOnce):
    """Prompts whose pictures the teacher draws, on the trailing schedule. ValueError, naming the input, for values of no use.

    The noise of picture i is drawn from (seed, i) alone. pairs: it is kept beside the picture. clip: the host's, None where
    the data are made already. guidance: what a guidance-distilled model is told, 0 for its own.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 512
    height: int = 512
    pictures_per_prompt: int = 16
    steps: int = 32
    cfg: float = 7.5
    sampler: str = "euler"
    seed: int = 0
    batch_size: int = 8
    pairs: bool = False
    clip: Any = None
    guidance: float = 0.0

    def __post_init__(self) -> None:
        require_prompts(self.prompts, width=self.width, height=self.height)
        require_at_least_one(self, "pictures_per_prompt", "steps", "batch_size")
        if not 1.0 <= self.cfg <= 100.0:
            raise ValueError(f"cfg is {self.cfg}; allowed is 1 (no guidance) to 100.")
        if self.sampler not in host.data.SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; allowed are {', '.join(host.data.SAMPLERS)}.")

    def told(self) -> dict[str, float]:
        return {"guidance": self.guidance}

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        sigmas = trailing_sigmas(self.steps, table=host.models.noise_levels(host.models.model_sampling_of(model)))
        shape = host.data.latent_shape(model, width=self.width, height=self.height)
        if not run.begun and made_so_far(run.data_folder, of=self.described() | of_teacher(model, teacher_sha256)):
            _forget_anothers(model, run.data_folder)  # of another source they give way unasked
        return self.kept(
            model,
            run,
            source=self.described()
            | {"sigmas": sigmas.tolist()}
            | of_teacher(model, teacher_sha256)
            | _patches_of(model, run)
            | ({"batch_size": None} if run.begun else {}),  # its pictures are there, drawn as they were
            plan=lambda: self._plan(model, sigmas, shape, folder=run.data_folder),
        )

    def encoders(self) -> dict[str, Any]:
        return {"clip": self.clip}

    def described(self) -> dict[str, Any]:
        """What decides the data and can be told without looking at any file or weight, as JSON values."""
        names = {field.name for field in dataclasses.fields(self)} - {"clip", "guidance"}
        options = {name: getattr(self, name) for name in sorted(names)} | of_guidance(self.guidance)
        return {"kind": "prompts", **options}

    def _plan(self, model: Any, sigmas: Tensor, shape: tuple[int, ...], *, folder: Path) -> list[Shard]:
        """A shard is what the teacher draws at once, so that a resumed cache is drawn in the same batches."""

        def first(batch: range) -> Sequence[TensorData]:
            parts = make(batch)
            _keep_answers(model, parts, folder)
            return parts

        require_connected("Training Prompts (Teacher's Pictures)", clip=self.clip)
        count = len(self.prompts) * self.pictures_per_prompt
        texts, progress = Texts(model, self.clip, self.negative, told=self.told()), Progress(count)
        starts = range(0, count, self.batch_size)
        batches = [range(start, min(start + self.batch_size, count)) for start in starts]
        make = functools.partial(self._shard, model, texts, progress, sigmas, shape)
        later = [Shard(functools.partial(make, batch)) for batch in batches[1:]]
        return [Shard(functools.partial(first, batches[0])), *later]

    def _shard(
        self, model: Any, texts: Texts, progress: Progress, sigmas: Tensor, shape: tuple[int, ...], batch: range
    ) -> list[TensorData]:
        kinds: dict[Any, list[int]] = {}
        for i in batch:
            progress.next()
            kinds.setdefault(host.data.kind_of(texts.conditioning(self._prompt(i))), []).append(i)
        groups = [group for alike in kinds.values() for group in self._together(model, texts, shape, alike)]
        return [part for group in groups for part in self._drawn(model, texts, sigmas, shape, group)]

    def _together(
        self, model: Any, texts: Texts, shape: tuple[int, ...], pictures: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        """Pictures of prompts of one kind, in one batch where the host can sample them so, else each alone."""
        prompts = [texts.conditioning(self._prompt(i)) for i in pictures]
        x = torch.zeros(1, *shape, device=model.load_device)
        alike = host.inputs.encoded_together(model, prompts, host.data.batched(prompts), latents=x)
        return [pictures] if alike else [[i] for i in pictures]

    def _drawn(
        self, model: Any, texts: Texts, sigmas: Tensor, shape: tuple[int, ...], pictures: Sequence[int]
    ) -> list[TensorData]:
        """pictures: their numbers, of prompts that can be sampled in one batch."""
        noise = torch.stack([self._noise(i, shape) for i in pictures])
        positive = host.data.batched([texts.conditioning(self._prompt(i)) for i in pictures])
        latents = host.data.draw(
            model, self.sampler, sigmas, noise=noise, positive=positive, negative=texts.negative, cfg=self.cfg
        )
        x0 = host.inputs.latents_for_training(model, {"samples": latents}).cpu()
        return texts.parts(
            Sample(x0[j : j + 1], self._prompt(i), noise[j : j + 1] if self.pairs else None)
            for j, i in enumerate(pictures)
        )

    def _prompt(self, picture: int) -> str:
        return self.prompts[picture // self.pictures_per_prompt]

    def _noise(self, picture: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(stream(self.seed, picture)))


class Progress:
    """The host's bar over samples, and its cancel."""

    def __init__(self, total: int) -> None:
        self._bar, self._total, self._done = host.signals.progress_bar(total), total, 0

    def next(self) -> None:
        host.signals.progressed(self._done, self._total)
        self._done += 1
        self._bar.update_absolute(self._done, self._total)


def require_prompts(prompts: Sequence[str], **sizes: int) -> None:
    """ValueError, naming the input, where there are none, or for a size that no picture has."""
    if not prompts:
        raise ValueError("prompts is empty; give one prompt on each line.")
    for name, size in sizes.items():
        if size < 8 or size % 8:
            raise ValueError(f"{name} is {size}; allowed are multiples of 8: 512, for example.")


def of_teacher(model: Any, teacher_sha256: str) -> dict[str, Any]:
    """Its part in the data. The deviation of its noise is named where it is not 1, of which older folders know nothing."""
    scale = host.models.noise_scale(host.models.model_sampling_of(model))
    return {"teacher_sha256": teacher_sha256} | ({} if scale == 1.0 else {"noise_scale": scale})


def of_guidance(guidance: float) -> dict[str, float]:
    """Its part in a source: named where the model is told one, of which older folders know nothing."""
    return {"guidance": guidance} if guidance else {}


def _patches_of(model: Any, run: RunFolder) -> dict[str, Any]:
    """What changes the pictures that the MODEL draws and is in no weight; of a run that has begun its own identity tells."""
    return {"changes": None if run.begun else {kind: len(made) for kind, made in host.identity.changes(model).items()}}


_ANSWERS = "teacher.json"


def _keep_answers(model: Any, parts: Sequence[TensorData], folder: Path) -> None:
    """What the teacher says of the first picture that it drew: much changes what a MODEL draws and is in no weight."""
    asked = in_buckets(parts, model.load_device).first(1)
    host.training.loaded(model)
    write_atomically(folder / _ANSWERS, json.dumps(without_nan(host.identity.answers_of(model, asked))).encode())


def _forget_anothers(model: Any, folder: Path) -> None:
    """Pictures of a start that came to nothing, where this MODEL would draw others: it is asked the same once more."""
    asked = first_made(folder, device=model.load_device) if (folder / _ANSWERS).exists() else None
    if asked is None:
        return
    host.training.loaded(model)
    differing = list(other_answers(read_json(folder / _ANSWERS), without_nan(host.identity.answers_of(model, asked))))
    if differing:
        host.signals.say(
            f"the pictures in {folder} were drawn by another teacher ({differing[0]}); they are drawn anew."
        )
        forget(folder)


def require_connected(node: str, **inputs: Any) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(
            f"the run's folder does not hold all of its training data, so they must be made: connect "
            f"{' and '.join(missing)} to {node}."
        )
