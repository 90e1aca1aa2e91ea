"""Keys of a YAML file: what each takes, and one line for every mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlsi.errors import MistakeError


@dataclass(frozen=True)
class Key:
    """A key: what it takes, in words and as a function that raises ``ValueError`` for all else."""

    expected: str
    read: Callable[[Any], Any]
    default: Any = None
    required: bool = False


def read_keys(path: Path, where: str, values: Any, keys: Mapping[str, Key]) -> dict[str, Any]:
    """A value for each of ``keys``, defaults filled in. Raises ``MistakeError`` naming the file and the key."""
    values, prefix = {} if values is None else values, f"{where}." if where else ""
    if not isinstance(values, dict):
        raise MistakeError(f"{path}: {where or 'holds'} {_short(values)}; expected keys, some of {', '.join(keys)}")
    for name in values:
        if name not in keys:
            raise MistakeError(f"{path}: {prefix}{name}: unknown key; expected some of {', '.join(keys)}")
    read = {}
    for name, key in keys.items():
        if name not in values:
            if key.required:
                raise MistakeError(f"{path}: {prefix}{name}: missing; expected {key.expected}")
            read[name] = key.default
            continue
        try:
            read[name] = key.read(values[name])
        except ValueError as error:
            raise MistakeError(f"{path}: {prefix}{name}: {_short(values[name])}; expected {key.expected}") from error
    return read


def text(value: Any) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], float]:
    """A number between ``low`` and ``high``, both excluded where they are finite."""

    def read(value: Any) -> float:
        if isinstance(value, str):
            value = float(value)  # YAML takes 1e-3 for a text
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if (math.isfinite(low) and not value > low) or (math.isfinite(high) and not value < high):
            raise ValueError
        return float(value)

    return read


def whole(low: int, high: int) -> Callable[[Any], int]:
    """An integer in ``low``..``high``."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return read


def listed(item: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], tuple]:
    """A list, of ``length`` where it is given, of what ``item`` reads."""

    def read(value: Any) -> tuple:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise ValueError
        return tuple(item(one) for one in value)

    return read


def span(value: Any) -> tuple[float, float]:
    """[low, high]."""
    low, high = listed(number(), 2)(value)
    if not low < high:
        raise ValueError
    return low, high


def one_of(*choices: Any) -> Callable[[Any], Any]:
    """One of ``choices``."""

    def read(value: Any) -> Any:
        if isinstance(value, bool) or value not in choices:
            raise ValueError
        return value

    return read


def mapping(value: Any) -> dict:
    """Keys with values."""
    if not isinstance(value, dict):
        raise ValueError
    return value


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
