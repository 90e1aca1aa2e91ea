"""Atomic writes: a temporary file beside the target, then rename."""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError, message_of


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a library that writes files itself; what is there at the end becomes ``path``.

    With the permissions of any new file: some libraries write for the owner's eyes alone. Where the context is left by an
    exception, nothing is written. Of several processes at once the last one wins. A link, pipe or device of
    that name is replaced, and what it leads to is left alone: a file that a person named goes through ``check_writable``
    first. Raises ``OSError``, which names ``path``.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # short: the name itself may be as long as names can be
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.touch()
        usual = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(usual)
        part.replace(path)
    except OSError as error:  # a full disk names nothing, and the temporary name says nothing to a person
        if error.errno is not None and error.filename in (None, str(part), part):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        part.unlink(missing_ok=True)


def replace_bytes(path: Path, content: bytes, *, on_disk: bool = False) -> None:
    """Write ``path`` atomically; of several processes at once the last one wins. Raises ``OSError``.

    Its folder is made where it is missing: names of images may hold subfolders. ``on_disk``: have it there, and not in a
    cache alone, before the old file is gone: after a power cut a file that was only renamed may be empty.
    """
    with replacing(path) as part:
        part.write_bytes(content)
        if on_disk:
            sync(part)
    if on_disk:
        sync(path.parent)


def replace_text(path: Path, text: str, *, on_disk: bool = False) -> None:
    """Write ``path`` atomically, in UTF-8; a byte of a file's name that is not stands there as in JSON: ``\\udcff``."""
    replace_bytes(path, text.encode(errors="backslashreplace"), on_disk=on_disk)


def sync(path: Path) -> None:
    """Have what was written to a file, or which names a folder has, on the disk and not in a cache alone.

    Raises ``OSError``, for a folder only where it matters: some systems open none, some file systems do not know the call.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EACCES, errno.EBADF, errno.EINVAL):
            raise


LONGEST_NAME = 255
"""Bytes of a file's name, on every usual file system."""


def number_of(text: str) -> int:
    """A number of 64 bits that stands for a text."""
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def fitting(name: str, most: int) -> str:
    """``name``, or, where it has more than ``most`` bytes, its beginning and a number made of all of it."""
    return name if len(os.fsencode(name)) <= most else _numbered(name, name, most)


def file_names(names: Iterable[str], longest_ending: int) -> dict[str, str]:
    """By name of an image, such as ``kitchen/a``, that of a file in one folder: ``kitchen_a``.

    With an ending of ``longest_ending`` bytes it is no longer than a file's name may be. Names that would share one, in any
    letter case, get a number made of all of them.
    """
    most = LONGEST_NAME - longest_ending
    found = {name: fitting(name.replace("/", "_"), most) for name in names}
    often = Counter(file.casefold() for file in found.values())
    return {name: file if often[file.casefold()] == 1 else _numbered(file, name, most) for name, file in found.items()}


def _numbered(begin: str, name: str, most: int) -> str:
    cut = os.fsencode(begin)[: most - 9].decode(errors="ignore")
    return f"{cut}_{number_of(name) & 0xFFFFFFFF:08x}"


def plain(value: Any) -> Any:
    """``value`` as JSON and YAML have it: mappings and tuples of any kind as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def replace_array(path: Path, content: np.ndarray | Image.Image) -> None:
    """Write an array as a NumPy file, or an image as a PNG file (PDF or JPEG where ``path`` says so), atomically.

    Images are made in memory first: an encoder that writes a file itself does not say why it could not.
    """
    if not isinstance(content, Image.Image):
        with replacing(path) as part, part.open("wb") as file:
            _write_array(file, content)
        return
    buffer, ending = io.BytesIO(), path.suffix.lower()
    if ending == ".pdf":
        content.convert("RGB").save(buffer, format="PDF", resolution=130)
    elif ending == ".jpg":
        content.save(buffer, format="JPEG", quality=88)
    else:
        content.save(buffer, format="PNG", compress_level=3)
    replace_bytes(path, buffer.getvalue())


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """What ``np.save`` writes, without a copy of the array in memory, and a full disk is told by its number."""
    facts = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, facts)
    file.write(np.ascontiguousarray(array.T if facts["fortran_order"] else array).data)


def replace_rows(path: Path, bands: Iterator[np.ndarray], height: int) -> None:
    """Write bands of rows, together ``height`` rows, as one array in a NumPy file, atomically. Raises ``OSError``."""
    with replacing(path) as part, part.open("wb") as file:
        first = next(bands)
        facts = np.lib.format.header_data_from_array_1_0(first) | {"shape": (height, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(file, facts | {"fortran_order": False})
        for band in chain([first], bands):
            file.write(np.ascontiguousarray(band).data)


PICTURES = (".png", ".pdf", ".svg")
"""What plots can be written as; the end of the name says which."""


def check_picture(path: Path) -> None:
    """Raises ``MistakeError`` where the end of a plot's name, or of what it links to, is none of ``PICTURES``."""
    if _linked(path).suffix.lower() not in PICTURES:
        raise MistakeError(f"picture {path}: of no known kind; expected a name that ends in {', '.join(PICTURES)}")


def check_writable(path: Path) -> Path:
    """The file to write where a person named ``path``: what it leads to where it is a link, which stays a link.

    Raises ``MistakeError`` where that is a folder, pipe, socket or device, or its folder is missing or not writable.
    """
    target, what = _linked(path), ""
    if path.exists() and not path.is_file() and not path.is_dir():
        what = ", a pipe, socket or device"
    if what or path.is_dir() or target.is_symlink() or not os.access(target.absolute().parent, os.W_OK):
        raise MistakeError(f"cannot write {path}{what}; give a file in an existing folder that is writable")
    return target


def _linked(path: Path) -> Path:
    """What ``path`` leads to where it is a link; of a circle of links one of them."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_folder(folder: Path) -> None:
    """Make the folder where it is missing; ``MistakeError`` where it cannot be made or written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MistakeError(f"cannot write {folder} ({message_of(error)}); give another folder") from error
    check_writable(folder / "file")


def default_cache_dir() -> Path:
    """Where what is slow to make is kept: ``$MTLSI_CACHE``, else ``$XDG_CACHE_HOME/mtlsi``, else ``~/.cache/mtlsi``.

    Raises ``MistakeError`` for a home folder, ``~``, that is not known.
    """
    chosen = os.environ.get("MTLSI_CACHE")
    named = chosen or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(named).expanduser()
    except RuntimeError as error:
        raise MistakeError(
            f"cache {named}: no such home folder; set MTLSI_CACHE to a folder by its whole path"
        ) from error
    return folder if chosen else folder / "mtlsi"


def holds(root: Path) -> str:
    """What a folder holds, for a message."""
    if not root.is_dir():
        return "no such folder"
    found = sorted(entry.name for entry in os.scandir(root))
    return f"it holds {', '.join(found[:6]) or 'nothing'}" + (" and more" if len(found) > 6 else "")
