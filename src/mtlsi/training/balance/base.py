"""What a training step asks of a balance, and what a balance by weights does with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Balance(ABC):
    """How the losses of the tasks become one gradient.

    A step calls ``backward`` for each micro-batch, ``collect`` before the gradient is cut to its norm, and ``after_step``
    when the weights have moved. ``losses`` (t) are those of one micro-batch in the order of the tasks, float32, each with
    its coarse loss and times its fixed weight: the fixed weights are the scale at which a balance starts.
    A loss of exactly 0 says that the batch has no label of the task: the task takes no part in it. ``labelled`` (t) says
    which tasks have a label anywhere in the step, whose losses of micro-batches are shares; None: those with a loss here.
    """

    needs_maps: ClassVar[bool] = False
    """Whether ``backward`` reads the backbone's maps; ``maps`` is empty otherwise."""

    def __init__(self, num_tasks: int):
        self.num_tasks = num_tasks

    def prepare(self, accelerator: Accelerator) -> None:
        """Take the device and the processes of the run."""
        self.accelerator = accelerator
        self.weights = torch.ones(self.num_tasks, device=accelerator.device)
        """(t) What each task's loss, or its gradient, was multiplied by in the last step, on top of its fixed weight."""

    def learned(self) -> list[nn.Parameter]:
        """Parameters that the run's optimizer trains."""
        return []

    @abstractmethod
    def backward(self, losses: Tensor, maps: Sequence[Tensor], share: float, labelled: Tensor | None = None) -> None:
        """Add ``share`` of the gradient of ``losses`` (t) to the network's."""

    def collect(self, seed: int) -> bool:  # noqa: ARG002
        """Finish the step's gradient; false where it cannot be, because a task's is not finite.

        ``seed``: of random draws that all processes must share.
        """
        return True

    def after_step(self, losses_again: Callable[[], Sequence[Tensor]]) -> None:  # noqa: B027  most balances leave it out
        """Learn from the step. ``losses_again``: the losses (t) of its micro-batches under the weights that it led to."""

    def forget_step(self) -> None:  # noqa: B027  likewise
        """Drop what was collected of a step that is passed over: neither ``after_step`` nor the optimizer follows."""

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept between steps, saved with the run's state: always the same names, shapes and types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  likewise
        """Continue from ``state``, which ``state_dict`` gave and which is on the CPU."""

    def mean_of_processes(self, values: Tensor) -> Tensor:
        """``values`` averaged over the processes, so that all of them go on alike."""
        reduced: Any = self.accelerator.reduce(values, reduction="mean")
        return reduced


class WeightedBalance(Balance):
    """A balance that minimises one scalar in the place of the losses."""

    def backward(
        self,
        losses: Tensor,
        maps: Sequence[Tensor],  # noqa: ARG002
        share: float,
        labelled: Tensor | None = None,
    ) -> None:
        """Add ``share`` of the gradient of ``total`` to the network's."""
        self.accelerator.backward(share * self.total(losses, labelled))

    @abstractmethod
    def total(self, losses: Tensor, labelled: Tensor | None = None) -> Tensor:
        """The scalar that is minimised in the place of ``losses`` (t)."""
