"""Which metric a task has, and how it is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchmetrics import Metric

from mtlsi.errors import MistakeError
from mtlsi.metrics.boundary.metric import BoundaryF
from mtlsi.metrics.boundary.protocols import Protocol
from mtlsi.metrics.dense.classes import MeanIoU
from mtlsi.metrics.dense.depth import DepthError
from mtlsi.metrics.dense.directions import AngularError
from mtlsi.metrics.dense.saliency import MaxF
from mtlsi.metrics.dense.values import RegressionError
from mtlsi.tasks import BOUNDARY_PROTOCOL, TASK_SETS, Task, check_classes


@dataclass(frozen=True)
class MetricSettings:
    """What metrics must know besides the task."""

    num_classes: int | None = None
    """For tasks with classes."""
    boundary_tolerance: float = TASK_SETS["nyud"].boundary_tolerance
    """How far a boundary pixel may lie from its match, as a fraction of the image's diagonal."""
    boundary_protocol: str | Protocol = BOUNDARY_PROTOCOL
    """A record, or its name in ``mtlsi.metrics.boundary.protocols.PROTOCOLS``."""
    num_thresholds: int | None = None
    """Of the boundary curve; None: the protocol's."""
    legacy_saliency: bool = False
    """See ``MaxF``."""
    depth_range_m: tuple[float, float] | None = None
    """Caps of depth in metres; see ``mtlsi.metrics.dense.depth.readings``."""


METRICS: dict[str, Callable[[MetricSettings], Metric]] = {
    "miou": lambda settings: MeanIoU(settings.num_classes or 0),
    "depth_error": lambda settings: DepthError(settings.depth_range_m),
    "value_error": lambda _: RegressionError(),
    "angular_error": lambda _: AngularError(),
    "max_f": lambda settings: MaxF(legacy=settings.legacy_saliency),
    "boundary_f": lambda settings: BoundaryF(
        settings.boundary_tolerance, protocol=settings.boundary_protocol, num_thresholds=settings.num_thresholds
    ),
}
"""By ``Task.metric``."""


def build_metric(task: Task, settings: MetricSettings) -> Metric:
    """An empty metric for ``task``; its ``compute()`` gives a dict of scalars that holds ``task.score``.

    Raises ``MistakeError`` where a task with classes is given no ``num_classes``, or too many.
    """
    if task.kind == "classes" and not settings.num_classes:
        raise MistakeError(f"{task.name}: number of classes not given; mIoU needs num_classes")
    check_classes({task.name: range(settings.num_classes or 0)})
    return METRICS[task.metric](settings)
