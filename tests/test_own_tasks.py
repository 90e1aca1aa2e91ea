"""A new task of every kind, declared in ``dataset.yaml`` alone, from files on disk to predicted pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import mtlsi
from mtlsi import kinds
from mtlsi.data.batches import training_batches
from mtlsi.data.datasets import constant_predictions, open_dataset
from mtlsi.data.readers.folder import Folder
from mtlsi.data.readers.folder_settings import read_settings
from mtlsi.data.readers.prepared import Prepared
from mtlsi.data.sampling import RunSampler
from mtlsi.data.transforms import flip, pad_centred, resize
from mtlsi.dataset_tools.check import check
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.evaluation.field_files import save_for_field
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.prediction.files import save_prediction
from mtlsi.tasks import BUILT_IN, KINDS, TASKS, own_records

SIDE, NUM_IMAGES = 64, 6
MATERIALS = ["wood", "metal", "cloth"]
DECLARED = {
    "material": {"kind": "classes", "classes": MATERIALS, "first": 1, "invalid": [0]},
    "wetness": {"kind": "strength", "threshold": 0.3},
    "cracks": {"kind": "strength", "thin": True},
    "albedo": {"kind": "value", "channels": 3, "range": [0, 1]},
    "curvature": {"kind": "value", "channels": 2, "loss": "smooth_l1", "title": "principal curvatures"},
    "heat": {"kind": "value", "unit": "K", "scale": 0.01, "invalid": [0], "loss": "l2"},
    "lidar": {"kind": "distance", "unit": "cm"},
    "flow": {"kind": "direction", "axes": [1, -1, 1], "loss_weight": 2},
}
SCORES = {
    "material": "mIoU", "wetness": "maxF", "cracks": "odsF", "albedo": "RMSE", "curvature": "RMSE", "heat": "RMSE",
    "lidar": "RMSE", "flow": "mErr",
}  # fmt: skip


def smooth(draw, *channels):
    """Random numbers in 0..1, constant on squares of 8 pixels, (SIDE SIDE) or (SIDE SIDE c)."""
    return draw.random((SIDE // 8, SIDE // 8, *channels)).repeat(8, 0).repeat(8, 1)


def stored_labels(index):
    """What the files of one image hold, and what must be read from them, by task."""
    draw = np.random.default_rng(index)
    stored, read = {}, {}
    stored["material"] = (smooth(draw) * 4).astype(np.uint8)
    read["material"] = np.where(stored["material"] == 0, 255, stored["material"] - 1)
    stored["wetness"] = (smooth(draw) * 255).astype(np.uint8)
    stored["wetness"][stored["wetness"] == 127] = 126
    stored["wetness"][0, :2] = 127, 255
    read["wetness"] = np.where(stored["wetness"] == 127, 255, stored["wetness"] > 76)
    stored["cracks"] = (draw.random((SIDE, SIDE)) > 0.98) * 1.0
    read["cracks"] = stored["cracks"]
    stored["albedo"] = (smooth(draw, 3) * 255).astype(np.uint8)
    read["albedo"] = stored["albedo"].transpose(2, 0, 1) / 255
    stored["curvature"] = smooth(draw, 2).astype(np.float32) * 8 - 4
    stored["curvature"][3, 5, 1] = np.nan
    read["curvature"] = stored["curvature"].transpose(2, 0, 1).copy()
    read["curvature"][:, 3, 5] = np.nan
    stored["heat"] = (28000 + smooth(draw) * 2000).astype(np.uint16)
    stored["heat"][7, 7] = 0
    read["heat"] = np.where(stored["heat"] == 0, np.nan, stored["heat"] / 100)
    stored["lidar"] = (smooth(draw) * 900).astype(np.uint16)
    read["lidar"] = stored["lidar"] / 100
    vectors = smooth(draw, 3) - 0.5
    stored["flow"] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    stored["flow"][9, 9] = 0
    read["flow"] = (stored["flow"] * (1, -1, 1)).transpose(2, 0, 1)
    return stored, read


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "rooms"
    for index in range(NUM_IMAGES):
        image = (smooth(np.random.default_rng(100 + index), 3) * 255).astype(np.uint8)
        for task, values in {"images": image, **stored_labels(index)[0]}.items():
            (root / task).mkdir(parents=True, exist_ok=True)
            if values.dtype.kind == "f":
                np.save(root / task / f"room_{index}.npy", values)
            else:
                Image.fromarray(values).save(root / task / f"room_{index}.png")
    lists = {"train": [f"room_{i}" for i in range(4)], "val": ["room_4", "room_5"]}
    (root / "dataset.yaml").write_text(yaml.safe_dump({"splits": lists, "tasks": DECLARED}, sort_keys=False))
    return root


@pytest.fixture(scope="module")
def run_config(rooms, tiny_config):
    data = replace(tiny_config.data, name="folder", root=str(rooms), size_hw=(64, 64), image_hw=(SIDE, SIDE))
    return replace(tiny_config, data=data, train=replace(tiny_config.train, iterations=2, checkpoint_every=0))


@pytest.fixture(scope="module")
def run(run_config, tmp_path_factory):
    """A training of two steps: its folder, its scores and what it printed."""
    out, printed = tmp_path_factory.mktemp("own_run") / "run", StringIO()
    scores = mtlsi.train(run_config, out, console=Console(file=printed, width=200))
    return out, scores, printed.getvalue()


def test_files_are_read_as_they_were_written(rooms):
    dataset = Folder(rooms, "train")
    assert dataset.tasks == tuple(DECLARED)
    assert dataset.classes == {"material": tuple(MATERIALS)}
    for index in range(4):
        item = dataset[index]
        for task, expected in stored_labels(index)[1].items():
            assert item[task].dtype == kinds.of(task).label_dtype(), task
            np.testing.assert_allclose(item[task], expected, rtol=1e-6, atol=1e-6, err_msg=task)
    assert TASKS["curvature"].title == "principal curvatures"
    assert TASKS["heat"].unit == "K"
    assert TASKS["flow"].loss_weight == 2


def test_labels_move_with_their_image(rooms):
    sample = Folder(rooms, "train")[0]
    mirrored = flip(sample)
    for task in DECLARED:
        expected = sample[task].numpy()[..., ::-1].copy()
        if task == "flow":
            expected[0] *= -1
        np.testing.assert_array_equal(mirrored[task], expected, err_msg=task)
    larger = resize(sample, (2 * SIDE, 2 * SIDE), zoom=2.0)
    for task in DECLARED:
        expected = sample[task].numpy().repeat(2, -2).repeat(2, -1)
        np.testing.assert_array_equal(larger[task], expected / 2 if task == "lidar" else expected, err_msg=task)
    smaller = resize(sample, (SIDE // 2, SIDE // 2))
    blocks = sample["cracks"].numpy().reshape(SIDE // 2, 2, SIDE // 2, 2)
    np.testing.assert_array_equal(smaller["cracks"], blocks.max((1, 3)))
    padded = pad_centred(sample | {"image": sample["image"].float()}, (SIDE + 8, SIDE + 2))
    for task in DECLARED:
        valid = kinds.of(task).valid(padded[task])
        assert valid.shape == (SIDE + 8, SIDE + 2)
        assert torch.equal(valid[4:-4, 1:-1], kinds.of(task).valid(sample[task])), task
        assert valid.sum() == valid[4:-4, 1:-1].sum(), task


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_know_the_tasks(run_config, start):
    dataset = open_dataset(run_config.data, "train")

    def read(num_workers):
        sampler = RunSampler(4, 2, seed=0, start=0, stop=1)
        config = replace(run_config.data, num_workers=num_workers)
        loader = training_batches(dataset, config, sampler, seed=0)
        if num_workers:
            loader.multiprocessing_context = start
        return next(iter(loader))

    here, there = read(0), read(1)
    assert set(here) == {"image", *DECLARED}
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, rtol=0, atol=0, equal_nan=True)


def test_the_best_constant_is_a_prediction(run_config):
    dataset = open_dataset(run_config.data, "train")
    constants, model = constant_predictions(dataset), Constant(dataset)
    heat = np.concatenate([stored_labels(i)[1]["heat"].ravel() for i in range(4)])
    assert float(constants["heat"]) == pytest.approx(np.nanpercentile(heat, 50, method="lower"), rel=1e-6)
    assert constants["albedo"].shape == (3,)
    assert constants["curvature"].shape == (2,)
    for task, raw in model(torch.zeros(1, 3, 8, 8), dataset.tasks).final.items():
        decoded = mtlsi.decode(task, raw)[0, ..., 0, 0]
        torch.testing.assert_close(decoded.float(), constants[task].float(), atol=2e-4, rtol=1e-5, msg=task)


def test_every_task_is_trained_evaluated_and_drawn(run):
    out, scores, printed = run
    assert {task: score for task, values in scores.items() for score in values if score == SCORES[task]} == SCORES
    assert all(np.isfinite(scores[task][score]) for task, score in SCORES.items() if task != "cracks")
    for task in DECLARED:
        assert f"{task} {SCORES[task]}" in printed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line[f"loss/{task}"]) for task in DECLARED for line in lines if "loss" in line)
    sheets = list((out / "samples").glob("*.png"))
    assert len(sheets) == 2
    with Image.open(sheets[0]) as sheet:
        assert sheet.width > len(DECLARED) * 300
    assert (out / "curves.png").is_file()


def test_scores_of_a_constant_are_those_of_plain_counting(run_config):
    train_set, val_set = (open_dataset(run_config.data, split) for split in ("train", "val"))
    scores = evaluate(Constant(train_set), val_set, run_config.data)
    constants = {task: value.numpy() for task, value in constant_predictions(train_set).items()}
    truth = {task: [stored_labels(i)[1][task] for i in (4, 5)] for task in DECLARED}
    for task in ("albedo", "curvature", "heat"):
        errors = np.concatenate(
            [(x.reshape(len(np.atleast_1d(constants[task])), -1).T - constants[task]) for x in truth[task]]
        )
        assert scores[task]["RMSE"] == pytest.approx(np.sqrt(np.nanmean(errors**2)), rel=1e-5), task
        assert scores[task]["MAE"] == pytest.approx(np.nanmean(np.abs(errors)), rel=1e-5), task


def test_predictions_are_arrays_and_files(run, rooms, tmp_path):
    out, _, _ = run
    model = MTLSINet.from_pretrained(out)
    image = np.asarray(Image.open(rooms / "images/room_5.png"))[:50]
    prediction = mtlsi.Predictor(model)(image)
    shapes = {task: array.shape for task, array in prediction.items()}
    assert shapes == {
        task: (50, SIDE, *{"albedo": (3,), "curvature": (2,), "flow": (3,)}.get(task, ())) for task in DECLARED
    }
    assert prediction["material"].dtype == np.uint8
    assert all(array.dtype == np.float32 for task, array in prediction.items() if task != "material")
    assert 0 <= prediction["albedo"].min() <= prediction["albedo"].max() <= 1
    assert prediction["lidar"].min() >= 0
    np.testing.assert_allclose(np.linalg.norm(prediction["flow"], axis=-1), 1, atol=1e-5)
    files = {path.name for path in save_prediction(prediction, image, tmp_path, "a", model.classes)}
    expected = {f"a_{task}.{suffix}" for task in DECLARED for suffix in ("npy", "png")}
    assert files == expected | {"a_material_index.png", "a_lidar_mm.png", "a_panel.png"}
    for task, array in prediction.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"a_{task}.npy"), array)


def test_the_fields_files_hold_the_predictions(rooms, tmp_path):
    labels = {task: x.numpy() for task, x in Folder(rooms, "val")[0].items() if task != "image"}
    save_for_field(tmp_path, "a", labels)
    np.testing.assert_array_equal(np.load(tmp_path / "albedo/a.npy"), labels["albedo"].transpose(1, 2, 0))
    np.testing.assert_array_equal(np.load(tmp_path / "heat/a.npy"), labels["heat"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "material/a.png")), labels["material"])


def test_data_check_and_prepare_take_them(rooms, tmp_path):
    report = check(rooms, num_workers=0, console=Console(file=StringIO()))
    assert report.problems == []
    values = {count.task: count.values for count in report.counts if count.split == "train"}
    assert values["material"] == "3 of 3 classes"
    assert float(values["heat"].split("..")[0]) >= 280
    prepare(rooms, tmp_path / "fast", num_workers=0, console=Console(file=StringIO()))
    whole = Folder(rooms, "train")[1]
    for task in DECLARED:
        del TASKS[task]
    fast = Prepared(tmp_path / "fast", "train")
    assert fast.tasks == tuple(DECLARED)
    item = fast[1]
    for task in DECLARED:
        tolerance = {"lidar": 1e-3, "flow": 0.01}.get(task, 0)
        torch.testing.assert_close(item[task], whole[task], rtol=0, atol=tolerance, equal_nan=True, msg=task)


def test_more_classes_than_8_bits_hold_never_wrap(tmp_path, tiny_config):
    names = [f"plant {i}" for i in range(300)]
    (tmp_path / "images").mkdir()
    (tmp_path / "plant").mkdir()
    label = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) % 300
    label[0, 0] = 65535
    for name, suffix in (("a", "png"), ("b", "npy")):
        Image.fromarray(np.full((SIDE, SIDE, 3), 9, np.uint8)).save(tmp_path / f"images/{name}.png")
        path = tmp_path / f"plant/{name}.{suffix}"
        Image.fromarray(label).save(path) if suffix == "png" else np.save(path, label)
    keys = {"tasks": {"plant": {"kind": "classes", "classes": names}}, "splits": {"train": ["a", "b"]}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(keys))
    dataset = Folder(tmp_path)
    for item in dataset:
        np.testing.assert_array_equal(item["plant"], label)
        assert kinds.of("plant").valid(item["plant"]).sum() == SIDE * SIDE - 1
    config = replace(tiny_config.data, name="folder", root=str(tmp_path), image_hw=None)
    model = create_model("tiny", tasks=("plant",), classes=dataset.classes, input_size=(SIDE, SIDE))
    batch = next(iter(training_batches(dataset, config, RunSampler(2, 2, seed=0, start=0, stop=1), seed=0)))
    out = model(batch["image"])
    total, _ = MultiTaskLoss(("plant",))(out.final, out.coarse, batch)
    assert torch.isfinite(total)
    scores = evaluate(model, dataset, config)
    assert len([name for name in scores["plant"] if name.startswith("IoU/")]) == 300
    decoded = mtlsi.decode(
        "plant", torch.nn.functional.one_hot(torch.tensor([[299]]), 300).movedim(-1, 1)[..., None].float()
    )
    assert decoded.item() == 299
    predicted = label.astype(np.int32) % 300
    files = save_prediction({"plant": predicted}, np.zeros((SIDE, SIDE, 3), np.uint8), tmp_path / "out", "a")
    assert "a_plant_index.png" in {path.name for path in files}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/a_plant_index.png")), predicted)


MISTAKES = {
    "kind": ({"kind": "colour"}, "tasks.mine.kind: 'colour'; expected classes, strength, value, distance, direction"),
    "no kind": (
        {"channels": 3},
        "tasks.mine: unknown task; expected some of semseg, .* or for a task of your own its kind",
    ),
    "loss": ({"kind": "value", "loss": "miou"}, "tasks.mine.loss: 'miou'; expected l1, l2, smooth_l1"),
    "metric": ({"kind": "value", "metric": "miou"}, "tasks.mine.metric: 'miou'; expected value_error"),
    "key": ({"kind": "value", "colour": 3}, "tasks.mine.colour: unknown key; expected some of kind, title"),
    "channels": ({"kind": "value", "channels": 0}, "tasks.mine.channels: 0; expected a whole number in 1..1024"),
    "channels of a direction": ({"kind": "direction", "channels": 2}, "tasks.mine.channels: unknown key"),
    "range": ({"kind": "value", "range": [1, 0]}, r"tasks.mine.range: \[1, 0\]; expected \[low, high\], low first"),
    "no classes": ({"kind": "classes"}, "tasks.mine.classes: missing; expected a list of names"),
    "not keys": (["value"], r"tasks.mine: unknown task"),
}


def a_folder(root, label, suffix="npy", name="mine", **keys):
    for folder in ("images", name):
        (root / folder).mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / "images/a.png")
    path = root / name / f"a.{suffix}"
    np.save(path, label) if suffix == "npy" else Image.fromarray(label).save(path)
    (root / "dataset.yaml").write_text(yaml.safe_dump({"splits": {"train": ["a"]}, "tasks": keys}))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_declaration_is_told_in_one_line(tmp_path, name):
    keys, message = MISTAKES[name]
    a_folder(tmp_path, np.zeros((4, 6)), mine=keys)
    with pytest.raises(MistakeError, match="dataset.yaml: " + message) as raised:
        Folder(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["image", "my-task", "values"])
def test_a_name_that_no_task_can_have_is_told(tmp_path, name):
    a_folder(tmp_path, np.zeros((4, 6)), **{name: {"kind": "value"}})
    with pytest.raises(MistakeError, match=f"dataset.yaml: tasks.{name}: task '{name}'.*expected"):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("keys", "label", "suffix", "message"),
    [
        ({"kind": "value", "channels": 3}, np.zeros((4, 6, 2)), "npy", r"\[4, 6, 2\]; expected mine \(height, width, 3\)"),
        ({"kind": "value"}, np.zeros((4, 6, 3), np.uint8), "png", r"\[4, 6, 3\]; expected mine \(height, width\)"),
        ({"kind": "value", "channels": 4}, np.zeros((4, 6, 4), np.uint8), "png", "mode RGBA; expected grey or RGB"),
        ({"kind": "value", "range": [0, 1]}, np.full((4, 6), 3.0), "npy", r"values 3..3; expected 0..1"),
        ({"kind": "classes", "classes": ["a", "b"]}, np.full((4, 6), 2), "npy", "label 2; expected 0..1, and 255"),
        ({"kind": "classes", "classes": ["a", "b"]}, np.full((4, 6), -1), "npy", "label -1; expected 0..1, and 255"),
        ({"kind": "classes", "classes": ["a", "b"]}, np.full((4, 6), 0.5), "npy", "expected whole numbers"),
        ({"kind": "distance"}, np.zeros((4, 6), np.uint8), "png", "8-bit depth; give tasks.mine.scale"),
        ({"kind": "direction"}, np.ones((4, 6, 3)) * 9, "npy", "expected unit vectors"),
        ({"kind": "strength"}, np.full((4, 6), -1.0), "npy", r"expected mine \(height, width\) in 0..1"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_its_declaration_is_named(tmp_path, keys, label, suffix, message):
    a_folder(tmp_path, label, suffix, mine=keys)
    with pytest.raises(MistakeError, match=message) as raised:
        Folder(tmp_path)[0]
    assert str(raised.value).startswith(str(tmp_path / "mine"))


def test_a_folder_that_nothing_declares_is_told_how_to(tmp_path):
    a_folder(tmp_path, np.zeros((4, 6)), name="smell")
    with pytest.raises(MistakeError, match=r"tasks\.smell: unknown task.*declare a task of your own with its kind"):
        Folder(tmp_path)


def test_a_task_registered_in_python_needs_no_declaration(tmp_path):
    mtlsi.register_task(mtlsi.Task("disparity", kind="value", unit="px"))
    a_folder(tmp_path, np.full((4, 6), 2.5), name="disparity")
    dataset = Folder(tmp_path)
    assert dataset.tasks == ("disparity",)
    assert (dataset[0]["disparity"] == 2.5).all()
    assert own_records(("depth", "disparity"))[0]["unit"] == "px"


def test_the_example_of_the_docs_is_read(tmp_path):
    text = (Path(__file__).parents[1] / "docs/own_data.md").read_text()
    declared = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "dataset.yaml").write_text(declared)
    own = read_settings(tmp_path).own
    assert {task.kind for task in own.values()} == set(KINDS)
    assert (own["albedo"].channels, own["albedo"].range) == (3, (0, 1))


PROGRAM = """
import json, sys
import mtlsi
prediction = mtlsi.Predictor(mtlsi.MTLSINet.from_pretrained(sys.argv[1]))(sys.argv[2])
print(json.dumps({name: array.shape for name, array in prediction.items()}))
"""


def test_a_model_folder_alone_rebuilds_the_model(run, rooms):
    command = [sys.executable, "-c", PROGRAM, str(run[0]), str(rooms / "images/room_0.png")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    shapes = json.loads(done.stdout.splitlines()[-1])
    assert shapes["albedo"] == [SIDE, SIDE, 3]
    assert shapes["material"] == [SIDE, SIDE]
    assert set(shapes) == set(DECLARED)
    assert not set(shapes) & set(BUILT_IN)
