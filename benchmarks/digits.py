"""Students of the digits' teacher by distribution matching, beside progressive and consistency distillation and its own solvers.

How near a student comes to the teacher that it was made from, as it draws with the guidance that is baked in: to its own
pictures, of which there is no end, and not to the 1797 digits, which teacher and classifier have both seen. Trained through
the host's MODEL as by the nodes, all weights, with the settings of the scenes' students and half of their iterations. Runs in
.fewstep/digits; resumes; writes benchmarks/results/digits.json and .md.

    python launch.py bench digits --seeds 3 --noise-seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.few_step import sample_few_step
from ..trainers.measures.digits import DIGITS, to_pictures
from ..trainers.measures.fidelity import frechet_at_infinity, jackknife, neighbourhoods, share
from ..trainers.objective.grid import Grid
from ..trainers.storage.export import read_student
from ..trainers.storage.run_folder import RunFolder
from ..trainers.training.distillation import Distillation
from ..trainers.training.optimisation.options import TrainOptions
from .scenes.curves import TEST_SEED, TUNING_SEED
from .scenes.engine.machine import RESULTS, ROOT
from .scenes.engine.parts import Figures, Parts
from .scenes.judging.judges import RandomFeatures, Whitened
from .scenes.students import say
from .scenes.tables import pages
from .scenes.tables.trainings import by_training, distance, in_order, over_trainings
from .scenes.trials import TRIALS, measure

HOME = ROOT / ".fewstep" / "digits"
LABELS = ("progressive", "consistency", "matching in 1 to 4 by landings", "decoupled matching in 1 to 4", "rCM")
SCALE, BATCH = 1.5, 64
"""The template's guidance, and batch."""
REFERENCE_STEPS, REFERENCE_SEED = 32, 10**6
"""Of the teacher's pictures that all others are compared with."""
PICTURES, REAL, NEIGHBOURS = 2048, 4096, 2048
CALLS = (8, 4, 2, 1)
SOLVERS = {"DDIM": "euler", "Heun": "heun", "DPM++ 2M": "dpmpp_2m", "UniPC": "uni_pc"}
"""By the host's names. Each is tried with and without guidance, on other noise than the rows'."""
DISTANCES, SHARES = ("frechet", "frechet_random"), ("precision", "recall")
ABOUT = (
    f"**Frechet at infinity**: squared Frechet distance to {REAL} pictures of the teacher (DDIM, {REFERENCE_STEPS} steps, "
    f"guidance {SCALE:g}), extrapolated to infinitely many, on what a classifier of digits makes of a picture before it decides. "
    "**Random features**: on fixed random convolutions, which have learnt nothing. Both are the 32 strongest directions, at unit "
    "variance on other pictures of the teacher. **Precision** and **recall** by 5 neighbours, on the former. **Spread**: how far "
    "two pictures of one digit lie apart, over the teacher's own. **Right**: share that the classifier reads as the digit that "
    "was asked for. Intervals are of 95 %: by leaving out groups of pictures for one noise seed, by Student's t over seeds."
)


