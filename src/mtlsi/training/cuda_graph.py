"""A run's forward and backward pass recorded on a GPU as one CUDA graph: thousands of small kernels start at one call.

A step of a small network is some thousands of kernels of a few microseconds. Python takes longer to start each of them
than the GPU to run it; a graph starts them all by itself, the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor, nn

from mtlsi import processes
from mtlsi.errors import MistakeError, message_of
from mtlsi.losses import MultiTaskLoss
from mtlsi.nn.crossings import Crossings
from mtlsi.nn.recording import ONE_AT_A_TIME, not_ours, recorded_into
from mtlsi.streams import write_line
from mtlsi.training.passes import forward_backward
from mtlsi.training.shared_maps import TaskGradients
from mtlsi.training.whole_batch import WholeBatch

if TYPE_CHECKING:
    from mtlsi.training.setup import TrainingRun

WARM_UP = 3
"""Passes before the recording, in which libraries choose their algorithms and take their memory."""
REFUSED = "the step cannot be recorded as a CUDA graph here"


def obstacle(run: TrainingRun) -> str:
    """Why a recording of one step's passes would not stand for every later one's; empty where it does.

    Code of a person's own, which may do another thing each time, is not recorded. Nor are passes that meet other
    processes, add up or go by task.
    """
    options = run.config.train
    own = not_ours(run.network)
    found = {
        "train.cuda_graph is off": not options.cuda_graph,
        f"{run.accelerator.device} is no CUDA device": run.accelerator.device.type != "cuda",
        "several processes meet in it": processes.number() > 1,
        "train.accumulate adds up": options.accumulate > 1,
        "train.recompute": options.recompute,
        f"train.balance {options.balance} goes by task": run.balance is not None,
        "the criterion is one of your own": type(run.criterion) is not MultiTaskLoss,
        own: bool(own),
    }
    return next((reason for reason, holds in found.items() if holds), "")


def notes_on_recording(run: TrainingRun, reason: str) -> tuple[str, ...]:
    """What a person with a GPU is told whose step is not recorded for ``reason``, such as ``obstacle``."""
    if not reason or run.accelerator.device.type != "cuda" or not run.config.train.cuda_graph:
        return ()
    return (f"train.cuda_graph: the step is not recorded, which costs a small network most of its time: {reason}",)


class RecordedPasses:
    """Called as ``forward_backward``, which it calls ``WARM_UP`` times, records once, and replays from then on.

    A batch of other sizes, and a step that measures the tasks' gradients, go as without. Where the device or a library
    refuses the recording, a note says so and the run goes on without; where CUDA is no longer fit for that, a
    ``MistakeError`` ends it.
    """

    def __init__(self, run: TrainingRun, console: Console):
        self.console = console
        self.records = not obstacle(run)
        self.num_passes = 0
        self.recording: Recording | None = None

    def __call__(
        self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch, gradients: TaskGradients | None
    ) -> dict[str, Tensor]:
        if not self.records or gradients is not None:
            return forward_backward(run, batch, whole, gradients)
        if self.recording is None:
            self.num_passes += 1
            if self.num_passes == WARM_UP:
                return self._look(run, batch, whole)
            if self.num_passes > WARM_UP:
                self._record(run, batch, whole)
        if self.recording is None or not self.recording.fits(batch):
            return forward_backward(run, batch, whole, gradients)
        return self.recording.replay(batch)

    def _look(self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch) -> dict[str, Tensor]:
        """The passes as without, which decide whether they can be recorded."""
        with Crossings() as crossings:
            losses = forward_backward(run, batch, whole, None)
        if crossings.found:
            self.records = False
            self._tell(f"{REFUSED} ({crossings.found} meets the host's memory)")
        return losses

    def _record(self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch) -> None:
        """Record the passes, or tell that it cannot be done here, and never try again."""
        try:
            self.recording = Recording(run, batch, whole)
        except RuntimeError as error:  # CUDA's own errors are RuntimeErrors of several names
            self.records = False
            # what ends a refused recording is an error of its own; the first one says what was refused
            told = f"{REFUSED} ({message_of(error.__context__ or error, 200)})"
            run.optimizer.zero_grad(set_to_none=True)
            try:
                torch.rand((), device=run.accelerator.device)  # some versions of torch draw no more after that
            except RuntimeError as after:
                raise MistakeError(f"{told}; give --train.cuda_graph false") from after
            self._tell(told)

    def _tell(self, told: str) -> None:
        write_line(self.console, f"{told}; training goes on without")


class Recording:
    """The kernels of one forward and backward pass, with the memory that they read and write."""

    def __init__(self, run: TrainingRun, batch: Mapping[str, Tensor], whole: WholeBatch):
        """Nothing is computed yet. Raises ``RuntimeError`` where a kernel cannot be recorded."""
        self.inputs = {name: x.clone() for name, x in batch.items()}
        self.graph = torch.cuda.CUDAGraph()
        run.optimizer.zero_grad(set_to_none=True)  # so that a replay writes the gradients and does not add to them
        with recorded_into(self.graph, run.accelerator.device):
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
        with ONE_AT_A_TIME:
            self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))  # the next replay writes over them


def gradients_of(network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter that has a gradient, with it."""
    return [(parameter, parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
