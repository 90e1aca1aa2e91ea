"""Modules that are a person's own: what they do is known to them alone."""

from __future__ import annotations

from torch import nn

OURS = ("mtlsi", "timm", "torch")
"""Packages whose modules compute the same in every pass."""


def not_ours(network: nn.Module) -> str:
    """Why a recording of one pass through ``network`` may not stand for every later one's; empty where it does.

    A recording repeats what a GPU did and runs no Python again: neither code of a person's own nor hooks.
    """
    modules = list(network.modules())
    for module in modules:
        if type(module).__module__.partition(".")[0] not in OURS:
            return f"{type(module).__name__} is a module of your own"
    return "a module has hooks" if any(m._forward_hooks or m._forward_pre_hooks for m in modules) else ""
