"""Problems whose gradients are known: the backbone's only weight is the map, so a task's gradient is a row that is given."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.optimize import nnls
from torch import nn

from mtlsi.training.balance.conflicts import Conflicts
from mtlsi.training.shared_maps import shared_maps

pytest.importorskip("torchjd", reason="pip install 'mtlsi[balance]'")
NAMES = ("upgrad", "pcgrad", "cagrad", *(("nash_mtl",) if find_spec("ecos") else ()))

TWO = np.array([[1.0, 0.0], [-2.0, 1.0]])
"""Two gradients that conflict: their product is -2."""


class Backbone(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, size + 1))

    def forward(self) -> tuple[torch.Tensor]:
        return (self.weight * 1.0,)


class Known(nn.Module):
    """The loss of task t is ``gain * (1 + t) * rows[t] . map``."""

    def __init__(self, size: int):
        super().__init__()
        self.backbone, self.decoder = Backbone(size), nn.Module()
        self.decoder.gain = nn.Parameter(torch.ones(1))

    def losses(self, rows: np.ndarray) -> torch.Tensor:
        return self.decoder.gain * (torch.as_tensor(rows, dtype=torch.float32) @ self.backbone()[0])


def prepared(name: str, rows: np.ndarray) -> Conflicts:
    network: Any = Known(rows.shape[1])
    balance = Conflicts(name, len(rows), network)
    balance.prepare(Accelerator(mixed_precision="no"))
    return balance


def add(balance: Conflicts, rows: np.ndarray, share: float) -> None:
    network: Any = balance.network
    with shared_maps(network) as maps:
        losses = network.losses(rows)
    balance.backward(losses, maps, share)


def combined(name: str, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """The backbone's gradient that is made of ``rows``."""
    balance = prepared(name, rows)
    add(balance, rows, 1.0)
    balance.collect(seed)
    found = balance.network.backbone.weight.grad.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(balance.weights.numpy() @ rows, found, rtol=1e-4, atol=1e-5)
    return found


