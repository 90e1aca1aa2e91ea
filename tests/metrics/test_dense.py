import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlsi.errors import MistakeError
from mtlsi.metrics.dense import AngularError, DepthError, MaxF, MeanIoU, RegressionError


def scores(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return {key: value.item() for key, value in metric.compute().items()}


def random_batch(kind, num_images=6, seed=0):
    draw = np.random.default_rng(seed)
    shape = (num_images, 5, 7)
    valid = draw.random(shape) < 0.7
    if kind is MeanIoU:
        prediction, label = draw.integers(0, 4, shape), draw.integers(0, 4, shape)
    elif kind is AngularError:
        prediction, label = draw.standard_normal((2, num_images, 3, 5, 7)).astype(np.float32)
        prediction, label = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (prediction, label))
    elif kind is MaxF:
        prediction, label = draw.random(shape).astype(np.float32), (draw.random(shape) < 0.3).astype(np.uint8)
        prediction[0] = np.round(prediction[0] * 20) / 20  # values that hit the thresholds
    else:
        prediction, label = (draw.random((2, *shape)) * 9 + 0.5).astype(np.float32)
    return torch.as_tensor(prediction), torch.as_tensor(label), torch.as_tensor(valid)


BUILDERS = {
    MeanIoU: lambda: MeanIoU(4),
    DepthError: DepthError,
    AngularError: AngularError,
    MaxF: MaxF,
    RegressionError: RegressionError,
}


@pytest.mark.parametrize("kind", BUILDERS)
@given(cuts=st.lists(st.integers(0, 6), max_size=4), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(kind, cuts, seed):
    batch = random_batch(kind, seed=seed)
    whole = scores(BUILDERS[kind](), batch)
    edges = [0, *sorted(cuts), 6]
    parts = [tuple(t[a:b] for t in batch) for a, b in itertools.pairwise(edges)]  # some of them empty
    assert scores(BUILDERS[kind](), *parts) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("channels", [None, 3])
def test_regression_error_equals_a_loop_over_numbers(channels):
    prediction, label, valid = random_batch(RegressionError)
    if channels:
        prediction, label = (torch.stack([x, -2 * x, x + 1], 1) for x in (prediction, label))
    errors = [
        float(p) - float(y)
        for (b, i, j), v in np.ndenumerate(valid.numpy())
        if v
        for p, y in zip(prediction[b, ..., i, j].flatten(), label[b, ..., i, j].flatten(), strict=True)
    ]
    found = scores(RegressionError(), (prediction, label, valid))
    assert found["RMSE"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)), rel=1e-6)
    assert found["MAE"] == pytest.approx(sum(map(abs, errors)) / len(errors), rel=1e-6)


def test_mean_iou_equals_counting():
    prediction, label, valid = random_batch(MeanIoU)
    prediction[prediction == 3] = 2
    ious = []
    pixels = [
        (int(p), int(y)) for p, y, v in zip(prediction.flatten(), label.flatten(), valid.flatten(), strict=True) if v
    ]
    for c in range(4):
        both, either = sum(p == y == c for p, y in pixels), sum(c in pair for pair in pixels)
        ious.append(100 * both / either)
    metric = MeanIoU(4)
    assert scores(metric, (prediction, label, valid)) == pytest.approx(
        {"mIoU": sum(ious) / 4, "pixel_acc": 100 * sum(p == y for p, y in pixels) / len(pixels)}
    )
    assert metric.per_class().tolist() == pytest.approx(ious)
    assert ious[3] == 0  # labelled and never predicted: counts as a failure


def test_mean_iou_leaves_out_a_class_that_never_occurs():
    label = torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1, 2]]])
    metric = MeanIoU(3)
    assert scores(metric, (prediction, label, label != 255))["mIoU"] == pytest.approx(50)
    assert metric.per_class().isnan().tolist() == [False, False, True]


def test_mean_iou_names_a_label_outside_the_classes():
    label = torch.tensor([[[0, 40]]], dtype=torch.uint8)
    with pytest.raises(MistakeError, match=r"label holds class indices 0\.\.40; expected 0\.\.39"):
        MeanIoU(40).update(torch.zeros(1, 1, 2, dtype=torch.long), label, label != 255)