class Teacher:
    """The shipped one, as a MODEL of the host."""

    def __init__(self) -> None:
        from ..commands.embedded import import_host

        import_host()
        from ..nodes import host
        from ..nodes.demo import digits, digits_model
        from ..nodes.distillation import running
        from ..nodes.distillation.data.data_in_graph import data_in_graph
        from ..nodes.distillation.learning import students

        self.host, self.running, self.students, self._digits_model = host, running, students, digits_model
        with torch.inference_mode(False):
            self.model, *_ = digits.DemoTeacher().load()
            empty = digits.DigitPrompt().encode("")[0]
            latents, labels = digits.DigitsData().load()
            self.data = data_in_graph(self.model, latents, labels, empty, dropout=0.0).data
        self.learnt = len(latents["samples"])
        self.classifier = digits.load_judge().classifier
        self.file = digits_model.TEACHER_FILE
        sampling = host.models.model_sampling_of(self.model)
        self.table, self.prediction = host.models.noise_levels(sampling), host.models.prediction_type(sampling)

    @torch.no_grad()
    def draw(self, model: Any, sampler: Any, sigmas: Tensor, *, cfg: float, count: int, seed: int) -> Tensor:
        """(count, 1, 8, 8) in [0, 1], the digits in turn."""
        latents = self.host.models.sample(
            model,
            sampler,
            sigmas,
            noise=torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed)),
            positive=self._digits_model.condition(asked(count)),
            negative=self._digits_model.prompt(""),
            cfg=cfg,
            seed=seed,
        )
        return to_pictures(latents)

    def ddim(self, steps: int, *, count: int, seed: int) -> Tensor:
        """With the guidance that is baked in."""
        sampler, sigmas = self.host.models.sampler(sample_few_step, gamma=0.0), self.levels(steps)
        return self.draw(self.model, sampler, sigmas, cfg=SCALE, count=count, seed=seed)

    def levels(self, steps: int) -> Tensor:
        return Grid.TRAILING.sigmas(steps, table=self.table)


def asked(count: int) -> Tensor:
    return torch.arange(count) % DIGITS


class Judge:
    """What pictures (N, 1, 8, 8) are to the teacher's own."""

    def __init__(self, teacher: Teacher, *, pictures: int = PICTURES, real: int = REAL) -> None:
        self._teacher, self.pictures, self._count = teacher, pictures, real
        self._raw = RandomFeatures()

    @functools.cached_property
    def _reference(self) -> tuple[list[Whitened], list[Tensor], float]:
        own = self._teacher.ddim(REFERENCE_STEPS, count=2 * self._count, seed=REFERENCE_SEED)
        found = self._features(own)
        white = [Whitened.of(features[self._count :]) for features in found]
        return white, [of(f[: self._count]) for of, f in zip(white, found, strict=True)], _spread(own[: self.pictures])

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> list[Tensor]:
        large = F.interpolate(pictures, scale_factor=2).expand(-1, 3, -1, -1)
        return [self._teacher.classifier.features(pictures), self._raw(large)]

    def distance(self, pictures: Tensor) -> float:
        """The first of the row's alone, for tuning."""
        white, real, _ = self._reference
        return frechet_at_infinity(white[0](self._features(pictures)[0]), real[0])

    def row(self, pictures: Tensor) -> Figures:
        """Every figure as [value, margin], but for shares."""
        white, real, spread = self._reference
        raw = self._features(pictures)
        drawn = [of(features) for of, features in zip(white, raw, strict=True)]
        near = neighbourhoods(drawn[0][:NEIGHBOURS], real[0][:NEIGHBOURS])
        read = self._teacher.classifier.classify(raw[0]).argmax(dim=1)
        return {
            **{
                key: jackknife(frechet_at_infinity, a, b).written()
                for key, a, b in zip(DISTANCES, drawn, real, strict=True)
            },
            "precision": near.precision,
            "recall": near.recall,
            "spread": _spread(pictures) / spread,
            "accuracy": share(float((read == asked(len(read))).sum()), len(read)).written(),
        }


def _spread(pictures: Tensor) -> float:
    """The mean distance of two pictures of one digit, of pictures (N, 1, 8, 8) of the digits in turn."""
    flat = pictures.flatten(1)
    apart = [torch.pdist(flat[digit::DIGITS]).mean() for digit in range(DIGITS)]
    return float(torch.stack(apart).mean())


