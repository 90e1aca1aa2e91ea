"""Classes, from one table of counts: intersection over union, accuracies, the confusion matrix.

    n_ij: pixels of class i predicted as j      t_i = sum_j n_ij      IoU_i = n_ii / (t_i + sum_j n_ji - n_ii)

Paper: Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.errors import MistakeError


class MeanIoU(Metric):
    """Intersection over union of classes, counted over the whole set, then averaged over classes.

    ``update``: ``prediction`` and ``label`` (b H W) class indices below ``num_classes``.
    ``compute``, all in percent: ``mIoU``; ``pixel_acc``, sum_i n_ii / sum_i t_i; ``mean_acc``, the mean of n_ii / t_i over
    the classes that labels contain; ``fw_IoU``, sum_i t_i IoU_i / sum_i t_i, IoU weighted by frequency;
    ``mIoU_absent_0``, mIoU with an absent class counted as 0, as the code of ATRC, MTI-Net and InvPT does.
    Choice: in ``mIoU`` a class that neither labels nor predictions contain has no IoU and is left out of the mean. On the
    whole test set of a benchmark no class is absent; on a few images an absent class must not count as a failure.
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
        """``mIoU``, ``pixel_acc``, ``mean_acc``, ``fw_IoU`` and ``mIoU_absent_0`` in percent."""
        correct, labelled = self.confusion.diagonal(), self.confusion.sum(1)
        iou, total = self._iou(), self.confusion.sum()
        return {
            "mIoU": iou.nanmean(),
            "pixel_acc": 100 * correct.sum().double() / total,
            "mean_acc": (100 * correct.double() / labelled).nanmean(),
            "fw_IoU": (labelled * iou).nansum() / total,
            "mIoU_absent_0": iou.nansum() / self.num_classes + torch.where(total == 0, torch.nan, 0.0),
        }

    def per_class(self) -> Tensor:
        """IoU of every class in percent (num_classes), over all processes; NaN for a class that never occurs."""
        with self.sync_context():
            return self._iou()

    def pixels(self) -> Tensor:
        """The confusion matrix, pixels by (label, prediction), int64 (num_classes num_classes), over all processes."""
        with self.sync_context():
            return self.confusion.clone()

    def _iou(self) -> Tensor:
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return 100 * intersection.double() / union