def pcgrad(rows: np.ndarray, seed: int) -> np.ndarray:
    """Algorithm 1 of PCGrad: each gradient loses what it has against the others, one after the other."""
    torch.manual_seed(seed)
    total = np.zeros(rows.shape[1])
    for i, row in enumerate(rows):
        mine = row.copy()
        for j in torch.randperm(len(rows)).tolist():
            if j != i and mine @ rows[j] < 0:
                mine -= (mine @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total += mine
    return total


def upgrad(rows: np.ndarray) -> np.ndarray:
    """Each gradient projected onto the cone of what conflicts with none, added up."""
    return sum(row + rows.T @ nnls(rows.T, -row)[0] for row in rows)


def cagrad(rows: np.ndarray, c: float) -> np.ndarray:
    """The best of many mixes of two gradients, by the dual problem of CAGrad."""
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    mixes = [share * rows[0] + (1 - share) * rows[1] for share in np.linspace(0, 1, 20001)]
    best = min(mixes, key=lambda mix: mix @ mean + radius * np.linalg.norm(mix))
    return mean + radius * best / np.linalg.norm(best)


def test_two_gradients_that_conflict_lose_the_conflict():
    # (1, 0) without its part along (-2, 1) is (0.2, 0.4); (-2, 1) without its part along (1, 0) is (0, 1)
    np.testing.assert_allclose(combined("pcgrad", TWO), [0.2, 1.4], atol=1e-5)
    np.testing.assert_allclose(combined("upgrad", TWO), [0.2, 1.4], atol=2e-3)
    for name in set(NAMES) - {"cagrad"}:  # which only leans towards it
        assert (TWO @ combined(name, TWO) > 0).all(), name  # a step that helps both; their sum would not
    assert (TWO @ TWO.sum(0))[0] < 0


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_and_upgrad_of_four_gradients(seed):
    rows = np.random.default_rng(seed).normal(size=(4, 6))
    assert (rows @ rows.T).min() < 0
    np.testing.assert_allclose(combined("pcgrad", rows, seed), pcgrad(rows, seed), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(combined("upgrad", rows), upgrad(rows), atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_cagrad_of_two_gradients(seed):
    rows = TWO if not seed else np.random.default_rng(seed).normal(size=(2, 5))
    np.testing.assert_allclose(combined("cagrad", rows), cagrad(rows, 0.4), atol=5e-3)


def test_nash_mtl_solves_the_bargain():
    pytest.importorskip("ecos", reason="pip install 'mtlsi[balance]'")
    rows = np.random.default_rng(5).normal(size=(2, 4))
    balance = prepared("nash_mtl", rows)
    add(balance, rows, 1.0)
    balance.collect(0)
    weights = balance.weights.double().numpy()
    products = weights * (rows @ rows.T @ weights)  # of the bargain: all alike
    assert products[0] == pytest.approx(products[1], rel=1e-2)
    assert np.linalg.norm(weights @ rows) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["pcgrad", "upgrad"])
def test_without_a_conflict_it_is_the_fixed_balance(name):
    rows = np.abs(np.random.default_rng(0).normal(size=(3, 4)))
    np.testing.assert_allclose(combined(name, rows), rows.sum(0), rtol=1e-3)


def test_micro_batches_are_added_up_before_gradients_are_combined():
    balance, first, second = prepared("pcgrad", TWO), TWO * 3, np.array([[-1.0, 0.0], [2.0, 1.0]])
    add(balance, first, 0.5)
    add(balance, second, 0.5)
    balance.collect(0)
    weight = balance.network.backbone.weight
    np.testing.assert_allclose(weight.grad, pcgrad((first + second) / 2, 0), atol=1e-5)  # type: ignore[arg-type]


def test_the_decoder_gets_the_sum_of_the_tasks_gradients():
    balance = prepared("upgrad", TWO)
    add(balance, TWO, 1.0)
    balance.collect(0)
    gain: Any = balance.network.decoder.gain
    assert gain.grad.tolist() == pytest.approx([(TWO @ [1.0, 2.0]).sum()])


@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_labels_leaves_the_others_their_gradients(name):
    rows = np.concatenate([TWO, np.zeros((1, 2))])
    assert np.isfinite(combined(name, rows)).all()
    if name in ("pcgrad", "upgrad"):
        np.testing.assert_allclose(combined(name, rows), [0.2, 1.4], atol=2e-3)


def test_gradients_lie_in_memory_as_their_parameters_do():
    class Turned(Known):
        def losses(self, rows):  # noqa: ARG002
            maps = self.backbone()[0]
            turned = self.decoder.gain.T @ torch.ones(3)  # its gradient is a transposed tensor
            return torch.stack([turned.sum() * maps[0], turned[0] * maps[1]])

    network: Any = Turned(2)
    network.decoder.gain = nn.Parameter(torch.ones(3, 2))
    balance = Conflicts("upgrad", 2, network)
    balance.prepare(Accelerator(mixed_precision="no"))
    add(balance, TWO, 1.0)
    assert network.decoder.gain.grad.stride() == network.decoder.gain.stride()
    assert network.decoder.gain.grad.tolist() == [[3, 1]] * 3


def test_the_order_of_tasks_is_drawn_from_the_seed_alone_and_moves_no_other_draw():
    rows = np.array([[1.0, 0.1], [-0.6, 0.8], [-0.5, -0.9]])  # each against both others
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = combined("pcgrad", rows, seed=3)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(combined("pcgrad", rows, seed=3), first)
    assert any(np.abs(combined("pcgrad", rows, seed=seed) - first).max() > 1e-3 for seed in range(10))


def test_a_gradient_that_is_not_finite_is_told_and_leaves_no_trace():
    balance = prepared("upgrad", TWO)
    add(balance, np.where(TWO == 0, 1.0, np.inf), 1.0)
    assert not balance.collect(0)
    balance.forget_step()
    add(balance, TWO, 1.0)
    assert balance.collect(0)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in balance.shared)
