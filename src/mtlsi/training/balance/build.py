"""The balance that a configuration asks for, or what stands in its way."""

from __future__ import annotations

from torch import nn

from mtlsi.config import TrainConfig
from mtlsi.errors import MistakeError
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.network import MTLSINet
from mtlsi.training.balance.base import Balance
from mtlsi.training.balance.conflicts import Conflicts
from mtlsi.training.balance.dwa import DynamicWeightAverage
from mtlsi.training.balance.famo import FAMO
from mtlsi.training.balance.uncertainty import Uncertainty

BY_WEIGHTS = ("uncertainty", "dwa", "famo")
"""Balances that weigh losses and leave the gradients alone."""


def build_balance(
    options: TrainConfig, network: MTLSINet, criterion: nn.Module, *, sharded: bool = False
) -> Balance | None:
    """The balance of ``options`` for the tasks of ``network``; None: fixed, the criterion's own total.

    ``sharded``: whether each process has a share of the network. Raises ``MistakeError`` where balance or measurement of
    the tasks' gradients cannot work with the other parts.
    """
    if options.balance == "fixed" and not options.gradients_every:
        return None
    asked = f"train.balance {options.balance}" if options.balance != "fixed" else "train.gradients_every"
    if not isinstance(criterion, MultiTaskLoss) or any(True for _ in criterion.parameters()):
        raise MistakeError(
            f"{asked} needs each task's loss by itself, and the criterion is {type(criterion).__name__}; expected a "
            "MultiTaskLoss without parameters of its own: leave the criterion out, or choose fixed and gradients_every 0"
        )
    if sharded and (options.gradients_every or options.balance not in BY_WEIGHTS):
        needs = asked if options.balance not in (*BY_WEIGHTS, "fixed") else "train.gradients_every"
        raise MistakeError(
            f"{needs} reads the tasks' gradients one by one, which train.shard does not keep; expected fixed or one of "
            f"{', '.join(BY_WEIGHTS)} and gradients_every 0, or train.shard false"
        )
    if options.balance == "fixed":
        return None
    if len(network.tasks) == 1:
        raise MistakeError(f"{asked} with the one task {', '.join(network.tasks)}; expected two or train.balance fixed")
    for task, weight in criterion.weights.items():
        if not weight:
            raise MistakeError(
                f"{asked} with train.loss_weights.{task} 0; expected weights above 0: leave the task out with data.tasks"
            )
    if options.balance == "uncertainty":
        return Uncertainty(len(network.tasks))
    if options.balance == "dwa":
        return DynamicWeightAverage(len(network.tasks), options.dwa_window)
    if options.balance == "famo":
        return FAMO(len(network.tasks))
    return Conflicts(options.balance, len(network.tasks), network)
