"""What a pass asks of the host's memory, which a recording of it on a GPU cannot repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = ("_to_copy", "copy_")
ASK_HOW_MANY = (
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "repeat_interleave", "multinomial",
)  # fmt: skip
"""Operations after which the host waits for a number."""


class Crossings(TorchDispatchMode):
    """While it is entered, notes the first operation of this thread's passes in which host and device meet: ``found``.

    Better asked beforehand: a recording that is refused half-way leaves some versions of torch unfit for random numbers.
    Not for ``inference_mode``, in which torch shows operations before it takes them apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.found and _meet(
            name := func.overloadpacket.__name__, tree_leaves((args, kwargs)), tree_leaves(out)
        ):
            self.found = name
        return out


def _meet(name: str, given: Sequence[Any], out: Sequence[Any]) -> bool:
    """Whether host and device meet in the operation ``name``."""
    tensors = [x for x in (*given, *out) if isinstance(x, Tensor)]
    # a single number of the host's goes along with the call, except in a copy
    if len({x.device.type for x in tensors if x.dim() or name in COPIES}) > 1:
        return True
    by_mask = name == "index" and any(x.dtype == torch.bool for x in tensors[1 : -len(out)])
    return (by_mask or name in ASK_HOW_MANY) and all(x.device.type != "cpu" for x in tensors)
