from __future__ import annotations

import io
import json
import os
import socket
import struct
from io import StringIO

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from rich.console import Console

from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset, open_folder
from mtlsi.data.readers.prepared import Prepared, image_path, pack, unpack
from mtlsi.data.scenes.dataset import Scenes
from mtlsi.data.transforms import resize
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS


def run(root, out, **options):
    prepare(root, out, num_workers=0, console=Console(file=StringIO()), **options)


def assert_alike(sample, expected):
    """Equal where it is exact, within the steps that ``prepared`` promises where it is not."""
    assert sample.keys() == expected.keys()
    for name, x in expected.items():
        assert (sample[name].dtype, sample[name].shape) == (x.dtype, x.shape), name
        if name == "depth":
            assert (sample[name] - x).abs().max() <= x.max() / 65535
            assert torch.equal(sample[name] > 0, x > 0)
        elif name == "normals":
            cosine = (sample[name] * x).sum(0)[x.norm(dim=0) > 0]
            assert torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).max() < 0.5
            assert torch.equal(sample[name].norm(dim=0) > 0.5, x.norm(dim=0) > 0.5)
        else:
            assert torch.equal(sample[name], x), name


def test_every_split_is_what_the_original_is(nyud_root, tmp_path, untouched):
    originals = {split: open_folder(nyud_root, split) for split in ("train", "val")}
    expected = {split: [dataset[i] for i in range(2)] for split, dataset in originals.items()}
    untouched()
    run(nyud_root, tmp_path / "fast")
    for split, original in originals.items():
        # recipes go on naming the data set as before
        dataset = open_dataset(DataConfig(name="nyud", root=str(tmp_path / "fast")), split)
        assert isinstance(dataset, Prepared)
        assert (dataset.names, dataset.tasks, dataset.classes) == (original.names, original.tasks, original.classes)
        assert (dataset.derived, dataset.boundary_tolerance) == (original.derived, original.boundary_tolerance)
        assert original.layout in dataset.layout
        for index, sample in enumerate(expected[split]):
            jpeg = dict(dataset[index])
            # torchvision's and Pillow's JPEG decoders may round a pixel differently
            assert (jpeg.pop("image").int() - sample["image"].int()).abs().max() <= 3
            assert_alike(jpeg, {name: x for name, x in sample.items() if name != "image"})
    assert set(Prepared(tmp_path / "fast", tasks=("depth",))[0]) == {"image", "depth"}


def test_all_six_tasks_and_images_without_a_file_go_through(tmp_path):
    room = Scenes(1, label_set="all", size_hw=(60, 80))[0]
    room["semseg"][:9], room["depth"][:9], room["normals"][:, :9] = 255, 0, 0
    assert_alike(unpack(tmp_path, pack(room), tuple(TASKS)), room)
    without = {"image": room["image"], "depth": torch.zeros(60, 80)}
    assert_alike(unpack(tmp_path, pack(without), tuple(TASKS)), without)


def test_what_earlier_versions_wrote_gives_the_values_that_it_gave(tmp_path):
    """Their arrays: the distances' steps once had one axis or none."""
    depth, normals = (
        np.array([[0, 1, 65535]], np.uint16),
        np.array([[[0, 127, -90]], [[0, 0, 90]], [[0, 0, 3]]], np.int8),
    )
    image = np.arange(9, dtype=np.uint8).reshape(3, 1, 3)
    old = {"size": np.array([1, 3]), "image": image, "depth": depth, "normals": normals}
    for step in (np.full(1, 1.5e-4, np.float32), np.array(1.5e-4, np.float32)):
        content = safetensors.numpy.save(old | {"depth.step": step})
        sample = unpack(tmp_path, content, ("depth", "normals"))
        np.testing.assert_array_equal(sample["image"], image)
        np.testing.assert_array_equal(sample["depth"], depth * np.float32(1.5e-4))
        length = np.maximum(np.linalg.norm(normals.astype(np.float32), axis=0), 1)
        np.testing.assert_allclose(sample["normals"], normals / length, rtol=1e-6)


H, W = 6, 8


def jpeg_of(height, width):
    """A JPEG that says it is as large."""
    file = io.BytesIO()
    Image.new("RGB", (W, H)).save(file, "JPEG")
    content = file.getvalue()
    at = content.index(b"\xff\xc0") + 5
    return np.frombuffer(content[:at] + struct.pack(">HH", height, width) + content[at + 4 :], np.uint8)


