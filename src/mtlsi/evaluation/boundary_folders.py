"""Score the boundary maps of any detector, one folder against another: ``mtlsi boundary``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtlsi.data.readers.decoding import decode_grey, decode_mat, decode_npy, edges_npy, edges_png
from mtlsi.errors import MistakeError
from mtlsi.io import check_writable, holds, replace_text
from mtlsi.metrics.boundary.curve import BoundaryCurve
from mtlsi.metrics.boundary.score import count_pairs
from mtlsi.tasks import MAX_DIST, NUM_THRESHOLDS

MAP_SUFFIXES, TRUTH_SUFFIXES = (".png", ".npy"), (".mat", ".png", ".npy")
Pair = tuple[np.ndarray, list[np.ndarray]]
"""A soft map (H W) in 0..1 and the boundaries (H W) bool of each annotator."""


def score_folders(
    predictions: Path,
    truth: Path,
    *,
    max_dist: float = MAX_DIST,
    num_thresholds: int = NUM_THRESHOLDS,
    nms: bool = True,
    thin: bool = True,
    num_workers: int = 2,
    json_path: Path | None = None,
    curve_path: Path | None = None,
    console: Console | None = None,
) -> dict[str, float]:
    """ODS, OIS and AP, in 0..1 as the benchmark prints them, of every image in ``truth``.

    ``predictions`` holds NAME.png (grey, 255: certainly a boundary) or NAME.npy (0..1); ``truth`` holds NAME.mat (BSDS, one
    or more annotators), NAME.png or NAME.npy. ``max_dist``: how far a match may lie, over the image's diagonal. Raises
    ``MistakeError`` where a prediction is missing, sizes differ, or a file cannot be read.
    """
    console = console or Console()
    for path in (json_path, curve_path):
        if path is not None:
            check_writable(path)
    if not 0 < max_dist < 1:
        raise MistakeError(f"--max-dist {max_dist}; expected a fraction of the image's diagonal, such as {MAX_DIST}")
    if num_thresholds < 1 or num_workers < 1:
        raise MistakeError(f"--thresholds {num_thresholds} --workers {num_workers}; expected 1 or more of each")
    pairs = _find_pairs(predictions, truth)
    counts = count_pairs(
        _read(pairs), max_dist=max_dist, num_thresholds=num_thresholds, nms=nms, thin=thin, num_workers=num_workers
    )
    curve = BoundaryCurve.of(list(track(counts, "matching", len(pairs), console=console, transient=True)))
    scores = {"ods": curve.ods, "ois": curve.ois, "ap": curve.ap}
    table = Table(title=f"boundaries of {len(pairs)} images")
    for name in ("ODS", "at threshold", "recall", "precision", "OIS", "AP"):
        table.add_column(name, justify="right")
    cells = (curve.ods, curve.threshold, curve.ods_recall, curve.ods_precision, curve.ois, curve.ap)
    table.add_row(*(f"{cell:.4f}" for cell in cells))
    console.print(table)
    if json_path is not None:
        settings = {
            "images": len(pairs),
            "max_dist": max_dist,
            "thresholds": num_thresholds,
            "nms": nms,
            "thin": thin,
        }
        points = {name: getattr(curve, name).tolist() for name in ("thresholds", "recall", "precision")}
        replace_text(json_path, json.dumps({**scores, **settings, "curve": points}, indent=2) + "\n")
    if curve_path is not None:
        from mtlsi.drawing.plots import plot_precision_recall  # lazy: only this needs matplotlib

        points = (curve.recall.tolist(), curve.precision.tolist())
        plot_precision_recall(*points, curve_path, ods=(curve.ods_recall, curve.ods_precision))
    return scores


def _find_pairs(predictions: Path, truth: Path) -> list[tuple[Path, Path]]:
    """The files of each image in ``truth``, in the order of their names."""
    found = []
    for folder, suffixes in ((predictions, MAP_SUFFIXES), (truth, TRUTH_SUFFIXES)):
        files = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in suffixes}
        if not files:
            raise MistakeError(f"{folder}: {holds(folder)}; expected files {', '.join('NAME' + s for s in suffixes)}")
        found.append(files)
    maps, truths = found
    missing = [name for name in truths if name not in maps]
    if missing:
        raise MistakeError(
            f"{predictions}: no map for {len(missing)} of the {len(truths)} images of {truth}, such as {missing[0]}; "
            "add the maps or take the images out of the truth"
        )
    return [(maps[name], path) for name, path in truths.items()]


def _read(pairs: list[tuple[Path, Path]]) -> Iterator[Pair]:
    for path, truth_path in pairs:
        soft, annotators = read_map(path), read_truth(truth_path)
        for boundary in annotators:
            if boundary.shape != soft.shape:
                sizes = "{}x{} pixels, but {} has {}x{}".format(*soft.shape, truth_path, *boundary.shape)
                raise MistakeError(f"{path}: {sizes}; give both the same size")
        yield soft, annotators


def read_map(path: Path) -> np.ndarray:
    """A soft boundary map (H W) float64 in 0..1."""
    content = _content(path)
    if path.suffix.lower() == ".png":
        return decode_grey(path, content) / 255
    values = decode_npy(path, content).astype(np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise MistakeError(f"{path}: shape {list(values.shape)}; expected a map (height, width) with values in 0..1")
    return values


def read_truth(path: Path) -> list[np.ndarray]:
    """The boundaries (H W) bool of each annotator."""
    content = _content(path)
    if path.suffix.lower() != ".mat":
        return [(edges_png if path.suffix.lower() == ".png" else edges_npy)(path, content) == 1]
    variables = decode_mat(path, content)
    try:
        annotators = [one["Boundaries"][0, 0] for one in variables["groundTruth"].ravel()]
        return [np.asarray(boundary) > 0 for boundary in annotators]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise MistakeError(
            f"{path}: no groundTruth{{k}}.Boundaries in it; expected a file of the BSDS benchmark"
        ) from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MistakeError(f"{path}: cannot be read ({error.strerror})") from error
