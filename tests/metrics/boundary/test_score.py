from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import io, ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mtlsi.errors import MistakeError
from mtlsi.metrics import BoundaryCurve, BoundaryF, boundary_counts, count_pairs
from mtlsi.metrics.boundary.curve import best_point
from mtlsi.metrics.boundary.suppression import suppress_non_maxima
from mtlsi.metrics.boundary.thinning import thin

BENCH = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "bsds_bench"


@pytest.fixture(scope="module")
def bench():
    """The five images of the benchmark's example, (soft, annotators), and what its code gives for them."""
    if not BENCH.is_dir():
        pytest.skip("the benchmark's example is not there")
    pairs = []
    for path in sorted((BENCH / "png").glob("*.png")):
        truth = io.loadmat(BENCH / "groundTruth" / f"{path.stem}.mat")["groundTruth"].ravel()
        pairs.append((np.asarray(Image.open(path)) / 255, [one["Boundaries"][0, 0] > 0 for one in truth]))
    names = ("eval_bdry", "eval_bdry_thr", "eval_bdry_img")
    return pairs, *(np.loadtxt(BENCH / "expected" / f"{name}.txt") for name in names)


def test_scores_agree_with_the_benchmarks_own_code(bench):
    pairs, whole, by_threshold, by_image = bench
    counts = list(count_pairs(pairs, max_dist=0.0075, num_thresholds=5, nms=False, num_workers=2))
    curve = BoundaryCurve.of(counts)
    threshold, recall, precision, ods, ois_recall, ois_precision, ois, area = whole
    assert curve.ods == pytest.approx(ods, abs=2e-4)
    assert curve.ois == pytest.approx(ois, abs=2e-4)
    assert curve.ap == pytest.approx(area, abs=2e-4)
    assert curve.threshold == pytest.approx(threshold, abs=1e-5)
    ours = (curve.ods_recall, curve.ods_precision, curve.ois_recall, curve.ois_precision)
    assert ours == pytest.approx((recall, precision, ois_recall, ois_precision), abs=9e-4)
    np.testing.assert_allclose(curve.thresholds, by_threshold[:, 0], atol=1e-5)
    np.testing.assert_allclose(curve.recall, by_threshold[:, 1], atol=9e-4)
    np.testing.assert_allclose(curve.precision, by_threshold[:, 2], atol=9e-4)
    own = np.array([best_point(one) for one in counts])
    np.testing.assert_allclose(own[:, 0], by_image[:, 1], atol=1e-5)
    np.testing.assert_allclose(own[:, 3], by_image[:, 4], atol=1.5e-3)


def line(column, size=(40, 60), value=1.0):
    mask = np.zeros(size, dtype=np.float32)
    mask[6:-6, column] = value  # clear of the edges, where predictions fade out
    return mask


def score(metric, prediction, label, valid=None):
    prediction, label = np.asarray(prediction, dtype=np.float32)[None], np.asarray(label)[None]
    valid = label != 255 if valid is None else valid[None]
    metric.update(torch.as_tensor(prediction), torch.as_tensor(label), torch.as_tensor(valid))
    return {key: value.item() for key, value in metric.compute().items()}


def random_images(seed, num, size=(36, 44)):
    """Soft maps, labels and valid pixels with true, misplaced, missing and false boundaries."""
    draw = np.random.default_rng(seed)
    soft, labels, valid = [], [], []
    for _ in range(num):
        blobs = ndimage.gaussian_filter(draw.standard_normal(size), 4) > 0
        label = ndimage.morphological_gradient(blobs.astype(np.uint8), size=2) > 0
        moved = np.roll(label, draw.integers(-2, 3, 2), axis=(0, 1))
        noise = ndimage.gaussian_filter(draw.standard_normal(size), 1.2)
        soft.append(np.clip(1.6 * ndimage.gaussian_filter(moved.astype(float), 1) + 0.7 * noise, 0, 1))
        labels.append(label.astype(np.uint8))
        valid.append(ndimage.gaussian_filter(draw.standard_normal(size), 5) > -0.1)
    return [np.stack(x) for x in (np.float32(soft), labels, valid)]


