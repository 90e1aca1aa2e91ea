import numpy as np
import pytest

from mtlsi.errors import MistakeError
from mtlsi.metrics.boundary.curve import (
    BoundaryCurve,
    Counts,
    at_own_best,
    average_precision,
    best_point,
    recall_at_half_precision,
    thresholds_of,
)


def counts_of(*rows):
    return Counts(*np.array(rows, dtype=np.int64))


def test_thresholds_are_evenly_spaced_inside_the_unit_interval():
    np.testing.assert_allclose(thresholds_of(99), np.arange(1, 100) / 100)
    np.testing.assert_allclose(thresholds_of(1), [0.5])
    with pytest.raises(MistakeError, match="num_thresholds: 0"):
        thresholds_of(0)


def test_the_best_point_may_lie_between_two_thresholds():
    counts = counts_of([90, 30], [100, 100], [30, 90], [100, 100])  # recall 0.9 0.3, precision 0.3 0.9
    best = best_point(counts)
    assert best.f == pytest.approx(0.6, abs=1e-4)  # halfway both are 0.6
    assert best.threshold == pytest.approx(0.5, abs=0.005)
    assert best.recall == pytest.approx(0.6, abs=0.01)
    assert 2 * best.recall * best.precision / (best.recall + best.precision) == pytest.approx(best.f)


def test_a_single_threshold_is_its_own_best_point():
    assert best_point(counts_of([3], [4], [3], [6])) == pytest.approx((0.5, 0.75, 0.5, 0.6))


def test_ois_sums_the_counts_of_each_image_at_its_own_best():
    first = counts_of([10, 8], [10, 10], [10, 8], [30, 8])  # best at the higher threshold
    second = counts_of([6, 1], [10, 10], [6, 1], [6, 1])  # best at the lower one
    curve = BoundaryCurve.of([first, second])
    assert curve.ois_recall == pytest.approx(14 / 20)
    assert curve.ois_precision == pytest.approx(14 / 14)
    assert curve.ois == pytest.approx(2 * 0.7 / 1.7)
    np.testing.assert_allclose(curve.recall, [16 / 20, 9 / 20])
    np.testing.assert_allclose(curve.precision, [16 / 36, 9 / 9])


def test_of_equal_thresholds_an_image_takes_the_lowest():
    empty = counts_of([0, 0, 0], [0, 0, 0], [0, 0, 0], [9, 5, 0])
    assert at_own_best(empty).predicted.tolist() == [9]


def test_average_precision_is_the_area_under_straight_lines():
    recall, precision = np.array([0.8, 0.5, 0.2]), np.array([0.4, 0.7, 1.0])
    grid = [i / 100 for i in range(20, 81)]
    assert average_precision(recall, precision) == pytest.approx(sum(1.2 - r for r in grid) / 100)
    assert average_precision(np.array([0.3, 0.3]), np.array([0.5, 0.5])) == 0
    # of points with one recall the first counts
    assert average_precision(np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])) == pytest.approx(1.01)


def test_r50_is_the_recall_at_which_half_of_what_is_predicted_is_right():
    recall, precision = np.array([0.9, 0.7, 0.2]), np.array([0.3, 0.4, 0.9])
    assert recall_at_half_precision(recall, precision) == pytest.approx(0.6)  # a fifth of the way from 0.7 to 0.2
    assert recall_at_half_precision(recall, precision / 2) == 0  # never reached
    assert recall_at_half_precision(recall, np.array([0.6, 0.7, 0.8])) == pytest.approx(0.9)  # always passed
    assert recall_at_half_precision(recall, np.array([0.5, 0.5, 0.5])) == pytest.approx(0.9)


def test_nothing_labelled_has_no_score():
    curve = BoundaryCurve.of([counts_of([0, 0], [0, 0], [0, 0], [5, 2])])
    assert np.isnan([curve.ods, curve.threshold, curve.ois, curve.ap, curve.r50]).all()
    assert curve.precision.tolist() == [0, 0]
