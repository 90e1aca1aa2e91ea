"""A folder of one's own is sound, or ``mtlsi data check`` says what is not."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from mtlsi.cli import main
from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.dataset_tools.check import Report, check, print_report, write_report

H, W = 8, 12
CLASSES = ["wall", "floor", "chair"]
NAMES = ("a", "b", "c", "d")


def save(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, **options)


def label(*classes: int) -> np.ndarray:
    return np.resize(np.array(classes, np.uint8), (H, W))


def settings(root: Path, **keys: object) -> None:
    first = {"splits": {"train": ["a", "b"], "val": ["c", "d"]}}
    depth = {"unit": "m", "intrinsics": {"focal": [W, W], "centre": [W / 2, H / 2]}}
    tasks = {"semseg": {"classes": CLASSES}, "depth": depth}
    (root / "dataset.yaml").write_text(yaml.safe_dump(first | {"tasks": tasks} | keys, sort_keys=False))


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """Four images with two tasks, in which nothing is wrong."""
    root = tmp_path / "rooms"
    for name in NAMES:
        save(root / f"images/{name}.png", np.full((H, W, 3), 90, np.uint8))
        save(root / f"semseg/{name}.png", label(0, 0, 1, 2, 255))
        save(root / f"depth/{name}.npy", np.linspace(1, 3, H * W, dtype=np.float32).reshape(H, W))
    settings(root)
    return root


def look(root: Path) -> Report:
    return check(root, num_workers=0, console=Console(file=StringIO()))


def said(report: Report) -> str:
    console = Console(file=StringIO(), width=200)
    print_report(report, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sound_folder_is_called_so(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = look(rooms)
    assert (report.problems, report.doubts, report.notes, report.left_out) == ([], [], [], {})
    assert report.sound
    assert main(["data", "check", str(rooms), "--workers", "0"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_shares_of_classes_are_counted_and_shown(rooms: Path, tmp_path: Path) -> None:
    save(rooms / "semseg/a.png", label(0, 0, 0, 2))
    save(rooms / "semseg/b.png", label(255, 1, 1, 0))
    report = look(rooms)
    semseg = next(count for count in report.counts if (count.split, count.task) == ("train", "semseg"))
    assert semseg.shares == pytest.approx({"wall": 4 / 7, "floor": 2 / 7, "chair": 1 / 7})
    assert re.search(r"wall.*57.14 %.*\n.*floor.*28.57 %.*\n.*chair.*14.29 %", said(report))
    write_report(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["sound"] is True
    assert next(count for count in written["counts"] if count["task"] == "semseg")["shares"] == semseg.shares


def turn(root: Path, tag: int, *, square: bool = False) -> None:
    """Image a gets an orientation tag; its labels lie as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = (H, H) if square else (H, W) if tag < 5 else (W, H)
    save(root / "images/a.png", np.full((*stored, 3), 90, np.uint8), exif=exif)
    if square:
        save(root / "semseg/a.png", label(0, 1, 2)[:, :H])
        save(root / "depth/a.npy", np.ones((H, H), np.float32))


def all_labels(root: Path, *classes: int) -> None:
    for name in NAMES:
        save(root / f"semseg/{name}.png", label(*classes))


def only_in(root: Path, names: str, value: int) -> None:
    for name in set(NAMES) - set(names):
        save(root / f"semseg/{name}.png", label(*{0, 1, 2} - {value}))


def mixed(root: Path) -> None:
    save(root / "images/b.png", np.zeros((W, H, 3), np.uint8))
    save(root / "semseg/b.png", label(0, 1, 2).reshape(W, H))
    save(root / "depth/b.npy", np.ones((W, H), np.float32))


def saliency(root: Path, value: int) -> None:
    for name in NAMES:
        save(root / f"saliency/{name}.png", np.full((H, W), value, np.uint8))


