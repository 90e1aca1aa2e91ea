"""An F measure of boundaries by distance alone, quick enough to run during training.

It thins predictions and labels as the field's benchmark does, but matches pixels by tolerance without one-to-one
assignment: several predicted pixels may answer to one labelled pixel. Its scores are therefore higher than, and not
comparable with, the odsF of papers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric


class ToleranceBoundaryF(Metric):
    """F of boundaries: tolerance matching without one-to-one assignment; not comparable with the odsF of papers.

    ``update``: ``prediction`` (b H W) probability in 0..1, ``label`` (b H W) 0 or 1, ``valid`` (b H W) bool.
    Of each picture, non-maxima of the soft map are suppressed; at each threshold i / (num_thresholds + 1) the map is
    binarised and thinned. Precision is the share of its pixels with a thinned labelled pixel within ``tolerance`` (a
    fraction of the picture's diagonal); recall the share of thinned labelled pixels with a predicted one as near.
    ``compute``: ``tolF``, F of the counts summed over the set at the best shared threshold, with ``precision`` and
    ``recall`` there, all in percent, and the ``threshold``; ``tolF_own``, with the best threshold of each picture. NaN
    where nothing is labelled.
    The work is done by NumPy on the processor, picture by picture; all states are counts, so any split adds up alike.
    """

    full_state_update = False
    predicted: Tensor
    predicted_near: Tensor
    labelled: Tensor
    labelled_near: Tensor
    best_counts: Tensor
    """The same four counts, each picture at its own best threshold."""

    def __init__(self, tolerance: float, num_thresholds: int = 19) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.num_thresholds = num_thresholds
        for name in ("predicted", "predicted_near", "labelled", "labelled_near"):
            self.add_state(name, torch.zeros(num_thresholds, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("best_counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        probabilities = prediction.detach().float().cpu().numpy()
        boundaries = ((label == 1) & valid).cpu().numpy()
        for probability, boundary, seen in zip(probabilities, boundaries, valid.cpu().numpy(), strict=True):
            counts = self._count(probability, boundary, seen)
            # of equals the highest threshold: a picture without a label is best served by the fewest predictions
            own_best = self.num_thresholds - 1 - f_measure(*counts)[::-1].argmax()
            self.best_counts += torch.from_numpy(counts[:, own_best]).to(self.device)
            predicted, predicted_near, labelled, labelled_near = torch.from_numpy(counts).to(self.device)
            self.predicted += predicted
            self.predicted_near += predicted_near
            self.labelled += labelled
            self.labelled_near += labelled_near

    def _count(self, probability: np.ndarray, boundary: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The four counts (4 num_thresholds) of one picture."""
        distance = self.tolerance * float(np.hypot(*probability.shape))
        thresholds = (np.arange(1, self.num_thresholds + 1) / (self.num_thresholds + 1)).astype(np.float32)
        ridges = np.where(seen, suppress_non_maxima(probability, thresholds[0]), 0)
        labelled = thin(boundary)
        labelled_at, candidates = np.nonzero(labelled), np.nonzero(ridges >= thresholds[0])
        near_label = np.zeros_like(labelled)
        near_label[candidates] = Nearness(labelled, distance)(candidates)
        counts = np.zeros((4, self.num_thresholds), dtype=np.int64)
        for index, threshold in enumerate(thresholds):
            predicted = thin(ridges >= threshold)
            num_labelled_near = Nearness(predicted, distance)(labelled_at).sum()
            counts[:, index] = predicted.sum(), near_label[predicted].sum(), len(labelled_at[0]), num_labelled_near
        return counts

    def compute(self) -> dict[str, Tensor]:
        """``tolF``, ``tolF_own``, ``precision``, ``recall`` in percent, and the ``threshold`` in 0..1."""
        counts = [c.cpu().numpy() for c in (self.predicted, self.predicted_near, self.labelled, self.labelled_near)]
        values = dict.fromkeys(("tolF", "tolF_own", "precision", "recall", "threshold"), float("nan"))
        if counts[2].any():
            f = f_measure(*counts)
            best = int(f.argmax())
            predicted, predicted_near, labelled, labelled_near = (int(c[best]) for c in counts)
            values["tolF"] = 100 * f[best]
            values["tolF_own"] = 100 * float(f_measure(*self.best_counts.cpu().numpy()))
            values["precision"] = 100 * predicted_near / max(predicted, 1)
            values["recall"] = 100 * labelled_near / labelled
            values["threshold"] = (best + 1) / (self.num_thresholds + 1)
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}


def f_measure(
    predicted: np.ndarray, predicted_near: np.ndarray, labelled: np.ndarray, labelled_near: np.ndarray
) -> np.ndarray:
    """Harmonic mean of precision and recall in 0..1 from the four counts; 0 where it has nothing to count."""
    precision = predicted_near / np.maximum(predicted, 1)
    recall = labelled_near / np.maximum(labelled, 1)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)


