"""Safetensors files: written, and what one says it holds, checked before anything of it is loaded."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mtlsi.errors import MistakeError, message_of
from mtlsi.reading import check_plain, parse_json, shortened

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 64 * 2**30
"""Of a file: networks of sixteen thousand million weights."""
MOST_HEADER = 8 * 2**20
"""Bytes of a header."""
MOST_TENSORS = 20_000
"""A network of three hundred million weights has two thousand."""
MOST_AXES = 16


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``path``. Raises ``OSError`` as Python's own files do: safetensors has the system's number in its text alone."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def check_tensor_file(path: Path) -> int:
    """How many numbers a safetensors file holds; ``MistakeError`` for what is none, or is not worth loading.

    Raises ``OSError`` where there is none.
    """
    check_plain(path, MOST_BYTES)
    with path.open("rb") as file:
        return _check(str(path), file, path.stat().st_size)


def check_tensor_bytes(name: object, content: bytes) -> int:
    """The same of a file's content; ``name`` begins every message."""
    return _check(str(name), io.BytesIO(content), len(content))


def read_header(name: str, file: BinaryIO, num_bytes: int) -> dict[str, Any]:
    """The header of a safetensors file of ``num_bytes``, after which ``file`` stands; ``MistakeError`` for what is none."""
    length = int.from_bytes(file.read(8), "little")
    if num_bytes < 8 or length > num_bytes - 8:
        raise MistakeError(f"{name}: not a whole safetensors file ({num_bytes} bytes); give an undamaged copy")
    if length > MOST_HEADER:
        raise MistakeError(f"{name}: a header of {length} bytes; expected {MOST_HEADER} at most")
    try:
        header = parse_json(file.read(length))
    except ValueError as error:
        raise MistakeError(f"{name}: not a whole safetensors file ({message_of(error, 100)})") from error
    if not isinstance(header, dict):
        raise MistakeError(f"{name}: a header without names; give an undamaged copy")
    return header


def _check(name: str, file: BinaryIO, num_bytes: int) -> int:
    header = read_header(name, file, num_bytes)
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise MistakeError(f"{name}: {len(header)} tensors; expected {MOST_TENSORS} at most")
    return sum(_count(name, tensor, about) for tensor, about in header.items())


def _count(name: str, tensor: str, about: object) -> int:
    shape = about.get("shape") if isinstance(about, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_AXES
        or not all(type(side) is int and side >= 0 for side in shape)
    ):
        raise MistakeError(f"{name}: {shortened(tensor)} has no shape; give an undamaged copy")
    return math.prod(shape)
