"""Weights of classes: given by name, or from the labels, and the same in a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.train_command import read_run, train_parser
from mtlsi.training import checkpoints, class_weights
from mtlsi.training.class_weights import weights_for
from mtlsi.training.loop import resume, train
from mtlsi.training.setup import assemble, settle

NAMES = ("wall", "floor", "chair", "lamp", "never seen")


@pytest.fixture
def room_folder(tmp_path):
    """Five training images of 4 x 10 pixels with few classes each; the first has 10 pixels without a label."""
    root, numbers = tmp_path / "rooms", np.random.default_rng(0)
    for folder in ("images", "semseg", "depth"):
        (root / folder).mkdir(parents=True)
    rows = [[255, 0, 0, 1], [0, 0, 1, 1], [0, 2, 2, 2], [0, 0, 0, 3], [1, 1, 1, 0]]
    for i, values in enumerate(rows):
        Image.fromarray(numbers.integers(0, 256, (4, 10, 3), np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.repeat(np.array(values, np.uint8)[:, None], 10, 1)).save(root / "semseg" / f"{i}.png")
        Image.fromarray(np.full((4, 10), 2000, np.uint16)).save(root / "depth" / f"{i}.png")
    (root / "dataset.yaml").write_text(
        f"splits: {{train: ['0', '1', '2', '3', '4'], val: ['0']}}\ntasks: {{semseg: {{classes: {list(NAMES)}}}}}\n"
    )
    return root


def config_of(root, given):
    return RunConfig(
        data=DataConfig(name="folder", root=str(root), size_hw=(64, 64), num_workers=0),
        train=TrainConfig(class_weights=given, iterations=2, batch_size=1, precision="float32", warmup=0),
    )


def naive_weights(rows, num_classes):
    """Median frequency balancing as its authors wrote it down, over lists of label values."""
    frequencies = {}
    for c in range(num_classes):
        images = [[v for v in row if v != 255] for row in rows if c in row]
        if images:
            frequencies[c] = sum(row.count(c) for row in images) / sum(map(len, images))
    median = float(np.median(list(frequencies.values())))
    found = {c: median / f for c, f in frequencies.items()}
    return [found.get(c, max(found.values())) for c in range(num_classes)]


def test_weights_from_shares_balance_the_median_frequency(room_folder):
    config = config_of(room_folder, "from_shares")
    dataset = open_dataset(config.data, "train")
    found = weights_for(config, dataset)
    rows = [[255, 0, 0, 1], [0, 0, 1, 1], [0, 2, 2, 2], [0, 0, 0, 3], [1, 1, 1, 0]]
    assert set(found) == {"semseg"}
    assert found["semseg"] == pytest.approx(naive_weights(rows, 5))
    assert found["semseg"][4] == max(found["semseg"]) == found["semseg"][3]
    by_task = weights_for(config_of(room_folder, {"semseg": "from_shares"}), dataset)
    assert by_task == found


def test_only_so_many_images_are_read_spread_over_the_split(room_folder, monkeypatch):
    monkeypatch.setattr(class_weights, "SHARES_OF_IMAGES", 2)  # the first and the third
    config = config_of(room_folder, "from_shares")
    found = weights_for(config, open_dataset(config.data, "train"))["semseg"]
    assert found == pytest.approx(naive_weights([[255, 0, 0, 1], [0, 2, 2, 2]], 5))


def test_given_weights_are_those_of_their_classes_and_others_are_1(room_folder):
    config = config_of(room_folder, {"semseg": {"chair": 4, "wall": 0.25}})
    assert weights_for(config, open_dataset(config.data, "train")) == {"semseg": (0.25, 1.0, 4.0, 1.0, 1.0)}
    plain = config_of(room_folder, {})
    assert weights_for(plain, open_dataset(plain.data, "train")) == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"semseg": {"cupboard": 2}}, "train.class_weights.semseg.cupboard: no such class; expected some of wall"),
        ({"semseq": "from_shares"}, "train.class_weights.semseq: no such task with classes; expected some of semseg"),
        ({"depth": "from_shares"}, "train.class_weights.depth: no such task with classes; expected some of semseg"),
    ],
)
def test_unknown_names_are_told(room_folder, given, told):
    config = config_of(room_folder, given)
    config.check()
    with pytest.raises(MistakeError, match=told):
        weights_for(config, open_dataset(config.data, "train"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("by_hand", "train.class_weights 'by_hand'; expected from_shares"),
        ({"semseg": "by_hand"}, "train.class_weights.semseg 'by_hand'; expected from_shares"),
        ({"semseg": 3}, "train.class_weights.semseg 3; expected from_shares"),
        ({"semseg": {"wall": -1}}, "train.class_weights.semseg.wall -1; expected a number of at least 0"),
        ({"semseg": {"wall": "x"}}, "train.class_weights.semseg.wall 'x'; expected a number"),
    ],
)
def test_values_that_are_no_weights_are_told(given, told):
    with pytest.raises(MistakeError, match=told):
        TrainConfig(class_weights=given).check()


@pytest.mark.parametrize(
    "given", ["from_shares", {"semseg": "from_shares"}, {"semseg": {"wall": 2}, "parsing": "from_shares"}]
)
def test_weights_of_classes_that_are_not_trained_have_no_say(room_folder, given):
    config = config_of(room_folder, given)
    config = replace(config, data=replace(config.data, tasks="depth"))
    assert weights_for(config, open_dataset(config.data, "train")) == {}


def test_a_folder_without_labels_of_a_task_says_so(room_folder):
    for path in (room_folder / "semseg").iterdir():
        Image.fromarray(np.full((4, 10), 255, np.uint8)).save(path)
    config = config_of(room_folder, "from_shares")
    with pytest.raises(MistakeError, match="none of the training images that were looked at has a label"):
        weights_for(config, open_dataset(config.data, "train"))


def test_the_command_takes_both_forms():
    def given(*words):
        return read_run(train_parser().parse_args(list(words))).train.class_weights

    assert given("--train.class_weights", "from_shares") == "from_shares"
    by_name = '{"semseg": {"wall": 2.5}, "parsing": "from_shares"}'
    assert given("--train.class_weights", by_name) == {"semseg": {"wall": 2.5}, "parsing": "from_shares"}


def test_a_resumed_run_weighs_as_the_run_did_whatever_became_of_the_labels(room_folder, tmp_path):
    config = config_of(room_folder, "from_shares")
    out = tmp_path / "run"
    train(config, out, console=Console(file=StringIO()))
    stored = json.loads((out / "class_weights.json").read_text())
    assert list(stored) == ["semseg"]
    assert list(stored["semseg"]) == list(NAMES)
    for path in (room_folder / "semseg").iterdir():
        Image.fromarray(np.full((4, 10), 2, np.uint8)).save(path)
    run = assemble(settle(config), out, resume=True)
    weights = dict(run.criterion.named_buffers())["class_weights_semseg"]
    assert weights.tolist() == pytest.approx([*stored["semseg"].values()])
    assert weights_for(config, open_dataset(config.data, "train"))["semseg"] != pytest.approx(weights.tolist())
    assert torch.unique(weights).numel() > 2
    (out / "class_weights.json").unlink()
    with pytest.raises(
        MistakeError, match=r"class_weights\.json: .*expected the class weights that the run began with"
    ):
        resume(out, console=Console(file=StringIO()))


def test_weights_that_were_edited_are_refused_where_the_checkpoint_knows_those_of_the_run(
    room_folder, tmp_path, monkeypatch
):
    config, out, newest = config_of(room_folder, {"semseg": {"chair": 4}}), tmp_path / "run", checkpoints.newest
    train(config, out, console=Console(file=StringIO()))
    assemble(settle(config), out, resume=True)
    stored = json.loads((out / "class_weights.json").read_text())
    stored["semseg"]["chair"] = 9.5
    (out / "class_weights.json").write_text(json.dumps(stored))
    with pytest.raises(
        MistakeError, match=r"class_weights\.json: other class weights .*step_000002/state\.json lists; put those back"
    ):
        assemble(settle(config), out, resume=True)

    def newest_of_an_older_version(*given):
        found = newest(*given)
        assert found is not None
        return replace(found, facts={name: value for name, value in found.facts.items() if name != "class_weights"})

    monkeypatch.setattr(checkpoints, "newest", newest_of_an_older_version)
    assemble(settle(config), out, resume=True)


@pytest.mark.parametrize("value", [True, "2.5", "inf", -1, None, [1], 10**400])
def test_a_stored_weight_that_is_no_number_is_a_mistake(value, tmp_path):
    (tmp_path / "class_weights.json").write_text(json.dumps({"semseg": {"wall": 1.0, "floor": value}}))
    with pytest.raises(MistakeError, match=r"class_weights\.json: .*; expected the class weights") as caught:
        class_weights.load(tmp_path / "class_weights.json", {"semseg": ("wall", "floor")})
    assert "\n" not in str(caught.value)


def test_a_criterion_of_ones_own_and_class_weights_exclude_one_another(room_folder, tmp_path):
    with pytest.raises(MistakeError, match="a criterion is given"):
        train(config_of(room_folder, "from_shares"), tmp_path / "run", criterion=torch.nn.Identity())
    assert not (tmp_path / "run").exists()
