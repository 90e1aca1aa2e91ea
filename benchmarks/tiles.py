"""Large images in tiles: scores on labelled images, and of one large photo the memory, the time and the seams.

    python benchmarks/tiles.py scores [nyud] --data nyud --root DIR [--tiles 2x2] [--limit 72] [--tasks depth,normals]
    python benchmarks/tiles.py scores scenes --data scenes --size 960 1280 [--tiles auto] [--limit 12]
    python benchmarks/tiles.py photo PHOTO [--model nyud] [--size 4000 6000] [--tiles auto]

scores: every task from the whole image, from blended tiles alone (metres times the magnification), from tiles and the whole
image half and half, and as TiledPredictor puts them together.

photo: the photo is upsampled to the size, noise of three grains added, and `mtlsi predict` run on it as a process of its
own, whose largest memory is printed. A seam is how much more a prediction changes where tiles begin, end or meet, over a
grid cell of the network, than elsewhere. Beside it the same for tiles that are cut where they meet and not made consistent,
and for the whole image, which has no seams: what its row says is in the photo. Of classes the change is the share of pixels
that change.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import torch
from exported import pixels_of
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mtlsi import MTLSINet, kinds
from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.data.scenes.dataset import Scenes
from mtlsi.metrics import MetricSettings, build_metric
from mtlsi.prediction import tiles
from mtlsi.prediction.tiles import Mixture, TiledPredictor, grid_of
from mtlsi.tasks import TASKS, num_channels

WAYS: dict[str, Mapping[str, Mixture]] = {
    "whole image": dict.fromkeys(tiles.MIXTURES, Mixture(0)),
    "tiles alone": dict.fromkeys(tiles.MIXTURES, Mixture(1)),
    "half and half": dict.fromkeys(tiles.MIXTURES, Mixture(0.5)),
    "default": dict(tiles.MIXTURES),
}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    scored = verbs.add_parser("scores")
    scored.add_argument("model", nargs="?", default="nyud")
    scored.add_argument("--data", default="nyud")
    scored.add_argument("--root")
    scored.add_argument("--size", type=int, nargs=2, default=(960, 1280), help="of scenes")
    scored.add_argument("--tiles", default="auto")
    scored.add_argument("--limit", type=int, default=72)
    scored.add_argument("--tasks")
    scored.set_defaults(run=print_scores)
    large = verbs.add_parser("photo")
    large.add_argument("photo", type=Path)
    large.add_argument("--model", default="nyud")
    large.add_argument("--size", type=int, nargs=2, default=(4000, 6000))
    large.add_argument("--tiles", default="auto")
    large.set_defaults(run=print_photo)
    options = parser.parse_args()
    options.run(options)


@contextmanager
def put_together(way: str) -> Iterator[None]:
    """Tiles are put together in this way."""
    with patch.object(tiles, "MIXTURES", WAYS[way]):
        yield


def print_scores(options: argparse.Namespace) -> None:
    """A row of scores for each way."""
    predictor = TiledPredictor(MTLSINet.from_pretrained(options.model), options.tiles, device="cpu")
    dataset = _dataset(options)
    names = options.tasks.split(",") if options.tasks else predictor.tasks
    tasks = tuple(task for task in names if task in dataset.tasks)
    meters = {way: {task: _meter(task, dataset) for task in tasks} for way in WAYS}
    indices = spread(options.limit, len(dataset))
    for index in indices:
        sample = dataset[index]
        pixels = pixels_of(sample)
        for way, row in meters.items():
            with put_together(way):
                predicted = predictor(pixels, tasks)
            for task, meter in row.items():
                found, label = torch.from_numpy(predicted[task])[None], sample[task][None]
                meter.update(found.movedim(-1, 1) if found.dim() == 4 else found, label, kinds.of(task).valid(label))
    table = Table(f"{len(indices)} images, tiles {options.tiles}", *(f"{task} {TASKS[task].score}" for task in tasks))
    for way, row in meters.items():
        table.add_row(way, *(f"{float(meter.compute()[TASKS[task].score]):.3f}" for task, meter in row.items()))
    Console().print(table)


def _dataset(options: argparse.Namespace) -> LabelledImages:
    if options.data == "scenes":
        return Scenes(options.limit, size_hw=tuple(options.size), label_set="all", first_index=10**6)
    return open_dataset(DataConfig(name=options.data, root=options.root), "val")


def _meter(task: str, dataset: LabelledImages):
    classes = num_channels(task, dataset.classes) if TASKS[task].kind == "classes" else None
    return build_metric(TASKS[task], MetricSettings(num_classes=classes, boundary_tolerance=dataset.boundary_tolerance))


def print_photo(options: argparse.Namespace) -> None:
    """Memory and time of the command, and a row of seams for each way."""
    pixels, console = enlarged(options.photo, tuple(options.size)), Console()
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(pixels).save(path := Path(folder, "large.jpg"), quality=92)
        command = [sys.executable, "-m", "mtlsi", "predict", str(path), "--out", f"{folder}/out", "--device", "cpu"]
        begun = perf_counter()
        subprocess.run([*command, "--model", options.model, "--tiles", options.tiles], check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        console.print(
            f"mtlsi predict --tiles {options.tiles}: at most {used.ru_maxrss / 2**20:.2f} GiB, "
            f"{perf_counter() - begun:.0f} s on the clock, {used.ru_utime + used.ru_stime:.0f} s of CPU"
        )
    predictor = TiledPredictor(MTLSINet.from_pretrained(options.model), options.tiles, device="cpu")
    size_hw = (pixels.shape[0], pixels.shape[1])
    grid = grid_of(size_hw, predictor.shown, predictor.tiles)
    if grid is None:
        console.print("no tiles: the network sees all that the image has")
        return
    console.print(f"{len(grid.tops)}x{len(grid.lefts)} tiles of {grid.tile_hw}, a canvas of {grid.canvas_hw}")
    table = Table("seams", *predictor.tasks)
    with put_together("tiles alone"), patch.object(tiles, "weights", cut_where_they_meet):
        table.add_row("cut tiles", *_seams(predictor(pixels), grid))
    for way in ("tiles alone", "default", "whole image"):
        with put_together(way):
            table.add_row(way, *_seams(predictor(pixels), grid))
    console.print(table)


def enlarged(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """A photo at another size, with detail of its own: noise of three grains."""
    height, width = size_hw
    large = np.asarray(Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.int16)
    draw = np.random.default_rng(0)
    for grain in (1, 4, 16):
        noise = draw.normal(0, 6, (height // grain, width // grain)).astype(np.float32)
        large = large + np.rint(np.asarray(Image.fromarray(noise).resize((width, height)))).astype(np.int16)[..., None]
    return large.clip(0, 255).astype(np.uint8)


def cut_where_they_meet(starts: tuple[int, ...], side: int) -> Tensor:
    """Weights of one for the tile whose ends are farthest, of zero for all others."""
    blended = tiles_weights(starts, side)
    return torch.nn.functional.one_hot(blended.max(0).indices, len(starts)).T.to(blended)


tiles_weights = tiles.weights


def _seams(predicted: Mapping[str, np.ndarray], grid: tiles.Grid) -> list[str]:
    return [f"{seam(array, grid):.2f}" for array in predicted.values()]


def seam(array: np.ndarray, grid: tiles.Grid) -> float:
    """The mean change across the places where tiles begin, end or meet, over the mean change elsewhere."""
    there, elsewhere = [], []
    for axis, starts, side in ((0, grid.tops, grid.tile_hw[0]), (1, grid.lefts, grid.tile_hw[1])):
        scale = array.shape[axis] / (starts[-1] + side)
        cell = max(1, round(4 * scale / 2))
        lines = np.ascontiguousarray(np.moveaxis(array, axis, 0)[:, ::8])  # enough, and much quicker
        at = np.arange(cell, len(lines) - cell)
        change = np.array([_change(lines[i - cell], lines[i + cell]) for i in at])
        ends = {*starts[1:], *(start + side for start in starts[:-1])}
        ends |= {(left + right + side) / 2 for left, right in pairwise(starts)}
        near = (np.abs(at[:, None] - np.array([end * scale for end in ends])) <= cell).any(1)
        there.append(change[near])
        elsewhere.append(change[~near])
    return float(np.concatenate(there).mean() / np.concatenate(elsewhere).mean())


def _change(one: np.ndarray, other: np.ndarray) -> float:
    if one.dtype.kind == "f":
        return float(np.abs(one - other).mean())
    return float((one != other).mean())


if __name__ == "__main__":
    main()
