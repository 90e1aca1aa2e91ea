"""One-to-one matching of predicted to labelled boundary pixels: as many pairs as possible, and among those the nearest.

The maps of one image at falling thresholds are nearly nested. The matching is therefore kept from one threshold to
the next and mended where pixels came or went, which costs a search around the change and not a new solution.

With every pixel goes a price (the dual variable of the assignment problem): no pair costs less than the sum of its two
prices, a matched pair exactly that, and an unmatched pixel has the highest price of its side. As long as that holds
the matching is optimal, and where nothing can be gained the prices say so at once.

Paper: the benchmark solves the same assignment problem (Martin, Fowlkes and Malik 2004), again for every threshold.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from mtlsi.metrics.boundary.compiling import compiled

FREE, ABSENT = -1, -2
UNREACHED = np.iinfo(np.int64).max


class Side(NamedTuple):
    """The pixels of one map."""

    pixels: np.ndarray
    """Flat indices, rising; a pixel's number is its place here."""
    rank: np.ndarray
    """Of each flat index, how many of ``pixels`` come before it."""
    mate: np.ndarray
    price: np.ndarray
    reached: np.ndarray
    """How far a search has come, minus where it began; ``UNREACHED`` between searches."""
    came_from: np.ndarray


class Reach(NamedTuple):
    """The disc around a pixel, row by row, the nearest row first.

    The numbers of the pixels in one row of it are consecutive. So partners are looked up and never stored: on a large
    image a single pixel has thousands.
    """

    steps: np.ndarray
    """From the pixel to the middle of each row, in flat indices."""
    widths: np.ndarray
    """How far each row extends to either side."""
    squares: np.ndarray
    """Squared distance to the middle of each row."""
    costs: np.ndarray
    """By squared distance."""


class Matcher:
    """The matching of one annotator's map, kept from one level to the next.

    ``candidates`` (n,) and ``truth`` (m,): rising flat indices of all pixels that may be predicted at any level, and of
    the labelled ones. ``stride`` is the width of the image with its rim, which must be at least ``max_distance`` (pixels,
    Euclidean) wide. At each level the number of pairs is the largest possible; with ``nearest`` their summed distance is
    the least possible besides, in steps of 0.01 pixel as in the benchmark.
    """

    def __init__(
        self, candidates: np.ndarray, truth: np.ndarray, stride: int, max_distance: float, *, nearest: bool
    ) -> None:
        self._reach = reach = _reach(stride, max_distance, nearest)
        size = int(max(candidates.max(initial=0), truth.max(initial=0)) + reach.steps.max() + reach.widths.max()) + 1
        self._labels = _side(truth, size, FREE)
        self._predictions = _side(candidates[_near(candidates, self._labels, reach)], size, ABSENT)
        # so dear that no sum of distances makes up for a pair less
        fewer = min(len(truth), len(self._predictions.pixels))
        self._unmatched = (fewer + 1) * (int(reach.costs.max()) + 1)
        self._level_of = np.full(len(self._predictions.pixels), -1, dtype=np.int32)
        self._before, self._level = candidates[:0], 0

    def match(self, pixels: np.ndarray) -> np.ndarray:
        """For each of ``pixels`` (k,) int32, those of the next level: is it matched? (k,) bool."""
        settings = (self._level, self._level_of, self._predictions, self._labels, self._reach, self._unmatched)
        matched = _match_level(pixels, self._before, *settings)
        self._before, self._level = pixels, self._level + 1
        return matched


def _reach(stride: int, max_distance: float, nearest: bool) -> Reach:
    rows = np.array(sorted(range(-int(max_distance), int(max_distance) + 1), key=abs), dtype=np.int64)
    columns = np.arange(int(max_distance) + 1)
    widths = (rows[:, None] ** 2 + columns**2 <= max_distance**2).sum(1) - 1
    costs = np.rint(100 * np.sqrt(np.arange(int(max_distance**2) + 1))).astype(np.int64) * nearest
    return Reach(rows * stride, widths.astype(np.int64), rows**2, costs)


def _side(pixels: np.ndarray, size: int, mate: int) -> Side:
    rank = np.zeros(size + 1, dtype=np.int32)
    rank[pixels + 1] = 1
    np.cumsum(rank, out=rank)
    return Side(
        pixels,
        rank,
        np.full(len(pixels), mate, dtype=np.int32),
        np.zeros(len(pixels), dtype=np.int64),
        np.full(len(pixels), UNREACHED, dtype=np.int64),
        np.empty(len(pixels), dtype=np.int32),
    )


@compiled
def _near(pixels: np.ndarray, other: Side, reach: Reach) -> np.ndarray:
    """Which of ``pixels`` have one of the other side in reach."""
    near = np.zeros(len(pixels), dtype=np.bool_)
    for i in range(len(pixels)):
        for row in range(len(reach.steps)):
            middle, width = pixels[i] + reach.steps[row], reach.widths[row]
            if other.rank[middle + width + 1] > other.rank[middle - width]:
                near[i] = True
                break
    return near


