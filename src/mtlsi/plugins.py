"""Modules of a person's own, imported by name so that their registrations are known on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from mtlsi.errors import MistakeError


def import_plugins(names: Iterable[str]) -> None:
    """Import each of ``names``: a Python file, such as my_module.py, or a dotted module name.

    Importing runs the module's code. A file is imported under its own name, from a folder that joins the end of
    ``sys.path``, so that loader processes can import it too. A module that is imported already is not run again.
    Raises ``MistakeError`` for a module that is not there or fails.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(name)
        else:
            _import(name, name)


def settle_plugins(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` with the whole path of every file, as a run folder records them."""
    return tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in names)


def _import_file(name: str) -> None:
    path = Path(name).resolve()
    if not path.is_file():
        raise MistakeError(f"plugin {name}: no such file; expected a Python file or the dotted name of a module")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    _import(path.stem, name)
    found = getattr(sys.modules[path.stem], "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise MistakeError(f"plugin {name}: another module is called {path.stem} already; rename the file")


def _import(module: str, name: str) -> None:
    try:
        import_module(module)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise MistakeError(
            f"plugin {name} cannot be imported ({reason}); expected a Python file or the dotted name of a module"
        ) from error
