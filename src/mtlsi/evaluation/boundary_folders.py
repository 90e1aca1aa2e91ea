"""Score the boundary maps of any detector, one folder against another: ``mtlsi boundary``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mtlsi.errors import MistakeError
from mtlsi.evaluation.boundary_files import Truth, read_map, read_truth
from mtlsi.evaluation.boundary_pairs import find_pairs
from mtlsi.evaluation.report import write_figures
from mtlsi.io import check_picture, check_writable, replace_text
from mtlsi.metrics.boundary.curve import BoundaryCurve, Counts, best_point
from mtlsi.metrics.boundary.protocols import Protocol, protocol_named
from mtlsi.metrics.boundary.score import count_pairs
from mtlsi.streams import write_line
from mtlsi.tasks import BOUNDARY_PROTOCOL, MAX_DIST

Pair = tuple[np.ndarray, list[np.ndarray], np.ndarray | None]
"""A soft map (H W) in 0..1, the boundaries (H W) bool of each annotator, and where there are labels (None: everywhere)."""


@dataclass
class Remarks:
    """What is odd about images that are scored all the same."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def look(self, name: str, soft: np.ndarray, truth: Truth) -> None:
        """Notes what is odd about one image."""
        labelled = np.any(truth.annotators, axis=0)
        background = ~labelled if truth.known is None else ~labelled & truth.known
        if truth.known is not None:
            labelled &= truth.known
        if not labelled.any() and not background.any():
            self.add("every pixel of the truth is unknown", name)
        elif not labelled.any():
            self.add("no boundary in the truth; whatever is predicted counts as false", name)
        elif labelled.sum() > background.sum():
            self.add("more than half of the truth is boundary: is it inverted, or a map of something else?", name)
        if truth.unclear:
            self.add(
                "the truth is no map of yes and no (0 and 255, or 0 and 1): what lies above the middle counts as boundary; "
                "is it a soft map or one of classes?",
                name,
            )
        if soft.min() == soft.max():
            self.add(f"the map is {soft.max():g} everywhere: it tells nothing", name)
        elif not ((soft > 0) & (soft < 1)).any():
            self.add(
                "the map holds 0 and 1 alone: every threshold gives the same pixels, OIS is ODS and AP tells nothing",
                name,
            )
        both = labelled.any() and background.any()
        if both and soft.mean() > 0.5 and soft[labelled].mean() < soft[background].mean():
            self.add("the map is bright beside the boundaries and dark on them: is it inverted?", name)

    def add(self, remark: str, name: str) -> None:
        """Notes ``remark`` on the image ``name``."""
        self.found.setdefault(remark, []).append(name)

    def lines(self, num_images: int) -> list[str]:
        """One for each remark."""
        return [
            f"{names[0] if len(names) == 1 else f'{len(names)} of {num_images} images, such as {names[0]}'}: {remark}"
            for remark, names in self.found.items()
        ]


