from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mtlsi.cli import main
from mtlsi.data.readers.folder import Folder
from mtlsi.errors import MistakeError

HEIGHT, WIDTH = 24, 32


def facing_the_camera() -> np.ndarray:
    """Unit normals (H W 3), x right, y up, z towards the camera."""
    normals = np.random.default_rng(0).standard_normal((HEIGHT, WIDTH, 3))
    normals[..., 2] = np.abs(normals[..., 2])
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


NORMALS = facing_the_camera()
HOLES = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.2
PIXELS = np.rint((NORMALS + 1) * 127.5).astype(np.uint8)
WITH_HOLES = np.where(HOLES[..., None], 0, NORMALS)


def folder(root: Path, label: np.ndarray, suffix: str, keys: dict[str, Any], task: str = "normals") -> Path:
    for part in ("images", task):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a.png")
    if suffix == ".npy":
        np.save(root / task / "a.npy", label)
    else:
        Image.fromarray(label).save(root / task / f"a{suffix}")
    settings = {"splits": {"train": ["a"], "val": ["a"]}, "tasks": {task: keys}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return root


def filled(value: int) -> np.ndarray:
    return np.where(HOLES[..., None], np.uint8(value), PIXELS)


RIGHT: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
    "image": (PIXELS, ".png", {}),
    "TIFF": (PIXELS, ".tif", {}),
    "black has no label": (filled(0), ".png", {}),
    "white has no label": (filled(255), ".png", {}),
    "grey 127 has no label": (filled(127), ".png", {}),
    "grey 128 has no label": (filled(128), ".png", {}),
    "opacity 0 has no label": (np.dstack([PIXELS, np.where(HOLES, 0, 9).astype(np.uint8)]), ".png", {}),
    "array": (NORMALS.astype(np.float32), ".npy", {}),
    "array (3 H W)": (NORMALS.transpose(2, 0, 1), ".npy", {}),
    "array with (0, 0, 0)": (WITH_HOLES.astype(np.float16), ".npy", {}),
    "array with (-1, -1, -1)": (np.where(HOLES[..., None], -1, NORMALS), ".npy", {}),
    "x right, y down, z away": (NORMALS * (1, -1, -1), ".npy", {"axes": [1, -1, -1]}),
    "slightly short": (0.95 * NORMALS, ".npy", {}),
}


@pytest.mark.parametrize("form", RIGHT)
def test_normals_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    label, suffix, keys = RIGHT[form]
    read = Folder(folder(tmp_path, label, suffix, keys))[0]["normals"].numpy()
    has_holes = "no label" in form or "(0, 0, 0)" in form or "(-1" in form
    expected = WITH_HOLES if has_holes else NORMALS
    np.testing.assert_allclose(read, expected.transpose(2, 0, 1), atol=0.008)
    np.testing.assert_allclose(np.linalg.norm(read, axis=0), (~HOLES if has_holes else np.ones_like(HOLES)), atol=1e-5)


def test_a_wall_before_the_camera_is_no_array_of_0_to_1(tmp_path: Path) -> None:
    wall = np.zeros((HEIGHT, WIDTH, 3))
    wall[..., 2] = 1
    read = Folder(folder(tmp_path, wall, ".npy", {}))[0]["normals"].numpy()
    np.testing.assert_array_equal(read, wall.transpose(2, 0, 1))


def test_few_blended_vectors_become_directions_and_few_impossible_ones_have_no_label(tmp_path: Path) -> None:
    stored = NORMALS.copy()
    stored[0, :16] *= 0.7
    Folder(folder(tmp_path / "short", stored, ".npy", {}))[0]
    large = np.tile(NORMALS, (2, 2, 1))
    large[5, 6] *= 1.5
    Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(folder(tmp_path / "long", large, ".npy", {}) / "images/a.png")
    read = Folder(tmp_path / "long")[0]["normals"].numpy()
    assert not read[:, 5, 6].any()
    assert (np.linalg.norm(read, axis=0) < 0.5).sum() == 1