DEPTH, NORMALS = np.ones((H, W), np.uint16), np.ones((3, H, W), np.int8)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": np.ones((5, H, W), np.uint16)},
        {"depth": np.ones((W, H), np.uint16)},
        {"depth": np.ones((H, W), np.float64)},
        {"depth": np.ones((H, W), np.int16)},
        {"depth.step": np.full(1, -5, np.float32)},
        {"depth.step": np.full(1, np.inf, np.float32)},
        {"depth.step": np.full(1, np.nan, np.float32)},
        {"depth.step": np.full(1, 1e35, np.float32)},
        {"depth.step": np.ones(2, np.float32)},
        {"normals": np.ones((3, 2, H, W), np.int8)},
        {"normals": np.full((3, H, W), np.nan, np.float32)},
        {"image": np.zeros((3, 2, H, W), np.uint8)},
        {"image": np.zeros((H, W, 3), np.uint8)},
        {"image": np.zeros((3, H, W), np.float32)},
        {"size": np.array([np.inf, W])},
        {"size": np.array([np.nan, W])},
        {"size": np.array([60_000, 60_000])},
        {"image.jpg": jpeg_of(60_000, 60_000)},
        {"image.jpg": jpeg_of(H, W + 1)},
    ],
    ids=str,
)
def test_shapes_and_numbers_that_were_never_written_are_told(tmp_path, change):
    sound = {
        "size": np.array([H, W]),
        "image": np.zeros((3, H, W), np.uint8),
        "depth": DEPTH,
        "depth.step": np.ones(1, np.float32),
        "normals": NORMALS,
    }
    assert set(unpack(tmp_path, safetensors.numpy.save(sound), ("depth", "normals"))) == {"image", "depth", "normals"}
    with pytest.raises(MistakeError, match=r"not a whole prepared image; run mtlsi data prepare again"):
        unpack(tmp_path, safetensors.numpy.save(sound | change), ("depth", "normals"))