def score_folders(
    predictions: Path,
    truth: Path,
    *,
    boundary_protocol: str | Protocol = BOUNDARY_PROTOCOL,
    max_dist: float | None = None,
    num_thresholds: int | None = None,
    nms: bool | None = None,
    thin: bool | None = None,
    mask_unknown: bool | None = None,
    num_workers: int = 2,
    json_path: Path | None = None,
    csv_path: Path | None = None,
    curve_path: Path | None = None,
    console: Console | None = None,
) -> dict[str, float]:
    """ODS, OIS and AP, in 0..1 as the benchmark prints them, of every image in ``truth``; NaN where nothing is labelled.

    ``boundary_files`` says what the folders may hold. ``boundary_protocol``: one of ``PROTOCOLS``, which the options up to
    ``mask_unknown`` change. ``max_dist``: how far a match may lie, over the image's diagonal. What is odd about images is
    said in a line each. Raises ``MistakeError`` where a prediction is missing, sizes differ, or a file cannot be read.
    """
    console = console or Console()
    if curve_path is not None:
        check_picture(curve_path)
    for path in (json_path, csv_path, curve_path):
        if path is not None:
            check_writable(path)
    if max_dist is not None and not 0 < max_dist < 1:
        raise MistakeError(f"--max-dist {max_dist}; expected a fraction of the image's diagonal, such as {MAX_DIST}")
    if num_thresholds is not None and num_thresholds < 1:
        raise MistakeError(f"--thresholds {num_thresholds}; expected 1 or more")
    if num_workers < 1:
        raise MistakeError(f"--workers {num_workers}; expected 1 or more")
    protocol = protocol_named(boundary_protocol).with_changes(
        max_dist=max_dist, num_thresholds=num_thresholds, nms=nms, thin=thin, mask_unknown=mask_unknown
    )
    protocol = protocol.on_data(MAX_DIST)
    pairs, remarks = find_pairs(predictions, truth), Remarks()
    files = pairs.files
    counted = count_pairs(_read(files, protocol, remarks), **protocol.counting(), num_workers=num_workers)
    counts = list(track(counted, "matching", len(files), console=console, transient=True))
    curve = BoundaryCurve.of(counts)
    console.print(_table(curve, protocol, len(files)))
    if left := pairs.without_truth:
        write_line(console, f"{len(left)} maps have no truth and are passed over, such as {left[0]}")
    for line in remarks.lines(len(files)):
        write_line(console, line)
    scores = {"ods": curve.ods, "ois": curve.ois, "ap": curve.ap}
    if json_path is not None:
        said = {"remarks": remarks.found, "without_truth": pairs.without_truth}
        write_figures(_figures(curve, protocol, len(files)) | said, json_path)
    if csv_path is not None:
        replace_text(check_writable(csv_path), _images(dict(zip(files, counts, strict=True))))
    if curve_path is not None:
        from mtlsi.drawing.plots import plot_precision_recall  # lazy: only this needs matplotlib

        points = (curve.recall.tolist(), curve.precision.tolist())
        plot_precision_recall(*points, check_writable(curve_path), ods=(curve.ods_recall, curve.ods_precision))
    return scores


def _read(files: dict[str, tuple[Path, Path]], protocol: Protocol, remarks: Remarks) -> Iterator[Pair]:
    for name, (path, truth_path) in files.items():
        soft, truth = read_map(path), read_truth(truth_path)
        shape = truth.annotators[0].shape
        if shape != soft.shape:
            sizes = "{}x{} pixels, but {} has {}x{}".format(*soft.shape, truth_path, *shape)
            raise MistakeError(f"{path}: {sizes}; give both the same size")
        remarks.look(name, soft, truth)
        if path.suffix.lower() != ".mat":  # which the benchmark reads as it is
            soft = protocol.as_stored(soft)
        yield soft, truth.annotators, truth.known if protocol.mask_unknown else None


def _table(curve: BoundaryCurve, protocol: Protocol, num_images: int) -> Table:
    table = Table(title=f"boundaries of {num_images} images", caption=str(protocol))
    for name in ("", "value", "recall", "precision", "threshold"):
        table.add_column(name, justify="right")
    rows = {
        "ODS": (curve.ods, curve.ods_recall, curve.ods_precision, curve.threshold),
        "OIS": (curve.ois, curve.ois_recall, curve.ois_precision),
        "AP": (curve.ap,),
        "R50": (curve.r50,),
    }
    for name, cells in rows.items():
        table.add_row(name, *(f"{cell:.4f}" for cell in cells))
    return table


def _figures(curve: BoundaryCurve, protocol: Protocol, num_images: int) -> dict[str, Any]:
    """For the JSON file."""
    names = ("ods", "ois", "ap", "threshold", "ods_recall", "ods_precision", "ois_recall", "ois_precision", "r50")
    return {name: getattr(curve, name) for name in names} | {
        "images": num_images,
        **protocol.record(),
        "curve": curve.points(),
    }


def _images(counts: dict[str, Counts]) -> str:
    """A table, as CSV: each image at its own best threshold, as the benchmark gives it; empty where nothing is labelled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "threshold", "recall", "precision", "f"])
    for name, of_image in counts.items():
        labelled = of_image.truth.any()
        writer.writerow([name, *(f"{value:.6g}" if labelled else "" for value in best_point(of_image))])
    return text.getvalue()
