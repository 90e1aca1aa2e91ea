"""Whether values that came from a file have the types that a dataclass says, in one line where they have not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mtlsi.errors import MistakeError
from mtlsi.reading import shortened

PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: (
        "a number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and _finite(value),
    ),
    str: ("a text", lambda value: isinstance(value, str)),
    type(None): ("nothing", lambda value: value is None),
    Any: ("anything", lambda _: True),
}


def check_types(kind: type, values: Any, where: str = "") -> None:
    """Raises ``MistakeError`` for a name that the dataclass ``kind`` lacks, and for a value of another type.

    ``where`` begins every name in the message. Lists are taken for tuples; a number is finite.
    """
    if not isinstance(values, Mapping):
        raise MistakeError(f"{where.rstrip('.') or kind.__name__} is {shortened(values)}; expected settings by name")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    for name, value in values.items():
        if name not in hints:
            raise MistakeError(f"unknown name {shortened(f'{where}{name}')}; expected some of {', '.join(hints)}")
        if not _fits(hints[name], value):
            raise MistakeError(f"{where}{name} {shortened(value)}; expected {words_of(hints[name])}")


def check_bounds(values: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]], what: str) -> None:
    """Raises ``MistakeError``, which begins with ``what``, for a number, or one of several, outside its bounds."""
    for name, (low, high) in bounds.items():
        value = values.get(name)
        for one in value if isinstance(value, list | tuple) else () if value is None else (value,):
            if not low <= one <= high:
                raise MistakeError(f"{what} {name} {shortened(value)}; expected {low:g}..{high:g}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all fractions
        return False


def _fits(hint: Any, value: Any) -> bool:
    if hint in PLAIN:
        return PLAIN[hint][1](value)
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(one, value) for one in inside)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inside[:1] * len(value) if inside[1:] == (...,) else inside
        return len(kinds) == len(value) and all(map(_fits, kinds, value))
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(inside[0], k) and _fits(inside[1], v) for k, v in value.items())
    return isinstance(value, origin or hint)


def words_of(hint: Any) -> str:
    """What values of a type are, for a message: ``a whole number``."""
    if hint in PLAIN:
        return PLAIN[hint][0]
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words_of(one) for one in inside))
    if origin is tuple:
        several = "a list" if inside[1:] == (...,) else f"a list of {len(inside)}"
        return f"{several}, each {words_of(inside[0])}"
    return "values by name" if origin is dict else str(getattr(hint, "__name__", hint))