def suppress_non_maxima(probability: np.ndarray, lowest: float) -> np.ndarray:
    """The soft map (H W) with only its ridges left; everything else, and pixels below ``lowest``, become 0.

    A pixel stays if it is within a hundredth of the (interpolated) values one pixel away on either side, across the
    ridge; plateaus therefore stay. Towards the edge of the picture the last five pixels fade out.
    The radius of one pixel, the hundredth, the smoothing and the fading follow the field's benchmark.
    Choice: the direction across is that of the strongest curvature, of either sign, of the map smoothed by a triangle
    of radius 4; the benchmark approximates that direction, and errs for ridges that run exactly along an axis.
    """
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], dtype=np.float32) / 25
    smooth = ndimage.correlate1d(ndimage.correlate1d(probability, triangle, axis=0), triangle, axis=1)
    slope_y, slope_x = np.gradient(smooth)
    curvature_yy, curvature_yx = np.gradient(slope_y)
    curvature_xx = np.gradient(slope_x, axis=1)

    rows, columns = np.nonzero(probability >= lowest)
    yy, yx, xx = (c[rows, columns] for c in (curvature_yy, curvature_yx, curvature_xx))
    sign = np.copysign(np.float32(1), xx + yy)
    across = np.arctan2(2 * sign * yx, sign * (xx - yy)) / 2
    step_y, step_x = np.sin(across), np.cos(across)
    for side in (-1, 1):
        beside_at = (rows + side * step_y, columns + side * step_x)
        beside = ndimage.map_coordinates(probability, beside_at, order=1, mode="nearest")
        stays = probability[rows, columns] * 1.01 >= beside
        rows, columns, step_y, step_x = (a[stays] for a in (rows, columns, step_y, step_x))

    height, width = probability.shape
    from_edge = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    ridges = np.zeros_like(probability)
    ridges[rows, columns] = probability[rows, columns] * np.minimum(from_edge / 5, 1)
    return ridges


@cache
def _removable() -> tuple[np.ndarray, np.ndarray]:
    """For each of the two half-steps of thinning: may a pixel with this neighbourhood code (256) be removed?

    Bit i of the code is neighbour i, counted from the right one, counter-clockwise.
    """
    on = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(bool).T
    sides = (0, 2, 4, 6)
    branches = sum((~on[i] & (on[i + 1] | on[(i + 2) % 8])).astype(int) for i in sides)
    pairs = sum((on[i] | on[i + 1]).astype(int) for i in sides)
    other_pairs = sum((on[i + 1] | on[(i + 2) % 8]).astype(int) for i in sides)
    thickness = np.minimum(pairs, other_pairs)
    on_the_rim = (branches == 1) & (thickness >= 2) & (thickness <= 3)
    upper_right = on_the_rim & ~((on[1] | on[2] | ~on[7]) & on[0])
    lower_left = on_the_rim & ~((on[5] | on[6] | ~on[3]) & on[4])
    return upper_right, lower_left


def thin(mask: np.ndarray) -> np.ndarray:
    """``mask`` (H W) bool thinned to lines one pixel wide that keep its pieces connected and apart.

    Guo and Hall's parallel thinning (1989, algorithm A1), repeated until nothing changes. Only set pixels are looked
    at, so the cost follows their number and not the size of the picture.
    """
    stride = mask.shape[1] + 2
    padded = np.pad(mask, 1)
    flat = padded.reshape(-1).view(np.uint8)
    neighbours = (1, 1 - stride, -stride, -1 - stride, -1, stride - 1, stride, stride + 1)
    pixels = np.flatnonzero(padded)
    num_before = -1
    while len(pixels) != num_before:
        num_before = len(pixels)
        for removable in _removable():
            code = np.zeros(len(pixels), dtype=np.uint8)
            for bit, offset in enumerate(neighbours):
                code |= flat[pixels + offset] << np.uint8(bit)
            removed = removable[code]
            flat[pixels[removed]] = 0
            pixels = pixels[~removed]
    return padded[1:-1, 1:-1]


class Nearness:
    """Answers whether ``mask`` (H W) bool has a set pixel within ``distance`` (pixels, Euclidean) of a point.

    The disc around a point is taken row by row, and a row holds a pixel where its running count rises over the disc's
    chord: exact, and far cheaper than a distance transform of the whole picture where points are few.
    """

    def __init__(self, mask: np.ndarray, distance: float) -> None:
        self.reach = int(distance)
        padded = np.pad(mask, self.reach)
        self.stride = padded.shape[1] + 1
        sums = np.zeros((padded.shape[0], self.stride), dtype=np.int32)
        np.cumsum(padded, axis=1, out=sums[:, 1:])
        self.sums = sums.reshape(-1)
        steps = range(-self.reach, self.reach + 1)
        self.chords = [(step * self.stride, int(np.sqrt(distance**2 - step**2))) for step in steps]

    def __call__(self, points: tuple[np.ndarray, ...]) -> np.ndarray:
        """One bool for each of ``points`` (rows, columns) in the mask's picture."""
        rows, columns = points
        start = (rows + self.reach) * self.stride + columns + self.reach
        found = np.zeros(len(rows), dtype=bool)
        for offset, half in self.chords:
            found |= self.sums[start + (offset + half + 1)] > self.sums[start + (offset - half)]
        return found
