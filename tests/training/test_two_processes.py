"""Two processes with a batch of two train, measure and fail as one with a batch of four. This file is also their program."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from mtlsi import processes
from mtlsi.cli import main
from mtlsi.config import RunConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.sampling import RunSampler
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate_from_command
from mtlsi.nn import sync_norm
from mtlsi.options.measuring import EvaluateOptions
from mtlsi.run_folder import load_config, save_config
from mtlsi.training import loop, setup
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import TrainingRun, assemble, settle

NUM_STEPS, NUM_IMAGES, FAILS_AFTER = 8, 16, 2


class Poor:
    """Depth of three images of four alone; no normals in what the second process sees in the first step."""

    def __init__(self, whole: Any):
        self.whole, self.tasks, self.classes, self.name = whole, whole.tasks, whole.classes, whole.name
        self.derived, self.left_out, self.boundary_tolerance = whole.derived, whole.left_out, whole.boundary_tolerance
        first = RunSampler(NUM_IMAGES, 2, seed=0, start=0, stop=1, process=1, num_processes=2)
        self.seen = [index for _, index in next(iter(first))]

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        missing = {"depth"} if index % 4 == 0 else set()
        missing |= {"normals"} if index in self.seen else set()
        return {name: x for name, x in self.whole[index].items() if name not in missing}


@contextmanager
def in_float64(config: RunConfig, out: Path):
    """The run of ``config`` on poor labels, in double precision."""
    torch.set_default_dtype(torch.float64)
    opened = setup.open_dataset
    setup.open_dataset = lambda *arguments: Poor(open_dataset(*arguments))
    try:
        run = assemble(settle(config), out, resume=False)
        run.model.train()
        yield run
    finally:
        setup.open_dataset = opened
        torch.set_default_dtype(torch.float32)


def step_means(run: TrainingRun, batches: Any) -> dict[str, float]:
    return processes.means({name: float(x) for name, x in optimizer_step(run, batches).mean_losses().items()})


def trained(config: RunConfig, out: Path) -> dict[str, Any]:
    """The first step's gradients, the last step's weights and averages, the mean losses of every step."""
    with in_float64(config, out) as run:
        batches, losses, gradients = iter(batches_from(0, run)), [], {}
        for step in range(NUM_STEPS):
            losses.append(step_means(run, batches))
            gradients = gradients or gradients_of(run)
            assert run.position.step == step + 1
        weights = {name: x.clone() for name, x in run.network.state_dict().items()}
        return {"gradients": gradients, "weights": weights, "average": run.average.state, "losses": losses}


def gradients_of(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.network.named_parameters() if p.grad is not None}


def accumulated(config: RunConfig, out: Path) -> dict[str, Any]:
    """The gradients and losses of a first step on stored batch statistics, and how often gradients met in it."""
    with in_float64(config, out) as run:
        run.model.eval()
        meetings = []

        def meet(state, bucket):
            meetings.append(bucket.is_last())
            return default_hooks.allreduce_hook(state, bucket)

        if processes.has_joined():
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            model: Any = run.model
            model.register_comm_hook(None, meet)
        losses = step_means(run, iter(batches_from(0, run)))
        return {"gradients": gradients_of(run), "losses": losses, "meetings": sum(meetings)}


# ---- batch norms


def norms() -> dict[str, Any]:
    """By name, a batch norm of 5 channels with gains and offsets of its own."""
    made = {
        "plain": nn.BatchNorm2d(5),
        "activated": BatchNormAct2d(5, act_layer=nn.ReLU),
        "counted": nn.BatchNorm2d(5, momentum=None),
        "no gain": nn.BatchNorm2d(5, affine=False),
        "of rows": nn.BatchNorm1d(5),
        "frozen": nn.BatchNorm2d(5).eval(),
    }
    draw = torch.Generator().manual_seed(1)
    for norm in made.values():
        for parameter in norm.parameters():
            parameter.data = torch.rand(5, generator=draw) + 0.5
    return made


def normed(norm: Any, name: str, part: slice, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Two batches through ``norm``: the second's results, the gradients of a sum weighted at random, the statistics."""
    draw = torch.Generator().manual_seed(2)
    shape = (4, 5) if name == "of rows" else (4, 5, 6, 7)
    whole, pull = torch.randn(2, *shape, generator=draw).double(), torch.randn(shape, generator=draw).double()
    norm = norm.to(torch.promote_types(dtype, torch.float32))
    x = torch.empty(0)
    y = torch.empty(0)
    for batch in whole * 3 + 1000:  # far from 0, where sums of squares lose their digits
        x = batch[part].to(dtype).requires_grad_()
        norm.zero_grad()
        y = norm(x)
    (y * pull[part].to(dtype)).sum().backward()
    found = {"y": y.detach(), "dx": x.grad, "mean": norm.running_mean, "variance": norm.running_var}
    gains = {parameter: p.grad for parameter, p in norm.named_parameters()}
    return {**found, "number": norm.num_batches_tracked, **gains}


