"""Linear layers as 1x1 convolutions, for prediction on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from mtlsi.nn.layers import grouped_product


class ConvolvedLinear(nn.Linear):
    """A linear layer that is computed as the 1x1 convolution that it equals: torch has the two from different libraries."""

    @classmethod
    def of(cls, layer: nn.Linear) -> ConvolvedLinear:
        """The same layer, with the same parameters."""
        convolved = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        convolved.weight, convolved.bias = layer.weight, layer.bias
        return convolved

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(1, -1, self.in_features)
        return grouped_product(rows, self.weight, 1, self.bias).view(*input.shape[:-1], self.out_features)


def has_linears(body: nn.Module) -> bool:
    """Whether ``convolve_linears`` would find anything in ``body``."""
    return any(type(module) is nn.Linear for module in body.modules())


def convolve_linears(body: nn.Module) -> None:
    """Put a ``ConvolvedLinear`` in the place of every linear layer of ``body``."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, ConvolvedLinear.of(child))
