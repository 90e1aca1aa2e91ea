from __future__ import annotations

import re
import shutil
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.training import dry_run as module
from mtlsi.training.dry_run import Costs, dry_run, spoken


def said_of(config, out=None):
    said = StringIO()
    costs = dry_run(config, out, console=Console(file=said, width=200))
    return costs, said.getvalue()


def counted(part, *, trained):
    return sum(p.numel() for p in part.parameters() if p.requires_grad is trained)


def test_a_dry_run_says_what_is_trained_on_what_and_writes_nothing(tiny_run, two_steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = replace(
        two_steps.train, freeze=("fusion",), freeze_stride=8, iterations=40, evaluate_every=15, shard=True
    )
    config = replace(
        two_steps, init=str(tiny_run.out), data=replace(two_steps.data, tasks=("depth", "normals")), train=options
    )
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    costs, said = said_of(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    network = create_model("tiny", tasks=("depth", "normals"))
    network.backbone.freeze(8, norm=False)
    rows = {
        line.split()[0]: line.split()[1:] for line in said.splitlines() if re.fullmatch(r" *\w+( +[\d,]+){2} *", line)
    }
    numbers = {name: tuple(int(text.replace(",", "")) for text in row) for name, row in rows.items()}
    backbone, fusion, heads = network.backbone, network.decoder.fusion, network.decoder.heads
    assert numbers["backbone"] == (counted(backbone, trained=True), counted(backbone, trained=False))
    assert numbers["fusion"] == (0, counted(fusion, trained=True))
    assert numbers["heads"] == (counted(heads, trained=True), 0)
    assert sum(numbers.pop("all")) == sum(map(sum, numbers.values())) == sum(p.numel() for p in network.parameters())
    assert f"taken over from {tiny_run.out}: depth, normals: all" in said
    assert "train: 6 images; labels: depth 6 of 6 looked at, normals 6 of 6 looked at" in said
    assert "crops of 64x64 from whole images of 64x64; batch 2" in said
    assert "40 steps are 13.3 epochs" in said
    assert "train.shard: one process keeps all of the network" in said  # as the training itself notes
    assert re.search(r"memory: \d\.\d\d GiB resident at most|memory: not measured", said)
    assert said.rstrip().endswith("dry run: nothing was written")
    assert costs.num_evaluated == 3  # after 15 and 30 steps and at the end, one image each
    assert costs.step_s > 0
    assert costs.total_s == pytest.approx(40 * costs.step_s + 3 * costs.image_s)


def test_evaluations_are_counted_as_the_run_does_them(two_steps, monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    options = replace(two_steps.train, iterations=30, evaluate_every=10, evaluate_images=2, best_by="depth.RMSE")
    config = replace(two_steps, data=replace(two_steps.data, tasks=("depth",), num_val=5), train=options)
    assert said_of(config)[0].num_evaluated == 2 + 2 + 2 + 5  # the last weights on both


def test_it_fails_where_training_would(two_steps, tiny_run, tmp_path, capsys):
    for changes, told in (
        ({"lr": 1e30, "warmup": 0, "iterations": 4}, r"not a number at step [234]; give a lower --train\.lr"),
        ({"freeze": ("neck",)}, "'neck': no part of the network"),
        ({"best_by": "depth.mIoU", "evaluate_every": 5}, r"train\.best_by 'depth\.mIoU'"),
        ({"tracker": "diary"}, "diary"),
    ):
        with pytest.raises(MistakeError, match=told):
            said_of(replace(two_steps, train=replace(two_steps.train, **changes)))
    with pytest.raises(MistakeError, match="holds a run already"):
        said_of(two_steps, tiny_run.out)
    (tmp_path / "file").touch()
    with pytest.raises(MistakeError, match="cannot write to"):
        said_of(two_steps, tmp_path / "file" / "run")
    assert main(["train", "--dry-run", "--resume", str(tiny_run.out)]) == 2
    assert "leave out --resume" in capsys.readouterr().err


def test_the_labels_of_files_are_counted(nyud_root, two_steps, monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    data = replace(two_steps.data, name="nyud", root=str(nyud_root), tasks=("semseg", "depth"), image_hw=(64, 64))
    _, said = said_of(replace(two_steps, data=data))
    assert "train: 2 images; labels: semseg 2, depth 2" in said
    assert "val: 2 images; labels: semseg 2, depth 2" in said
    shutil.rmtree(nyud_root / "depth")
    with pytest.raises(MistakeError, match="depth"):
        said_of(replace(two_steps, data=data))


def test_times_are_said_as_people_do():
    assert [spoken(s) for s in (7.4, 99, 100, 3600, 7500)] == ["7 s", "99 s", "2 min", "60 min", "2 h 05 min"]
    assert Costs(2.0, 0.5, 10, 100, "").total_s == 205
