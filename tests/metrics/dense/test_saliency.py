import numpy as np
import pytest
import torch

from mtlsi.metrics import MaxF


def curve_of(chosen, salient):
    """Precision, recall and IoU of pixels."""
    hits = (chosen & salient).sum()
    return hits / max(chosen.sum(), 1), hits / salient.sum(), hits / (chosen | salient).sum()


def best_f(precision, recall):
    both = 0.3 * precision + recall
    return 100 * np.max(np.where(both > 0, 1.3 * precision * recall / np.maximum(both, 1e-12), 0))


def test_figures_of_images_and_of_their_pixels_equal_numpy(random_batch, scores):
    prediction, label, valid = (x.numpy() for x in random_batch(MaxF))
    label[2] = 0  # nothing salient: no recall, but an error
    valid[3] = False
    steps = np.arange(1, 20, dtype=np.float32) / 20
    of_images, errors = [], []
    for p, y, v in zip(prediction, label, valid, strict=True):
        if v.any():
            errors.append(np.abs(p[v].astype(float) - y[v]))
        if (y[v] == 1).any():
            of_images.append([curve_of(p[v] >= step, y[v] == 1) for step in steps])
    precision, recall, overlap = np.mean(of_images, 0).T
    pooled = np.array([curve_of(prediction[valid] >= step, label[valid] == 1) for step in steps]).T
    found = scores(MaxF(), tuple(map(torch.as_tensor, (prediction, label, valid))))
    assert found["maxF"] == pytest.approx(best_f(*pooled[:2]))
    assert found["mIoU"] == pytest.approx(100 * pooled[2].max())
    assert found["MAE"] == pytest.approx(np.concatenate(errors).mean())
    assert found["maxF_per_image"] == pytest.approx(best_f(precision, recall))
    assert found["mIoU_per_image"] == pytest.approx(100 * overlap.max())
    assert found["MAE_per_image"] == pytest.approx(np.mean([error.mean() for error in errors]))


def test_without_a_salient_pixel_there_is_an_error_and_no_score(scores):
    label = torch.zeros(1, 2, 2, dtype=torch.uint8)
    found = scores(MaxF(), (torch.full((1, 2, 2), 0.25), label, label == 0))
    assert (found.pop("MAE"), found.pop("MAE_per_image")) == (0.25, 0.25)
    assert all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize("legacy", [False, True])
def test_max_f_equals_a_loop_over_thresholds(legacy, random_batch, scores):
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


def test_legacy_max_f_is_lower(scores):
    draw = torch.Generator().manual_seed(0)
    label = (torch.rand(1, 40, 40, generator=draw) < 0.3).to(torch.uint8)
    prediction = (0.2 * label + 0.8 * torch.rand(1, 40, 40, generator=draw)).clamp(0, 1) * 0.5
    valid = torch.ones_like(label, dtype=torch.bool)
    assert (
        scores(MaxF(legacy=True), (prediction, label, valid))["maxF"]
        < scores(MaxF(), (prediction, label, valid))["maxF"]
    )


def test_perfect_saliency_scores_full_and_the_threshold_is_inclusive(scores):
    label = torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0.9, 0.95, 0.95]]])
    result = scores(MaxF(), (prediction, label, torch.ones_like(label, dtype=torch.bool)))
    figures = {"maxF": 100, "precision": 100, "recall": 100, "threshold": 0.95, "mIoU": 100}
    assert {name: result[name] for name in figures} == pytest.approx(figures)
    assert result["MAE"] == pytest.approx((0.9 + 0.05 + 0.05) / 3)


def test_the_curve_equals_numpy(random_batch):
    prediction, label, valid = random_batch(MaxF)
    metric = MaxF()
    metric.update(prediction, label, valid)
    curve, p, y = metric.curve(), prediction[valid].numpy(), label[valid].numpy() == 1
    for threshold, precision, recall in zip(curve["thresholds"], curve["precision"], curve["recall"], strict=True):
        np.testing.assert_allclose(curve_of(p >= np.float32(threshold), y)[:2], (precision, recall), rtol=1e-9)
    assert len(curve["thresholds"]) == 19
