"""Say what a data set's folder holds and what is wrong with it: ``mtlsi data check``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mtlsi import kinds
from mtlsi.data.datasets import open_folder, splits_of
from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import say_left_out
from mtlsi.images import turned_label
from mtlsi.io import check_writable, replace_text
from mtlsi.parallel import for_each
from mtlsi.tasks import TASKS

SHOWN = 20
"""Problems on the screen; the JSON file has all."""


@dataclass
class Count:
    """The labels of one task in one split."""

    split: str
    task: str
    """Or "image"."""
    labels: int = 0
    images: int = 0
    derived: bool = False
    valid: float = 0.0
    """Share of valid pixels in the labels read."""
    values: str = ""
    """The range of the values read, or how many classes occur."""


@dataclass
class Report:
    """What ``check`` found."""

    root: Path
    layout: str
    counts: list[Count] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """One file of an image: its share of valid pixels, and its lowest and highest value or its classes."""

    what: str
    valid: float = 0.0
    values: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class _Reader:
    """Reads every file of one image; labels derived from a file that is read anyway are not worked out."""

    dataset: FileDataset

    def __call__(self, index: int) -> list[Reading]:
        return list(self._readings(index))

    def _readings(self, index: int) -> Iterator[Reading]:
        dataset, size = self.dataset, None
        for what in (IMAGE, *dataset.tasks):
            path = dataset.path(what, index)
            if what in dataset.derived or (path is None and what != IMAGE):
                continue
            try:
                values = dataset.read(what, index)
            except MistakeError as error:
                yield Reading(what, problem=str(error))
                continue
            if what == IMAGE:
                size = values.shape[:2]
                yield Reading(what, 1.0)
                continue
            if size is not None and values.shape[-2:] != size:
                shapes = f"{values.shape[-2]}x{values.shape[-1]} pixels, but its image has {size[0]}x{size[1]}"
                turned = turned_label(dataset.path(IMAGE, index), values.shape[-2:], size)
                yield Reading(what, problem=turned or f"{path}: {shapes}; give both the same size")
                continue
            yield _summary(what, values)


def _summary(what: str, values: np.ndarray) -> Reading:
    kind = kinds.of(what)
    valid = kind.valid(values)
    labelled = values[..., valid]
    if kind.discrete:
        summary: tuple[float, ...] = tuple(np.unique(labelled).tolist())
    else:
        summary = (float(labelled.min()), float(labelled.max())) if labelled.size else ()
    return Reading(what, float(valid.mean()), summary)


def check(root: Path, *, num_workers: int = 2, console: Console | None = None) -> Report:
    """Read every file that the splits of the data set in ``root`` name, in ``num_workers`` processes, with progress.

    Raises ``MistakeError`` only where ``root`` is no data set at all; all else is a line in ``Report.problems``. Nothing is
    written into ``root``.
    """
    console = console or Console()
    report = Report(root, "")
    datasets: dict[str, FileDataset] = {}
    for split in splits_of(root):
        try:
            datasets[split] = open_folder(root, split, may_lack=True)
        except MistakeError as error:
            report.problems.append(str(error))
    for split, dataset in datasets.items():
        report.layout = dataset.layout
        report.left_out |= dataset.left_out
        _check_names(dataset, report)
        title = f"reading {split}"
        read = for_each(_Reader(dataset), len(dataset), title=title, num_workers=num_workers, console=console)
        readings = [reading for readings_of_image in read for reading in readings_of_image]
        report.problems += [reading.problem for reading in readings if reading.problem]
        for what in (IMAGE, *dataset.tasks):
            report.counts.append(_count(dataset, what, [r for r in readings if r.what == what and not r.problem]))
    _check_between(datasets, report)
    return report


def _count(dataset: FileDataset, what: str, readings: list[Reading]) -> Count:
    labels = sum(dataset.path(what, index) is not None for index in range(len(dataset)))
    count = Count(dataset.split, what, labels, len(dataset), what in dataset.derived)
    if readings and what != IMAGE:
        count.valid = float(np.mean([reading.valid for reading in readings]))
        values = sorted({value for reading in readings for value in reading.values})
        if what in dataset.classes:
            count.values = f"{len(values)} of {len(dataset.classes[what])} classes"
        elif values:
            count.values = f"{values[0]:.3g}..{values[-1]:.3g}"
    return count


def _check_names(dataset: FileDataset, report: Report) -> None:
    """Names listed twice, and images that should have a label and have none."""
    twice = [name for name, times in Counter(dataset.names).items() if times > 1]
    if twice:
        report.problems.append(f"split {dataset.split}: {len(twice)} names are listed twice, such as {twice[0]}")
    if not dataset.labels_may_lack:
        for task in dataset.tasks:
            missing = [name for index, name in enumerate(dataset.names) if dataset.path(task, index) is None]
            if missing:
                report.problems.append(
                    f"split {dataset.split}: {len(missing)} images have no {task} label, such as {missing[0]}"
                )


def _check_between(datasets: dict[str, FileDataset], report: Report) -> None:
    """Images in two splits, files that belong to no image, images in no split."""
    splits = {split: set(dataset.names) for split, dataset in datasets.items()}
    order = list(splits)
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            if both := sorted(splits[first] & splits[second]):
                report.problems.append(f"{len(both)} images are in {first} and in {second}, such as {both[0]}")
    if not datasets:
        return
    dataset = next(iter(datasets.values()))
    images = dataset.stems(IMAGE)
    for task in dataset.tasks:
        if orphans := sorted(dataset.stems(task) - images):
            report.problems.append(f"{len(orphans)} {task} labels have no image, such as {orphans[0]}")
    if unlisted := sorted(images - set().union(*splits.values())):
        report.notes.append(f"{len(unlisted)} images are in none of these splits, such as {unlisted[0]}")


def write_report(report: Report, path: Path) -> None:
    """The whole report as JSON."""
    check_writable(path)
    replace_text(path, json.dumps(asdict(report), indent=2, default=str) + "\n")


def report_table(report: Report) -> Table:
    """The counts, one row per split and task."""
    table = Table(title=report.layout or str(report.root))
    for column in ("split", "task"):
        table.add_column(column)
    for column in ("labels", "images", "valid pixels", "values"):
        table.add_column(column, justify="right")
    for count in report.counts:
        title = "images" if count.task == IMAGE else TASKS[count.task].title + (" (derived)" if count.derived else "")
        valid = f"{100 * count.valid:.1f} %" if count.values else ""
        table.add_row(count.split, title, str(count.labels), str(count.images), valid, count.values)
    return table


def print_report(report: Report, console: Console) -> None:
    """The table, then what is left out, what to know and what is wrong."""
    console.print(report_table(report))
    say_left_out(report, console)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for problem in report.problems[:SHOWN]:
        console.print(f"wrong: {problem}", markup=False, soft_wrap=True)
    if len(report.problems) > SHOWN:
        console.print(f"and {len(report.problems) - SHOWN} more problems")
    console.print(f"{len(report.problems)} problems" if report.problems else "nothing is wrong")
