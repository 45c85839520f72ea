"""Charts and picture grids as tensors (H, W, 3) in [0, 1], drawn by matplotlib off screen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .evaluate import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"teacher": "#8a8f98", "student": "#d9480f"}


def _figure(*, width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "charts are drawn with matplotlib, which is not installed. Install it into ComfyUI's Python: "
            "python -m pip install matplotlib"
        ) from error
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _render(figure: Figure) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.reshape(height, width, 4)[..., :3].float() / 255.0


def quality_chart(scores: Sequence[Score]) -> Tensor:
    """Frechet distance and accuracy over steps, teacher against student."""
    figure = _figure(width=9.0, height=3.8)
    axes = figure.subplots(1, 2)
    for axis, value, name in zip(axes, ("frechet", "accuracy"), ("Frechet distance", "accuracy"), strict=True):
        for model, colour in COLOURS.items():
            own = sorted((s for s in scores if s.model == model), key=lambda s: s.steps)
            if own:
                axis.plot([s.steps for s in own], [getattr(s, value) for s in own], "o-", color=colour, label=model)
        steps = sorted({s.steps for s in scores})
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(s) for s in steps])
        axis.minorticks_off()
        axis.set_xlabel("sampling steps")
        axis.set_title(name)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale("log")
    axes[1].set_ylim(min(0.9, *(score.accuracy for score in scores)), 1.005)
    return _render(figure)


Interval = tuple[float, float]
"""(value, half of its interval's width)."""


def curves_chart(curves: Mapping[str, Mapping[int, Interval]], *, over: str, value: str, beside: str = "") -> Tensor:
    """Curves with intervals on log axes, label and place to the value; in grey those whose labels begin with beside.

    An interval that a log axis has no room for, to 0 and below, is cut at a tenth of its value; nor for a value below 0. Above,
    at twice the largest value. What is no finite number is not drawn; ValueError where nothing is left.
    """
    curves = {label: {x: y for x, y in of.items() if math.isfinite(y[0])} for label, of in curves.items()}
    curves = {label: of for label, of in curves.items() if of}
    if not curves:
        raise ValueError(f"there is no {value} to draw: no curve holds a finite number.")
    columns = 2
    figure = _figure(width=10.0, height=5.0 + 0.2 * math.ceil(len(curves) / columns))
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axis, lines = figure.subplots(), itertools.cycle(["--", "-.", ":", (0, (6, 3))])
    looks = itertools.product("os^Dvx", [f"C{k}" for k in range(10) if k != 7])  # 7 is grey
    for label, points in curves.items():
        look: dict[str, Any]
        if beside and label.startswith(beside):
            look = {"marker": "o", "color": COLOURS["teacher"], "linestyle": next(lines)}
        else:
            look = dict(zip(("marker", "color"), next(looks), strict=True))
        means, margins = zip(*points.values(), strict=True)
        below = [max(min(margin, 0.9 * mean), 0.0) for mean, margin in points.values()]
        axis.errorbar(list(points), means, (below, margins), markersize=5, capsize=3, label=label, **look)
    places = {place for points in curves.values() for place in points}
    steps = [2**k for k in range(max(places).bit_length()) if 2**k >= min(places)]
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(steps, [str(step) for step in steps])
    axis.minorticks_off()
    axis.set_ylim(top=2.0 * max(mean for points in curves.values() for mean, _ in points.values()))
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel(over)
    axis.set_ylabel(value)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize="small")  # inside it would hide curves
    return _render(figure)


def loss_chart(metrics: Iterable[Mapping[str, Any]]) -> Tensor:
    """The logged loss over iterations, a curve for each stage, on a log axis. metrics: a run's lines; before the student's first
    update there is no loss.
    """
    stages: dict[str, list[tuple[int, float]]] = {}
    for line in metrics:
        if line["loss"] is not None:
            stages.setdefault(line["stage_name"], []).append((line["iteration"], line["loss"]))
    figure = _figure(width=9.0, height=3.8)
    axis = figure.subplots()
    for stage, points in stages.items():
        axis.plot(*zip(*points, strict=True), linewidth=1.2, label=stage)
    axis.set_yscale("log")
    axis.set_xlabel("iteration")
    axis.set_title("loss")
    axis.grid(alpha=0.3)
    axis.legend()
    return _render(figure)


def picture_grid(rows: Mapping[str, Tensor]) -> Tensor:
    """Rows of pictures (N, H, W, 3) in [0, 1] under each other, each row labelled; columns share their noise."""
    count = max(len(pictures) for pictures in rows.values())
    figure = _figure(width=1.6 + 0.8 * count, height=0.85 * len(rows))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes, (label, pictures) in zip(grid, rows.items(), strict=True):
        for column, axis in enumerate(axes):
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
            if column < len(pictures):
                axis.imshow(pictures[column].cpu().numpy(), interpolation="nearest")
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    return _render(figure)
