import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mtlsi.metrics.boundary.matching import Matcher


def flat(mask, rim):
    return np.flatnonzero(np.pad(mask, rim)).astype(np.int32)


def match(maps, truth, distance, nearest):
    """Of each map, its pixels (n 2) and which of them are matched (n) bool."""
    rim = max(1, int(distance))
    stride = truth.shape[1] + 2 * rim
    pixels = [flat(mask, rim) for mask in maps]
    matcher = Matcher(np.unique(np.concatenate(pixels)), flat(truth, rim), stride, distance, nearest=nearest)
    return [(np.argwhere(mask), matcher.match(level)) for mask, level in zip(maps, pixels, strict=True)]


def distances(points, truth):
    return np.hypot(*(points[:, None] - np.argwhere(truth)).transpose(2, 0, 1))


def most_pairs(apart, distance):
    if 0 in apart.shape:
        return 0
    return (maximum_bipartite_matching(csr_matrix(apart**2 <= distance**2), perm_type="column") >= 0).sum()


def least_cost(apart, distance):
    """Of all matchings with the most pairs, in hundredths of a pixel."""
    unmatched = 10_000_000
    cost = np.where(apart**2 <= distance**2, np.rint(100 * apart), unmatched)
    chosen = cost[linear_sum_assignment(cost)]
    return chosen[chosen < unmatched].sum()


def nested_maps(draw, size, num_levels, vanish=0.2):
    """Growing maps of which some pixels are missing here and there, as thinning takes them away."""
    when = draw.random(size)
    return [(when < 0.6 * (i + 1) / num_levels) & (draw.random(size) > vanish) for i in range(num_levels)]


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    distance=st.floats(0.2, 5),
    density=st.sampled_from([0.05, 0.2, 0.6]),
    nearest=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_level_has_the_most_pairs_and_the_nearest(seed, size, distance, density, nearest):
    draw = np.random.default_rng(seed)
    truth = draw.random(size) < density
    for points, matched in match(nested_maps(draw, size, 6), truth, distance, nearest):
        apart = distances(points, truth)
        assert matched.sum() == most_pairs(apart, distance)
        if nearest and matched.any():
            assert least_cost(apart[matched], distance) == least_cost(apart, distance)


def lines(size, columns):
    mask = np.zeros(size, dtype=bool)
    mask[:, columns] = True
    return mask


@pytest.mark.parametrize("nearest", [True, False])
def test_a_chain_of_exchanges_runs_the_length_of_a_line(nearest):
    """Truth and prediction are one row, shifted by a pixel: each new pixel at the end moves every pair by one."""
    truth = np.zeros((3, 60), dtype=bool)
    truth[1, 10:50] = True
    maps = []
    for first in (20, 10, 9, 8, 7, 6):
        mask = np.zeros_like(truth)
        mask[1, first:48] = True
        maps.append(mask)
    maps.append(np.roll(maps[0], 1, axis=1))  # and most of them vanish
    for mask, (points, matched) in zip(maps, match(maps, truth, 2.0, nearest), strict=True):
        assert matched.sum() == most_pairs(distances(points, truth), 2.0)
        assert len(points) == mask.sum()


@pytest.mark.parametrize("nearest", [True, False])
def test_large_maps_with_more_predictions_than_labels_and_the_reverse(nearest):
    draw = np.random.default_rng(0)
    size = (120, 150)
    truth = lines(size, [20, 60, 61, 100]) & (draw.random(size) < 0.95)
    maps = [lines(size, [22, 57]), lines(size, [22, 57, 64, 96]), lines(size, [18, 22, 24, 57, 58, 64, 96, 97, 104])]
    maps += [*nested_maps(draw, size, 5, vanish=0.05), lines(size, [23])]
    pairs = []
    for points, matched in match(maps, truth, 4.3, nearest):
        assert matched.sum() == most_pairs(distances(points, truth), 4.3)
        pairs.append(matched.sum())
    assert min(pairs) > 60
    assert max(pairs) == truth.sum()


def test_distance_is_euclidean_and_a_pair_at_the_very_limit_counts():
    truth = np.zeros((11, 11), dtype=bool)
    truth[5, 5] = True
    for offset, distance in (((3, 4), 5), ((0, 5), 5), ((1, 1), 2**0.5)):
        mask = np.roll(truth, offset, axis=(0, 1))
        for limit, expected in ((distance, 1), (distance - 1e-6, 0)):
            [(_, matched)] = match([mask], truth, limit, False)
            assert matched.sum() == expected


def test_nothing_to_match():
    empty, some = np.zeros((6, 7), dtype=bool), np.eye(6, 7, dtype=bool)
    for maps, truth in (([empty], some), ([some], empty), ([empty], empty), ([empty, some, empty], some)):
        counts = [matched.sum() for _, matched in match(maps, truth, 1.5, True)]
        assert counts == [6 if mask.any() and truth.any() else 0 for mask in maps]


def test_no_pair_reaches_around_the_edge_of_the_image():
    truth, mask = np.zeros((8, 9), dtype=bool), np.zeros((8, 9), dtype=bool)
    truth[:, 0] = True
    mask[:, -1] = True
    [(_, matched)] = match([mask], truth, 3.0, True)
    assert not matched.any()
