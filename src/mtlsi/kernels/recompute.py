"""Trade time for memory in training: drop a module's activations and compute them again for the backward pass."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, on: bool) -> None:
    """From now on ``module`` keeps only its inputs and outputs for the backward pass; with ``on`` false, all it needs.

    The results are the same bit for bit: random draws repeat, and batch statistics are counted once.
    """
    module.__dict__.pop("forward", None)
    if on:
        module.forward = partial(_recomputed, module)


def batch_norms(module: nn.Module) -> list[Any]:
    """Every batch norm in ``module``."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def called_modules(module: nn.Module) -> list[nn.Module]:
    """The module, or the items of a mere container, such as a ``ModuleDict``, which is never called itself."""
    return list(module.children()) if type(module).forward is nn.Module.forward else [module]


def _recomputed(module: nn.Module, *inputs: Any) -> Any:
    forward = partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*inputs)
    context = lambda: (nullcontext(), FrozenStatistics(module))  # noqa: E731
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=context)


class FrozenStatistics:
    """Within the context batch norms normalise by the batch as before, but leave their stored statistics alone.

    May be entered again after it was left: several backward passes over one graph recompute it each time.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> None:
        norms = [norm for norm in batch_norms(self.module) if norm.training]
        self.before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()

    def __exit__(self, *_: object) -> None:
        for norm, momentum, num_batches in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
