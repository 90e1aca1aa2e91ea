"""Angles between directions, such as surface normals."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.metrics.dense.finite import check_finite


class AngularError(Metric):
    """Angle between predicted and labelled directions, over all valid pixels of the set.

    ``update``: ``prediction`` and ``label`` (b 3 H W); only their directions count.
    ``compute``: ``mErr``, ``median`` and ``RMSE`` in degrees; ``within_5``, ``within_7.5``, ``within_11.25``,
    ``within_22.5``, ``within_30``, the percentage of pixels whose error is below so many degrees. The median is read from
    a histogram with bins of a hundredth of a degree, because counts add up over processes and a median does not: it is
    exact to half a bin.
    Paper: mean, median, RMSE and the limits from 11.25 on are those of Fouhey, Gupta and Hebert, ICCV 2013; 5 and 7.5 came
    with Bae, Budvytis and Cipolla, ICCV 2021.
    Choice: a prediction without a direction, (0, 0, 0), counts as 90 degrees off.
    """

    full_state_update = False
    BINS_PER_DEGREE = 100
    LIMITS_DEG = (5, 7.5, 11.25, 22.5, 30)
    num_pixels: Tensor
    total_deg: Tensor
    squared_deg: Tensor
    within: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        num_bins = 180 * self.BINS_PER_DEGREE
        self.add_state("num_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total_deg", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squared_deg", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(self.LIMITS_DEG), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        predicted = prediction.movedim(1, -1)[valid].double()
        check_finite(predicted)
        angle_deg = _angle_deg(predicted, label.movedim(1, -1)[valid].double())
        self.num_pixels += valid.sum()
        self.total_deg += angle_deg.sum()
        self.squared_deg += angle_deg.square().sum()
        self.within += torch.stack([(angle_deg < limit).sum() for limit in self.LIMITS_DEG])
        num_bins = len(self.histogram)
        bins = (angle_deg * self.BINS_PER_DEGREE).long().clamp(max=num_bins - 1)
        self.histogram += torch.bincount(bins, minlength=num_bins)

    def compute(self) -> dict[str, Tensor]:
        """``mErr``, ``median`` and ``RMSE`` in degrees; ``within_5`` to ``within_30`` in percent."""
        shares = 100 * self.within.double() / self.num_pixels
        return {
            "mErr": self.total_deg / self.num_pixels,
            "median": self._median_deg(),
            "RMSE": (self.squared_deg / self.num_pixels).sqrt(),
            **{f"within_{limit}": share for limit, share in zip(self.LIMITS_DEG, shares, strict=True)},
        }

    def _median_deg(self) -> Tensor:
        """Mean of the centres of the two bins that hold the middle pixels (one and the same for an odd number)."""
        if self.num_pixels == 0:
            return self.total_deg * torch.nan
        ranks = torch.stack([(self.num_pixels + 1) // 2, self.num_pixels // 2 + 1])
        bins = torch.searchsorted(self.histogram.cumsum(0), ranks)
        return (bins.double().mean() + 0.5) / self.BINS_PER_DEGREE


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle in 0..180 between the vectors (n 3). By the arc tangent: near 0 the arc cosine loses half its digits."""
    sine, cosine = torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)
    angle_deg = torch.rad2deg(torch.atan2(sine, cosine))
    return torch.where((sine == 0) & (cosine == 0), 90.0, angle_deg)
