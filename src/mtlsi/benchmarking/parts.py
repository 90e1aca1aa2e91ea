"""What each part of the network costs: parameters, operations, bytes and time, read as one forward passes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mtlsi.kernels.recompute import called_modules
from mtlsi.model.decoders import OnlyTasks
from mtlsi.model.network import MTLSINet
from mtlsi.timing import Timing, synchronise

TITLES = {"fusion": "MT-MQLFB", "local": "adding fused", "cross_window": "CWIB"}
"""What tables call a decoder's part, where that is not its attribute's name."""
REST = "resizing and rest"
"""What the network does between its parts."""


@dataclass(frozen=True)
class PartCost:
    """One part's share of a forward."""

    part: str
    parameters: int
    flops: int
    """2 x MAC of products and convolutions; what is done element by element is not counted, as everywhere in the field."""
    timing: Timing
    bytes_moved: int | None
    """Inputs, outputs and weights, each once: the least that has to go through memory. None for what is between parts."""

    def allowed_s(self, flops_per_s: float, bytes_per_s: float) -> float | None:
        """The roofline: seconds that a machine of these rates needs at the least, for arithmetic or for memory."""
        if self.bytes_moved is None:
            return None
        return max(self.flops / flops_per_s, self.bytes_moved / bytes_per_s)


def part_costs(
    model: MTLSINet, forward: Callable[[], Any], *, repeats: int, warmup: int = 2, device: torch.device
) -> list[PartCost]:
    """The cost of every part of ``model``, then of ``REST``; ``forward`` is to run the model once, uncompiled."""
    flops = count_flops(model, forward)
    moved = count_bytes(model, forward)
    seconds = time_parts(model, forward, repeats=repeats, warmup=warmup, device=device)
    parameters = {part: sum(_size(module.parameters()) for module in found) for part, found in parts_of(model).items()}
    return [
        PartCost(part, parameters.get(part, 0), flops[part], Timing.of(seconds[part]), moved.get(part))
        for part in flops
    ]


def parts_of(model: MTLSINet) -> dict[str, list[nn.Module]]:
    """The backbone and the decoder's own parts, in their order; those without weights are left out."""
    decoder = model.decoder.decoder if isinstance(model.decoder, OnlyTasks) else model.decoder  # which runs all of it
    children = {TITLES.get(name, name): part for name, part in decoder.named_children()}
    modules = {part: called_modules(module) for part, module in {"backbone": model.backbone, **children}.items()}
    return {part: found for part, found in modules.items() if any(list(m.parameters()) for m in found)}


def count_flops(model: MTLSINet, forward: Callable[[], Any]) -> dict[str, int]:
    """Operations (2 x MAC) of one forward, by part and ``REST``; their sum is the whole."""
    with FlopCounterMode(display=False) as counter, _rises(model, counter.get_total_flops) as of_part:
        forward()
    return {**of_part, REST: counter.get_total_flops() - sum(of_part.values())}


def time_parts(
    model: MTLSINet, forward: Callable[[], Any], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every repeat, by part and ``REST``; in each repeat they add up to the whole."""

    def clock() -> float:
        synchronise(device)
        return time.perf_counter()

    seconds: dict[str, list[float]] = {part: [] for part in (*parts_of(model), REST)}
    for repeat in range(warmup + repeats):
        with _rises(model, clock) as of_part:
            start = clock()
            forward()
            whole = clock() - start
        if repeat >= warmup:
            for part, taken in {**of_part, REST: whole - sum(of_part.values())}.items():
                seconds[part].append(taken)
    return seconds


def count_bytes(model: MTLSINet, forward: Callable[[], Any]) -> dict[str, int]:
    """Bytes of each part's inputs, outputs and weights in one forward."""
    moved = dict.fromkeys(parts_of(model), 0)
    handles = []

    def add_to(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, named: Any, result: Any) -> None:
            outside = [x for x in tree_leaves((given, named, result)) if isinstance(x, Tensor)]
            moved[part] += sum(x.numel() * x.element_size() for x in (*outside, *module.parameters()))

        return hook

    for part, modules in parts_of(model).items():
        handles += [module.register_forward_hook(add_to(part), with_kwargs=True) for module in modules]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return moved


@contextmanager
def _rises(model: MTLSINet, read: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """While it is open, each call of a part adds to the part's entry what ``read`` rises by."""
    risen = dict.fromkeys(parts_of(model), 0)
    before: list[Any] = []
    handles = []

    def close(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            risen[part] += read() - before.pop()

        return hook

    for part, modules in parts_of(model).items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: before.append(read())))
            handles.append(module.register_forward_hook(close(part)))
    try:
        yield risen
    finally:
        for handle in handles:
            handle.remove()


def _size(tensors: Iterator[nn.Parameter]) -> int:
    return sum(tensor.numel() for tensor in tensors)
