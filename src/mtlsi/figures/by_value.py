"""How large errors are where the label is small and where it is large, in one pass and without knowing the range before.

    bin k of width w holds the numbers y with k w <= y < (k + 1) w

Widths are powers of two, so that two bins make exactly one of the next width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_BINS = 4096
"""Of the fine bins; beyond them each two become one."""
MOST_SHOWN = 24
"""Of the bins of a figure."""
FAR = 2**60
"""Bins end here: indices must fit in 64 bits."""
DISTANCE_EXPONENT = -7
"""Fine bins of distances begin at 2^-7 m, below a centimetre."""


@dataclass(frozen=True)
class ErrorBins:
    """Errors in bins of the label; n bins, the first and the last with all that lies beyond them."""

    edges: np.ndarray
    """(n + 1)"""
    pixels: np.ndarray
    """(n) int64"""
    rmse: np.ndarray
    """(n), in the label's unit; NaN where a bin is empty."""
    mae: np.ndarray
    """(n), likewise."""
    abs_rel: np.ndarray
    """(n): the mean of |p - y| / |y| over labels y that are not 0."""

    def record(self) -> dict[str, list[float]]:
        """The numbers by name, for a file."""
        return {name: getattr(self, name).tolist() for name in ("edges", "pixels", "rmse", "mae", "abs_rel")}


class ErrorsByValue:
    """Sums of errors in bins of the label, of any range.

    ``exponent``: the fine bins begin at the width 2^exponent; None: at a thousandth of what the first image spans.
    """

    def __init__(self, exponent: int | None = None) -> None:
        self.exponent = exponent
        self.keys = np.empty(0, np.int64)
        self.sums = np.empty((0, 5))
        """By bin: pixels, squared error, absolute error, pixels with a label that is not 0, relative error of those."""

    def update(self, predicted: np.ndarray, labelled: np.ndarray) -> None:
        """Add numbers, both (n), finite and in one unit."""
        predicted, labelled = predicted.astype(np.float64), labelled.astype(np.float64)
        if not labelled.size:
            return
        if self.exponent is None:
            span = float(np.ptp(labelled)) or 1.0
            self.exponent = int(np.ceil(np.log2(span))) - 10
        keys = np.clip(np.floor(labelled * 2.0**-self.exponent), -FAR, FAR).astype(np.int64)
        error, nonzero = np.abs(predicted - labelled), labelled != 0
        relative = np.divide(error, np.abs(labelled), out=np.zeros_like(error), where=nonzero)
        found, where = np.unique(keys, return_inverse=True)
        weights = (None, error**2, error, nonzero, relative)
        sums = np.stack([np.bincount(where, weight, len(found)) for weight in weights], 1)
        self._merge(np.concatenate([self.keys, found]), np.concatenate([self.sums, sums]))
        while len(self.keys) > MOST_BINS:
            self.exponent += 1
            self._merge(self.keys >> 1, self.sums)

    def _merge(self, keys: np.ndarray, sums: np.ndarray) -> None:
        self.keys, where = np.unique(keys, return_inverse=True)
        self.sums = np.zeros((len(self.keys), sums.shape[1]))
        np.add.at(self.sums, where, sums)

    def bins(self) -> ErrorBins | None:
        """At most ``MOST_SHOWN`` bins over the middle 99 % of the labels, its ends with all beyond; None without labels."""
        if self.exponent is None or not len(self.keys):
            return None
        passed = np.cumsum(self.sums[:, 0])
        low, high = self.keys[np.searchsorted(passed, np.array([0.005, 0.995]) * passed[-1])]
        shift = 0
        while (high >> shift) - (low >> shift) >= MOST_SHOWN:
            shift += 1
        first, last = int(low >> shift), int(high >> shift)
        groups = np.clip(self.keys >> shift, first, last) - first
        total = np.zeros((last - first + 1, self.sums.shape[1]))
        np.add.at(total, groups, self.sums)
        pixels, squared, absolute, nonzero, relative = total.T
        with np.errstate(invalid="ignore"):  # an empty bin: NaN
            means = np.sqrt(squared / pixels), absolute / pixels, relative / nonzero
        edges = np.arange(first, last + 2) * 2.0 ** (self.exponent + shift)
        return ErrorBins(edges, pixels.astype(np.int64), *means)
