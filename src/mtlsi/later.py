"""Modules that take seconds to import, imported when something of them is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Later:
    """In a module's place: ``torch = Later("torch")``."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
