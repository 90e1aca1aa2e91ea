from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mtlsi.dataset_tools.check import check, print_report, write_report
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS


def silent():
    return Console(file=StringIO(), width=200)


def said(report):
    console = Console(file=StringIO(), width=200)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_sound_folder_is_counted_and_nothing_is_wrong(nyud_root, untouched):
    untouched()
    report = check(nyud_root, num_workers=2, console=silent())
    assert report.problems == []
    assert "8-bit depth" in report.layout
    counted = {(count.split, count.task): (count.labels, count.images, count.derived) for count in report.counts}
    assert counted == {
        (split, task): (2, 2, task in ("normals", "boundary"))
        for split in ("train", "val")
        for task in ("image", "semseg", "depth", "normals", "boundary")
    }
    depth = next(count for count in report.counts if (count.split, count.task) == ("train", "depth"))
    stored = [np.array(Image.open(nyud_root / f"depth/{name}.png")) for name in ("0001", "0002")]
    metres = [(min(x.min() for x in stored) + 0.5) / 25.5, (max(x.max() for x in stored) + 0.5) / 25.5]
    assert depth.values == f"{metres[0]:.3g}..{metres[1]:.3g}"
    semseg = next(count for count in report.counts if (count.split, count.task) == ("train", "semseg"))
    labels = np.stack([np.array(Image.open(nyud_root / f"segmentation/{name}.png")) for name in ("0001", "0002")])
    assert semseg.values == f"{len(set(labels[labels > 0].tolist()))} of 40 classes"
    assert semseg.valid == pytest.approx((labels > 0).mean())
    assert "nothing is wrong" in said(report)


def spoil(root, what):
    if what == "truncated":
        path = root / "images/0002.jpg"
        path.write_bytes(path.read_bytes()[:200])
    elif what == "size":
        Image.fromarray(np.ones((48, 32), np.uint8)).save(root / "depth/0003.png")
    elif what == "label":
        Image.fromarray(np.full((48, 64), 200, np.uint8)).save(root / "segmentation/0001.png")
    elif what == "split":
        (root / "gt_sets/val.txt").unlink()
    elif what == "orphan":
        Image.fromarray(np.ones((48, 64), np.uint8)).save(root / "segmentation/0099.png")
    elif what == "missing label":
        (root / "depth/0004.png").unlink()
    elif what == "missing image":
        (root / "images/0004.jpg").unlink()
    elif what == "both":
        (root / "gt_sets/val.txt").write_text("0003\n0001\n")
    elif what == "twice":
        (root / "gt_sets/val.txt").write_text("0003\n0003\n")
    elif what == "text":
        (root / "segmentation/0001.png").write_text("hello")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "images/0002.jpg: not a whole image"),
        ("size", "depth/0003.png: 48x32 pixels, but its image has 48x64"),
        ("label", "segmentation/0001.png: label 200; expected 1..40"),
        ("split", "expected .*gt_sets/val.txt"),
        ("orphan", "1 semseg labels have no image, such as 0099"),
        ("missing label", "split val: 1 images have no depth label, such as 0004"),
        ("missing image", "0004: no image"),
        ("both", "1 images are in train and in val, such as 0001"),
        ("twice", "split val: 1 names are listed twice, such as 0003"),
        ("text", "segmentation/0001.png: not a whole image"),
    ],
)
def test_what_is_wrong_is_named(nyud_root, what, message, untouched):
    import re

    spoil(nyud_root, what)
    untouched()
    report = check(nyud_root, num_workers=0, console=silent())
    assert [problem for problem in report.problems if re.search(message, problem)], report.problems
    assert "wrong: " in said(report)


def test_an_image_in_no_split_is_a_note_and_no_problem(nyud_root):
    (nyud_root / "gt_sets/val.txt").write_text("0003\n")
    report = check(nyud_root, num_workers=0, console=silent())
    assert report.problems == []
    assert report.notes == ["1 images are in none of these splits, such as 0004"]


def test_absent_tasks_are_reported_and_left_out(nyud_root):
    for path in (nyud_root / "segmentation").iterdir():
        path.unlink()
    report = check(nyud_root, num_workers=0, console=silent())
    assert set(report.left_out) == {"semseg", "boundary"}
    assert {count.task for count in report.counts} == {"image", "depth", "normals"}
    assert "left out: semseg" in said(report)


def test_many_problems_are_cut_on_the_screen_and_whole_in_the_file(nyud_root, tmp_path):
    names = ["0003", *(f"{i:04d}" for i in range(5, 40))]
    (nyud_root / "gt_sets/val.txt").write_text("\n".join(names))
    report = check(nyud_root, num_workers=0, console=silent())
    assert len(report.problems) >= 35
    assert f"and {len(report.problems) - 20} more problems" in said(report)
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["problems"] == report.problems


def test_a_folder_that_is_no_data_set_is_a_mistake(tmp_path):
    with pytest.raises(MistakeError, match=r"expected dataset.yaml"):
        check(tmp_path)
    with pytest.raises(MistakeError, match="nowhere: no such folder"):
        check(tmp_path / "nowhere")
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(MistakeError, match="made by mtlsi data prepare; give the folder that it was made from"):
        check(tmp_path)


@pytest.mark.parametrize("written", ["[/]", "floor [wood]", "[link=https://a.example]a[/link]"])
def test_names_and_titles_are_printed_as_they_are_written(tmp_path, written):
    root = tmp_path / written.replace("/", "\x1b[2J")
    for folder, pixels in (("images", np.zeros((9, 9, 3), np.uint8)), ("mine", np.zeros((9, 9), np.uint8))):
        (root / folder).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    tasks = {"mine": {"kind": "classes", "title": written, "classes": [written, "box"]}}
    (root / "dataset.yaml").write_text(json.dumps({"splits": {"train": ["a"], written: ["b"]}, "tasks": tasks}))
    shown = Console(file=StringIO(), width=200, force_terminal=True, color_system="truecolor")
    try:
        report = check(root, num_workers=0, console=shown)
        print_report(report, shown)
    finally:
        TASKS.pop("mine", None)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    rows = [line for line in text.splitlines() if "│" in line or "┃" in line]
    assert report.problems == []
    assert sum(line.count(written) for line in rows) == 2 + 2 + 1 + 1  # splits, titles; the shares' column and row
    assert f"reading {written}" in text
    assert f"your own data ({root.name})".replace("\x1b", "\\x1b") in text
    assert f"{written}: share" in text
    assert not [sign for sign in ("\x1b]8", "\x1b[2J") if sign in text]
