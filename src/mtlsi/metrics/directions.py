"""Which way each figure of a metric gets better: what ``Task.higher_is_better`` is for the headline, for the others too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlsi.errors import MistakeError
from mtlsi.tasks import SCORES, TASKS

HIGHER, LOWER = True, False
HIGHER_BY_METRIC: dict[str, tuple[str, ...]] = {
    "miou": ("mIoU", "pixel_acc", "mean_acc", "fw_IoU", "mIoU_absent_0"),
    "max_f": ("maxF", "precision", "recall", "mIoU", "maxF_per_image", "mIoU_per_image"),
    "boundary_f": ("odsF", "oisF", "AP", "precision", "recall", "R50", "ois_precision", "ois_recall"),
    "depth_error": ("delta1", "delta2", "delta3"),
    "angular_error": ("within_5", "within_7.5", "within_11.25", "within_22.5", "within_30"),
}
LOWER_BY_METRIC: dict[str, tuple[str, ...]] = {
    "max_f": ("MAE", "MAE_per_image"),
    "depth_error": ("RMSE", "abs_rel", "log10", "sq_rel", "RMSE_log", "silog", "MAE"),
    "value_error": ("RMSE", "MAE", "abs_rel"),
    "angular_error": ("mErr", "median", "RMSE"),
}
FIGURES: dict[str, dict[str, bool]] = {
    metric: dict.fromkeys(HIGHER_BY_METRIC.get(metric, ()), HIGHER)
    | dict.fromkeys(LOWER_BY_METRIC.get(metric, ()), LOWER)
    for metric in SCORES
}
"""By metric and figure, whether higher is better. Thresholds, which are no measure of anything, are not in it."""
IOU = "IoU/"
"""Begins the figure of a single class."""


@dataclass(frozen=True)
class Figure:
    """A figure that evaluations give."""

    task: str
    name: str
    higher_is_better: bool


def figure_named(
    text: str, tasks: Sequence[str], classes: Mapping[str, Sequence[str]], *, what: str, others: Sequence[str] = ()
) -> Figure:
    """The figure ``TASK.FIGURE``, such as semseg.mIoU, depth.eigen/RMSE or semseg.IoU/wall, in capitals or not.

    Raises ``MistakeError``, which begins with ``what`` and lists the names and ``others``, where there is none of its name.
    """
    task, name = (*re.split(r"[./]", text, maxsplit=1), "")[:2]
    if task in tasks:
        reading, slash, last = name.rpartition("/")
        if TASKS[task].metric == "miou" and name.lower().startswith(IOU.lower()):
            if name[len(IOU) :] not in classes[task]:
                raise MistakeError(f"{what} {text!r}: no such class; expected one of {', '.join(classes[task])}")
            return Figure(task, IOU + name[len(IOU) :], HIGHER)
        may_have_readings = TASKS[task].metric == "depth_error" or not slash
        for known, higher in directions_of(task).items():
            if last.lower() == known.lower() and may_have_readings:
                return Figure(task, reading + slash + known, higher)
    known = [f"{task}.{name}" for task in tasks for name in directions_of(task)]
    raise MistakeError(f"{what} {text!r}; expected one of {', '.join((*known, *others))}")


def directions_of(task: str) -> dict[str, bool]:
    """By figure of ``task``, its headline first, whether higher is better."""
    record = TASKS[task]
    headline = {record.score: bool(record.higher_is_better)}
    own = record.score != SCORES[record.metric][0]  # a score of somebody's own metric: what else it gives nobody knows
    return headline if own else headline | FIGURES[record.metric] | headline
