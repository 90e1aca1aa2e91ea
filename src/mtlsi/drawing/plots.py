"""Curves for people: how a training went, how precision falls as recall rises, how costs grow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter

from mtlsi.drawing.fonts import families_for
from mtlsi.errors import MistakeError, message_of
from mtlsi.io import check_picture, replace_bytes
from mtlsi.reading import json_lines
from mtlsi.tasks import TASKS


def plot_precision_recall(
    recall: Sequence[float],
    precision: Sequence[float],
    out_png: str | os.PathLike,
    *,
    ods: tuple[float, float],
    title: str = "boundaries",
    beta_squared: float = 1.0,
) -> Path:
    """The curve over the thresholds, as PNG, PDF or SVG; ``ods`` (recall, precision) is its best point.

    Lines of equal F, (1 + beta^2) P R / (beta^2 P + R), lie behind.
    """
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for f in np.arange(0.1, 1.0, 0.1):
        along = np.linspace(beta_squared * f / (1 + beta_squared - f), 1, 200)  # from where the precision is 1
        level = f * along / ((1 + beta_squared) * along - beta_squared * f)
        axes.plot(along, level, color="0.85", lw=0.8, zorder=0)
        axes.annotate(f"F {f:.1f}", (1, level[-1]), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.plot(recall, precision, color="#2b6cb0", lw=2)
    best = (1 + beta_squared) * ods[0] * ods[1] / max(beta_squared * ods[1] + ods[0], 1e-12)
    axes.plot(*ods, "o", color="#c53030", label=f"F {best:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", title=title, aspect="equal")
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, Path(out_png))


def plot_curves(metrics: str | os.PathLike, out_png: str | os.PathLike, *, best_step: int | None = None) -> Path:
    """Draws a run's ``metrics.jsonl`` into ``out_png``: the loss of each task and each task's headline score.

    A line is a JSON object with ``step`` and any of ``loss``, ``loss/<task>``, ``val/<task>/<score>``; where they are there,
    also drawn are ``balance/<task>``, ``gradient_norm/<task>`` and ``gradient_cosine/<task>/<task>``. Other keys are left
    out. A later line for the same step replaces the earlier one (a resumed run), and a line cut short by a stopped
    run is passed over. Each score's best evaluation is ringed; ``best_step``: of the model that is kept, a line across.
    Raises ``MistakeError`` where the file is missing or holds nothing to draw.
    """
    series = _read_series(Path(metrics))
    losses = [key for key in ("loss", *(f"loss/{task}" for task in TASKS)) if key in series]
    scores = [(task, key) for task in TASKS.values() if (key := f"val/{task.name}/{task.score}") in series]
    if not losses and not scores:
        raise MistakeError(f'{metrics}: no loss and no score in it; expected lines such as {{"step": 1, "loss": 2.5}}')
    tints = dict(zip(TASKS, cycle(matplotlib.colormaps["tab10"].colors), strict=False))  # pyright: ignore
    extras = [
        found
        for start in EXTRA_CURVES
        if (found := [key for key in series if key.startswith(start) and _is_of_tasks(key)])
    ]
    plots = bool(losses) + len(scores) + len(extras)
    columns = min(plots, 3)
    lines = math.ceil(plots / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    if losses:
        for key in losses:
            task = key.partition("/")[2]
            style = {"color": tints[task], "lw": 1.1} if task else {"color": "0.15", "lw": 1.6}
            alone = "o" if len(series[key][0]) == 1 else None  # a single step is no line
            axes[0].plot(*series[key], label=TASKS[task].title if task else "sum", marker=alone, ms=3.5, **style)
        axes[0].set(title="training loss", yscale="log")
        axes[0].legend(frameon=False, fontsize=8)
    for axis, (task, key) in zip(axes[bool(losses) :], scores, strict=False):
        arrow = "higher" if task.higher_is_better else "lower"
        axis.plot(*series[key], color=tints[task.name], marker="o", ms=3.5)
        _mark_best(axis, *series[key], higher_is_better=bool(task.higher_is_better), kept=best_step)
        axis.set(title=f"{task.title}: {task.score} ({task.unit}), {arrow} is better".replace(" ()", ""))
    for axis, keys in zip(axes[bool(losses) + len(scores) :], extras, strict=False):
        _draw_by_task(axis, {key: series[key] for key in keys}, tints)
    for axis in axes[:plots]:
        axis.set(xlabel="iteration")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[plots:]:
        axis.set_axis_off()
    return save_figure(figure, Path(out_png))


def _mark_best(
    axis: Any, steps: Sequence[int], values: Sequence[float], *, higher_is_better: bool, kept: int | None
) -> None:
    """A ring round the best value of a score, and a line at the step whose model is kept."""
    best = values.index(max(values) if higher_is_better else min(values))
    axis.plot(steps[best], values[best], marker="o", ms=9, mfc="none", mec="0.15", mew=1.2, ls="none")
    if kept is not None:
        axis.axvline(kept, color="0.15", lw=1, ls=":", label=f"kept: step {kept}", zorder=0)
        axis.legend(frameon=False, fontsize=7)


def _is_of_tasks(key: str) -> bool:
    """Whether what some runs log is of a task, or, cosines, of two."""
    start, *tasks = key.split("/")
    return len(tasks) == (2 if start == "gradient_cosine" else 1) and TASKS.keys() >= {*tasks}


EXTRA_CURVES = {
    "balance/": "balance: weight by task",
    "gradient_norm/": "norm of the tasks' gradients at the shared maps",
    "gradient_cosine/": "cosine of the tasks' gradients",
}
"""What only some runs log, with its title."""


def _draw_by_task(axis: Any, series: Mapping[str, tuple[list[int], list[float]]], tints: Mapping[str, Any]) -> None:
    """A line for each ``START/TASK``, in its task's colour, or ``START/TASK/OTHER``."""
    for key, (steps, values) in series.items():
        start, *tasks = key.split("/")
        style = {"color": tints[tasks[0]]} if len(tasks) == 1 else {}
        axis.plot(
            steps, values, lw=1.1, marker="o", ms=2, label=", ".join(TASKS[task].title for task in tasks), **style
        )
        axis.set(title=EXTRA_CURVES[f"{start}/"], yscale="log" if len(tasks) == 1 else "linear")
    axis.legend(frameon=False, fontsize=7)


