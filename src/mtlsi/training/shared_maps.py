"""The features that all tasks share, within reach: the backbone's maps as the decoder receives them, and gradients there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mtlsi.model.network import MTLSINet


@contextmanager
def shared_maps(network: MTLSINet) -> Iterator[list[Tensor]]:
    """Within the context a forward pass of ``network`` leaves its maps (b c h w) in the list.

    The decoder reads views of the maps, made for it alone: a map's gradient there is what the decoder sends back, without
    what comes through the deeper maps that the backbone makes of it. A map of a frozen stage is a leaf of the graph.
    """
    maps: list[Tensor] = []

    def keep(_: Any, __: Any, made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        maps[:] = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in made]
        return tuple(maps)

    hook = network.backbone.register_forward_hook(keep)
    try:
        yield maps
    finally:
        hook.remove()


class TaskGradients:
    """Length and direction of each task's gradient at the shared maps, over all micro-batches and processes of a step.

    The gradients are those of the step's mean loss, each task's times its fixed weight, all maps of all images as one
    vector g_t. Costs a backward pass through the decoder per task.
    """

    def __init__(self, accelerator: Accelerator, tasks: Sequence[str]):
        self.accelerator, self.tasks = accelerator, tasks
        self.products = torch.zeros(len(tasks), len(tasks), device=accelerator.device)
        """(t t) of g_i . g_j, so far."""

    def add(self, losses: Tensor, maps: Sequence[Tensor], share: float) -> None:
        """Take in ``share`` of the gradients of ``losses`` (t), those of one micro-batch."""
        rows = []
        for loss in losses.unbind():
            gradients = torch.autograd.grad(loss, maps, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([x.float().flatten() for x in gradients]))
        matrix = share / self.accelerator.num_processes * torch.stack(rows)
        self.products += matrix @ matrix.T

    def figures(self) -> dict[str, float]:
        """``gradient_norm/TASK``, and ``gradient_cosine/TASK/OTHER`` of each pair; no cosine where a gradient is 0."""
        products = torch.as_tensor(self.accelerator.reduce(self.products, reduction="sum")).double().cpu()
        norms = products.diagonal().sqrt()
        found = {f"gradient_norm/{task}": float(norm) for task, norm in zip(self.tasks, norms, strict=True)}
        for (i, one), (j, other) in combinations(enumerate(self.tasks), 2):
            if norms[i] > 0 and norms[j] > 0:
                found[f"gradient_cosine/{one}/{other}"] = float(products[i, j] / (norms[i] * norms[j]))
        return found
