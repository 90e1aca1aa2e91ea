"""Label files of classes and strengths in every form that people's tools give them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mtlsi.cli import main
from mtlsi.data.readers.derive import boundaries_from_labels
from mtlsi.data.readers.folder import Folder
from mtlsi.errors import MistakeError

HEIGHT, WIDTH = 12, 16
NAMES = ["wall", "floor", "chair", "table"]
COLOURS = np.uint8([[0, 0, 0], [128, 64, 0], [0, 200, 255], [255, 255, 255]])
CLASSES = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
BINARY = (CLASSES > 1).astype(np.uint8)
HOLES = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.3
WITH_HOLES = np.where(HOLES, 255, CLASSES)
OPACITY = np.where(HOLES, 0, np.random.default_rng(2).integers(1, 256, (HEIGHT, WIDTH))).astype(np.uint8)
SHUFFLED = np.array([2, 0, 3, 1])
"""The index that a tool gave to the colour of every class."""

Write = Callable[[Path], Any]


def png(path: Path, values: np.ndarray, bits: int) -> None:
    """A grey PNG of 1, 2, 4 or 16 bits, written out byte by byte: Pillow writes no 2 and 4 bits."""
    rows = [
        np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
        if bits < 16
        else row.astype(">u2").tobytes()
        for row in values
    ]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def tiff_of_4_bits(path: Path, values: np.ndarray) -> None:
    """Uncompressed and grey, written out byte by byte, as Pillow writes none."""
    pixels = (values[:, ::2] << 4 | values[:, 1::2]).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 4, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)


def image(values: np.ndarray, **options: Any) -> Write:
    return lambda path: Image.fromarray(values).save(path, **options)


def with_palette(indices: np.ndarray, palette: np.ndarray, **options: Any) -> Write:
    def write(path: Path) -> None:
        label = Image.fromarray(indices)
        label.putpalette(palette.astype(np.uint8).tobytes())
        label.save(path, **options)

    return write


def rgb(grey: np.ndarray, *more: np.ndarray) -> np.ndarray:
    return np.dstack([grey, grey, grey, *more])


def folder(root: Path, keys: dict, name: str, write: Write, task: str = "semseg", **others: dict) -> Path:
    """A data set of one image and one label file."""
    for part in ("images", task):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    write(root / task / name)
    settings = {"splits": {"train": ["a"], "val": ["a"]}, "tasks": {task: keys, **others}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root


def exif(tag: int) -> Image.Exif:
    """Metadata with an orientation."""
    facts = Image.Exif()
    facts[274] = tag
    return facts


FOUR = {"classes": NAMES}
TWO = {"values": {0: "background", 255: "object"}}
CODED = {"classes": NAMES, "colours": COLOURS.tolist()}
NAMED = {"colours": dict(zip(NAMES, COLOURS.tolist(), strict=True))}
MANY = {"classes": [f"class {i}" for i in range(700)]}
MANY_CLASSES = np.random.default_rng(3).integers(0, 700, (HEIGHT, WIDTH))
FORMS: dict[str, tuple[dict, str, Write, np.ndarray]] = {
    "8 bits": (FOUR, "a.png", image(CLASSES), CLASSES),
    "1 bit": ({"classes": NAMES[:2]}, "a.png", lambda p: png(p, BINARY, 1), BINARY),
    "1 bit by Pillow": ({"classes": NAMES[:2]}, "a.png", image(BINARY.astype(bool)), BINARY),
    "1 bit, of which white is 255": (TWO, "a.png", image(BINARY.astype(bool)), BINARY),
    "1 bit, of which white is 1": (
        {"values": {0: "a", 1: "b", 255: None}},
        "a.png",
        lambda p: png(p, BINARY, 1),
        BINARY,
    ),
    "1 bit TIFF": ({"classes": NAMES[:2]}, "a.tif", image(BINARY.astype(bool), compression="group4"), BINARY),
    "2 bits": (FOUR, "a.png", lambda p: png(p, CLASSES, 2), CLASSES),
    "4 bits": (FOUR | {"first": 9}, "a.png", lambda p: png(p, CLASSES + 9, 4), CLASSES),
    "4 bit TIFF": (FOUR | {"first": 9}, "a.tif", lambda p: tiff_of_4_bits(p, CLASSES + 9), CLASSES),
    "16 bits": (MANY, "a.png", lambda p: png(p, MANY_CLASSES, 16), MANY_CLASSES),
    "16 bits, few classes": (FOUR, "a.png", image(CLASSES.astype(np.uint16)), CLASSES),
    "16 bit TIFF": (MANY, "a.tiff", image(MANY_CLASSES.astype(np.uint16)), MANY_CLASSES),
    "PNG with an orientation tag": (FOUR, "a.png", image(CLASSES, exif=exif(3)), CLASSES),
    "TIFF with an orientation tag": (FOUR, "a.tif", image(CLASSES, tiffinfo={274: 3}), CLASSES),
    "TIFF with a tag of a quarter turn": (FOUR, "a.tif", image(CLASSES, tiffinfo={274: 6}), CLASSES),
    "packed TIFF with an orientation tag": (
        MANY,
        "a.tif",
        image(MANY_CLASSES.astype(np.uint16), tiffinfo={274: 8}, compression="tiff_lzw"),
        MANY_CLASSES,
    ),
    "int32 array": (MANY, "a.npy", lambda p: np.save(p, MANY_CLASSES.astype(np.int32)), MANY_CLASSES),
    "array of -1": (
        FOUR | {"invalid": [-1]},
        "a.npy",
        lambda p: np.save(p, np.where(HOLES, -1, CLASSES.astype(np.int64))),
        WITH_HOLES,
    ),
    "array (1 H W)": (FOUR, "a.npy", lambda p: np.save(p, CLASSES[None]), CLASSES),
    "array of yes and no": ({"classes": NAMES[:2]}, "a.npy", lambda p: np.save(p, BINARY > 0), BINARY),
    "palette": (FOUR, "a.png", with_palette(CLASSES, np.arange(768)), CLASSES),
    "palette of 2 bits": (FOUR, "a.png", with_palette(CLASSES, COLOURS, bits=2), CLASSES),
    "palette with transparency": (FOUR, "a.png", with_palette(CLASSES, COLOURS, transparency=0), CLASSES),
    "palette beside colours for drawing": (CODED, "a.png", with_palette(CLASSES, np.arange(768) // 5), CLASSES),
    "GIF": (FOUR, "a.gif", with_palette(CLASSES, COLOURS), CLASSES),
    "grey RGB": (FOUR, "a.png", image(rgb(CLASSES)), CLASSES),
    "grey RGBA": (FOUR, "a.png", image(rgb(CLASSES, OPACITY)), WITH_HOLES),
    "grey with opacity": (
        FOUR | {"first": 1, "invalid": []},
        "a.png",
        image(np.dstack([np.where(HOLES, 0, CLASSES + 1).astype(np.uint8), OPACITY])),
        WITH_HOLES,
    ),
    "grey RGB beside colours for drawing": (CODED, "a.png", image(rgb(CLASSES)), CLASSES),
    "BMP": (FOUR, "a.BMP", image(rgb(CLASSES)), CLASSES),
    "lossless WebP": (CODED, "a.webp", image(COLOURS[CLASSES], lossless=True), CLASSES),
    "colours": (CODED, "a.png", image(COLOURS[CLASSES]), CLASSES),
    "colours by name": (NAMED, "a.png", image(COLOURS[CLASSES]), CLASSES),
    "colours and opacity": (CODED, "a.png", image(np.dstack([COLOURS[CLASSES], OPACITY])), WITH_HOLES),
    "colours without a label": (
        CODED | {"invalid": [[9, 9, 9], 255]},
        "a.png",
        image(np.where(HOLES[..., None], np.uint8(9), COLOURS[CLASSES])),
        WITH_HOLES,
    ),
    "several colours for a class": (
        {"colours": {"wall": COLOURS[:1].tolist(), "things": COLOURS[1:].tolist()}},
        "a.png",
        image(COLOURS[CLASSES]),
        np.minimum(CLASSES, 1),
    ),
    "colours in an array": (CODED, "a.npy", lambda p: np.save(p, COLOURS[CLASSES]), CLASSES),
    "colours in a palette of a tool's own": (
        CODED,
        "a.png",
        with_palette(SHUFFLED[CLASSES].astype(np.uint8), COLOURS[np.argsort(SHUFFLED)]),
        CLASSES,
    ),
    "black and white by colour": (
        {"classes": ["object", "background"], "colours": [[255, 255, 255], [0, 0, 0]]},
        "a.png",
        image(rgb(255 * BINARY)),
        1 - BINARY,
    ),
    "black and white in one channel": (
        {"colours": {"object": [255, 255, 255], "background": [0, 0, 0]}},
        "a.png",
        image(255 * BINARY),
        1 - BINARY,
    ),
    "0 and 1 beside black and white": (
        {"colours": {"background": [0, 0, 0], "object": [255, 255, 255]}},
        "a.png",
        image(BINARY),
        BINARY,
    ),
    "values": (TWO, "a.png", image(255 * BINARY), BINARY),
    "values in RGB": (TWO, "a.png", image(rgb(255 * BINARY)), BINARY),
    "values beside colours for drawing": (
        TWO | {"colours": [[255, 0, 0], [0, 0, 0]]},
        "a.png",
        image(rgb(255 * BINARY)),
        BINARY,
    ),
    "several values for a class, others for none": (
        {"classes": ["object", "background"], "values": {7: "background", 8: "object", 9: "object", 40: None}},
        "a.png",
        image(np.uint8([7, 8, 9, 40])[CLASSES]),
        np.uint8([1, 0, 0, 255])[CLASSES],
    ),
    "classes from 1 on": (
        FOUR | {"first": 1, "invalid": [0]},
        "a.png",
        image(np.where(HOLES, 0, CLASSES + 1).astype(np.uint8)),
        WITH_HOLES,
    ),
    "256 classes": ({"classes": [f"{i}!" for i in range(256)]}, "a.png", image(CLASSES + 252), CLASSES + 252),
}


@pytest.mark.parametrize("form", FORMS)
def test_class_maps_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    keys, name, write, expected = FORMS[form]
    dataset = Folder(folder(tmp_path, keys, name, write))
    label = dataset[0]["semseg"].numpy()
    assert label.dtype == (np.uint8 if len(dataset.classes["semseg"]) <= 255 else np.int32)
    np.testing.assert_array_equal(label, expected)


def test_class_names_come_from_values_and_colours_in_their_order(tmp_path: Path) -> None:
    values = {"values": {3: "b", 1: "a", 2: "b", 0: None}}
    assert Folder(folder(tmp_path / "v", values, "a.png", image(CLASSES))).classes == {"semseg": ("b", "a")}
    named = Folder(folder(tmp_path / "c", NAMED, "a.png", image(COLOURS[CLASSES])))
    assert named.classes == {"semseg": tuple(NAMES)}
    assert named.colours == {"semseg": COLOURS.tolist()}


def test_boundaries_follow_colour_coded_maps(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", CODED, "a.png", image(COLOURS[CLASSES]), boundary={"from": "semseg"})
    item = Folder(root, cache_dir=tmp_path / "cache")[0]
    np.testing.assert_array_equal(item["boundary"], boundaries_from_labels(CLASSES))


STRONG = np.random.default_rng(4).choice([0, 100, 127, 200, 255], (HEIGHT, WIDTH)).astype(np.uint8)
EXPECTED = np.where(STRONG == 127, 255, STRONG > 127)
STRENGTHS: dict[str, tuple[str, Write, np.ndarray]] = {
    "8 bits": ("a.png", image(STRONG), EXPECTED),
    "16 bits": ("a.png", image(STRONG.astype(np.uint16) * 257), EXPECTED),
    "8 bits in 16": ("a.tif", image(STRONG.astype(np.uint16)), EXPECTED),
    "1 bit": ("a.png", image(BINARY.astype(bool)), BINARY),
    "2 bits": ("a.png", lambda p: png(p, 3 * BINARY, 2), BINARY),
    "0 and 1": ("a.png", image(BINARY), BINARY),
    "0 and 1 of a coloured palette": ("a.png", with_palette(BINARY, COLOURS), BINARY),
    "grey palette": ("a.gif", with_palette(1 - BINARY, np.repeat([255, 0], 3)), BINARY),
    "grey RGB": ("a.png", image(rgb(STRONG)), EXPECTED),
    "grey RGBA": ("a.png", image(rgb(STRONG, OPACITY)), np.where(HOLES, 255, EXPECTED)),
    "yes and no": ("a.npy", lambda p: np.save(p, BINARY > 0), BINARY),
    "array (H W 1)": ("a.npy", lambda p: np.save(p, STRONG[..., None]), EXPECTED),
}


@pytest.mark.parametrize("task", ["saliency", "boundary"])
@pytest.mark.parametrize("form", STRENGTHS)
def test_strengths_are_read_in_every_form(tmp_path: Path, form: str, task: str) -> None:
    name, write, expected = STRENGTHS[form]
    label = Folder(folder(tmp_path, {}, name, write, task))[0][task].numpy()
    np.testing.assert_array_equal(label, expected)


STRANGE = np.where(HOLES[..., None], np.uint8([1, 2, 3]), COLOURS[CLASSES])
WRONG: dict[str, tuple[str, dict, str, Write, str]] = {
    "JPEG": ("semseg", FOUR, "a.jpg", image(CLASSES), r"semseg/a.jpg: a lossy file \(JPEG\): .*; give the label as PNG"),
    "JPEG that is called PNG": (
        "semseg",
        FOUR,
        "a.png",
        lambda p: Image.fromarray(CLASSES).save(p, format="JPEG"),
        "semseg/a.png: a lossy file .JPEG",
    ),
    "JPEG in TIFF": ("semseg", FOUR, "a.tif", image(CLASSES, compression="jpeg"), "a.tif: a lossy file .JPEG in TIFF"),
    "lossy WebP": ("semseg", CODED, "a.webp", image(COLOURS[CLASSES]), "a.webp: a lossy file .WebP"),
    "JPEG saliency": ("saliency", {}, "a.jpeg", image(STRONG), "saliency/a.jpeg: a lossy file .JPEG"),
    "JPEG boundaries": ("boundary", {}, "a.JPG", image(STRONG), "boundary/a.JPG: a lossy file .JPEG"),
    "JPEG depth": ("depth", {}, "a.jpg", image(STRONG), "depth/a.jpg: a lossy file .JPEG"),
    "unknown colour": (
        "semseg",
        CODED,
        "a.png",
        image(STRANGE),
        rf"a.png: colour \(1, 2, 3\), in {100 * HOLES.mean():.0f} % of its pixels, not in tasks.semseg.colours; add it "
        r"there, or as \[r, g, b\] to tasks.semseg.invalid",
    ),
    "unknown colour in a palette": (
        "semseg",
        CODED,
        "a.png",
        with_palette(SHUFFLED[CLASSES].astype(np.uint8), np.where(SHUFFLED[:, None] == 3, 7, COLOURS[np.argsort(SHUFFLED)])),
        r"colour \(7, 7, 7\), in .* not in tasks.semseg.colours",
    ),
    "smoothed colours": (
        "semseg",
        CODED,
        "a.png",
        lambda p: Image.fromarray(COLOURS[CLASSES]).resize((64, 48)).resize((WIDTH, HEIGHT), 2).save(p),
        "the edges were smoothed or the file was a JPEG once",
    ),
    "colours without colours": (
        "semseg",
        FOUR,
        "a.png",
        image(COLOURS[CLASSES]),
        r"a.png: coloured pixels, such as \(\d+, \d+, \d+\); give tasks.semseg.colours",
    ),
    "colours beside values": ("semseg", TWO, "a.png", image(COLOURS[CLASSES]), "coloured pixels, such as"),
    "coloured saliency": ("saliency", {}, "a.png", image(COLOURS[CLASSES]), "coloured pixels, such as .* expected grey"),
    "unknown value": (
        "semseg",
        TWO,
        "a.png",
        image(np.uint8([0, 255, 128, 0])[CLASSES]),
        "a.png: label 128; expected 0, 255, and none for unlabelled; map the labels to the classes, in tasks.semseg.values",
    ),
    "unknown value of 16 bits": ("semseg", FOUR, "a.npy", lambda p: np.save(p, MANY_CLASSES), r"label \d+; expected 0..3"),
    "negative value": ("semseg", FOUR, "a.npy", lambda p: np.save(p, CLASSES - np.int8(1)), "label -1; expected 0..3"),
    "fractions": ("semseg", FOUR, "a.npy", lambda p: np.save(p, CLASSES / 2), "float64 .*; expected whole numbers"),
    "fractions in TIFF": ("semseg", FOUR, "a.tif", image(CLASSES / np.float32(2)), "pixels of mode F; expected whole"),
    "colours of 16 bits": (
        "semseg",
        CODED,
        "a.png",
        lambda p: (png(p, np.zeros((HEIGHT, 3 * WIDTH)), 16), as_rgb(p)),
        "colours of 16 bits; expected 8 bits, or one channel of 16",
    ),
    "16 bits whose 0 is white": (
        "depth",
        {},
        "a.tif",
        image(MANY_CLASSES.astype(np.uint16), tiffinfo={262: 0}),
        "depth/a.tif: 16 bits of which 0 is white; expected 0 to be black: convert the file",
    ),
    "CMYK": ("semseg", FOUR, "a.tif", lambda p: Image.new("CMYK", (WIDTH, HEIGHT)).save(p), "pixels of mode CMYK"),
}  # fmt: skip


def as_rgb(path: Path) -> None:
    """Call the three times wider grey PNG of 16 bits one in RGB."""
    content = path.read_bytes()
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    path.write_bytes(content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    task, keys, file, write, message = WRONG[name]
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(folder(tmp_path, keys, file, write, task))[0]
    assert "\n" not in str(raised.value)
    assert str(tmp_path / task / file) in str(raised.value)


WRONG_SETTINGS = {
    "values without a class": ({"classes": ["a"], "values": {0: None}}, "semseg.values: no class in it"),
    "an unknown class": (
        {"classes": ["a"], "values": {0: "b"}},
        "semseg.values: 0: 'b' is no class; expected one of a",
    ),
    "values in words": ({"values": {"a": 0}}, r"semseg.values: \{'a': 0\}; expected \{stored value: class\}"),
    "values and first": ({"classes": ["a"], "values": {0: "a"}, "first": 1}, "semseg.first: given beside values"),
    "a value twice": ({"values": {0: "a"}, "invalid": [0]}, "semseg.invalid: 0 is a class too, of values; change one"),
    "no names at all": ({"colours": [[1, 2, 3]]}, "semseg.classes: missing; expected a list of names"),
    "a colour of no class": (
        {"classes": ["a"], "colours": {"b": [1, 2, 3]}},
        "semseg.colours: 'b' is no class; expected a;",
    ),
    "a class without colour": (
        {"classes": ["a", "b"], "colours": {"a": [1, 2, 3]}},
        r"semseg.colours: none for b; give every class its \[r, g, b\]",
    ),
    "a colour twice": (
        {"colours": {"a": [1, 2, 3], "b": [1, 2, 3]}},
        r"semseg.colours: \[1, 2, 3\] stands for a and for b; give each its own",
    ),
    "a colour of a class without a label": (
        {"colours": {"a": [1, 2, 3]}, "invalid": [[1, 2, 3]]},
        r"semseg.invalid: \[1, 2, 3\] is the colour of a too; change one",
    ),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_wrong_key_is_told_in_one_line_with_exit_code_2(tmp_path: Path, name: str, capsys) -> None:
    keys, message = WRONG_SETTINGS[name]
    root = folder(tmp_path, keys, "a.png", image(CLASSES))
    with pytest.raises(MistakeError, match=f"dataset.yaml: tasks.{message}"):
        Folder(root)
    assert main(["data", "check", str(root)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "dataset.yaml: tasks.semseg." in said[0]


def test_both_commands_name_a_wrong_label_file(tmp_path: Path, capsys) -> None:
    root = folder(tmp_path / "set", CODED, "a.png", image(STRANGE))
    assert main(["data", "check", str(root), "--workers", "0"]) != 0
    assert "colour (1, 2, 3)" in capsys.readouterr().out
    flags = {"preset": "tiny", "data.name": "folder", "data.root": root, "data.num_workers": 0, "out": tmp_path / "run"}
    assert main(["train", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "semseg/a.png: colour (1, 2, 3)" in said[-1]
