from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import small_backbones  # noqa: F401  registers them
from mtlsi.errors import MistakeError
from mtlsi.losses import MultiTaskLoss
from mtlsi.training import cuda_graph, loop
from mtlsi.training.cuda_graph import WARM_UP, RecordedPasses, notes_on_recording, obstacle
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
        Told.made.append(self)

    def fits(self, batch):
        return batch["image"].shape == self.size

    def replay(self, batch):
        self.replayed += 1
        return forward_backward(self.run, batch, WholeBatch(self.run, [batch]), None)


@pytest.fixture
def told(monkeypatch):
    Told.made = []
    monkeypatch.setattr(cuda_graph, "obstacle", lambda _: "")
    monkeypatch.setattr(cuda_graph, "Recording", Told)
    return Told.made


def recorded(run, said=None) -> RecordedPasses:
    run.passes = RecordedPasses(run, Console(file=said or StringIO(), width=400))
    return run.passes


# ---- which runs


def hooked():
    module = nn.Identity()
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"device": "cpu"}, "cpu is no CUDA device"),
        ({"train": {"cuda_graph": False}}, "train.cuda_graph is off"),
        ({"train": {"accumulate": 2}}, "train.accumulate adds up"),
        ({"train": {"recompute": True}}, "train.recompute"),
        ({"train": {"balance": "famo"}, "balance": "famo"}, "train.balance famo goes by task"),
        ({"processes": 2}, "several processes meet in it"),
        ({"criterion": type("Mine", (MultiTaskLoss,), {})(("depth",))}, "the criterion is one of your own"),
        ({"module": Own()}, "Own is a module of your own"),
        ({"module": hooked()}, "a module has hooks"),
    ],
    ids=str,
)
def test_one_process_on_a_gpu_that_does_the_same_in_every_step_is_recorded(run, monkeypatch, change, told):
    config = replace(run.config, train=replace(run.config.train, **change.get("train", {})))
    changed: Any = SimpleNamespace(
        config=config,
        network=nn.Sequential(run.network, change.get("module", nn.Identity())),
        accelerator=SimpleNamespace(device=torch.device(change.get("device", "cuda"))),
        criterion=change.get("criterion", run.criterion),
        balance=change.get("balance"),
    )
    monkeypatch.setattr(cuda_graph.processes, "number", lambda: change.get("processes", 1))
    assert obstacle(changed) == told
    notes = notes_on_recording(changed, obstacle(changed))  # where there is a choice, it is told
    assert [note.endswith(told) for note in notes] == [True] * (
        told not in ("", "train.cuda_graph is off", "cpu is no CUDA device")
    )


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
    batch = {name: x.to(run.accelerator.device) for name, x in next(batches).items()}
    whole, gradients = WholeBatch(run, [batch]), TaskGradients(run.accelerator, run.network.tasks)
    passes(run, batch, whole, gradients)
    passes(run, {name: x[:1] for name, x in batch.items()}, whole, None)
    assert told[0].replayed == 1
    passes(run, batch, whole, None)
    assert told[0].replayed == 2


class Reads:
    def __init__(self, only_reads):
        self.only_reads = only_reads

    def on_step(self, *_):
        pass


@pytest.mark.parametrize(("only_reads", "num_recordings"), [(True, 1), (False, 0)])
def test_a_run_is_recorded_where_its_callbacks_say_that_they_only_read(
    tiny_config, tmp_path, told, monkeypatch, only_reads, num_recordings
):
    monkeypatch.setattr(loop, "obstacle", lambda _: "")
    config = replace(tiny_config, train=replace(tiny_config.train, evaluate_every=0))
    train(config, tmp_path / "run", callbacks=[Reads(True), Reads(only_reads)])
    assert len(told) == num_recordings
    assert sum(one.replayed for one in told) == num_recordings * (config.train.iterations - WARM_UP)


