"""Where people put their images and labels, and how they name them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mtlsi.data.readers.folder import Folder, splits_of_folder
from mtlsi.errors import MistakeError

CLASSES = ["sky", "road", "car"]
SEMSEG = {"semseg": {"classes": CLASSES}}


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)


def label(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)


def metres(path: Path, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full((4, 6), value, np.float32))


def settings(root: Path, **keys: object) -> None:
    (root / "dataset.yaml").write_text(yaml.safe_dump(keys, allow_unicode=True, sort_keys=False), encoding="utf-8")


def values(dataset: Folder, task: str = "semseg") -> dict[str, float | None]:
    """By name, the value of an image's label, which is the same in every pixel; None: it has none."""
    items = ((dataset.name(index), dataset[index]) for index in range(len(dataset)))
    return {name: float(item[task].flatten()[0]) if task in item else None for name, item in items}


def test_folders_train_and_val_in_images_are_the_splits(tmp_path: Path) -> None:
    for index, place in enumerate(("train/b", "train/a", "val/a")):
        image(tmp_path / f"images/{place}.jpg")
        label(tmp_path / f"semseg/{place}.png", index)
        metres(tmp_path / f"depth/{place}.npy", index + 1)
    settings(tmp_path, tasks=SEMSEG)
    assert splits_of_folder(tmp_path) == ("train", "val")
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert values(train) == {"train/a": 1, "train/b": 0}
    assert values(val) == {"val/a": 2}
    assert values(val, "depth") == {"val/a": 3}
    assert train.passed_over == {}


def test_kinds_below_the_splits_are_refused_with_what_to_move(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "images/a.jpg")
        label(tmp_path / split / "semseg/a.png")
    settings(tmp_path, tasks=SEMSEG)
    with pytest.raises(MistakeError, match="move train/images to images/train, and its labels likewise") as caught:
        Folder(tmp_path, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("Training", "Validation"), ("train", "valid"), ("train", "dev")])
def test_split_folders_have_several_names(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        image(tmp_path / f"images/{name}/x.png")
        label(tmp_path / f"semseg/{name}/x.png")
    settings(tmp_path, tasks=SEMSEG)
    assert Folder(tmp_path, "train").names == [f"{names[0]}/x"]
    assert Folder(tmp_path, "val").names == [f"{names[1]}/x"]


def test_splits_may_name_folders_of_images(tmp_path: Path) -> None:
    for place in ("day/a", "day/b", "night/a"):
        image(tmp_path / f"images/{place}.png")
        label(tmp_path / f"semseg/{place}.png")
    settings(tmp_path, tasks=SEMSEG, splits={"train": "day/", "val": "night/"})
    assert Folder(tmp_path, "train").names == ["day/a", "day/b"]
    assert Folder(tmp_path, "val").names == ["night/a"]
    settings(tmp_path, tasks=SEMSEG, splits={"train": "day/", "val": "dusk/"})
    with pytest.raises(MistakeError, match=r"dataset.yaml: splits.val: dusk/: no images there") as raised:
        Folder(tmp_path, "train")
    assert "\n" not in str(raised.value)


def test_subfolders_that_are_no_splits_are_part_of_the_name(tmp_path: Path) -> None:
    for index, place in enumerate(("kitchen/cam 1/0001", "hall/0001", "0001")):
        image(tmp_path / f"images/{place}.jpg")
        label(tmp_path / f"semseg/{place}.png", index)
    settings(tmp_path, tasks=SEMSEG, splits={"train": ["kitchen/cam 1/0001", "hall/0001"], "val": ["0001"]})
    assert values(Folder(tmp_path, "train")) == {"kitchen/cam 1/0001": 0, "hall/0001": 1}
    assert values(Folder(tmp_path, "val")) == {"0001": 2}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (("a", "b"), ("a_mask", "b_mask")),
        (("a", "b"), ("a-label", "b-label")),
        (("a_1", "a_2"), ("mask_a_1", "mask_a_2")),
        (("img_01", "img_02"), ("seg_01", "seg_02")),
        (("01_rgb", "02_rgb"), ("01_semseg", "02_semseg")),
        (("0001TP_006690", "0001TP_006720"), ("0001TP_006690_L", "0001TP_006720_L")),
        (("one/a", "two/b"), ("one/a_gt", "two/b_gt")),
        (("one/a", "two/b"), ("a", "b")),
    ],
)
def test_common_words_in_names_are_seen_through(tmp_path: Path, images: tuple, labels: tuple) -> None:
    for index in range(2):
        image(tmp_path / f"images/{images[index]}.jpg")
        label(tmp_path / f"semseg/{labels[index]}.png", index + 1)
    settings(tmp_path, tasks=SEMSEG, splits={"train": list(images)})
    assert values(Folder(tmp_path, "train")) == {images[0]: 1, images[1]: 2}


