from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from mtlsi.config import RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.model.network import Output
from mtlsi.run_folder import MovingAverage, Position, load_config
from mtlsi.training import loop, setup
from mtlsi.training.loop import optimizer_step, step_seed, train
from mtlsi.training.setup import TrainingRun

NYUD = ("semseg", "depth", "normals", "boundary")


def quiet():
    return Console(file=StringIO())


def metrics_of(out):
    """The lines of ``metrics.jsonl`` without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "train_s", "evaluation_s")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def changed(config: RunConfig, where: str, value: Any) -> RunConfig:
    """``config`` with the field ``where``, such as train.lr, at ``value``."""
    part, _, name = where.rpartition(".")
    if not part:
        return replace(config, **{name: value})
    return replace(config, **{part: replace(getattr(config, part), **{name: value})})


# ---- one step


class Toy(nn.Module):
    """A linear map without batch statistics: a batch's loss is the mean of its images' losses."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Conv2d(3, 1, 1)
        self.linear.load_state_dict(
            {"weight": torch.tensor([0.5, -0.25, 1.0]).view(1, 3, 1, 1), "bias": torch.zeros(1)}
        )
        self.drawn = []

    def forward(self, images, *, full_size):
        assert not full_size
        self.drawn.append(torch.rand(()).item())
        return Output({"depth": self.linear(images)}, {})


def toy_run(config: RunConfig, step: int = 0) -> TrainingRun:
    network, position = Toy(), Position()
    position.step = step
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss: Any = lambda final, _, batch: ((final["depth"][:, 0] - batch["depth"]).square().mean(), {})  # noqa: E731
    rest: Any = None
    return TrainingRun(
        config=config,
        out=rest,
        accelerator=Accelerator(mixed_precision="no"),
        train_set=rest,
        val_set=rest,
        network=network,  # type: ignore[arg-type]
        model=network,
        criterion=loss,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
        average=MovingAverage(network, 0),
        position=position,
    )


@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_accumulated_steps_take_the_mean_gradient_cut_to_its_norm(clip_norm):
    numbers = torch.Generator().manual_seed(0)
    images, depth = torch.randn(6, 3, 4, 4, generator=numbers), torch.randn(6, 4, 4, generator=numbers)
    batches = [{"image": images[i : i + 2], "depth": depth[i : i + 2]} for i in (0, 2, 4)]
    run = toy_run(RunConfig(train=TrainConfig(accumulate=3, clip_norm=clip_norm)))
    step = optimizer_step(run, iter(batches))

    pixels, target = images.double().movedim(1, -1).reshape(-1, 3).numpy(), depth.double().flatten().numpy()
    weight = np.array([0.5, -0.25, 1.0])
    error = pixels @ weight - target
    gradient = np.append(2 * (error[:, None] * pixels).mean(0), 2 * error.mean())  # of all six images at once
    length = np.sqrt((gradient**2).sum())
    moved = np.append(weight, 0) - 0.1 * gradient * min(1, clip_norm / length)
    found = torch.cat([p.detach().flatten() for p in run.network.parameters()]).numpy()
    assert float(step.norm) == pytest.approx(length, rel=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, moved, atol=1e-5)
    assert run.position.step == 1
    assert step.mean_losses()["loss"] == pytest.approx((error**2).mean(), rel=1e-5)


def test_what_the_network_draws_depends_on_seed_and_step_alone():
    batch = {"image": torch.zeros(1, 3, 2, 2), "depth": torch.zeros(1, 2, 2)}

    def draw(seed: int, steps: list[int]) -> Any:
        run = toy_run(RunConfig(seed=seed), steps[0])
        for _ in steps:
            optimizer_step(run, iter([batch]))
        return run.network.drawn

    whole = draw(0, [0, 1, 2])
    assert len(set(whole)) == 3
    assert draw(0, [2]) == whole[2:]
    assert draw(1, [2]) != whole[2:]


def test_step_seeds_differ():
    seeds = {step_seed(*numbers) for numbers in np.ndindex(3, 50, 8)}
    assert len(seeds) == 3 * 50 * 8
    assert max(seeds) < 2**63


@pytest.mark.parametrize("seed", [4_504_000_000, 20261128093015, 2**64 - 1])
def test_torch_takes_the_seeds_of_a_large_seed(seed):
    RunConfig(seed=seed).check()
    seeds = {step_seed(seed, *numbers) for numbers in np.ndindex(50, 8)}
    assert len(seeds) == 400
    for number in (seed, *seeds):
        torch.manual_seed(number)


def test_seeds_that_torch_did_take_are_those_of_before():
    assert step_seed(4_503_000_000, 7, 3) == (4_503_000_000 * 1_000_003 + 7) * 4_096 + 3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_torch_does_not_take_is_a_mistake(seed):
    with pytest.raises(MistakeError, match=f"seed {seed}; expected 0 to {2**64 - 1}$"):
        RunConfig(seed=seed).check()