def test_a_refused_recording_is_told_and_training_goes_on_to_the_same_weights(tiny_config, tmp_path, monkeypatch):
    class Refused:
        def __init__(self, run, *_):
            for parameter in run.network.parameters():
                parameter.grad = torch.ones_like(parameter)  # left behind half-way
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nlonger")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")  # as torch ends it

    monkeypatch.setattr(cuda_graph, "Recording", Refused)
    config, said = replace(tiny_config, train=replace(tiny_config.train, evaluate_every=0)), StringIO()
    train(config, tmp_path / "without", console=Console(file=StringIO()))
    monkeypatch.setattr(cuda_graph, "obstacle", lambda _: "")
    train(config, tmp_path / "refused", console=Console(file=said, width=400))
    assert said.getvalue().count("cannot be recorded as a CUDA graph here (operation not permitted") == 1
    files = [tmp_path / name / "model.safetensors" for name in ("without", "refused")]
    if torch.cuda.is_available():  # which adds in another order each time
        torch.testing.assert_close(load_file(files[1]), load_file(files[0]), rtol=1e-3, atol=1e-3)
    else:
        assert files[0].read_bytes() == files[1].read_bytes()


def test_passes_that_meet_the_hosts_memory_are_not_recorded(run, told, monkeypatch):
    def with_a_copy(*args):
        torch.empty(2, device="meta").copy_(torch.ones(2))  # as timm's rotary embeddings do on a GPU
        return forward_backward(*args)

    monkeypatch.setattr(cuda_graph, "forward_backward", with_a_copy)
    said = StringIO()
    recorded(run, said)
    batches = iter(batches_from(0, run))
    for _ in range(WARM_UP + 3):
        optimizer_step(run, batches)
    assert told == []
    assert said.getvalue().count("graph here (copy_ meets the host's memory); training goes on without") == 1


def test_a_refused_recording_after_which_nothing_can_be_drawn_ends_the_run(run, monkeypatch):
    def refuse(*_):
        raise RuntimeError("refused")

    rand = torch.rand

    def draw(*size, **how):
        if "device" in how:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return rand(*size, **how)

    monkeypatch.setattr(cuda_graph, "obstacle", lambda _: "")
    monkeypatch.setattr(cuda_graph, "Recording", refuse)
    recorded(run)
    batches = iter(batches_from(0, run))
    for _ in range(WARM_UP):
        optimizer_step(run, batches)
    monkeypatch.setattr(torch, "rand", draw)
    with pytest.raises(MistakeError, match=r"here \(refused\); give --train.cuda_graph false"):
        optimizer_step(run, batches)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that records graphs")


@needs_gpu
@pytest.mark.parametrize(
    "backbone",
    ["convnext_atto", "hrnet_w18_small", "swin_of_five_blocks", "vit_of_four_blocks", "vit_of_four_turned_blocks"],
)
def test_a_run_that_is_recorded_has_the_losses_of_one_that_is_not(backbone, tiny_config, tmp_path):
    """With random draws, evaluations, and steps that measure gradients in between."""
    found, said = [], StringIO()
    for graph in (False, True):
        options = {"iterations": 8, "evaluate_every": 3, "gradients_every": 5, "lr": 1e-4, "cuda_graph": graph}
        model = {"backbone": backbone, "drop_path": 0.0 if backbone.startswith("hrnet") else 0.3}  # has none
        config = replace(tiny_config, model=model, train=replace(tiny_config.train, **options))
        train(config, tmp_path / str(graph), console=Console(file=said, width=400))
        lines = (tmp_path / str(graph) / "metrics.jsonl").read_text().splitlines()
        found.append(torch.tensor([line["loss"] for line in map(json.loads, lines) if "loss" in line]))
    refused = "cannot be recorded as a CUDA graph here" in said.getvalue()
    assert refused == (backbone == "vit_of_four_turned_blocks")  # whose rotary embeddings come from the host
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=0)


@needs_gpu
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


@needs_gpu
def test_a_deterministic_run_has_the_same_weights_twice(tmp_path):
    """In processes of their own: cuBLAS reads its part of it when it is first used."""
    settings = {
        "preset": "tiny", "data.num_train": 6, "data.num_val": 3, "data.size_hw": [64, 64], "data.image_hw": [64, 64],
        "data.num_workers": 0, "train.iterations": 8, "train.batch_size": 2, "train.evaluate_every": 0,
        "train.deterministic": "true",
    }  # fmt: skip
    for name in ("one", "two"):
        flags = [f"--{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "mtlsi.cli", "train", *flags, "--out", str(tmp_path / name)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
