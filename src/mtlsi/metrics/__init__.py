"""The metrics of the tasks: sums that add up over batches and processes, and one division at the end."""

from __future__ import annotations

from collections.abc import Callable

from torchmetrics import Metric

from mtlsi.errors import MistakeError
from mtlsi.metrics.boundary import ToleranceBoundaryF
from mtlsi.metrics.delta import delta_m
from mtlsi.metrics.dense import AngularError, DepthError, MaxF, MeanIoU
from mtlsi.tasks import Task

__all__ = ["METRICS", "AngularError", "DepthError", "MaxF", "MeanIoU", "ToleranceBoundaryF", "build_metric", "delta_m"]


def _mean_iou(task: Task, num_classes: int | None, boundary_tolerance: float) -> Metric:  # noqa: ARG001
    if num_classes is None:
        raise MistakeError(f"{task.name}: number of classes not given; mIoU needs num_classes")
    return MeanIoU(num_classes)


METRICS: dict[str, Callable[[Task, int | None, float], Metric]] = {
    "miou": _mean_iou,
    "depth_error": lambda task, num_classes, boundary_tolerance: DepthError(),  # noqa: ARG005
    "angular_error": lambda task, num_classes, boundary_tolerance: AngularError(),  # noqa: ARG005
    "max_f": lambda task, num_classes, boundary_tolerance: MaxF(),  # noqa: ARG005
    "boundary_f": lambda task, num_classes, boundary_tolerance: ToleranceBoundaryF(boundary_tolerance),  # noqa: ARG005
}
"""By ``Task.metric``."""


def build_metric(task: Task, *, num_classes: int | None, boundary_tolerance: float) -> Metric:
    """An empty metric for ``task``; its ``compute()`` gives a dict of scalars that holds ``task.score``.

    ``num_classes`` is needed by tasks with classes, ``boundary_tolerance`` (a fraction of the picture's diagonal) by
    boundaries. Raises ``MistakeError`` where a task with classes is given no ``num_classes``.
    """
    return METRICS[task.metric](task, num_classes, boundary_tolerance)
