"""What a model predicts and how its loss is weighed: Salimans and Ho 2022, table 1, on the drawn world.

As there each model is trained from scratch and undistilled, and drawn with DDIM; here for 2,000 iterations, without guidance.
Few steps of the same models show which of them are fit for distillation (section 4). A training is a run folder in
.fewstep/scenes/ablation, so that it may be stopped and goes on, and takes six minutes on one core with its drawing. Writes
benchmarks/results/scenes_ablation.json and .md.

    python launch.py bench scenes ablation --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...samplers.noise import Denoiser
from ...trainers.methods.denoising import Denoising
from ...trainers.objective.grid import Grid
from ...trainers.objective.weighting import Weighting
from ...trainers.storage.run_folder import RunFolder
from ...trainers.students.student import FullWeightsStudent
from ...trainers.training.loop import train
from ...trainers.training.optimisation.tally import NonFiniteLoss
from . import curves, students
from .engine.machine import RESULTS, ROOT, device, learning_precision
from .engine.parts import Parts
from .judging import judges
from .judging.judged import PICTURES, Jury, Row
from .model import teacher
from .model.network import PREDICTIONS, SceneNetwork, as_denoiser, noise_levels
from .model.solvers import Setting
from .model.world import CHANNELS, Split
from .tables import pages

HOME = ROOT / ".fewstep" / "scenes" / "ablation"
ITERATIONS = 2000
STEPS = (32, 4)
WEIGHTINGS = (Weighting.SNR.value, Weighting.TRUNCATED_SNR.value, Weighting.SNR_PLUS_ONE.value)
PUBLISHED = {
    "x0_and_eps": (2.78, 2.76, 2.87),
    "x0": (2.75, 2.51, 2.65),
    "eps": (2.91, None, 3.27),
    "v_prediction": (3.05, 2.75, 2.87),
}
"""FID on CIFAR-10 with DDIM, by weighting; None: diverged."""
Figures = dict[str, Any]
Pair = tuple[str, str]
"""(what is predicted, how the loss is weighed)"""


def network(prediction: str) -> SceneNetwork:
    channels = (2 if prediction == "x0_and_eps" else 1) * CHANNELS
    return SceneNetwork(channels=channels).to(device(), memory_format=torch.channels_last)


def trained(prediction: str, weighting: str, seed: int) -> Denoiser:
    """From scratch, or gone on with. NonFiniteLoss where it diverges."""
    method = Denoising(
        table=noise_levels(),
        iterations=ITERATIONS,
        learning_rate=teacher.LEARNING_RATE,
        condition_dropout=teacher.DROPOUT,
        weighting=Weighting(weighting),
    )
    torch.manual_seed(seed)
    as_trained = functools.partial(as_denoiser, prediction=prediction, precision=learning_precision())
    student = FullWeightsStudent(*(network(prediction) for _ in range(2)), as_denoiser=as_trained)
    run = RunFolder(HOME, f"{prediction} {weighting} {seed}")
    run.path.mkdir(parents=True, exist_ok=True)
    with run.locked():
        train(run, method, student, students.data(), options=dataclasses.replace(teacher.OPTIONS, seed=seed))
    return as_denoiser(student.module.eval().requires_grad_(False), prediction=prediction)


def measure(parts: Parts, *, seeds: int, pictures: int = PICTURES) -> Iterator[None]:
    """The first training seed of all pairs, then the second; after each part there is a page to write."""
    jury = Jury(Split.TEST, pictures=pictures)
    for seed, prediction, weighting in itertools.product(range(seeds), PREDICTIONS, WEIGHTINGS):
        settings = {"iterations": ITERATIONS, "steps": list(STEPS), "pictures": pictures, "learnt": students.LEARNT}
        work = functools.partial(_drawn, jury, prediction, weighting, seed)
        parts.part(f"{prediction}, {weighting}, training {seed}", settings, work)
        yield


def _drawn(jury: Jury, prediction: str, weighting: str, seed: int) -> Row:
    """The row at each number of steps, or that it diverged."""
    try:
        denoiser = trained(prediction, weighting, seed)
    except NonFiniteLoss as error:
        return {"diverged": str(error)}
    settings = [Setting("DDIM", steps, 1.0, Grid.TRAILING.value) for steps in STEPS]
    return {str(one.steps): curves.drawn_row(jury, denoiser, one, seed=curves.TEST_SEED) for one in settings}


def page(written: Figures) -> str:
    rows = _pairs(written)
    lines = ["# What a model predicts and how its loss is weighed", "", pages.made(written), ""]
    lines += [
        f"As table 1 of Salimans and Ho 2022: trained from scratch, {ITERATIONS} iterations of {teacher.OPTIONS.batch_size}, the "
        "same first weights and noise for all, drawn by DDIM without guidance. Frechet distance at infinity and the share that "
        "shows its prompt, as in scenes_solvers.md; intervals of 95 %, over training seeds where there are several. The paper's "
        "column is FID on CIFAR-10 with DDIM: its order is to be compared, not its size. Few steps are those that "
        "distillation is about; the models are not distilled.",
        "",
        f"| predicts | weighting | {' | '.join(f'{n} steps | right' for n in STEPS)} | training seeds | the paper's |",
        "|---|---|" + "--:|" * (2 * len(STEPS) + 2),
        *(_row(*pair, seeds) for pair, seeds in rows.items()),
        "",
    ]
    return "\n".join([*lines, *order(written), ""])


def _pairs(written: Figures) -> dict[Pair, list[Figures]]:
    """The figures of each training, by what is predicted and how the loss is weighed."""
    rows: dict[Pair, list[Figures]] = {}
    for name, part in written["parts"].items():
        prediction, weighting, _ = name.split(", ")
        rows.setdefault((prediction, weighting), []).append(part["figures"])
    return rows


def _row(prediction: str, weighting: str, seeds: Sequence[Figures]) -> str:
    cells = [cell for steps in STEPS for cell in _cells(seeds, str(steps))]
    published = PUBLISHED[prediction][WEIGHTINGS.index(weighting)]
    said = "diverged" if published is None else f"{published:.2f}"
    return f"| {' | '.join([prediction, weighting, *cells, str(len(seeds)), said])} |"


def _cells(seeds: Sequence[Figures], steps: str) -> tuple[str, str]:
    if any("diverged" in seed for seed in seeds):
        return "diverged", "-"
    found = [seed[steps] for seed in seeds]
    return pages.plus_minus(pages.over(found, "frechet")), pages.plus_minus(pages.over(found, "accuracy"), digits=3)


def order(written: Figures) -> list[str]:
    """At each number of steps the pairs from the least distance to the most, in a line."""
    rows = _pairs(written)
    return [_said(steps, _means(rows, str(steps))) for steps in STEPS]


def in_short(written: Figures) -> list[str]:
    """The same of each prediction's best weighting alone, and the published order of those."""
    rows = _pairs(written)
    lines = [_said(steps, _best(_means(rows, str(steps)))) for steps in STEPS]
    least = {name: min(value for value in values if value is not None) for name, values in PUBLISHED.items()}
    there = ", ".join(f"{name} {least[name]:.2f}" for name in sorted(least, key=lambda name: least[name]))
    return [*lines, f"- Published, FID on CIFAR-10 with DDIM after far more training: {there}."]


