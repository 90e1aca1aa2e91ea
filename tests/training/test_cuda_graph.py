from __future__ import annotations

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from mtlsi.losses import MultiTaskLoss
from mtlsi.training import cuda_graph
from mtlsi.training.cuda_graph import WARM_UP, RecordedPasses, can_record
from mtlsi.training.loop import batches_from, optimizer_step, train
from mtlsi.training.passes import forward_backward
from mtlsi.training.setup import assemble, settle
from mtlsi.training.shared_maps import TaskGradients
from mtlsi.training.whole_batch import WholeBatch


class Own(nn.Module):
    """A module that is not the project's."""


@pytest.fixture
def run(tiny_config, tmp_path):
    """A run at its beginning."""
    train = replace(tiny_config.train, iterations=30, ema=0.5)
    return assemble(settle(replace(tiny_config, train=train)), tmp_path / "run", resume=False)


class Told:
    """In the place of a recording: says what is asked of it, and computes what a GPU would."""

    made: list[Told]

    def __init__(self, run, batch, _whole):
        self.run, self.size, self.replayed = run, batch["image"].shape, 0
        self.state = cuda_graph.State(run)
        Told.made.append(self)

    def fits(self, batch):
        return batch["image"].shape == self.size

    def replay(self, batch):
        self.replayed += 1
        return forward_backward(self.run, batch, WholeBatch(self.run, [batch]), None)


@pytest.fixture
def told(monkeypatch):
    Told.made = []
    monkeypatch.setattr(cuda_graph, "can_record", lambda _: True)
    monkeypatch.setattr(cuda_graph, "Recording", Told)
    return Told.made


def recorded(run, said=None) -> RecordedPasses:
    run.passes = RecordedPasses(run, Console(file=said or StringIO(), width=400))
    return run.passes


# ---- which runs


@pytest.mark.parametrize(
    ("change", "records"),
    [
        ({}, True),
        ({"device": "cpu"}, False),
        ({"train": {"cuda_graph": False}}, False),
        ({"train": {"accumulate": 2}}, False),
        ({"train": {"recompute": True}}, False),
        ({"balance": "any"}, False),
        ({"processes": 2}, False),
        ({"criterion": type("Mine", (MultiTaskLoss,), {})(("depth",))}, False),
        ({"module": Own()}, False),
    ],
    ids=str,
)
def test_one_process_on_a_gpu_that_does_the_same_in_every_step_is_recorded(run, monkeypatch, change, records):
    config = replace(run.config, train=replace(run.config.train, **change.get("train", {})))
    changed: Any = SimpleNamespace(
        config=config,
        network=nn.Sequential(run.network, change.get("module", nn.Identity())),
        accelerator=SimpleNamespace(device=torch.device(change.get("device", "cuda"))),
        criterion=change.get("criterion", run.criterion),
        balance=change.get("balance"),
    )
    monkeypatch.setattr(cuda_graph.processes, "number", lambda: change.get("processes", 1))
    assert can_record(changed) is records


# ---- when


def test_passes_are_recorded_once_after_some_and_replayed_from_then_on(run, told):
    recorded(run)
    batches = iter(batches_from(0, run))
    for step in range(1, 9):
        optimizer_step(run, batches)
        assert len(told) == (step > WARM_UP)
    assert told[0].replayed == 8 - WARM_UP


def test_a_step_that_measures_gradients_and_a_batch_of_another_size_go_as_without(run, told):
    passes, batches = recorded(run), iter(batches_from(0, run))
    for _ in range(WARM_UP + 1):
        optimizer_step(run, batches)
    batch = next(batches)
    whole, gradients = WholeBatch(run, [batch]), TaskGradients(run.accelerator, run.network.tasks)
    passes(run, batch, whole, gradients)
    passes(run, {name: x[:1] for name, x in batch.items()}, whole, None)
    assert told[0].replayed == 1
    passes(run, batch, whole, None)
    assert told[0].replayed == 2


def raise_weight(run):
    run.criterion.weights["depth"] *= 2


def freeze_one(run):
    next(p for p in run.network.parameters() if p.requires_grad).requires_grad_(False)


def stop_norms(run):
    next(m for m in run.network.modules() if isinstance(m, nn.BatchNorm2d)).eval()


@pytest.mark.parametrize("change", [raise_weight, freeze_one, stop_norms])
def test_a_run_that_a_callback_changed_is_recorded_anew(run, told, change):
    recorded(run)
    batches = iter(batches_from(0, run))
    for _ in range(WARM_UP + 2):
        optimizer_step(run, batches)
    change(run)
    for step in range(1, WARM_UP + 3):
        optimizer_step(run, batches)
        assert len(told) == 1 + (step > WARM_UP)
    assert [one.replayed for one in told] == [2, 2]


def test_a_refused_recording_is_told_and_training_goes_on_to_the_same_weights(tiny_config, tmp_path, monkeypatch):
    class Refused:
        def __init__(self, run, *_):
            for parameter in run.network.parameters():
                parameter.grad = torch.ones_like(parameter)  # left behind half-way
            raise RuntimeError("operation not permitted when stream is capturing\nlonger")

    monkeypatch.setattr(cuda_graph, "Recording", Refused)
    config, said = replace(tiny_config, train=replace(tiny_config.train, evaluate_every=0)), StringIO()
    train(config, tmp_path / "without", console=Console(file=StringIO()))
    monkeypatch.setattr(cuda_graph, "can_record", lambda _: True)
    train(config, tmp_path / "refused", console=Console(file=said, width=400))
    assert said.getvalue().count("cannot be recorded as a CUDA graph here (operation not permitted") == 1
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "refused")]
    assert weights[0] == weights[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that records graphs")
def test_a_replay_gives_the_losses_and_the_gradients_of_the_passes_themselves(run):
    run.model.train()
    said = StringIO()
    passes, batches = recorded(run, said), iter(batches_from(0, run))
    for _ in range(WARM_UP + 2):
        optimizer_step(run, batches)
    assert passes.recording is not None, said.getvalue()
    batch = {name: x.to(run.accelerator.device) for name, x in next(batches).items()}
    found = []
    for way in (forward_backward, passes):
        run.optimizer.zero_grad(set_to_none=True)
        losses = way(run, batch, WholeBatch(run, [batch]), None)
        gradients = [p.grad.flatten().clone() for p in run.network.parameters() if p.grad is not None]
        found.append((torch.stack([x.float() for x in losses.values()]), torch.cat(gradients)))
    for plain, replayed in zip(*found, strict=True):
        assert (replayed - plain).norm() < 1e-3 * plain.norm()