def test_names_that_lead_out_of_the_folder_are_told_before_anything_is_written(nyud_root, tmp_path, monkeypatch):
    def opened(*args, **options):
        dataset = open_folder(*args, **options)
        dataset.names[-1] = f"../images/{dataset.names[-1]}"
        return dataset

    monkeypatch.setattr("mtlsi.dataset_tools.prepare.open_folder", opened)
    with pytest.raises(MistakeError, match="leads out of its folder"):
        run(nyud_root, tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


def test_a_size_shrinks_images_and_labels_as_training_does(nyud_root, tmp_path):
    expected = resize(open_folder(nyud_root, "train")[1], (24, 32))
    run(nyud_root, tmp_path / "fast", size_hw=(24, 32))
    assert_alike(Prepared(tmp_path / "fast", "train")[1], expected)


def test_what_was_begun_is_finished_and_what_is_finished_stays(nyud_root, tmp_path):
    out = tmp_path / "fast"
    run(nyud_root, out)
    whole = {path.name: path.read_bytes() for path in (out / "pictures").iterdir()}
    image_path(out, "0003").unlink()
    index = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps(index | {"complete": False}))
    with pytest.raises(MistakeError, match="not finished; run the same mtlsi data prepare again"):
        Prepared(out, "train")
    times = {path.name: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    run(nyud_root, out)
    assert {path.name: path.read_bytes() for path in (out / "pictures").iterdir()} == whole
    assert {name: (out / "pictures" / name).stat().st_mtime_ns for name in times} == times
    assert len(Prepared(out, "val")) == 2


def test_of_two_calls_at_once_the_second_is_refused(nyud_root, tmp_path):
    holder = json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": 0})
    (tmp_path / ".lock").write_text(holder)
    with pytest.raises(MistakeError, match=f"is being prepared by process {os.getppid()} on"):
        run(nyud_root, tmp_path, size_hw=(24, 32))
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {".lock": holder}


def test_a_call_that_was_killed_while_it_began_is_begun_again(nyud_root, tmp_path):
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast/.0123.part").write_text("{")  # half of prepared.json
    run(nyud_root, tmp_path / "fast")
    assert len(Prepared(tmp_path / "fast", "val")) == 2
    assert not (tmp_path / "fast/.lock").exists()


def test_another_folder_is_not_written_into(nyud_root, tmp_path):
    run(nyud_root, tmp_path / "fast")
    with pytest.raises(MistakeError, match="holds something else"):
        run(nyud_root, tmp_path / "fast", size_hw=(24, 32))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(MistakeError, match="holds something else"):
        run(nyud_root, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_broken_file_is_named_and_the_folder_is_not_called_finished(nyud_root, tmp_path):
    (nyud_root / "images/0002.jpg").write_bytes(b"no image")
    with pytest.raises(MistakeError, match=r"0002.jpg: not a whole image"):
        run(nyud_root, tmp_path / "fast")
    with pytest.raises(MistakeError, match="not finished"):
        Prepared(tmp_path / "fast")


def test_a_broken_prepared_folder_is_named(nyud_root, tmp_path):
    out = tmp_path / "fast"
    run(nyud_root, out)
    with pytest.raises(MistakeError, match="split 'test': unknown"):
        Prepared(out, "test")
    with pytest.raises(MistakeError, match="unknown task 'saliency'"):
        Prepared(out, tasks=("saliency",))
    path = image_path(out, "0001")
    content = path.read_bytes()
    for broken in (b"", content[: len(content) // 2], content[:8] + b"x" * (len(content) - 8)):
        path.write_bytes(broken)
        with pytest.raises(MistakeError, match=r"0001.safetensors: not a whole prepared image"):
            Prepared(out)[0]
    path.unlink()
    with pytest.raises(MistakeError, match=r"0001.safetensors: cannot be read"):
        Prepared(out)[0]
    (out / "prepared.json").write_text('{"version": 0}')
    with pytest.raises(MistakeError, match="version 0; expected 1"):
        Prepared(out)
    np.testing.assert_equal((out / "prepared.json").write_text("{"), 1)
    with pytest.raises(MistakeError, match=r"prepared.json: cannot be read"):
        Prepared(out)


@pytest.mark.parametrize("size_hw", [(0, 64), (64, -1), (1, 64), (20_000, 64), (10**400, 1)])
def test_a_size_that_cannot_be_is_told_before_anything_is_written(nyud_root, tmp_path, size_hw):
    with pytest.raises(MistakeError, match=r"--size .*; expected (.* of 2 pixels or more|at most 16384 a side)"):
        prepare(nyud_root, tmp_path / "fast", size_hw=size_hw, num_workers=0)
    assert not (tmp_path / "fast").exists()


def test_a_prepared_folder_is_opened_as_the_data_set_it_was_made_from_alone(nyud_root, tmp_path):
    run(nyud_root, tmp_path / "fast")
    root = str(tmp_path / "fast")
    assert len(open_dataset(DataConfig(name="nyud", root=root), "val")) == 2
    with pytest.raises(
        MistakeError, match=r"data pascal, but .*fast was prepared from nyud; name that, or prepare pascal: "
    ):
        open_dataset(DataConfig(name="pascal", root=root), "val")
    index = json.loads((tmp_path / "fast/prepared.json").read_text())
    assert index.pop("data") == "nyud"
    (tmp_path / "fast/prepared.json").write_text(json.dumps(index))  # as older ones are
    assert len(open_dataset(DataConfig(name="pascal", root=root), "val")) == 2
    run(nyud_root, tmp_path / "fast")  # and are gone on with
    with pytest.raises(MistakeError, match="unknown data set 'nyu'; expected one of nyud, pascal"):
        prepare(nyud_root, tmp_path / "other", data="nyu", num_workers=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tasks": {"train": ["height"], "val": ["height"]}}, "unknown task 'height'"),
        ({"tasks": {"train": [], "val": []}}, "expected at least one"),
        ({"splits": {"train": [], "val": []}}, "no images of the split train"),
        ({"colours": {"semseg": 5}}, r"semseg's colours: 5; expected a list of \[red"),
        ({"colours": {"semseg": [[1, 2, 3]]}}, "semseg: 1 colours for 40 classes"),
        ({"colours": {"semseg": [[1e9, 2, 3]] * 40}}, "a colour of semseg: .*; expected .* in 0..255"),
        ({"colours": {"semseg": [["a", "b"]] * 40}}, "a colour of semseg: .*; expected .* in 0..255"),
        ({"colours": {"height": []}}, "'height' is missing"),
        ({"layout": "nyud\x1b[2J"}, "layout: .*; expected no control characters"),
        ({"layout": "n" * 401}, "layout: 401 characters; expected 400 at most"),
        ({"data": "nyud\x1b[2J"}, "data: .*; expected no control characters"),
        ({"boundary_tolerance": 0}, "boundary_tolerance is 0; expected a share"),
        ({"boundary_tolerance": 0.02}, "boundary_tolerance is 0.02; expected .* below 0.02"),
        ({"boundary_tolerance": 1.5}, "boundary_tolerance is 1.5"),
        ({"boundary_tolerance": "x"}, "boundary_tolerance' is 'x'"),
        ({"own_tasks": [{"name": f"own_{i}", "kind": "value"} for i in range(65)]}, "65 records of tasks; expected 64"),
    ],
)
def test_an_index_that_was_never_written_is_told(nyud_root, tmp_path, change, told):
    run(nyud_root, tmp_path / "fast")
    index = json.loads((tmp_path / "fast/prepared.json").read_text())
    (tmp_path / "fast/prepared.json").write_text(json.dumps(index | change))
    with pytest.raises(MistakeError, match=told):
        Prepared(tmp_path / "fast", "train")


@pytest.mark.parametrize(("task", "value"), [("semseg", 40), ("boundary", 2)])
def test_a_label_beyond_its_classes_is_told(nyud_root, tmp_path, task, value):
    run(nyud_root, tmp_path / "fast")
    dataset = Prepared(tmp_path / "fast", "train")
    sample = dataset[0]
    for last, sound in ((value - 1, True), (255, True), (value, False)):
        sample[task][0, 0] = last
        image_path(tmp_path / "fast", dataset.name(0)).write_bytes(pack(sample))
        if sound:
            assert dataset[0][task][0, 0] == last
        else:
            with pytest.raises(MistakeError, match=f"{task} beyond its {value} classes"):
                dataset[0]
