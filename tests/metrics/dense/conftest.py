from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchmetrics import Metric

from mtlsi.metrics import AngularError, DepthError, MaxF, MeanIoU, RegressionError

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="session")
def scores() -> Callable[..., dict[str, float]]:
    """What a metric gives for some batches."""

    def measure(metric: Metric, *batches: Batch) -> dict[str, float]:
        for batch in batches:
            metric.update(*batch)
        return {key: value.item() for key, value in metric.compute().items()}

    return measure


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., Batch]:
    """Decoded predictions, labels and which pixels are valid, of a kind of metric."""

    def make(kind: type[Metric], num_images: int = 6, seed: int = 0) -> Batch:
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
            assert kind in (DepthError, RegressionError)
            prediction, label = (draw.random((2, *shape)) * 9 + 0.5).astype(np.float32)
        return torch.as_tensor(prediction), torch.as_tensor(label), torch.as_tensor(valid)

    return make