def test_a_name_that_is_an_images_own_comes_before_one_without_its_words(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "a_mask")):
        image(tmp_path / f"images/{name}.jpg")
        label(tmp_path / f"semseg/{name}.png", index)
    settings(tmp_path, tasks=SEMSEG, splits={"train": ["a", "a_mask"]})
    assert values(Folder(tmp_path, "train")) == {"a": 0, "a_mask": 1}


def test_labels_may_lie_beside_their_images(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        image(tmp_path / f"images/{name}.jpg")
        label(tmp_path / f"images/{name}_mask.png", index + 1)
        metres(tmp_path / f"images/{name}_depth.npy", index + 3)
    image(tmp_path / "images/c.png")
    settings(tmp_path, tasks=SEMSEG | {"depth": {}}, splits={"train": ["a", "b", "c"]})
    dataset = Folder(tmp_path, "train")
    assert values(dataset) == {"a": 1, "b": 2, "c": None}
    assert values(dataset, "depth") == {"a": 3, "b": 4, "c": None}
    settings(
        tmp_path,
        tasks=SEMSEG,
        files={"depth": "images/*_depth", "semseg": "images/*_mask.png"},
        splits={"train": ["a", "b", "c"]},
    )
    with_patterns = Folder(tmp_path, "train")
    assert with_patterns.tasks == ("semseg", "depth")
    assert [values(with_patterns, task) for task in with_patterns.tasks] == [
        {"a": 1, "b": 2, "c": None},
        {"a": 3, "b": 4, "c": None},
    ]


def test_patterns_say_where_files_lie_and_how_they_are_called(tmp_path: Path) -> None:
    for index, name in enumerate(("0001", "0002")):
        image(tmp_path / f"photos/day/left_{name}.png")
        image(tmp_path / f"photos/day/right_{name}.png")
        label(tmp_path / f"annotation/day/{name}_classes_v1.png", index + 1)
        metres(tmp_path / f"scans/day/{name}.npy", index + 5)
    settings(
        tmp_path,
        tasks=SEMSEG,
        files={"images": "photos/left_*", "semseg": "annotation/*_classes_v1.png", "depth": "scans/*"},
        splits={"train": ["day/0001", "day/0002"]},
    )
    dataset = Folder(tmp_path, "train")
    assert values(dataset) == {"day/0001": 1, "day/0002": 2}
    assert values(dataset, "depth") == {"day/0001": 5, "day/0002": 6}
    assert list(dataset.passed_over.values()) == [["photos/day/right_0001.png", "photos/day/right_0002.png"]]


def test_an_image_and_its_labels_may_have_a_folder_of_their_own(tmp_path: Path) -> None:
    for index, name in enumerate(("scene 1", "scene 2")):
        image(tmp_path / f"data/{name}/rgb.png")
        label(tmp_path / f"data/{name}/mask.png", index)
    settings(
        tmp_path,
        tasks=SEMSEG,
        files={"images": "data/*/rgb.png", "semseg": "data/*/mask.png"},
        splits={"train": ["scene 1", "scene 2"]},
    )
    assert values(Folder(tmp_path, "train")) == {"scene 1": 0, "scene 2": 1}


def test_lists_with_a_mark_at_their_start_and_windows_lines(tmp_path: Path) -> None:
    for name in ("one/é", "b", "c"):
        image(tmp_path / f"images/{name}.jpg")
        label(tmp_path / f"semseg/{name}.png")
    (tmp_path / "train.txt").write_bytes("\ufeffone/é\r\nb\r\n\r\n".encode())
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfc")
    settings(tmp_path, tasks=SEMSEG, splits={"train": "train.txt", "val": "val.txt"})
    assert Folder(tmp_path, "train").names == ["one/é", "b"]
    assert Folder(tmp_path, "val").names == ["c"]
    (tmp_path / "train.txt").write_text("images\\b.jpg\r\n./one/é.jpg\r\n", encoding="utf-8")
    assert Folder(tmp_path, "train").names == ["b", "one/é"]
    (tmp_path / "train.txt").write_text("b\n", encoding="utf-16")
    with pytest.raises(MistakeError, match=r"train.txt: cannot be read as text"):
        Folder(tmp_path, "train")


@pytest.mark.parametrize("forms", [("NFC", "NFD", "NFC"), ("NFD", "NFC", "NFD"), ("NFD", "NFD", "NFC")])
def test_composed_and_decomposed_names_are_one(tmp_path: Path, forms: tuple) -> None:
    named = [unicodedata.normalize(form, "Küche/Größe é") for form in forms]
    image(tmp_path / f"images/{named[0]}.jpg")
    label(tmp_path / f"semseg/{named[1]}.png", 2)
    settings(tmp_path, tasks=SEMSEG, splits={"train": [named[2]]})
    assert values(Folder(tmp_path, "train")) == {"Küche/Größe é": 2}


def test_what_is_passed_over_is_kept_by_reason(tmp_path: Path) -> None:
    for name in ("a", "B"):
        image(tmp_path / f"images/{name}.jpg")
    label(tmp_path / "semseg/a.png")
    label(tmp_path / "semseg/b.png")
    (tmp_path / "semseg/a.json").write_text("{}")
    (tmp_path / "semseg/classes.txt").write_text("sky")
    (tmp_path / "images/c.exr").write_bytes(b"1")
    settings(tmp_path, tasks=SEMSEG, splits={"train": ["a", "B"]})
    dataset = Folder(tmp_path, "train")
    assert values(dataset) == {"a": 0, "B": None}
    assert dataset.passed_over == {
        "images/: .exr is no image": ["images/c.exr"],
        "semseg/: .json is no file of semseg": ["semseg/a.json"],
        "semseg/: the name differs from an image's in upper and lower case": ["semseg/b.png"],
    }


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_split_by_share_is_empty(tmp_path: Path, share: float, count: int) -> None:
    for index in range(count):
        image(tmp_path / f"images/{index}.png")
        label(tmp_path / f"semseg/{index}.png")
    settings(tmp_path, tasks=SEMSEG, splits={"val": share})
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert sorted(train.names + val.names) == [str(index) for index in range(count)]
    if count > 2:
        settings(tmp_path, tasks=SEMSEG, splits={"val": share / 2, "test": share / 2})
        assert splits_of_folder(tmp_path) == ("train", "val", "test")


LAYOUT_MISTAKES = {
    "no star": ({"semseg": "masks"}, r"dataset.yaml: files: \{'semseg': 'masks'\}; expected for images or a task"),
    "two stars": ({"semseg": "*/*.png"}, "dataset.yaml: files: "),
    "outside": ({"semseg": "../*"}, "dataset.yaml: files: "),
    "unknown": ({"edges": "*_e"}, "dataset.yaml: files.edges: no such task; expected images or some of semseg"),
    "no images": ({"images": "images/*_left"}, "images: no images .*; expected files ending in"),
    "no such folder": ({"images": "photos/*"}, r"photos: no images \(no such folder\)"),
    "two labels": (None, r"semseg: holds a.png and a_mask.png; expected one; remove the other"),
}


@pytest.mark.parametrize("name", LAYOUT_MISTAKES)
def test_a_mistake_in_the_layout_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    files, message = LAYOUT_MISTAKES[name]
    image(tmp_path / "images/a.jpg")
    label(tmp_path / "semseg/a.png")
    if files is None:
        label(tmp_path / "semseg/a_mask.png")
    settings(tmp_path, tasks=SEMSEG, splits={"train": ["a"]}, files=files or {})
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(tmp_path, "train")
    assert "\n" not in str(raised.value)
