"""A network's forward pass recorded on a GPU as a CUDA graph, for each size of image that comes again.

A pass of these networks is some hundred kernels of a few microseconds, and Python takes longer to start each of them
than the GPU to run it; a graph starts them all by itself, the same operations in the same order.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mtlsi.errors import message_of
from mtlsi.model.network import MTLSINet, Output, slots_of
from mtlsi.nn.crossings import Crossings
from mtlsi.nn.recording import ONE_AT_A_TIME, not_ours, recorded_into

WARM_UP = 2
"""Passes at a size before it is recorded: an album of photos of all shapes is seldom recorded, a video is."""
MOST = 8
"""Recordings that are kept, and sizes that are waited for; the one asked for the longest ago gives way to a new one."""


class NotToBeRecordedError(RuntimeError):
    """The pass asks for the host's memory."""


class RecordedNetwork:
    """In the place of ``network``, which it gives the same outputs as: ``RecordedNetwork(network)(images, tasks=...)``.

    The third pass of images of one shape and type, for the same tasks, under the same autocast, is recorded and replayed
    from then on. Passes that no recording stands for go as without: while a part is in training mode or has a hook, with
    gradients, with a ``context``. So does every later one where the network meets the host's memory, and, with a warning,
    where the device or a library refuses a recording.
    Weights may be changed in place; where they have moved, a recording is made anew. One replays at a time.
    """

    def __init__(self, network: MTLSINet):
        self.network = network
        self.records = True
        self._modules = list(network.modules())
        self._passes: OrderedDict[Any, int] = OrderedDict()
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()
        self._pools: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.network,)  # a copy makes its own recordings

    def __call__(
        self, images: Tensor, tasks: Iterable[str] | None = None, *, full_size: bool = True, **options: Any
    ) -> Output:
        tasks = None if tasks is None else tuple(tasks)
        if options or not self.records or not self._is_repeatable():
            return self.network(images, tasks, full_size=full_size, **options)
        chosen = self.network.for_tasks(tasks)
        with ONE_AT_A_TIME, torch.cuda.device(images.device):
            output = self._replayed(chosen, images, full_size)
        if output is None:
            output = chosen(images, full_size=full_size)
        return output

    def _is_repeatable(self) -> bool:
        """Whether a pass does now what it will do later."""
        if torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing():
            return False
        return not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in self._modules)

    def _replayed(self, chosen: MTLSINet, images: Tensor, full_size: bool) -> Output | None:
        """The output of a recording, which is made if it is due; None where there is none."""
        kind = images.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        stream = torch.cuda.current_stream().cuda_stream  # replays on one follow each other
        key = (images.shape, images.dtype, images.device, stream, chosen.tasks, full_size, mixed)
        try:
            if self._is_due(key, chosen, images.device):
                pool = self._pools.setdefault(stream, torch.cuda.graph_pool_handle())
                self._recordings[key] = Recording(chosen, images, full_size, pool)
            recording = self._recordings.get(key)
            return None if recording is None else recording.replay(images)
        except RuntimeError as error:  # CUDA's own errors are RuntimeErrors of several names
            self.records = False
            self._recordings.clear()
            if not isinstance(error, NotToBeRecordedError):
                # what ends a refused recording is an error of its own; the first one says what was refused
                first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                warnings.warn(
                    f"predictions take longer: a pass cannot be recorded as a CUDA graph here ({message_of(first, 200)})",
                    stacklevel=4,
                )
            return None

    def _is_due(self, key: Any, chosen: MTLSINet, device: torch.device) -> bool:
        """Whether a pass of this kind is to be recorded now, for which room is then made."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
            if self._recordings[key].stands_for(chosen):
                return False
            self._drop(key, device)
        self._passes[key] = self._passes.pop(key, 0) + 1
        while len(self._passes) > MOST:
            self._passes.popitem(last=False)
        if self._passes[key] <= WARM_UP:
            return False
        del self._passes[key]
        if len(self._recordings) >= MOST:
            self._drop(next(iter(self._recordings)), device)
        return True

    def _drop(self, key: Any, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # it may still be running
        del self._recordings[key]


class Recording:
    """The kernels of one forward pass, with the memory that they read and write."""

    def __init__(self, network: MTLSINet, images: Tensor, full_size: bool, pool: Any = None):
        """Raises ``NotToBeRecordedError`` where the pass meets the host's memory, ``RuntimeError`` where CUDA refuses it."""
        self.network = network
        self.slots = slots_of(network)
        self.weights = self._weights()
        kind = images.device.type
        # weights that autocast has cast and kept belong to no recording
        cast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        # outside inference mode, so that its tensors, those of random numbers too, can be written in any mode
        with torch.inference_mode(False), torch.no_grad(), cast:
            self.images = images.clone()
            with Crossings() as crossings:  # a pass of this thread, which has libraries and memory of its own
                network(self.images, full_size=full_size)
            if crossings.found:
                raise NotToBeRecordedError(crossings.found)
            self.graph = torch.cuda.CUDAGraph()
            with recorded_into(self.graph, images.device, pool):
                self.output = network(self.images, full_size=full_size)

    def _weights(self) -> list[tuple[int, torch.dtype] | None]:
        """Where the weights and statistics lie, and of what type they are."""
        found = [registry.get(name) for registry, name in self.slots]
        return [None if x is None else (x.data_ptr(), x.dtype) for x in found]

    def stands_for(self, network: MTLSINet) -> bool:
        """Whether ``network`` is the one that was recorded, its weights still where they are read."""
        return network is self.network and self._weights() == self.weights

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
