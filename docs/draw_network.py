"""Draws docs/network.svg: the network of ``mtlsi.model.network`` from the image to the predictions, with shapes.

python docs/draw_network.py [--out docs/network.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, FAINT, PAPER = "#202124", "#6e7176", "#ffffff"
LINEAR, PLAIN = "#e8f0fe", "#f3f4f6"
TASKS = ("#4c78a8", "#e08a3c", "#54a06b", "#b25d8d")
"""One colour per task: segmentation, depth, normals, boundaries."""
ROW = 3.0
"""Height of the row of boxes, at its middle."""

CONTEXT = r"one context $\Sigma\, \phi(k)\, v^{\!\top}$"
LEGEND = "   ".join(
    (
        "b batch",
        "t task",
        "c channel",
        "h w map at the decoder's stride",
        "n = h·w positions",
        "k tokens",
        "o outputs",
        "shaded: the paper's three parts, each linear in n",
    )
)
BOXES = (
    # left, width, title, lines, fill
    (1.65, 2.2, "backbone", ("any network", "of timm,", "four maps"), PLAIN),
    (4.6, 2.3, "preliminary", ("one decoder", "per task merges", "the four maps"), PLAIN),
    (8.45, 2.85, "MT-MQLFB", ("queries of kernels", "1, 3, 5 across tasks;", CONTEXT), LINEAR),
    (12.85, 2.85, "distiller", ("$A =$ softmax$_k($MLP$(F))$", "tokens $=$", r"LN$(A^{\!\top} F/n)$"), LINEAR),
    (17.05, 2.5, "CWIB", ("attention in", "windows and to", "tokens; MLPs"), LINEAR),
    (21.1, 1.8, "heads", ("one per task,", "at stride 4"), PLAIN),
)  # fmt: skip


def main() -> None:
    """Draws and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("network.svg"))
    options = parser.parse_args()
    # a fixed salt and no date: the same drawing gives the same file
    plt.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans", "svg.hashsalt": "mtlsi"})
    draw().savefig(options.out, facecolor=PAPER, metadata={"Date": None} if options.out.suffix == ".svg" else None)


def draw() -> plt.Figure:
    """The figure: boxes are modules, what stands between them is what they hand on."""
    figure, axes = plt.subplots(figsize=(13, 3.3))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, 25), ylim=(-0.1, 5.2))
    axes.set_axis_off()
    for left, width, title, lines, fill in BOXES:
        module(axes, left, width, title, lines, fill)
    edges = [(left, left + width) for left, width, *_ in BOXES]

    image(axes, 0.7)
    arrow(axes, 1.25, edges[0][0])
    pyramid_arrows(axes, edges[0][1], edges[1][0])
    between(axes, edges[1][1], edges[2][0], "features", "b t c h w")
    between(axes, edges[2][1], edges[3][0], "fused F", "b t n c")
    tokens(axes, 16.32, "tokens", "b t k c")
    arrow(axes, edges[3][1], 15.9)
    arrow(axes, 16.72, edges[4][0])
    between(axes, edges[4][1], edges[5][0], "refined", "b t c h w")
    arrow(axes, edges[5][1], 23.35)
    stacked_maps(axes, 24.05, "predictions", "b o H W", size=0.9)

    # the CWIB works on the preliminary features, which the fusion does not replace
    detour(axes, 7.6, edges[4][0] + 1.25, 4.65, "the features, cut into windows")
    detour(
        axes, edges[0][0] + 1.05, edges[5][0] + 0.87, 0.68, "the map of stride 4, where the decoder works at stride 8"
    )
    coarse(axes, (edges[1][0] + edges[1][1]) / 2, edges[2][0] + 1.4)
    axes.text(12.5, 0.1, LEGEND, ha="center", va="bottom", fontsize=9, color=FAINT)
    return figure


def module(axes: Axes, left: float, width: float, title: str, lines: tuple[str, ...], fill: str) -> None:
    """A rounded box with a title and a few lines of what it does."""
    height = 2.1
    box = FancyBboxPatch(
        (left, ROW - height / 2), width, height, "round,pad=0,rounding_size=0.18", fc=fill, ec=INK, lw=1.1
    )
    axes.add_patch(box)
    middle = left + width / 2
    axes.text(middle, ROW + 0.68, title, ha="center", va="center", fontsize=11.5, weight="bold", color=INK)
    for number, line in enumerate(lines):
        axes.text(middle, ROW + 0.17 - 0.42 * number, line, ha="center", va="center", fontsize=8.8, color=INK)


