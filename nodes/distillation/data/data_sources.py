"""What training data are made from, as Distill Model gets it: a description, carried out when a run has no data yet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ....trainers.data.batches import Buckets, Data, TensorData
from ....trainers.data.cache import Shard, cached_data, write_data
from ....trainers.data.conditions import Condition
from ....trainers.data.joining import in_buckets
from ....trainers.storage.identity import other_hashes
from ....trainers.storage.reading import identity_in
from ....trainers.storage.run_folder import RunFolder
from ....trainers.storage.stored import Inputs
from ... import host
from ...host.sampling.inputs import Shapes
from ...host.sampling.models import Conditioning
from ...host.teachers.data import Empty
from ..learning.families import family_of

SHARD_SAMPLES = 64
"""In one file of the cache: what a kill costs at most, beside the file's own overhead."""


class DataSource(Protocol):
    """A FEWSTEP_DATA, or what is connected in the graph. The caller of its methods holds the run's lock."""

    @property
    def unconditional(self) -> Inputs | None:
        """The empty prompt's inputs as far as they are known before the data are made; None where there will be none."""

    @property
    def lacking(self) -> str:
        """In words, why there is nothing to see in the data's x0; empty where there is."""

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
    lacking: str = ""

    @property
    def unconditional(self) -> Inputs | None:
        return self.data.unconditional

    def told(self) -> dict[str, float]:
        return {}  # what prompts of the graph carry is not known apart from them

    def build(self, model: Any, run: RunFolder, *, teacher_sha256: str) -> Data:
        return self.data

    def keep(self, run: RunFolder) -> None:
        write_data(run.data_folder, self.data, replace=not run.begun)


class MadeOnce:
    """Sources whose building keeps the data, which always hold an empty prompt."""

    @property
    def lacking(self) -> str:
        return ""

    def encoders(self, model: Any) -> dict[str, Any]:
        """What encodes for a model, by the name of its input; None where that is not connected."""
        raise NotImplementedError

    @property
    def unconditional(self) -> Inputs | None:
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
        encoders = self.encoders(model)
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
            heed=host.signals.check_cancelled,
        )


def _require_teacher(model: Any, run: RunFolder, *, teacher_sha256: str) -> None:
    """Before its data are asked, of which that would say no more than a hash."""
    description = run.description()
    there = identity_in(description)["teacher_sha256"]
    if there == teacher_sha256:
        return
    hashes = f"its weights have the hash {there[:12]}..., those here {teacher_sha256[:12]}..."
    known = description.get("teacher_is")
    here = host.identity.teacher_parts(model) | {"held_in": host.identity.held_in(model)}
    differing = other_hashes(known, here) if known else []
    raise ValueError(
        f"the run {run.name!r} was begun with another teacher. Use the same checkpoint, LoRA files and model nodes, or choose "
        f"another run name. What differs: {'; '.join(differing or [hashes])}."
    )


class Sample(NamedTuple):
    """x0, noise: (1, ...) each. repeats: as how many samples it is drawn. told: with its prompts, by the host's names.

    streams: what x0 is packed from, see host.inputs.stream_shapes. pictures: (1, H, W, 3) each, at which the text encoder looks.
    prompts: see Texts.prompts, where they were encoded before.
    """

    x0: Tensor
    text: str
    noise: Tensor | None = None
    repeats: int = 1
    told: Mapping[str, Any] = {}
    streams: Shapes | None = None
    pictures: Sequence[Tensor] = ()
    prompts: tuple[Conditioning, Conditioning] | None = None