class Digits:
    """See trials.Subject."""

    def __init__(self, teacher: Teacher, judge: Judge) -> None:
        self._teacher, self._judge, self.pictures = teacher, judge, judge.pictures
        self.about: Figures = {"learnt": teacher.learnt, "batch": BATCH}
        self.trials = {
            label: dataclasses.replace(
                TRIALS[label],
                options={
                    **TRIALS[label].options,
                    "guidance_scale": SCALE,
                    "iterations": TRIALS[label].options["iterations"] // 2,
                },
                passes=f"half of the iterations of {TRIALS[label].passes}",
            )
            for label in LABELS
        }

    def trained(self, label: str, seed: int) -> RunFolder:
        trial, teacher = self.trials[label], self._teacher
        run = RunFolder(HOME, f"{label} {seed}")
        run.path.mkdir(parents=True, exist_ok=True)
        with run.locked(), torch.inference_mode(False):
            distillation = Distillation(
                run=run,
                method=teacher.running.method_on(teacher.model, trial.chosen, empty_prompt=True),
                data=teacher.data,
                options=TrainOptions(batch_size=BATCH, seed=seed, checkpoint_every=100),
                teacher_sha256=Parts.sha256(teacher.file),
                prediction_type=teacher.prediction,
            )
            if not distillation.finished():
                teacher.running.execute(
                    distillation, teacher.students.FullWeights(), model=teacher.model, vae=None, show=lambda _: say
                )
        return run

    def row(self, label: str, run: RunFolder, steps: int, *, seed: int) -> Figures:
        trial, teacher = self.trials[label], self._teacher
        chosen = trial.chosen
        tensors, recipe, _ = read_student(trial.file(run, steps))
        student = teacher.students.with_student(teacher.model, tensors, lora=False, recipe=recipe)
        sampler = teacher.host.models.sampler(sample_few_step, gamma=chosen.gamma)
        sigmas = chosen.schedule(steps, table=teacher.table)
        return self._judge.row(teacher.draw(student, sampler, sigmas, cfg=1.0, count=self.pictures, seed=seed))


# --- the teacher's own rows ------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """How the teacher is sampled."""

    solver: str
    steps: int
    guidance_scale: float

    def pictures(self, teacher: Teacher, *, count: int, seed: int) -> Tensor:
        sampler = teacher.host.models.hosts_sampler(SOLVERS[self.solver])
        sigmas, cfg = teacher.levels(self.steps), self.guidance_scale
        return teacher.draw(teacher.model, sampler, sigmas, cfg=cfg, count=count, seed=seed)


def offered(calls: int) -> list[Setting]:
    """Every solver with as many steps as the calls allow, both branches of guidance counted."""
    found = []
    for solver in SOLVERS:
        for scale in (1.0, SCALE):
            evaluations = calls if scale == 1.0 else calls // 2
            steps = (evaluations + 1) // 2 if solver == "Heun" else evaluations
            if steps >= (2 if solver == "UniPC" else 1):
                found.append(Setting(solver, steps, scale))
    return found


def measure_teacher(parts: Parts, teacher: Teacher, judge: Judge, *, noise_seeds: int) -> Iterator[None]:
    """Floors, and the best solver at each number of calls, which is chosen on other noise."""
    count = judge.pictures

    def again() -> Figures:
        return judge.row(teacher.ddim(REFERENCE_STEPS, count=count, seed=TEST_SEED))

    def few() -> Figures:
        own = teacher.ddim(REFERENCE_STEPS, count=10 * DIGITS, seed=TEST_SEED)
        return judge.row(own[torch.arange(count) % len(own)])

    parts.part("floor: the teacher, other noise", {"pictures": count}, again)
    parts.part(f"floor: {10 * DIGITS} pictures of the teacher, again and again", {"pictures": count}, few)
    for calls in CALLS:
        tried = offered(calls)
        said = {"pictures": count, "tried": [list(one) for one in tried]}
        best = parts.part(f"tuning: {calls} calls", said, lambda tried=tried: _best(teacher, judge, tried))
        chosen = Setting(*best["best"])
        for k in range(noise_seeds):
            said = {"setting": list(chosen), "calls": calls, "pictures": count, "noise seed": TEST_SEED + k}
            work = functools.partial(_drawn, teacher, judge, chosen, seed=TEST_SEED + k)
            parts.part(f"solver, {calls} calls, noise {k}", said, work)
            yield