def plain_counts(soft, label, valid, max_dist, thresholds, nms):
    """Each threshold on its own."""
    ridges = suppress_non_maxima(soft, 0) if nms else soft
    truth = np.argwhere(thin((label == 1) & valid))
    rows = []
    for threshold in thresholds:
        points = np.argwhere(thin((ridges >= threshold) & valid))
        near = ((points[:, None] - truth) ** 2).sum(2) <= (max_dist * np.hypot(*soft.shape)) ** 2
        pairs = (maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum() if near.size else 0
        rows.append((pairs, len(truth), pairs, len(points)))
    return np.array(rows).T


@pytest.mark.parametrize("nms", [True, False])
def test_scores_equal_a_plain_calculation_threshold_by_threshold(nms):
    soft, labels, valid = random_images(2, 4)
    metric = BoundaryF(0.04, protocol="float", num_thresholds=9, nms=nms)
    metric.update(*map(torch.from_numpy, (soft, labels, valid)))
    thresholds = np.arange(1, 10) / 10
    counts = [plain_counts(*one, 0.04, thresholds, nms) for one in zip(soft, labels, valid, strict=True)]

    def measures(hit, truth, hit_predicted, predicted):
        recall, precision = hit / truth, hit_predicted / np.maximum(predicted, 1)
        return recall, precision, 2 * recall * precision / np.maximum(recall + precision, 1e-12)

    recall, precision, f = measures(*np.sum(counts, axis=0))
    own_best = [measures(*one)[2].argmax() for one in counts]
    ois = measures(*np.sum([one[:, best] for one, best in zip(counts, own_best, strict=True)], axis=0))[2]
    curve = metric.precision_recall()
    np.testing.assert_allclose(curve.recall, recall)
    np.testing.assert_allclose(curve.precision, precision)
    result = metric.compute()
    assert len(set(own_best)) > 1
    assert result["oisF"] == pytest.approx(100 * ois)
    assert 100 * f.max() <= result["odsF"] <= 100 * f.max() + 1  # between thresholds it may be a little higher
    assert 20 < result["odsF"] < 95
    points = metric.precision_recall().points()
    assert points["thresholds"] == pytest.approx(thresholds)
    assert points["recall"] == pytest.approx(recall)
    assert points["precision"] == pytest.approx(precision)


@pytest.mark.parametrize("nms", [True, False])
def test_a_map_equal_to_its_labels_has_full_marks(nms):
    label = random_images(0, 1, (60, 70))[1][0]
    label[:6], label[-6:], label[:, :6], label[:, -6:] = 0, 0, 0, 0  # predictions fade out there
    result = score(BoundaryF(0.01, nms=nms, num_thresholds=9), label, label)
    assert [result[key] for key in ("odsF", "oisF", "precision", "recall")] == pytest.approx([100] * 4)


def test_a_line_counts_within_the_tolerance_and_not_beyond():
    for shift, expected in ((0, 100), (3, 100), (4, 0)):
        metric = BoundaryF(3.5 / np.hypot(40, 60), num_thresholds=9)
        assert score(metric, line(30 + shift), line(30))["odsF"] == pytest.approx(expected)


def test_a_labelled_pixel_answers_for_one_predicted_pixel_only():
    result = score(BoundaryF(0.06, num_thresholds=9), line(28) + line(32), line(30))
    assert result["recall"] == pytest.approx(100)
    assert result["precision"] == pytest.approx(50)


def test_thick_maps_are_thinned_unless_asked_not_to():
    thick = sum(line(column) for column in (29, 30, 31))
    thinned = boundary_counts(thick, [thick > 0], max_dist=0.02, num_thresholds=1, nms=False)
    assert 24 <= thinned.predicted[0] == thinned.truth[0] == thinned.matched_truth[0] <= 28
    as_given = boundary_counts(thick, [thick > 0], max_dist=0.02, num_thresholds=1, nms=False, thin=False)
    assert as_given.predicted[0] == as_given.truth[0] == as_given.matched_truth[0] == 84


def test_a_predicted_pixel_may_answer_any_annotator_and_counts_once():
    soft = line(10) + line(30) + line(50)
    counts = boundary_counts(soft, [line(10) > 0, line(11) + line(31) > 0], max_dist=0.02, num_thresholds=1, nms=False)
    assert [int(count[0]) for count in counts] == [84, 84, 56, 84]


def test_of_two_annotators_maps_the_nearest_pixels_are_matched():
    """Each annotator's line could be matched with either prediction; the nearer one is the same for both."""
    soft = line(30) + line(33)
    counts = boundary_counts(soft, [line(31) > 0, line(29) > 0], max_dist=0.06, num_thresholds=1, nms=False)
    assert counts.matched_truth[0] == 56
    assert counts.matched_predicted[0] == 28


def test_each_image_may_choose_its_own_threshold_for_ois():
    metric = BoundaryF(0.02)
    score(metric, line(30, value=0.9) + line(10, value=0.4), line(30))  # the weak line is false
    result = score(metric, line(30, value=0.4), line(30))  # the weak line is true
    assert result["oisF"] == pytest.approx(100)
    assert result["odsF"] == pytest.approx(80, abs=1)  # two true lines and a false one, or one true line of two


def test_predictions_and_labels_on_invalid_pixels_do_not_count():
    valid = np.ones((40, 60), dtype=bool)
    valid[:, :20] = False
    metric = BoundaryF(0.02)
    result = score(metric, np.maximum(line(30), line(10)), line(30) + line(15), valid)
    assert [result[key] for key in ("precision", "recall")] == pytest.approx([100, 100])


@pytest.mark.parametrize("nms", [True, False])
def test_extremes(nms):
    empty, full, label = np.zeros((40, 60)), np.ones((40, 60)), line(30)
    assert score(BoundaryF(0.02, nms=nms), empty, label) == {
        "odsF": 0, "oisF": 0, "AP": 0, "precision": 0, "recall": 0, "threshold": pytest.approx(0.01),
        "R50": 0, "ois_precision": 0, "ois_recall": 0,
    }  # fmt: skip
    for soft in (empty, full, label):
        assert all(np.isnan(value) for value in score(BoundaryF(0.02, nms=nms), soft, empty).values())
        nothing_valid = score(BoundaryF(0.02, nms=nms), soft, label, np.zeros((40, 60), dtype=bool))
        assert all(np.isnan(value) for value in nothing_valid.values())
    assert all(0 <= value <= 100 for value in score(BoundaryF(0.02, nms=nms), full, label).values())


@given(cut=st.integers(0, 4), num_workers=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_split_into_batches_and_processes_gives_the_same_scores(cut, num_workers):
    images = [torch.from_numpy(x) for x in random_images(1, 4, (30, 30))]
    whole, parts, other = (BoundaryF(0.03, num_workers=num_workers) for _ in range(3))
    whole.update(*images)
    parts.update(*(x[:cut] for x in images))
    other.update(*(x[cut:] for x in images))
    for name in ("total", "own_best"):  # as their reduction over processes sums them
        setattr(parts, name, getattr(parts, name) + getattr(other, name))
    parts._update_count += 1
    assert parts.compute() == whole.compute()


def test_pairs_are_counted_in_order_and_only_a_few_are_read_ahead():
    soft, labels, valid = random_images(4, 12, (24, 24))
    read = []

    def pairs():
        for i, (one, label, seen) in enumerate(zip(soft, labels, valid, strict=True)):
            read.append(i)
            yield one, [label > 0], seen

    serial = list(count_pairs(pairs(), max_dist=0.05, num_thresholds=9))
    read.clear()
    threaded = count_pairs(pairs(), max_dist=0.05, num_thresholds=9, num_workers=2)
    first = next(threaded)
    assert len(read) < 8
    for ours, theirs in zip(serial, [first, *threaded], strict=True):
        np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))


def test_mistakes_are_named():
    soft, label = np.full((8, 9), 0.5), np.zeros((8, 9), dtype=bool)
    for wrong, message in ((soft * 255, "0..1"), (soft - 1, "0..1"), (soft * np.nan, "0..1"), (soft.T, "one size")):
        with pytest.raises(MistakeError, match=message):
            boundary_counts(wrong, [label], max_dist=0.01)
        with pytest.raises(MistakeError, match=message):
            list(count_pairs([(soft, [label]), (wrong, [label])], max_dist=0.01, num_workers=2))
    with pytest.raises(MistakeError, match="max_dist: 1"):
        boundary_counts(soft, [label], max_dist=1)
