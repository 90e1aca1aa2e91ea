from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mtlsi.training.shared_maps import TaskGradients, shared_maps


class Chain(nn.Module):
    """Two maps, the second made of the first: 3 x and 2 (3 x)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        first = self.weight * x
        return first, 2 * first


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Chain()


def test_a_maps_gradient_is_what_the_decoder_sends_back():
    network: Any = Network()
    with shared_maps(network) as maps:
        first, second = network.backbone(torch.ones(2))
    loss = (5 * first).sum() + (7 * second).sum()
    (at_first, at_second) = torch.autograd.grad(loss, maps, retain_graph=True)
    assert (at_first.tolist(), at_second.tolist()) == ([5, 5], [7, 7])  # not 5 + 2 * 7
    loss.backward()
    assert network.backbone.weight.grad == 2 * (5 + 2 * 7)
    plain = network.backbone(torch.ones(2))
    assert plain[0] is not maps[0]
    assert len(maps) == 2  # the hook is gone


def test_maps_of_frozen_stages_have_gradients_too():
    network: Any = Network()
    network.backbone.weight.requires_grad_(False)
    with shared_maps(network) as maps:
        made = network.backbone(torch.ones(2))
    assert torch.autograd.grad((made[1] ** 2).sum(), maps[1])[0].tolist() == [12, 12]
    assert network.backbone.weight.grad is None


def test_norms_and_cosines_are_those_of_the_gradients_of_all_maps_and_micro_batches():
    numbers = np.random.default_rng(0)
    rows = numbers.normal(size=(2, 3, 10))  # micro-batch, task, the entries of both maps
    gradients = TaskGradients(Accelerator(mixed_precision="no"), ("semseg", "depth", "normals"))
    for one in torch.as_tensor(rows, dtype=torch.float32):
        maps = [torch.zeros(1, 2, 1, 2, requires_grad=True), torch.zeros(6, requires_grad=True)]
        losses = one[:, :4] @ maps[0].flatten() + one[:, 4:] @ maps[1]
        gradients.add(losses, maps, 0.5)
    whole = 0.5 * np.concatenate([rows[0], rows[1]], axis=1)
    norms = np.linalg.norm(whole, axis=1)
    found = gradients.figures()
    assert list(found) == [
        *(f"gradient_norm/{task}" for task in ("semseg", "depth", "normals")),
        "gradient_cosine/semseg/depth",
        "gradient_cosine/semseg/normals",
        "gradient_cosine/depth/normals",
    ]
    assert found["gradient_norm/depth"] == pytest.approx(norms[1], rel=1e-5)
    assert found["gradient_cosine/depth/normals"] == pytest.approx(whole[1] @ whole[2] / norms[1] / norms[2], rel=1e-4)


def test_a_task_without_labels_has_no_direction():
    maps = [torch.ones(4, requires_grad=True)]
    gradients = TaskGradients(Accelerator(mixed_precision="no"), ("semseg", "depth"))
    gradients.add(torch.stack([maps[0].sum(), 0 * maps[0].sum()]), maps, 1.0)
    assert gradients.figures() == {"gradient_norm/semseg": 2.0, "gradient_norm/depth": 0.0}
    assert not any(math.isnan(value) for value in gradients.figures().values())
