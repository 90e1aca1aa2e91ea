"""Figures of an evaluation: on the screen, as the papers' row, as JSON, and image by image as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlsi.errors import MistakeError, counted, message_of, one_line
from mtlsi.io import check_writable, replace_text
from mtlsi.metrics.boundary.curve import BoundaryCurve
from mtlsi.metrics.boundary.protocols import Protocol
from mtlsi.metrics.delta import delta_m
from mtlsi.reading import read_json, shortened
from mtlsi.streams import write_line
from mtlsi.tasks import NYUD_RANGE_M, TASKS

Scores = dict[str, dict[str, float]]
"""Every figure by task and name: the headline ``TASKS[task].score``, the others, ``IoU/<class>``; NaN: undefined."""


class Evaluation(Scores):
    """``Scores``, and beside them what is no score."""

    def __init__(
        self,
        scores: Scores,
        *,
        boundaries: Protocol | None = None,
        curves: Mapping[str, BoundaryCurve] = MappingProxyType({}),
    ) -> None:
        super().__init__(scores)
        self.boundaries = boundaries
        """What boundaries were measured by; None where none were."""
        self.curves = curves
        """By task of boundaries, precision and recall over the thresholds."""


OF_CLASS = "IoU/"
"""Begins the name of the figure of one class."""
OF_READINGS = ("RMSE", "abs_rel", "sq_rel", "RMSE_log", "silog", "delta1")
"""The depth figures that are shown in every reading; the JSON file has all of them."""


def plain_cell(text: str, style: str = "") -> Text:
    """``text``, which may be anybody's, in a table as it is: brackets are no markup, colons no emoji, and no sign steers a
    terminal. Its line breaks stay. Of titles ``style`` is "table.title", of captions "table.caption"."""
    return Text("\n".join(map(one_line, text.split("\n"))), style)


def has_boundaries(task: str) -> bool:
    """Whether a boundary protocol says how ``task`` is measured."""
    return TASKS[task].metric == "boundary_f"


def headline(scores: Scores) -> dict[str, float]:
    """The one figure per task that tables compare."""
    return {task: values[TASKS[task].score] for task, values in scores.items()}


def score_table(
    scores: Scores,
    *,
    derived: Sequence[str] = (),
    others: Mapping[str, Scores] | None = None,
    caption: str | None = None,
) -> Table:
    """All figures on one screen; ``derived`` marks tasks whose labels were computed, ``others`` adds columns to compare.

    ``caption``: how the images were shown. What boundaries were measured by is said where ``scores`` know it.
    """
    protocol = boundaries_of(scores)
    measured_by = f"boundaries: {protocol}" if protocol else None
    table = Table(title="scores", caption="; ".join(x for x in (caption, measured_by) if x) or None)
    table.add_column("task")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name in others or {}:
        table.add_column(plain_cell(name), justify="right")
    for task, values in scores.items():
        record = TASKS[task]
        for name, value in values.items():
            if "/" in name:  # one class or reading among many: for the JSON file
                continue
            best = name == record.score
            arrow = ("^" if record.higher_is_better else "v") + f" {record.unit}" if best else ""
            label = record.title + (" (derived labels)" if task in derived else "") if best else ""
            row = [f"{value:.4g}"] + [
                f"{other.get(task, {}).get(name, float('nan')):.4g}" for other in (others or {}).values()
            ]
            figure = plain_cell(f"{name} {arrow}".strip())
            table.add_row(plain_cell(label), figure, *row, style="bold" if best else None)
    return table


def boundaries_of(scores: Scores) -> Protocol | None:
    """What boundaries were measured by, where ``scores`` know it."""
    return scores.boundaries if isinstance(scores, Evaluation) else None


def tables(
    scores: Scores,
    showing: str,
    derived: Sequence[str],
    depth_range_m: tuple[float, float] | None,
    delta_percent: float | None,
) -> list[Table]:
    """Everything that ``mtlsi evaluate`` shows; ``showing``: how the network saw the images."""
    found = [score_table(scores, derived=derived, caption=showing)]
    found += [reading_table(scores, depth_range_m)] if _with_readings(scores) else []
    row = paper_row(scores, derived=derived, delta_percent=delta_percent, caption=showing)
    return [*found, row]


def _with_readings(scores: Scores) -> Scores:
    return {task: values for task, values in scores.items() if f"eigen/{OF_READINGS[0]}" in values}


def reading_table(scores: Scores, range_m: tuple[float, float] | None = None) -> Table:
    """The depth figures that other benchmarks print, raw and pooled in the first row, in every other reading below it.

    ``range_m``: the caps that the readings were given, in metres.
    """
    readings = _with_readings(scores)
    low, high = range_m or NYUD_RANGE_M
    caps = f"{low:g} to {high:g} m" + ("" if range_m is None else ", as in all but the raw rows")
    caption = f"eigen: the crop of NYUDv2, {caps}; median, scale shift: each image aligned to its label"
    table = Table(title="depth in several readings", caption=caption, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("reading", no_wrap=True)
    for figure in OF_READINGS:
        table.add_column(figure, justify="right", no_wrap=True)
    for task, values in readings.items():
        names = dict.fromkeys(name.rpartition("/")[0] for name in values)
        for name in names:
            figures = (values[f"{name}/{figure}".lstrip("/")] for figure in OF_READINGS)
            label = (name or "pooled").replace("_", " ")
            table.add_row(label if len(readings) == 1 else f"{task}: {label}", *(f"{x:.4g}" for x in figures))
    return table


def paper_row(
    scores: Scores,
    *,
    derived: Sequence[str] = (),
    delta_percent: float | None = None,
    caption: str | None = None,
) -> Table:
    """The row that papers print: one headline figure per task, and Delta_m where it is given.

    ``caption``: how the images were shown.
    """
    table, protocol = Table(title="the papers' row", caption=caption), boundaries_of(scores)
    cells = []
    for task, value in headline(scores).items():
        record = TASKS[task]
        arrow = "higher is better" if record.higher_is_better else "lower is better"
        note = ", derived labels" if task in derived else ""
        if has_boundaries(task) and protocol:
            note += f", {protocol.name}"
        unit = f" ({record.unit})" if record.unit else ""
        table.add_column(plain_cell(f"{task} {record.score}{unit}\n{arrow}{note}"), justify="right")
        cells.append(f"{value:.{decimals(task)}f}")
    if delta_percent is not None:
        table.add_column("Delta_m (%)\nhigher is better", justify="right")
        cells.append(f"{delta_percent:+.2f}")
    table.add_row(*cells)
    return table


def decimals(task: str) -> int:
    """How many decimals papers give of a task's headline figure."""
    return 2 if TASKS[task].unit in ("%", "deg") else 4


