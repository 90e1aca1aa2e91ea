"""A trained network as a program of torch.export, for PyTorch without this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mtlsi import kinds
from mtlsi.exporting.network import EXAMPLE, raw_network, trace
from mtlsi.model.network import MTLSINet
from mtlsi.nn.normalise import normalise


class Program(nn.Module):
    """Images (b H W 3) uint8, H and W multiples of 32 -> {task: its prediction (b H W ...) at that size}."""

    def __init__(self, model: MTLSINet, tasks: Sequence[str]):
        super().__init__()
        self.network = raw_network(model, tasks)
        self.tasks = tuple(tasks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raw = self.network(normalise(images.permute(0, 3, 1, 2)))
        return {task: self.finished(task, x) for task, x in zip(self.tasks, raw, strict=True)}

    def finished(self, task: str, raw: Tensor) -> Tensor:
        """A raw prediction four times as large, decoded."""
        decoded = kinds.decode(task, nn.functional.interpolate(raw, scale_factor=4.0, mode="bilinear"))
        return decoded.permute(0, 2, 3, 1) if decoded.dim() == 4 else decoded


def whole_program(model: MTLSINet, tasks: Sequence[str]) -> ExportedProgram:
    """``Program`` traced for any batch and size. Raises ``MistakeError`` for a network that cannot be."""
    batch, channels, height, width = EXAMPLE
    return trace(Program(model, tasks), torch.zeros(batch, height, width, channels, dtype=torch.uint8), (1, 2))


def open_program(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """What has just been saved here, to be called; without the checks that newer torch adds. Never a file of others.

    Tracing notes more about sizes than any operation needs, that a number of windows is not 1 say, which it was not in the
    example.
    """
    program = torch.export.load(path)
    unchecked = {"check_guards": False} if "check_guards" in signature(program.module).parameters else {}
    return program.module(**unchecked)
