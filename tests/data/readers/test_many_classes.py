"""Thousands of classes are taken as far as memory goes, and more are refused in one line wherever they are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mtlsi.cli import main
from mtlsi.data.readers.folder import Folder
from mtlsi.data.readers.prepared import read_index
from mtlsi.errors import MistakeError
from mtlsi.metrics import MetricSettings, build_metric
from mtlsi.model.facts import check_facts
from mtlsi.tasks import TASKS

ADE20K = 3688
"""Classes of the full set."""
TOO_MANY = [f"class {i}" for i in range(5000)]


def folder(root: Path, tasks: dict, label: np.ndarray) -> Path:
    for part in ("images", *tasks):
        (root / part).mkdir(parents=True)
    Image.new("RGB", label.shape[::-1]).save(root / "images/a.png")
    for task in tasks:
        Image.fromarray(label).save(root / task / "a.png")
    settings = {"splits": {"train": ["a"], "val": ["a"]}, "tasks": tasks}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return root


def test_as_many_classes_as_the_largest_sets_have_are_read_and_measured(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, ADE20K, (20, 30)).astype(np.uint16)
    names = [f"class {i}" for i in range(ADE20K)]
    read = Folder(folder(tmp_path, {"semseg": {"classes": names}}, label))[0]["semseg"]
    np.testing.assert_array_equal(read, label)
    metric = build_metric(TASKS["semseg"], MetricSettings(num_classes=ADE20K))
    other = torch.where(torch.arange(30) < 15, read, 0)
    metric.update(other[None], read[None], torch.ones(1, 20, 30, dtype=torch.bool))
    right = np.where(np.arange(30) < 15, label, 0) == label
    assert float(metric.compute()["pixel_acc"]) == pytest.approx(100 * right.mean())


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"semseg": {"classes": TOO_MANY}}, "5000 of semseg"),
        ({"semseg": {"values": {2 * i: name for i, name in enumerate(TOO_MANY)}}}, "5000 of semseg"),
        (
            {"semseg": {"classes": TOO_MANY[:4000]}, "parsing": {"classes": TOO_MANY[:200]}},
            "4000 of semseg, 200 of parsing",
        ),
    ],
    ids=["names", "values", "together"],
)
def test_more_are_refused_where_dataset_yaml_names_them(tmp_path: Path, capsys, tasks: dict, told: str) -> None:
    root = folder(tmp_path / "set", tasks, np.zeros((20, 30), np.uint8))
    message = f"{root}/dataset.yaml: classes: {told}; expected 4096 in all at most; leave out or merge rare ones"
    run = ["train", "--data.name", "folder", "--data.root", str(root), "--out", str(tmp_path / "run")]
    for command in (["data", "check", str(root)], run):
        assert main(command) == 2
        assert capsys.readouterr().err == f"mtlsi: {message}\n"


def test_more_are_refused_in_a_prepared_folder_in_a_model_and_by_the_metric(tmp_path: Path) -> None:
    told = "classes: 5000 of semseg; expected 4096 in all at most"
    index = {
        "version": 1, "complete": True, "layout": "x", "splits": {}, "tasks": {}, "classes": {"semseg": TOO_MANY},
        "derived": [], "boundary_tolerance": 0.01,
    }  # fmt: skip
    (tmp_path / "prepared.json").write_text(json.dumps(index))
    with pytest.raises(MistakeError, match=told):
        read_index(tmp_path)
    with pytest.raises(MistakeError, match=told):
        check_facts(["semseg"], {"semseg": TOO_MANY}, [64, 64], [], "stretch")
    with pytest.raises(MistakeError, match=told):
        build_metric(TASKS["semseg"], MetricSettings(num_classes=5000))
