"""The counts behind the field's boundary scores, image by image, with pixels matched one to one.

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

from mtlsi.errors import MistakeError
from mtlsi.metrics.boundary.curve import Counts, thresholds_of
from mtlsi.metrics.boundary.suppression import suppress_non_maxima
from mtlsi.tasks import MAX_DIST, NUM_THRESHOLDS


def boundary_counts(
    soft: np.ndarray,
    annotators: Sequence[np.ndarray],
    *,
    max_dist: float,
    num_thresholds: int = NUM_THRESHOLDS,
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
    from mtlsi.metrics.boundary.matching import Matcher  # lazy: numba takes a second to import
    from mtlsi.metrics.boundary.thinning import thin as thinned
    from mtlsi.metrics.boundary.thinning import thin_levels

    _check(soft, annotators, max_dist)
    thresholds = thresholds_of(num_thresholds)
    ridges = suppress_non_maxima(soft, thresholds[0]) if nms else soft
    if valid is not None:
        ridges, annotators = np.where(valid, ridges, 0), [boundary & valid for boundary in annotators]
    distance = max_dist * float(np.hypot(*soft.shape))
    rim = max(1, int(distance))
    candidates, levels = thin_levels(np.asarray(ridges, dtype=np.float64), thresholds, rim, thin)
    # which pixels are matched matters only where several annotators share the predicted ones
    nearest = len(annotators) > 1
    matchers, num_truth = [], 0
    for boundary in annotators:
        truth = np.flatnonzero(np.pad(thinned(boundary) if thin else boundary, rim)).astype(np.int32)
        matchers.append(Matcher(candidates, truth, soft.shape[1] + 2 * rim, distance, nearest=nearest))
        num_truth += len(truth)
    falling = []
    for pixels in levels:  # one at a time: together they fill gigabytes on a large and noisy map
        matched = [matcher.match(pixels) for matcher in matchers]
        by_any = int(np.any(matched, axis=0).sum())
        falling.append((sum(int(own.sum()) for own in matched), num_truth, by_any, len(pixels)))
    return Counts(*np.array(falling[::-1], dtype=np.int64).T)


def _check(soft: np.ndarray, annotators: Sequence[np.ndarray], max_dist: float) -> None:
    if not 0 < max_dist < 1:
        raise MistakeError(
            f"max_dist: {max_dist}; expected a fraction of the diagonal between 0 and 1, such as {MAX_DIST}"
        )
    for boundary in annotators:
        if boundary.shape != soft.shape:
            raise MistakeError(f"boundary map {soft.shape}, label {boundary.shape}; expected one size: resize the map")
    if not (soft.min(initial=0) >= 0 and soft.max(initial=0) <= 1):  # false for NaN too
        raise MistakeError(f"boundary map with values {soft.min():g}..{soft.max():g}; expected probabilities in 0..1")


def count_pairs(
    pairs: Iterable[tuple[Any, ...]],
    *,
    max_dist: float,
    num_thresholds: int = NUM_THRESHOLDS,
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
