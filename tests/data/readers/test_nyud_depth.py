"""NYUv2 with 16-bit depth: BTS's folders of scenes with and without its lists, and gt_sets with such depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlsi.data.datasets import open_folder, recognise
from mtlsi.data.readers.derive import NYU_CENTRE_XY, NYU_FOCAL_XY, normals_from_depth
from mtlsi.data.readers.nyud_any import open_nyud
from mtlsi.dataset_tools.check import check
from mtlsi.errors import MistakeError

H, W = 48, 64


def pair(folder: Path, number: str, seed: int) -> np.ndarray:
    """A photo and its depth in millimetres."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    depth = (np.linspace(900, 4000, W)[None] + np.linspace(0, 300, H)[:, None]).astype(np.uint16) + seed
    depth[rng.random((H, W)) < 0.05] = 0
    Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(folder / f"rgb_{number}.jpg")
    Image.fromarray(depth).save(folder / f"sync_depth_{number}.png")
    return depth


def write(root: Path) -> dict[str, np.ndarray]:
    places = (
        "sync/kitchen_0028b/00045",
        "sync/kitchen_0028b/00046",
        "sync/study_0003/00000",
        "official_splits/test/kitchen/00001",
        "official_splits/train/office/00002",
    )
    written = {}
    for seed, place in enumerate(places):
        folder, _, number = place.rpartition("/")
        written[f"{folder}/rgb_{number}"] = pair(root / folder, number, seed)
    return written


