import math

import numpy as np
import pytest
import torch

from mtlsi.metrics import RegressionError


@pytest.mark.parametrize("channels", [None, 3])
def test_regression_error_equals_a_loop_over_numbers(channels, random_batch, scores):
    prediction, label, valid = random_batch(RegressionError)
    if channels:
        prediction, label = (torch.stack([x, -2 * x, x + 1], 1) for x in (prediction, label))
    label[0, ..., 1, 2], valid[0, 1, 2] = 0, True  # a label of 0 has no relative error
    pairs = [
        (float(p), float(y))
        for (b, i, j), v in np.ndenumerate(valid.numpy())
        if v
        for p, y in zip(prediction[b, ..., i, j].flatten(), label[b, ..., i, j].flatten(), strict=True)
    ]
    errors = [p - y for p, y in pairs]
    relative = [abs((p - y) / y) for p, y in pairs if y]
    found = scores(RegressionError(), (prediction, label, valid))
    assert found["RMSE"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / len(errors)), rel=1e-6)
    assert found["MAE"] == pytest.approx(sum(map(abs, errors)) / len(errors), rel=1e-6)
    assert found["abs_rel"] == pytest.approx(sum(relative) / len(relative), rel=1e-6)
    assert len(relative) < len(errors)