@compiled
def _match_level(
    pixels: np.ndarray,
    before: np.ndarray,
    level: int,
    level_of: np.ndarray,
    predictions: Side,
    labels: Side,
    reach: Reach,
    unmatched: int,
) -> np.ndarray:
    """Mend the matching of the pixels ``before`` to that of ``pixels``."""
    rank = predictions.rank
    # All labelled pixels have a partner, and distances do not matter: more pixels cannot change that, and these prices
    # say so at once. It is the rule on a noisy map, where looking at every new pixel's partners would take minutes.
    saturated = reach.costs.max() == 0 and len(labels.pixels) > 0 and labels.mate.min() >= 0
    if saturated:
        labels.price[:] = -unmatched
        predictions.price[:] = unmatched
    for pixel in pixels:
        if rank[pixel + 1] > rank[pixel]:
            level_of[rank[pixel]] = level
    loose = np.empty(len(labels.pixels), dtype=np.int32)
    num_loose = 0
    for pixel in before:
        gone = rank[pixel]
        if rank[pixel + 1] > gone and level_of[gone] < level:
            mate = predictions.mate[gone]
            predictions.mate[gone] = ABSENT
            if mate >= 0:
                labels.mate[mate] = FREE
                loose[num_loose] = mate
                num_loose += 1
    for pixel in pixels:
        new = rank[pixel]
        if rank[pixel + 1] > new and predictions.mate[new] == ABSENT:
            predictions.mate[new] = FREE
            if not saturated:
                _settle(int(new), predictions, unmatched, labels, reach)
    for i in range(num_loose):  # last, for most have found a partner among the new pixels by now
        if labels.mate[loose[i]] == FREE:
            _settle(int(loose[i]), labels, 0, predictions, reach)
    matched = np.zeros(len(pixels), dtype=np.bool_)
    for i in range(len(pixels)):
        number = rank[pixels[i]]
        matched[i] = rank[pixels[i] + 1] > number and predictions.mate[number] >= 0
    return matched


@compiled
def _settle(root: int, side: Side, highest: int, other: Side, reach: Reach) -> None:
    """Make the matching optimal again after ``root``, a pixel of ``side``, came to be free.

    The cheapest alternating path from ``root`` is sought (Dijkstra). It ends at a free pixel of the other side, or at a
    pixel of this side that is given up; an unmatched pixel of this side has the price ``highest``.
    """
    price = highest
    for row in range(len(reach.steps)):
        middle, width = side.pixels[root] + reach.steps[row], reach.widths[row]
        for partner in range(other.rank[middle - width], other.rank[middle + width + 1]):
            if other.mate[partner] != ABSENT:
                cost = reach.costs[reach.squares[row] + (other.pixels[partner] - middle) ** 2]
                price = min(price, cost - other.price[partner])
    side.price[root] = price
    if price == highest:
        return

    best, last, last_partner = highest - price, root, FREE
    side.reached[root] = 0
    touched = [root]
    # of paths of one length the one found first goes on: the nearest free pixel ends the search. Where distances count the
    # first pixel goes on instead, for which of equals is matched would be another one
    in_turn = reach.costs[-1] == 0
    heap = [(np.int64(0), np.int64(root), root)]
    num_done = 0
    done = [root]
    while heap:
        distance, _, pixel = heappop(heap)
        if distance >= best:
            break
        if distance > side.reached[pixel]:
            continue  # reached by a shorter way since
        if num_done > 0:
            done.append(pixel)
        num_done += 1
        for row in range(len(reach.steps)):
            middle, width = side.pixels[pixel] + reach.steps[row], reach.widths[row]
            for partner in range(other.rank[middle - width], other.rank[middle + width + 1]):
                holder = int(other.mate[partner])
                if holder == ABSENT:
                    continue
                cost = reach.costs[reach.squares[row] + (other.pixels[partner] - middle) ** 2]
                further = distance + cost - side.price[pixel] - other.price[partner]
                if further >= best:
                    continue
                if holder == FREE:
                    best, last, last_partner = further, pixel, partner
                    if best == distance:
                        break
                elif further < side.reached[holder]:
                    if side.reached[holder] == UNREACHED:
                        touched.append(holder)
                    side.reached[holder] = further
                    side.came_from[holder] = pixel
                    heappush(heap, (further, np.int64(len(touched) if in_turn else holder), holder))
                    given_up = further + highest - side.price[holder]
                    if given_up < best:
                        best, last, last_partner = given_up, holder, FREE
            if best == distance:
                break
    for pixel in done:
        gain = best - side.reached[pixel]
        if gain > 0:
            side.price[pixel] += gain
            if pixel != root:
                other.price[side.mate[pixel]] -= gain
    _hand_over(root, last, last_partner, side, other)
    for pixel in touched:
        side.reached[pixel] = UNREACHED


@compiled
def _hand_over(root: int, last: int, last_partner: int, side: Side, other: Side) -> None:
    """Pass partners along the path from ``root`` to ``last``, which takes ``last_partner`` or, if that is FREE, none."""
    pixel, partner = last, last_partner
    while True:
        before = side.mate[pixel]
        side.mate[pixel] = partner
        if partner >= 0:
            other.mate[partner] = pixel
        if pixel == root:
            return
        partner = before
        pixel = side.came_from[pixel]
