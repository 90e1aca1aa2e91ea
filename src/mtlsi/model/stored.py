"""The two files of a model folder, and which version of mtlsi can read them.

``config.json``: the arguments of ``MTLSINet``, ``format_version`` and the ``mtlsi_version`` that wrote it. A folder without
a version is of before there were any, and loads; one of a newer format is refused. ``model.safetensors``: the weights by
name. Nothing in either is code: one is parsed as JSON, the other holds numbers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlsi.config import RESIZES
from mtlsi.errors import MistakeError
from mtlsi.io import plain, replace_text
from mtlsi.reading import read_json
from mtlsi.version import __version__

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""Of the folders written here. It rises where what is written can no longer be read by versions of before."""
VERSIONS = ("format_version", "mtlsi_version")
OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""What ``from_pretrained`` can be asked of the hub, by the names that its library has for them."""


def write_settings(network: Any, folder: Path) -> None:
    """``config.json``, whole or not at all and on the disk: the arguments of this ``MTLSINet``, with the versions."""
    stored = {**network._hub_mixin_config, "format_version": FORMAT, "mtlsi_version": __version__}
    # the hub's mixin adds defaults; without this one, earlier versions read the file
    if stored.get("resize") == RESIZES[0]:
        del stored["resize"]
    replace_text(folder / CONFIG, json.dumps(plain(stored), indent=2) + "\n", on_disk=True)


def without_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``MTLSINet`` among what ``config.json`` holds."""
    return {name: value for name, value in settings.items() if name not in VERSIONS}


def check_settings(path: Path) -> None:
    """Raises ``MistakeError`` where ``path``, a config.json, is no settings of a model, or of a newer format."""
    settings = read_json(path, "what mtlsi train writes into a run folder")
    if not {"tasks", "classes", "input_size"} <= settings.keys():
        raise MistakeError(f"{CONFIG} names no tasks, classes and input_size; expected a model that mtlsi wrote")
    found = settings.get("format_version", 0)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise MistakeError(f"{CONFIG} is of the format {found!r}; expected a number, such as {FORMAT}")
    if found > FORMAT:
        writer = settings.get("mtlsi_version")
        needed = f"mtlsi {writer}" if isinstance(writer, str) and len(writer) < 40 else "a newer mtlsi"
        raise MistakeError(
            f"written in format {found}, this mtlsi {__version__} reads formats up to {FORMAT}; "
            f"expected {needed} or later: upgrade mtlsi"
        )
