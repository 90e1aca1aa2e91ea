"""timm without torch's compiler: ``from mtlsi.model.quick_timm import timm``.

timm and torchvision, which it imports, need ``torch._dynamo`` for two things: to keep some functions from being compiled,
and for a question that ``roi_align`` asks when it is called. Nobody compiles while they are imported, and to import the
compiler is more than a third of what ``mtlsi predict`` takes for one photo. So a stand-in takes its place meanwhile, which
leaves both to the real one at the time of the call. For anything else that is asked of it, it steps aside at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class _StandIn(ModuleType):
    """In the place of one of ``COMPILER``."""

    def __getattr__(self, name: str) -> Any:
        if (self.__name__, name) == (COMPILER[0], "disable"):
            return _disabled
        if (self.__name__, name) == (COMPILER[1], "is_compile_supported"):
            return _is_compile_supported
        if name.startswith("__"):
            raise AttributeError(name)
        _step_aside()
        return getattr(import_module(self.__name__), name)


def _disabled(function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
    """``torch.compiler.disable``, where nothing is to be kept from a compiler that is not loaded."""
    if function is None:
        return lambda given: _disabled(given, recursive, **options)

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        compiler = sys.modules.get(COMPILER[0])
        if compiler is None or isinstance(compiler, _StandIn):
            return function(*given, **named)
        return compiler.disable(function, recursive, **options)(*given, **named)

    return call


def _is_compile_supported(*given: Any) -> bool:
    _step_aside()
    return import_module(COMPILER[1]).is_compile_supported(*given)


def _step_aside() -> None:
    for name in COMPILER:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within the context a stand-in is imported in the compiler's place, unless the compiler is there already."""
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    sys.modules.update({name: _StandIn(name) for name in COMPILER})
    try:
        yield
    finally:
        _step_aside()


with without_compiler():
    import timm
    from timm.layers.pos_embed import resample_abs_pos_embed

__all__ = ["resample_abs_pos_embed", "timm"]