def test_depth_error_equals_a_loop():
    prediction, label, valid = random_batch(DepthError)
    prediction[0, 0, 0], valid[0, 0, 0] = -1.0, True
    label[~valid] = float("nan")
    count, squared, relative, log10, within = 0, 0.0, 0.0, 0.0, [0, 0, 0]
    for p, y in zip(prediction[valid].tolist(), label[valid].tolist(), strict=True):
        positive = max(p, 1e-3)
        count += 1
        squared += (p - y) ** 2
        relative += abs(p - y) / y
        log10 += abs(math.log10(positive) - math.log10(y))
        for power in (1, 2, 3):
            within[power - 1] += max(positive / y, y / positive) < 1.25**power
    expected = {"RMSE": math.sqrt(squared / count), "abs_rel": relative / count, "log10": log10 / count}
    expected |= {f"delta{k + 1}": 100 * within[k] / count for k in range(3)}
    assert scores(DepthError(), (prediction, label, valid)) == pytest.approx(expected)


def test_depth_error_pools_pixels_not_images():
    label = torch.ones(2, 1, 4)
    prediction = label.clone()
    prediction[0, 0, 0] = 3.0
    valid = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]]], dtype=torch.bool)
    assert scores(DepthError(), (prediction, label, valid))["RMSE"] == pytest.approx(
        1.0
    )  # sqrt(4 / 4), not (2 + 0) / 2


def test_angular_error_equals_float64_arc_cosines():
    prediction, label, valid = random_batch(AngularError, num_images=5)
    valid[0, 0, 0] ^= valid.sum() % 2 == 1  # an even number of pixels: the median lies between two of them
    p, y = (v.double().numpy().transpose(0, 2, 3, 1)[valid.numpy()] for v in (prediction, label))
    cosines = (p * y).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(y, axis=1)
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    result = scores(AngularError(), (prediction, label, valid))
    assert result.pop("median") == pytest.approx(np.median(angles), abs=0.005001)
    expected = {"mErr": angles.mean()} | {f"within_{x}": 100 * (angles < x).mean() for x in (11.25, 22.5, 30)}
    assert result == pytest.approx(expected)


@pytest.mark.parametrize("angle", [0.0, 0.001, 11.2, 45.0, 90.0, 179.999, 180.0])
def test_angular_error_of_known_angles(angle):
    label = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    radians = math.radians(angle)
    prediction = torch.tensor([math.sin(radians), 0.0, math.cos(radians)]).view(1, 3, 1, 1)
    result = scores(AngularError(), (prediction, label, torch.ones(1, 1, 1, dtype=torch.bool)))
    assert result["mErr"] == pytest.approx(angle, abs=1e-5)
    assert result["median"] == pytest.approx(angle, abs=0.00501)
    assert result["within_11.25"] == (100 if angle < 11.25 else 0)


def test_angular_error_of_no_direction_is_a_right_angle():
    label = torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    assert scores(AngularError(), (torch.zeros(1, 3, 1, 1), label, valid))["mErr"] == 90


@pytest.mark.parametrize("legacy", [False, True])
def test_max_f_equals_a_loop_over_thresholds(legacy):
    prediction, label, valid = random_batch(MaxF)
    p, y = prediction[valid], label[valid] == 1
    if legacy:
        p = 1 / (1 + torch.exp(-p))
    curve = {}
    for step in range(1, 20):
        chosen = p >= step / 20
        hits = (chosen & y).sum().item()
        precision, recall = hits / max(chosen.sum().item(), 1), hits / y.sum().item()
        curve[step / 20] = (1.3 * precision * recall / (0.3 * precision + recall) if hits else 0, precision, recall)
    best = max(curve, key=lambda threshold: curve[threshold][0])
    result = scores(MaxF(legacy=legacy), (prediction, label, valid))
    assert [result["maxF"], result["precision"], result["recall"]] == pytest.approx([100 * v for v in curve[best]])
    assert result["threshold"] == pytest.approx(best)


def test_legacy_max_f_is_lower():
    draw = torch.Generator().manual_seed(0)
    label = (torch.rand(1, 40, 40, generator=draw) < 0.3).to(torch.uint8)
    prediction = (0.2 * label + 0.8 * torch.rand(1, 40, 40, generator=draw)).clamp(0, 1) * 0.5
    valid = torch.ones_like(label, dtype=torch.bool)
    assert (
        scores(MaxF(legacy=True), (prediction, label, valid))["maxF"]
        < scores(MaxF(), (prediction, label, valid))["maxF"]
    )


def test_perfect_saliency_scores_full_and_the_threshold_is_inclusive():
    label = torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0.9, 0.95, 0.95]]])
    result = scores(MaxF(), (prediction, label, torch.ones_like(label, dtype=torch.bool)))
    assert result == pytest.approx({"maxF": 100, "precision": 100, "recall": 100, "threshold": 0.95})
