"""The classes of a task in ``dataset.yaml``: names, stored values and colours, brought together and checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtlsi.data.readers.class_maps import ClassMap
from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import Colour
from mtlsi.tasks import LAST_VALUE

CLASS_NAMES = "a list of names, each once, in quotes where YAML reads a number or yes and no"


def settle_classes(path: Path, task: str, keys: dict[str, Any]) -> None:
    """Fill in what the keys of a task with classes leave to be known; ``keys`` afterwards hold

    ``classes``: the names, those of ``values`` or ``colours`` where they are not listed; ``colours``: one per class, or
    None; ``map``: the ``ClassMap`` by which files are read. Raises ``MistakeError`` naming the file and the key.
    """
    where = f"{path}: tasks.{task}"
    values, colours = keys["values"], keys["colours"]
    if keys["classes"] is None:
        named = [name for name in (values or {}).values() if name is not None] or (
            list(colours) if isinstance(colours, dict) else []
        )
        if not named:
            raise MistakeError(f"{where}.classes: missing; expected {CLASS_NAMES}")
        keys["classes"] = tuple(dict.fromkeys(named))
    names = keys["classes"]
    stored = _stored_values(where, names, keys)
    by_class = None if colours is None else _colours_of(where, names, colours)
    keys["colours"] = by_class and tuple(several[0] for several in by_class)
    invalid, invalid_colours = _without_label(where, stored, keys)
    coded = () if values is not None or by_class is None else _coded(where, names, by_class, invalid_colours)
    keys["map"] = ClassMap(task, len(names), tuple(stored.items()), invalid, coded, invalid_colours if coded else ())


def _stored_values(where: str, names: tuple[str, ...], keys: dict[str, Any]) -> dict[int, int]:
    """The class by stored value."""
    values, first = keys["values"], keys["first"]
    if values is None:
        last = (first or 0) + len(names) - 1
        if last > LAST_VALUE:
            raise MistakeError(
                f"{where}.classes: {len(names)} from pixel value {first or 0} on; 16 bits end at {LAST_VALUE}"
            )
        return {(first or 0) + index: index for index in range(len(names))}
    if first is not None:
        raise MistakeError(f"{where}.first: given beside values; give one of the two")
    index_of = {name: index for index, name in enumerate(names)}
    for stored, name in values.items():
        if name is not None and name not in index_of:
            raise MistakeError(
                f"{where}.values: {stored}: {name!r} is no class; expected one of {', '.join(names[:8])}, or null: no label"
            )
    found = {stored: index_of[name] for stored, name in values.items() if name is not None}
    if not found:
        raise MistakeError(f"{where}.values: no class in it; expected {{stored value: class}}")
    return found


def _without_label(
    where: str, stored: dict[int, int], keys: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[Colour, ...]]:
    """Stored values and colours without a label: those of ``invalid`` and of ``values``.

    By default the end of 8 bits; of 16 where classes need more than 8.
    """
    given = keys["invalid"]
    if given is None:
        goes_beyond = max(stored) >= 255
        given = (255,) if not goes_beyond else () if keys["values"] is not None else (LAST_VALUE,)
    values = [value for value in given if isinstance(value, int)]
    values += [value for value, name in (keys["values"] or {}).items() if name is None]
    if both := [value for value in values if value in stored]:
        named = f"{min(stored)}..{max(stored)}" if keys["values"] is None else "values"
        raise MistakeError(f"{where}.invalid: {both[0]} is a class too, of {named}; change one")
    return tuple(dict.fromkeys(values)), tuple(value for value in given if not isinstance(value, int))


def _colours_of(where: str, names: tuple[str, ...], colours: Any) -> tuple[tuple[Colour, ...], ...]:
    """The colours of every class, in the order of the classes."""
    if isinstance(colours, dict):
        known = set(names)
        if strange := [name for name in colours if name not in known]:
            raise MistakeError(
                f"{where}.colours: {strange[0]!r} is no class; expected {', '.join(names[:8])}; what has no label stands in "
                "invalid"
            )
        if lacking := [name for name in names if name not in colours]:
            raise MistakeError(f"{where}.colours: none for {lacking[0]}; give every class its [r, g, b]")
        return tuple(colours[name] for name in names)
    if len(colours) != len(names):
        raise MistakeError(f"{where}.colours: {len(colours)} for {len(names)} classes; give as many")
    return colours


def _coded(
    where: str, names: tuple[str, ...], by_class: Iterable[Iterable[Colour]], invalid: Iterable[Colour]
) -> tuple[tuple[Colour, int], ...]:
    """Every colour with its class; ``MistakeError`` where one stands for two things."""
    found: dict[Colour, int] = {}
    for index, colours in enumerate(by_class):
        for colour in colours:
            if found.setdefault(colour, index) != index:
                raise MistakeError(
                    f"{where}.colours: {list(colour)} stands for {names[found[colour]]} and for {names[index]}; give each "
                    "its own"
                )
    for colour in invalid:
        if colour in found:
            raise MistakeError(
                f"{where}.invalid: {list(colour)} is the colour of {names[found[colour]]} too; change one"
            )
    return tuple(found.items())
