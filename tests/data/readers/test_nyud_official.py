from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.nyud import NYUD
from mtlsi.data.readers.nyud_any import open_nyud
from mtlsi.data.readers.nyud_official import NUM_RAW_CLASSES, OfficialNYUD, classes_of_raw
from mtlsi.errors import MistakeError
from mtlsi.tasks import NYUD40

COUNT, HEIGHT, WIDTH = 4, 48, 64

# The file's own names of raw classes, with the class of the 40 that each is. The first 37 classes have one raw class each.
RAW_OF_NAMED = {
    "wall": 21, "floor": 11, "cabinet": 3, "bed": 157, "chair": 5, "sofa": 83, "table": 19, "door": 28, "window": 59,
    "bookshelf": 88, "picture": 64, "counter": 7, "blinds": 80, "desk": 36, "shelves": 42, "curtain": 89, "dresser": 169,
    "pillow": 119, "mirror": 122, "floor mat": 143, "clothes": 141, "ceiling": 4, "books": 85, "refridgerator": 17,
    "television": 172, "paper": 15, "towel": 135, "shower curtain": 123, "box": 26, "whiteboard": 45, "person": 331,
    "night stand": 158, "toilet": 124, "sink": 24, "lamp": 144, "bathtub": 136, "bag": 55,
}  # fmt: skip
RAW_OF_OTHERS = {
    "other structure": {
        "dishwasher": 8, "air vent": 25, "bar": 51, "projector screen": 53, "mantel": 58, "light": 62, "column": 94,
        "stairs": 215, "blackboard": 225, "oven": 238, "stove": 242, "light switch": 301, "chandelier": 342,
        "fireplace": 372, "range hood": 380, "banister": 453, "kitchen island": 456, "window frame": 477, "railing": 497,
        "wooden pillar": 553, "door way": 609, "door frame": 615, "shower base": 667, "grill": 700, "chimney": 702,
        "window seat": 777, "window box": 778, "fish tank": 782, "garage door": 850, "floor trim": 868, "mantle": 874,
    },
    "other furniture": {
        "garbage bin": 12, "stacked chairs": 43, "ladder": 48, "stand": 50, "room divider": 87, "headboard": 161,
        "drawer": 174, "bench": 204, "radiator": 236, "washing machine": 278, "tv stand": 291, "piano": 298,
        "chest": 344, "coffee table": 356, "ottoman": 359, "bassinet": 414, "treadmill": 458, "grandfather clock": 462,
        "crib": 485, "cradle": 493, "pool table": 515, "furniture": 524, "mattress": 576, "ping pong table": 625,
        "clothing hamper": 770, "wardrobe": 772, "bean bag": 797, "wall divider": 800, "bunk bed": 804, "lectern": 882,
    },
    "other prop": {
        "book": 1, "bottle": 2, "faucet": 9, "unknown": 20, "bowl": 22, "cup": 35, "laptop": 37, "vase": 78, "plant": 82,
        "printer": 66, "rug": 130, "basket": 39, "microwave": 13, "guitar": 300, "cat": 594, "dog": 701, "torah": 894,
    },
}  # fmt: skip


def test_the_894_raw_classes_become_the_40_by_name_and_in_number() -> None:
    table = classes_of_raw()
    spelling = {"refridgerator": "refrigerator"}
    assert table.shape == (NUM_RAW_CLASSES + 1,)
    assert table[0] == 255
    for name, raw in RAW_OF_NAMED.items():
        assert NYUD40[table[raw]] == spelling.get(name, name)
    for name, raws in RAW_OF_OTHERS.items():
        for raw_name, raw in raws.items():
            assert NYUD40[table[raw]] == name, raw_name
    counts = Counter(NYUD40[value] for value in table[1:])
    assert counts.pop("other structure") == 68
    assert counts.pop("other furniture") == 82
    assert counts.pop("other prop") == 894 - 37 - 68 - 82
    assert set(counts.values()) == {1}


def matlab_header() -> bytes:
    """The 512 bytes that MATLAB writes before the HDF5 part: text, version 2.0, little endian."""
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jul 30 12:00:00 2012 HDF5 schema 1.00 ."
    return (text.ljust(116) + bytes(8) + b"\x00\x02IM").ljust(512, b"\0")


