"""Weights by how fast each loss falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from mtlsi.training.balance.base import WeightedBalance


class DynamicWeightAverage(WeightedBalance):
    """Liu, Johns and Davison, CVPR 2019: a task whose loss falls more slowly than the others' weighs more.

    weight_t = T softmax(r / temperature)_t over the T tasks, r_t = mean loss of the last window over that of the window
    before; 1 until two windows are full. The fixed weights stay as they are, since they cancel in r.
    Choice: a window is ``window`` optimizer steps; the paper's is an epoch, whose length depends on the data.
    """

    def __init__(self, num_tasks: int, window: int, temperature: float = 2.0):
        super().__init__(num_tasks)
        self.window, self.temperature = window, temperature

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        self.of_step: list[Tensor] = []
        """The losses of the step's micro-batches."""
        self.sums, self.num_steps = torch.zeros_like(self.weights), 0
        """Of the losses in the window that fills, and how many steps it has."""
        self.averages: list[Tensor] = []
        """Of the last two full windows, the older one first."""

    def total(self, losses: Tensor, labelled: Tensor | None = None) -> Tensor:  # noqa: ARG002
        self.of_step.append(losses.detach())
        return (self.weights * losses).sum()

    def after_step(self, losses_again: Callable[[], Sequence[Tensor]]) -> None:  # noqa: ARG002
        self.sums = self.sums + self.mean_of_processes(torch.stack(self.of_step).mean(0))
        self.of_step, self.num_steps = [], self.num_steps + 1
        if self.num_steps == self.window:
            self.averages = [*self.averages, self.sums / self.window][-2:]
            self.sums, self.num_steps = torch.zeros_like(self.sums), 0
            if len(self.averages) == 2:
                self.weights = dwa_weights(*self.averages, self.temperature)

    def forget_step(self) -> None:
        self.of_step = []

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, and the windows: (2 t) averages, of which the last ``num_averages`` rows are there."""
        missing = [torch.zeros_like(self.sums)] * (2 - len(self.averages))
        return {
            "weights": self.weights,
            "sums": self.sums,
            "num_steps": torch.tensor(self.num_steps),
            "averages": torch.stack([*missing, *self.averages]),
            "num_averages": torch.tensor(len(self.averages)),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.num_steps, num_averages = int(state["num_steps"]), int(state["num_averages"])
        self.weights, self.sums = (state[name].to(self.weights.device) for name in ("weights", "sums"))
        self.averages = [x.to(self.weights.device) for x in state["averages"].unbind()][2 - num_averages :]


def dwa_weights(before: Tensor, last: Tensor, temperature: float) -> Tensor:
    """Weights (t) that add up to t, from the mean losses (t) of two windows; a task without labels counts as unchanged."""
    rates = torch.where(before > 0, last / before.clamp(min=torch.finfo(before.dtype).tiny), 1)
    return len(rates) * torch.softmax(rates / temperature, 0)
