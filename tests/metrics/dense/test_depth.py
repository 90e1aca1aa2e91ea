import numpy as np
import pytest
import torch

from mtlsi.metrics import DepthError
from mtlsi.metrics.dense.depth import FIGURES, align_median, align_scale_shift, eigen_crop


def figures_of(p, y):
    """Every figure of the pixels ``p`` and ``y``, in float64, by its definition."""
    positive = np.maximum(p, 1e-3)
    log = np.log(positive) - np.log(y)
    ratio = np.maximum(positive / y, y / positive)
    return {
        "RMSE": np.sqrt(np.mean((p - y) ** 2)),
        "abs_rel": np.mean(np.abs(p - y) / y),
        "log10": np.mean(np.abs(np.log10(positive) - np.log10(y))),
        "delta1": 100 * np.mean(ratio < 1.25),
        "delta2": 100 * np.mean(ratio < 1.25**2),
        "delta3": 100 * np.mean(ratio < 1.25**3),
        "sq_rel": np.mean((p - y) ** 2 / y),
        "RMSE_log": np.sqrt(np.mean(log**2)),
        "silog": 100 * np.std(log),
        "MAE": np.mean(np.abs(p - y)),
    }


def fitted(p, y):
    slope, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), y, rcond=None)[0]
    return slope * p + shift


ALIGN = {
    "capped": lambda p, _: p,
    "eigen": lambda p, _: p,
    "median": lambda p, y: p * np.median(y) / np.median(p),
    "scale_shift": fitted,
}


def pixels_of(name, prediction, label, valid, range_m):
    """For each image the pixels that a reading compares."""
    for p, y, v in zip(prediction.double().numpy(), label.double().numpy(), valid.numpy(), strict=True):
        v = v.copy()
        caps = range_m or ((1e-3, 10) if name == "eigen" else None)
        if name == "eigen":
            h, w = v.shape
            crop = np.zeros_like(v)
            crop[round(45 / 480 * h) : round(471 / 480 * h), round(41 / 640 * w) : round(601 / 640 * w)] = True
            v &= crop
        if name and caps:
            v &= (y > caps[0]) & (y < caps[1])
        chosen, labelled = p[v], y[v]
        if name:
            chosen = ALIGN[name](chosen, labelled)
            chosen = chosen if caps is None else np.clip(chosen, *caps)
        yield chosen, labelled


@pytest.mark.parametrize("range_m", [None, (1.5, 8.0)])
def test_every_reading_equals_numpy_image_by_image(range_m, random_batch, scores):
    prediction, label, valid = random_batch(DepthError)
    prediction[0, 2, 3], valid[0, 2, 3] = -1.0, True  # ratios take it for a millimetre
    label[1] *= 2  # some beyond the caps
    label[~valid] = float("nan")
    expected = {}
    for name in ("", *(["capped"] if range_m else []), "eigen", "median", "scale_shift"):
        images = list(pixels_of(name, prediction, label, valid, range_m))
        of_images = [figures_of(*image) for image in images]
        means = {figure: np.mean([of_image[figure] for of_image in of_images]) for figure in FIGURES}
        pooled = figures_of(*(np.concatenate(x) for x in zip(*images, strict=True)))
        pooled["silog"] = means["silog"]
        beside = f"{name}_per_image" if name else "per_image"
        expected |= {f"{name}/{figure}".lstrip("/"): value for figure, value in pooled.items()}
        expected |= {f"{beside}/{figure}": value for figure, value in means.items()}
    found = scores(DepthError(range_m), (prediction, label, valid))
    assert found == pytest.approx(expected, rel=1e-6)
    assert tuple(found)[: len(FIGURES)] == FIGURES


def test_pixels_are_pooled_and_images_averaged_beside_them(scores):
    label = torch.ones(3, 1, 4)
    prediction = label.clone()
    prediction[0, 0, 0] = 3.0
    valid = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 0, 0]]], dtype=torch.bool)
    found = scores(DepthError(), (prediction, label, valid))
    assert found["RMSE"] == pytest.approx(1.0)  # sqrt(4 / 4)
    assert found["per_image/RMSE"] == pytest.approx(1.0)  # (2 + 0) / 2
    valid[0] = True
    found = scores(DepthError(), (prediction, label, valid))
    assert found["RMSE"] == pytest.approx(np.sqrt(4 / 7))
    assert found["per_image/RMSE"] == pytest.approx(0.5)  # (sqrt(4 / 4) + 0) / 2


def test_silog_is_free_of_each_images_scale_and_known_for_two_pixels(scores):
    label = torch.tensor([[[1.0, 1.0]], [[2.0, 4.0]]])
    prediction = torch.tensor([[[2.0, 8.0]], [[6.0, 12.0]]])
    found = scores(DepthError(), (prediction, label, torch.ones(2, 1, 2, dtype=torch.bool)))
    # logarithms of the ratios: ln 2 and ln 8, whose standard deviation is ln 2; and twice ln 3
    assert found["silog"] == pytest.approx(100 * np.log(2) / 2)
    assert found["median/silog"] == pytest.approx(found["silog"])


def test_aligned_readings_undo_a_scale_and_a_shift(scores):
    label = 1 + torch.arange(24.0).view(1, 4, 6) / 4
    valid = torch.ones_like(label, dtype=torch.bool)
    scaled = scores(DepthError(), (0.4 * label, label, valid))
    assert scaled["RMSE"] > 1
    assert scaled["median/RMSE"] == pytest.approx(0, abs=1e-6)
    shifted = scores(DepthError(), (0.4 * label + 2, label, valid))
    assert shifted["median/RMSE"] > 0.1
    assert shifted["scale_shift/RMSE"] == pytest.approx(0, abs=1e-6)


def test_a_constant_prediction_is_aligned_to_the_labels_middle():
    constant, label = torch.full((4,), 3.3, dtype=torch.double), torch.tensor([1.0, 2, 4, 9]).double()
    assert align_median(constant, label).tolist() == pytest.approx([3] * 4)
    assert align_scale_shift(constant, label).tolist() == pytest.approx([4] * 4)
    assert align_median(0 * constant, label).tolist() == [0] * 4


def test_the_eigen_crop_is_the_published_one_and_whole_where_it_was_cut_already():
    assert eigen_crop(480, 640) == (slice(45, 471), slice(41, 601))
    assert eigen_crop(425, 560) == (slice(0, 425), slice(0, 560))
    assert eigen_crop(240, 320) == (slice(22, 236), slice(20, 300))
