"""What a decoder is built for, and the options that only one decoder knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from mtlsi.config import ModelConfig
from mtlsi.errors import MistakeError

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

        Lists become tuples. Raises ``MistakeError`` for a name that ``kind`` does not have.
        """
        given: Mapping[str, Any] = self.sizes.decoder_options
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        for name in given:
            if name not in known:
                expected = f"some of {', '.join(known)}" if known else "none"
                raise MistakeError(f"decoder {self.sizes.decoder} has no option {name!r}; expected {expected}")
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@dataclass(frozen=True)
class NoOptions:
    """For a decoder that is described by the sizes alone."""
