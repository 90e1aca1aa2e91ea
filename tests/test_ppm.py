"""PPMs of every kind against Pillow, whose own decoders of some are in Python."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PpmImagePlugin

from mtlsi.errors import MistakeError
from mtlsi.images import open_image, peek_image
from mtlsi.ppm import HEADER, MOST_COMMENTS

SMALL = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
SIXTEEN = np.random.default_rng(1).integers(0, 65536, (8, 12), dtype=np.uint16)
GIMP = b"# Created by GIMP version 2.10.36 PNM plug-in\n"


def written(numbers: np.ndarray) -> bytes:
    """As plain PPMs hold them, in lines of a few."""
    return b"".join(b" ".join(b"%d" % number for number in line) + b"\n" for line in numbers.reshape(-1, 12).tolist())


PPMS = {
    "P1": b"P1\n" + GIMP + b"12 8\n" + written(SMALL[..., 0] > 99),
    "P1 without gaps": b"P1 12 8 " + written(SMALL[..., 0] > 99).replace(b" ", b"").replace(b"\n", b""),
    "P2": b"P2\n" + GIMP + b"12 8\n255\n" + written(SMALL[..., 0]) + b"# the end",
    "P2 of 16 bits": b"P2 12 8 65535 " + written(SIXTEEN),
    "P2 to 99": b"P2 12 8 99\r\n" + written(SMALL[..., 0] % 100).replace(b"\n", b" #a\r\n#b\r"),
    "P3": b"P3\n" + GIMP + b"12 8\n255\n" + written(SMALL) + b"7 8 9",
    "P3 of 16 bits": b"P3 12 8 65535 " + written(SMALL * np.int64(257)),
    "P4": b"P4\n" + GIMP + b"12 8\n" + bytes(range(16)),
    "P5": b"P5\n" + GIMP + b"12 8\n255\n" + SMALL[..., 0].tobytes(),
    "P5 of 16 bits": b"P5 12 8 65535 " + SIXTEEN.astype(">u2").tobytes(),
    "P5 of 12 bits": b"P5 12 8 4095 " + (SIXTEEN >> 4).astype(">u2").tobytes(),
    "P5 to 99": b"P5 12 8 99 " + SMALL[..., 0].tobytes(),
    "P6": b"P6\n" + GIMP + b"12 8\n255\n" + SMALL.tobytes(),
    "P6 of 16 bits": b"P6 12 8 65535 " + (SMALL.astype(">u2") * 257 + 99).tobytes(),
    "P6 to 254": b"P6 12 8 254 " + SMALL.tobytes(),
    "P6 after a long comment": b"P6 #" + b"x" * (HEADER - 99) + b"\n12 8 255 " + SMALL.tobytes() + bytes(99),
}


@pytest.mark.parametrize("kind", PPMS)
def test_a_ppm_is_read_as_pillow_reads_it_but_not_number_by_number(tmp_path, monkeypatch, kind):
    (tmp_path / "a.ppm").write_bytes(PPMS[kind])
    with Image.open(tmp_path / "a.ppm") as image:
        expected, mode = np.asarray(image), image.mode
    for decoder in (PpmImagePlugin.PpmDecoder, PpmImagePlugin.PpmPlainDecoder):
        monkeypatch.delattr(decoder, "decode")
    for file in (tmp_path / "a.ppm", io.BytesIO(PPMS[kind])):
        with open_image("a.ppm", file) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"P3 10 10 255 " + b"#\n" * (MOST_COMMENTS + 1) + b"0 " * 300, "a plain PPM of more than 100000 comments"),
        (b"P1 10 10 " + b"#\n" * (MOST_COMMENTS + 1) + b"0 " * 100, "a plain PPM of more than 100000 comments"),
        (b"P6 " + b"#\n" * HEADER + b"1 1 255 abc", r"the header of a PPM does not end within 64 KB\)"),
        (b"P5 1" + b"#\n1" * HEADER + b" 1 255 a", r"the header of a PPM does not end within 64 KB\)"),
        (b"P4" + b" " * HEADER + b"1 1 a", r"the header of a PPM does not end within 64 KB\)"),
        (b"P1 2 2 0 1 2 1", r"a PBM of other values than 0 and 1\)"),
        (b"P1 2 2 0 1 1", "truncated"),
        (b"P2 2 2 9 1 2 10 4", r"a PPM of values outside its 0\.\.9\)"),
        (b"P2 2 2 9 1 2 -1 4", r"a PPM of values outside its 0\.\.9\)"),
        (b"P2 2 2 9 1 2 3", "truncated"),
        (b"P2 2 2 9 1 2 x 4", "not a whole image"),
        (b"P6 1 1 254 ab", "truncated"),
        (b"P6 1 1 999 abcde", "truncated"),
    ],
    ids=range(13),
)
def test_a_ppm_that_is_damaged_or_full_of_comments_is_one_line(content, told):
    with pytest.raises(MistakeError, match=f"^a.ppm: .*{told}"), open_image("a.ppm", io.BytesIO(content)):
        pass


def test_a_ppm_whose_header_does_not_end_is_not_looked_into_either(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 " + b"#\n" * HEADER + b"1 1 255 abc")
    with pytest.raises(ValueError, match="does not end within 64 KB"):
        peek_image(tmp_path / "a.ppm")
