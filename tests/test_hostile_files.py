"""Files that stand for more than they hold, or for something else: one line, before memory is taken."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat

from mtlsi.cli import main
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.readers.array_files import read_mat, read_npy
from mtlsi.data.readers.decoding import checked_depth, classes_from_values
from mtlsi.data.transforms import resize
from mtlsi.errors import MistakeError
from mtlsi.field_types import check_types
from mtlsi.images import open_image, to_rgb
from mtlsi.prediction.images import read_image
from mtlsi.reading import check_relative, parse_json, read_content
from mtlsi.sizes import ModelConfig
from mtlsi.tensor_files import check_tensor_bytes
from mtlsi.yaml_files import parse_yaml, read_yaml


def mistake(call) -> str:
    """The one line that ``call`` ends in."""
    with pytest.raises(MistakeError) as found:
        call()
    assert "\n" not in str(found.value)
    return str(found.value)


def growth_mb(call) -> float:
    """By how much the peak of this process's memory grows in ``call``."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


# ---- YAML and JSON

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "more than 200000 values"),
        ("a: &a [*a]", "no such anchor"),
        ("[" * 100_000, "nesting|deeper than 40"),
        ("- " * 5000 + "a", "deeper than 40"),
        ("a: " + "9" * 5000, "more than 64 digits"),
        ("a: 0x" + "f" * 60, "more than 64 bits"),
        ("a: " + "1:" * 5000 + "1", "more than 64 digits"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("!!binary aGk=", "could not determine a constructor"),
        ("!!int x", "no number"),
        ("{a: 1, a: 2}", "a stands there twice"),
        ("? [a]\n: 1", "list or mapping as a name"),
        ("a: b: c", "not YAML in line 1"),
    ],
)
def test_yaml_that_is_more_than_settings_is_refused(tmp_path, text, told):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(MistakeError, match=told):
        read_yaml(tmp_path / "x.yaml")


def test_an_alias_bomb_takes_no_memory():
    def bomb():
        with pytest.raises(yaml.YAMLError):
            parse_yaml(BOMB)

    assert growth_mb(bomb) < 20


def test_aliases_and_numbers_that_people_write_are_read():
    text = "base: &b {lr: 1e-3, n: 0x10}\nmine: {<<: *b, lr: -.5}\nagain: [*b, .inf]\nday: 2001-13-45\n"
    text += "huge: 18446744073709551615\n"
    base = {"lr": 0.001, "n": 16}
    assert parse_yaml(text) == {
        "base": base,
        "mine": {"lr": -0.5, "n": 16},
        "again": [base, float("inf")],
        "day": "2001-13-45",
        "huge": 2**64 - 1,
    }


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text("abc xyz:#-1.", max_size=9),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.text("abcd_", min_size=1, max_size=6), inside, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(PLAIN)
def test_plain_values_survive_writing_and_reading(value):
    assert parse_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize("text", ["[" * 50_000, "[" * 60 + "]" * 60, "{", '{"a": ' * 60 + "1" + "}" * 60])
def test_deep_or_broken_json_is_no_value(text):
    with pytest.raises(ValueError, match=r"deeper|Expecting"):
        parse_json(text)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "", "a\\..\\b", "C:x", "a\0b"])
def test_names_that_lead_out_of_a_folder_are_refused(name):
    mistake(lambda: check_relative(name))


@pytest.mark.parametrize(
    "text",
    [
        "data: {class_path: hostile_module.Evil}",
        "data.class_path: hostile_module.Evil",
        "train: {class_weights: {class_path: hostile_module.Evil}}",
        "data: hostile_module.Evil",
        "init: {class_path: hostile_module.Evil}",
        '? "model' + ".a" * 50_000 + '"\n: 1',
    ],
    ids=lambda text: text[:40],
)
def test_a_recipe_names_no_code(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "recipe.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "ran").exists()
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_setting_that_names_a_file_does_not_show_it(tmp_path, capsys):
    (tmp_path / "secret").write_text("tell: [nobody\n")
    (tmp_path / "recipe.yaml").write_text(f"data: {tmp_path / 'secret'}\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    assert "nobody" not in capsys.readouterr().err


# ---- what is no file, and images


def test_pipes_devices_and_folders_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "a pipe, socket or device" in mistake(lambda: read_content(tmp_path / "pipe.png"))
    assert "a folder" in mistake(lambda: read_content(tmp_path))
    for name in ("pipe.png", "loop.png", "."):
        mistake(lambda name=name: read_image(tmp_path / name))
    assert "a pipe" in mistake(lambda: open_image("x", tmp_path / "pipe.png").__enter__())
    assert "a pipe" in mistake(lambda: read_yaml(tmp_path / "pipe.png"))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "SGI", "IM"])
