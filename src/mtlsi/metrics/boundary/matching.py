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
    """The pixels of one map and their possible partners on the other; row i of the list is ``begin[i]:begin[i + 1]``."""

    begin: np.ndarray
    partner: np.ndarray
    cost: np.ndarray
    mate: np.ndarray
    price: np.ndarray
    reached: np.ndarray
    """How far a search has come, minus where it began; ``UNREACHED`` between searches."""
    came_from: np.ndarray


def match_levels(
    pixels: np.ndarray, starts: np.ndarray, truth: np.ndarray, stride: int, max_distance: float, *, nearest: bool
) -> np.ndarray:
    """For each of ``pixels``: is it matched (bool) with one of ``truth``, at its own level?

    ``pixels`` (n,) int32 flat indices, level by level as ``starts`` (k + 1,) divides them; ``truth`` (m,) int32 flat
    indices. ``stride`` is the width of the image with its rim, which must be at least ``max_distance`` (pixels,
    Euclidean) wide. At each level the number of pairs is the largest possible; with ``nearest`` their summed distance is
    the least possible besides, in steps of 0.01 pixel as in the benchmark.
    """
    reach = int(max_distance)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squared = rows**2 + columns**2
    inside = squared <= max_distance**2
    order = np.argsort(squared[inside], kind="stable")
    steps = (rows * stride + columns)[inside][order].astype(np.int32)
    costs = np.rint(100 * np.sqrt(squared[inside][order])).astype(np.int64) * nearest
    return _match_levels(pixels, starts, truth, steps, costs)


@compiled
def _match_levels(
    pixels: np.ndarray, starts: np.ndarray, truth: np.ndarray, steps: np.ndarray, costs: np.ndarray
) -> np.ndarray:
    matched = np.zeros(len(pixels), dtype=np.bool_)
    if len(pixels) == 0 or len(truth) == 0:
        return matched
    size = max(pixels.max(), truth.max()) + steps.max() + 1
    truth_at = np.full(size, -1, dtype=np.int32)
    truth_at[truth] = np.arange(len(truth))
    number, distinct = _number(pixels, truth_at, steps)
    predictions = _side(distinct, truth_at, steps, costs, ABSENT)
    labels = _side(truth, number, steps, costs, FREE)
    # so dear that no sum of distances makes up for a pair less
    unmatched = (min(len(truth), len(distinct)) + 1) * (costs.max() + 1)
    level_of = np.full(len(distinct), -1, dtype=np.int32)
    loose = np.empty(len(truth), dtype=np.int32)
    for level in range(len(starts) - 1):
        here = pixels[starts[level] : starts[level + 1]]
        for pixel in here:
            if number[pixel] >= 0:
                level_of[number[pixel]] = level
        num_loose = 0
        if level > 0:
            for pixel in pixels[starts[level - 1] : starts[level]]:
                gone = number[pixel]
                if gone >= 0 and level_of[gone] < level:
                    mate = predictions.mate[gone]
                    predictions.mate[gone] = ABSENT
                    if mate >= 0:
                        labels.mate[mate] = FREE
                        loose[num_loose] = mate
                        num_loose += 1
        for pixel in here:
            new = number[pixel]
            if new >= 0 and predictions.mate[new] == ABSENT:
                predictions.mate[new] = FREE
                _settle(new, predictions, unmatched, labels)
        for i in range(num_loose):  # last, for most have found a partner among the new pixels by now
            if labels.mate[loose[i]] == FREE:
                _settle(loose[i], labels, 0, predictions)
        for i in range(starts[level], starts[level + 1]):
            matched[i] = number[pixels[i]] >= 0 and predictions.mate[number[pixels[i]]] >= 0
    return matched


@compiled
def _number(pixels: np.ndarray, truth_at: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each pixel (by flat index, else -1) that has a labelled one in reach, and the pixel by number."""
    number = np.full(len(truth_at), -1, dtype=np.int32)
    distinct = np.empty(len(pixels), dtype=np.int32)
    num_distinct = 0
    for pixel in pixels:
        if number[pixel] == -1:
            number[pixel] = -2
            for step in steps:
                if truth_at[pixel + step] >= 0:
                    number[pixel] = num_distinct
                    distinct[num_distinct] = pixel
                    num_distinct += 1
                    break
    return number, distinct[:num_distinct].copy()


@compiled
def _side(pixels: np.ndarray, other_at: np.ndarray, steps: np.ndarray, costs: np.ndarray, mate: int) -> Side:
    begin = np.zeros(len(pixels) + 1, dtype=np.int32)
    for i in range(len(pixels)):
        degree = 0
        for step in steps:
            degree += other_at[pixels[i] + step] >= 0
        begin[i + 1] = begin[i] + degree
    partner = np.empty(begin[-1], dtype=np.int32)
    cost = np.empty(begin[-1], dtype=np.int64)
    edge = 0
    for pixel in pixels:
        for s in range(len(steps)):
            other = other_at[pixel + steps[s]]
            if other >= 0:
                partner[edge] = other
                cost[edge] = costs[s]
                edge += 1
    return Side(
        begin,
        partner,
        cost,
        np.full(len(pixels), mate, dtype=np.int32),
        np.zeros(len(pixels), dtype=np.int64),
        np.full(len(pixels), UNREACHED, dtype=np.int64),
        np.empty(len(pixels), dtype=np.int32),
    )


@compiled
def _settle(root: int, side: Side, highest: int, other: Side) -> None:
    """Make the matching optimal again after ``root``, a pixel of ``side``, came to be free.

    The cheapest alternating path from ``root`` is sought (Dijkstra). It ends at a free pixel of the other side, or at a
    pixel of this side that is given up; an unmatched pixel of this side has the price ``highest``.
    """
    price = highest
    for edge in range(side.begin[root], side.begin[root + 1]):
        partner = side.partner[edge]
        if other.mate[partner] != ABSENT:
            price = min(price, side.cost[edge] - other.price[partner])
    side.price[root] = price
    if price == highest:
        return

    best, last, last_partner = highest - price, root, FREE
    side.reached[root] = 0
    touched = [root]
    heap = [(np.int64(0), root)]
    num_done = 0
    done = [root]
    while heap:
        distance, pixel = heappop(heap)
        if distance >= best:
            break
        if distance > side.reached[pixel]:
            continue  # reached by a shorter way since
        if num_done > 0:
            done.append(pixel)
        num_done += 1
        for edge in range(side.begin[pixel], side.begin[pixel + 1]):
            partner = side.partner[edge]
            holder = int(other.mate[partner])
            if holder == ABSENT:
                continue
            further = distance + side.cost[edge] - side.price[pixel] - other.price[partner]
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
                heappush(heap, (further, holder))
                given_up = further + highest - side.price[holder]
                if given_up < best:
                    best, last, last_partner = given_up, holder, FREE
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
