"""How much predictions flicker along a camera path, with and without smoothing, and what smoothing costs in accuracy.

    python benchmarks/flicker.py [--model scenes] [--paths 12] [--frames 30] [--motions pan dolly orbit hand]
                                 [--context 0.5 0.8 0.95] [--outputs 0.3 0.5 0.8]
    python benchmarks/flicker.py --model nyud --root NYUDV2_FOLDER --paths 8 --frames 20

A path is a generated room seen by a moving camera, or, with --root, a window that a photo of the validation split is panned
under by two pixels a frame. Every pixel of a frame is looked up where the frame before shows the same point, by the exact
depth and poses; pixels without one, hidden or outside, do not count, nor those whose nearest pixel there has another class.
Flicker is the mean change over what remains:

- depth: |d - d'| over the mean of both, d' the depth before, times what the camera's motion makes of this point's depth;
- normals: the angle to the normal before, turned with the camera;
- classes: the share of pixels whose class is another one.

The first row is that of the exact labels: what resampling alone makes. Accuracy is against the exact labels of every frame;
photos have no labels of normals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mtlsi.data.readers.nyud_any import open_nyud
from mtlsi.data.scenes.moves import MOTIONS
from mtlsi.data.scenes.path import ScenePath, seen_from, visible_in
from mtlsi.model.network import MTLSINet
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.smoothing import Smoothed
from mtlsi.timing import describe_machine

TASKS = ("semseg", "depth", "normals")
PAN_PIXELS = 2
Maps = dict[str, NDArray]
"""By task: classes (H W), metres (H W), unit normals (H W 3)."""


@dataclass(frozen=True)
class Before:
    """Where the frame before shows the points of a frame."""

    columns: NDArray
    rows: NDArray
    visible: NDArray
    depth_ratio: NDArray
    """A point's depth now over its depth then."""
    turn: NDArray
    """From the axes of the camera then to those now (3 3)."""


@dataclass(frozen=True)
class Frame:
    """An image, its labels, and where the frame before has its points; None for a clip's first."""

    image: NDArray
    labels: Maps
    before: Before | None


