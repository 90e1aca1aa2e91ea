"""Predictions that are no numbers are refused: a comparison with NaN is False, which counts as an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlsi.errors import MistakeError


def check_finite(prediction: Tensor) -> None:
    """Raises ``MistakeError`` where ``prediction``, of any shape, holds NaN or an infinite value."""
    if not torch.isfinite(prediction).all():
        raise MistakeError(
            "a prediction holds NaN or infinite values at valid pixels; expected numbers: the weights are damaged or their "
            "training diverged"
        )