def write_scores(scores: Scores, path: Path, **context: Any) -> None:
    """``scores`` and what they were measured on as JSON, written whole or not at all.

    Of an ``Evaluation`` also its protocol, ``boundaries``, and the points of its ``curves``, by task, in 0..1.
    """
    beside = {}
    if isinstance(scores, Evaluation) and scores.boundaries is not None:
        context["boundaries"] = scores.boundaries.record()
        beside["curves"] = {task: curve.points() for task, curve in scores.curves.items()}
    write_figures({**context, "scores": scores, **beside}, path)


def write_figures(figures: Mapping[str, Any], path: Path) -> None:
    """Figures by name, in dictionaries and lists, as JSON, written whole or not at all; an undefined one is null."""
    target = check_writable(path)
    try:
        replace_text(target, json.dumps(defined(figures), indent=2) + "\n", on_disk=True)
    except OSError as error:
        raise MistakeError(
            f"cannot write {path} ({error.strerror}); give a file in a folder you may write to"
        ) from error


def defined(value: Any) -> Any:
    """``value``, a figure or figures in dictionaries and lists, with None for what is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: defined(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [defined(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write_images(rows: Sequence[tuple[str, Scores]], path: Path) -> None:
    """One line per image with every figure measured on it alone, as CSV; an undefined figure is an empty cell.

    Means over images are left out: of one image they say the same as the pooled figures.
    """
    names = [(task, name) for task, values in rows[0][1].items() for name in values] if rows else []
    names = [(task, name) for task, name in names if "per_image" not in name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(f"{task}/{name}" for task, name in names)])
    for image, scores in rows:
        values = [scores[task][name] for task, name in names]
        writer.writerow([image, *("" if isnan(value) else f"{value:.6g}" for value in values)])
    replace_text(check_writable(path), text.getvalue())


def write_confusion(
    pixels: Mapping[str, Sequence[Sequence[int]]], classes: Mapping[str, Sequence[str]], folder: Path
) -> None:
    """The confusion matrix of each task as ``folder``/TASK.csv: labels in rows, predictions in columns."""
    for task, counts in pixels.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label", *classes[task]])
        writer.writerows([name, *row] for name, row in zip(classes[task], counts, strict=True))
        replace_text(folder / f"{task}.csv", text.getvalue())


class SingleTask(NamedTuple):
    """Scores of networks of one task each, for Delta_m."""

    scores: dict[str, float]
    """The headline figure by task."""
    boundaries: dict[str, Any] | None = None
    """What the boundaries among them were measured by, as ``Protocol.record`` has it; None: without any, or not said."""
    classes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """By task the names of its classes, where they are said."""


def write_single_task(single: SingleTask, path: Path) -> None:
    """``single`` as JSON: {task: headline figure}, or, to say the protocol of boundaries or classes too, as ``write_scores``
    does.
    """
    content: dict[str, Any] = single.scores
    if single.boundaries is not None or single.classes:
        scores = {task: {TASKS[task].score: value} for task, value in single.scores.items()}
        content = {} if single.boundaries is None else {"boundaries": single.boundaries}
        content |= {"classes": dict(single.classes)} if single.classes else {}
        content |= {"scores": scores}
    replace_text(path, json.dumps(content, indent=2) + "\n")


def read_single_task(path: Path) -> SingleTask:
    """The single-task scores in the JSON file ``path``, {task: headline figure}, or in one of ``write_scores``.

    Raises ``MistakeError`` for a file that is neither, and for a score that is not above 0.
    """
    expected = 'JSON such as {"semseg": 40.1, "depth": 0.61}'
    stored = read_json(path, expected)
    try:
        single = headline(stored["scores"]) if "scores" in stored else stored
        single = {task: float(value) for task, value in single.items()}
        delta_m(single, single)
        measured_by = boundary_record(stored) if "scores" in stored and any(map(has_boundaries, single)) else None
        classes = classes_of(stored) if "scores" in stored else {}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MistakeError) as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; expected {expected}") from error
    return SingleTask(single, measured_by, classes)


def classes_of(stored: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """By task the names of its classes, as a file of ``write_scores`` or ``write_single_task`` has them.

    Raises ``TypeError`` where something else stands there.
    """
    found = {task: names_of_classes(values) for task, values in stored["scores"].items()} | stored.get("classes", {})
    for names in found.values():
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{shortened(names)} are no names of classes")
    return {task: tuple(names) for task, names in found.items() if names}


def names_of_classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that have a score of their own among a task's."""
    return tuple(name.removeprefix(OF_CLASS) for name in values if name.startswith(OF_CLASS))


