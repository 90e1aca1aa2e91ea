"""How well a map of probabilities finds what is salient.

    F = (1 + beta^2) P R / (beta^2 P + R)      P, R: precision and recall of the pixels at or above a threshold

Paper: Achanta et al., "Frequency-tuned salient region detection", CVPR 2009, with beta^2 = 0.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.metrics.dense.finite import check_finite


class MaxF(Metric):
    """F measure of saliency at its best threshold, the counts summed over the set; overlap, and absolute error.

    ``update``: ``prediction`` (b H W) probability in 0..1, ``label`` (b H W) 0 or 1.
    ``compute``: ``maxF``, with ``precision`` and ``recall`` there, in percent, and the ``threshold``. Thresholds are
    0.05, 0.10 .. 0.95; a pixel counts as salient from the threshold on; beta^2 = 0.3 favours precision.
    ``mIoU``: intersection over union of the salient pixels of the set, in percent, at its own best threshold. ``MAE``: the
    mean of |prediction - label|, in 0..1. Beside these pooled ones, means over images:
    ``maxF_per_image``: F of the mean P and the mean R over images, at the best threshold, as saliency benchmarks have it;
    ``mIoU_per_image``: the mean over images of the IoU, at the best shared threshold; ``MAE_per_image``.
    Both best thresholds follow Maninis et al. (ASTMT, CVPR 2019) and MTI-Net, which take 0.2 to 0.9 and, in their code,
    beta^2 = 1. Choice: an image without a salient label has no recall and is left out of their means.
    NaN where no valid pixel is labelled salient: no prediction could score then.
    ``legacy=True`` pushes the probability through one more sigmoid, as several published codes do by mistake. It leaves
    four thresholds that tell pixels apart and so lowers the score: only for comparing with their tables. ``MAE`` stays.
    """

    full_state_update = False
    BETA_SQUARED = 0.3
    thresholds: Tensor
    counts: Tensor
    """Pixels by (label, number of thresholds reached): prediction curves follow by cumulative sums."""
    absolute: Tensor
    num_images: Tensor
    """Images with a valid pixel, and those with a salient one."""
    of_images: Tensor
    """Sums over images, in 0..1: precision, recall and IoU by threshold (3 num_thresholds)."""
    absolute_of_images: Tensor

    def __init__(self, *, legacy: bool = False) -> None:
        super().__init__()
        self.legacy = legacy
        # float32, as probabilities are: a prediction of exactly 0.95 must reach the threshold 0.95
        self.register_buffer("thresholds", torch.arange(1, 20, dtype=torch.float32) / 20, persistent=False)
        num = len(self.thresholds)
        self.add_state("counts", torch.zeros(2, num + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("absolute", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("of_images", torch.zeros(3, num, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("absolute_of_images", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        for one in zip(prediction, label, valid, strict=True):
            self._add(*one)

    def _add(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        probability, salient = prediction[valid].float(), label[valid] == 1
        check_finite(probability)
        if not len(probability):
            return
        absolute = (probability.double() - salient.double()).abs().sum()
        if self.legacy:
            probability = probability.sigmoid()
        reached = torch.bucketize(probability, self.thresholds, right=True)
        codes = salient * self.counts.shape[1] + reached
        counts = torch.bincount(codes, minlength=self.counts.numel()).view_as(self.counts)
        self.counts += counts
        self.absolute += absolute
        self.absolute_of_images += absolute / len(probability)
        self.num_images[0] += 1
        if counts[1].any():
            self.num_images[1] += 1
            false, true, labelled = _reached(counts)
            self.of_images += torch.stack(
                [true / (true + false).clamp(min=1), true / labelled, true / (labelled + false)]
            )

    def compute(self) -> dict[str, Tensor]:
        """``maxF``, ``precision``, ``recall``, ``mIoU`` in percent, the ``threshold`` and ``MAE`` in 0..1, and by image."""
        false, true, labelled = _reached(self.counts)
        f = (1 + self.BETA_SQUARED) * true / (self.BETA_SQUARED * labelled + true + false)
        best = f.argmax()
        precision, recall, overlap = self.of_images / self.num_images[1]
        both = self.BETA_SQUARED * precision + recall
        f_of_means = torch.where(both == 0, 0.0, (1 + self.BETA_SQUARED) * precision * recall / both)
        values = {
            "maxF": 100 * f[best],
            "precision": 100 * true[best] / (true + false)[best].clamp(min=1),
            "recall": 100 * true[best] / labelled,
            "threshold": self.thresholds[best].double(),
            "mIoU": 100 * (true / (labelled + false)).max(),
            "maxF_per_image": 100 * f_of_means.max(),
            "mIoU_per_image": 100 * overlap.max(),
        }
        if labelled == 0:
            values = {name: value * torch.nan for name, value in values.items()}
        values["MAE"] = self.absolute / self.counts.sum()
        values["MAE_per_image"] = self.absolute_of_images / self.num_images[0]
        return values

    def curve(self) -> dict[str, list[float]]:
        """``thresholds``, ``recall`` and ``precision`` in 0..1, one value for each threshold, over all processes."""
        with self.sync_context():
            false, true, labelled = _reached(self.counts)
        found = {"recall": true / labelled, "precision": true / (true + false).clamp(min=1)}
        return {"thresholds": self.thresholds.tolist()} | {name: values.tolist() for name, values in found.items()}


def _reached(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many pixels of the background and how many salient ones reach each threshold, and how many are salient."""
    false, true = counts.flip(1).cumsum(1).flip(1)[:, 1:].double()
    return false, true, counts[1].sum()