def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "a", kind)
    os.rename(tmp_path / "a", tmp_path / "photo.jpg")
    assert "not a whole image; expected JPEG" in mistake(lambda: read_image(tmp_path / "photo.jpg"))


def test_an_image_larger_than_it_may_be_is_refused_by_its_header(tmp_path):
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0)
    )
    assert "pixels; make it smaller" in mistake(lambda: read_image(tmp_path / "a.png"))


def rle_bmp(width: int, height: int, encoded: bytes) -> bytes:
    """A grey BMP of 8 bits, run-length encoded."""
    palette = bytes(x for grey in range(256) for x in (grey, grey, grey, 0))
    begin = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", begin + len(encoded), 0, 0, begin)
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(encoded), 0, 0, 256, 0)
    return head + about + palette + encoded


def test_a_run_length_bmp_whose_few_bytes_are_gigabytes_is_refused(tmp_path):
    delta, end = b"\x00\x02\x00\xff", b"\x00\x01"
    (tmp_path / "a.bmp").write_bytes(rle_bmp(1_000_000, 1, delta + end))
    told = mistake(lambda: read_image(tmp_path / "a.bmp"))
    assert "a.bmp: a run-length encoded BMP of 1000000 columns; expected at most 65535: save it as PNG" in told


def test_run_length_and_very_wide_bmps_are_read_as_ever(tmp_path):
    (tmp_path / "a.bmp").write_bytes(rle_bmp(300, 2, b"\xff\x07\x2d\x07\x00\x00\xff\x09\x2d\x09\x00\x01"))
    expected = np.repeat([9, 7], 300).reshape(2, 300, 1).repeat(3, -1)  # the lowest row stands first
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), expected)
    Image.new("L", (70_000, 1), 5).save(tmp_path / "wide.bmp")
    assert (read_image(tmp_path / "wide.bmp") == 5).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "P", "L", "CMYK", "1"])
def test_rows_in_bands_are_the_rows_of_the_whole(mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (600, 7, 4), dtype=np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (600, 7)).astype(np.uint16))
        expected = np.repeat(((np.asarray(image).astype(int) + 128) // 257)[..., None], 3, -1)
    else:
        image = image.convert(mode)
        clear = image.convert("RGBA")
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
        expected = expected if mode in ("RGBA", "LA") else np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(to_rgb(image), expected)


# ---- arrays and tensors


def npy(header: str, body: bytes = b"\0" * 64) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4.5,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f16', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False}",
        "((((((",
    ],
)
def test_lies_in_the_header_of_an_array_are_refused(header):
    mistake(lambda: read_npy(Path("a.npy"), npy(header)))


def test_arrays_of_either_byte_order_are_read():
    for kind in ("<f4", ">f4", ">i2", "<u1", "?"):
        buffer, values = io.BytesIO(), np.arange(6).reshape(2, 3).astype(kind)
        np.save(buffer, values)
        read = read_npy(Path("a.npy"), buffer.getvalue())
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("compressed", [True, False])
def test_matlab_files_are_read_as_scipy_reads_them(compressed):
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = {"Boundaries": np.eye(5) > 0, "name": "a"}, {"Boundaries": np.eye(5) < 0, "name": "b"}
    buffer = io.BytesIO()
    savemat(
        buffer, {"groundTruth": cells, "map": np.arange(12.0).reshape(3, 4), "word": "abc"}, do_compression=compressed
    )
    ours, theirs = read_mat(Path("a.mat"), buffer.getvalue()), loadmat(io.BytesIO(buffer.getvalue()))
    assert list(ours) == list(theirs)
    np.testing.assert_array_equal(ours["map"], np.arange(12.0).reshape(3, 4))
    for name in ("groundTruth", "word"):
        assert repr(ours[name]) == repr(theirs[name])


def mat(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + b"\0" * (-len(body) % 8 if kind != 15 else 0)


def matrix(flags: int, shape: tuple[int, ...], *rest: bytes) -> bytes:
    sides = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, element(6, struct.pack("<II", flags, 0)) + sides + element(1, b"a" * 8) + b"".join(rest))


def deflated(body: bytes) -> bytes:
    return element(15, zlib.compress(body, 9))


