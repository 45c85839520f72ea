"""The tables as Markdown: every row with its floors above it, intervals, and what made it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from ....trainers.measures.fidelity import Estimate
from ..model.solvers import CALLS

Figures = dict[str, Any]
_DISTANCES = (
    ("frechet", "Frechet at infinity"),
    ("frechet_random", "the same, random features"),
    ("kernel", "kernel x 1000"),
)
_SHARES = ("precision", "recall", "density", "coverage")
ABOUT = (
    "**Frechet at infinity**: squared Frechet distance to real scenes of the test split, extrapolated to infinitely many "
    "pictures, on what the reader of captions makes of a picture before it decides; it learnt on scenes of a split of its own. "
    "**Random features**: on fixed random convolutions, which have learnt nothing. Both are the 32 strongest directions, at unit "
    "variance on real scenes. **Kernel**: the unbiased kernel distance on the former, as are the next four. All three are 0 for "
    "a perfect sampler, and may come out below 0. **Precision** to **coverage** by 5 neighbours. **Right**: share of pictures "
    "that show exactly what their prompt said, by that reader. **Copied**: share that lie nearer to a scene that the teacher "
    "learnt from than to any of as many others; half is fair. Intervals are of 95 %: by leaving out groups of pictures for one "
    "noise seed, by Student's t over seeds for several: the latter for these prompts and real scenes, which all rows share, "
    "so they are narrower."
)


CALIBRATION = {
    "real scenes, prompts shuffled": ("accuracy", "right"),
    "real scenes, blurred": ("frechet", "Frechet at infinity"),
    "real scenes of one thing alone": ("frechet", "Frechet at infinity"),
    "all that the teacher learnt from": ("copied", "copied"),
}
"""What is wrong with real scenes, to the figure that should see it and its title."""


def plus_minus(pair: list[float], *, digits: int = 2, scale: float = 1.0) -> str:
    value = round(scale * pair[0], digits) + 0.0  # no -0.00
    return f"{value:.{digits}f} +- {scale * pair[1]:.{digits}f}"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def header(first: str) -> list[str]:
    names = [first, "calls", *(title for _, title in _DISTANCES), *_SHARES, "right", "copied", "seeds"]
    return [f"| {' | '.join(names)} |", "|---|" + "--:|" * (len(names) - 1)]


def row(name: str, calls: int | None, seeds: list[Figures]) -> str:
    """seeds: the figures of each noise (and training) seed; the means of several, with the interval over them."""
    cells = [name, "-" if calls is None else str(calls)]
    cells += [plus_minus(over(seeds, key), scale=1000.0 if key == "kernel" else 1.0) for key, _ in _DISTANCES]
    cells += [f"{statistics.mean(seed[key] for seed in seeds):.3f}" for key in _SHARES]
    cells += [plus_minus(over(seeds, key), digits=3) for key in ("accuracy", "copied")]
    return f"| {' | '.join([*cells, str(len(seeds))])} |"


def over(seeds: list[Figures], key: str) -> list[float]:
    """[value, margin]: one seed's own, or of several their mean by Student's t."""
    if len(seeds) == 1:
        return list(seeds[0][key])
    return Estimate.of([seed[key][0] for seed in seeds]).written()


def named(parts: Figures, beginning: str) -> dict[str, Figures]:
    """Parts by what follows the beginning of their names."""
    return {name.removeprefix(beginning): part for name, part in parts.items() if name.startswith(beginning)}


def made(written: Figures) -> str:
    """What regenerates it and what made it, in a sentence."""
    machines = {_machine(**part["machine"]) for part in written["parts"].values()}
    days = sorted({part["date"] for part in written["parts"].values()})
    return (
        f"`{written['command']}`, {' to '.join(dict.fromkeys((days[0], days[-1])))}, on {'; '.join(sorted(machines))}."
    )


def _machine(platform: str, cores: int, threads: int, *, card: str = "", torch: str = "", learning_in: str = "") -> str:
    """torch: of another version than the others'. learning_in: where it is not bfloat16."""
    said = [platform, count(cores, "core"), count(threads, "thread"), f"torch {torch}" if torch else "", card]
    said.append(f"learning in {learning_in}" if learning_in else "")
    return ", ".join(filter(None, said))


