"""What a pass asks of the host's memory, which a recording of it on a GPU cannot repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = ("_to_copy", "copy_", "to_copy")
ASK_HOW_MANY = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
"""Operations after which the host waits for a number."""


class Crossings(TorchDispatchMode):
    """While it is entered, notes the first operation of this thread's passes in which host and device meet: ``found``.

    Better asked beforehand: a recording that is refused half-way leaves some versions of torch unfit for random numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.found:
            name = func.overloadpacket.__name__
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            # a single number of the host's goes along with the call, except in a copy
            devices = {x.device.type for x in tensors if x.dim() or name in COPIES}
            if len(devices) > 1 or (name in ASK_HOW_MANY and "cpu" not in {x.device.type for x in tensors}):
                self.found = name
        return out