def write_lists(folder: Path, train: list[str], test: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for split, lines in (("train", train), ("test", test)):
        (folder / f"nyudepthv2_{split}_files_with_gt.txt").write_bytes("\r\n".join(lines).encode())
    (folder / "eigen_train_files_with_gt.txt").write_text("2011/1.png proj_depth/1.png 721.5377\n")


@pytest.mark.parametrize("lists", [None, "", "train_test_inputs"])
def test_both_splits_are_read_as_written(tmp_path: Path, lists: str | None) -> None:
    written = write(tmp_path)
    names = {split: [name for name in written if name.startswith(place)] for split, place in (
        ("train", "sync"), ("val", "official_splits/test")
    )}  # fmt: skip
    if lists is not None:
        write_lists(
            tmp_path / lists,
            [
                "/study_0003/rgb_00000.jpg /study_0003/sync_depth_00000.png 518.8579",
                "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579",
            ],
            ["kitchen/rgb_00001.jpg kitchen/sync_depth_00001.png 518.8579"],
        )
        names["train"] = ["sync/study_0003/rgb_00000", "sync/kitchen_0028b/rgb_00045"]
    assert recognise(tmp_path) == "nyud"
    for split, expected in names.items():
        dataset = open_folder(tmp_path, split)
        assert dataset.names == expected
        assert dataset.tasks == ("depth",)
        assert "BTS" in dataset.layout
        for index, name in enumerate(expected):
            np.testing.assert_allclose(dataset[index]["depth"], written[name] / 1000, rtol=1e-6)
            photo = np.asarray(Image.open(tmp_path / f"{name}.jpg"))
            np.testing.assert_array_equal(dataset[index]["image"], photo.transpose(2, 0, 1))


def test_normals_are_derived_when_they_are_asked_for(tmp_path: Path) -> None:
    written = write(tmp_path)
    dataset = open_nyud(tmp_path, "val", tasks=("depth", "normals"), cache_dir=tmp_path / "cache")
    assert (dataset.tasks, dataset.derived) == (("depth", "normals"), ("normals",))
    scale = W / 640
    expected = normals_from_depth(
        (written["official_splits/test/kitchen/rgb_00001"] / 1000).astype(np.float32),
        focal_xy=(NYU_FOCAL_XY[0] * scale, NYU_FOCAL_XY[1] * scale),
        centre_xy=((NYU_CENTRE_XY[0] + 0.5) * scale - 0.5, (NYU_CENTRE_XY[1] + 0.5) * scale - 0.5),
        step_m=0.001,
    )
    np.testing.assert_allclose(dataset[0]["normals"], expected, atol=0.01)


def test_the_official_training_images_are_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    pair(tmp_path / "train/office", "00002", 0)
    pair(tmp_path / "test/kitchen", "00001", 1)
    assert open_folder(tmp_path, "train").names == ["train/office/rgb_00002"]
    assert open_folder(tmp_path, "val").names == ["test/kitchen/rgb_00001"]
    assert check(tmp_path, num_workers=0).problems == []


def test_depth_in_gt_sets_may_have_16_bits(nyud_root: Path) -> None:
    millimetres = np.full((48, 64), 2345, np.uint16)
    for name in ("0001", "0002", "0003", "0004"):
        Image.fromarray(millimetres).save(nyud_root / f"depth/{name}.png")
    dataset = open_folder(nyud_root, "val")
    assert "16-bit depth" in dataset.layout
    assert dataset.tasks == ("semseg", "depth", "normals", "boundary")
    np.testing.assert_allclose(dataset[0]["depth"], 2.345, rtol=1e-6)
    assert dataset[0]["normals"][2].min() > 0.99  # a wall ahead
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(nyud_root / "depth/0004.png")
    with pytest.raises(MistakeError, match=r"depth/0004.png: pixels of mode L; expected 16 bits"):
        dataset[1]


MISTAKES = {
    "no such photos": (["a/rgb_1.jpg a/sync_depth_1.png 518.8579"], r"files_with_gt.txt: a/rgb_1.jpg is nowhere in"),
    "one column": (
        ["kitchen_0028b/sync_depth_00045.png"],
        r"files_with_gt.txt: line 1 holds 'kitchen.*; expected PHOTO",
    ),
    "one photo missing": (
        [f"kitchen_0028b/rgb_{n}.jpg kitchen_0028b/sync_depth_{n}.png 518.8579" for n in ("00045", "00099")],
        r"sync/kitchen_0028b: no file for sync/kitchen_0028b/rgb_00099",
    ),
    "a photo outside": (
        [f"kitchen_0028b/{x}rgb_00045.jpg kitchen_0028b/sync_depth_00045.png 518.8579" for x in ("", "../../../")],
        r"files_with_gt.txt: line 2: name 'kitchen_0028b/../../../rgb_00045.jpg' leads out of its folder",
    ),
    "a depth map outside": (
        ["kitchen_0028b/rgb_00045.jpg ../sync_depth_00045.png 518.8579"],
        r"files_with_gt.txt: line 1: name '../sync_depth_00045.png' leads out of its folder",
    ),
    "no name": (
        ["kitchen_0028b/rgb_00045.jpg kitchen_0028b/sync_depth_00045.png 518.8579", "/. sync_depth_00046.png 518.8579"],
        r"files_with_gt.txt: line 2 holds '/. sync_depth_00046.png 518.8579'; expected PHOTO",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_list_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    lines, message = MISTAKES[name]
    write(tmp_path)
    write_lists(tmp_path, lines, lines)
    with pytest.raises(MistakeError, match=message) as raised:
        open_folder(tmp_path, "train")
    assert "\n" not in str(raised.value)


def test_depth_of_8_bits_and_a_missing_split_are_told(tmp_path: Path) -> None:
    pair(tmp_path / "sync/kitchen_0028b", "00045", 0)
    with pytest.raises(MistakeError, match=r"no photos with depth for val .*expected official_splits/test/SCENE/rgb_"):
        open_folder(tmp_path, "val")
    Image.fromarray(np.ones((H, W), np.uint8)).save(tmp_path / "sync/kitchen_0028b/sync_depth_00045.png")
    with pytest.raises(MistakeError, match=r"sync_depth_00045.png: pixels of mode L; expected 16 bits"):
        open_folder(tmp_path, "train")[0]


def test_a_list_leads_nowhere_by_a_link_inside_the_data_set(tmp_path: Path) -> None:
    root = tmp_path / "a/b/nyu"
    write(root)
    pair(tmp_path / "a/pics", "1", 9)
    (root / "up").symlink_to(tmp_path / "a/b", target_is_directory=True)
    lines = ["up/../pics/rgb_1.jpg up/../pics/sync_depth_1.png 518.8579"]
    write_lists(root, lines, lines)
    with pytest.raises(MistakeError, match=r"line 1: name 'up/../pics/rgb_1.jpg' leads out of its folder"):
        open_folder(root, "train")
