from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtlsi.training.balance.uncertainty import Uncertainty


def prepared(num_tasks: int) -> Uncertainty:
    balance = Uncertainty(num_tasks)
    balance.prepare(Accelerator(mixed_precision="no"))
    return balance


def test_losses_and_log_variances_get_the_gradients_of_the_formula():
    balance, losses = prepared(2), torch.tensor([3.0, 0.5], requires_grad=True)
    (s,) = balance.learned()
    s.data = torch.tensor([0.7, -1.2])
    balance.backward(losses, (), 0.5)
    values = np.array([0.7, -1.2])
    np.testing.assert_allclose(losses.grad, 0.5 * np.exp(-values), rtol=1e-6)
    np.testing.assert_allclose(s.grad, 0.5 * (1 - np.exp(-values) * [3.0, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(balance.weights, np.exp(-values), rtol=1e-6)


def test_it_begins_at_the_fixed_balance_and_ends_at_the_log_of_losses_that_stand_still():
    balance, losses = prepared(3), torch.tensor([40.0, 1.0, 0.02])
    assert balance.total(losses).item() == pytest.approx(float(losses.sum()))
    optimizer = torch.optim.Adam(balance.learned(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        balance.backward(losses, (), 1.0)
        optimizer.step()
    np.testing.assert_allclose(balance.learned()[0].detach(), np.log(losses), atol=1e-3)


def test_a_task_without_labels_moves_nothing():
    balance, losses = prepared(2), torch.tensor([2.0, 0.0], requires_grad=True)
    balance.backward(losses, (), 1.0)
    assert losses.grad.tolist() == [1, 0]  # type: ignore[union-attr]
    assert balance.learned()[0].grad.tolist() == [-1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "parts", [[[4.0, 0.5]], [[4.0, 1.0], [4.0, 0.0]], [[4.0, 0.0], [8.0, 0.0], [0.0, 2.0], [4.0, 0.0]]]
)
def test_labels_in_some_micro_batches_alone_count_as_in_the_whole(parts):
    balance, losses = prepared(2), torch.tensor(parts)
    assert losses.mean(0).tolist() == [4, 0.5]
    optimizer = torch.optim.Adam(balance.learned(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        for part in losses:
            balance.backward(part, (), 1 / len(parts), torch.tensor([True, True]))
        optimizer.step()
    np.testing.assert_allclose(balance.learned()[0].detach().exp(), [4, 0.5], rtol=1e-3)


def test_it_is_twice_torchjds_which_has_the_papers_factor():
    scalarization = pytest.importorskip("torchjd.scalarization", reason="pip install 'mtlsi[balance]'")
    balance, theirs, losses = prepared(4), scalarization.UW(4), torch.rand(4) + 0.1
    for values in (balance.learned()[0], theirs.log_var):
        values.data = torch.tensor([0.3, -0.4, 2.0, 0.0])
    assert balance.total(losses).item() == pytest.approx(2 * theirs(losses).item(), rel=1e-6)
