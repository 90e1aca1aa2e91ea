"""The training losses: one function per ``Task.loss``, and their weighted sum over tasks.

Every loss takes ``prediction`` (b c h w) of any float type, ``label`` (b h w) or (b c h w) on the same grid and
``valid`` (b h w) bool, and gives a float32 scalar: a mean over the valid pixels of the batch. A batch without a valid
pixel gives exactly 0 and still reaches every parameter in the backward pass, so no process waits for a gradient.

``whole``: the batch is one part of P of a larger one, cut over processes and micro-batches, and the mean is to be that of
all its valid pixels, not a mean of the parts' means. With n_p valid pixels in part p, and l their losses,

    loss_p = sum_i l_i / (sum_p n_p / P)      so that      mean_p loss_p = sum over all pixels / all valid pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.kinds.direction import unit_length
from mtlsi.tasks import TASKS, Task, check_tasks


class Whole(NamedTuple):
    """What the labels of a whole batch hold, as means over its parts: scalars of any float type."""

    amount: Tensor
    """What the losses' sum is divided by: valid pixels, or the sum of their class weights."""
    foreground: Tensor
    """Valid pixels labelled 1."""


def cross_entropy(
    prediction: Tensor,
    label: Tensor,
    valid: Tensor,
    class_weights: Tensor | None = None,
    whole: Whole | None = None,
) -> Tensor:
    """Cross-entropy of class scores: ``prediction`` holds one channel per class, ``label`` the class indices.

    ``class_weights`` (c): the mean over the valid pixels is weighted, sum w[y] l / sum w[y], as torch's ``weight`` does it:
    however large the weights are, the loss stays on the scale of the other tasks. 0 where all of them are 0.
    """
    values = _pixel_cross_entropy(prediction, label, valid)
    if class_weights is None:
        return _mean(values, valid, whole)
    weights = _pixel_weights(label, valid, class_weights)
    return _share(torch.where(valid, weights * values, 0).sum(), weights.sum() if whole is None else whole.amount)