# ---- learning


def test_the_loss_falls(tiny_config, tmp_path):
    options = replace(tiny_config.train, iterations=24, batch_size=4, lr=3e-3, backbone_lr_factor=1.0, warmup=0)
    options = replace(options, evaluate_every=0, checkpoint_every=0)
    data = replace(tiny_config.data, zoom=(1.0, 1.0), num_val=1)
    train(replace(tiny_config, data=data, train=options), tmp_path / "run", console=quiet())
    lines = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    first, last = ({key: np.mean([line[key] for line in part]) for key in lines[0]} for part in (lines[:3], lines[-3:]))
    assert last["loss"] < 0.85 * first["loss"]
    for task in ("semseg", "normals", "boundary"):
        assert last[f"loss/{task}"] < first[f"loss/{task}"], task


def test_bf16_trains_on_a_cpu(two_steps, tmp_path):
    scores = train(changed(two_steps, "train.precision", "bf16"), tmp_path / "run", console=quiet())
    assert math.isfinite(scores["depth"]["RMSE"])
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }
    assert load_config(tmp_path / "run").train.precision == "bfloat16"


@pytest.mark.parametrize("loss_at", ["prediction", "image"])
def test_labels_that_images_lack_train_nothing_and_the_others_go_on(two_steps, tmp_path, monkeypatch, loss_at):
    class Poor:
        """No normals at all, and depth for every second image only."""

        def __init__(self, whole):
            self.whole, self.tasks, self.classes, self.name = whole, whole.tasks, whole.classes, whole.name
            self.derived, self.left_out = whole.derived, whole.left_out
            self.boundary_tolerance = whole.boundary_tolerance

        def __len__(self):
            return len(self.whole)

        def __getitem__(self, index):
            missing = {"normals"} if index % 2 else {"normals", "depth"}
            return {name: x for name, x in self.whole[index].items() if name not in missing}

    monkeypatch.setattr(setup, "open_dataset", lambda *arguments: Poor(open_dataset(*arguments)))
    config = changed(changed(two_steps, "train.loss_at", loss_at), "data.num_val", 2)
    scores = train(config, tmp_path / "run", console=quiet())
    for line in metrics_of(tmp_path / "run")[:2]:
        assert line["loss/normals"] == line["loss/coarse/normals"] == 0
        assert all(0 < line[f"loss/{task}"] < math.inf for task in ("semseg", "boundary"))
    assert math.isnan(scores["normals"]["mErr"])
    assert math.isfinite(scores["depth"]["RMSE"])
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]["normals"]["mErr"] is None


# ---- samples


def test_samples_of_long_and_of_like_names_are_files_of_their_own(tmp_path, monkeypatch):
    """A name that no file can have would end the run after its last step, and every time it is resumed."""
    deep = "/".join(["camera_2024-05-01T12-33-11_of_the_long_corridor"] * 7)
    names = [f"{deep}/1", "a/b", "a_b"]

    class Named:
        name = names.__getitem__

        def __len__(self):
            return len(names)

    dataset: Any = Named()
    monkeypatch.setattr(loop, "predict_image", lambda *_: SimpleNamespace(photo=0, predicted={}, truth={}))
    monkeypatch.setattr(loop, "compare_panel", lambda *_, **__: np.zeros((2, 2, 3), np.uint8))
    network: Any = SimpleNamespace(eval=lambda: None, classes={}, colours={})
    inspect.unwrap(loop.draw_samples)(network, dataset, RunConfig().data, tmp_path / "samples")
    assert len(list((tmp_path / "samples").glob("*.png"))) == 3


# ---- mistakes


def test_a_loss_that_is_no_number_is_a_mistake_in_one_line(two_steps, tmp_path):
    config = changed(changed(changed(two_steps, "train.lr", 1e30), "train.iterations", 4), "train.warmup", 0)
    with pytest.raises(MistakeError, match=r"not finite at step [234], .*lower --train\.lr") as caught:
        train(config, tmp_path / "run", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("train.precision", "fp8", "expected one of float32, bfloat16, auto"),
        ("train.freeze_stride", 5, "freeze_stride"),
        ("train.loss_weights", {"smell": 1.0}, "smell"),
        ("train.boundary_positive", 1.5, "boundary"),
        ("train.coarse_weight", -1.0, "coarse_weight"),
        ("train.tracker", "diary", "diary"),
        ("data.name", "kitti", "kitti"),
        ("data.tasks", ("smell",), "smell"),
        ("backbone_weights", "not/there.safetensors", r"not/there\.safetensors"),
        ("model", {"backbone": "mobilenet_of_mine"}, "unknown backbone"),
        ("model", {"num_heads": 5}, "num_heads"),
    ],
)
def test_mistakes_found_on_the_way_leave_no_folder(two_steps, tmp_path, where, value, told):
    with pytest.raises(MistakeError, match=told) as caught:
        train(changed(two_steps, where, value), tmp_path / "run", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
