"""Weights that let all losses fall at one rate, learned from how far each step brought them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from mtlsi.training.balance.base import WeightedBalance

MOMENTS = ("exp_avg", "exp_avg_sq")


class FAMO(WeightedBalance):
    """Liu, Feng, Stone and Liu, NeurIPS 2023: minimises c * sum over t of z_t log L_t, with z = softmax(xi).

    c = 1 / (sum of z_t / L_t), held constant, makes the gradient a weighted mean of the tasks' gradients. After the step
    the losses of the same batch are computed again, and Adam moves xi against the change of log L: the task that fell
    least gains. That takes one more forward pass. A fixed weight cancels in log L, so that the fixed weights set no
    balance, only the scale of c.
    Choice: learning rate and decay of xi are those of the paper's algorithm; batch statistics are counted once, and random
    draws repeat in the second pass; of several micro-batches each has its own c, and the changes of log L are averaged.
    """

    def __init__(self, num_tasks: int, lr: float = 0.025, decay: float = 1e-3):
        super().__init__(num_tasks)
        self.lr, self.decay = lr, decay

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        self.logits = torch.zeros_like(self.weights)
        self.adam = torch.optim.Adam([self.logits], lr=self.lr, weight_decay=self.decay)
        self.of_step: list[Tensor] = []
        """The losses of the step's micro-batches."""

    def total(self, losses: Tensor, labelled: Tensor | None = None) -> Tensor:  # noqa: ARG002
        values = losses.detach()
        shares = torch.where(values > 0, torch.softmax(self.logits, 0) / values, 0)
        self.weights = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny)  # c z_t / L_t
        self.of_step.append(values)
        return (self.weights * losses).sum()  # has the gradient of c * sum of z_t log L_t

    def after_step(self, losses_again: Callable[[], Sequence[Tensor]]) -> None:
        changes = [fall_of_logs(*pair) for pair in zip(self.of_step, losses_again(), strict=True)]
        self.of_step = []
        fall = self.mean_of_processes(torch.stack(changes).mean(0))
        shares = torch.softmax(self.logits, 0)
        self.logits.grad = shares * (fall - (shares * fall).sum())  # of the sum of z_t fall_t
        self.adam.step()

    def forget_step(self) -> None:
        self.of_step = []

    def state_dict(self) -> dict[str, Tensor]:
        """The logits and what Adam keeps of them, before the first step what it would begin with."""
        kept = self.adam.state.get(self.logits) or {name: torch.zeros_like(self.logits) for name in MOMENTS}
        return {"logits": self.logits, "step": torch.as_tensor(kept.get("step", 0.0)), **{x: kept[x] for x in MOMENTS}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.logits.copy_(state["logits"])
        kept = {name: state[name] for name in ("step", *MOMENTS)}
        self.adam.load_state_dict({"state": {0: kept}, "param_groups": self.adam.state_dict()["param_groups"]})


def fall_of_logs(before: Tensor, after: Tensor) -> Tensor:
    """log ``before`` - log ``after``, each (t); 0 for a task without labels."""
    present = before > 0
    smallest = torch.finfo(before.dtype).tiny
    return torch.where(present, before.clamp(min=smallest).log() - after.clamp(min=smallest).log(), 0)
