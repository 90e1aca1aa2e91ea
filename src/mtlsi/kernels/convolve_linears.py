"""Linear layers as 1x1 convolutions, for prediction on a CPU: torch computes the two with different libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.kernels.choice import keeps_up
from mtlsi.kernels.cpu_linear import grouped_product


class ConvolvedLinear(nn.Linear):
    """A linear layer, computed as the 1x1 convolution that it equals."""

    @classmethod
    def of(cls, layer: nn.Linear) -> ConvolvedLinear:
        """The same layer, with the same parameters."""
        convolved = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        convolved.weight, convolved.bias = layer.weight, layer.bias
        return convolved.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(1, -1, self.in_features)
        return grouped_product(rows, self.weight, 1, self.bias).view(*input.shape[:-1], self.out_features)


def has_linears(body: nn.Module) -> bool:
    """Whether ``convolve_linears`` would find anything in ``body``."""
    return any(type(module) is nn.Linear for module in body.modules())


def convolve_linears(body: nn.Module) -> None:
    """Replace every linear layer of ``body`` by a ``ConvolvedLinear``."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, ConvolvedLinear.of(child))


def convolutions_are_faster() -> bool:
    """Whether this CPU does a 1x1 convolution in float32 faster than the matrix product that it equals; measured once."""
    return keeps_up("convolved_linear", _calls)


def _calls() -> dict[str, Callable[[], Any]]:
    square = torch.rand(512, 512, generator=torch.Generator().manual_seed(0))

    def call(form: Callable[..., Tensor], x: Tensor) -> None:
        with torch.no_grad():
            form(x)

    return {
        "cpu": lambda: call(lambda x: grouped_product(x, square, 1), square[None]),
        "default": lambda: call(lambda x: F.linear(x, square), square[None]),
    }