def balanced_cross_entropy(prediction: Tensor, label: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Two-class cross-entropy in which either class of the batch weighs as much as the other.

    A pixel's weight is the share of the *other* class among the valid pixels; the sum is divided by the number of
    valid pixels, not by the sum of weights. A batch that holds one class only therefore gives 0.
    Choice: the shares are those of the whole batch; the peers take those of one process's part.
    """
    foreground = label == 1
    share = _mean(foreground.float(), valid) if whole is None else _share(whole.foreground, whole.amount).float()
    weight = torch.where(foreground, 1 - share, share)
    return _mean(weight * _pixel_cross_entropy(prediction, label, valid), valid, whole)


def l1(prediction: Tensor, label: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Mean absolute difference, in the label's unit (metres for depth).

    Choice: several channels are averaged, here and in ``l2`` and ``smooth_l1``, so that a loss weight means the same for
    any number of them.
    """
    return _mean(_over_channels(_difference(prediction, label, valid).abs()), valid, whole)


def l2(prediction: Tensor, label: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Mean squared difference: far outliers count most."""
    return _mean(_over_channels(_difference(prediction, label, valid).square()), valid, whole)


def smooth_l1(prediction: Tensor, label: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Half the squared difference where it is below 1, else the absolute difference less a half."""
    difference = _difference(prediction, label, valid)
    values = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")
    return _mean(_over_channels(values), valid, whole)


def unit_l1(prediction: Tensor, label: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Absolute difference of directions: ``prediction`` (b 3 h w) is brought to unit length; the 3 channels add up.

    Choice: predictions shorter than 0.001 are divided by 0.001, which keeps their gradients finite.
    """
    target = torch.where(valid.unsqueeze(1), label, 0).float()
    direction = unit_length(prediction.float(), 1e-3)
    return _mean((direction - target).abs().sum(1), valid, whole)


def weighted_bce(
    prediction: Tensor,
    label: Tensor,
    valid: Tensor,
    positive_weight: float = 0.95,
    whole: Whole | None = None,
) -> Tensor:
    """Binary cross-entropy of one logit: ``positive_weight`` on pixels labelled 1, the rest of 1 on the others."""
    target = torch.where(valid, label, 0).float()
    weight = torch.where(target == 1, positive_weight, 1 - positive_weight)
    value = F.binary_cross_entropy_with_logits(prediction[:, 0].float(), target, reduction="none")
    return _mean(weight * value, valid, whole)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "unit_l1": unit_l1,
    "weighted_bce": weighted_bce,
}


def _pixel_cross_entropy(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of every pixel (b h w), meaningless where invalid."""
    target = torch.where(valid, label, 0).long()
    scores = prediction.float().permute(0, 2, 3, 1)  # classes last, as they lie in memory: a third of the time
    return F.cross_entropy(scores.flatten(0, 2), target.flatten(), reduction="none").view(target.shape)


def _difference(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Prediction less label, float32 (b h w) or (b c h w); finite everywhere, meaningless where invalid."""
    if label.dim() == 3:
        return prediction[:, 0].float() - torch.where(valid, label, 0).float()
    return prediction.float() - torch.where(valid.unsqueeze(1), label, 0).float()


def _over_channels(values: Tensor) -> Tensor:
    """(b c h w) averaged to (b h w); (b h w) as it is."""
    return values.mean(1) if values.dim() == 4 else values


def _pixel_weights(label: Tensor, valid: Tensor, class_weights: Tensor) -> Tensor:
    """Every pixel's weight (b h w) by its class; 0 where invalid."""
    return torch.where(valid, class_weights[torch.where(valid, label, 0).long()], 0)


def _mean(values: Tensor, valid: Tensor, whole: Whole | None = None) -> Tensor:
    """Mean of ``values`` where ``valid``; 0, with its graph, where nothing is."""
    assert values.shape == valid.shape, f"values {tuple(values.shape)} and valid {tuple(valid.shape)} differ"
    return _share(torch.where(valid, values, 0).sum(), valid.sum() if whole is None else whole.amount)


def _share(part: Tensor, of: Tensor) -> Tensor:
    """``part`` / ``of`` in the type of ``part``; ``part``, which is 0 then, where ``of`` is 0."""
    return part / torch.where(of > 0, of, 1).to(part.dtype)


def shrink_label(task: Task, label: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """``label`` (b H W) or (b c H W) on a coarser grid of ``size_hw`` cells, same type; any ratio, divisible or not.

    The pixel at the cell's centre; thin maps keep the largest valid value in the cell (see ``Kind.shrink``).
    Raises ``MistakeError`` where the grid is finer than the label.
    """
    height, width = label.shape[-2:]
    if size_hw == (height, width):
        return label
    if size_hw[0] > height or size_hw[1] > width:
        raise MistakeError(
            f"{task.name}: prediction of {size_hw[0]}x{size_hw[1]} is larger than its label of {height}x{width};"
            " give labels at the size of the image"
        )
    return kinds.of(task).shrink(label, size_hw)


class MultiTaskLoss(nn.Module):
    """Weighted sum of every task's loss, on the final and on the coarse predictions.

    ``weights`` replaces the ``loss_weight`` of the tasks it names; ``coarse_weight`` multiplies all coarse losses;
    ``boundary_weight`` in 0..1 is the weight of positive pixels in ``weighted_bce``; ``class_weights``, by task, one number
    per class for ``cross_entropy``.
    Choice: the paper is silent on all four; the weights are those its peers share, who weigh all classes alike.
    Raises ``MistakeError`` for an unknown task, a negative weight, a ``boundary_weight`` outside 0..1 or class weights of a
    task without classes.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        weights: Mapping[str, float] | None = None,
        coarse_weight: float = 1.0,
        boundary_weight: float = 0.95,
        class_weights: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        given = dict(weights or {})
        if given:
            check_tasks(given, among=self.tasks)
        for name, weight in {**given, "coarse_weight": coarse_weight}.items():
            if not weight >= 0:
                raise MistakeError(f"loss weight of {name}: {weight}; expected a number of at least 0")
        if not 0 < boundary_weight < 1:
            raise MistakeError(f"boundary_weight: {boundary_weight}; expected a number between 0 and 1")
        self.weights = {name: float(given.get(name, TASKS[name].loss_weight)) for name in self.tasks}
        self.coarse_weight = coarse_weight
        self.losses = {**LOSSES, "weighted_bce": partial(weighted_bce, positive_weight=boundary_weight)}
        for name, numbers in (class_weights or {}).items():
            check_tasks([name], among=self.tasks)
            if TASKS[name].kind != "classes":
                raise MistakeError(
                    f"class weights of {name}: it has no classes; expected those of a task that has them"
                )
            if not all(0 <= number < math.inf for number in numbers):
                raise MistakeError(f"class weights of {name}: {list(numbers)}; expected numbers of at least 0")
            # moves with the module; no state: a run folder keeps the weights by name
            self.register_buffer(_buffer_of(name), torch.tensor([*numbers], dtype=torch.float32), persistent=False)

    def forward(
        self,
        final: Mapping[str, Tensor],
        coarse: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        whole: Mapping[str, Whole] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to minimise, and the losses in it: unweighted detached scalars ``task`` and ``coarse/task``.

        ``final`` and ``coarse`` hold (b c h w) per task; ``coarse`` may lack tasks, for a network without it. Labels
        larger than a prediction are brought to its grid. A task without a label in this batch contributes 0.
        ``whole``: by loss, what the labels of the batch that this one is a part of hold.
        """
        losses = self.per_task(final, coarse, labels, whole)
        return self.total(losses), {name: value.detach() for name, value in losses.items()}

    def per_task(
        self,
        final: Mapping[str, Tensor],
        coarse: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        whole: Mapping[str, Whole] | None = None,
    ) -> dict[str, Tensor]:
        """Every loss by itself, as ``task`` and ``coarse/task``: unweighted scalars with gradients.

        ``forward``'s total is their sum, each times ``weights[task]``, coarse ones also times ``coarse_weight``.
        """
        whole = whole or {}
        return {
            name: self._task_loss(TASKS[task], prediction, labels.get(task), whole.get(name))
            for name, task, prediction in self._by_loss(final, coarse)
        }

    def amounts(
        self, final: Mapping[str, Tensor], coarse: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[str, Whole]:
        """By loss, what ``labels`` hold on the grids of the predictions, whose values are not looked at.

        Float64 scalars, for sums of them to be exact.
        """
        found = {}
        for name, task, prediction in self._by_loss(final, coarse):
            amount = foreground = torch.zeros((), dtype=torch.float64, device=prediction.device)
            if (label := labels.get(task)) is not None:
                label, valid = self._on_grid(TASKS[task], prediction, label)
                weights = self._buffers.get(_buffer_of(task))
                counted = valid if weights is None else _pixel_weights(label, valid, weights)
                amount = counted.sum(dtype=torch.float64)
                if TASKS[task].loss == "balanced_cross_entropy":
                    foreground = (valid & (label == 1)).sum(dtype=torch.float64)
            found[name] = Whole(amount, foreground)
        return found

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of ``losses``, which are those of ``per_task``."""
        total = torch.zeros((), device=losses[self.tasks[0]].device)
        for name, value in losses.items():
            total = total + self._scale(name) * value
        return total

    def of_tasks(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Each task's share (t) of ``total``: its loss and its coarse loss, weighted, in the order of ``tasks``."""
        shares = {task: self._scale(task) * losses[task] for task in self.tasks}
        for task in self.tasks:
            if (name := f"coarse/{task}") in losses:
                shares[task] = shares[task] + self._scale(name) * losses[name]
        return torch.stack(list(shares.values()))

    def _scale(self, name: str) -> float:
        """What the loss ``name`` is multiplied by."""
        return (self.coarse_weight if name.startswith("coarse/") else 1.0) * self.weights[name.removeprefix("coarse/")]

    def _by_loss(self, final: Mapping[str, Tensor], coarse: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """Every loss: its name, its task and the prediction that it is taken on."""
        for task in self.tasks:
            yield task, task, final[task]
        for task in (task for task in self.tasks if task in coarse):
            yield f"coarse/{task}", task, coarse[task]

    @staticmethod
    def _on_grid(task: Task, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The label on the prediction's grid, and where it is valid."""
        label = shrink_label(task, label, (prediction.shape[-2], prediction.shape[-1]))
        return label, kinds.of(task).valid(label)

    def _task_loss(self, task: Task, prediction: Tensor, label: Tensor | None, whole: Whole | None) -> Tensor:
        if label is None:
            return prediction.float().sum() * 0  # not a plain 0: the prediction stays in the backward graph
        label, valid = self._on_grid(task, prediction, label)
        weights = self._buffers.get(_buffer_of(task.name))
        if weights is None:
            return self.losses[task.loss](prediction, label, valid, whole=whole)
        if len(weights) != prediction.shape[1]:
            raise MistakeError(
                f"class weights of {task.name}: {len(weights)} for {prediction.shape[1]} classes; expected as many"
            )
        return cross_entropy(prediction, label, valid, weights, whole)


def _buffer_of(task: str) -> str:
    return f"class_weights_{task}"
