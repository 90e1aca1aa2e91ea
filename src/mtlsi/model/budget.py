"""A network out of somebody else's config.json, built within the memory that its own file of weights accounts for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mtlsi.errors import MistakeError

SLACK = 50_000_000
"""Numbers that may be made besides those in the file: buffers, masks and tables of positions."""
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace)


class _Counting(TorchFunctionMode):
    """Adds up the numbers of every tensor that is made, before it is made."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.made = most, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in FACTORIES:
            self.made += _numbers(args, kwargs or {})
            if self.made > self.most:
                raise MistakeError(
                    f"config.json asks for more than {self.made} numbers, model.safetensors holds "
                    f"{(self.most - SLACK) // 2}: they do not belong together; give an undamaged copy of both"
                )
        return func(*args, **(kwargs or {}))


def _numbers(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """How many numbers a call of one of ``FACTORIES`` makes; of a range its end."""
    size = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
    sides = [side for side in size if isinstance(side, int)] if isinstance(size, list | tuple) else []
    return abs(math.prod(sides)) if sides else 0


@contextmanager
def weights_within(num_numbers: int) -> Iterator[None]:
    """A network that is built in this context has at most twice ``num_numbers`` weights; ``MistakeError`` before it has."""
    with _Counting(2 * num_numbers + SLACK):
        yield
