"""A person's own criterion, augmentation, metrics and callbacks."""

from __future__ import annotations

import json
import multiprocessing
import signal
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
from mtlsi.errors import MistakeError, Stopped
from mtlsi.losses import MultiTaskLoss
from mtlsi.run_folder import load_config
from mtlsi.training import checkpoints
from mtlsi.training.loop import resume
from mtlsi.training.setup import assemble, settle


def quiet():
    return Console(file=StringIO())


class Recorder:
    def __init__(self):
        self.steps, self.evaluations, self.saves = [], [], []

    def on_step(self, step, losses, run):
        assert run.position.step == step
        self.steps.append((step, {name: float(value) for name, value in losses.items()}))
        run.network.eval()  # as a Predictor of it leaves it

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


class SignalAfterOneStep:
    def on_step(self, *_):
        signal.raise_signal(signal.SIGINT)


def doubled(sample, _):
    return sample


@pytest.fixture(scope="module")
def stopped(tiny_config, tmp_path_factory):
    """A run with a criterion and a metric of a person's own that Ctrl-C stopped after its first step, and its words."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    config = replace(tiny_config, data=replace(tiny_config.data, tasks=("depth", "normals"), num_val=1))
    own = {"criterion": Uncertainty(), "metrics": {"depth": CountPixels("RMSE")}}
    with pytest.raises(Stopped) as told:
        mtlsi.train(config, out, console=quiet(), callbacks=[SignalAfterOneStep()], **own)
    return out, str(told.value)


def test_who_stops_a_run_with_parts_of_ones_own_is_not_sent_to_the_command(stopped):
    assert stopped[1] == (
        "stopped after step 1; go on from Python: mtlsi.train with resume=True and the same criterion and metrics"
    )


@pytest.mark.parametrize(
    ("own", "now"),
    [
        ({}, "none of that kind"),
        ({"criterion": MultiTaskLoss(("depth", "normals")), "metrics": {"depth": CountPixels("RMSE")}}, "MultiTaskLoss"),
        ({"criterion": Uncertainty()}, "{'criterion': 'Uncertainty'}"),
        ({"criterion": Uncertainty(), "metrics": {"depth": CountPixels("RMSE")}, "train_transform": doubled}, "doubled"),
    ],
    ids=["nothing", "another criterion", "no metric", "an augmentation, too"],
)  # fmt: skip
def test_a_run_does_not_go_on_with_other_parts_than_it_had(stopped, own, now):
    out, before = stopped[0], sorted(stopped[0].rglob("*"))
    with pytest.raises(
        MistakeError,
        match=rf"cannot resume .* parts of your own, .*Uncertainty.*CountPixels.* would go on with .*{now}.*; give mtlsi",
    ):
        resume(out, console=quiet(), **own)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("again", [False, True])
def test_a_run_cut_before_its_first_checkpoint_begins_again_with_the_parts_it_had_alone(two_steps, tmp_path, again):
    metrics, out = {"depth": CountPixels("RMSE")}, tmp_path / "run"
    assemble(settle(two_steps), out, resume=False, metrics=metrics)
    with pytest.raises(MistakeError, match=r"cannot resume .*CountPixels.* would go on with none of that kind"):
        assemble(settle(two_steps), out, resume=again)
    (out / "own_parts.json").write_text("[")
    with pytest.raises(MistakeError, match=r"own_parts\.json: .*; expected the parts of your own"):
        assemble(settle(two_steps), out, resume=again, metrics=metrics)
    (out / "own_parts.json").unlink()
    assemble(settle(two_steps), out, resume=again, metrics=metrics)
    assemble(settle(two_steps), out, resume=again, metrics=metrics)


def test_a_checkpoint_that_does_not_say_what_parts_it_had_is_accepted(two_steps, tmp_path, monkeypatch):
    write, out = checkpoints.write, tmp_path / "run"

    def write_as_before(out, step, facts, tensors, *, keep):
        write(out, step, {k: v for k, v in facts.items() if k != "own_parts"}, tensors, keep=keep)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write", write_as_before)
        with pytest.raises(Stopped):
            mtlsi.train(two_steps, out, console=quiet(), callbacks=[SignalAfterOneStep()])
    run = assemble(settle(two_steps), out, resume=True, metrics={"depth": CountPixels("RMSE")})
    assert run.position.step == 1


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
