from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mtlsi.config import DataConfig
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.folder import Folder, splits_of_folder
from mtlsi.errors import MistakeError

ROOT = Path(__file__).resolve().parents[3]
HEIGHT, WIDTH = 48, 64
SIX = {
    "semseg": {"classes": ["wall", "floor", "chair"], "first": 1, "invalid": [0, 255]},
    "parsing": {"classes": ["background", "head"]},
    "saliency": {},
    "depth": {"unit": "mm"},
    "normals": {"axes": [1, -1, -1]},
    "boundary": {},
}
LISTS = {"train": ["room a.1", "b"], "val": ["b"]}


def settings(root: Path, **keys: Any) -> None:
    (root / "dataset.yaml").write_text(yaml.safe_dump(keys))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def write_six(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """Two images with labels of all six tasks in two kinds of files each; returns what must be read."""
    rng = np.random.default_rng(3)
    expected = {}
    for name, png in (("room a.1", True), ("b", False)):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        classes = rng.choice([0, 1, 2, 3, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        parts = rng.choice([0, 1, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        salient = rng.choice([0, 127, 128, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        millimetres = rng.integers(0, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
        normals = rng.standard_normal((HEIGHT, WIDTH, 3))
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        edges = rng.choice([0, 255], (HEIGHT, WIDTH)).astype(np.uint8)
        save(root / f"images/{name}.png", image)
        label = Image.fromarray(classes)
        if not png:
            label.putpalette(bytes(range(256)) * 3)
        (root / "semseg").mkdir(exist_ok=True)
        label.save(root / f"semseg/{name}.png")
        save(root / f"parsing/{name}.png", parts)
        save(root / f"saliency/{name}.{'png' if png else 'npy'}", salient if png else salient / 255.0)
        save(root / f"depth/{name}.{'PNG' if png else 'npy'}", millimetres if png else millimetres.astype(np.float32))
        save(
            root / f"normals/{name}.{'png' if png else 'npy'}",
            np.rint((normals + 1) * 127.5).astype(np.uint8) if png else normals.astype(np.float32),
        )
        save(root / f"boundary/{name}.{'png' if png else 'npy'}", edges if png else edges / 255)
        expected[name] = {
            "image": image.transpose(2, 0, 1),
            "semseg": np.array([255, 0, 1, 2] + [255] * 252)[classes],
            "parsing": parts,
            "saliency": np.where(salient == 127, 255, salient > 127) if png else salient > 127.5,
            "depth": (millimetres / 1000).astype(np.float32),
            "normals": (normals * (1, -1, -1)).transpose(2, 0, 1),
            "boundary": edges == 255,
        }
    settings(root, tasks=SIX, splits=LISTS)
    return expected


def test_six_tasks_in_mixed_files_are_read_as_written(tmp_path: Path) -> None:
    expected = write_six(tmp_path)
    dataset = Folder(tmp_path, "train", cache_dir=tmp_path / "cache")
    assert dataset.tasks == ("semseg", "parsing", "saliency", "depth", "normals", "boundary")
    assert (dataset.names, dataset.derived, dataset.left_out) == (["room a.1", "b"], (), {})
    assert dataset.classes == {"semseg": ("wall", "floor", "chair"), "parsing": ("background", "head")}
    assert dataset.colours == {"semseg": None, "parsing": None}
    assert dataset.boundary_tolerance == 0.0075
    assert dataset.splits == splits_of_folder(tmp_path) == ("train", "val")
    assert tmp_path.name in dataset.layout
    copy = pickle.loads(pickle.dumps(dataset))
    for index, name in enumerate(dataset.names):
        item = dataset[index]
        assert list(item) == ["image", *dataset.tasks]
        for what, values in expected[name].items():
            tolerance = 0.007 if what == "normals" else 1e-6  # 8 bits turn a component by at most sqrt(3) / 255
            np.testing.assert_allclose(item[what], values, atol=tolerance, err_msg=what)
            assert torch.equal(item[what], copy[index][what])
    assert dataset.path("depth", 0) == tmp_path / "depth/room a.1.PNG"
    assert not (tmp_path / "cache").exists()


def test_one_task_as_a_plain_string(tmp_path: Path) -> None:
    write_six(tmp_path)
    assert Folder(tmp_path, "train", tasks="depth").tasks == ("depth",)
    assert list(Folder(tmp_path, "train", tasks="depth,normals")[0]) == ["image", "depth", "normals"]


def yaml_of_docs() -> str:
    text = (ROOT / "docs/own_data.md").read_text()
    return re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]  # pyright: ignore


def write_rooms(root: Path, count: int = 12) -> None:
    """What a person has in docs/own_data.md: RGB, a label map and depth in millimetres."""
    for index in range(count):
        rng = np.random.default_rng(index)
        name = f"kitchen_{index:02}"
        save(root / f"images/{name}.jpg", np.full((HEIGHT, WIDTH, 3), rng.integers(0, 256, 3), np.uint8))
        save(
            root / f"semseg/{name}.png",
            np.repeat(rng.permutation(5)[:4], WIDTH // 4)[None].repeat(HEIGHT, 0).astype(np.uint8),
        )
        slope = np.linspace(1200, 2500 + 100 * index, WIDTH) + np.zeros((HEIGHT, 1))
        slope[:4, :5] = 0
        save(root / f"depth/{name}.png", slope.astype(np.uint16))


def test_the_example_of_the_docs_gives_four_tasks(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms")
    (tmp_path / "rooms/dataset.yaml").write_text(yaml_of_docs())
    datasets = [Folder(tmp_path / "rooms", split, cache_dir=tmp_path / "cache") for split in ("train", "val")]
    assert sum(map(len, datasets)) == 12
    assert not set(datasets[0].names) & set(datasets[1].names)
    for dataset in datasets:
        assert dataset.tasks == ("semseg", "depth", "normals", "boundary")
        assert dataset.derived == ("normals", "boundary")
        assert len(dataset.colours["semseg"]) == len(dataset.classes["semseg"]) == 5  # pyright: ignore
        item = dataset[0]
        np.testing.assert_array_equal(item["boundary"], boundaries_from_labels(item["semseg"].numpy()))
        stored = np.array(Image.open(tmp_path / f"rooms/depth/{dataset.names[0]}.png"))
        np.testing.assert_allclose(item["depth"], stored / 1000, rtol=1e-6)
        normals = normals_from_depth(stored / 1000, focal_xy=(518.9, 519.5), centre_xy=(325.6, 253.7), step_m=0.001)
        np.testing.assert_allclose(item["normals"], normals, atol=0.0075)


def test_the_two_commands_of_the_docs_are_there() -> None:
    commands = re.findall(r"^mtlsi .*$", (ROOT / "docs/own_data.md").read_text(), re.MULTILINE)
    assert [command.split()[1] for command in commands[:2]] == ["data", "train"]
    recipe = yaml.safe_load((ROOT / re.search(r"--config (\S+)", commands[1])[1]).read_text())  # pyright: ignore
    assert recipe["data"]["name"] == "folder"
    assert set(recipe["data"]) <= set(DataConfig.__dataclass_fields__)


def test_derived_labels_depend_on_what_they_follow_from(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms", 1)
    stripes = np.arange(4, dtype=np.uint8).repeat(WIDTH // 4)[None].repeat(HEIGHT, 0)
    save(tmp_path / "rooms/semseg/kitchen_00.png", stripes)
    keys = yaml.safe_load(yaml_of_docs()) | {"splits": {"train": ["kitchen_00"]}}

    def read() -> dict[str, torch.Tensor]:
        settings(tmp_path / "rooms", **keys)
        return Folder(tmp_path / "rooms", cache_dir=tmp_path / "cache")[0]

    first = read()
    keys["tasks"]["depth"]["intrinsics"]["focal"] = [100, 100]
    other_camera = read()
    assert not torch.equal(first["normals"], other_camera["normals"])
    assert torch.equal(first["boundary"], other_camera["boundary"])
    keys["tasks"]["semseg"] = {"classes": ["floor", "chair", "table"], "first": 1, "invalid": [0]}
    other_classes = read()
    np.testing.assert_array_equal(other_classes["boundary"], boundaries_from_labels(other_classes["semseg"].numpy()))
    assert not torch.equal(first["boundary"], other_classes["boundary"])


def test_files_come_before_what_is_derived(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms", 2)
    keys = yaml.safe_load(yaml_of_docs()) | {"splits": {"train": ["kitchen_00", "kitchen_01"]}}
    settings(tmp_path / "rooms", **keys)
    save(tmp_path / "rooms/boundary/kitchen_01.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    dataset = Folder(tmp_path / "rooms", tasks=("boundary",), cache_dir=tmp_path / "cache")
    assert (dataset.derived, dataset.tasks) == (("boundary",), ("boundary",))
    assert dataset[0]["boundary"].any()
    assert not dataset[1]["boundary"].any()


def test_an_image_may_lack_labels_and_a_task_may_lack_its_folder(tmp_path: Path) -> None:
    write_six(tmp_path)
    (tmp_path / "depth/room a.1.PNG").unlink()
    for file in (tmp_path / "parsing").iterdir():
        file.unlink()
    dataset = Folder(tmp_path)
    assert "depth" not in dataset[0]
    assert "depth" in dataset[1]
    assert "parsing" not in dataset.tasks
    assert "parsing" in dataset.left_out
    with pytest.raises(
        MistakeError, match=r"depth: no file for room a.1, nor for 0 more|parsing/room a.1.png: missing"
    ):
        Folder(tmp_path, may_lack=False)
    (tmp_path / "parsing").rmdir()
    with pytest.raises(MistakeError, match="parsing: no such folder"):
        Folder(tmp_path, tasks=("parsing",))


def test_without_keys_there_are_defaults(tmp_path: Path) -> None:
    for index in range(200):
        save(tmp_path / f"images/{index:03}.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / f"depth/{index:03}.npy", np.full((8, 8), np.nan if index % 2 else 2.5))
    (tmp_path / "dataset.yaml").write_text("")
    train, val = Folder(tmp_path, "train"), Folder(tmp_path, "val")
    assert (train.tasks, train.classes) == (("depth",), {})
    assert 0.1 < len(val) / 200 < 0.3  # four sigma about a fifth
    assert sorted(train.names + val.names) == [f"{index:03}" for index in range(200)]
    for index, name in enumerate(train.names[:20]):
        assert (train[index]["depth"] == (0 if int(name) % 2 else 2.5)).all()
    save(tmp_path / "images/another.png", np.zeros((8, 8, 3), np.uint8))
    assert set(val.names) == set(Folder(tmp_path, "val").names) - {"another"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"train": 0.5, "val": 0.25, "test": 0.25}, {"train", "val", "test"}),
        ({"val": "lists/val.txt"}, {"train", "val"}),
        ({"val": "lists/val.txt", "test": 0.5}, {"train", "val", "test"}),
        ({"train": ["00", "01"]}, {"train"}),
    ],
)
def test_splits_may_be_lists_files_and_shares(tmp_path: Path, keys: dict, expected: set[str]) -> None:
    for index in range(40):
        save(tmp_path / f"images/{index:02}.png", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / f"depth/{index:02}.npy", np.ones((8, 8)))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val.txt").write_text("03\r\n04  \n\n")
    settings(tmp_path, splits=keys)
    assert set(splits_of_folder(tmp_path)) == expected
    read = [set(Folder(tmp_path, split).names) for split in splits_of_folder(tmp_path)]
    assert sum(map(len, read)) == len(set().union(*read)) == (2 if expected == {"train"} else 40)
    if "lists/val.txt" in keys.values():
        assert {"03", "04"} in read


@pytest.mark.parametrize(
    ("file", "values", "keys", "metres"),
    [
        ("a.png", np.array([[0, 1500, 65535]], np.uint16), {}, [0, 1.5, 65.535]),
        ("a.png", np.array([[0, 1500, 65535]], np.uint16), {"unit": "cm", "invalid": [65535]}, [0, 15, 0]),
        ("a.png", np.array([[0, 128, 255]], np.uint8), {"scale": 0.02, "invalid": [255]}, [0, 2.56, 0]),
        ("a.tif", np.array([[0, 1.5, np.nan]], np.float32), {}, [0, 1.5, 0]),
        ("a.tiff", np.array([[1, 2, 3]], np.int32), {"unit": "m"}, [1, 2, 3]),
        ("a.npy", np.array([[-1, 2.5, np.inf]]), {"invalid": [-1, float("inf")]}, [0, 2.5, 0]),
        ("a.npy", np.array([[9.9, 2.5, 1]], np.float32), {"invalid": [9.9], "scale": "1e-1"}, [0, 0.25, 0.1]),
        ("a.npy", np.array([[1, 2, 3]], np.int64), {}, [0.001, 0.002, 0.003]),
    ],
)
def test_depth_of_every_kind_becomes_metres(
    tmp_path: Path, file: str, values: np.ndarray, keys: dict, metres: list[float]
) -> None:
    save(tmp_path / "images/a.png", np.zeros((1, 3, 3), np.uint8))
    save(tmp_path / "depth" / file, values)
    settings(tmp_path, tasks={"depth": keys}, splits={"train": ["a"]})
    np.testing.assert_allclose(Folder(tmp_path)[0]["depth"][0], metres, rtol=1e-6)


def test_saliency_has_a_threshold(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", np.zeros((1, 4, 3), np.uint8))
    save(tmp_path / "saliency/a.png", np.array([[0, 50, 52, 200]], np.uint8))
    settings(tmp_path, tasks={"saliency": {"threshold": 0.2}}, splits={"train": ["a"]})
    assert Folder(tmp_path)[0]["saliency"].tolist() == [[0, 0, 1, 1]]


SETTINGS_MISTAKES = {
    "text": ("- a\n- b\n", r"dataset.yaml: holds \['a', 'b'\]; expected keys, some of name, splits"),
    "broken": ("tasks: {depth: [\n", "dataset.yaml: not YAML in line 2"),
    "binary": (b"\xff\xfe\x00", "dataset.yaml: not text in UTF-8"),
    "unknown key": ({"task": {}}, "dataset.yaml: task: unknown key; expected some of name, splits, tasks"),
    "unknown task": ({"tasks": {"edges": {}}}, "dataset.yaml: tasks.edges: unknown task; expected some of semseg"),
    "unknown key of a task": (
        {"tasks": {"depth": {"units": "m"}}},
        "tasks.depth.units: unknown key; expected some of unit",
    ),
    "no classes": ({"tasks": {"semseg": {}}}, "tasks.semseg.classes: missing; expected a list of names"),
    "a class that is no text": (
        {"tasks": {"semseg": {"classes": ["on", True]}}},
        r"semseg.classes: \['on', True\]; expected",
    ),
    "a class twice": ({"tasks": {"semseg": {"classes": ["a", "a"]}}}, "tasks.semseg.classes: "),
    "an invalid class": ({"tasks": {"semseg": {"classes": ["a"], "invalid": [0]}}}, "semseg.invalid: 0 is a class"),
    "first": ({"tasks": {"semseg": {"classes": ["a"], "first": 1.5}}}, "semseg.first: 1.5; expected the pixel value"),
    "colours": (
        {"tasks": {"semseg": {"classes": ["a"], "colours": [[1, 2, 300]]}}},
        r"semseg.colours: \[\[1, 2, 300\]\]; expected a list of \[r, g, b\]",
    ),
    "fewer colours": (
        {"tasks": {"semseg": {"classes": ["a", "b"], "colours": [[1, 2, 3]]}}},
        "semseg.colours: 1 for 2 classes",
    ),
    "too many classes": (
        {"tasks": {"semseg": {"classes": [f"c{i}" for i in range(9)], "first": 65530}}},
        "semseg.classes: 9 from pixel value 65530 on; 16 bits end at 65535",
    ),
    "unit": ({"tasks": {"depth": {"unit": "inch"}}}, "tasks.depth.unit: 'inch'; expected m, cm, mm"),
    "scale": ({"tasks": {"depth": {"scale": 0}}}, "tasks.depth.scale: 0; expected a number above 0"),
    "scale in words": ({"tasks": {"depth": {"scale": "small"}}}, "tasks.depth.scale: 'small'; expected"),
    "unit and scale": ({"tasks": {"depth": {"unit": "m", "scale": 1}}}, "tasks.depth.scale: given beside unit"),
    "intrinsics": (
        {"tasks": {"depth": {"intrinsics": {"focal": [1, 2]}}}},
        r"depth.intrinsics: \{'focal': \[1, 2\]\}; expected \{focal: \[fx, fy\]",
    ),
    "no intrinsics": (
        {"tasks": {"depth": {}, "normals": {"from": "depth"}}},
        "tasks.depth.intrinsics: missing, and normals are to come from depth",
    ),
    "no semseg": (
        {"tasks": {"boundary": {"from": "semseg"}}},
        "tasks.semseg: missing, and boundaries are to come from it",
    ),
    "boundary from depth": (
        {"tasks": {"boundary": {"from": "depth"}}},
        "boundary.from: 'depth'; expected semseg or parsing",
    ),
    "axes": ({"tasks": {"normals": {"axes": [1, 2, 1]}}}, r"normals.axes: \[1, 2, 1\]; expected three signs"),
    "threshold": (
        {"tasks": {"saliency": {"threshold": 127}}},
        "saliency.threshold: 127; expected a number between 0 and 1",
    ),
    "tolerance": ({"boundary_tolerance": 1}, "dataset.yaml: boundary_tolerance: 1; expected a fraction"),
    "wide tolerance": ({"boundary_tolerance": 0.03}, "boundary_tolerance: 0.03; expected .* above 0 and below 0.02"),
    "name": ({"name": "a\x1b[2J"}, "dataset.yaml: name: .*; expected no control characters"),
    "long name": ({"name": "a" * 201}, "dataset.yaml: name: 201 characters; expected 200 at most"),
    "long class": ({"tasks": {"semseg": {"classes": ["a" * 201]}}}, "a class of semseg: 201 characters; expected 200"),
    "tasks": ({"tasks": ["depth"]}, r"dataset.yaml: tasks: \['depth'\]; expected for each task its keys"),
    "split of an image that is not there": (
        {"splits": {"train": ["a", "z.png", "y"]}},
        r"dataset.yaml: splits.train: 'z.png' and 1 more are not in images/; expected .* such as 'a'",
    ),
    "split of numbers": ({"splits": {"train": [1]}}, r"splits: \{'train': \[1\]\}; expected for each split"),
    "no split file": ({"splits": {"val": "val.txt"}}, "splits.val: val.txt: no such file"),
    "share beside a list": ({"splits": {"train": ["a"], "val": 0.2}}, "splits.val: a share, but train is a list"),
    "shares": ({"splits": {"train": 0.5, "val": 0.2}}, r"splits: the shares add up to 0.7; expected 1 with train"),
    "empty split": ({"splits": {"train": []}}, "splits.train: none of 1 images"),
    "no such split": ({"splits": {"val": ["a"], "train": "t"}}, "splits.train: t: no such file"),
}


@pytest.mark.parametrize("name", SETTINGS_MISTAKES)
def test_a_mistake_in_the_settings_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    keys, message = SETTINGS_MISTAKES[name]
    save(tmp_path / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "depth/a.npy", np.ones((4, 4)))
    if isinstance(keys, dict):
        settings(tmp_path, **({"splits": {"train": ["a"]}} | keys))
    else:
        (tmp_path / "dataset.yaml").write_bytes(keys.encode() if isinstance(keys, str) else keys)
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(tmp_path)
    assert "\n" not in str(raised.value)
    assert "dataset.yaml" in str(raised.value)


FILE_MISTAKES = {
    "no settings": (
        lambda root: (root / "dataset.yaml").unlink(),
        r"dataset.yaml: cannot be read \(.*it holds boundary",
    ),
    "no images": (
        lambda root: (root / "images").rename(root / "photos"),
        r"images: no images \(no such folder\)",
    ),
    "unknown folder": (
        lambda root: (root / "boundary").rename(root / "edges"),
        "dataset.yaml: tasks.edges: unknown task, but .*edges holds files named as images; .* files: {semseg: 'edges/",
    ),
    "two images": (
        lambda root: save(root / "images/b.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        "images: holds b.jpg and b.png; expected one",
    ),
    "two labels": (
        lambda root: save(root / "depth/b.png", np.zeros((HEIGHT, WIDTH), np.uint16)),
        "depth: holds b.npy and b.png; expected one",
    ),
    "label out of range": (
        lambda root: save(root / "semseg/b.png", np.full((HEIGHT, WIDTH), 9, np.uint8)),
        "b.png: label 9; expected 1..3, and 0, 255 for unlabelled",
    ),
    "depth in another unit": (
        lambda root: save(root / "depth/b.npy", np.full((HEIGHT, WIDTH), 9e6)),
        r"b.npy: depths 0..9000; expected metres in 0..200; check the unit",
    ),
    "depth with colours": (
        lambda root: (
            (root / "depth/b.npy").unlink(),
            save(root / "depth/b.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        ),
        "depth/b.png: pixels of mode RGB; expected one channel of depth",
    ),
    "other size": (
        lambda root: save(root / "parsing/b.png", np.zeros((HEIGHT, 9), np.uint8)),
        "b.png: 48x9 pixels, but .*images/b.png has 48x64 pixels",
    ),
    "saliency": (
        lambda root: save(root / "saliency/b.npy", np.full((HEIGHT, WIDTH), -1.0)),
        "b.npy: shape .*; expected saliency",
    ),
    "cut": (
        lambda root: (root / "normals/b.npy").write_bytes((root / "normals/b.npy").read_bytes()[:500]),
        "normals/b.npy: not a whole NumPy file",
    ),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_a_mistake_in_the_files_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, message = FILE_MISTAKES[name]
    write_six(tmp_path)
    spoil(tmp_path)
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(tmp_path, "val")[0]
    assert "\n" not in str(raised.value)


def test_wrong_arguments_and_8_bit_depth_without_a_scale_are_told(tmp_path: Path) -> None:
    write_six(tmp_path)
    with pytest.raises(MistakeError, match=r"split 'test': unknown to .*dataset.yaml; expected one of train, val"):
        Folder(tmp_path, "test")
    with pytest.raises(MistakeError, match="unknown task 'edges'"):
        Folder(tmp_path, tasks=("edges",))
    with pytest.raises(MistakeError, match=r"nowhere/dataset.yaml: cannot be read \(.*no such folder\)"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(MistakeError, match=r"nowhere/dataset.yaml"):
        splits_of_folder(tmp_path / "nowhere")
    settings(tmp_path, tasks=SIX | {"depth": {}}, splits=LISTS)
    save(tmp_path / "depth/room a.1.PNG", np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(MistakeError, match=r"PNG: 8-bit depth; give tasks.depth.scale in dataset.yaml"):
        Folder(tmp_path)[0]


def test_other_folders_and_hidden_files_are_left_alone(tmp_path: Path) -> None:
    write_six(tmp_path)
    for file in ("notes/readme.txt", "images/.DS_Store", "semseg/Thumbs.db", ".git/b.png", "images/._b.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"\0")
    assert Folder(tmp_path, "val")[0]["semseg"].shape == (HEIGHT, WIDTH)
