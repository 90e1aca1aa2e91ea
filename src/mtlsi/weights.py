"""Model files that know whether they are whole: safetensors with a checksum of themselves in the header.

The checksum is the SHA-256 of the header without its ``__metadata__``, as JSON with sorted keys, and of all that follows it.
Files without one, of other programs, are as good as before.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mtlsi.errors import MistakeError
from mtlsi.io import replacing
from mtlsi.tensor_files import check_tensor_file

if TYPE_CHECKING:
    from torch import Tensor

NAME, UNKNOWN = "sha256", "0" * 64


def replace_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``path`` with its checksum, whole or not at all, and have it on the disk. Raises ``OSError``."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as part:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                part,
                metadata={"format": "pt", NAME: UNKNOWN},
            )
            _enter_checksum(part)
    except SafetensorError as error:  # what the system says, in other words
        raise OSError(f"{path.name}: {error}") from error


def check_weights(path: Path) -> None:
    """Raises ``MistakeError`` where the file ``path`` has a checksum and is not what was written, or holds too much."""
    check_tensor_file(path)
    with path.open("rb") as file:
        header = _header(file)
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
            header = _header(file)
            return header["__metadata__"][NAME] == _checksum(header, file)
    except (OSError, KeyError, TypeError):
        return False


def _enter_checksum(path: Path) -> None:
    with path.open("r+b") as file:
        header = _header(file)
        checksum = _checksum(header, file)
        length = _length(file)
        header["__metadata__"] = {"format": "pt", NAME: checksum}  # in one order, so that equal weights are equal files
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise OSError(f"{path.name}: its header cannot hold a checksum")
        file.write(text.ljust(length))
        file.flush()
        os.fsync(file.fileno())


def _length(file: BinaryIO) -> int:
    """Bytes of the header; 0 where the file is too short to have it."""
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    file.seek(8)
    return length if 8 + length <= os.fstat(file.fileno()).st_size else 0


def _header(file: BinaryIO) -> dict[str, Any]:
    """The header, after which ``file`` stands; {} for what is no safetensors file, which its reader will refuse."""
    try:
        header = json.loads(file.read(_length(file)))
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _checksum(header: Mapping[str, Any], file: BinaryIO) -> str:
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
