"""The digits teacher by better solvers than DDIM, which the older benchmarks compare their students with.

Each row over several seeds of the noise. Writes benchmarks/results/digits_solvers.json and digits_solvers.md; resumes.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..samplers.noise import guided
from ..trainers.measures.digits import DIGITS, to_pictures
from ..trainers.measures.evaluate import FeatureStatistics, frechet_distance
from ..trainers.measures.fidelity import Estimate
from ..trainers.objective.grid import Grid
from .methods_setup import SCALE
from .progressive_setup import FAMILY, Bench
from .scenes.machine import RESULTS, ROOT
from .scenes.pages import made, plus_minus
from .scenes.parts import Parts
from .scenes.solvers import Setting, solvers

ROWS = (
    ("DDIM", 64),
    ("DDIM", 8),
    ("DDIM", 4),
    ("Heun", 8),
    ("DPM++ 2M", 8),
    ("DPM++ 2M", 4),
    ("UniPC", 8),
    ("UniPC", 4),
)
"""(solver, steps): DDIM on the trailing levels, as the older benchmarks have it; the others on Karras et al.'s."""
Row = dict[str, Any]


class Digits(Bench):
    """The teacher and its judge, for any solver."""

    @torch.no_grad()
    def row(self, chosen: Setting, *, seed: int) -> Row:
        """The distance and accuracy with noise of a seed."""
        denoiser = guided(self._read(self._model.model), guidance_scale=SCALE, unconditional=self._empty)
        sigmas = Grid(chosen.grid).sigmas(chosen.steps, table=self._table)
        noise = torch.randn(self._noise.shape, generator=torch.Generator().manual_seed(seed))
        start = FAMILY.initial(noise, sigma=sigmas[0])
        condition = {"y": F.one_hot(self._labels, DIGITS).float()}
        latents = solvers()[chosen.solver].walk(denoiser, start, sigmas.clone(), condition, disable=True)
        features = self._judge.classifier.features(to_pictures(latents))
        right = self._judge.classifier.classify(features).argmax(dim=1) == self._labels
        return {
            "frechet": frechet_distance(FeatureStatistics.of(features), self._judge.real),
            "accuracy": float(right.double().mean()),
        }


def page(written: Row) -> str:
    rows: dict[str, list[Row]] = {}
    for name, part in written["parts"].items():
        rows.setdefault(name.rpartition(", noise ")[0], []).append(part)
    lines = [
        "# The digits teacher by better solvers",
        "",
        made(written),
        "",
        f"Guidance {SCALE:g}; forwards count both branches. Frechet distance to the 1,797 real digits, on the features of a "
        "classifier that learnt on the same digits, as did the teacher: it compares solvers and settings, and says little of how "
        "good the pictures are. Intervals of 95 % over noise seeds.",
        "",
        "| solver | steps | forwards | Frechet distance | accuracy (least) | noise seeds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for parts in rows.values():
        solver, steps, *_ = parts[0]["settings"]["setting"]
        distance = Estimate.of([part["figures"]["frechet"] for part in parts]).written()
        least = min(part["figures"]["accuracy"] for part in parts)
        calls = parts[0]["settings"]["calls"]
        lines.append(f"| {solver} | {steps} | {calls} | {plus_minus(distance)} | {least:.3f} | {len(parts)} |")
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench digits-solvers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise-seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000, help="for each row (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: %(default)s)")
    options = parser.parse_args(arguments)
    command = " ".join(["python launch.py bench digits-solvers", *arguments])
    sources = [ROOT / "assets" / f"digits_{name}.safetensors" for name in ("teacher", "classifier")]
    parts = Parts(options.folder / "digits_solvers.json", command=command, sources=sources)
    bench = Digits(guidance_scale=SCALE, pictures=options.pictures)
    for seed in range(options.noise_seeds):
        for solver, steps in ROWS:
            chosen = Setting(solver, steps, SCALE, (Grid.TRAILING if solver == "DDIM" else Grid.EDM).value)
            said = {"setting": list(chosen), "calls": chosen.calls, "pictures": options.pictures, "noise seed": seed}
            parts.part(f"{solver}, {steps}, noise {seed}", said, functools.partial(bench.row, chosen, seed=seed))
    (options.folder / "digits_solvers.md").write_text(page(parts.written), encoding="utf-8")