class Texts:
    """Samples with their texts as training data, in one shape each."""

    def __init__(
        self,
        model: Any,
        clip: Any,
        negative: str,
        *,
        literal: bool = False,
        told: Mapping[str, float] | None = None,
    ) -> None:
        """literal: the samples' texts are no prompts, in which parentheses are emphasis; the negative one always is.

        told: what the model is told with every text, by the name of the host's option; see host.inputs.told.
        """
        self._model, self._literal, self._told = model, literal, told or {}
        self._encoder = host.encoding.TextEncoder(clip, host.folders.encodings())
        self._clip, self._looking = clip, host.editing.text_node(model)
        self._negative = negative
        self.negative = self._with_told(self._encoder.conditioning(negative))
        # as many as a shard holds; all texts of a folder would fill the memory
        self.conditioning = functools.lru_cache(maxsize=SHARD_SAMPLES)(self._conditioning)

    def _conditioning(self, text: str) -> Conditioning:
        return self._with_told(self._encoder.conditioning(text, literal=self._literal))

    def _with_told(self, conditioning: Conditioning) -> Conditioning:
        return host.inputs.told(self._model, conditioning, self._told)

    def parts(self, samples: Iterable[Sample]) -> list[TensorData]:
        """Samples of one shape together, in order. Pieces of one clip, say, share their prompt's inputs, which may be many."""
        made: dict[tuple[str, str], tuple[Condition, Condition]] = {}

        def part(sample: Sample) -> TensorData:
            alike = sample.text, str(sample.streams or sample.x0.shape)
            if sample.told or alike not in made:
                made[alike] = self._inputs(sample)
            condition, empty = made[alike]
            repeated = None if sample.repeats == 1 else torch.tensor([sample.repeats])
            return TensorData(
                x0=sample.x0, condition=condition, unconditional=empty, noise=sample.noise, repeats=repeated
            )

        found = in_buckets(map(part, samples))
        return [found] if isinstance(found, TensorData) else list(found.buckets)

    def prompts(self, sample: Sample) -> tuple[Conditioning, Conditioning]:
        """Its own and the negative one, with what is told beside them, as the host samples with them."""
        if sample.prompts is not None:
            return sample.prompts
        own, negative = (
            [[embedding, {**options, **sample.told}] for embedding, options in prompt]
            for prompt in self._prompts(sample)
        )
        return own, negative

    def _prompts(self, sample: Sample) -> tuple[Conditioning, Conditioning]:
        """Without that; nothing is kept of those that go with pictures, since each is asked for once."""
        if self._looking is None or not sample.pictures:
            return self.conditioning(sample.text), self.negative
        look = functools.partial(self._looking.conditioning, self._clip, pictures=sample.pictures)
        if not self._looking.negative:
            return self._with_told(look(sample.text)), self.negative
        return self._with_told(look(sample.text)), self._with_told(look(self._negative or self._looking.empty))

    def _inputs(self, sample: Sample) -> tuple[Condition, Condition]:
        """With its prompt and with the negative one."""
        x0, streams = sample.x0, sample.streams
        positive, negative = self.prompts(sample)
        condition, empty = (
            host.inputs.condition_for_training(self._model, prompt, latents=x0, name=name, shapes=streams)
            for prompt, name in ((positive, "positive"), (negative, "negative"))
        )
        condition, empty = host.inputs.in_one_length(self._model, positive, condition, empty, latents=x0)
        condition, empty = ({name: value.cpu() for name, value in inputs.items()} for inputs in (condition, empty))
        return condition, empty


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


def empty_sample(model: Any, *, width: int, height: int, frames: int) -> Empty:
    """Of what is drawn from prompts. Says where a model of video is to draw stills: its student would know nothing else.

    ValueError for models that want a picture, too.
    """
    host.data.require_no_picture(model)
    if frames == 1 and family_of(model).video:
        host.signals.say("this is a model of video, and frames is 1: still pictures are what is learnt.", warning=True)
    return host.data.empty(model, width=width, height=height, frames=frames)


def of_frames(frames: int) -> dict[str, int]:
    """Its part in a source: named of clips, of which older folders know nothing."""
    return {"frames": frames} if frames > 1 else {}


def require_connected(node: str, **inputs: Any) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(
            f"the run's folder does not hold all of its training data, so they must be made: connect "
            f"{' and '.join(missing)} to {node}."
        )
