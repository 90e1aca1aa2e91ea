from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtlsi.training.balance.famo import FAMO


def prepared(num_tasks: int) -> FAMO:
    balance = FAMO(num_tasks)
    balance.prepare(Accelerator(mixed_precision="no"))
    return balance


def losses_of(weight: torch.Tensor) -> torch.Tensor:
    """Two losses that want the weight elsewhere, the first a hundred times larger."""
    return torch.stack([100 * (weight - 1).square().sum(), (weight + 1).square().sum()])


def train_together(balance: FAMO, weight: torch.Tensor, num_steps: int) -> None:
    def again() -> list[torch.Tensor]:
        return [losses_of(weight)]

    for _ in range(num_steps):
        weight.grad = None
        balance.backward(losses_of(weight), (), 1.0)
        with torch.no_grad():
            weight -= 0.05 * weight.grad  # type: ignore[operator]
            balance.after_step(again)


def naive(weight: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of the paper with Adam (0.025, weight decay 0.001) written out, in float64."""
    logits, mean, square = np.zeros(2), np.zeros(2), np.zeros(2)

    def losses() -> np.ndarray:
        return np.array([100 * ((weight - 1) ** 2).sum(), ((weight + 1) ** 2).sum()])

    for step in range(1, num_steps + 1):
        z = np.exp(logits) / np.exp(logits).sum()
        before = losses()
        gradients = np.stack([200 * (weight - 1), 2 * (weight + 1)])
        c = 1 / (z / before).sum()
        weight = weight - 0.05 * c * (z / before) @ gradients
        fall = np.log(before) - np.log(losses())
        jacobian = np.diag(z) - np.outer(z, z)  # of the softmax
        gradient = jacobian @ fall + 1e-3 * logits
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        logits = logits - 0.025 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return logits, weight


def test_weights_and_logits_move_as_in_the_papers_algorithm():
    balance, weight = prepared(2), torch.tensor([0.3, -0.5], requires_grad=True)
    train_together(balance, weight, 20)
    logits, moved = naive(np.array([0.3, -0.5]), 20)
    assert np.ptp(logits) > 0.05  # they did move
    np.testing.assert_allclose(balance.logits, logits, atol=1e-4)
    np.testing.assert_allclose(weight.detach(), moved, rtol=1e-4)


def test_the_gradient_is_a_weighted_mean_of_the_tasks_gradients():
    balance, losses = prepared(3), torch.tensor([100.0, 1.0, 0.01], requires_grad=True)
    balance.backward(losses, (), 1.0)
    assert float(balance.weights.sum()) == pytest.approx(1)
    np.testing.assert_allclose(losses.grad, balance.weights)
    np.testing.assert_allclose(losses.grad * losses.detach(), np.full(3, 1 / 101.01), rtol=1e-5)  # type: ignore[operator]


def test_the_task_that_fell_least_gains():
    balance = prepared(2)
    balance.total(torch.tensor([1.0, 1.0]))
    balance.after_step(lambda: [torch.tensor([0.5, 0.9])])
    assert balance.logits[1] > 0 > balance.logits[0]


def test_a_task_without_labels_takes_no_part_and_the_others_share():
    balance, losses = prepared(3), torch.tensor([2.0, 0.0, 2.0], requires_grad=True)
    balance.backward(losses, (), 1.0)
    assert losses.grad.tolist() == [0.5, 0, 0.5]  # type: ignore[union-attr]
    balance.after_step(lambda: [torch.tensor([1.0, 0.0, 1.0])])
    assert torch.isfinite(balance.logits).all()
    nothing = torch.zeros(3, requires_grad=True)
    balance.backward(nothing, (), 1.0)
    assert nothing.grad.tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_it_goes_on_from_its_state():
    weights = [torch.tensor([0.3, -0.5], requires_grad=True) for _ in range(2)]
    whole, begun, again = (prepared(2) for _ in range(3))
    train_together(whole, weights[0], 6)
    train_together(begun, weights[1], 3)
    again.load_state_dict(begun.state_dict())
    train_together(again, weights[1], 3)
    assert torch.equal(again.logits, whole.logits)
    assert torch.equal(weights[0], weights[1])


def test_it_agrees_with_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization", reason="pip install 'mtlsi[balance]'")
    theirs, ours = scalarization.FAMO(2), prepared(2)
    one, other = (torch.tensor([0.3, -0.5], requires_grad=True) for _ in range(2))
    train_together(ours, one, 5)
    for _ in range(5):
        (gradient,) = torch.autograd.grad(theirs(losses_of(other)), other)
        with torch.no_grad():
            other -= 0.05 * gradient
        theirs.update(losses_of(other).detach())
    torch.testing.assert_close(one, other)
