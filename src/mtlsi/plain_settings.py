"""Settings as jsonargparse reads them from files and words, kept to plain values.

Of its own accord it imports whatever module a setting ``class_path`` names, which runs that module's code, and reads any
file that stands in the place of settings. Here a file of settings is values and nothing else.
"""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_loader  # pyright: ignore[reportPrivateImportUsage]: documented

from mtlsi.errors import MistakeError, clipped, message_of
from mtlsi.field_types import words_of
from mtlsi.reading import DEEPEST, shortened
from mtlsi.yaml_files import parse_yaml, read_yaml

PARTS = ("model", "data", "train")
"""The settings of a run that are settings by name themselves."""
CODE = ("class_path", "init_args", "dict_kwargs", "__path__", "__default_config__")
"""Names that mean more than a value to jsonargparse."""


def use_plain_values() -> None:
    """From here on jsonargparse reads YAML with this project's loader."""
    set_loader("yaml", _load, (yaml.YAMLError,))


def _load(text: str) -> Any:
    value = parse_yaml(text)
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        return text  # "name:" or "{name}" is a word, as jsonargparse has it, too
    try:
        check_plain_settings(value)
    except MistakeError as error:
        raise yaml.YAMLError(str(error)) from error
    return value


def check_plain_settings(value: Any) -> None:
    """Raises ``MistakeError`` for settings, at any depth, under a name that would name code to import or is too deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            for name in value:
                if any(part in CODE for part in str(name).split(".")):
                    raise MistakeError(
                        f"unknown setting {shortened(name)}; expected plain values: code is never named here"
                    )
                if str(name).count(".") >= DEEPEST:
                    raise MistakeError(f"unknown setting {shortened(name)}; expected a name of at most {DEEPEST} parts")
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def check_parts(where: str, settings: Mapping[str, Any]) -> None:
    """Raises ``MistakeError``, which begins with ``where``, unless each of ``PARTS`` holds settings by name."""
    for part in PARTS:
        if not isinstance(settings.get(part, {}), dict):
            raise MistakeError(f"{where}: {part} is {shortened(settings[part])}; expected settings by name")


class ConfigFile(ActionConfigFile):
    """``--config FILE``: checked before jsonargparse sees it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Raises what ``parser.error`` raises for a file that is missing, no mapping or no plain values."""
        try:
            content = read_yaml(Path(values))
            if not isinstance(content, dict):
                raise MistakeError(f"{values}: holds {type(content).__name__}; expected settings by name")
            check_parts(str(values), content)
            if "config" in content:
                raise MistakeError(f"{values}: config: one file names no other; expected settings alone")
            try:
                check_plain_settings(content)
            except MistakeError as error:
                raise MistakeError(f"{values}: {error}") from error
        except MistakeError as error:
            parser.error(str(error))
        except (OSError, ValueError) as error:
            parser.error(f"--config {values}: {message_of(error)}; expected a YAML file such as those in recipes/")
        super().__call__(parser, cfg, values, option_string)


def in_plain_words(message: str, parser: ArgumentParser, typed: Sequence[str] = ()) -> str:
    """What jsonargparse says of a value of the wrong type, in this project's words; any other ``message`` as it is.

    ``typed``: the words on the command line, from which the value is quoted where it stands there.
    """
    named = re.match(r'Parser key "([^"]+)"', message)
    action = next((action for action in parser._actions if named and action.dest == named[1]), None)
    if action is None:
        return message
    _, *values = re.split("(?:Got|Given) value: ", message)
    given = _given(action, typed)
    if given is None or (values and values[-1] not in given):  # from a file
        given = f"{action.dest} {values[-1] if values else ''}".rstrip()
    hint = getattr(action, "_typehint", None)  # None: a part of the settings, such as train
    is_union = get_origin(hint) in (Union, UnionType)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if is_union else [hint]
    expected = "settings by name" if hint is None else " or ".join(dict.fromkeys(map(words_of, kinds)))
    several = f"{action.nargs} values, each " if isinstance(action.nargs, int) else ""
    return f"{clipped(given, 200)}; expected {several}{expected}"


def _given(action: Action, typed: Sequence[str]) -> str | None:
    """The flag of ``action`` and its value as they stand in ``typed``; None where they do not."""
    for flag in action.option_strings:
        for at, word in enumerate(typed):
            if word.startswith(f"{flag}="):
                return f"{flag} {word.removeprefix(f'{flag}=')}"
            if word == flag:
                count = action.nargs if isinstance(action.nargs, int) else 1
                return " ".join(typed[at : at + 1 + count])
    return None