def _means(rows: dict[Pair, list[Figures]], steps: str) -> dict[Pair, float]:
    """Mean distances of the pairs that did not diverge, from the least."""
    ends = {pair: seeds for pair, seeds in rows.items() if not any("diverged" in seed for seed in seeds)}
    means = {pair: pages.over([seed[steps] for seed in seeds], "frechet")[0] for pair, seeds in ends.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _best(means: dict[Pair, float]) -> dict[Pair, float]:
    """Of each prediction the first pair."""
    first = {prediction: (prediction, weighting) for prediction, weighting in reversed(means)}
    return {pair: mean for pair, mean in means.items() if pair in first.values()}


def _said(steps: int, means: dict[Pair, float]) -> str:
    named = [f"{' with '.join(pair)} {mean:.2f}" for pair, mean in means.items()]
    return f"- {steps} steps, from the least distance: {', '.join(named)}."


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    options = parser.parse_args(arguments)
    command = " ".join(["python launch.py bench scenes ablation", *arguments])
    parts = Parts(
        RESULTS / "scenes_ablation.json", command=command, sources=[judges.FILE], learning_in=learning_precision()
    )
    for _ in measure(parts, seeds=options.seeds):
        (RESULTS / "scenes_ablation.md").write_text(page(parts.written), encoding="utf-8")
