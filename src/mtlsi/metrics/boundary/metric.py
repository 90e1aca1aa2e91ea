"""ODS, OIS and AP as a metric whose states are counts, so that batches and processes add up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.metrics.boundary.curve import BoundaryCurve, Counts, at_own_best
from mtlsi.metrics.boundary.protocols import Protocol, protocol_named
from mtlsi.metrics.boundary.score import count_pairs
from mtlsi.tasks import BOUNDARY_PROTOCOL


class BoundaryF(Metric):
    """ODS, OIS and AP of boundaries with one annotator, as papers print them.

    ``max_dist``: reach of a match on this data, as a fraction of the image's diagonal, where ``protocol``, a record or a
    name of ``PROTOCOLS``, has none of its own. ``num_thresholds``, ``nms``, ``thin``: instead of the protocol's.
    ``update``: ``prediction`` (b H W) probability in 0..1, ``label`` (b H W) 0 or 1, ``valid`` (b H W) bool; see
    ``boundary_counts`` for the rest. Images with several annotators: ``add`` their ``boundary_counts``.
    ``compute``: ``odsF`` and ``oisF``, ``AP``, and ``precision`` and ``recall`` at the ODS and at the OIS, ``R50``, in
    percent, and the ODS's ``threshold`` in 0..1; NaN where nothing is labelled.
    The work is done by the CPU, image by image; all states are counts, so any split adds up alike.
    """

    full_state_update = False
    total: Tensor
    """The four counts at every threshold (4 num_thresholds)."""
    own_best: Tensor
    """The four counts (4 1), each image at its own best threshold."""

    def __init__(
        self,
        max_dist: float,
        *,
        protocol: str | Protocol = BOUNDARY_PROTOCOL,
        num_thresholds: int | None = None,
        nms: bool | None = None,
        thin: bool | None = None,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        changed = protocol_named(protocol).with_changes(num_thresholds=num_thresholds, nms=nms, thin=thin)
        self.protocol = changed.on_data(max_dist)
        self.num_workers = num_workers
        size = self.protocol.num_thresholds
        self.add_state("total", torch.zeros(4, size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("own_best", torch.zeros(4, 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        boundaries = (label == 1).cpu().numpy()
        soft = self.protocol.as_stored(prediction.detach().float().cpu().numpy())
        known = valid.cpu().numpy()
        if not self.protocol.mask_unknown:
            boundaries, known = boundaries & known, np.ones_like(known)
        pairs = zip(soft, boundaries[:, None], known, strict=True)
        for counts in count_pairs(pairs, **self.protocol.counting(), num_workers=self.num_workers):
            self.add(counts)

    def add(self, counts: Counts) -> None:
        """Add one image."""
        self.total += torch.from_numpy(np.stack(counts)).to(self.device)
        self.own_best += torch.from_numpy(np.stack(at_own_best(counts))).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``odsF``, ``oisF``, ``AP``, ``R50``, precisions and recalls in percent and the ``threshold`` in 0..1."""
        curve = self._curve()
        values = {
            "odsF": 100 * curve.ods,
            "oisF": 100 * curve.ois,
            "AP": 100 * curve.ap,
            "precision": 100 * curve.ods_precision,
            "recall": 100 * curve.ods_recall,
            "threshold": curve.threshold,
            "R50": 100 * curve.r50,
            "ois_precision": 100 * curve.ois_precision,
            "ois_recall": 100 * curve.ois_recall,
        }
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}

    def precision_recall(self) -> BoundaryCurve:
        """The curve and its scores, over all processes."""
        with self.sync_context():
            return self._curve()

    def _curve(self) -> BoundaryCurve:
        return BoundaryCurve.of_sums(Counts(*self.total.cpu().numpy()), Counts(*self.own_best.cpu().numpy()))