def normed_in_parts() -> dict[str, Any]:
    """What this process has of uneven parts: three images in the first one, one in the other."""
    part, found = (slice(0, 3), slice(3, 4))[processes.index()], {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name, norm in norms().items():
            sync_norm.synchronise(nn.Sequential(norm))
            found[name, dtype] = normed(norm, name, part, dtype)
    return found


# ---- one launch for all of the questions


class Both:
    """What the two processes left behind."""

    def __init__(self, folder: Path, config: RunConfig):
        self.folder, self.config = folder, config
        self.codes: list[int] = []
        self.said: list[tuple[str, str]] = []

    def load(self, name: str) -> list[Any]:
        return [torch.load(self.folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def evaluation(model: Path, out: Path) -> EvaluateOptions:
    return EvaluateOptions(
        model=str(model), data="scenes", size_hw=(64, 64), limit=7, csv_path=out / "images.csv",
        curve_path=out / "curve.png", confusion=out / "confusion", save=out / "maps", json_path=out / "scores.json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_config):
    train = replace(tiny_config.train, iterations=NUM_STEPS, checkpoint_every=0, evaluate_every=0)
    data = replace(tiny_config.data, num_train=NUM_IMAGES, num_val=1)
    return replace(tiny_config, data=data, train=train)


@pytest.fixture(scope="module")
def both(config, tiny_run, tmp_path_factory):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    found = Both(tmp_path_factory.mktemp("both"), config)
    save_config(config, found.folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in "01":
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(found.folder), str(tiny_run.out)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, env={**os.environ, **place}, text=True, **streams))
    try:
        found.said = [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()
    found.codes = [process.returncode for process in running]
    assert found.codes == [2, 2], found.said  # the last thing that they do is to fail
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", norms())
def test_batch_norms_in_two_processes_are_torchs_on_the_whole_batch(both, name, dtype):
    one = normed(norms()[name], name, slice(0, 4), torch.promote_types(dtype, torch.float32))
    parts = [found[name, dtype] for found in both.load("norms")]
    near = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-3, "atol": 1e-3}}.get(dtype)
    if dtype == torch.bfloat16:  # 1000 and more is known to 4 there, which is more than the deviation
        assert parts[0]["y"].dtype == parts[0]["dx"].dtype == torch.bfloat16
        assert all(torch.isfinite(x.double()).all() for part in parts for x in part.values())
        return
    for key in ("y", "dx"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), one[key], **near)
    for key in ("mean", "variance", "number"):
        for part in parts:
            torch.testing.assert_close(part[key], one[key], **near)
    for key in (key for key in one if key in ("weight", "bias")):
        torch.testing.assert_close(sum(part[key] for part in parts), one[key], **near)


def without_offsets_before_norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` without what a batch norm takes out again: its true gradient is 0, and Adam makes steps of the noise."""
    follow = ("pointwise.bias", "bn3.bias", "bn2.bias", "bn1.bias", "running_mean")
    return {name: x for name, x in state.items() if not name.endswith(follow)}


def test_two_processes_take_the_steps_of_one_with_the_double_batch(both, config, tmp_path):
    one = trained(replace(config, train=replace(config.train, batch_size=4)), tmp_path / "one")
    halves = both.load("trained")
    for two in halves:
        for key in ("gradients", "weights", "average"):
            assert two[key].keys() == one[key].keys()
            ours, theirs = without_offsets_before_norms(two[key]), without_offsets_before_norms(one[key])
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
        for ours, theirs in zip(two["losses"], one["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
    for key in ("weights", "average"):
        assert all(torch.equal(x, halves[1][key][name]) for name, x in halves[0][key].items())
    assert one["losses"][0]["normals"] > 0  # the first process's alone


def test_gradients_of_micro_batches_meet_once_and_are_those_of_the_whole_batch(both, config, tmp_path):
    whole = replace(config, train=replace(config.train, batch_size=4))
    one = accumulated(whole, tmp_path / "whole")
    cut = accumulated(replace(config, train=replace(config.train, batch_size=1, accumulate=4)), tmp_path / "cut")
    for found in (cut, *both.load("accumulated")):
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-6, atol=1e-9)
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert [found["meetings"] for found in both.load("accumulated")] == [1, 1]


def test_an_evaluation_in_two_processes_is_that_of_one(both, tiny_run, tmp_path):
    said = StringIO()
    scores = evaluate_from_command(evaluation(tiny_run.out, tmp_path), console=Console(file=said, width=80))
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert len([name for name in files if name.startswith("maps")]) == 7 * 4
    theirs = both.folder / "evaluated"
    assert {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()} == files.keys()
    for name, path in files.items():
        if name != "scores.json":
            assert (theirs / name).read_bytes() == path.read_bytes(), name
    (one, two) = (json.loads((folder / "scores.json").read_text()) for folder in (tmp_path, theirs))
    assert two["confusion"] == one["confusion"]
    assert two["curves"] == one["curves"]
    assert two["scores"].keys() == one["scores"].keys()
    for found in both.load("scores"):
        for task, figures in scores.items():
            assert found[task] == pytest.approx(figures, rel=1e-12, nan_ok=True), task
    assert both.said[0][0].count("the papers' row") == 1
    assert both.said[1][0] == ""


def test_a_run_in_two_processes_has_one_folder_and_the_mean_losses_of_both(both, config, tmp_path):
    one = replace(config, train=replace(config.train, batch_size=4))
    run = assemble(settle(one), tmp_path / "one", resume=False)
    run.model.train()
    batches = iter(batches_from(0, run))
    expected = [step_means(run, batches) for _ in range(FAILS_AFTER)]
    written = {path.name for path in (both.folder / "failing").iterdir()}  # a lock may stay: its process is gone
    assert written - {".lock"} == {"config.yaml", "metrics.jsonl"}
    lines = [json.loads(line) for line in (both.folder / "failing" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line, losses in zip(lines, expected, strict=True):
        for name, value in losses.items():
            assert line[name if name == "loss" else f"loss/{name}"] == pytest.approx(value, rel=1e-3), name


def test_a_mistake_of_one_process_is_said_once_and_ends_both(both):
    assert both.codes == [2, 2]
    assert "".join(err for _, err in both.said).splitlines() == ["mtlsi: the second process cannot go on"]


def fail_in_the_second() -> None:
    """From the third step on the second process has made a mistake; the first one waits for it."""
    step = loop.optimizer_step

    def stepped(run: TrainingRun, batches: Any) -> Any:
        if run.position.step == FAILS_AFTER and processes.index() == 1:
            raise MistakeError("the second process cannot go on")
        return step(run, batches)

    loop.optimizer_step = stepped


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, model, own = Path(sys.argv[1]), Path(sys.argv[2]), os.environ["RANK"]
    settings = load_config(folder)
    processes.join()
    torch.save(normed_in_parts(), folder / f"norms-{own}.pt")
    torch.save(trained(settings, folder / "trained"), folder / f"trained-{own}.pt")
    twice = replace(settings, train=replace(settings.train, batch_size=1, accumulate=2))
    torch.save(accumulated(twice, folder / "accumulated"), folder / f"accumulated-{own}.pt")
    measured = folder / "evaluated"
    measured.mkdir(exist_ok=True)
    torch.save(dict(evaluate_from_command(evaluation(model, measured))), folder / f"scores-{own}.pt")
    fail_in_the_second()
    sys.exit(main(["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "failing")]))
