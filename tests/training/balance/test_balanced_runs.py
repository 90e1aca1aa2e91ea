"""Whole runs with a balance: that they learn, go on where they were cut, and that measuring changes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mtlsi.config import RunConfig
from mtlsi.losses import MultiTaskLoss
from mtlsi.run_folder import load_config
from mtlsi.training.loop import batches_from, optimizer_step, resume, train
from mtlsi.training.passes import losses_again
from mtlsi.training.setup import assemble, settle
from mtlsi.training.whole_batch import WholeBatch

TASKS = ("depth", "normals")


@pytest.fixture
def three_steps(two_steps: RunConfig) -> RunConfig:
    """Two tasks, three steps, a state after the second; the windows of dwa are one step long."""
    options = replace(two_steps.train, iterations=3, checkpoint_every=2, warmup=0, dwa_window=1)
    return replace(two_steps, data=replace(two_steps.data, tasks=TASKS), train=options)


def with_train(config: RunConfig, **settings) -> RunConfig:
    return replace(config, train=replace(config.train, **settings))


def quiet():
    return Console(file=StringIO())


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "train_s", "evaluation_s")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def same_weights(one, other):
    ours, theirs = (load_file(folder / "state" / "step_000003" / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class Stop:
    def on_save(self, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name", ["famo", *(pytest.param(x, marks=pytest.mark.slow) for x in ("uncertainty", "dwa", "nash_mtl"))]
)
def test_a_run_that_was_cut_ends_as_an_unbroken_one(name, three_steps, tmp_path):
    if name == "nash_mtl":
        pytest.importorskip("ecos", reason="pip install 'mtlsi[balance]'")
    config = with_train(three_steps, balance=name)
    train(config, tmp_path / "whole", console=quiet())
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", console=quiet(), callbacks=[Stop()])
    resume(tmp_path / "cut", console=quiet())
    assert load_config(tmp_path / "cut").train.balance == name
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    lines = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == lines
    weights = [[line[f"balance/{task}"] for task in TASKS] for line in lines if "loss" in line]
    assert weights[0] != weights[2]  # it moved, so that a state that is lost shows
    for line in lines[:3]:  # the loss is the fixed balance's, whatever the balance
        parts = {task: line[f"loss/{task}"] + line[f"loss/coarse/{task}"] for task in TASKS}
        assert line["loss"] == pytest.approx(parts["depth"] + 10 * parts["normals"], rel=1e-4)


def test_measuring_gradients_changes_no_weight(three_steps, tmp_path):
    train(three_steps, tmp_path / "plain", console=quiet())
    train(with_train(three_steps, gradients_every=2), tmp_path / "measured", console=quiet())
    assert same_weights(tmp_path / "measured", tmp_path / "plain")
    plain, measured = metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "measured")
    (added,) = [line for line in measured if "gradient_norm/depth" in line]
    assert [line for line in measured if line is not added] == plain
    assert set(added) == {"step", "gradient_norm/depth", "gradient_norm/normals", "gradient_cosine/depth/normals"}
    assert added["step"] == 2
    assert -1 <= added["gradient_cosine/depth/normals"] <= 1


def test_all_at_once_bf16_accumulation_recomputing_and_a_frozen_stem(three_steps, tmp_path):
    pytest.importorskip("torchjd", reason="pip install 'mtlsi[balance]'")
    config = with_train(
        three_steps, balance="upgrad", accumulate=2, recompute=True, freeze_stride=4, freeze_norm=True,
        precision="bfloat16", loss_at="image", gradients_every=1, iterations=2, checkpoint_every=0,
    )  # fmt: skip
    scores = train(config, tmp_path / "run", console=quiet())
    assert math.isfinite(scores["depth"]["RMSE"])
    lines = metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines if "gradient_norm/depth" in line] == [1, 2]
    assert all(line["balance/depth"] >= 1 for line in lines if "loss" in line)  # UPGrad only adds


def started(config: RunConfig, out):
    run = assemble(settle(config), out, resume=False)
    run.model.train()
    return run, iter(batches_from(0, run))


def test_a_fixed_step_is_what_it_always_was(three_steps, tmp_path):
    run, batches = started(three_steps, tmp_path / "run")
    optimizer_step(run, batches)
    moved = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    run, batches = started(three_steps, tmp_path / "again")
    network, batch = run.network, next(batches)
    torch.manual_seed(0)
    output = network(batch["image"], full_size=False)
    loss, _ = MultiTaskLoss(TASKS)(output.final, output.coarse, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), three_steps.train.clip_norm)
    run.optimizer.step()
    assert all(torch.equal(tensor, moved[name]) for name, tensor in network.state_dict().items())


def test_losses_computed_again_leave_no_trace(three_steps, tmp_path):
    run, batches = started(with_train(three_steps, balance="famo"), tmp_path / "run")
    batch = next(batches)
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    (first,), (second,) = (losses_again(run, WholeBatch(run, [batch]), seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.network.state_dict().items())
    output = run.network(batch["image"], full_size=False)  # now the statistics are counted
    criterion = MultiTaskLoss(TASKS)
    total, losses = criterion(output.final, output.coarse, batch)
    torch.testing.assert_close(first.sum(), total.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, criterion.of_tasks(losses), rtol=1e-4, atol=1e-5)
