"""A confusion matrix for people: which class is taken for which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtlsi.drawing.plots import LONGEST_NAME, save_figure
from mtlsi.errors import clipped

CELL_INCHES, WIDEST_INCHES = 0.34, 14.0
SAID_FROM = 0.005
"""Shares below this are left blank."""
LETTER_INCHES = 0.0085
"""Of a name's letter, for each point of its size."""
LEGIBLE = 2.0
"""Points of a cell beside which a name can be read."""


def plot_confusion(
    pixels: Sequence[Sequence[int]], classes: Sequence[str], out: str | os.PathLike, *, title: str = ""
) -> Path:
    """The matrix ``pixels`` (label, prediction) with each label's row in percent of its pixels, as PNG, PDF or SVG.

    A class without a labelled pixel has an empty row, marked by a dash. Up to about fifty classes every cell says its
    number; with more of them the cells are only coloured, and with more than five hundred nothing names the classes.
    """
    counts = np.asarray(pixels, np.float64)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    num_classes = len(classes)
    side = min(WIDEST_INCHES, max(3.0, CELL_INCHES * num_classes))
    points = 72 * side / num_classes
    """Of a cell."""
    named = range(num_classes) if points > LEGIBLE else ()  # names that nobody can read take minutes
    size, names = min(9.0, 0.55 * points), [clipped(classes[i], LONGEST_NAME) for i in named]
    room = max(2.2, 0.9 + LETTER_INCHES * size * max(map(len, names), default=0))
    figure = Figure(figsize=(side + room, side + room), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    between = [i - 0.5 for i in named[1:]]
    axes.hlines(between, -0.5, num_classes - 0.5, color="0.9", lw=0.5)
    axes.vlines(between, -0.5, num_classes - 0.5, color="0.9", lw=0.5)
    axes.set_xticks(named, names, rotation=90, fontsize=size)
    axes.set_yticks(named, [f"{names[i]}{'' if totals[i, 0] else ' –'}" for i in named], fontsize=size)
    axes.tick_params(length=2, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set(xlabel="predicted", ylabel="labelled")
    figure.suptitle(f"{title}: percent of each label's pixels".lstrip(": "), fontsize=11)
    axes.xaxis.set_label_position("top")
    if points > 20:  # two digits are legible
        for row, column in zip(*np.nonzero(shares >= SAID_FROM), strict=True):
            share = shares[row, column]
            ink = "white" if share > 0.55 else "0.15"
            where = {"ha": "center", "va": "center", "in_layout": False}
            axes.text(column, row, f"{100 * share:.0f}", fontsize=0.75 * size, color=ink, **where)
    return save_figure(figure, Path(out))
