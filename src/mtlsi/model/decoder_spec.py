"""What a decoder is built for, and the options that only one decoder knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from mtlsi.errors import MistakeError
from mtlsi.sizes import ModelConfig

Options = TypeVar("Options")


@dataclass(frozen=True)
class DecoderSpec:
    """What a decoder is built for."""

    outputs: Mapping[str, int]
    """Channels of each task's prediction; their order is that of the task axis."""
    map_channels: Sequence[int]
    """Channels of the four maps."""
    sizes: ModelConfig
    """Sizes to build from; ``sizes.decoder_options`` holds what only this decoder knows."""

    def options(self, kind: type[Options]) -> Options:
        """``sizes.decoder_options`` as the dataclass ``kind``, whose fields have defaults.

        Lists become tuples. Raises ``MistakeError`` for a name that ``kind`` does not have, and for a value of another type
        than a default that is a bool, a number or a string.
        """
        given = options_given(self.sizes, kind)
        defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
        for name, value in self.sizes.decoder_options.items():
            if type(defaults[name]) in NAMES and not _alike(value, defaults[name]):
                expected = NAMES[type(defaults[name])]
                raise MistakeError(f"option {name} of decoder {self.sizes.decoder}: {value!r}; expected {expected}")
        return kind(**given)


def options_given(sizes: ModelConfig, kind: type) -> dict[str, Any]:
    """``sizes.decoder_options``, lists as tuples; ``MistakeError`` for a name that the dataclass ``kind`` lacks."""
    known = [field.name for field in fields(kind)]
    for name in sizes.decoder_options:
        if name not in known:
            expected = f"some of {', '.join(known)}" if known else "none"
            raise MistakeError(f"decoder {sizes.decoder} has no option {name!r}; expected {expected}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.decoder_options.items()}


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
