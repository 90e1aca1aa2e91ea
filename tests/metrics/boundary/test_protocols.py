import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mtlsi.errors import MistakeError
from mtlsi.metrics import BoundaryF
from mtlsi.metrics.boundary.protocols import PROTOCOLS, Protocol, protocol_named
from mtlsi.metrics.boundary.suppression import suppress_non_maxima
from mtlsi.metrics.boundary.thinning import thin
from mtlsi.tasks import BOUNDARY_PROTOCOL

OF_DATA = 0.015
READINGS = {  # 8-bit maps, suppressed, reach of a match
    "bsds": (True, False, 0.0075),
    "seism-nms": (True, True, OF_DATA),
    "seism": (True, False, OF_DATA),
    "float": (False, True, OF_DATA),
}


@pytest.fixture(scope="module")
def image():
    """A soft map with weak, strong, misplaced and false boundaries, its label, and where that is known."""
    draw = np.random.default_rng(3)
    blobs = ndimage.gaussian_filter(draw.standard_normal((90, 110)), 6) > 0
    label = ndimage.morphological_gradient(blobs.astype(np.uint8), size=2) > 0
    noise = ndimage.gaussian_filter(draw.standard_normal(label.shape), 1.2)
    soft = np.clip(1.5 * ndimage.gaussian_filter(np.roll(label, 1, axis=0).astype(float), 1) + 0.6 * noise, 0, 1)
    known = ndimage.gaussian_filter(draw.standard_normal(label.shape), 8) > -0.05
    return np.float32(soft * 0.1), label, known  # so weak that 8 bits have steps to be seen


def plain_counts(soft, label, known, eight_bit, nms, reach, thresholds):
    """Predicted, matched and labelled pixels at each threshold, each from scratch."""
    if eight_bit:
        soft = np.array([[round(float(value) * 255) / 255 for value in row] for row in soft])
    ridges = np.float64(suppress_non_maxima(soft, 0) if nms else soft)
    truth = np.argwhere(thin(label & known))
    rows = []
    for threshold in thresholds:
        points = np.argwhere(thin((ridges >= threshold) & known))
        near = ((points[:, None] - truth) ** 2).sum(2) <= (reach * np.hypot(*soft.shape)) ** 2
        pairs = (maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum() if near.size else 0
        rows.append((len(points), pairs, len(truth)))
    return np.array(rows).T


def measured(image, protocol, **changes):
    metric = BoundaryF(OF_DATA, protocol=protocol, **changes)
    metric.update(*(torch.from_numpy(x)[None] for x in image))
    return metric


@pytest.mark.parametrize("name", READINGS)
def test_each_protocol_is_what_a_plain_calculation_gives(image, name):
    metric = measured(image, name)
    eight_bit, nms, reach = READINGS[name]
    predicted, pairs, labelled = plain_counts(*image, eight_bit, nms, reach, np.arange(1, 100) / 100)
    curve = metric.precision_recall()
    np.testing.assert_allclose(curve.recall, pairs / labelled)
    np.testing.assert_allclose(curve.precision, pairs / np.maximum(predicted, 1))
    assert metric.protocol.max_dist == reach
    assert 10 < metric.compute()["odsF"] < 95


def test_the_protocols_are_told_apart_by_one_map(image):
    scores = {name: float(measured(image, name).compute()["odsF"]) for name in PROTOCOLS}
    assert len({round(score, 3) for score in scores.values()}) == len(READINGS)
    assert PROTOCOLS.keys() == READINGS.keys()


@pytest.mark.parametrize("nms", [True, False])
def test_where_pixels_without_a_label_count_what_is_predicted_there_is_false(image, nms):
    soft, label, known = image
    base = Protocol("own", eight_bit=False, nms=nms, num_thresholds=9, mask_unknown=False)
    metric = measured((soft * 8, label, known), base)
    everywhere = measured((soft * 8, label & known, np.ones_like(known)), base.with_changes(mask_unknown=True))
    assert metric.compute() == everywhere.compute()
    masked = measured((soft * 8, label, known), base.with_changes(mask_unknown=True))
    assert metric.compute()["odsF"] < masked.compute()["odsF"]


def test_options_change_a_protocol_and_its_record_says_so():
    changed = protocol_named("seism").with_changes(num_thresholds=5, nms=True, thin=None).on_data(0.011)
    assert changed.record() == {
        "protocol": "seism", "max_dist": 0.011, "eight_bit": True, "nms": True, "thin": True, "thresholds": 5,
        "unknown": "masked",
    }  # fmt: skip
    assert str(changed) == "seism, suppressed, 8-bit maps, 5 thresholds, within 0.011 of the diagonal"
    assert protocol_named("bsds").on_data(0.011).max_dist == 0.0075
    assert protocol_named("bsds").with_changes(max_dist=0.02).on_data(0.011).max_dist == 0.02
    assert BOUNDARY_PROTOCOL in PROTOCOLS


def test_rounding_is_that_of_a_file_of_8_bits():
    soft = np.random.default_rng(0).random((40, 50), np.float32)
    for name, (eight_bit, *_) in READINGS.items():
        stored = np.rint(soft * 255).astype(np.uint8)
        expected = stored / 255 if eight_bit else soft
        assert np.array_equal(PROTOCOLS[name].as_stored(soft), expected)


def test_mistakes_are_named():
    with pytest.raises(MistakeError, match="boundary protocol 'SEISM'; expected one of bsds, seism-nms, seism, float"):
        BoundaryF(0.01, protocol="SEISM")
    for changes, message in (({"max_dist": 1.0}, "max_dist: 1.0"), ({"num_thresholds": 0}, "num_thresholds: 0")):
        with pytest.raises(MistakeError, match=message):
            protocol_named("float").with_changes(**changes)
    with pytest.raises(MistakeError, match="protocol float: no max_dist"):
        protocol_named("float").counting()
