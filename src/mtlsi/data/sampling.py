"""The order of samples, and the seeds of what is drawn for them: pure functions of (seed, position in the run).

A resumed run therefore sees what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class RunSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) for micro-steps ``start`` to ``stop``, of one of ``num_processes`` processes.

    Position p of the run shows image p modulo the length in the shuffle of its epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.process, self.num_processes = start, stop, process, num_processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffles: dict[int, Tensor] = {}
        for step in range(self.start, self.stop):
            first = (step * self.num_processes + self.process) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch not in shuffles:
                    generator = torch.Generator().manual_seed(mix_seeds(self.seed, 0, epoch))
                    shuffles[epoch] = torch.randperm(self.length, generator=generator)
                batch.append((position, int(shuffles[epoch][place])))
            for epoch in [e for e in shuffles if e < first // self.length]:
                del shuffles[epoch]
            yield batch


def mix_seeds(*numbers: int) -> int:
    """One 63-bit seed from several numbers, different for different numbers in all likelihood (FNV-1a over 64-bit words)."""
    value = 0xCBF29CE484222325
    for number in numbers:
        for shift in range(0, 64, 8):
            value = ((value ^ ((number >> shift) & 0xFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value >> 1