@dataclass
class Sums:
    """What is added up over the frames of all clips."""

    changes: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {task: [] for task in TASKS})
    squares: list[tuple[float, int]] = field(default_factory=list)
    angles: list[tuple[float, int]] = field(default_factory=list)
    confusion: NDArray = field(default_factory=lambda: np.zeros((256, 256), np.int64))

    def add_flicker(self, now: Maps, then: Maps, before: Before) -> None:
        """The changes from a frame to the next."""
        for task, change in flicker(now, then, before).items():
            self.changes[task].append((float(change.sum()), change.size))

    def add_errors(self, found: Maps, labels: Maps) -> None:
        """The errors of a frame."""
        valid = labels["depth"] > 0
        self.squares.append((float(((found["depth"] - labels["depth"])[valid] ** 2).sum()), int(valid.sum())))
        known = labels["semseg"] < 255
        pairs = 256 * labels["semseg"][known].astype(np.int64) + found["semseg"][known]
        self.confusion += np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        if "normals" in labels:
            angles = degrees_between(found["normals"], labels["normals"])
            self.angles.append((float(angles.sum()), angles.size))

    def row(self) -> str:
        """The cells of a line of the table."""
        depth, normals, classes = (mean(self.changes[task]) for task in ("depth", "normals", "semseg"))
        hits = np.diagonal(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        there = self.confusion.sum(1) > 0
        angles = f"{mean(self.angles):.2f}" if self.angles else "-"
        return (
            f"{100 * depth:.2f} % | {normals:.2f}° | {100 * classes:.2f} % | {mean(self.squares) ** 0.5:.3f} | "
            f"{100 * (hits[there] / union[there]).mean():.2f} | {angles}"
        )


def mean(parts: list[tuple[float, int]]) -> float:
    """Of sums and counts."""
    return sum(total for total, _ in parts) / max(1, sum(count for _, count in parts))


def degrees_between(a: NDArray, b: NDArray) -> NDArray:
    """Angles between unit vectors (... 3)."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def flicker(now: Maps, then: Maps, before: Before) -> Maps:
    """By task, the change at each visible pixel: relative, in degrees, 1 for another class."""
    place = before.columns[before.visible], before.rows[before.visible]
    column, row = (np.rint(x).astype(np.int64) for x in place)
    expected = bilinear(then["depth"], *place) * before.depth_ratio[before.visible]
    depth = now["depth"][before.visible]
    normal = bilinear(then["normals"], *place) @ before.turn.T
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    return {
        "depth": np.abs(depth - expected) / np.maximum((depth + expected) / 2, 1e-3),
        "normals": degrees_between(now["normals"][before.visible], normal),
        "semseg": now["semseg"][before.visible] != then["semseg"][row, column],
    }


def bilinear(values: NDArray, columns: NDArray, rows: NDArray) -> NDArray:
    """Values (H W ...) at fractions of pixels (n): (n ...)."""
    left, top = columns.astype(np.int64), rows.astype(np.int64)
    right, bottom = (np.minimum(x + 1, size - 1) for x, size in zip((left, top), values.shape[1::-1], strict=True))
    shape = (-1, *(1,) * (values.ndim - 2))
    across, down = (columns - left).reshape(shape), (rows - top).reshape(shape)
    upper = values[top, left] * (1 - across) + values[top, right] * across
    return upper * (1 - down) + (values[bottom, left] * (1 - across) + values[bottom, right] * across) * down


def scene_clip(path: ScenePath, num_frames: int) -> list[Frame]:
    """The frames of a camera path."""
    clip: list[Frame] = []
    for number in range(num_frames):
        sample = path.frame(number)
        labels = {**{task: sample[task] for task in TASKS}, "normals": sample["normals"].transpose(1, 2, 0)}
        before = before_of(path, number, labels, clip[-1].labels) if clip else None
        clip.append(Frame(sample["image"], labels, before))
    return clip


def before_of(path: ScenePath, number: int, labels: Maps, labels_before: Maps) -> Before:
    """Where frame ``number - 1`` of a path shows the points of frame ``number``."""
    pose, pose_before = path.pose(number), path.pose(number - 1)
    columns, rows, depths = seen_from(labels["depth"].astype(np.float64), pose, pose_before, path.intrinsics)
    visible = visible_in(columns, rows, depths, labels_before["depth"])
    column, row = (np.rint(np.where(visible, x, 0)).astype(np.int64) for x in (columns, rows))
    visible &= labels_before["semseg"][row, column] == labels["semseg"]
    return Before(columns, rows, visible, labels["depth"] / depths, pose[:3, :3].T @ pose_before[:3, :3])


def photo_clip(image: NDArray, labels: Maps, num_frames: int) -> list[Frame]:
    """A window that moves over a photo, ``PAN_PIXELS`` to the right a frame."""
    height, width = image.shape[0], image.shape[1] - PAN_PIXELS * (num_frames - 1)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    inside = columns + PAN_PIXELS < width
    before = Before(columns + PAN_PIXELS, rows, inside, np.ones((height, width)), np.eye(3))
    windows = [slice(PAN_PIXELS * number, PAN_PIXELS * number + width) for number in range(num_frames)]
    return [
        Frame(image[:, seen], {task: label[:, seen] for task, label in labels.items()}, before if number else None)
        for number, seen in enumerate(windows)
    ]


def clips_of(given: argparse.Namespace) -> Iterator[list[Frame]]:
    """The clips that are asked for, one at a time."""
    if given.root is None:
        for number in range(given.paths):
            motion = given.motions[number % len(given.motions)]
            index = given.first + number // len(given.motions)
            yield scene_clip(ScenePath(index, motion=motion, size_hw=tuple(given.size)), given.frames)
        return
    photos = open_nyud(given.root, "val", tasks=("semseg", "depth"))
    for number in range(given.paths):
        sample = photos[number * len(photos) // given.paths]
        labels = {"semseg": sample["semseg"].numpy(), "depth": np.nan_to_num(sample["depth"].numpy())}
        yield photo_clip(sample["image"].permute(1, 2, 0).numpy(), labels, given.frames)


def measure(clip: list[Frame], predict: Callable[[Frame], Maps], sums: Sums) -> None:
    """Adds what a clip's predictions come to."""
    then: Maps = {}
    for frame in clip:
        now = predict(frame)
        if frame.before is not None:
            sums.add_flicker(now, then, frame.before)
        sums.add_errors(now, frame.labels)
        then = now


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--root", type=Path, help="photos: a folder of NYUDv2")
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, default=list(MOTIONS))
    parser.add_argument("--first", type=int, default=10**6, help="number of the first scene")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--context", type=float, nargs="*", default=(0.5, 0.8, 0.95))
    parser.add_argument("--outputs", type=float, nargs="*", default=(0.3, 0.5, 0.8))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    predictor = Predictor(MTLSINet.from_pretrained(given.model), device="cpu")
    shares = [(0.0, 0.0), *((a, 0.0) for a in given.context), *((0.0, a) for a in given.outputs)]
    rows = {share: (Smoothed(predictor, context=share[0], outputs=share[1]), Sums()) for share in shares}
    exact = Sums()
    for clip in clips_of(given):
        if given.root is None:
            measure(clip, lambda frame: frame.labels, exact)
        for smoothed, sums in rows.values():
            smoothed.reset()
            measure(clip, lambda frame, smoothed=smoothed: smoothed(frame.image, TASKS), sums)
    what = f"{given.paths} photos" if given.root else f"{given.paths} paths ({', '.join(given.motions)})"
    print(f"{given.model}, {what}, {given.frames} frames each; {describe_machine(torch.device('cpu'))}")
    print(
        "| context | outputs | depth | normals | classes | RMSE, m | mIoU | mErr, ° |\n|---|---|---|---|---|---|---|---|"
    )
    if given.root is None:
        print(f"| exact labels | | {exact.row()} |")
    for (context, outputs), (_, sums) in rows.items():
        print(f"| {context:g} | {outputs:g} | {sums.row()} |")


if __name__ == "__main__":
    main()
