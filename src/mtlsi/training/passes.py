"""One micro-batch forward and backward: plainly, or with each task's loss by itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtlsi.kernels.recompute import FrozenStatistics
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.network import Output
from mtlsi.training.shared_maps import TaskGradients, shared_maps
from mtlsi.training.whole_batch import WholeBatch

if TYPE_CHECKING:
    from mtlsi.training.setup import TrainingRun


def forward_backward(
    run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch, gradients: TaskGradients | None
) -> dict[str, Tensor]:
    """The losses of one micro-batch, detached: ``loss``, the criterion's total under any balance, and those by task.

    The gradient, as the run's balance has it, is added to the network's. ``whole``: the step's batch, of which this is a
    part. ``gradients``: also take in the tasks' own.
    """
    if run.balance is None and gradients is None:
        with run.accelerator.autocast():
            output = run.model(batch["image"], full_size=run.config.train.loss_at == "image")
        amounts = whole.amounts(output)
        of_whole = {} if amounts is None else {"whole": amounts}  # a criterion of somebody's own knows no such word
        loss, by_task = run.criterion(output.final, output.coarse, batch, **of_whole)
        run.accelerator.backward(loss / run.config.train.accumulate)
        return {"loss": loss.detach(), **by_task}
    return forward_backward_by_task(run, batch, whole, gradients)


def forward_backward_by_task(
    run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch, gradients: TaskGradients | None
) -> dict[str, Tensor]:
    """``forward_backward`` with a loss per task, for the run's balance and for ``gradients``."""
    accelerator, balance, criterion = run.accelerator, run.balance, by_task_criterion(run)
    share = 1 / run.config.train.accumulate
    needs_maps = balance is not None and balance.needs_maps
    alone = accelerator.no_sync(run.model) if needs_maps else nullcontext()  # it meets the other processes itself
    kept = shared_maps(run.network) if needs_maps or gradients is not None else nullcontext([])
    with accelerator.autocast(), alone, kept as maps:
        output = run.model(batch["image"], full_size=run.config.train.loss_at == "image")
    parts = per_task(criterion, output, batch, whole)
    total, losses = criterion.total(parts), criterion.of_tasks(parts)
    if gradients is not None:
        gradients.add(losses, maps, share)
    if balance is None:
        accelerator.backward(total / run.config.train.accumulate)
    else:
        balance.backward(losses, maps, share, whole.labelled(output, criterion.tasks))
    return {"loss": total.detach(), **{name: value.detach() for name, value in parts.items()}}


@torch.no_grad()
def losses_again(run: TrainingRun, whole: WholeBatch, seed: int) -> list[Tensor]:
    """Each task's loss (t) on the parts of ``whole`` under the present weights, drawing from ``seed``.

    Statistics stay as they are.
    """
    criterion, found = by_task_criterion(run), []
    torch.manual_seed(seed)
    with FrozenStatistics(run.network):
        for batch in whole.parts:
            with run.accelerator.autocast():
                output = run.network(batch["image"], full_size=run.config.train.loss_at == "image")
            found.append(criterion.of_tasks(per_task(criterion, output, batch, whole)))
    return found


def per_task(
    criterion: MultiTaskLoss, output: Output, batch: Mapping[str, Tensor], whole: WholeBatch
) -> dict[str, Tensor]:
    """Every loss of ``batch`` by itself, with its gradient, as a share of the whole batch's."""
    amounts = whole.amounts(output)
    of_whole = {} if amounts is None else {"whole": amounts}
    return criterion.per_task(output.final, output.coarse, batch, **of_whole)


def by_task_criterion(run: TrainingRun) -> MultiTaskLoss:
    """The run's criterion, which is one that knows each task's loss: ``build_balance`` has refused any other."""
    assert isinstance(run.criterion, MultiTaskLoss)
    return run.criterion
