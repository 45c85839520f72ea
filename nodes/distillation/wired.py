"""What is wired to a training node, and the run that comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...trainers.data.batches import Buckets, Data
from ...trainers.objective.method import Method, MethodOptions, student_prediction
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.adapters import LoRAOptions
from ...trainers.training.distillation import Distillation, as_begun, require_goes_on
from ...trainers.training.optimisation.options import OF_NEW_RUNS, TrainOptions
from .. import host
from ..host import folders, graph
from . import running, starting, teacher
from .data import preview_prompts
from .data.data_in_graph import data_in_graph
from .data.data_sources import DataInGraph, DataSource
from .learning import starting_lora, students
from .learning.starting_lora import StartingLoRA
from .telling import ENCODING, HASHING, MESSAGES

_OPTIONS = {field.name for field in dataclasses.fields(TrainOptions)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wired:
    """The inputs of a training node but its VAE.

    latents, positive, negative: training data by hand, in place of `data`. prompt, unique_id, extra_pnginfo: what the host
    says of the graph that the node stands in.
    """

    model: Any
    run_name: str
    method: MethodOptions
    student: students.StudentOptions
    options: TrainOptions
    latents: dict[str, Tensor] | list[dict[str, Tensor]] | None = None
    positive: host.models.Conditioning | list[host.models.Conditioning] | None = None
    negative: host.models.Conditioning | None = None
    data: DataSource | None = None
    start_from: str = ""
    previews: preview_prompts.Previews | None = None
    prompt: Mapping[str, Any] | None = None
    unique_id: str | None = None
    extra_pnginfo: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, *, student: students.StudentOptions | None = None, **given: Any) -> Wired:
        """As the host gives them, those of TrainOptions among the others. ValueError, naming the input, for what none can be."""
        options = {name: given.pop(name) for name in _OPTIONS & given.keys()}
        return cls(student=student or LoRAOptions(), options=TrainOptions(**OF_NEW_RUNS, **options), **given)

    def source(self) -> DataSource:
        """ValueError for neither kind of data, half of one, or both."""
        by_hand = {"latents": self.latents, "positive": self.positive, "negative": self.negative}
        connected = [name for name, given in by_hand.items() if given is not None]
        if self.data is not None and connected:
            raise ValueError(
                f"data is connected beside {' and '.join(connected)}; connect data alone (its node has the negative prompt), "
                "or latents and positive."
            )
        if self.data is None and not {"latents", "positive"} <= {*connected}:
            have = [name for name in connected if name != "negative"]
            raise ValueError(
                f"of the training data {' and '.join(have) or 'nothing'} is connected; connect latents and positive, or data."
            )
        dropout = self.options.caption_dropout
        return self.data or data_in_graph(self.model, self.latents, self.positive, self.negative, dropout=dropout)


@contextmanager
def prepared(wired: Wired, *, vae: Any, elsewhere: bool = False) -> Iterator[Distillation]:
    """The run of these inputs, its folder locked and its data in it. Tensors made inside may be trained on, unlike in nodes.

    vae: shows previews, None where none is connected. elsewhere: another process trains it, perhaps another Python's.
    """
    with torch.inference_mode(False), torch.enable_grad():
        run = folders.run_named(wired.run_name)
        preview_prompts.require_shown(wired.previews, wired.model, vae=vae is not None)
        source = wired.source()
        method = _possible(wired, run, source, elsewhere=elsewhere)
        with (
            run.locked(),
            run.gone_if_refused(keep_data=not isinstance(source, DataInGraph)),
            host.signals.heeding(lambda: run.cancel_asked),
        ):
            distillation = _with_data(wired, run, source, method)
            distillation, start = starting.started(distillation, wired.start_from, model=wired.model)
            if not distillation.finished():
                source.keep(run)
                preview_prompts.keep(
                    run, wired.previews, wired.model, vae=vae, data=distillation.data, told=source.told()
                )
                _keep_workflow(run, wired.extra_pnginfo)
                if start:
                    start.save(distillation)
            yield distillation


def _possible(wired: Wired, run: RunFolder, source: DataSource, *, elsewhere: bool) -> Method:
    """The method on the MODEL's noise levels. ValueError, before hours go into data, for what no run could do or this one not."""
    model, options = wired.model, wired.options
    method = running.method_on(
        model, running.method_as_begun(wired.method, run), empty_prompt=source.unconditional is not None
    )
    _require_pictures(method, source)
    host.precision.require(model, options.precision)
    students.require_scale_input(model, wired.student, method.scale_input)
    if isinstance(wired.student, students.FullWeights):
        host.training.require_copyable(model)
    require_goes_on(run, method=method, options=options, student=students.description(wired.student))
    if not run.begun:
        options.require_suit(method.stages(), libraries=not elsewhere)
        starting.require_there(wired.start_from)
    return method


def _with_data(wired: Wired, run: RunFolder, source: DataSource, method: Method) -> Distillation:
    """With the teacher's weights hashed and the training data made, each a phase of its own."""
    model, student = wired.model, wired.student
    predicts = host.models.prediction_type(host.models.model_sampling_of(model))
    with MESSAGES.phase(HASHING):
        hashes = teacher.hashed(model, begun_with=teacher.sha256_said(run))
    if isinstance(student, StartingLoRA) and not run.begun:
        starting_lora.require_suits(
            student,
            model=model,
            teacher_sha256=hashes.sha256,
            prediction=student_prediction(method, prediction_type=predicts),
        )
    with MESSAGES.phase(ENCODING):
        data = source.build(model, run, teacher_sha256=hashes.sha256)
        _say_alike(data, as_begun(wired.options, run))
    return Distillation(
        run=run,
        method=method,
        data=data,
        options=as_begun(wired.options, run),
        teacher_sha256=hashes.sha256,
        prediction_type=predicts,
        student=students.description(student),
        origin=graph.upstream(wired.prompt or {}, str(wired.unique_id), running.ORIGIN),
        teacher_is=teacher.described(model, data.first(1), parts=hashes.parts),
        about=host.naming.said_of_model(model, lora=not isinstance(student, students.FullWeights)),
    )


def _say_alike(data: Data, options: TrainOptions) -> None:
    """Where batches repeat a few samples, which no loss shows: of pictures in many aspect ratios, say."""
    few = options.batch_size / 2
    if isinstance(data, Buckets) and (found := data.distinct(options.batch_size, mixed=options.mixed_prompts)) < few:
        of_what = "by size" if options.mixed_prompts else "by size and by length of prompt"
        host.signals.say(
            f"the training data are of {len(data.buckets)} shapes, and a batch is of one {of_what}: of batch_size "
            f"{options.batch_size} only {found:.1f} samples are different ones on average, each with noises of its own. More "
            "data make that more; a smaller batch_size costs less.",
            warning=True,
        )


def _keep_workflow(run: RunFolder, extra_pnginfo: Mapping[str, Any] | None) -> None:
    """The editor sends it beside the prompt; other programs need not."""
    if extra_pnginfo and extra_pnginfo.get("workflow"):
        run.keep_workflow(extra_pnginfo["workflow"])


def _require_pictures(method: Method, source: DataSource) -> None:
    if method.needs_pictures and source.lacking:
        other = "latents of pictures, " if isinstance(source, DataInGraph) else ""
        raise ValueError(
            f"{source.lacking}, but {method.name.replace('_', ' ')} learns from pictures; connect {other}Training Prompts "
            "(Teacher's Pictures) or Training Images (Folder), or take Distribution Matching with consistency_levels and "
            "adversarial_weight at 0."
        )
