"""The metrics of the tasks: sums that add up over batches and processes, and one division at the end.

Importing this package is light: a name is imported from its module on first use, so that the boundary benchmark needs
neither torch nor torchmetrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlsi.metrics.boundary.curve import BoundaryCurve, Counts
    from mtlsi.metrics.boundary.metric import BoundaryF
    from mtlsi.metrics.boundary.score import boundary_counts, count_pairs
    from mtlsi.metrics.build import METRICS, MetricSettings, build_metric
    from mtlsi.metrics.delta import delta_m
    from mtlsi.metrics.dense.classes import MeanIoU
    from mtlsi.metrics.dense.depth import DepthError
    from mtlsi.metrics.dense.directions import AngularError
    from mtlsi.metrics.dense.saliency import MaxF
    from mtlsi.metrics.dense.values import RegressionError

_HOMES = {
    "METRICS": "build",
    "AngularError": "dense.directions",
    "BoundaryCurve": "boundary.curve",
    "BoundaryF": "boundary.metric",
    "Counts": "boundary.curve",
    "DepthError": "dense.depth",
    "MaxF": "dense.saliency",
    "MeanIoU": "dense.classes",
    "MetricSettings": "build",
    "boundary_counts": "boundary.score",
    "RegressionError": "dense.values",
    "build_metric": "build",
    "count_pairs": "boundary.score",
    "delta_m": "delta",
}

__all__ = [
    "METRICS",
    "AngularError",
    "BoundaryCurve",
    "BoundaryF",
    "Counts",
    "DepthError",
    "MaxF",
    "MeanIoU",
    "MetricSettings",
    "RegressionError",
    "boundary_counts",
    "build_metric",
    "count_pairs",
    "delta_m",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
