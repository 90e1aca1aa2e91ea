"""Weights by the uncertainty of each task, learned with the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mtlsi.training.balance.base import WeightedBalance


class Uncertainty(WeightedBalance):
    """Kendall, Gal and Cipolla, CVPR 2018: sum over t of exp(-s_t) L_t + s_t, with s_t = log of the task's variance.

    Where L_t stands still, s_t = log L_t is best. The run's optimizer learns s with the decoder's learning rate, without
    weight decay; it begins at 0, which is the fixed balance.
    Choice: one form for all kinds of losses, without the paper's factor 1/2, which would halve the fixed weights.
    """

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_variances = LogVariances(num_tasks)
        self.weigh: nn.Module = self.log_variances

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        self.log_variances.to(accelerator.device)
        self.weigh = accelerator.prepare(self.log_variances)  # gradients averaged over processes

    def learned(self) -> list[nn.Parameter]:
        return list(self.log_variances.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """The learned s (t)."""
        return {"log_variances": self.log_variances.values.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.log_variances.values.copy_(state["log_variances"])

    def total(self, losses: Tensor, labelled: Tensor | None = None) -> Tensor:
        self.weights = (-self.log_variances.values.detach()).exp()
        return self.weigh(losses, losses.detach() > 0 if labelled is None else labelled)


class LogVariances(nn.Module):
    """The learned s (t), and the sum that they are learned by."""

    def __init__(self, num_tasks: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Tensor, labelled: Tensor) -> Tensor:
        terms = (-self.values).exp() * losses + self.values
        return torch.where(labelled, terms, 0).sum()
