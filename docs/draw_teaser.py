"""Draws docs/teaser.png: what the packaged model predicts on generated rooms.

    python docs/draw_teaser.py [--out docs/teaser.png] [--scenes 1000246 1000236 1000298]

The model was trained on photographs of NYUDv2 and has never seen a generated room. The three rooms were picked by hand
among 400, from the tenth in which the predictions of `nyud-mobilenetv2` agree best with the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from scipy import ndimage

from mtlsi import MTLSINet, Predictor, kinds
from mtlsi.data.scenes.dataset import render_scene

SCENES = (1000246, 1000236, 1000298)
SIZE_HW = (360, 480)
HEADINGS = {"semseg": "segmentation", "depth": "depth", "normals": "surface normals", "boundary": "boundaries"}
SMALLEST_NAMED = 0.02
"""The smallest fraction of the image that a region must cover to have its name written on it."""


def main() -> None:
    """Predicts, draws and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("teaser.png"))
    parser.add_argument("--scenes", type=int, nargs="+", default=SCENES)
    options = parser.parse_args()
    model = MTLSINet.from_pretrained("nyud")
    predictor = Predictor(model)
    images = [render_scene(index, size_hw=SIZE_HW)["image"] for index in options.scenes]
    predictions = [predictor(image) for image in images]
    draw(images, predictions, model.classes["semseg"]).savefig(options.out, dpi=85)


def draw(
    images: Sequence[np.ndarray], predictions: Sequence[dict[str, np.ndarray]], names: Sequence[str]
) -> plt.Figure:
    """One row per image (H W 3): the image and its prediction for each task of ``HEADINGS``."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10})
    rows, columns = len(images), 1 + len(HEADINGS)
    figure, grid = plt.subplots(rows, columns, figsize=(15.0, 2.26 * rows + 0.8), squeeze=False)
    figure.subplots_adjust(
        left=0.004, right=0.996, top=1 - 0.34 / (2.26 * rows + 0.8), bottom=0.05, wspace=0.02, hspace=0.03
    )
    limits = kinds.of("depth").limits(*(prediction["depth"] for prediction in predictions))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, heading in zip(grid[0], ("image", *HEADINGS.values()), strict=True):
        axes.set_title(heading, fontsize=14, pad=6)
    for row, image, prediction in zip(grid, images, predictions, strict=True):
        row[0].imshow(image)
        for axes, task in zip(row[1:], HEADINGS, strict=True):
            axes.imshow(kinds.of(task).colours(prediction[task], limits), interpolation="bilinear")
        write_names(row[1], prediction["semseg"], names)
    add_depth_scale(figure, grid[-1, 2], limits)
    add_note(figure, grid[-1, 3], "red right · green up · blue towards the camera")
    return figure


def write_names(axes: Axes, classes: np.ndarray, names: Sequence[str]) -> None:
    """Writes each class's name at the innermost pixel of its largest region in ``classes`` (H W)."""
    for label in np.unique(classes):
        regions, _ = ndimage.label(classes == label)
        areas = np.bincount(regions.ravel())[1:]
        if areas.max() < SMALLEST_NAMED * classes.size:
            continue
        depth_inside = ndimage.distance_transform_edt(np.pad(regions == areas.argmax() + 1, 1))
        y, x = np.unravel_index(depth_inside.argmax(), depth_inside.shape)
        margin = 5.5 * len(names[label])  # half of the name, so that it stays inside the tile
        x = np.clip(x, margin, classes.shape[1] - margin)
        axes.text(x, y, names[label], color="white", ha="center", va="center").set_path_effects(
            [withStroke(linewidth=2, foreground="#202124")]
        )


def add_depth_scale(figure: plt.Figure, above: Axes, limits: tuple[float, float]) -> None:
    """A colour bar in metres below ``above``."""
    place = above.get_position()
    bar = figure.add_axes((place.x0 + 0.015, place.y0 - 0.022, place.width - 0.03, 0.011))
    scale = plt.cm.ScalarMappable(Normalize(*limits), "turbo")
    figure.colorbar(scale, cax=bar, orientation="horizontal", format="{x:.0f} m", ticks=np.arange(1, limits[1]))
    bar.tick_params(length=2, pad=2)
    bar.spines[:].set_visible(False)


def add_note(figure: plt.Figure, above: Axes, text: str) -> None:
    """A line of text below ``above``."""
    place = above.get_position()
    figure.text((place.x0 + place.x1) / 2, place.y0 - 0.012, text, ha="center", va="top", fontsize=9)


if __name__ == "__main__":
    main()
