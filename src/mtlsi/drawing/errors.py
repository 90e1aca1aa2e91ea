"""Errors for people: by class, by distance or value, by angle."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtlsi.drawing.plots import LONGEST_NAME, save_figure
from mtlsi.errors import clipped

MOST_CLASSES = 60
BLUE, RED, GREY = "#2b6cb0", "#c53030", "0.6"
LEAST_SHARE = 1e-3
"""In percent: where the axis of the shares begins."""


def plot_class_scores(
    ious: Sequence[float],
    pixels: Sequence[int],
    classes: Sequence[str],
    out: str | os.PathLike,
    *,
    title: str = "",
) -> Path:
    """A bar for each class with its IoU in percent, the best on top, and its share of the labelled ``pixels`` beside it.

    A class that is neither labelled nor predicted has no IoU (NaN): it stands at the end, with a dash. Of more than
    ``MOST_CLASSES`` those with the most labelled pixels are drawn. As PNG, PDF or SVG.
    """
    values, counts = np.asarray(ious, np.float64), np.asarray(pixels, np.float64)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    order = sorted(chosen, key=lambda i: (math.isnan(values[i]), -np.nan_to_num(values[i]), -counts[i]))
    shares = 100 * counts / max(counts.sum(), 1)
    rows, names = np.arange(len(order)), [clipped(classes[int(i)], LONGEST_NAME) for i in order]
    figure = Figure(figsize=(7.4, 1.1 + 0.2 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    found = [0.0 if math.isnan(values[i]) else values[i] for i in order]
    left.barh(rows, found, color=BLUE, height=0.72)
    for row, i in enumerate(order):
        said = "–" if math.isnan(values[i]) else f"{values[i]:.1f}"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # over the line of the mean
        left.text(found[row] + 1, row, said, va="center", fontsize=7.5, color="0.15", bbox=paper)
        if not counts[i]:
            right.text(1.3 * LEAST_SHARE, row, "none", va="center", fontsize=7.5, color="0.45")
    mean = np.nanmean(values) if np.isfinite(values).any() else math.nan
    if math.isfinite(mean):
        left.axvline(mean, color=RED, lw=1, ls="--", label=f"mean {mean:.1f}", zorder=0)
        left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set_yticks(rows, names, fontsize=8)
    left.set(xlim=(0, 109), ylim=(len(order) - 0.5, -0.5), xlabel="IoU (%)")
    left.set_xticks(range(0, 101, 20))
    lengths = [max(shares[i] - LEAST_SHARE, 0.0) for i in order]
    right.barh(rows, lengths, color=GREY, height=0.72, left=LEAST_SHARE)
    right.set(xscale="log", xlim=(LEAST_SHARE, 100), xlabel="share of labelled pixels (%)")
    right.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    few = "" if len(order) == len(classes) else f", the {len(order)} most frequent of {len(classes)} classes"
    figure.suptitle(f"{title}: IoU by class{few}".lstrip(": "), fontsize=11)
    _tidy(left, right)
    return save_figure(figure, Path(out))


def plot_errors_by_value(
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[float]]],
    pixels: Sequence[int],
    out: str | os.PathLike,
    *,
    quantity: str,
    title: str = "",
) -> Path:
    """Errors over bins of the label, one panel each of ``series`` (its title and n values), and the bins' shares of pixels.

    ``edges`` (n + 1), ``pixels`` (n); ``quantity`` names the axis of the labels. A NaN leaves a gap. PNG, PDF or SVG.
    """
    heights = [1.0] * len(series) + [0.6]
    figure = Figure(figsize=(6.6, 1.2 + 1.7 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    for axes, (name, values) in zip(panels, series, strict=False):
        axes.stairs(values, edges, fill=True, color=BLUE, alpha=0.25)
        axes.stairs(values, edges, color=BLUE, lw=1.6)
        axes.set(ylabel=name)
        axes.set_ylim(bottom=0)
    shares = 100 * np.asarray(pixels, np.float64) / max(np.sum(pixels), 1)
    panels[-1].stairs(shares, edges, fill=True, color=GREY)
    panels[-1].set(ylabel="pixels (%)", xlabel=quantity, xlim=(edges[0], edges[-1]))
    panels[0].set_title(title, fontsize=11)
    figure.align_ylabels(panels)
    _tidy(*panels)
    for axes in panels:
        axes.grid(axis="y", alpha=0.25)
    return save_figure(figure, Path(out))


def plot_angles(
    histogram: Sequence[int],
    out: str | os.PathLike,
    *,
    within: Sequence[tuple[float, float]],
    mean_deg: float,
    median_deg: float,
    title: str = "",
) -> Path:
    """How often each angle between prediction and label occurs: ``histogram``, bins that share 0 to 180 degrees evenly.

    ``within``: angles to mark, each with the share of pixels below it in percent. As PNG, PDF or SVG.
    """
    counts = np.asarray(histogram, np.float64)
    width = 180 / len(counts)
    shares, passed = 100 * counts / max(counts.sum(), 1), np.cumsum(counts) / max(counts.sum(), 1)
    end = min(180.0, max(45.0, 5 * math.ceil(width * (np.searchsorted(passed, 0.99) + 1) / 5)))
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = np.linspace(0, 180, len(counts) + 1)
    axes.stairs(shares, edges, fill=True, color=BLUE, alpha=0.3)
    axes.stairs(shares, edges, color=BLUE, lw=1.2)
    for (limit, share), style in zip(within, ("-", "--", ":"), strict=False):
        axes.axvline(limit, color="0.25", lw=1.1, ls=style, label=f"{share:.1f} % below {limit:g}°")
    axes.axvline(median_deg, color="#dd6b20", lw=1.6, label=f"median {median_deg:.1f}°")
    axes.axvline(mean_deg, color=RED, lw=1.6, label=f"mean {mean_deg:.1f}°")
    axes.set(xlim=(0, end), xlabel="error (degrees)", ylabel=f"pixels (% per {width:g}°)")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    _tidy(axes)
    return save_figure(figure, Path(out))


def _tidy(*panels: Any) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=8)
