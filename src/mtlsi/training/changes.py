"""What may be changed of a run that is resumed: its length, what it measures and writes, how many read its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError
from mtlsi.training.same_settings import FREE, SPREAD


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The ``config`` of a run to be resumed, with ``settings`` by dotted name; what a run has already is no change.

    Whether ``SPREAD`` leaves the images of a step as they were is asked where its checkpoint is opened.
    With other ``train.iterations`` the learning rate follows the schedule over the new length from there on, so that such a
    run is not the unbroken one of that length. Raises ``MistakeError`` for a setting that may not be changed.
    """
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        whole: Any = getattr(config, part) if part else config
        new = replace(whole, **{field: value})
        if getattr(new, field) == getattr(whole, field):
            continue
        if name not in (*FREE, *SPREAD):
            raise MistakeError(
                f"{name} {value!r}, but the run's own config.yaml has {getattr(whole, field)!r}; --resume changes "
                f"{', '.join(FREE)} alone, and {', '.join(SPREAD)} where a step keeps its images: leave it out, or start a "
                "new run with --init"
            )
        config = replace(config, **{part: new}) if part else new
    return config
