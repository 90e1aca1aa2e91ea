"""The field's boundary scores: ODS, OIS and AP, with pixels matched one to one.

Paper: Martin, Fowlkes and Malik, Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and Texture
Cues (2004).
Differs: the benchmark's matcher joins the pixels that stay unmatched by a few random edges, which costs it some pairs
(0.05 % of them on its own example); the matching here is the true optimum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.errors import MistakeError
from mtlsi.metrics.boundary.curve import BoundaryCurve, Counts, at_own_best, thresholds_of
from mtlsi.metrics.boundary.suppression import suppress_non_maxima


def boundary_counts(
    soft: np.ndarray,
    annotators: Sequence[np.ndarray],
    *,
    max_dist: float,
    num_thresholds: int = 99,
    nms: bool = True,
    thin: bool = True,
    valid: np.ndarray | None = None,
) -> Counts:
    """The counts of one image.

    ``soft`` (H W) probability in 0..1; ``annotators``, the boundaries (H W) bool of each; ``max_dist``, how far apart a
    pair may lie, as a fraction of the image's diagonal. ``nms`` suppresses the non-maxima of the soft map, ``thin``
    thins what lies above a threshold. Pixels outside ``valid`` (H W) bool count neither as predicted nor as labelled.
    Choice: ``thin`` thins the annotators' maps too, so that a label drawn two pixels wide can be reached in full. Those
    of BSDS are thin already and stay as they are.
    Raises ``MistakeError`` for maps of other sizes, values outside 0..1, or a ``max_dist`` outside 0..1.
    """
    from mtlsi.metrics.boundary.matching import match_levels  # here, because numba takes a second to import
    from mtlsi.metrics.boundary.thinning import thin as thinned
    from mtlsi.metrics.boundary.thinning import thin_levels

    _check(soft, annotators, max_dist)
    thresholds = thresholds_of(num_thresholds)
    ridges = suppress_non_maxima(soft, thresholds[0]) if nms else soft
    if valid is not None:
        ridges, annotators = np.where(valid, ridges, 0), [boundary & valid for boundary in annotators]
    distance = max_dist * float(np.hypot(*soft.shape))
    rim = max(1, int(distance))
    pixels, starts = thin_levels(ridges.astype(np.float64), thresholds, rim, thin)
    matched_truth, num_truth = np.zeros(num_thresholds, dtype=np.int64), 0
    matched = np.zeros(len(pixels), dtype=bool)
    for boundary in annotators:
        truth = np.flatnonzero(np.pad(thinned(boundary) if thin else boundary, rim)).astype(np.int32)
        # which pixels are matched matters only where several annotators share the predicted ones
        nearest = len(annotators) > 1
        own = match_levels(pixels, starts, truth, soft.shape[1] + 2 * rim, distance, nearest=nearest)
        matched_truth += _sums(own, starts)
        matched |= own
        num_truth += len(truth)
    falling = (matched_truth, np.full(num_thresholds, num_truth), _sums(matched, starts), np.diff(starts))
    return Counts(*(count[::-1].astype(np.int64) for count in falling))


def _check(soft: np.ndarray, annotators: Sequence[np.ndarray], max_dist: float) -> None:
    if not 0 < max_dist < 1:
        raise MistakeError(f"max_dist: {max_dist}; expected a fraction of the diagonal between 0 and 1, such as 0.0075")
    for boundary in annotators:
        if boundary.shape != soft.shape:
            raise MistakeError(f"boundary map {soft.shape}, label {boundary.shape}; expected one size: resize the map")
    if not (soft.min(initial=0) >= 0 and soft.max(initial=0) <= 1):  # false for NaN too
        raise MistakeError(f"boundary map with values {soft.min():g}..{soft.max():g}; expected probabilities in 0..1")


def _sums(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many are set between each of ``starts`` and the next."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[starts])


def count_pairs(
    pairs: Iterable[tuple[Any, ...]],
    *,
    max_dist: float,
    num_thresholds: int = 99,
    nms: bool = True,
    thin: bool = True,
    num_workers: int = 1,
) -> Iterator[Counts]:
    """``boundary_counts`` of every (soft, annotators) or (soft, annotators, valid), in order.

    Choice: ``num_workers`` threads and not processes: the compiled loops run without the interpreter's lock, nothing is
    copied, and images are drawn from ``pairs`` only a few ahead of the work.
    """

    def count(soft: np.ndarray, annotators: Sequence[np.ndarray], valid: np.ndarray | None = None) -> Counts:
        return boundary_counts(
            soft, annotators, max_dist=max_dist, num_thresholds=num_thresholds, nms=nms, thin=thin, valid=valid
        )

    if num_workers <= 1:
        yield from (count(*pair) for pair in pairs)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[Counts]] = deque()
        try:
            for pair in pairs:
                waiting.append(pool.submit(count, *pair))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error nobody wants the rest
            pool.shutdown(cancel_futures=True)


class BoundaryF(Metric):
    """ODS, OIS and AP of boundaries with one annotator, as papers print them.

    ``update``: ``prediction`` (b H W) probability in 0..1, ``label`` (b H W) 0 or 1, ``valid`` (b H W) bool; see
    ``boundary_counts`` for the rest. Images with several annotators: ``add`` their ``boundary_counts``.
    ``compute``: ``odsF`` and ``oisF``, ``AP``, and ``precision`` and ``recall`` at the ODS, in percent, and its
    ``threshold`` in 0..1; NaN where nothing is labelled.
    The work is done by the CPU, image by image; all states are counts, so any split adds up alike.
    """

    full_state_update = False
    total: Tensor
    """The four counts at every threshold (4 num_thresholds)."""
    own_best: Tensor
    """The four counts (4 1), each image at its own best threshold."""

    def __init__(
        self, max_dist: float, *, num_thresholds: int = 99, nms: bool = True, thin: bool = True, num_workers: int = 1
    ) -> None:
        super().__init__()
        self.options = {"max_dist": max_dist, "num_thresholds": num_thresholds, "nms": nms, "thin": thin}
        self.num_workers = num_workers
        size = len(thresholds_of(num_thresholds))
        self.add_state("total", torch.zeros(4, size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("own_best", torch.zeros(4, 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        seen = valid.cpu().numpy()
        boundaries = (label == 1).cpu().numpy()
        pairs = zip(prediction.detach().float().cpu().numpy(), boundaries[:, None], seen, strict=True)
        for counts in count_pairs(pairs, **self.options, num_workers=self.num_workers):
            self.add(counts)

    def add(self, counts: Counts) -> None:
        """Add one image."""
        self.total += torch.from_numpy(np.stack(counts)).to(self.device)
        self.own_best += torch.from_numpy(np.stack(at_own_best(counts))).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``odsF``, ``oisF``, ``AP``, ``precision``, ``recall`` in percent and the ``threshold`` in 0..1."""
        curve = self._curve()
        values = {
            "odsF": 100 * curve.ods,
            "oisF": 100 * curve.ois,
            "AP": 100 * curve.ap,
            "precision": 100 * curve.ods_precision,
            "recall": 100 * curve.ods_recall,
            "threshold": curve.threshold,
        }
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}

    def curve(self) -> dict[str, float]:
        """``precision/T`` and ``recall/T`` in percent at every threshold T, over all processes."""
        curve = self.precision_recall()
        points = {"precision": curve.precision, "recall": curve.recall}
        return {
            f"{name}/{threshold:.4g}": 100 * float(value)
            for name, values in points.items()
            for threshold, value in zip(curve.thresholds, values, strict=True)
        }

    def precision_recall(self) -> BoundaryCurve:
        """The curve and its scores, over all processes."""
        with self.sync_context():
            return self._curve()

    def _curve(self) -> BoundaryCurve:
        return BoundaryCurve.of_sums(Counts(*self.total.cpu().numpy()), Counts(*self.own_best.cpu().numpy()))
