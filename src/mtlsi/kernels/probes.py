"""Short typical calls of the forms that are chosen by their speed: half a decoder at 224x288, milliseconds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlsi.kernels import cpu_attention, cpu_linear, cpu_tokens, default

Calls = dict[str, Callable[[], Any]]


def linear() -> Calls:
    """Forward and backward of a linear map per task."""

    def probe(form: Callable[..., Tensor]) -> None:
        x, weight = _positions(4032, 64).requires_grad_(), _random(4, 64, 64).requires_grad_()
        (form(x, weight) * torch.ones(1, 4, 4032, 64)).sum().backward()  # backward(ones) imports sympy

    return {"cpu": lambda: probe(cpu_linear.task_linear), "default": lambda: probe(default.task_linear)}


def assignment() -> Calls:
    """Forward and backward of an assignment to 256 tokens."""

    def probe(form: Callable[..., Tensor]) -> None:
        hidden, features = (_positions(2048, 48).requires_grad_() for _ in range(2))
        form(hidden, features, _random(4, 48, 256), _random(4, 1, 256)).sum().backward()

    return {"cpu": lambda: probe(cpu_tokens.assign_tokens), "default": lambda: probe(default.assign_tokens)}


def expansion() -> Calls:
    """Linear attention at three scales."""
    arguments = (
        [_positions(2048, 48) for _ in range(3)],
        _random(1, 2, 24, 24),
        _random(1, 2, 24).abs(),
        _random(4, 144, 48),
        _random(4, 1, 48),
    )
    return _without_gradients(cpu_attention.attend_and_expand, default.attend_and_expand, arguments)


def attention_to_few() -> Calls:
    """bf16 attention to 64 keys."""
    queries, keys = (_positions(n, 64).to(torch.bfloat16) for n in (2048, 64))
    return _without_gradients(cpu_attention.written_out, default.attention, (queries, keys, keys, 2))


def attention_to_train() -> Calls:
    """Forward and backward of bf16 attention to 256 keys."""

    def probe(form: Callable[..., Tensor]) -> None:
        queries, keys = (_positions(n, 64).to(torch.bfloat16).requires_grad_() for n in (1024, 256))
        form(queries, keys, keys, 2).sum().backward()

    return {"cpu": lambda: probe(cpu_attention.written_out), "default": lambda: probe(default.attention)}


def attention_to_many() -> Calls:
    """float32 attention to 512 keys."""
    queries, keys = _positions(1024, 64), _positions(512, 64)
    return _without_gradients(cpu_attention.chunked, default.attention, (queries, keys, keys, 2))


def _without_gradients(cpu: Callable[..., Any], plain: Callable[..., Any], arguments: tuple[Any, ...]) -> Calls:
    def call(form: Callable[..., Any]) -> None:
        with torch.no_grad():
            form(*arguments)

    return {"cpu": lambda: call(cpu), "default": lambda: call(plain)}


def _random(*shape: int) -> Tensor:
    """From a generator of its own: measuring must not move the run's random numbers."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5


def _positions(count: int, channels: int) -> Tensor:
    """(1 4 n c), as positions lie in memory."""
    return _random(1, count, 4, channels).transpose(1, 2)