def boundary_record(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``Protocol.record`` in a file of ``write_scores``; None: it is from before there were several protocols.

    Raises ``TypeError`` or ``KeyError`` where something else stands there.
    """
    if "boundaries" not in stored:
        return None
    record = stored["boundaries"]
    values = (*record, *record.values())
    are_plain = all(x.isprintable() if isinstance(x, str) else isinstance(x, int | float | None) for x in values)
    if not isinstance(record["protocol"], str) or not are_plain:
        raise TypeError(f"{shortened(record)} is no boundary protocol")
    return record


def same_boundaries(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two of ``boundary_record`` compare. What is not known compares with nothing that is."""
    return one is other if one is None or other is None else not unlike_boundaries(one, other)


def unlike_boundaries(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Where two records of boundary protocols differ, of what both say, in words; "" where they do not."""
    differing = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    return ", ".join(f"{name} {theirs[name]} there, {ours[name]} here" for name in differing)


def introduce(dataset: Any, console: Console) -> None:
    """One line on what a data set on disk is, and what it could not offer."""
    if hasattr(dataset, "layout"):
        derived = f", derived labels: {', '.join(dataset.derived)}" if dataset.derived else ""
        text = f"data: {dataset.layout}, {counted(len(dataset), 'image')} of {dataset.split}{derived}"
        write_line(console, text)
    say_left_out(dataset, console)


def say_left_out(dataset: Any, console: Console) -> None:
    """One line for each task that a data set could not offer."""
    for task, reason in dataset.left_out.items():
        write_line(console, f"left out: {task} ({reason})")
