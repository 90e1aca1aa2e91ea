"""What each of several processes keeps in memory while they train, plainly and in shards.

    torchrun --nproc_per_node 2 benchmarks/shards.py [--shard] [--recompute] [--backbone swin_small_patch4_window7_224]

The decoder is that of the preset swin_tiny, weights are random, images generated. Bytes are those of the tensors that stay
from step to step: weights, gradients, the optimizer's two moments, moving average. The peak is that of the process, all of
torch included; on a GPU that of torch's memory there.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from mtlsi import processes
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import TrainingRun, assemble, settle


def megabytes(tensors: Iterable[Any]) -> float:
    """Of what this process keeps of ``tensors``."""
    own = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    return sum(x.numel() * x.element_size() for x in own) / 1e6


def kept(run: TrainingRun) -> dict[str, float]:
    """MB that stay in this process from step to step, by what they are."""
    parameters = list(run.network.parameters())
    moments = [x for state in run.optimizer.state.values() for x in state.values()]
    found = {
        "weights": megabytes(parameters),
        "gradients": megabytes(x.grad for x in parameters if x.grad is not None),
        "moments": megabytes(moments),
        "average": megabytes(run.average.state.values()),
    }
    return {**found, "all": sum(found.values())}


def main() -> None:
    """Train a few steps and print a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="swin_small_patch4_window7_224")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    processes.join()
    config = RunConfig(
        preset="swin_tiny",
        model={"backbone": asked.backbone},
        data=DataConfig(num_train=8, num_val=1, size_hw=(64, 64), image_hw=(64, 64), num_workers=0),
        train=TrainConfig(batch_size=1, precision=asked.precision, shard=asked.shard, recompute=asked.recompute),
    )
    with TemporaryDirectory() as folder:
        run = assemble(settle(config), Path(folder) / "run", resume=False)
        run.model.train()
        batches, taken = iter(batches_from(0, run)), []
        for _ in range(asked.steps):
            start = perf_counter()
            optimizer_step(run, batches)
            taken.append(perf_counter() - start)
        device = run.accelerator.device
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 1e6
        for index, (found, most) in enumerate(processes.gathered((kept(run), peak))):
            if processes.is_first():
                words = ", ".join(f"{name} {size:.0f}" for name, size in found.items())
                print(f"process {index}, MB: {words}; peak {most:.0f}; {min(taken):.2f} s a step")
        run.accelerator.wait_for_everyone()
    processes.leave(0)


if __name__ == "__main__":
    main()
