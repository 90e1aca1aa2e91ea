"""Training speed with its loader, and of the network alone: the same steps on a batch kept in memory.

    python benchmarks/training.py --config recipes/nyud_mobilenetv2_100.yaml --data.root DIR
    python benchmarks/training.py --config recipes/scenes_efficientnet_lite0.yaml --model.decoder invpt    # needs no data

Takes the settings of ``mtlsi train``. The ways take turns of a few steps in one process. The loader keeps running as it does
in training, so it may slow the network's turns a little; the clock of its own turns starts when what it has prefetched is
used up. On a GPU each is measured twice, with the step started kernel by kernel and recorded as a CUDA graph
(``train.cuda_graph``).
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from mtlsi.train_command import read_run, train_parser
from mtlsi.training.cuda_graph import obstacle
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.passes import forward_backward
from mtlsi.training.setup import assemble, settle

STEPS, TURNS = 12, 5


def main() -> None:
    """Measures and prints."""
    config = settle(read_run(train_parser().parse_args(sys.argv[1:])))
    config.check()
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(config, Path(folder) / "run", resume=False)
        run.model.train()
        loaded = iter(batches_from(0, run))
        held = itertools.repeat(next(loaded))
        ways = {"alone": (held, forward_backward), "with loader": (loaded, forward_backward)}
        if not obstacle(run):
            recorded = run.passes
            ways |= {f"{name}, recorded": (batches, recorded) for name, (batches, _) in ways.items()}
        if config.data.in_memory:  # an epoch later there is nothing left to read
            for _ in range(len(run.train_set) // config.train.batch_size + 1):
                optimizer_step(run, loaded)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS + 1):
            for name, (batches, passes) in ways.items():
                run.passes = passes
                for _ in range(2 * config.data.num_workers + 1):  # what has been prefetched tells no rate
                    optimizer_step(run, batches)
                start = time.perf_counter()
                for _ in range(STEPS):
                    step = optimizer_step(run, batches)
                bool(step.finite)  # waits for a GPU
                if turn:
                    seconds[name].append((time.perf_counter() - start) / STEPS)
        if torch.cuda.is_available():
            print(torch.cuda.get_device_name())
    for name, values in seconds.items():
        rate = config.train.batch_size / median(values)
        spread = f"{1e3 * min(values):.1f}-{1e3 * max(values):.1f}"
        print(f"{name}: {rate:.1f} images/s, a step {1e3 * median(values):.1f} ms ({spread})")
    kind = ", recorded" if "alone, recorded" in seconds else ""
    print(f"ratio with loader{kind}: {median(seconds[f'alone{kind}']) / median(seconds[f'with loader{kind}']):.2f}")


if __name__ == "__main__":
    main()
