"""Command-line flags from a dataclass: a field's name, type, default and the sentence below it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace

from mtlsi import processes
from mtlsi.errors import MistakeError, one_line
from mtlsi.plain_settings import in_plain_words

Options = TypeVar("Options")
NUMBER = r"\d{1,20}"
"""A whole number by its digits, as many as the largest seed has: Python reads none of more than 4,300."""


class Parser(ArgumentParser):
    """A parser that answers a mistake with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """One line on standard error, exit code 2."""
        told, command = one_line(in_plain_words(message, self, self.args)), self.prog.replace(" [options]", "")
        processes.say(f"mtlsi: {told}; see {command} --help")
        sys.exit(2)


def add_flags(parser: ArgumentParser, options: type) -> None:
    """Give ``parser`` an argument for every field of the dataclass ``options``; ``read_flags`` reads them."""
    hints, sentences = get_type_hints(options), _sentences(options)
    for field in fields(options):
        if "settings_of" in field.metadata:
            for key, sentence in _settings(field).items():
                parser.add_argument(f"--{key}", default=None, metavar="VALUE", help=sentence)
            continue
        kind = _plain_type(hints[field.name])
        settings: dict[str, Any] = {"help": sentences[field.name]}
        if field.metadata.get("positional"):
            parser.add_argument(field.name, type=_item_type(kind), nargs="*", default=[], **settings)
            continue
        if field.default is MISSING and field.default_factory is MISSING and not field.kw_only:
            if _is_list(kind):
                settings["nargs"] = "+"
            parser.add_argument(field.name, type=_item_type(kind), **settings)
            continue
        if kind is bool:
            settings["action"] = "store_true"
        elif field.metadata.get("repeated"):
            settings |= {"action": "append", "default": [], "metavar": field.metadata.get("metavar", "MODULE")}
        else:
            settings |= _value_settings(field, kind)
        parser.add_argument(_flag(field), dest=_dest(field), **settings)


def read_flags(namespace: Namespace, options: type[Options]) -> Options:
    """The dataclass that the parsed ``namespace`` describes; ``MistakeError`` for a value that cannot be read."""
    hints, values = get_type_hints(options), {}
    for field in fields(options):  # type: ignore[arg-type]
        if "settings_of" in field.metadata:
            given = {key: namespace[key] for key in _settings(field)}
            values[field.name] = {key: value for key, value in given.items() if value is not None}
            continue
        kind, value = _plain_type(hints[field.name]), namespace[_dest(field)]
        if field.default is True:
            value = not value
        values[field.name] = value if value is None else _read(_flag(field), value, kind)
    return options(**values)


def read_sizes(name: str, text: str) -> tuple[tuple[int, int], ...]:
    """``224x288,448x576`` as pairs of height and width; ``MistakeError`` for anything else."""
    found = [re.fullmatch(rf"\s*({NUMBER})x({NUMBER})\s*", part) for part in text.split(",")]
    if not all(found):
        raise MistakeError(f"{name} {text!r}; expected heights and widths, such as 224x288,320x416,448x576")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def read_counts(name: str, text: str) -> tuple[int, ...]:
    """``1,4`` as numbers; ``MistakeError`` for anything else."""
    if not re.fullmatch(rf"\s*{NUMBER}\s*(,\s*{NUMBER}\s*)*", text):
        raise MistakeError(f"{name} {text!r}; expected whole numbers, such as 1,4")
    return tuple(int(part) for part in text.split(","))


def read_mapping(name: str, text: str) -> dict[str, Any]:
    """``{"decoder_stride": 4}`` as a dictionary; ``MistakeError`` for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise MistakeError(f"{name} {text!r}; expected JSON such as " + '{"decoder_stride": 4}')
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _settings(field: Field) -> dict[str, str]:
    """By dotted name, the sentence of every setting that ``field`` may change; those of a nested class under its prefix."""
    classes: Mapping[str, type] = field.metadata["settings_of"]
    found = {f"{prefix}{name}": text for prefix, of in classes.items() for name, text in _sentences(of).items()}
    left_out = field.metadata.get("without", ())
    return {key: text for key, text in found.items() if f"{key}." not in classes and key not in left_out}


def _value_settings(field: Field, kind: Any) -> dict[str, Any]:
    """What argparse must know of a flag that takes a value."""
    settings: dict[str, Any] = {"type": _item_type(kind)}
    if field.default is MISSING and field.default_factory is MISSING:
        return settings | {"required": True}
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if _is_list(kind):
        return settings | {"nargs": "+", "default": default, "metavar": "NAME"}
    if _is_pair(kind):
        letters = ("X", "Y") if float in get_args(kind) else ("H", "W")
        return settings | {"nargs": 2, "default": default, "metavar": letters}
    return settings | {"default": _as_text(default)}


def _read(name: str, value: Any, kind: Any) -> Any:
    """``value`` as the parser gave it, in the form that the field has."""
    if kind in (bool, int, float, str, Path) or _is_list(kind):
        return value
    if not isinstance(value, str):
        return tuple(value)
    if _is_mapping(kind):
        return read_mapping(name, value)
    item = get_args(kind)[0]
    if item is int:
        return read_counts(name, value) if value else ()
    if get_origin(item) is tuple:
        return read_sizes(name, value) if value else ()
    return value


def _item_type(kind: Any) -> Any:
    """The type of one word on the command line; text where several values share a word."""
    if kind in (int, float, Path):
        return kind
    return get_args(kind)[0] if _is_list(kind) or _is_pair(kind) else str


def _as_text(default: Any) -> Any:
    """A default as a person would type it."""
    if isinstance(default, Mapping):
        return json.dumps(dict(default))
    if isinstance(default, tuple):
        return ",".join("x".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in default)
    return default


def _key(field: Field) -> str:
    """``num_workers`` and ``size_hw`` are ``workers`` and ``size`` on the command line."""
    return field.metadata.get("flag") or re.sub(r"^num_|_(hw|xy|m|path)$", "", field.name)


def _dest(field: Field) -> str:
    """What a parsed namespace calls a field: one that is on by default by what switches it off."""
    return f"no_{_key(field)}" if field.default is True else _key(field)


def _flag(field: Field) -> str:
    return f"--{_dest(field).replace('_', '-')}"


def _sentences(options: type) -> dict[str, str]:
    """The sentence below each field of a dataclass, where it does not say otherwise that of the class it extends."""
    classes = [base for base in reversed(options.__mro__) if is_dataclass(base)]
    found = {param.arg_name: param.description or "" for base in classes for param in parse_from_object(base).params}
    return {name: " ".join(text.split()) for name, text in found.items()}


def _plain_type(hint: Any) -> Any:
    """The first type of a union, such as ``X`` of ``X | None``; any other hint as it is."""
    return get_args(hint)[0] if get_origin(hint) in (Union, UnionType) else hint


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list


def _is_pair(kind: Any) -> bool:
    return get_args(kind) in ((int, int), (float, float))


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) is Mapping
