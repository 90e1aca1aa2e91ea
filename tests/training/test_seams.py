"""A person's own criterion, augmentation, metrics and callbacks."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torchmetrics import Metric

import mtlsi
from mtlsi.data.transforms import TrainTransform
from mtlsi.errors import MistakeError
from mtlsi.losses import MultiTaskLoss
from mtlsi.run_folder import load_config
from mtlsi.training.loop import resume


def quiet():
    return Console(file=StringIO())


class Recorder:
    def __init__(self):
        self.steps, self.evaluations, self.saves = [], [], []

    def on_step(self, step, losses, run):
        assert run.position.step == step
        self.steps.append((step, {name: float(value) for name, value in losses.items()}))

    def on_evaluation(self, step, scores, run):  # noqa: ARG002
        self.evaluations.append((step, scores))

    def on_save(self, step, folder, run):  # noqa: ARG002
        assert (folder / "state").is_dir()
        assert (folder / "model.safetensors").is_file()
        self.saves.append(step)


def test_callbacks_are_called_and_change_nothing(tiny_run, tmp_path):
    recorder, out = Recorder(), tmp_path / "run"

    class OnlySaves:
        saves = 0

        def on_save(self, *_):
            self.saves += 1

    other = OnlySaves()
    scores = mtlsi.train(tiny_run.config, out, console=quiet(), callbacks=(recorder, other))
    assert [step for step, _ in recorder.steps] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in recorder.evaluations] == recorder.saves == [2, 4, 6]
    assert other.saves == 3
    assert recorder.evaluations[-1][1] == scores
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    for (_, losses), line in zip(recorder.steps, logged, strict=True):
        assert losses["loss"] == line["loss"]
        assert losses["coarse/depth"] == line["loss/coarse/depth"]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tiny_run.out))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_callback_that_raises_leaves_no_loader_process_though_its_traceback_is_kept(two_steps, tmp_path):
    class Broken:
        def on_step(self, *_):
            assert len(multiprocessing.active_children()) == before + 1
            raise ZeroDivisionError

    before = len(multiprocessing.active_children())
    config = replace(two_steps, data=replace(two_steps.data, num_workers=1))
    with pytest.raises(ZeroDivisionError) as kept:
        mtlsi.train(config, tmp_path / "run", console=quiet(), callbacks=[Broken()])
    assert kept.traceback
    assert len(multiprocessing.active_children()) == before


def test_an_object_that_is_never_called_is_refused(two_steps, tmp_path):
    with pytest.raises(MistakeError, match="on_step, on_evaluation, on_save"):
        mtlsi.train(two_steps, tmp_path / "run", callbacks=[object()])
    assert not (tmp_path / "run").exists()


class Uncertainty(nn.Module):
    """Depth and normals, each with a weight that is learned."""

    def __init__(self):
        super().__init__()
        self.inner = MultiTaskLoss(("depth", "normals"))
        self.log_variance = nn.Parameter(torch.zeros(2))

    def forward(self, final, coarse, labels):
        losses = self.inner.per_task(final, coarse, labels)
        by_task = torch.stack([losses["depth"], losses["normals"]])
        total = (by_task * (-self.log_variance).exp() + self.log_variance).sum()
        return total, {"depth": losses["depth"].detach(), "normals": losses["normals"].detach()}


def test_a_criterion_of_ones_own_is_trained_with_its_parameters_and_resumed(two_steps, tmp_path):
    data = replace(two_steps.data, tasks=("depth", "normals"))
    config = replace(two_steps, data=data, train=replace(two_steps.train, checkpoint_every=1, warmup=0))
    whole, broken = Uncertainty(), Uncertainty()
    mtlsi.train(config, tmp_path / "whole", console=quiet(), criterion=whole)
    assert (whole.log_variance != 0).all()
    logged = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[0])
    assert {name for name in logged if name.startswith("loss")} == {"loss", "loss/depth", "loss/normals"}

    class Stop:
        def on_save(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mtlsi.train(config, tmp_path / "broken", console=quiet(), criterion=broken, callbacks=[Stop()])
    again = Uncertainty()
    resume(tmp_path / "broken", console=quiet(), criterion=again)
    assert torch.equal(again.log_variance, whole.log_variance)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_an_augmentation_of_ones_own_replaces_the_fields(two_steps, tmp_path):
    data, seen = two_steps.data, []
    field = TrainTransform(data.size_hw, data.image_hw, data.zoom, data.class_limit)

    def blind(sample, generator):
        seen.append(tuple(sample["image"].shape))
        return field(sample, generator) | {"image": torch.zeros(3, *data.size_hw)}

    mtlsi.train(two_steps, tmp_path / "run", console=quiet(), train_transform=blind)
    assert seen == [(3, 64, 64)] * 4
    mtlsi.train(two_steps, tmp_path / "plain", console=quiet(), train_transform=field)
    mtlsi.train(two_steps, tmp_path / "built_in", console=quiet())
    blind_one, plain, built_in = (
        load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain", "built_in")
    )
    assert all(torch.equal(tensor, built_in[name]) for name, tensor in plain.items())
    assert not all(torch.equal(tensor, built_in[name]) for name, tensor in blind_one.items())


class CountPixels(Metric):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_state("pixels", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, decoded, label, valid):
        assert decoded.shape == label.shape == valid.shape
        self.pixels += valid.sum()

    def compute(self):
        return {self.name: self.pixels}


def test_a_metric_of_ones_own_replaces_its_tasks(two_steps, tmp_path):
    config = replace(
        two_steps, data=replace(two_steps.data, num_val=2), train=replace(two_steps.train, evaluate_every=1)
    )
    scores = mtlsi.train(config, tmp_path / "run", console=quiet(), metrics={"depth": CountPixels("RMSE")})
    assert scores["depth"] == {"RMSE": 2 * 64 * 64}  # counted afresh in every evaluation
    assert "mErr" in scores["normals"]
    assert load_config(tmp_path / "run") == config
    with pytest.raises(MistakeError, match="gives pixels; expected its score RMSE"):
        mtlsi.train(config, tmp_path / "other", console=quiet(), metrics={"depth": CountPixels("pixels")})
    with pytest.raises(MistakeError, match="smell"):
        mtlsi.train(config, tmp_path / "third", console=quiet(), metrics={"smell": CountPixels("RMSE")})
    assert not (tmp_path / "third").exists()
