import math

import numpy as np
import pytest
import torch

from mtlsi.metrics import AngularError


@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_angular_error_equals_float64_arc_cosines(noise, random_batch, scores):
    prediction, label, valid = random_batch(AngularError, num_images=5)
    prediction = label + noise * (prediction - label)
    valid[0, 0, 0] ^= valid.sum() % 2 == 1  # an even number of pixels: the median lies between two of them
    p, y = (v.double().numpy().transpose(0, 2, 3, 1)[valid.numpy()] for v in (prediction, label))
    cosines = (p * y).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(y, axis=1)
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    result = scores(AngularError(), (prediction, label, valid))
    assert result.pop("median") == pytest.approx(np.median(angles), abs=0.005001)
    expected = {"mErr": angles.mean(), "RMSE": np.sqrt((angles**2).mean())}
    expected |= {f"within_{x}": 100 * (angles < x).mean() for x in (5, 7.5, 11.25, 22.5, 30)}
    assert result == pytest.approx(expected)


@pytest.mark.parametrize("angle", [0.0, 0.001, 11.2, 45.0, 90.0, 179.999, 180.0])
def test_angular_error_of_known_angles(angle, scores):
    label = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    radians = math.radians(angle)
    prediction = torch.tensor([math.sin(radians), 0.0, math.cos(radians)]).view(1, 3, 1, 1)
    result = scores(AngularError(), (prediction, label, torch.ones(1, 1, 1, dtype=torch.bool)))
    assert result["mErr"] == pytest.approx(angle, abs=1e-5)
    assert result["median"] == pytest.approx(angle, abs=0.00501)
    assert result["RMSE"] == pytest.approx(angle, abs=1e-5)
    assert result["within_11.25"] == (100 if angle < 11.25 else 0)


def test_angular_error_of_no_direction_is_a_right_angle(scores):
    label = torch.tensor([0.0, 0.6, 0.8]).view(1, 3, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    assert scores(AngularError(), (torch.zeros(1, 3, 1, 1), label, valid))["mErr"] == 90
