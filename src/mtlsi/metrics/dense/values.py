"""Errors of any numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.metrics.dense.finite import check_finite


class RegressionError(Metric):
    """Errors of any numbers, pooled over all valid pixels of the set.

    ``update``: ``prediction`` and ``label`` (b H W) or (b c H W).
    ``compute``: ``RMSE`` and ``MAE`` in the label's unit, and ``abs_rel``, the mean of |p - y| / |y| over labels y that are
    not 0, NaN where all are.
    Choice: every channel of a pixel counts as one number, so RMSE is comparable between numbers of channels.
    """

    full_state_update = False
    num_values: Tensor
    squared: Tensor
    absolute: Tensor
    num_nonzero: Tensor
    relative: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_values", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squared", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("absolute", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_nonzero", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("relative", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        if label.dim() == 4:
            prediction, label = prediction.movedim(1, -1), label.movedim(1, -1)
        predicted = prediction[valid].double()
        check_finite(predicted)
        labelled = label[valid].double()
        error, nonzero = predicted - labelled, labelled != 0
        self.num_values += error.numel()
        self.squared += error.square().sum()
        self.absolute += error.abs().sum()
        self.num_nonzero += nonzero.sum()
        self.relative += (error[nonzero] / labelled[nonzero]).abs().sum()

    def compute(self) -> dict[str, Tensor]:
        """``RMSE`` and ``MAE`` in the label's unit, and ``abs_rel``."""
        return {
            "RMSE": (self.squared / self.num_values).sqrt(),
            "MAE": self.absolute / self.num_values,
            "abs_rel": self.relative / self.num_nonzero,
        }
