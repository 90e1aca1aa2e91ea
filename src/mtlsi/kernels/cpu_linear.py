"""Linear maps on a CPU, as grouped convolutions: oneDNN reads and writes the tasks side by side, without a copy.

Twice the speed of torch's matrix products on an AMD Zen 5. The convolution's own backward pass is slow, so there is
another one here: a grouped convolution for the input, a batched product for the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Grouped convolution, with the backward pass above where gradients are wanted."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return cast(Tensor, _TaskLinear.apply(x, weight, bias))
    return _product(x, weight, bias)


def task_linear_chunks(x: Tensor, weight: Tensor, bias: Tensor, num_chunks: int) -> tuple[Tensor, ...]:
    """A product for each chunk, so that each is contiguous."""
    chunks = zip(weight.chunk(num_chunks, -1), bias.chunk(num_chunks, -1), strict=True)
    return tuple(task_linear(x, w, b) for w, b in chunks)


def task_linear_concat(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """A product for each input, added: the inputs are never concatenated."""
    weights = weight.split([x.shape[-1] for x in inputs], 1)
    products = (task_linear(x, w) for x, w in zip(inputs[1:], weights[1:], strict=True))
    return sum(products, task_linear(inputs[0], weights[0], bias))


def grouped_product(x: Tensor, weight: Tensor, num_groups: int, bias: Tensor | None = None) -> Tensor:
    """Rows (b n (g c)) times weights ((g d) c), each group of columns with its own: (b n (g d))."""
    as_line = x.unsqueeze(1).permute(0, 3, 1, 2)  # b (g c) 1 n
    return F.conv2d(as_line, weight[..., None, None], bias, groups=num_groups).squeeze(2).mT


def outer_sums(x: Tensor, y: Tensor) -> Tensor:
    """(b t n c) and (b t n d) to the sums over b and n of their outer products: (t c d)."""
    x, y = (z.transpose(1, 2).flatten(0, 1).transpose(0, 1) for z in (x, y))  # t (b n) c
    if x.dtype is torch.bfloat16:
        x, y = x.contiguous(), y.contiguous()  # oneDNN would copy them itself, in twice the time
    # MKL is several times slower with the larger one transposed
    return torch.bmm(x.mT, y) if x.shape[-1] <= y.shape[-1] else torch.bmm(y.mT, x).mT


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which ``x`` takes part in matrix products: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel, offset = weight.mT.flatten(0, 1), None if bias is None else bias.flatten()
    rows = grouped_product(x.transpose(1, 2).flatten(2), kernel, len(weight), offset)
    return rows.unflatten(2, (len(weight), -1)).transpose(1, 2)


class _TaskLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtypes = [None if value is None else value.dtype for value in (x, weight, bias)]
        x, weight = (value.to(product_dtype(value)) for value in (x, weight))
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed, grad_x, grad_weight, grad_bias = ctx.needs_input_grad, None, None, None
        with torch.autocast(x.device.type, enabled=False):
            if needed[0]:
                grad_x = _product(grad_out, weight.mT).to(ctx.dtypes[0])
            if needed[1]:
                grad_weight = outer_sums(x, grad_out).to(ctx.dtypes[1])
            if needed[2]:
                grad_bias = grad_out.transpose(1, 2).sum((0, 1), dtype=ctx.dtypes[2]).unsqueeze(1)
        return grad_x, grad_weight, grad_bias
