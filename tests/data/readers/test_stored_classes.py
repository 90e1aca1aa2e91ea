"""Stored numbers to classes, against a loop over the pixels."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from mtlsi.data.readers.class_maps import ClassMap, decode_class_map
from mtlsi.data.readers.stored_classes import StoredClasses
from mtlsi.errors import MistakeError

LEAST, GREATEST = -(2**31), 2**31 - 1
MEANINGS = {
    "8 bits": {0: 0, 1: 1, 7: 1, 255: 255},
    "16 bits": {first: first % 3 for first in range(40_000)} | {65535: 255},
    "below 0": {-1: 255, 4: 0, 5: 2},
    "one": {9: 0},
    "far apart": {LEAST: 0, 0: 1, 3: 2, 180_000_000: 2, GREATEST: 255},
}


@pytest.mark.parametrize("name", MEANINGS)
@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "i8"])
def test_every_number_gets_its_class(name: str, kind: str) -> None:
    meanings = MEANINGS[name]
    held = [value for value in meanings if np.iinfo(kind).min <= value <= np.iinfo(kind).max]
    stored = np.random.default_rng(0).choice(held, (20, 30)).astype(kind)
    known = np.random.default_rng(1).random(stored.shape) < 0.8
    classes = StoredClasses(meanings, 3, expected="these", advice="change them")
    found = classes.look_up(Path("a.png"), stored, known)
    assert found.dtype == np.uint8
    expected = [[meanings[int(value)] for value in row] for row in stored]
    np.testing.assert_array_equal(classes.look_up(Path("a.png"), stored, None), expected)
    np.testing.assert_array_equal(found, np.where(known, expected, 255))


@pytest.mark.parametrize("name", MEANINGS)
def test_a_number_that_stands_for_nothing_is_named_unless_it_is_unknown(name: str) -> None:
    meanings = MEANINGS[name]
    classes = StoredClasses(meanings, 3, expected="these", advice="change them")
    some = next(iter(meanings))
    around = {near for value in meanings for near in (value - 1, value + 1)} | {-(2**63), 2**63 - 1}
    for strange in around - set(meanings) if len(meanings) < 9 else {-1, 40_000, 65534, 65536, 2**40}:
        stored = np.array([[some, strange]])
        with pytest.raises(MistakeError, match=f"^a.png: label {strange}; expected these; change them$"):
            classes.look_up(Path("a.png"), stored, None)
        assert classes.look_up(Path("a.png"), stored, np.array([[True, False]])).tolist() == [[meanings[some], 255]]


def test_numbers_far_apart_take_no_memory(tmp_path: Path) -> None:
    values = ((LEAST, 0), (0, 0), (1, 1), (180_000_000, 1), (GREATEST, 0))
    np.save(tmp_path / "a.npy", np.array([[LEAST, 0, 1], [180_000_000, GREATEST, 255]], np.int32))
    content = (tmp_path / "a.npy").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = decode_class_map(tmp_path / "a.npy", content, classes=ClassMap("semseg", 2, values, (255,)))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50
    assert read.tolist() == [[0, 0, 1], [1, 0, 255]]