def plot_scaling(
    pixels: Sequence[int], series: Mapping[str, tuple[Sequence[float], float, float]], out_png: str | os.PathLike
) -> Path:
    """How costs grow with the number of pixels, both axes logarithmic, as PNG, PDF or SVG.

    ``series`` holds, by title, the cost at each of ``pixels`` and the line fitted to it, ``factor * pixels ** exponent``,
    as (costs, exponent, factor).
    """
    figure = Figure(figsize=(4.6 * len(series), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, (costs, exponent, factor)) in zip(
        figure.subplots(1, len(series), squeeze=False).flat, series.items(), strict=True
    ):
        line = [factor * count**exponent for count in pixels]
        axes.plot(pixels, line, color="#2b6cb0", lw=1.4, label=f"pixels^{exponent:.2f}", zorder=1)
        axes.plot(pixels, costs, "o", color="#c53030", label="measured", zorder=2)
        axes.set(xscale="log", yscale="log", xlabel="pixels", title=title)
        axes.set_xticks(pixels, [f"{count / 1000:.0f} k" for count in pixels], fontsize=8)
        axes.set_yticks(costs, [f"{cost:.1f}" if cost < 10 else f"{cost:.0f}" for cost in costs], fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.title.set_fontsize(10)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, Path(out_png))


TINTS = tuple(matplotlib.colormaps["tab20"].colors[i] for i in (*range(0, 20, 2), *range(1, 20, 2)))  # pyright: ignore


class Point(NamedTuple):
    """One of the things that ``plot_scores`` compares."""

    name: str
    x: float
    scores: Mapping[str, float | None]
    """By task; None: no score."""
    spreads: Mapping[str, float | None]
    """Half the length of each score's error bar; None: no bar."""


def plot_scores(
    points: Sequence[Point],
    tasks: Sequence[str],
    x_title: str,
    out_png: str | os.PathLike,
    *,
    levels: Sequence[Point] = (),
    joined: bool = False,
) -> Path:
    """Headline scores of ``tasks`` over ``x``, one panel each, as PNG, PDF or SVG.

    ``levels``: things without an x, drawn as lines across. ``joined``: the points are steps of one quantity that doubles, so
    they share a colour and a line, and x is logarithmic; otherwise each has a colour and its name in the legend.
    """
    columns = min(len(tasks), 4)
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.7 * columns + 1.4, 3.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    ordered = sorted(points, key=lambda point: point.x)
    for axes, task in zip(panels, tasks, strict=False):
        groups = [("", ordered)] if joined else [(point.name, [point]) for point in points]
        for (name, group), tint in zip(groups, cycle(TINTS)):
            shown = [(point, y) for point in group if (y := point.scores.get(task)) is not None]
            if shown:
                bars = [point.spreads.get(task) or 0.0 for point, _ in shown]
                axes.errorbar(
                    [point.x for point, _ in shown], [y for _, y in shown], bars,
                    fmt="o-", color=tint, capsize=2, ms=5, lw=1.2, label=name or None,
                )  # fmt: skip
        for level, style in zip(levels, cycle(("--", ":", "-."))):
            if (y := level.scores.get(task)) is not None:
                axes.axhline(y, color="0.4", lw=1, ls=style, label=level.name)
        record = TASKS[task]
        arrow = "higher" if record.higher_is_better else "lower"
        figures = f"{record.score} ({record.unit}), {arrow} is better".replace(" ()", "")
        axes.set(xlabel=x_title, title=f"{record.title}\n{figures}")
        axes.title.set_fontsize(9)
        axes.locator_params(axis="x", nbins=4)
        if joined:
            marks = sorted({point.x for point in ordered})
            axes.set_xscale("log", base=2)
            axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    named = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(list(named.values()), list(named), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, Path(out_png))


def save_figure(figure: Figure, out: Path) -> Path:
    """``figure`` as PNG, PDF or SVG by the end of ``out``, written whole or not at all."""
    check_picture(out)
    _draw_as_written(figure)
    drawn, kind = BytesIO(), out.suffix.lower()[1:]
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)  # the same figure, the same file
    figure.savefig(drawn, format=kind, dpi=130, metadata=undated)
    replace_bytes(out, drawn.getvalue())
    return out


