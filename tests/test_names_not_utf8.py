"""A file's name is bytes, and need not be UTF-8: such an image is an image like any other."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mtlsi.cli import main
from mtlsi.config import DataConfig, RunConfig
from mtlsi.data.readers.folder import Folder, splits_of_folder
from mtlsi.errors import MistakeError
from mtlsi.io import replace_text
from mtlsi.reading import check_relative

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such names cannot be made")

ODD = os.fsdecode(b"a\xff")
SHOWN = "a\\udcff"


def folder(root: Path, *names: str) -> Path:
    draw = np.random.default_rng(0)
    for task, shape in (("images", (64, 64, 3)), ("semseg", (64, 64))):
        (root / task).mkdir(parents=True)
        for name in names:
            pixels = draw.integers(0, 2, shape, dtype=np.uint8)
            with (root / task / f"{name}.png").open("wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
    settings = {"tasks": {"semseg": {"classes": ["wall", "chair"]}}, "splits": {"val": 0.5}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return root


def test_a_name_in_utf8_has_the_place_that_its_bytes_hash_to(tmp_path: Path) -> None:
    names = [*map(str, range(20)), "Küche", "部屋", ODD]
    root = folder(tmp_path / "set", *names)
    splits = {split: Folder(root, split).names for split in splits_of_folder(root)}
    assert sorted(splits["train"] + splits["val"]) == sorted(names)
    for name in names[:-1]:
        place = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big") / 2**64
        assert (name in splits["val"]) == (place < 0.5)


def test_every_verb_takes_it(tmp_path: Path, undrawn: Callable) -> None:  # noqa: ARG001
    root, out = folder(tmp_path / "set", ODD, "b", "c", "d"), tmp_path / "out"
    flags = {
        "preset": "tiny", "data.name": "folder", "data.root": root, "data.size_hw": "[64, 64]", "data.num_workers": 0,
        "train.iterations": 1, "train.batch_size": 2, "train.checkpoint_every": 1, "train.evaluate_every": 0,
        "out": out / "run",
    }  # fmt: skip
    assert main(["train", *(str(part) for flag, value in flags.items() for part in (f"--{flag}", value))]) == 0
    assert main(["train", "--resume", str(out / "run"), "--train.iterations", "2"]) == 0
    assert main(["data", "check", str(root), "--workers", "0", "--json", str(out / "check.json")]) == 0
    assert main(["data", "prepare", str(root), "--workers", "0", "--out", str(out / "fast")]) == 0
    assert main(["data", "derive", str(root), "--workers", "0", "--out", str(out / "derived"), "--boundary"]) == 0
    assert (out / "derived/boundary" / f"{ODD}.png").is_file()
    split = next(split for split in ("train", "val") if ODD in Folder(root, split).names)
    for source in (root, out / "fast"):
        files = ["--json", str(out / "scores.json"), "--csv", str(out / "scores.csv")]
        where = ["--data", "folder", "--root", str(source), "--split", split]
        assert main(["evaluate", str(out / "run"), *where, *files]) == 0
        rows = list(csv.DictReader((out / "scores.csv").read_text("utf-8").splitlines()))
        assert SHOWN in [row["image"] for row in rows]
    assert ODD in json.loads((out / "fast/prepared.json").read_text("utf-8"))["splits"][split]


def test_it_is_printed_and_written_as_json_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "set", ODD, "b")
    (root / "images" / f"{ODD}.png").write_bytes(b"no image")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    monkeypatch.setattr(sys, "argv", ["mtlsi", "data", "check", str(root), "--workers", "0"])
    assert main() == 1
    assert f"wrong: {root}/images/{SHOWN}.png: not a whole image" in printed.getvalue().decode("utf-8")
    replace_text(tmp_path / "a.txt", f"{ODD} Küche")
    assert (tmp_path / "a.txt").read_text("utf-8") == f"{SHOWN} Küche"
    assert json.loads(f'"{SHOWN}"') == ODD


def test_what_no_file_can_have_and_what_no_run_can_keep_is_told(tmp_path: Path) -> None:
    check_relative(ODD)
    with pytest.raises(MistakeError, match="no file can have it"):
        check_relative("a\ud800")
    with pytest.raises(MistakeError, match=r"^data\.root .*: not UTF-8"):
        RunConfig(data=DataConfig(name="folder", root=str(tmp_path / ODD))).check()
