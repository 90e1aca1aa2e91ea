"""A step's batch, cut into micro-batches and over processes: what all of its labels hold, and when processes meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtlsi import processes
from mtlsi.losses import MultiTaskLoss, Whole
from mtlsi.model.network import Output
from mtlsi.training import sharding

if TYPE_CHECKING:
    from mtlsi.training.setup import TrainingRun


class WholeBatch:
    """The micro-batches of one optimizer step, on the device, and what the labels of all processes hold."""

    def __init__(self, run: TrainingRun, parts: Sequence[Mapping[str, Tensor]]):
        self.run, self.parts = run, parts
        self._amounts: dict[str, Whole] | None = None

    def amounts(self, output: Output) -> dict[str, Whole] | None:
        """By loss, what the losses of the whole batch are means over, as means of its parts; None: they need no telling.

        Read from labels alone, on the grids of the predictions in ``output``: counted at the step's first forward pass, in
        one message among processes. A criterion of somebody's own goes by its own means.
        """
        if type(self.run.criterion) is not MultiTaskLoss or len(self.parts) * processes.number() == 1:
            return None
        if self._amounts is None:
            self._amounts = self._count(self.run.criterion, output)
        return self._amounts

    def labelled(self, output: Output, tasks: Sequence[str]) -> Tensor | None:
        """(t) Which of ``tasks`` have a label anywhere in the step; None where ``amounts`` tells nothing."""
        amounts = self.amounts(output)
        return None if amounts is None else torch.stack([amounts[task].amount > 0 for task in tasks])

    def _count(self, criterion: MultiTaskLoss, output: Output) -> dict[str, Whole]:
        counts = [criterion.amounts(output.final, output.coarse, part) for part in self.parts]
        names = list(counts[0])
        sums = torch.stack([torch.stack([torch.stack(one[name]) for name in names]) for one in counts]).sum(0)
        if processes.has_joined():
            torch.distributed.all_reduce(sums)
        means = sums / (len(self.parts) * processes.number())
        return {name: Whole(*row.unbind()) for name, row in zip(names, means.unbind(), strict=True)}

    @contextmanager
    def meeting(self, index: int) -> Iterator[None]:
        """Within the context the part ``index`` goes forward and backward: gradients meet after the last part alone."""
        is_last = index == len(self.parts) - 1
        if self.run.is_sharded:
            sharding.set_meeting(self.run.network, is_last)
        if is_last or self.run.is_sharded:
            yield
            return
        with self.run.accelerator.no_sync(self.run.model):
            yield
