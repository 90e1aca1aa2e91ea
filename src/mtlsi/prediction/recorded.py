"""A network's forward pass recorded on a GPU as a CUDA graph, for each size of image that comes again.

A pass of these networks is some hundred kernels of a few microseconds, and Python takes longer to start each of them
than the GPU to run it; a graph starts them all by itself, the same operations in the same order.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mtlsi.errors import message_of
from mtlsi.model.network import MTLSINet, Output
from mtlsi.nn.crossings import Crossings
from mtlsi.nn.own_modules import not_ours

WARM_UP = 2
"""Passes at a size before it is recorded: an album of photos of all shapes is never recorded, a video is."""
MOST = 8
"""Recordings that are kept; the one that was not asked for the longest gives way to a new one."""


class RecordedNetwork:
    """In the place of ``network``, which it gives the same outputs as: ``RecordedNetwork(network)(images, tasks=...)``.

    The third pass of images of one shape and type, for the same tasks, under the same autocast, is recorded and replayed
    from then on. Passes that no recording stands for go as without: while training, with gradients, with a ``context``. So
    does every later one where the device or a library refuses a recording.
    Weights may be changed in place; where they have moved, a recording is made anew. One replays at a time.
    """

    def __init__(self, network: MTLSINet):
        self.network = network
        self.records = True
        self._passes: OrderedDict[Any, int] = OrderedDict()
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.network,)  # a copy makes its own recordings

    def __call__(
        self, images: Tensor, tasks: Iterable[str] | None = None, *, full_size: bool = True, **options: Any
    ) -> Output:
        tasks = None if tasks is None else tuple(tasks)
        fits = self.records and not (options or self.network.training or torch.is_grad_enabled())
        if not fits or torch.cuda.is_current_stream_capturing():
            return self.network(images, tasks, full_size=full_size, **options)
        kind = images.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        chosen = self.network.for_tasks(tasks)
        with self._lock, torch.cuda.device(images.device):
            stream = torch.cuda.current_stream().cuda_stream  # replays on one follow each other
            key = (images.shape, images.dtype, images.device, stream, chosen.tasks, full_size, mixed)
            if self.records and self._is_due(key, chosen):
                self._record(key, chosen, images, full_size)
            recording = self._recordings.get(key)
            if recording is not None:
                return recording.replay(images)
        return self.network(images, tasks, full_size=full_size)

    def _is_due(self, key: Any, chosen: MTLSINet) -> bool:
        """Whether a pass of this kind is to be recorded now."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return not self._recordings[key].stands_for(chosen)
        self._passes[key] = self._passes.pop(key, 0) + 1
        while len(self._passes) > 16 * MOST:
            self._passes.popitem(last=False)
        return self._passes[key] > WARM_UP

    def _record(self, key: Any, chosen: MTLSINet, images: Tensor, full_size: bool) -> None:
        """Record the pass, or never try again where that cannot be done here."""
        torch.cuda.synchronize(images.device)  # what gives way may still be running
        self._recordings.pop(key, None)
        while len(self._recordings) >= MOST:
            self._recordings.popitem(last=False)
        try:
            self._recordings[key] = Recording(chosen, images, full_size)
            self._passes.pop(key, None)
        except RuntimeError as error:  # CUDA's own errors are RuntimeErrors of several names
            self.records = False
            self._recordings.clear()
            # what ends a refused recording is an error of its own; the first one says what was refused
            why = message_of(error.__context__ or error, 200)
            warnings.warn(
                f"predictions take longer: a pass cannot be recorded as a CUDA graph here ({why})", stacklevel=2
            )


class Recording:
    """The kernels of one forward pass, with the memory that they read and write."""

    def __init__(self, network: MTLSINet, images: Tensor, full_size: bool):
        """Raises ``RuntimeError`` where a kernel cannot be recorded."""
        self.network = network
        self.weights = [*network.parameters(), *network.buffers()]
        self.addresses = [x.data_ptr() for x in self.weights]
        with torch.inference_mode(False):
            self.images = images.clone()  # one that is written in any mode
        with Crossings() as crossings:  # a pass of this thread, which has libraries and memory of its own
            network(self.images, full_size=full_size)
        if crossings.found:
            raise RuntimeError(f"{crossings.found} meets the host's memory")
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        kind = images.device.type
        # weights that autocast has cast and kept belong to no recording
        cast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        try:
            # thread_local: other threads may take memory meanwhile, which a recording otherwise forbids
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"), cast:
                self.output = network(self.images, full_size=full_size)
        finally:
            torch.cuda.set_stream(stream)  # which a refused recording does not

    def stands_for(self, network: MTLSINet) -> bool:
        """Whether ``network`` is the one that was recorded, its weights still where they are read."""
        return network is self.network and [x.data_ptr() for x in self.weights] == self.addresses

    def replay(self, images: Tensor) -> Output:
        """The output for ``images``, in memory of its own: the next replay writes over the recording's."""
        self.images.copy_(images, non_blocking=True)
        self.graph.replay()
        final, coarse = (
            {task: raw.clone() for task, raw in maps.items()} for maps in (self.output.final, self.output.padded_coarse)
        )
        return Output(final, coarse, self.output.size_hw, self.output.full_size)


def recorded(network: Any, device: torch.device) -> Any:
    """``network``, recorded where it is on a GPU and computes the same in every pass."""
    if device.type != "cuda" or not isinstance(network, MTLSINet) or not_ours(network):
        return network
    return RecordedNetwork(network)
