"""Frozen parts against what a training does to every weight and statistic of them."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.freezing import freeze, parts_of
from mtlsi.training.loop import train
from mtlsi.training.setup import build_optimizer


@pytest.mark.parametrize(
    ("decoder", "parts"),
    [
        ("mtlsi", ["backbone", "preliminary", "fusion", "distiller", "local", "cross_window", "heads"]),
        ("heads_only", ["backbone", "pyramid", "heads"]),
        ("atrc", ["backbone", "features", "auxiliary", "context", "heads"]),
        ("invpt", ["backbone", "preliminary", "upscales", "blocks", "heads"]),
        ("taskexpert", ["backbone", "experts", "mixtures", "heads"]),
    ],
)
def test_the_parts_of_a_decoder_hold_every_weight_once(decoder, parts):
    network = create_model("tiny", decoder=decoder)
    found = parts_of(network)
    assert list(found) == parts
    weights = [id(parameter) for part in found.values() for parameter in part.parameters()]
    assert sorted(weights) == sorted(id(parameter) for parameter in network.parameters())


def test_frozen_parts_stay_in_evaluation_without_gradients_and_out_of_the_optimizer(tiny_config):
    network = create_model("tiny").train()
    freeze(network, ("fusion", "heads"))
    for _ in range(2):
        network.eval().train()
        for name, part in parts_of(network).items():
            frozen = name in ("fusion", "heads")
            assert not any(module.training for module in part.modules()) or not frozen
            assert part.training is not frozen
            assert all(parameter.requires_grad is not frozen for parameter in part.parameters())
    stepped = {id(p) for group in build_optimizer(network, tiny_config.train).param_groups for p in group["params"]}
    frozen = {id(p) for name in ("fusion", "heads") for p in parts_of(network)[name].parameters()}
    assert stepped == {id(parameter) for parameter in network.parameters()} - frozen
    out = network(torch.randn(2, 3, 64, 64))
    sum(x.square().mean() for x in (*out.final.values(), *out.coarse.values())).backward()
    assert parts_of(network)["preliminary"].predict.of_task["depth"].weight.grad.abs().sum() > 0
    assert all(
        parameter.grad is None for name in ("fusion", "heads") for parameter in parts_of(network)[name].parameters()
    )


def test_a_training_moves_everything_but_the_frozen_parts(tiny_run, two_steps, tmp_path):
    """Together with freeze_stride, which freezes a part of the backbone."""
    options = replace(two_steps.train, freeze="fusion, preliminary", freeze_stride=8, lr=0.01, ema=0.0)
    config = replace(two_steps, init=str(tiny_run.out), train=options)
    train(config, tmp_path / "run", console=Console(file=StringIO()))
    before, after = load_file(tiny_run.out / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("fusion.", "preliminary."))}
    assert any("running_mean" in name for name in frozen)
    assert not moved & frozen
    network = create_model("tiny")
    network.backbone.freeze(8, norm=False)
    still = {name for name, parameter in network.backbone.named_parameters() if not parameter.requires_grad}
    assert 0 < len(still) < sum(1 for _ in network.backbone.parameters())
    assert not moved & {f"backbone.{name}" for name in still}
    for part in ("cross_window.", "distiller.", "heads.", "backbone."):
        assert any(name.startswith(part) for name in moved), part


def test_what_cannot_be_frozen_is_told_with_what_can():
    network = create_model("tiny")
    with pytest.raises(
        MistakeError, match=r"'neck': no part of the network; expected some of backbone, preliminary, f"
    ):
        freeze(network, ("neck",))
    with pytest.raises(
        MistakeError, match=r"'heads\.depth': the weights of all tasks in heads are one tensor.* give heads"
    ):
        freeze(network, ("heads.depth",))
    with pytest.raises(MistakeError, match="names every part"):
        freeze(network, parts_of(network))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_decoder_of_ones_own_has_the_parts_that_it_names():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck, self.shape = nn.Linear(2, 2), nn.Identity()

    network = create_model("tiny")
    network.decoder = Mine()
    assert list(parts_of(network)) == ["backbone", "neck"]