LONGEST_NAME = 40
"""Letters of a class's name in a figure: longer ones leave no room for it."""


def _draw_as_written(figure: Figure) -> None:
    """Have every text drawn as it is, but for the powers of ten at logarithmic axes, with fonts that have its letters.

    Titles and names may be anybody's, and between two ``$`` matplotlib reads a formula.
    """
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis) if axis.get_scale() == "log"]
    ticks = [tick for axis in axes for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
    powers = {text for tick in ticks for text in (tick.label1, tick.label2)}
    named = [label for panel in figure.axes for axis in (panel.xaxis, panel.yaxis) for label in axis.get_ticklabels()]
    texts = [*figure.findobj(Text), *named]
    families = families_for("".join(text.get_text() for text in texts))
    for text in texts:
        if text not in powers:
            text.set_parse_math(False)
            if families:
                text.set_fontfamily(families)


MOST_STEPS = 10**12
"""More are no steps of a run."""
LARGEST = 1e30
"""Of what is drawn: the ticks of an axis of larger numbers cannot be counted."""


def _read_series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and the values of each key, in the order of the steps."""
    found: dict[str, dict[int, float]] = {}
    try:
        for entry, _ in json_lines(path, finite=False):
            step = entry.get("step") if isinstance(entry, dict) else None
            if not isinstance(step, int) or not 0 <= step < MOST_STEPS:
                continue
            for key, value in entry.items():
                if key != "step" and isinstance(value, int | float) and not abs(value) > LARGEST:
                    found.setdefault(key, {})[step] = value
    except OSError as error:
        raise MistakeError(
            f"{path}: cannot be read ({message_of(error)}); expected the metrics.jsonl of a run"
        ) from error
    return {key: (sorted(values), [values[s] for s in sorted(values)]) for key, values in found.items()}
