"""ODS, OIS and AP from counts of matched pixels, by the formulas of the field's benchmark.

Paper: Arbelaez et al., Contour Detection and Hierarchical Image Segmentation (2011), whose benchmark code fixed the
details: ODS interpolated between thresholds, OIS from counts, AP over a hundred and one recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.tasks import NUM_THRESHOLDS


class Counts(NamedTuple):
    """Pixels at each threshold, every field (num_thresholds,) int64."""

    matched_truth: np.ndarray
    """Labelled pixels that are matched, over all annotators."""
    truth: np.ndarray
    """Labelled pixels of all annotators."""
    matched_predicted: np.ndarray
    """Predicted pixels that are matched with at least one annotator's."""
    predicted: np.ndarray


def thresholds_of(num_thresholds: int) -> np.ndarray:
    """``num_thresholds`` of them, evenly spaced inside 0..1; raises ``MistakeError`` below 1."""
    if num_thresholds < 1:
        raise MistakeError(f"num_thresholds: {num_thresholds}; expected 1 or more; papers use {NUM_THRESHOLDS}")
    return np.linspace(1 / (num_thresholds + 1), 1 - 1 / (num_thresholds + 1), num_thresholds)


class Best(NamedTuple):
    """The point of a precision-recall curve with the highest F, all in 0..1."""

    threshold: float
    recall: float
    precision: float
    f: float


def recall_precision(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Both in 0..1 at every threshold; 0 where there is nothing to count."""
    return (
        counts.matched_truth / np.maximum(counts.truth, 1),
        counts.matched_predicted / np.maximum(counts.predicted, 1),
    )


def f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Harmonic mean; 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).eps)


def best_point(counts: Counts) -> Best:
    """The best point, on a hundred steps of straight line from each threshold to the next."""
    recall, precision = recall_precision(counts)
    curve = np.stack([thresholds_of(len(recall)), recall, precision])
    if curve.shape[1] > 1:
        share = np.linspace(0, 1, 100)
        curve = (curve[:, 1:, None] * share + curve[:, :-1, None] * (1 - share)).reshape(3, -1)
    f = f_measure(curve[1], curve[2])
    return Best(*(float(value) for value in (*curve[:, f.argmax()], f.max())))


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve: precision interpolated at recalls 0, 0.01 .. 1, 0 beyond the curve's ends, times 0.01.

    As in the benchmark, a curve of a single recall, such as a perfect binary map gives, has no area.
    """
    recall, first = np.unique(recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    return float(np.interp(np.linspace(0, 1, 101), recall, precision[first], left=0, right=0).sum() / 100)


def recall_at_half_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """R50: the recall where the precision is a half, on straight lines between the points; 0 if it is always lower.

    Where it is always higher: the recall at the lowest precision. Of points with one precision the highest recall counts.
    Paper: Dollar and Zitnick, Fast Edge Detection Using Structured Forests (2015).
    """
    recall, first = np.unique(recall, return_index=True)
    levels, at = np.unique(precision[first][::-1], return_index=True)
    return float(np.interp(max(levels[0], 0.5), levels, recall[::-1][at], right=0))


@dataclass(frozen=True)
class BoundaryCurve:
    """The precision-recall curve of a set of images and its scores, all in 0..1; scores NaN if nothing is labelled."""

    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    ods: float
    """F at the best threshold shared by all images; ``threshold``, ``ods_recall`` and ``ods_precision`` are there."""
    threshold: float
    ods_recall: float
    ods_precision: float
    ois: float
    """F of the counts with each image at its own best threshold."""
    ois_recall: float
    ois_precision: float
    ap: float
    r50: float
    """The recall at which the precision is a half."""

    def points(self) -> dict[str, list[float]]:
        """``thresholds``, ``recall`` and ``precision``, one value for each threshold, for a file."""
        return {name: getattr(self, name).tolist() for name in ("thresholds", "recall", "precision")}

    @classmethod
    def of(cls, counts: Sequence[Counts]) -> BoundaryCurve:
        """Of one or more images."""
        total = Counts(*(np.sum(field, axis=0) for field in zip(*counts, strict=True)))
        own_best = Counts(*(np.sum(field, axis=0) for field in zip(*map(at_own_best, counts), strict=True)))
        return cls.of_sums(total, own_best)

    @classmethod
    def of_sums(cls, total: Counts, own_best: Counts) -> BoundaryCurve:
        """From the images' summed counts: at every threshold, and (1,) at each image's own best."""
        recall, precision = recall_precision(total)
        best, (ois_recall, ois_precision) = best_point(total), (x[0] for x in recall_precision(own_best))
        scores = (best.f, *best[:3], f_measure(ois_recall, ois_precision), ois_recall, ois_precision)
        figures = np.array([*scores, average_precision(recall, precision), recall_at_half_precision(recall, precision)])
        if not total.truth.any():
            figures[:] = np.nan
        return cls(thresholds_of(len(recall)), recall, precision, *figures.tolist())


def at_own_best(counts: Counts) -> Counts:
    """One image's counts (1,) at its best threshold; the lowest of equals, as in the benchmark."""
    best = int(f_measure(*recall_precision(counts)).argmax())
    return Counts(*(field[best : best + 1] for field in counts))
