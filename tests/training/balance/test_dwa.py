from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mtlsi.training.balance.dwa import DynamicWeightAverage, dwa_weights


def prepared(num_tasks: int, window: int) -> DynamicWeightAverage:
    balance = DynamicWeightAverage(num_tasks, window)
    balance.prepare(Accelerator(mixed_precision="no"))
    return balance


def steps(balance: DynamicWeightAverage, losses: torch.Tensor) -> list[list[float]]:
    """The weights that each of ``losses`` (step, micro-batch, t) was multiplied by."""
    found = []
    for of_step in losses:
        found.append(balance.weights.tolist())
        for one in of_step:
            assert float(balance.total(one)) == pytest.approx(float((balance.weights * one).sum()))
        balance.after_step(list)
    return found


def test_weights_are_those_of_the_formula():
    # the first loss fell by half, the second not at all: rates 1/2 and 1, temperature 2
    first = 2 * math.exp(0.25) / (math.exp(0.25) + math.exp(0.5))
    found = dwa_weights(torch.tensor([4.0, 3.0]), torch.tensor([2.0, 3.0]), 2.0)
    assert found.tolist() == pytest.approx([first, 2 - first])


def test_windows_are_averaged_over_steps_and_micro_batches_and_the_last_two_count():
    losses = torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    found = steps(prepared(3, window=2), losses)
    windows = losses[:8].double().reshape(4, 4, 3).mean(1).numpy()
    assert found[:4] == [[1, 1, 1]] * 4
    for window, step in ((1, 4), (2, 6), (3, 8)):
        exponential = np.exp(windows[window] / windows[window - 1] / 2)
        for weights in found[step : step + 2]:
            np.testing.assert_allclose(weights, 3 * exponential / exponential.sum(), rtol=1e-5)


def test_a_task_without_labels_counts_as_one_that_stands_still():
    found = dwa_weights(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 0.0]), 2.0)
    assert found.tolist() == [1, 1]
    assert dwa_weights(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 9.0]), 2.0).tolist() == [1, 1]


def test_it_goes_on_from_its_state_in_the_middle_of_a_window():
    losses = torch.rand(11, 1, 2, generator=torch.Generator().manual_seed(1)) + 0.1
    whole, begun, again = (prepared(2, window=2) for _ in range(3))
    expected = steps(whole, losses)
    steps(begun, losses[:7])
    again.load_state_dict(begun.state_dict())
    assert steps(again, losses[7:]) == expected[7:]


def test_it_agrees_with_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization", reason="pip install 'mtlsi[balance]'")
    theirs, ours = scalarization.DWA(), prepared(3, window=2)
    losses = torch.rand(8, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    for step, one in enumerate(losses):
        assert float(ours.total(one)) == pytest.approx(float(theirs(one)), rel=1e-5)
        ours.after_step(list)
        if step % 2:
            theirs.step()