def floors(parts: Figures) -> list[str]:
    return [row(name, None, [part["figures"]]) for name, part in named(parts, "floor: ").items()]


def calibration(parts: Figures) -> list[str]:
    """Whether what is wrong with real scenes moves the figure that should see it, beyond both intervals."""
    found = named(parts, "floor: ")
    lines = []
    for name in CALIBRATION.keys() & found.keys() if "real scenes" in found else ():
        key, title = CALIBRATION[name]
        real, spoiled = found["real scenes"]["figures"][key], found[name]["figures"][key]
        seen = "seen" if abs(spoiled[0] - real[0]) > spoiled[1] + real[1] else "not seen"
        lines.append(f"- {name}: {title} {plus_minus(spoiled, digits=3)} for {plus_minus(real, digits=3)}, {seen}.")
    return (
        ["Calibration of the judges, on real scenes that one thing is wrong with:", "", *sorted(lines)] if lines else []
    )


def by_noise(parts: Figures) -> dict[str, list[Figures]]:
    """The parts of each row, whose name is followed by its noise seed."""
    found: dict[str, list[Figures]] = {}
    for name, part in parts.items():
        label, _, seed = name.rpartition(", noise ")
        if seed.isdigit():
            found.setdefault(label, []).append(part)
    return found


def by_allowed(rows: dict[str, list[Figures]]) -> dict[int, list[list[Figures]]]:
    """The rows by the number of calls that each was allowed, from few to many."""
    allowed: dict[int, list[list[Figures]]] = {}
    for label, seeds in rows.items():
        allowed.setdefault(int(label.rpartition(", ")[2].split()[0]), []).append(seeds)
    return dict(sorted(allowed.items()))


def best_of(rows: Iterable[list[Figures]], key: str = "frechet") -> list[Figures]:
    """The row of least mean distance, by one of the judges."""
    return min(rows, key=lambda parts: over([part["figures"] for part in parts], key)[0])


def solvers_page(written: Figures) -> str:
    parts = written["parts"]
    rows = by_noise(parts)
    lines = ["# The teacher's solvers over network calls", "", made(written), "", ABOUT, ""]
    lines += [
        "Calls count both branches of guidance. Each row has the guidance and spacing that did best on the tuning split.",
        "",
    ]
    lines += [*header("pictures"), *floors(parts)]
    for seeds in rows.values():
        solver, steps, scale, grid = seeds[0]["settings"]["setting"]
        calls = seeds[0]["settings"]["calls"]
        name = f"{solver}, {steps} steps, guidance {scale:g}, {grid}"
        lines.append(row(name, calls, [part["figures"] for part in seeds]))
    lines += ["", *calibration(parts), ""]
    if rows:
        lines += _least(rows)
    return "\n".join([*lines, ""])


def _least(rows: dict[str, list[Figures]]) -> list[str]:
    """The least distance at each number of calls allowed, and over the least of all."""
    allowed = by_allowed(rows)
    least = over([part["figures"] for part in best_of(rows.values())], "frechet")[0]
    lines = []
    for calls, found in allowed.items():
        best = best_of(found)
        value = over([part["figures"] for part in best], "frechet")
        lines.append(
            f"- {count(calls, 'call')}: {plus_minus(value)} with {best[0]['settings']['setting'][0]}, {value[0] / least:.2f} "
            "times the teacher's best."
        )
    missing = [str(calls) for calls in CALLS if calls not in allowed]
    if missing:
        lines.append(f"- Not measured yet: {', '.join(missing)} calls. The teacher's best is that of the rows above.")
    return lines
