"""The teacher's curve over network calls: every solver at its own best guidance, beside the floors.

Guidance and the spacing of the levels are tuned on the tuning split with noise of their own; what the table has is drawn once
for the test split's prompts, with other noise. Resumes; writes benchmarks/results/scenes_solvers.json and .md.

    python launch.py bench scenes solvers --noise-seeds 3
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

from ...samplers.noise import Denoiser
from ...trainers.objective.grid import Grid
from .engine.machine import RESULTS
from .engine.parts import Parts
from .judging import judges
from .judging.judged import PICTURES, Jury, Row, spoiled
from .model import teacher
from .model.network import as_denoiser
from .model.solvers import CALLS, Setting, draw, noise, setting, solvers
from .model.world import Split, to_pictures
from .tables import pages

GUIDANCES = (1.0, 1.5, 2.0, 3.0)
GRIDS = (Grid.TRAILING.value, Grid.EDM.value)
TUNING_PICTURES, TUNING_REAL, TUNING_SEED = 512, 4096, 77_000
TEST_SEED = 1000
"""Of the first noise; the others count on from it."""
SOURCES = [teacher.FILE, judges.FILE]


def results(command: str) -> Parts:
    return Parts(RESULTS / "scenes_solvers.json", command=command, sources=SOURCES)


def measure(parts: Parts, *, noise_seeds: int, pictures: int = PICTURES) -> Iterator[None]:
    """Floors, then for each number of calls and solver what tuning says and the row; after each row there is a page to write."""
    test, tuning = Jury(Split.TEST, pictures=pictures), Jury(Split.TUNING, pictures=TUNING_PICTURES, real=TUNING_REAL)
    for name, pair in spoiled(test).items():
        parts.part(f"floor: {name}", {"pictures": pictures}, functools.partial(test.row, *pair))
    denoiser = as_denoiser(teacher.load_teacher())
    grids = {name: _spaced(parts, tuning, denoiser, name) for name in solvers()}
    for k in range(noise_seeds):
        for calls in CALLS:
            for solver, grid in grids.items():
                best = tuned(parts, tuning, denoiser, solver, calls, grid=grid)
                if best is not None:
                    work = functools.partial(drawn_row, test, denoiser, best, seed=TEST_SEED + k)
                    said = {
                        "setting": list(best),
                        "calls": best.calls,
                        "pictures": pictures,
                        "noise seed": TEST_SEED + k,
                    }
                    parts.part(f"{solver}, {calls} calls, noise {k}", said, work)
                    yield


def drawn_row(jury: Jury, denoiser: Denoiser, chosen: Setting, *, seed: int) -> Row:
    latents = draw(denoiser, chosen, noise=noise(jury.pictures, seed=seed), captions=jury.prompts)
    return jury.row(to_pictures(latents), jury.prompts)


def tuned(parts: Parts, jury: Jury, denoiser: Denoiser, solver: str, calls: int, *, grid: str) -> Setting | None:
    """The setting of least distance on the tuning split; None where so few calls allow no step."""
    offered = [setting(solver, calls, guidance_scale=scale, grid=grid) for scale in GUIDANCES]
    settings = [one for one in offered if one is not None]
    if not settings:
        return None
    said = {"guidances": list(GUIDANCES), "grid": grid, "pictures": jury.pictures}
    found = parts.part(f"tuning: {solver}, {calls} calls", said, lambda: _tried(jury, denoiser, settings))
    return Setting(*found["best"])


def _spaced(parts: Parts, jury: Jury, denoiser: Denoiser, solver: str) -> str:
    """The spacing of least distance for a solver, at a middle number of calls and guidance."""
    settings = [setting(solver, 8, guidance_scale=GUIDANCES[1], grid=grid) for grid in GRIDS]
    said = {"grids": list(GRIDS), "pictures": jury.pictures}
    work = lambda: _tried(jury, denoiser, [one for one in settings if one is not None])  # noqa: E731
    return Setting(*parts.part(f"tuning: the levels of {solver}", said, work)["best"]).grid


def _tried(jury: Jury, denoiser: Denoiser, settings: list[Setting]) -> dict[str, Any]:
    noises = noise(jury.pictures, seed=TUNING_SEED)
    found = [jury.distance(to_pictures(draw(denoiser, one, noise=noises, captions=jury.prompts))) for one in settings]
    best = min(range(len(found)), key=lambda k: found[k])
    tried = [[*one, distance] for one, distance in zip(settings, found, strict=True)]
    return {"best": list(settings[best]), "tried": tried}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="launch.py bench scenes solvers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise-seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    parts = results(" ".join(["python launch.py bench scenes solvers", *arguments]))
    for _ in measure(parts, noise_seeds=options.noise_seeds):
        (RESULTS / "scenes_solvers.md").write_text(pages.solvers_page(parts.written), encoding="utf-8")