def raw_names() -> list[str]:
    names = [f"thing {index}" for index in range(1, NUM_RAW_CLASSES + 1)]
    for name, raw in RAW_OF_NAMED.items():
        names[raw - 1] = name
    return names


def write_official(root: Path) -> dict[str, np.ndarray]:
    """The two files as MATLAB writes them; returns what they hold as a person sees it: (n H W 3), (n H W), (n H W)."""
    root.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    slope = np.linspace(1, 3, WIDTH) + np.zeros((HEIGHT, 1))
    depths = np.stack([slope + index for index in range(COUNT)]).astype(np.float32)
    depths[:, :2, :3] = 0
    labels = rng.integers(0, NUM_RAW_CLASSES + 1, (COUNT, HEIGHT // 8, WIDTH // 8)).repeat(8, 1).repeat(8, 2)
    labels[:, 0, :3] = 0, 1, NUM_RAW_CLASSES
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values, kind in (
            ("images", images.transpose(0, 3, 2, 1), "uint8"),
            ("depths", depths.transpose(0, 2, 1), "single"),
            ("labels", labels.astype(np.uint16).transpose(0, 2, 1), "uint16"),
        ):
            data = file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip")
            data.attrs["MATLAB_class"] = np.bytes_(kind)
        cells = file.create_group("#refs#")
        references = np.empty((1, NUM_RAW_CLASSES), h5py.ref_dtype)
        for index, name in enumerate(raw_names()):
            cell = cells.create_dataset(f"c{index}", data=np.array([[ord(letter)] for letter in name], np.uint16))
            cell.attrs["MATLAB_class"] = np.bytes_("char")
            references[0, index] = cell.ref
        file.create_dataset("names", data=references).attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as file:
        file.write(matlab_header())
    savemat(root / "splits.mat", {"trainNdxs": np.array([[2], [4]]), "testNdxs": np.array([[1], [3]])})
    return {"images": images, "depths": depths, "labels": labels}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_official(tmp_path / "nyud")
    return tmp_path / "nyud"


def test_the_official_files_are_read_as_written(tmp_path: Path) -> None:
    written = write_official(tmp_path / "nyud")
    before = {path.name: path.read_bytes() for path in (tmp_path / "nyud").iterdir()}
    table = classes_of_raw()
    for split, names in (("train", ["0002", "0004"]), ("val", ["0001", "0003"])):
        dataset = open_nyud(tmp_path / "nyud", split, cache_dir=tmp_path / "cache")
        assert isinstance(dataset, OfficialNYUD)
        assert dataset.names == names
        assert dataset.stems("depth") == {"0001", "0002", "0003", "0004"}
        assert (dataset.tasks, dataset.derived) == (("semseg", "depth", "normals", "boundary"), ("normals", "boundary"))
        assert (dataset.left_out, dataset.classes) == ({}, {"semseg": NYUD40})
        assert "official" in dataset.layout
        for index, name in enumerate(names):
            item, at = dataset[index], int(name) - 1
            assert dataset.path("depth", index) == tmp_path / "nyud/nyu_depth_v2_labeled.mat"
            np.testing.assert_array_equal(item["image"].numpy().transpose(1, 2, 0), written["images"][at])
            np.testing.assert_array_equal(item["depth"], written["depths"][at])
            np.testing.assert_array_equal(item["semseg"], table[written["labels"][at]])
            np.testing.assert_array_equal(item["boundary"], boundaries_from_labels(table[written["labels"][at]]))
            # The camera's official numbers, at a tenth of the official size.
            normals = normals_from_depth(
                written["depths"][at], focal_xy=(51.886, 51.947), centre_xy=(32.108, 24.924), step_m=None
            )
            np.testing.assert_allclose(item["normals"], normals, atol=0.0075)
            assert [str(item[task].dtype)[6:] for task in dataset.tasks] == ["uint8", "float32", "float32", "uint8"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "nyud").iterdir()} == before


def test_derived_labels_are_kept_until_the_file_changes(root: Path, tmp_path: Path, monkeypatch) -> None:
    fresh = OfficialNYUD(root, cache_dir=tmp_path / "cache")[0]
    monkeypatch.setattr("mtlsi.data.readers.nyud_official.camera_normals", None)
    monkeypatch.setattr("mtlsi.data.readers.nyud_official.boundaries_from_labels", None)
    again = OfficialNYUD(root, cache_dir=tmp_path / "cache")[0]
    for task, label in fresh.items():
        assert torch.equal(label, again[task])
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["depths"][1] += 1
    with pytest.raises(TypeError):
        OfficialNYUD(root, cache_dir=tmp_path / "cache")[0]


def test_a_worker_reads_what_its_parent_reads(root: Path, tmp_path: Path) -> None:
    dataset = OfficialNYUD(root, tasks=("semseg", "depth"), cache_dir=tmp_path)
    here = [dataset[index] for index in range(2)]  # the parent's handle is open when the worker starts
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for expected, item in zip(here, loader, strict=True):
        assert all(torch.equal(expected[task], item[task]) for task in expected)
    assert torch.equal(dataset[1]["depth"], here[1]["depth"])  # and the parent reads on
    # A worker that is spawned gets a copy like this one.
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]["depth"], here[1]["depth"])


