"""Say what a data set's folder holds and what is wrong with it: ``mtlsi data check``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mtlsi.data.datasets import empty_splits_of, note_on_camera, open_folder, splits_of, unread_files_of
from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.data.readers.folder import Folder
from mtlsi.dataset_tools.findings import (
    absent_classes,
    doubts_of_task,
    labels_of,
    named,
    passed_over,
    passed_over_lines,
    shares_of,
    stretched,
    turned,
)
from mtlsi.dataset_tools.readings import Reader, Reading
from mtlsi.errors import MistakeError, counted
from mtlsi.evaluation.report import plain_cell, say_left_out
from mtlsi.io import check_writable, replace_text
from mtlsi.parallel import for_each
from mtlsi.streams import write_line
from mtlsi.tasks import TASKS

SHOWN = 20
"""Lines of each sort on the screen; the JSON file has all."""
MOST_ROWS = 60
"""Classes in a table of shares."""


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
    shares: dict[str, float] = field(default_factory=dict)
    """Class -> its share of the valid pixels read."""


@dataclass
class Report:
    """What ``check`` found."""

    root: Path
    layout: str
    counts: list[Count] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is wrong."""
    doubts: list[str] = field(default_factory=list)
    """What can be read but is hardly meant."""
    notes: list[str] = field(default_factory=list)
    """What is good to know."""

    @property
    def sound(self) -> bool:
        """Whether nothing was found: the command's exit code is then 0."""
        return not (self.problems or self.doubts or self.left_out)


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
    report.problems += [f"split {split}: no images; give it a share or name some" for split in empty_splits_of(root)]
    found: dict[str, list[Reading]] = {}
    for split, dataset in datasets.items():
        report.layout = dataset.layout
        report.left_out |= dataset.left_out
        _check_names(dataset, report)
        title = f"reading {split}"
        read = for_each(Reader(dataset), len(dataset), title=title, num_workers=num_workers, console=console)
        readings = [reading for readings_of_image in read for reading in readings_of_image]
        report.problems += [reading.problem for reading in readings if reading.problem]
        found[split] = [reading for reading in readings if not reading.problem]
        for what in (IMAGE, *dataset.tasks):
            of_what = [reading for reading in found[split] if reading.what == what]
            report.counts.append(_count(dataset, what, of_what))
            if what != IMAGE:
                report.doubts += doubts_of_task(dataset, what, of_what)
    _check_between(datasets, report)
    _doubt(datasets, found, report)
    return report


def _doubt(datasets: dict[str, FileDataset], found: dict[str, list[Reading]], report: Report) -> None:
    """What shows only when the splits are looked at together."""
    if not datasets:
        report.doubts += passed_over_lines(unread_files_of(report.root))
        return
    dataset = next(iter(datasets.values()))
    readings = [reading for of_split in found.values() for reading in of_split]
    report.notes += note_on_camera(dataset)
    images = [reading for reading in readings if reading.what == IMAGE]
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for count in report.counts:
        if count.shares:
            shares.setdefault(count.task, {})[count.split] = count.shares
    for doubts, notes in (
        *(absent_classes(task, by_split) for task, by_split in shares.items()),
        turned(images, labels_of(readings)),
        passed_over(dataset),
    ):
        report.doubts += doubts
        report.notes += notes
    if said := stretched(images):
        # the benchmarks' recipes crop, and their images are known to differ
        (report.doubts if isinstance(dataset, Folder) else report.notes).append(said)


def _count(dataset: FileDataset, what: str, readings: list[Reading]) -> Count:
    labels = sum(dataset.path(what, index) is not None for index in range(len(dataset)))
    count = Count(dataset.split, what, labels, len(dataset), what in dataset.derived)
    if readings and what != IMAGE:
        count.valid = float(np.mean([reading.valid for reading in readings]))
        values = sorted({value for reading in readings for value in reading.values})
        if what in dataset.classes:
            count.values = f"{len(values)} of {len(dataset.classes[what])} classes"
            count.shares = shares_of(readings, dataset.classes[what])
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
    images = set().union(*(dataset.stems(IMAGE) for dataset in datasets.values()))
    for task in dict.fromkeys(task for one in datasets.values() for task in one.tasks):
        if orphans := sorted(set().union(*(one.stems(task) for one in datasets.values())) - images):
            report.problems.append(f"{len(orphans)} {task} labels have no image, such as {named(orphans)}")
    if unlisted := sorted(images - set().union(*splits.values())):
        report.notes.append(f"{len(unlisted)} images are in none of these splits, such as {unlisted[0]}")


def write_report(report: Report, path: Path) -> None:
    """The whole report as JSON."""
    content = json.dumps(asdict(report) | {"sound": report.sound}, indent=2, default=str)
    replace_text(check_writable(path), content + "\n")


def report_table(report: Report) -> Table:
    """The counts, one row per split and task."""
    table = Table(title=plain_cell(report.layout or str(report.root), "table.title"))
    for column in ("split", "task"):
        table.add_column(column)
    for column in ("labels", "images", "valid pixels", "values"):
        table.add_column(column, justify="right")
    for count in report.counts:
        title = "images" if count.task == IMAGE else TASKS[count.task].title + (" (derived)" if count.derived else "")
        valid = f"{100 * count.valid:.1f} %" if count.values else ""
        table.add_row(
            plain_cell(count.split), plain_cell(title), str(count.labels), str(count.images), valid, count.values
        )
    return table


def shares_table(report: Report, task: str) -> Table:
    """The classes of a task, one row each, and their share of the labelled pixels of each split."""
    counts = [count for count in report.counts if count.task == task and count.shares]
    table = Table(title=plain_cell(f"{TASKS[task].title}: share of the labelled pixels", "table.title"))
    table.add_column("class")
    for count in counts:
        table.add_column(plain_cell(count.split), justify="right")
    names = sorted(counts[0].shares, key=lambda name: -counts[0].shares[name])
    for name in names[:MOST_ROWS]:
        table.add_row(plain_cell(name), *(_percent(count.shares[name]) for count in counts))
    if len(names) > MOST_ROWS:
        table.caption = f"and {len(names) - MOST_ROWS} rarer ones, which the JSON file has"
    return table


def _percent(share: float) -> str:
    return "none" if share == 0 else "< 0.01 %" if share < 1e-4 else f"{100 * share:.2f} %"


def print_report(report: Report, console: Console) -> None:
    """The tables, then what is left out, what to know, what to doubt and what is wrong."""
    console.print(report_table(report))
    for task in dict.fromkeys(count.task for count in report.counts if count.shares):
        console.print(shares_table(report, task))
    say_left_out(report, console)
    for word, lines in (("note", report.notes), ("doubtful", report.doubts), ("wrong", report.problems)):
        for line in lines[:SHOWN]:
            write_line(console, f"{word}: {line}")
    if len(report.problems) > SHOWN:
        console.print(f"and {len(report.problems) - SHOWN} more problems")
    if report.sound:
        console.print("nothing is wrong")
        return
    counts = (report.problems, "problem", ""), (report.doubts, "doubt", ""), (report.left_out, "task", " left out")
    console.print(", ".join(counted(len(found), noun) + rest for found, noun, rest in counts if found))
