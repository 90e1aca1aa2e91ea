"""Metrics that compare pixel with pixel: mIoU, errors of depth, values and directions, maxF.

All take decoded predictions, ``update(prediction, label, valid)`` with ``valid`` (b H W) bool, and hold nothing but
int64 or float64 sums, so batches and processes may be cut in any way and still add up to the same score.
``compute()`` gives named scalars; shares are in percent, and a score that no pixel speaks for is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.errors import MistakeError


class MeanIoU(Metric):
    """Intersection over union of classes, counted over the whole set, then averaged over classes.

    ``update``: ``prediction`` and ``label`` (b H W) class indices below ``num_classes``.
    ``compute``: ``mIoU`` and ``pixel_acc``, both in percent.
    Choice: a class that neither labels nor predictions contain has no IoU and is left out of the mean. On the whole
    test set of a benchmark no class is absent; on a few images an absent class must not count as a failure.
    """

    full_state_update = False
    confusion: Tensor
    """Pixels by (label, prediction)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch. Raises ``MistakeError`` for a valid label or a prediction that is no class."""
        predicted, labelled = prediction[valid].long(), label[valid].long()
        for what, indices in (("label", labelled), ("prediction", predicted)):
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.num_classes:
                raise MistakeError(
                    f"{what} holds class indices {int(indices.min())}..{int(indices.max())}; expected"
                    f" 0..{self.num_classes - 1} where labelled: check the class list of the data set"
                )
        codes = labelled * self.num_classes + predicted
        self.confusion += torch.bincount(codes, minlength=self.num_classes**2).view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """``mIoU`` and ``pixel_acc`` in percent."""
        correct, total = self.confusion.diagonal().sum(), self.confusion.sum()
        return {"mIoU": self._iou().nanmean(), "pixel_acc": 100 * correct.double() / total}

    def per_class(self) -> Tensor:
        """IoU of every class in percent (num_classes), over all processes; NaN for a class that never occurs."""
        with self.sync_context():
            return self._iou()

    def _iou(self) -> Tensor:
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return 100 * intersection.double() / union


class DepthError(Metric):
    """Errors of depth, pooled over all valid pixels of the set rather than averaged over images.

    ``update``: ``prediction`` and ``label`` (b H W) in metres.
    ``compute``: ``RMSE`` in metres; ``abs_rel``, the mean of |error| / label; ``log10``, the mean of |log10 ratio|;
    ``delta1``..``delta3``, the percentage of pixels whose ratio to the label, either way up, is below 1.25 to the power
    of 1..3.
    Choice: ratios need positive depths, so for them alone a prediction below a millimetre counts as a millimetre.
    """

    full_state_update = False
    num_pixels: Tensor
    squared: Tensor
    relative: Tensor
    log10: Tensor
    within: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squared", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("relative", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("log10", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        predicted_m, labelled_m = prediction[valid].double(), label[valid].double()
        error_m = predicted_m - labelled_m
        ratio = predicted_m.clamp(min=1e-3) / labelled_m
        self.num_pixels += valid.sum()
        self.squared += error_m.square().sum()
        self.relative += (error_m.abs() / labelled_m).sum()
        self.log10 += ratio.log10().abs().sum()
        either_way = torch.maximum(ratio, 1 / ratio)
        self.within += torch.stack([(either_way < 1.25**power).sum() for power in (1, 2, 3)])

    def compute(self) -> dict[str, Tensor]:
        """``RMSE`` (metres), ``abs_rel``, ``log10``, ``delta1``, ``delta2``, ``delta3`` (percent)."""
        delta1, delta2, delta3 = 100 * self.within.double() / self.num_pixels
        return {
            "RMSE": (self.squared / self.num_pixels).sqrt(),
            "abs_rel": self.relative / self.num_pixels,
            "log10": self.log10 / self.num_pixels,
            "delta1": delta1,
            "delta2": delta2,
            "delta3": delta3,
        }


class RegressionError(Metric):
    """Errors of any numbers, pooled over all valid pixels of the set.

    ``update``: ``prediction`` and ``label`` (b H W) or (b c H W).
    ``compute``: ``RMSE`` and ``MAE`` in the label's unit.
    Choice: every channel of a pixel counts as one number, so RMSE is comparable between numbers of channels.
    """

    full_state_update = False
    num_values: Tensor
    squared: Tensor
    absolute: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_values", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("squared", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("absolute", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        if label.dim() == 4:
            prediction, label = prediction.movedim(1, -1), label.movedim(1, -1)
        error = prediction[valid].double() - label[valid].double()
        self.num_values += error.numel()
        self.squared += error.square().sum()
        self.absolute += error.abs().sum()

    def compute(self) -> dict[str, Tensor]:
        """``RMSE`` and ``MAE`` in the label's unit."""
        return {"RMSE": (self.squared / self.num_values).sqrt(), "MAE": self.absolute / self.num_values}


