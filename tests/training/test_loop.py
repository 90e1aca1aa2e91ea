from __future__ import annotations

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
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet, Output
from mtlsi.run_folder import MovingAverage, Position, load_config
from mtlsi.training import loop as train_module
from mtlsi.training.loop import (
    Parts,
    build_model,
    build_optimizer,
    check,
    learning_rate_factor,
    optimizer_step,
    settle,
    step_seed,
    train,
)

NYUD = ("semseg", "depth", "normals", "boundary")


def quiet():
    return Console(file=StringIO())


def metrics_of(out):
    """The lines of ``metrics.jsonl`` without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


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


def toy_parts(step: int = 0) -> Parts:
    network, position = Toy(), Position()
    position.step = step
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss: Any = lambda final, _, batch: ((final["depth"][:, 0] - batch["depth"]).square().mean(), {})  # noqa: E731
    rest: Any = None
    return Parts(
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
    parts, log = toy_parts(), SimpleNamespace(add=lambda *_: None)
    config = RunConfig(train=TrainConfig(accumulate=3, clip_norm=clip_norm))
    norm = optimizer_step(parts, iter(batches), config, log)  # type: ignore[arg-type]

    pixels, target = images.double().movedim(1, -1).reshape(-1, 3).numpy(), depth.double().flatten().numpy()
    weight = np.array([0.5, -0.25, 1.0])
    error = pixels @ weight - target
    gradient = np.append(2 * (error[:, None] * pixels).mean(0), 2 * error.mean())  # of all six images at once
    length = np.sqrt((gradient**2).sum())
    moved = np.append(weight, 0) - 0.1 * gradient * min(1, clip_norm / length)
    found = torch.cat([p.detach().flatten() for p in parts.network.parameters()]).numpy()
    assert float(norm) == pytest.approx(length, rel=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, moved, atol=1e-5)
    assert parts.position.step == 1


def test_what_the_network_draws_depends_on_seed_and_step_alone():
    batch = {"image": torch.zeros(1, 3, 2, 2), "depth": torch.zeros(1, 2, 2)}
    log: Any = SimpleNamespace(add=lambda *_: None)

    def draw(seed: int, steps: list[int]) -> Any:
        parts = toy_parts(steps[0])
        for _ in steps:
            optimizer_step(parts, iter([batch]), RunConfig(seed=seed), log)
        return parts.network.drawn

    whole = draw(0, [0, 1, 2])
    assert len(set(whole)) == 3
    assert draw(0, [2]) == whole[2:]
    assert draw(1, [2]) != whole[2:]


def test_step_seeds_differ():
    seeds = {step_seed(*numbers) for numbers in np.ndindex(3, 50, 8)}
    assert len(seeds) == 3 * 50 * 8
    assert max(seeds) < 2**63


# ---- the learning rate and the optimizer


def test_the_learning_rate_rises_linearly_then_falls_to_zero():
    poly = TrainConfig(iterations=110, warmup=10)
    cosine = replace(poly, schedule="cosine")
    for options in (poly, cosine):
        assert [learning_rate_factor(step, options) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert learning_rate_factor(10, options) == 1
        assert learning_rate_factor(110, options) == pytest.approx(0, abs=1e-12)
        assert learning_rate_factor(200, options) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(35, poly) == pytest.approx(0.75**0.9)
    assert learning_rate_factor(60, poly) == pytest.approx(math.exp(0.9 * math.log(0.5)))
    assert learning_rate_factor(60, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(10 + 25, cosine) == pytest.approx(math.cos(math.pi / 8) ** 2)
    assert learning_rate_factor(0, replace(poly, warmup=0)) == 1


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero():
    assert learning_rate_factor(5, TrainConfig(iterations=5, warmup=10)) == pytest.approx(0.6)
    assert learning_rate_factor(10, TrainConfig(iterations=10, warmup=10)) == 1


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_optimizer_treats_backbone_and_vectors_in_their_own_way(name):
    network = create_model("tiny")
    network.backbone.freeze(8, norm=True)
    options = TrainConfig(optimizer=name, lr=0.02, backbone_lr_factor=0.25, weight_decay=0.03)
    optimizer = build_optimizer(network, options)
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)  # none of them twice

    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    vectors = {id(p) for module in network.modules() for p in module.parameters(recurse=False)
               if isinstance(module, norms) or type(module).__name__.endswith("Norm")}  # fmt: skip
    vectors |= {id(p) for name, p in network.named_parameters() if name.endswith("bias") or p.dim() < 2}
    for parameter_name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found, parameter_name
            continue
        group = found[id(parameter)]
        in_backbone = parameter_name.startswith("backbone.")
        assert group["lr"] == pytest.approx(0.005 if in_backbone else 0.02), parameter_name
        assert group["weight_decay"] == (0 if id(parameter) in vectors else 0.03), parameter_name
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith("backbone.") for n in frozen)


# ---- building


def test_depth_begins_at_the_middle_of_the_labels(tiny_config):
    dataset = open_dataset(tiny_config.data, "train")
    torch.manual_seed(0)
    network = build_model(tiny_config, dataset).eval()
    median = np.median(np.concatenate([dataset[i]["depth"].numpy().ravel() for i in range(6)]))
    with torch.no_grad():
        out = network(torch.randn(1, 3, 64, 64))
    for prediction in (out.final["depth"], out.coarse["depth"]):
        assert prediction.mean() == pytest.approx(median, abs=0.5)
    assert network.input_size == (64, 64)
    assert network.tasks == NYUD


def test_settling_writes_out_the_precision_and_whole_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "choose_precision", {"auto": "float32"}.__getitem__)
    config = changed(RunConfig(backbone_weights="weights.safetensors"), "data.root", "set")
    settled = settle(config)
    assert settled.train.precision == "float32"
    assert settled.data.root == str(tmp_path / "set")
    assert settled.backbone_weights == str(tmp_path / "weights.safetensors")
    assert settle(RunConfig(backbone_weights="pretrained")).backbone_weights == "pretrained"
    assert settle(RunConfig()).data.root is None


# ---- learning


def test_the_loss_falls(tiny_config, tmp_path):
    options = replace(tiny_config.train, iterations=15, batch_size=4, lr=3e-3, backbone_lr_factor=1.0, warmup=0)
    options = replace(options, evaluate_every=0, checkpoint_every=0)
    data = replace(tiny_config.data, zoom=(1.0, 1.0), num_val=1)
    train(replace(tiny_config, data=data, train=options), tmp_path / "run", console=quiet())
    lines = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    first, last = ({key: np.mean([line[key] for line in part]) for key in lines[0]} for part in (lines[:3], lines[-3:]))
    assert last["loss"] < 0.85 * first["loss"]
    for task in ("semseg", "normals", "boundary"):
        assert last[f"loss/{task}"] < first[f"loss/{task}"], task


def test_bf16_trains_on_a_processor(two_steps, tmp_path):
    scores = train(changed(two_steps, "train.precision", "bf16"), tmp_path / "run", console=quiet())
    assert math.isfinite(scores["depth"]["RMSE"])
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }
    assert load_config(tmp_path / "run").train.precision == "bf16"


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

    monkeypatch.setattr(train_module, "open_dataset", lambda *arguments: Poor(open_dataset(*arguments)))
    config = changed(changed(two_steps, "train.loss_at", loss_at), "data.num_val", 2)
    scores = train(config, tmp_path / "run", console=quiet())
    for line in metrics_of(tmp_path / "run")[:2]:
        assert line["loss/normals"] == line["loss/coarse/normals"] == 0
        assert all(0 < line[f"loss/{task}"] < math.inf for task in ("semseg", "boundary"))
    assert math.isnan(scores["normals"]["mErr"])
    assert math.isfinite(scores["depth"]["RMSE"])
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]["normals"]["mErr"] is None


# ---- mistakes


def test_a_loss_that_is_no_number_is_a_mistake_in_one_line(two_steps, tmp_path):
    config = changed(changed(changed(two_steps, "train.lr", 1e30), "train.iterations", 4), "train.warmup", 0)
    with pytest.raises(MistakeError, match=r"not a number at step [234]; .*lower --train\.lr") as caught:
        train(config, tmp_path / "run", console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("train.optimizer", "sgd", "adamw or adam"),
        ("train.schedule", "linear", "poly or cosine"),
        ("train.loss_at", "middle", "prediction or image"),
        ("train.ema", 1.0, "below 1"),
        ("train.ema", -0.1, "at least 0"),
        ("train.iterations", 0, "at least 1"),
        ("train.batch_size", 0, "at least 1"),
        ("train.accumulate", -1, "at least 1"),
        ("train.log_every", 0, "at least 1"),
        ("data.size_hw", (64, 68), "multiples of the decoder's stride 8"),
        ("data.size_hw", (32, 64), "64 or more"),
        ("preset", "huge", "unknown preset"),
        ("model", {"width": 3}, "unknown model size"),
        ("model", {"decoder_stride": 0}, "decoder_stride"),
        ("data.num_train", 0, "num_train"),
        ("data.num_val", 0, "num_val"),
        ("data.num_workers", -1, "num_workers"),
        ("data.zoom", (2.0, 1.0), "zoom"),
        ("data.zoom", (0.0, 1.0), "zoom"),
        ("data.image_hw", (0, 64), "image_hw"),
        ("train.lr", -1.0, "lr"),
        ("train.warmup", -1, "warmup"),
        ("train.clip_norm", 0.0, "clip_norm"),
        ("train.evaluate_every", -1, "evaluate_every"),
        ("train.checkpoint_every", -1, "checkpoint_every"),
        ("train.evaluate_images", -5, "evaluate_images"),
        ("seed", -1, "seed"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_name(where, value, told):
    check(RunConfig())
    with pytest.raises(MistakeError, match=told) as caught:
        check(changed(RunConfig(), where, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("train.precision", "fp8", "float32, bf16 or auto"),
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


def test_a_run_starts_from_the_backbone_of_a_model_folder(tiny_run, two_steps):
    train_set = open_dataset(two_steps.data, "train")
    begun = build_model(replace(two_steps, backbone_weights=str(tiny_run.out)), train_set)
    donor = MTLSINet.from_pretrained(tiny_run.out).backbone.state_dict()
    assert all(torch.equal(value, donor[name]) for name, value in begun.backbone.state_dict().items())
    with pytest.raises(MistakeError, match="of mobilenetv2_035; expected those of mobilenetv2_100"):
        build_model(replace(two_steps, preset="mobilenetv2_100", backbone_weights=str(tiny_run.out)), train_set)
    assert settle(replace(two_steps, backbone_weights="nyud-mobilenetv2")).backbone_weights == "nyud-mobilenetv2"