Change = Callable[[np.ndarray], np.ndarray]
PHOTO = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
WRONG: dict[str, tuple[np.ndarray, str, dict[str, Any], str]] = {
    "0 to 1": ((NORMALS + 1) / 2, ".npy", {}, "a.npy: vectors stored as 0..1 .*; expected -1..1; store 2 v - 1"),
    "0 to 1 with holes": (
        np.where(HOLES[..., None], 0, (NORMALS + 1) / 2).astype(np.float32),
        ".npy",
        {},
        "vectors stored as 0..1",
    ),
    "0 to 255": (PIXELS, ".npy", {}, r"a.npy: .* far from unit length, .*; they seem .*: store 2 c / 255 - 1"),
    "a photograph": (PHOTO, ".png", {}, r"a.png: \d+ % of its pixels hold .* length, 0\.\d+ to 1\.\d+ long"),
    "a twentieth": (
        np.where(np.arange(WIDTH)[:, None] < 2, 1.4 * NORMALS, NORMALS),
        ".npy",
        {},
        r"a.npy: 6.2 % of its pixels hold vectors far from unit length, 1.4 to 1.4 long; expected unit vectors, and "
        r"\(0, 0, 0\), black or white where there is none; normalise them",
    ),
    "all too short": (0.7 * NORMALS, ".npy", {}, "a.npy: 100 % of its pixels hold vectors far from unit"),
    "z away": (
        NORMALS * (1, 1, -1),
        ".npy",
        {},
        r"a.npy: \d+ % of its normals look away from the camera, by tasks.normals.axes \[1, 1, 1\]; .*; give "
        r"tasks.normals.axes \[1, 1, -1\], or \[1, -1, -1\] where y",
    ),
    "wrong axes": (PIXELS, ".png", {"axes": [1, -1, -1]}, r"normals.axes \[1, -1, -1\]; .* \[1, -1, 1\], or \[1, 1, 1\]"),
    "grey": (PIXELS[..., 0], ".png", {}, "pixels of mode L; expected three 8-bit channels"),
    "a map": (NORMALS[..., 0], ".npy", {}, "shape .*; expected normals"),
    "not finite": (np.where(HOLES[..., None], np.nan, NORMALS), ".npy", {}, "numbers are not finite; expected vectors"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_normals_are_told_in_one_line(tmp_path: Path, name: str) -> None:
    label, suffix, keys, message = WRONG[name]
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(folder(tmp_path, label, suffix, keys))[0]
    assert "\n" not in str(raised.value)
    assert f"normals/a{suffix}: " in str(raised.value)


def test_directions_of_ones_own_may_point_anywhere_but_have_unit_length(tmp_path: Path) -> None:
    away = NORMALS * (1, 1, -1)
    flow = Folder(folder(tmp_path / "flow", away, ".npy", {"kind": "direction"}, "wind"))[0]["wind"]
    np.testing.assert_allclose(flow, away.transpose(2, 0, 1), atol=1e-6)
    with pytest.raises(MistakeError, match="far from unit length"):
        Folder(folder(tmp_path / "long", 3 * away, ".npy", {"kind": "direction"}, "wind"))[0]


@pytest.mark.parametrize("name", ["0 to 1", "z away"])
def test_both_commands_name_wrong_normals(tmp_path: Path, name: str, capsys) -> None:
    label, suffix, keys, _ = WRONG[name]
    root = folder(tmp_path / "set", label, suffix, keys)
    assert main(["data", "check", str(root), "--workers", "0"]) != 0
    assert "wrong: " in capsys.readouterr().out
    flags = {"preset": "tiny", "data.name": "folder", "data.root": root, "data.num_workers": 0, "out": tmp_path / "run"}
    assert main(["train", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]) == 2
    assert "normals/a.npy: " in capsys.readouterr().err.strip().splitlines()[-1]
