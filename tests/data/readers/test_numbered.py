"""MTAN's and LibMTL's NumPy files, small ones in the genuine format."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset, open_folder, recognise, splits_of
from mtlsi.data.readers.numbered import CITYSCAPES7, CITYSCAPES19, NYUD13
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.errors import MistakeError
from mtlsi.kinds import of
from mtlsi.tasks import TASKS

H, W = 18, 24


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def write_nyud(root: Path, counts: tuple[int, int] = (11, 3)) -> dict[str, dict[str, np.ndarray]]:
    """Both splits, numbered from 0 in each, as MTAN stores them; returns what must be read."""
    rng, expected = np.random.default_rng(0), {}
    for split, count in zip(("train", "val"), counts, strict=True):
        for number in range(count):
            image = rng.random((H, W, 3))
            label = rng.integers(-1, 13, (H, W)).astype(np.float64)
            depth = rng.uniform(0.7, 9.9, (H, W, 1)).astype(np.float32) * (rng.random((H, W, 1)) > 0.1)
            normal = rng.standard_normal((H, W, 3)).astype(np.float32)
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            normal[0] = 0
            normal[1] *= 0.4  # averaged over an edge
            for folder, values in (("image", image), ("label", label), ("depth", depth), ("normal", normal)):
                save(root / f"{split}/{folder}/{number}.npy", values)
            normal[1] /= 0.4
            expected[f"{split}/{number}"] = {
                "image": np.rint(image * 255).transpose(2, 0, 1),
                "semseg": np.where(label < 0, 255, label),
                "depth": depth[..., 0],
                "normals": normal.transpose(2, 0, 1),
            }
    return expected


def write_cityscapes(root: Path, folders: dict[str, int]) -> dict[str, np.ndarray]:
    """Two images in each split with labels of as many classes as ``folders`` says; returns disparities by name."""
    rng, disparities = np.random.default_rng(1), {}
    for split in ("train", "val"):
        for number in range(2):
            stored = rng.integers(0, 32258, (H, W, 1)) * (rng.random((H, W, 1)) > 0.2)
            save(root / f"{split}/image/{number}.npy", rng.random((H, W, 3)).astype(np.float32))
            save(root / f"{split}/depth/{number}.npy", (stored / 65535).astype(np.float32))
            for folder, num_classes in folders.items():
                save(root / f"{split}/{folder}/{number}.npy", rng.integers(-1, num_classes, (H, W)).astype(np.float32))
            disparities[f"{split}/{number}"] = stored[..., 0]
    return disparities


def test_nyuv2_is_read_as_written(tmp_path: Path) -> None:
    expected = write_nyud(tmp_path)
    assert recognise(tmp_path) == "nyud"
    assert splits_of(tmp_path) == ("train", "val")
    train, val = (open_dataset(DataConfig(name="nyud", root=str(tmp_path)), split) for split in ("train", "val"))
    assert train.tasks == ("semseg", "depth", "normals")
    assert train.classes == {"semseg": NYUD13}
    assert len(NYUD13) == 13
    assert (train.derived, train.left_out) == ((), {})
    assert [train.name(index) for index in range(len(train))] == [f"train/{number}" for number in range(11)]
    assert [val.name(index) for index in range(len(val))] == ["val/0", "val/1", "val/2"]
    for dataset in (train, pickle.loads(pickle.dumps(val))):
        for index in range(len(dataset)):
            for what, values in dataset[index].items():
                wanted = expected[dataset.name(index)][what]
                np.testing.assert_allclose(values, wanted, atol=2e-6, err_msg=what)


def test_a_superscript_is_no_number(tmp_path: Path) -> None:
    write_nyud(tmp_path, (2, 1))
    save(tmp_path / "train/image/\N{SUPERSCRIPT TWO}.npy", np.zeros((H, W, 3)))
    assert len(open_dataset(DataConfig(name="nyud", root=str(tmp_path)), "train")) == 2


def test_an_image_may_be_stored_in_bytes_or_in_0_to_255(tmp_path: Path) -> None:
    write_nyud(tmp_path, (3, 1))
    image = np.random.default_rng(2).integers(0, 256, (H, W, 3))
    for number, values in enumerate(
        (image.astype(np.uint8), image.astype(np.float64), (image / 255).astype(np.float32))
    ):
        save(tmp_path / f"train/image/{number}.npy", values)
    dataset = open_folder(tmp_path, "train")
    for number in range(3):
        np.testing.assert_array_equal(dataset[number]["image"], image.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("folders", "name", "classes"),
    [
        ({"label": 7}, "cityscapes", CITYSCAPES7),
        ({"label": 19}, "cityscapes", CITYSCAPES19),
        ({"label": 19}, "cityscapes19", CITYSCAPES19),
        ({"label_2": 2, "label_7": 7, "label_19": 19}, "cityscapes", CITYSCAPES7),
        ({"label_2": 2, "label_7": 7, "label_19": 19}, "cityscapes19", CITYSCAPES19),
        ({"label_19": 19}, "cityscapes", CITYSCAPES19),
    ],
)
def test_cityscapes_has_7_or_19_classes(tmp_path: Path, folders: dict, name: str, classes: tuple) -> None:
    write_cityscapes(tmp_path, folders)
    assert recognise(tmp_path) == "cityscapes"
    dataset = open_dataset(DataConfig(name=name, root=str(tmp_path)), "val")
    assert dataset.tasks == ("semseg", "disparity")
    assert dataset.classes == {"semseg": classes}
    label = dataset[1]["semseg"]
    folder = f"label_{len(classes)}" if f"label_{len(classes)}" in folders else "label"
    stored = np.load(tmp_path / f"val/{folder}/1.npy")
    np.testing.assert_array_equal(label, np.where(stored < 0, 255, stored))


def test_disparity_is_a_value_in_its_own_unit(tmp_path: Path) -> None:
    stored = write_cityscapes(tmp_path, {"label_7": 7})
    dataset = open_dataset(DataConfig(name="cityscapes", root=str(tmp_path)), "train")
    assert TASKS["disparity"].kind == "value"
    for index in range(2):
        read, official = dataset[index]["disparity"], stored[dataset.name(index)]
        assert torch.equal(of("disparity").valid(read), torch.from_numpy(official > 0))
        np.testing.assert_allclose(read * 65535, np.where(official > 0, official, np.nan), rtol=1e-5)


def test_prepared_they_are_the_same(tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "city", {"label": 7})
    prepare(tmp_path / "city", tmp_path / "fast", num_workers=0)
    fast = open_dataset(DataConfig(name="cityscapes", root=str(tmp_path / "fast")), "val")
    whole = open_folder(tmp_path / "city", "val")
    for what, values in whole[1].items():
        torch.testing.assert_close(fast[1][what], values, rtol=0, atol=0, equal_nan=True)


def test_prepared_cityscapes_has_the_classes_of_the_name_it_was_prepared_by(tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "city", {"label_7": 7, "label_19": 19})
    prepare(tmp_path / "city", tmp_path / "7", num_workers=0)
    prepare(tmp_path / "city", tmp_path / "19", data="cityscapes19", num_workers=0)
    of_19 = open_dataset(DataConfig(name="cityscapes19", root=str(tmp_path / "19")), "val")
    assert of_19.classes == {"semseg": CITYSCAPES19}
    with pytest.raises(MistakeError, match="prepared from cityscapes; name that, or prepare cityscapes19"):
        open_dataset(DataConfig(name="cityscapes19", root=str(tmp_path / "7")), "val")
    with pytest.raises(MistakeError, match="prepared from cityscapes19"):
        open_dataset(DataConfig(name="cityscapes", root=str(tmp_path / "19")), "val")


def test_cityscapes_is_not_taken_for_rooms(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"label": 7})
    with pytest.raises(MistakeError, match="no normal/, by which NYUv2 is told from Cityscapes"):
        open_dataset(DataConfig(name="nyud", root=str(tmp_path)), "train")


MISTAKES = {
    "a missing file": (
        lambda root: (root / "train/depth/1.npy").unlink(),
        "train/depth: no file for train/1, nor for 0 more",
    ),
    "40 classes": (
        lambda root: save(root / "train/label/0.npy", np.full((H, W), 39.0)),
        r"train/label/0.npy: label 39; expected 0..12, and -1 for unlabelled",
    ),
    "halves": (
        lambda root: save(root / "train/label/0.npy", np.full((H, W), 0.5)),
        r"train/label/0.npy: label 0.5; expected 0..12",
    ),
    "channels first": (
        lambda root: save(root / "train/image/0.npy", np.zeros((3, H, W))),
        r"image/0.npy: an array of shape \[3, 18, 24\]; expected an image",
    ),
    "normalised pixels": (
        lambda root: save(root / "train/image/0.npy", np.full((H, W, 3), -2.1)),
        r"image/0.npy: pixels -2.1..0; expected 0..1 or 0..255",
    ),
    "cut": (lambda root: (root / "train/depth/0.npy").write_bytes(b"\x93NUMPY"), "depth/0.npy: not a whole NumPy file"),
    "millimetres": (
        lambda root: save(root / "train/depth/0.npy", np.full((H, W, 1), 2500.0)),
        "depth/0.npy: depths 0..2500; expected metres",
    ),
    "another size": (
        lambda root: save(root / "train/label/0.npy", np.zeros((H, 5))),
        "label/0.npy: 18x5 pixels, but .*image/0.npy has 18x24",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, message = MISTAKES[name]
    write_nyud(tmp_path, (2, 1))
    spoil(tmp_path)
    with pytest.raises(MistakeError, match=message) as raised:
        open_dataset(DataConfig(name="nyud", root=str(tmp_path)), "train")[0]
    assert "\n" not in str(raised.value)


def test_one_is_not_taken_for_the_other(tmp_path: Path) -> None:
    write_nyud(tmp_path / "rooms", (1, 1))
    with pytest.raises(MistakeError, match=r"rooms: holds normals, so it is NYUv2; give --data nyud"):
        open_dataset(DataConfig(name="cityscapes", root=str(tmp_path / "rooms")), "train")
    write_cityscapes(tmp_path / "streets", {"label": 7})
    with pytest.raises(MistakeError, match=r"no label_19, and the labels in label have 7 classes"):
        open_dataset(DataConfig(name="cityscapes19", root=str(tmp_path / "streets")), "train")
    save(tmp_path / "streets/train/depth/0.npy", np.full((H, W, 1), 126.0))
    with pytest.raises(MistakeError, match=r"depth/0.npy: disparity up to 126; expected 0..1"):
        open_dataset(DataConfig(name="cityscapes", root=str(tmp_path / "streets")), "train")[0]
    with pytest.raises(MistakeError, match=r"image: no numbered .npy files"):
        open_dataset(DataConfig(name="cityscapes", root=str(tmp_path)), "train")
