"""The images that auto-lambda made of Cityscapes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset, recognise
from mtlsi.data.readers.numbered import CITYSCAPES19
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.errors import MistakeError

NUMBERS = np.array([[0, 7, 8, 11], [12, 13, 17, 18], [19, 28, 29, 33]], np.uint8)
CLASSES = [[255, 0, 1, 2], [3, 4, 5, 255], [6, 15, 255, 18]]
STORED = np.array([[0, 1, 257, 1025], [2049, 32257, 513, 0], [5, 6, 7, 8]], np.uint16)


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 11), ("val", 2)):
        for folder in ("image", "seg", "depth", "part_seg"):
            (tmp_path / split / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 3), (i, 2, 3)).save(tmp_path / split / f"image/{i}.png")
            Image.fromarray(NUMBERS).save(tmp_path / split / f"seg/{i}.png")
            Image.fromarray(STORED).save(tmp_path / split / f"depth/{i}.png")
            Image.fromarray(NUMBERS.astype(np.int32)).save(tmp_path / split / f"part_seg/{i}.tif")
    return tmp_path


def test_it_is_known_without_its_parts_and_prepared_under_either_name(root):
    for split in ("train", "val"):
        shutil.rmtree(root / split / "part_seg")
    assert recognise(root) == "cityscapes"
    prepare(root, root / "fast", num_workers=0)
    for name in ("cityscapes", "cityscapes19"):
        assert open_dataset(DataConfig(name=name, root=str(root / "fast")), "val").classes == {"semseg": CITYSCAPES19}


@pytest.mark.parametrize("name", ["cityscapes", "cityscapes19"])
def test_labels_are_read_as_their_authors_read_them(root, name):
    dataset = open_dataset(DataConfig(name=name, root=str(root)), "train")
    assert recognise(root) == "cityscapes"
    assert (len(dataset), dataset.name(10), dataset.tasks) == (11, "train/10", ("semseg", "disparity"))
    assert dataset.classes == {"semseg": CITYSCAPES19}
    item = dataset[10]
    assert item["image"][:, 0, 0].tolist() == [10, 2, 3]
    assert item["semseg"].tolist() == CLASSES
    expected = np.where(STORED == 0, np.nan, (STORED.astype(float) - 1) / 256 / 4)
    np.testing.assert_allclose(item["disparity"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "pixels", "told"),
    [
        ("seg/0.png", np.full((3, 4), 40, np.uint8), "label 40; expected the official label numbers, 0..33, 255"),
        ("depth/0.png", STORED.astype(np.uint8), "expected one channel of 16 bits"),
        ("depth/0.png", np.full((3, 4), 65535, np.uint16), "up to 65535; expected one channel of 16 bits"),
    ],
)
def test_files_of_another_kind_are_a_mistake_in_one_line(root, file, pixels, told):
    Image.fromarray(pixels).save(root / "train" / file)
    with pytest.raises(MistakeError) as caught:
        open_dataset(DataConfig(name="cityscapes", root=str(root)), "train")[0]
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