class AngularError(Metric):
    """Angle between predicted and labelled directions, over all valid pixels of the set.

    ``update``: ``prediction`` and ``label`` (b 3 H W); only their directions count.
    ``compute``: ``mErr`` and ``median`` in degrees; ``within_11.25``, ``within_22.5``, ``within_30``, the percentage of
    pixels whose error is below so many degrees. The median is read from a histogram with bins of a hundredth of a
    degree, because counts add up over processes and a median does not: it is exact to half a bin.
    Choice: a prediction without a direction, (0, 0, 0), counts as 90 degrees off.
    """

    full_state_update = False
    BINS_PER_DEGREE = 100
    LIMITS_DEG = (11.25, 22.5, 30)
    num_pixels: Tensor
    total_deg: Tensor
    within: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        num_bins = 180 * self.BINS_PER_DEGREE
        self.add_state("num_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total_deg", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(self.LIMITS_DEG), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        angle_deg = _angle_deg(prediction.movedim(1, -1)[valid].double(), label.movedim(1, -1)[valid].double())
        self.num_pixels += valid.sum()
        self.total_deg += angle_deg.sum()
        self.within += torch.stack([(angle_deg < limit).sum() for limit in self.LIMITS_DEG])
        num_bins = len(self.histogram)
        bins = (angle_deg * self.BINS_PER_DEGREE).long().clamp(max=num_bins - 1)
        self.histogram += torch.bincount(bins, minlength=num_bins)

    def compute(self) -> dict[str, Tensor]:
        """``mErr`` and ``median`` in degrees; ``within_11.25``, ``within_22.5`` and ``within_30`` in percent."""
        shares = 100 * self.within.double() / self.num_pixels
        return {
            "mErr": self.total_deg / self.num_pixels,
            "median": self._median_deg(),
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


class MaxF(Metric):
    """F measure of saliency at its best threshold, the counts summed over the set.

    ``update``: ``prediction`` (b H W) probability in 0..1, ``label`` (b H W) 0 or 1.
    ``compute``: ``maxF``, with ``precision`` and ``recall`` there, in percent, and the ``threshold``. Thresholds are
    0.05, 0.10 .. 0.95; a pixel counts as salient from the threshold on; beta^2 = 0.3 favours precision.
    NaN where no valid pixel is labelled salient: no prediction could score then.
    ``legacy=True`` pushes the probability through one more sigmoid, as several published codes do by mistake. It leaves
    four thresholds that tell pixels apart and so lowers the score: only for comparing with their tables.
    """

    full_state_update = False
    BETA_SQUARED = 0.3
    thresholds: Tensor
    counts: Tensor
    """Pixels by (label, number of thresholds reached): prediction curves follow by cumulative sums."""

    def __init__(self, *, legacy: bool = False) -> None:
        super().__init__()
        self.legacy = legacy
        # float32, as probabilities are: a prediction of exactly 0.95 must reach the threshold 0.95
        self.register_buffer("thresholds", torch.arange(1, 20, dtype=torch.float32) / 20, persistent=False)
        self.add_state("counts", torch.zeros(2, len(self.thresholds) + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        probability = prediction[valid].float()
        if self.legacy:
            probability = probability.sigmoid()
        reached = torch.bucketize(probability, self.thresholds, right=True)
        codes = (label[valid] == 1) * self.counts.shape[1] + reached
        self.counts += torch.bincount(codes, minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """``maxF``, ``precision``, ``recall`` in percent, and the ``threshold`` in 0..1."""
        # how many pixels reach each threshold, of the background and of the salient ones
        false, true = self.counts.flip(1).cumsum(1).flip(1)[:, 1:].double()
        labelled = self.counts[1].sum()
        if labelled == 0:
            nan = false[0] * torch.nan
            return dict.fromkeys(("maxF", "precision", "recall", "threshold"), nan)
        f = (1 + self.BETA_SQUARED) * true / (self.BETA_SQUARED * labelled + true + false)
        best = f.argmax()
        return {
            "maxF": 100 * f[best],
            "precision": 100 * true[best] / (true + false)[best].clamp(min=1),
            "recall": 100 * true[best] / labelled,
            "threshold": self.thresholds[best].double(),
        }
