"""PPM, PGM and PBM without Pillow's decoders in Python, which take a second for each megabyte of numbers.

That is how Pillow reads plain ones, and those of a largest value other than 255, such as the 16-bit RGB of raw converters.
"""

from __future__ import annotations

import io
import re
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile

from mtlsi.errors import MistakeError

HEADER = 2**16
"""Bytes within which the header of a PPM ends: Pillow reads it byte by byte, its comments too."""
MOST_COMMENTS = 100_000
"""Of a plain PPM; editors write one."""
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
"""Of a PPM, as Pillow leaves it out: with the end of its line."""
_HEADER = re.compile(rb"P([14](\s+\S+){2}|[^14]\S*(\s+\S+){3})\s")
"""Of all kinds of PPM, without comments: width and height, and for all but those of one bit the largest value."""


def check_header(content: bytes) -> None:
    """Raises ``ValueError`` where ``content``, the first bytes of a PPM and ``HEADER`` of them, does not hold its header."""
    if len(content) == HEADER and not _HEADER.match(_COMMENT.sub(b"", content)):
        raise ValueError(f"the header of a PPM does not end within {HEADER // 2**10} KB")


def read_as_raw(image: Image.Image, file: BinaryIO) -> None:
    """Read the numbers of a PPM that Pillow would read one by one in Python, about a second for each megabyte of them.

    Its raw decoder is given them instead, of the same mode and rounded alike.
    """
    if not isinstance(image, PpmImageFile) or image.tile[0][0] == "raw":
        return
    tiles: Any = image.tile
    codec, extents, offset, args = tiles[0]
    file.seek(offset)
    num_values = image.width * image.height * len(image.getbands())
    if image.mode == "1":
        values, rawmode = _bits_of_plain(file.read(), num_values), "1;8"
    else:
        largest, deep = args[1], image.mode == "I"
        if codec == "ppm_plain":
            numbers = _numbers_of_plain(file.read(), num_values, largest)
        else:
            kind = np.dtype(">u2" if largest > 255 else "u1")
            stored = file.read(num_values * kind.itemsize)
            numbers = np.minimum(np.frombuffer(stored, kind, len(stored) // kind.itemsize), largest)
        scaled = np.rint(np.arange(largest + 1) / largest * (65535 if deep else 255))
        values, rawmode = scaled.astype(">u2" if deep else "u1")[numbers].tobytes(), "I;16B" if deep else image.mode
    image.fp, tiles[0] = io.BytesIO(values), ("raw", extents, 0, rawmode)


def _bits_of_plain(content: bytes, most: int) -> bytes:
    """The first ``most`` pixels of a plain PBM, where 1 is black: a byte each, 0 or 255. ``ValueError`` for others."""
    bits = _without_comments(content).translate(None, b" \t\n\v\f\r")[:most]
    if bits.translate(None, b"01"):
        raise ValueError("a PBM of other values than 0 and 1")
    return bits.translate(bytes.maketrans(b"01", b"\xff\0"))


def _numbers_of_plain(content: bytes, most: int, largest: int) -> np.ndarray:
    """The first ``most`` numbers of a plain PGM or PPM; fewer where fewer are there.

    Raises ``ValueError`` for others than 0..``largest``.
    """
    numbers = np.fromstring(_without_comments(content), np.int32, sep=" ")[:most]
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > largest:
        raise ValueError(f"a PPM of values outside its 0..{largest}")
    return numbers


def _without_comments(content: bytes) -> bytes:
    """Raises ``MistakeError`` for very many of them."""
    if content.count(b"#") > MOST_COMMENTS:
        raise MistakeError(f"a plain PPM of more than {MOST_COMMENTS} comments; save it again")
    return _COMMENT.sub(b"", content)