def nested(depth: int) -> bytes:
    inside = matrix(6, (1, 1), element(9, b"\0" * 8))
    for _ in range(depth):
        inside = matrix(1, (1, 1), inside)
    return inside


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (mat(deflated(matrix(6, (1, 1), element(9, b"\0" * (300 * 2**20))))), "holds more than 256 MB"),
        (mat(matrix(6, (10**5, 10**5), element(9, b"\0" * 8))), "has an array of 100000x100000"),
        (mat(matrix(5, (10**5, 10**5), element(9, b"\0" * 8))), "has an array of"),
        (mat(matrix(1, (10**4, 10**4))), "has an array of"),
        (mat(nested(3000)), "more than 16 levels"),
        (mat(matrix(1, (1, 1), *[element(14, b"")] * 100_001)), "or 100000 parts"),
        (mat(matrix(6, (-1, 4), element(9, b"\0" * 8))), "not a whole MATLAB file"),
        (mat(element(15, b"nothing that was deflated")), "not a whole MATLAB file"),
        (struct.pack("<iiiii", 0, 2**30, 2**30, 0, 2) + b"a\0" + b"\0" * 200, "not a whole MATLAB file"),
        (b"", "not a whole MATLAB file"),
    ],
    ids=["inflates", "large", "sparse", "cells", "deep", "parts", "negative", "no_zlib", "version_4", "empty"],
)
def test_bombs_in_matlab_files_are_refused(content, told):
    message = []
    assert growth_mb(lambda: message.append(mistake(lambda: read_mat(Path("a.mat"), content)))) < 700
    assert told in message[0]


def tensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        tensors([1]),
        tensors({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)}),
        tensors({"t": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}),
        tensors({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        tensors({"t": 3}),
    ],
    ids=["empty", "header", "list", "many", "axes", "negative", "number"],
)
def test_files_of_tensors_that_are_none_are_refused_by_their_header(content):
    mistake(lambda: check_tensor_bytes("a.safetensors", content))


def test_the_numbers_of_a_file_of_tensors_are_counted():
    offsets = {"a": (2, 3), "b": (4,), "c": ()}
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in offsets.items()}
    assert check_tensor_bytes("a", tensors({**header, "__metadata__": {"format": "pt"}})) == 6 + 4 + 1


# ---- settings and labels, whatever they hold


def refusal(call) -> str | None:
    """The one line in which ``call`` refuses; None: it does not."""
    try:
        call()
    except MistakeError as error:
        return str(error)
    return None


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([ModelConfig, DataConfig, TrainConfig, RunConfig]), st.data(), PLAIN)
def test_settings_of_any_type_are_taken_or_refused_in_one_line(kind, data, value):
    name = data.draw(st.sampled_from(sorted(kind.__dataclass_fields__)))
    said = refusal(lambda: check_types(kind, {name: value}))
    assert said is None or (name in said and "\n" not in said)
    if type(value) is type(getattr(kind(), name)):
        is_endless = isinstance(value, float) and not math.isfinite(value)
        assert (said is not None) == is_endless or isinstance(value, dict)


ARRAYS = st.tuples(
    st.sampled_from(["u1", "i2", "<f4", ">f8", "?", "u8", "f2"]),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 2**32 - 1),
)


@settings(deadline=None, max_examples=150)
@given(ARRAYS)
def test_label_arrays_of_any_shape_are_read_or_refused_in_one_line(drawn):
    kind, shape, seed = drawn
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    values = np.frombuffer(np.random.default_rng(seed).bytes(size), kind).reshape(shape)
    for read in (checked_depth, lambda path, array: classes_from_values(path, array, 3)):
        with np.errstate(all="ignore"):
            said = refusal(lambda read=read: read(Path("a.npy"), values))
        assert said is None or "\n" not in said


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(8, 40), st.integers(8, 40), st.booleans(), st.integers(0, 2**31)
)
def test_transforms_keep_image_and_labels_of_one_size(height, width, new_height, new_width, flipped, seed):
    draw = torch.Generator().manual_seed(seed)
    sample = {
        "image": torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=draw),
        "semseg": torch.randint(0, 5, (height, width), dtype=torch.uint8, generator=draw),
        "depth": torch.rand(height, width, generator=draw),
    }
    if flipped:
        sample = {name: x.flip(-1) for name, x in sample.items()}
    resized = resize(sample, (new_height, new_width))
    assert {tuple(x.shape[-2:]) for x in resized.values()} == {(new_height, new_width)}
    assert set(resized["semseg"].unique().tolist()) <= set(sample["semseg"].unique().tolist())
    assert all(resized[name].dtype == x.dtype for name, x in sample.items())
