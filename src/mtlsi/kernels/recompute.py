"""Trade time for memory in training: throw a module's activations away and compute them again for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, keeping only its inputs and outputs for the backward pass; the same results, bit for bit.

    What the module draws at random is drawn again alike, and batch statistics are counted once.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    return checkpoint(
        module, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module))
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """While it is open, batch norms normalise by the batch as ever, but their stored statistics stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, num_batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
