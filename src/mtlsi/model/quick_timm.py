"""timm without torch's compiler and most of torchvision: ``from mtlsi.model.quick_timm import timm``.

To import timm imports both, which takes longer than to predict a photo.

The compiler is for two things: timm and torchvision keep some functions from being compiled, and ``roi_align`` asks a
question when it is called. Nobody compiles while they are imported. So a stand-in takes its place meanwhile, which leaves
both to the real one at the time of the call. For anything else that is asked of it, it steps aside at once.

Of torchvision timm takes some modules by name, and the packages that hold them load all its networks, operations and
libraries. So these packages stand there hollow meanwhile: their modules can be imported, their own code has not run. It
runs when somebody imports the package, in the same module object, so that there is one of everything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._dynamo.utils")
PACKAGES = ("torchvision", "torchvision.models", "torchvision.ops")


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


class _Hollow(ModuleType):
    """One of ``PACKAGES`` before its own code has run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if PathFinder.find_spec(child := f"{self.__name__}.{name}", self.__path__):
            return import_module(child)
        _FILLER.step_aside()
        return getattr(import_module(self.__name__), name)


class _Filler(MetaPathFinder, Loader):
    """Imports a hollow package by running its code in the module that is there."""

    def __init__(self) -> None:
        self.hollow: dict[str, ModuleType] = {}

    def prepare(self) -> None:
        """Put hollow packages where imports find them."""
        path = None
        for name in PACKAGES:
            if (spec := PathFinder.find_spec(name, path)) is None:
                return
            module = self.hollow[name] = sys.modules[name] = module_from_spec(spec)
            module.__class__ = _Hollow
            path = path or module.__path__

    def step_aside(self) -> None:
        """Have packages that are still hollow imported when they are next asked for."""
        for name, module in self.hollow.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a hollow package is, with this loader."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.hollow else None
        if spec is not None:
            spec.loader_state, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The hollow module."""
        return self.hollow.pop(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill it, and leave it as its own loader would have."""
        spec: Any = module.__spec__
        module.__class__, module.__loader__ = ModuleType, spec.loader_state
        spec.loader, spec.loader_state = spec.loader_state, None
        spec.loader.exec_module(module)


_FILLER = _Filler()


@contextmanager
def without_packages() -> Iterator[None]:
    """Within the context ``PACKAGES`` are hollow, unless they are there already; after it they are filled if imported."""
    if any(name in sys.modules for name in PACKAGES):
        yield
        return
    sys.meta_path.insert(0, _FILLER)
    _FILLER.prepare()
    try:
        yield
    finally:
        _FILLER.step_aside()


with without_compiler(), without_packages():
    import timm
    from timm.layers.pos_embed import resample_abs_pos_embed

__all__ = ["resample_abs_pos_embed", "timm"]