def _best(teacher: Teacher, judge: Judge, tried: list[Setting]) -> Figures:
    found = [judge.distance(one.pictures(teacher, count=judge.pictures, seed=TUNING_SEED)) for one in tried]
    return {"best": list(tried[min(range(len(found)), key=lambda k: found[k])]), "distances": found}


def _drawn(teacher: Teacher, judge: Judge, chosen: Setting, *, seed: int) -> Figures:
    return judge.row(chosen.pictures(teacher, count=judge.pictures, seed=seed))


# --- the page --------------------------------------------------------------------------------------------------------


def _row(name: str, calls: int | None, seeds: list[Figures]) -> str:
    cells = [name, "-" if calls is None else str(calls)]
    cells += [pages.plus_minus(pages.over(seeds, key)) for key in DISTANCES]
    cells += [f"{statistics.mean(seed[key] for seed in seeds):.3f}" for key in (*SHARES, "spread")]
    cells += [pages.plus_minus(pages.over(seeds, "accuracy"), digits=3), str(len(seeds))]
    return f"| {' | '.join(cells)} |"


def page(written: Figures) -> str:
    """Markdown."""
    parts = written["parts"]
    rows = pages.by_noise({name: part for name, part in parts.items() if name.startswith("solver, ")})
    students = by_training({name: part for name, part in parts.items() if name.startswith(LABELS)})
    lines = ["# Students of the digits' teacher", "", pages.made(written), "", ABOUT, ""]
    lines += [
        "| pictures | calls | Frechet at infinity | the same, random features | precision | recall | spread | right | seeds |"
    ]
    lines += ["|---|" + "--:|" * 8]
    lines += [_row(name, None, [part["figures"]]) for name, part in pages.named(parts, "floor: ").items()]
    for seeds in rows.values():
        solver, steps, scale = seeds[0]["settings"]["setting"]
        name = f"teacher, {solver}, {pages.count(steps, 'step')}, guidance {scale:g}"
        lines.append(_row(name, seeds[0]["settings"]["calls"], [part["figures"] for part in seeds]))
    for (label, calls), trainings in in_order(students):
        name = f"{label}, {pages.count(len(trainings), 'training')}"
        lines.append(_row(name, calls, over_trainings(trainings)))
    lines += ["", *_nearest(students), ""]
    for label in dict.fromkeys(label for label, _ in students):
        settings = parts[f"training: {label}, 0"]["settings"]
        said = ", ".join(f"{key} {value}" for key, value in settings["options"].items())
        seconds = [part["seconds"] for name, part in pages.named(parts, f"training: {label}, ").items()]
        lines.append(f"- {label}: {settings['method']}, {settings['passes']}, {max(seconds):.0f} s at most; {said}.")
    return "\n".join([*lines, ""])


def _nearest(students: dict[tuple[str, int], dict[int, list[Figures]]]) -> list[str]:
    """The students at each number of calls from the nearest to the farthest."""
    lines = []
    for calls in CALLS:
        found = {label: distance(of) for (label, n), of in students.items() if n == calls}
        order = sorted(found, key=lambda label: found[label][0])
        if order:
            said = ", ".join(f"{label} {pages.plus_minus(found[label])}" for label in order)
            lines.append(f"- {pages.count(calls, 'call')}, from the nearest: {said}.")
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench digits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=LABELS, default=list(LABELS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument("--noise-seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    command = " ".join(["python launch.py bench digits", *arguments])
    teacher = Teacher()
    judge = Judge(teacher)
    parts = Parts(RESULTS / "digits.json", command=command, sources=[teacher.file])
    for measured in (
        measure_teacher(parts, teacher, judge, noise_seeds=options.noise_seeds),
        measure(parts, Digits(teacher, judge), options.methods, seeds=options.seeds, noise_seeds=options.noise_seeds),
    ):
        for _ in measured:
            (RESULTS / "digits.md").write_text(page(parts.written), encoding="utf-8")
