"""Training speed with loader, and of the network alone: the same steps on a batch kept in memory.

    python benchmarks/training.py --config recipes/nyud_mobilenetv2_100.yaml --data.root DIR

Takes the settings of ``mtlsi train``. The two take turns of a few steps in one process. The loader keeps running as it does
in training, so it may slow the network's turns a little, and its own turns start with the batches it has prefetched. Turns
are therefore longer than its queue.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mtlsi.train_command import read_run, train_parser
from mtlsi.training.loop import batches_from, optimizer_step
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
        if config.data.in_memory:  # an epoch later there is nothing left to read
            for _ in range(len(run.train_set) // config.train.batch_size + 1):
                optimizer_step(run, loaded)
        rates: dict[str, list[float]] = {"alone": [], "with its loader": []}
        for turn in range(TURNS + 1):
            for name, batches in (("alone", held), ("with loader", loaded)):
                start = time.perf_counter()
                for _ in range(STEPS):
                    optimizer_step(run, batches)
                if turn:
                    rates[name].append(STEPS * config.train.batch_size / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name}: {median(values):.1f} images/s ({min(values):.1f}-{max(values):.1f})")
    print(f"ratio: {median(rates['with loader']) / median(rates['alone']):.2f}")


if __name__ == "__main__":
    main()
