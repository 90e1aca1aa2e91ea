"""Model files that know whether they are whole: safetensors with a checksum of themselves in the header.

The checksum is the SHA-256 of the header without its ``__metadata__``, as JSON with sorted keys, and of all that follows it.
Files without one, of other programs, are as good as before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mtlsi.errors import MistakeError
from mtlsi.io import replacing
from mtlsi.tensor_files import read_header, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

NAME, UNKNOWN = "sha256", "0" * 64


def replace_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``path`` with its checksum, whole or not at all, and have it on the disk. Raises ``OSError``."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_tensors(part, whole, {"format": "pt", NAME: UNKNOWN})
        _enter_checksum(part)


def check_weights(path: Path) -> None:
    """Raises ``MistakeError`` where the file ``path`` has a checksum and is not what was written, or holds too much."""
    with path.open("rb") as file:
        header = _header(path, file)
        stored = header.get("__metadata__", {}).get(NAME) if isinstance(header.get("__metadata__"), dict) else None
        if stored is not None and stored != _checksum(header, file):
            raise MistakeError(
                f"{path} is damaged: it has another content than was written; restore a copy of it, or have a run write it "
                "again with --resume"
            )


def is_whole(path: Path) -> bool:
    """Whether ``path`` is there, has a checksum and is what was written."""
    try:
        with path.open("rb") as file:
            header = _header(path, file)
            return header["__metadata__"][NAME] == _checksum(header, file)
    except (OSError, KeyError, TypeError, MistakeError):
        return False


def _enter_checksum(path: Path) -> None:
    with path.open("r+b") as file:
        header = _header(path, file)
        length = file.tell() - 8
        header["__metadata__"] = {"format": "pt", NAME: _checksum(header, file)}
        # in one order, so that equal weights are equal files
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise OSError(f"{path.name}: its header cannot hold a checksum")
        file.seek(8)
        file.write(text.ljust(length))
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    return read_header(str(path), file, os.fstat(file.fileno()).st_size)


def _checksum(header: Mapping[str, Any], file: BinaryIO) -> str:
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