def test_the_large_file_may_be_named_itself_and_other_layouts_are_still_found(root: Path, tmp_path: Path) -> None:
    path = root / "nyu_depth_v2_labeled.mat"
    named = open_nyud(path.rename(root / "copy.mat"), "val", tasks=("depth",))
    assert (named.names, named.tasks, named.derived) == (["0001", "0003"], ("depth",), ())
    for folder in ("images", "depth", "gt_sets"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "other/images/0001.jpg")
    Image.new("L", (8, 6), 60).save(tmp_path / "other/depth/0001.png")
    (tmp_path / "other/gt_sets/train.txt").write_text("0001\n")
    assert isinstance(open_nyud(tmp_path / "other", tasks=("depth",)), NYUD)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


def rename_wall(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["#refs#/c20"][0, 0] = ord("b")


def spoil_chunk(path: Path) -> None:
    with h5py.File(path, "r") as file:
        _, packed = file["depths"].id.read_direct_chunk((1, 0, 0))
    path.write_bytes(path.read_bytes().replace(packed, bytes(len(packed))))


def set_value(path: Path, name: str, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][1, 0, 0] = value


def lead_out(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        shape = file["images"].shape
        del file["images"]
        file.create_dataset("images", shape, np.uint8, external=[(__file__, 0, h5py.h5s.UNLIMITED)])


def enlarge(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name, channels, kind in (("images", (3,), np.uint8), ("depths", (), np.float32), ("labels", (), np.uint16)):
            del file[name]
            file.create_dataset(name, (COUNT, *channels, 20000, 5000), kind, chunks=(1, *channels, 100, 100))


def spell_wall(path: Path) -> None:
    change(path, "#refs#/c20", np.array([[2**40]] * 4, np.uint64))
    with h5py.File(path, "r+") as file:
        file["names"][0, 20] = file["#refs#/c20"].ref


def name_wall(path: Path, **settings: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.create_dataset("#refs#/wall", **settings)
        file["names"][0, 20] = file["#refs#/wall"].ref


MISTAKES = {
    "no splits": (lambda mat: (mat.parent / "splits.mat").unlink(), r"splits.mat: cannot be read \(No such file"),
    "broken splits": (lambda mat: cut(mat.parent / "splits.mat"), "splits.mat: not a whole MATLAB file"),
    "other splits": (lambda mat: savemat(mat.parent / "splits.mat", {"a": 1}), "splits.mat: no variable trainNdxs"),
    "split too long": (
        lambda mat: savemat(mat.parent / "splits.mat", {"trainNdxs": [1, 5]}),
        "splits.mat: trainNdxs is no list of numbers in 1..4",
    ),
    "split of NaN": (
        lambda mat: savemat(mat.parent / "splits.mat", {"trainNdxs": [1, np.nan]}),
        "splits.mat: trainNdxs is no list of numbers in 1..4",
    ),
    "cut": (cut, "labeled.mat: cut short, .* bytes; download it again"),
    "not HDF5": (lambda mat: savemat(mat, {"images": 1}), "labeled.mat: not an HDF5 file"),
    "empty": (lambda mat: mat.write_bytes(b""), "labeled.mat: (not an HDF5 file|cut short)"),
    "no depths": (lambda mat: change(mat, "depths", None), "labeled.mat: no variable depths"),
    "no names": (lambda mat: change(mat, "names", None), "labeled.mat: no variable names"),
    "names are text": (lambda mat: change(mat, "names", "wall"), "class 21 is called ''; expected 'wall'"),
    "shape": (
        lambda mat: change(mat, "depths", np.zeros((COUNT, HEIGHT, WIDTH), np.float32)),
        r"labeled.mat: holds images \[4, 3, 64, 48\], depths \[4, 48, 64\].*expected images \(n 3 640 480\)",
    ),
    "scalar": (lambda mat: change(mat, "images", 3), r"labeled.mat: holds images \[\]"),
    "group": (lambda mat: change(mat, "images", h5py.SoftLink("/#refs#")), r"labeled.mat: holds images \[\]"),
    "classes in other places": (rename_wall, "labeled.mat: class 21 is called 'ball'; expected 'wall'"),
    "images in another file": (lead_out, "labeled.mat: /images lies in another file; download it again"),
    "images too large": (enlarge, "labeled.mat: images of 20000x5000 pixels; expected 640x480"),
    "images of 64 bits": (
        lambda mat: change(mat, "images", np.zeros((COUNT, 3, WIDTH, HEIGHT), np.uint64)),
        r"labeled.mat: holds images \[4, 3, 64, 48\]",
    ),
    "no letters": (spell_wall, "class 21 is called ''; expected 'wall'"),
    "letters in another file": (
        lambda mat: name_wall(mat, shape=(4, 1), dtype=np.uint16, external=[(__file__, 0, 8)]),
        "labeled.mat: /#refs#/wall lies in another file",
    ),
    "letters in one large piece": (
        lambda mat: name_wall(mat, shape=(4, 1), dtype=np.uint16, maxshape=(None, None), chunks=(20_000, 20_000)),
        "labeled.mat: /#refs#/wall is packed in pieces of more than 512 MB",
    ),
    "texts for letters": (
        lambda mat: name_wall(mat, data=["w", "a", "l", "l"]),
        "class 21 is called ''; expected 'wall'",
    ),
    "texts for names": (
        lambda mat: change(mat, "names", [["wall"] * 894]),
        "class 21 is called ''; expected 'wall'",
    ),
    "label 895": (lambda mat: set_value(mat, "labels", 895), r"labeled.mat\[0002\]: label 895; expected 0..894"),
    "NaN": (lambda mat: set_value(mat, "depths", np.nan), r"labeled.mat\[0002\]: 1 depths are not finite"),
    "chunk": (spoil_chunk, r"labeled.mat\[0002\]: depths cannot be unpacked"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(root: Path, tmp_path: Path, name: str) -> None:
    spoil, message = MISTAKES[name]
    spoil(root / "nyu_depth_v2_labeled.mat")
    with pytest.raises(MistakeError, match=message) as raised:
        open_nyud(root, cache_dir=tmp_path / "cache")[0]
    assert "\n" not in str(raised.value)


def test_wrong_arguments_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MistakeError, match="split 'test': unknown to NYUDv2; expected one of train, val"):
        OfficialNYUD(root, "test")
    with pytest.raises(MistakeError, match="unknown task 'saliency'"):
        OfficialNYUD(root, tasks=("saliency",))
    with pytest.raises(MistakeError, match=r"nyu_depth_v2_labeled.mat: no such file \(.*nowhere: no such folder\)"):
        OfficialNYUD(tmp_path / "nowhere")
    with pytest.raises(MistakeError, match="0002: no saliency; the official NYUDv2 has image, semseg"):
        OfficialNYUD(root).read("saliency", 0)
