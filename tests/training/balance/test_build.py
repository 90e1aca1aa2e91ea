from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from mtlsi.config import BALANCES, RunConfig, TrainConfig
from mtlsi.errors import MistakeError
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.build import create_model
from mtlsi.training.balance.build import build_balance

TASKS = ("depth", "normals")


@pytest.fixture(scope="module")
def network():
    return create_model("tiny", tasks=TASKS)


def refusal(options: TrainConfig, network, criterion=None, **more) -> str:
    with pytest.raises(MistakeError) as caught:
        build_balance(options, network, criterion or MultiTaskLoss(network.tasks), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fixed_is_no_balance_at_all(network):
    assert build_balance(TrainConfig(), network, nn.Identity()) is None
    assert build_balance(TrainConfig(gradients_every=5), network, MultiTaskLoss(TASKS)) is None


@pytest.mark.parametrize("name", [name for name in BALANCES if name != "fixed"])
def test_every_name_is_built(name, network):
    if name not in ("uncertainty", "dwa", "famo"):
        pytest.importorskip("ecos" if name == "nash_mtl" else "torchjd", reason="pip install 'mtlsi[balance]'")
    built = build_balance(TrainConfig(balance=name), network, MultiTaskLoss(TASKS))
    assert built is not None
    assert built.num_tasks == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"balance": "magic"}, "expected one of fixed, uncertainty, dwa, famo, upgrad, pcgrad, cagrad, nash_mtl"),
        ({"dwa_window": 0}, r"train\.dwa_window 0; expected at least 1"),
        ({"gradients_every": -1}, r"train\.gradients_every -1; expected at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, told):
    with pytest.raises(MistakeError, match=told):
        RunConfig(train=TrainConfig(**settings)).check()


class WithParameters(MultiTaskLoss):
    def __init__(self):
        super().__init__(TASKS)
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("options", [TrainConfig(balance="dwa"), TrainConfig(gradients_every=1)])
def test_a_criterion_that_does_not_give_each_tasks_loss_is_refused(network, options):
    for criterion in (nn.Identity(), WithParameters()):
        assert f"the criterion is {type(criterion).__name__}" in refusal(options, network, criterion)


def test_shards_take_balances_of_losses_alone(network):
    for options, name in (
        (TrainConfig(gradients_every=1), "train.gradients_every"),
        (TrainConfig(balance="pcgrad"), "train.balance pcgrad"),
        (TrainConfig(balance="dwa", gradients_every=1), "train.gradients_every"),
    ):
        assert refusal(options, network, sharded=True).startswith(f"{name} reads the tasks' gradients one by one")
    assert build_balance(TrainConfig(balance="famo"), network, MultiTaskLoss(TASKS), sharded=True) is not None
    assert build_balance(TrainConfig(gradients_every=1), network, MultiTaskLoss(TASKS)) is None


def test_one_task_has_nothing_to_balance():
    alone = create_model("tiny", tasks=("depth",))
    assert "the one task depth" in refusal(TrainConfig(balance="famo"), alone)
    assert build_balance(TrainConfig(gradients_every=1), alone, MultiTaskLoss(("depth",))) is None


def test_a_task_that_weighs_nothing_is_refused(network):
    told = refusal(TrainConfig(balance="uncertainty"), network, MultiTaskLoss(TASKS, weights={"depth": 0.0}))
    assert "train.loss_weights.depth 0" in told
    assert "data.tasks" in told


def test_a_frozen_backbone_has_no_gradients_to_combine():
    pytest.importorskip("torchjd", reason="pip install 'mtlsi[balance]'")
    frozen = create_model("tiny", tasks=TASKS)
    frozen.backbone.requires_grad_(False)
    assert "train.freeze_stride" in refusal(TrainConfig(balance="upgrad"), frozen)
    assert build_balance(TrainConfig(balance="dwa"), frozen, MultiTaskLoss(TASKS)) is not None


def test_without_torchjd_a_person_is_told_what_to_install(network, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchjd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchjd", None)
    assert refusal(TrainConfig(balance="pcgrad"), network).endswith("pip install 'mtlsi[balance]'")
    assert "ecos" in refusal(TrainConfig(balance="nash_mtl"), network)