FINDINGS = {
    "an absent class": (
        lambda root: all_labels(root, 0, 2, 255),
        "1 semseg class has no pixel at all: floor",
    ),
    "many absent classes": (
        lambda root: settings(root, tasks={"semseg": {"classes": [*CLASSES, *"vwxyz"]}}),
        "5 semseg classes have no pixel at all: v, w, x and 2 more",
    ),
    "a class that is never learnt": (
        lambda root: only_in(root, "cd", 1),
        "train: 1 semseg class has no pixel, which is never learnt: floor",
    ),
    "one class only": (lambda root: all_labels(root, 1), "train: every labelled pixel of semseg is 'floor', the only class"),
    "nothing is salient": (lambda root: saliency(root, 0), "val: every labelled pixel of saliency is 'no', the only class"),
    "no label at all": (
        lambda root: all_labels(root, 255),
        r"train: 2 of 2 semseg labels have no valid pixel: .*semseg/a.png, .*semseg/b.png",
    ),
    "no depth in one": (
        lambda root: save(root / "depth/d.npy", np.zeros((H, W), np.float32)),
        r"val: 1 of 2 depth labels have no valid pixel: .*depth/d.npy",
    ),
    "other suffixes": (
        lambda root: [(root / f"depth/{name}.exr").write_bytes(b"0") for name in (*NAMES, "e")],
        r"5 files are passed over, depth/: .exr is no file of depth: depth/a.exr, depth/b.exr, depth/c.exr and 2 more",
    ),
    "images of another suffix": (
        lambda root: (root / "images/e.psd").write_bytes(b"0"),
        r"1 files are passed over, images/: .psd is no image: images/e.psd",
    ),
    "another letter case": (
        lambda root: (root / "semseg/a.png").rename(root / "semseg/A.png"),
        r"1 files are passed over, semseg/: the name differs .* upper and lower case: semseg/A.png",
    ),
    "another pattern": (
        lambda root: settings(root, files={"depth": "depth/*_far"}),
        r"4 files are passed over, depth/: other names than files.depth says: depth/a.npy",
    ),
    "mixed shapes": (mixed, r"images have 2 shapes: 8x12 \(3\), 12x8 \(1\); data.image_hw stretches them"),
    "a half turn": (lambda root: turn(root, 3), r"1 images have an orientation tag .*images/a.png; their labels"),
    "a square turn": (lambda root: turn(root, 6, square=True), r"1 images have an orientation tag .*labels may lie"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_what_can_be_read_and_is_hardly_meant_is_doubtful(rooms: Path, name: str) -> None:
    spoil, message = FINDINGS[name]
    spoil(rooms)
    report = look(rooms)
    assert [doubt for doubt in report.doubts if re.search(message, doubt)], (report.doubts, report.problems)
    assert not report.sound
    text = said(report)
    assert re.search(f"doubtful: {message}", text)
    assert "nothing is wrong" not in text
    assert main(["data", "check", str(rooms), "--workers", "0"]) == 1


PROBLEMS = {
    "other names": (
        lambda root: (root / "depth/a.npy").rename(root / "depth/room.npy"),
        "1 depth labels have no image, such as room",
    ),
    "an empty split": (
        lambda root: settings(root, splits={"train": ["a", "b", "c", "d"], "val": []}),
        "split val: no images",
    ),
    "a cut array": (
        lambda root: (root / "depth/b.npy").write_bytes((root / "depth/b.npy").read_bytes()[:-9]),
        r"depth/b.npy: not a whole NumPy file",
    ),
    "a damaged header": (
        lambda root: (root / "depth/b.npy").write_bytes(
            (root / "depth/b.npy").read_bytes().replace(b"{'descr'", b"{((('de(")
        ),
        r"depth/b.npy: not a whole NumPy file",
    ),
    "a header of no end": (
        lambda root: (root / "depth/b.npy").write_bytes(
            (root / "depth/b.npy").read_bytes().replace(b"(8, 12), }          ", b"(99999999999, 9999)}")
        ),
        r"depth/b.npy: not a whole NumPy file",
    ),
    "a cut TIFF": (
        lambda root: [
            (root / "depth/b.npy").unlink(),
            save(root / "depth/b.tiff", np.ones((H, W), np.float32)),
            (root / "depth/b.tiff").write_bytes((root / "depth/b.tiff").read_bytes()[:100]),
        ],
        r"depth/b.tiff: not a whole image",
    ),
    "a damaged TIFF": (
        lambda root: [
            (root / "depth/b.npy").unlink(),
            save(root / "depth/b.tif", np.ones((H, W), np.float32), compression="tiff_lzw"),
            (root / "depth/b.tif").write_bytes(b"II*\0\x08\0\0\0" + b"\xff" * 60),
        ],
        r"depth/b.tif: not a whole image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_wrong_is_named_and_all_else_is_read(rooms: Path, name: str) -> None:
    spoil, message = PROBLEMS[name]
    spoil(rooms)
    report = look(rooms)
    assert [problem for problem in report.problems if re.search(message, problem)], report.problems
    assert len(report.problems) == 1
    assert "\n" not in report.problems[0]
    assert {(count.split, count.task) for count in report.counts} >= {
        ("train", what) for what in ("image", "semseg", "depth")
    }
    depth = next(count for count in report.counts if (count.split, count.task) == ("train", "depth"))
    assert depth.values == "1..3"
    assert "nothing is wrong" not in said(report)


def test_a_quarter_turn_that_the_labels_share_is_a_note(rooms: Path) -> None:
    turn(rooms, 6)
    report = look(rooms)
    assert report.sound
    assert len(report.notes) == 1
    assert re.search(r"1 images have an orientation tag and are read upright: .*images/a.png$", report.notes[0])


def test_depth_without_a_camera_is_a_note_that_says_what_to_write(rooms: Path) -> None:
    settings(rooms, tasks={"semseg": {"classes": CLASSES}, "depth": {"unit": "m"}})
    report = look(rooms)
    (note,) = report.notes
    assert "a model trained on it refuses --focal-px" in note
    assert "give tasks.depth.intrinsics: {focal: [fx, fy], centre: [cx, cy]}" in note
    assert report.sound


def test_a_class_that_only_the_validation_lacks_is_a_note(rooms: Path) -> None:
    only_in(rooms, "ab", 2)
    report = look(rooms)
    assert report.notes == ["val: 1 semseg class has no pixel: chair"]
    assert report.sound


def test_images_of_several_sizes_in_one_shape_are_no_doubt(rooms: Path) -> None:
    save(rooms / "images/a.png", np.zeros((2 * H, 2 * W, 3), np.uint8))
    save(rooms / "semseg/a.png", label(0, 1, 2).repeat(2, 0).repeat(2, 1))
    save(rooms / "depth/a.npy", np.ones((2 * H, 2 * W), np.float32))
    assert look(rooms).sound


def test_a_task_without_files_is_not_passed_over(rooms: Path) -> None:
    for path in (rooms / "depth").iterdir():
        path.unlink()
    report = look(rooms)
    assert set(report.left_out) == {"depth"}
    assert "1 task left out" in said(report)
    assert not report.sound


def test_normals_that_look_away_are_noticed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / f"{split}/image/0.npy", np.zeros((H, W, 3)))
        save(tmp_path / f"{split}/label/0.npy", np.resize(np.arange(13), (H, W)))
        save(tmp_path / f"{split}/depth/0.npy", np.ones((H, W, 1)))
        save(tmp_path / f"{split}/normal/0.npy", np.broadcast_to([0.6, 0.0, -0.8], (H, W, 3)))
    doubts = look(tmp_path).doubts
    assert [doubt for doubt in doubts if re.search(r"train: z of normals is -0.80 on average: they look away", doubt)]
    for split in ("train", "val"):
        save(tmp_path / f"{split}/normal/0.npy", np.broadcast_to([0.6, 0.0, 0.8], (H, W, 3)))
    assert look(tmp_path).sound


def test_files_beside_those_of_a_benchmark_are_a_note(nyud_root: Path) -> None:
    (nyud_root / "depth/0001.exr").write_bytes(b"0")
    report = check(nyud_root, num_workers=0, console=Console(file=StringIO()))
    assert report.notes == ["1 files in depth/ are passed over: depth/0001.exr"]
    assert report.sound


def test_a_folder_that_cannot_be_looked_into_gives_2(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rooms / "dataset.yaml").write_text("tasks: {depths: {}}")
    assert main(["data", "check", str(rooms), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "tasks.depths: unknown task" in error
    assert error.count("\n") == 1


def test_files_are_named_where_no_split_can_be_opened(rooms: Path) -> None:
    settings(rooms, tasks={"semseg": {"classes": CLASSES}}, files={"depth": "elsewhere/*"})
    for name in NAMES:
        (rooms / f"semseg/{name}.png").rename(rooms / f"semseg/{name.upper()}.png")
    save(rooms / "semseg/other.png", label(0, 1, 2))
    report = look(rooms)
    assert len(report.problems) == 2
    assert report.doubts == [
        "4 files are passed over, semseg/: the name differs from an image's in upper and lower case: semseg/A.png, "
        "semseg/B.png, semseg/C.png and 1 more",
        "1 files are passed over, semseg: labels that no image has the name of: semseg/other.png",
    ]


def test_a_first_label_that_is_wrong_costs_the_report_nothing(rooms):
    """The camera that ``dataset.yaml`` names needs none of them."""
    save(rooms / "semseg/a.png", label(0, 9))
    save(rooms / "depth/b.npy", np.ones((H + 1, W), np.float32))
    report = look(rooms)
    assert len(report.problems) == 2
    assert "semseg/a.png: label 9" in report.problems[0] + report.problems[1]
    assert not any("camera" in note for note in report.notes)
    save(rooms / "depth/a.npy", np.ones(3, np.float32))
    assert len(look(rooms).problems) == 3
    assert open_dataset(DataConfig("folder", str(rooms)), "val").camera == {"focal_px": float(W), "size_hw": [H, W]}
