"""A run's forward and backward pass recorded on a GPU as one CUDA graph: thousands of small kernels start at one call.

A step of a small network is some thousands of kernels of a few microseconds. Python takes longer to start each of them
than the GPU to run it; a graph starts them all by itself, in the same order and with the same results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from mtlsi import processes
from mtlsi.errors import message_of
from mtlsi.losses import MultiTaskLoss
from mtlsi.training.passes import forward_backward
from mtlsi.training.shared_maps import TaskGradients
from mtlsi.training.whole_batch import WholeBatch

if TYPE_CHECKING:
    from mtlsi.training.setup import TrainingRun

WARM_UP = 3
"""Passes before the recording, in which libraries choose their algorithms and take their memory."""
OURS = ("mtlsi", "timm", "torch")
"""Packages whose modules compute the same in every step."""


def can_record(run: TrainingRun) -> bool:
    """Whether a recording of one step's passes stands for later ones.

    It repeats what the GPU did and runs no Python again: modules and criteria of a person's own, which may do another thing
    each time, are not recorded. Nor are passes that meet other processes, add up or go by task.
    """
    options, criterion = run.config.train, run.criterion
    is_alone = run.accelerator.device.type == "cuda" and processes.number() == 1 and options.accumulate == 1
    is_ours = type(criterion) is MultiTaskLoss and all(
        type(module).__module__.partition(".")[0] in OURS for module in run.network.modules()
    )
    return options.cuda_graph and is_alone and is_ours and run.balance is None and not options.recompute


class State:
    """What a callback may change of a run and a recording holds as it was.

    Where weights lie and which of them are trained, which modules are in training mode, and the losses' weights.
    """

    def __init__(self, run: TrainingRun):
        assert isinstance(run.criterion, MultiTaskLoss)
        self.parameters, self.modules = (
            list(run.network.parameters()),
            list(run.network.modules()),
        )  # walking takes time
        self.criterion = run.criterion
        self.recorded = self._now()

    def is_as_recorded(self) -> bool:
        """Whether nothing has changed since this was made."""
        return self._now() == self.recorded

    def _now(self) -> tuple[Any, ...]:
        return (
            [(parameter.data_ptr(), parameter.requires_grad) for parameter in self.parameters],
            [module.training for module in self.modules],
            dict(self.criterion.weights),
            self.criterion.coarse_weight,
        )


class RecordedPasses:
    """Called as ``forward_backward``, which it calls ``WARM_UP`` times, records once, and replays from then on.

    A batch of other sizes, and a step that measures the tasks' gradients, go as without. Where a callback changed the run,
    it begins anew. Where the device or a library refuses the recording, a note says so and the run goes on without.
    """

    def __init__(self, run: TrainingRun, console: Console):
        self.console = console
        self.records = can_record(run)
        self.num_passes = 0
        self.recording: Recording | None = None

    def __call__(
        self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch, gradients: TaskGradients | None
    ) -> dict[str, Tensor]:
        if not self.records or gradients is not None:
            return forward_backward(run, batch, whole, gradients)
        if self.recording is not None and not self.recording.state.is_as_recorded():
            self.recording, self.num_passes = None, 0
        if self.recording is None:
            self.num_passes += 1
            if self.num_passes > WARM_UP:
                self._record(run, batch, whole)
        if self.recording is None or not self.recording.fits(batch):
            return forward_backward(run, batch, whole, gradients)
        return self.recording.replay(batch)

    def _record(self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch) -> None:
        """Record the passes, or tell that it cannot be done here, and never try again."""
        try:
            self.recording = Recording(run, batch, whole)
        except RuntimeError as error:  # CUDA's own errors are RuntimeErrors of several names
            self.records = False
            run.optimizer.zero_grad(set_to_none=True)
            self.console.print(
                f"the step cannot be recorded as a CUDA graph here ({message_of(error, 200)}); training goes on without",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


class Recording:
    """The kernels of one forward and backward pass, with the memory that they read and write."""

    def __init__(self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch):
        """Nothing is computed yet. Raises ``RuntimeError`` where a kernel cannot be recorded."""
        self.state = State(run)
        self.inputs = {name: x.clone() for name, x in batch.items()}
        self.graph = torch.cuda.CUDAGraph()
        run.optimizer.zero_grad(set_to_none=True)  # so that a replay writes the gradients and does not add to them
        # thread_local: the loader's thread goes on pinning memory meanwhile, which a recording otherwise forbids
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            losses = forward_backward(run, self.inputs, whole, None)
            self.values = torch.stack([value.float() for value in losses.values()])
        self.names = tuple(losses)
        self.gradients = gradients_of(run.network)

    def fits(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether the recording stands for the pass of ``batch``, too."""
        layout = {name: (x.shape, x.dtype) for name, x in self.inputs.items()}
        return {name: (x.shape, x.dtype) for name, x in batch.items()} == layout

    def replay(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses of ``batch``; the network's gradients are its gradients."""
        for name, x in batch.items():
            self.inputs[name].copy_(x, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))  # the next replay writes over them


def gradients_of(network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter that has a gradient, with it."""
    return [(parameter, parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