def caption(axes: Axes, x: float, top: float, name: str, shape: str) -> None:
    """The name and the shape of a tensor, below its drawing."""
    axes.text(x, top, name, ha="center", va="top", fontsize=10, color=INK)
    axes.text(x, top - 0.36, shape, ha="center", va="top", fontsize=9, color=FAINT, family="DejaVu Sans Mono")


def image(axes: Axes, x: float) -> None:
    """The input, three colour planes."""
    for step, colour in enumerate(("#c0504d", "#6aa84f", "#4a7fc1")):
        offset = 0.1 * (1 - step)
        axes.add_patch(Rectangle((x - 0.42 + offset, ROW - 0.4 + offset), 0.8, 0.8, fc=colour, ec=PAPER, lw=1.2))
    caption(axes, x, ROW - 0.68, "image", "b 3 H W")


def stacked_maps(axes: Axes, x: float, name: str, shape: str, size: float = 0.72) -> None:
    """One map per task, one behind the other."""
    for step, colour in enumerate(reversed(TASKS)):
        offset = 0.11 * (1.5 - step)
        corner = (x - size / 2 + offset, ROW - size / 2 + offset)
        axes.add_patch(Rectangle(corner, size, size, fc=colour, ec=PAPER, lw=1.2))
    caption(axes, x, ROW - size / 2 - 0.3, name, shape)


def between(axes: Axes, start: float, end: float, name: str, shape: str) -> None:
    """Maps that one box hands to the next, with the two arrows."""
    middle = (start + end) / 2
    stacked_maps(axes, middle, name, shape)
    arrow(axes, start, middle - 0.52)
    arrow(axes, middle + 0.52, end)


def tokens(axes: Axes, x: float, name: str, shape: str) -> None:
    """A column of tokens per task."""
    for column, colour in enumerate(TASKS):
        for row in range(4):
            corner = (x - 0.4 + 0.2 * column, ROW - 0.4 + 0.2 * row)
            axes.add_patch(Rectangle(corner, 0.17, 0.17, fc=colour, ec=PAPER, lw=0.5))
    caption(axes, x, ROW - 0.66, name, shape)


def arrow(axes: Axes, start: float, end: float, y: float = ROW) -> None:
    """A straight arrow along the row."""
    arrow_between(axes, (start + 0.04, y), (end - 0.04, y))


def arrow_between(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A straight arrow between two points."""
    head = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=INK, lw=1.1, **head))


def pyramid_arrows(axes: Axes, start: float, end: float) -> None:
    """Four arrows, one for each map of the backbone."""
    for step, stride in enumerate((4, 8, 16, 32)):
        y = ROW + 0.6 - 0.4 * step
        arrow(axes, start, end, y)
        axes.text((start + end) / 2 - 0.05, y + 0.04, f"/{stride}", ha="center", va="bottom", fontsize=8, color=FAINT)


def detour(axes: Axes, start: float, end: float, y: float, text: str) -> None:
    """A line that leaves the row at ``start``, runs at height ``y`` and comes back with an arrow at ``end``."""
    above = y > ROW
    leave = ROW + (0.62 if above else -1.05)
    back = ROW + (1.05 if above else -1.05)
    axes.plot((start, start, end), (leave, y, y), color=INK, lw=1.1, solid_joinstyle="round")
    arrow_between(axes, (end, y), (end, back))
    axes.text((start + end) / 2, y + 0.09, text, ha="center", va="bottom", fontsize=9.5, color=INK)


def coarse(axes: Axes, start: float, end: float) -> None:
    """The coarse predictions: they are trained too, and the fusion reads them."""
    y = 1.45
    axes.plot((start, start, end), (ROW - 1.05, y, y), color=INK, lw=1.1, solid_joinstyle="round")
    arrow_between(axes, (end, y), (end, ROW - 1.05))
    axes.text(
        (start + end) / 2, y - 0.09, "coarse predictions, trained too", ha="center", va="top", fontsize=9.5, color=INK
    )


if __name__ == "__main__":
    main()
