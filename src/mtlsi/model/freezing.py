"""Parts of a network that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mtlsi.errors import MistakeError

BACKBONE = "backbone"


def parts_of(network: Any) -> dict[str, nn.Module]:
    """What ``freeze`` can be asked for, by name: the backbone, and the decoder's own modules that have weights.

    Of MTLSI-Net's decoder: preliminary, fusion, distiller, local, cross_window and heads. Any decoder has the parts that
    its ``__init__`` gave names.
    """
    decoder = {name: part for name, part in network.decoder.named_children() if any(True for _ in part.parameters())}
    return {BACKBONE: network.backbone, **decoder}


def check_parts(network: Any, names: Iterable[str]) -> None:
    """Raises ``MistakeError`` for a name that is no part of ``network``, and where nothing would be left to train."""
    parts = parts_of(network)
    for name in names:
        part, _, task = name.partition(".")
        if part in parts and task in network.tasks:
            raise MistakeError(
                f"train.freeze {name!r}: the weights of all tasks in {part} are one tensor and cannot be frozen one by one; "
                f"give {part}, or take {task} out of the loss with train.loss_weights"
            )
        if name not in parts:
            raise MistakeError(f"train.freeze {name!r}: no part of the network; expected some of {', '.join(parts)}")
    if names and parts.keys() <= set(names):
        raise MistakeError(f"train.freeze names every part ({', '.join(parts)}); leave out what is to be trained")


def freeze(network: Any, names: Iterable[str]) -> None:
    """Leave the parts ``names`` as they are from now on: no gradients, evaluation mode, batch statistics as stored.

    They stay so in ``network.train()``. Raises ``MistakeError`` for an unknown part, and where nothing is left to train.
    """
    names = tuple(names)
    check_parts(network, names)
    for name in names:
        parts_of(network)[name].requires_grad_(False)
    network.frozen_parts = names
    network.train(network.training)
