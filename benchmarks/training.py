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
from types import SimpleNamespace
from typing import Any

from mtlsi.cli import read_run, train_parser
from mtlsi.training.loop import assemble, batches_from, check, optimizer_step, settle

STEPS, TURNS = 12, 5


def main() -> None:
    """Measures and prints."""
    config = settle(read_run(train_parser().parse_args(sys.argv[1:])))
    check(config)
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(config, Path(folder) / "run", resume=False)
        parts.model.train()
        loaded = iter(batches_from(0, parts, config))
        held = itertools.repeat(next(loaded))
        log: Any = SimpleNamespace(add=lambda *_: None)
        if config.data.in_memory:  # after one epoch there is nothing left to read
            for _ in range(len(parts.train_set) // config.train.batch_size + 1):
                optimizer_step(parts, loaded, config, log)
        rates: dict[str, list[float]] = {"alone": [], "with loader": []}
        for turn in range(TURNS + 1):
            for name, batches in (("alone", held), ("with loader", loaded)):
                start = time.perf_counter()
                for _ in range(STEPS):
                    optimizer_step(parts, batches, config, log)
                if turn:
                    rates[name].append(STEPS * config.train.batch_size / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name}: {median(values):.1f} images/s ({min(values):.1f}-{max(values):.1f})")
    print(f"ratio: {median(rates['with loader']) / median(rates['alone']):.2f}")


if __name__ == "__main__":
    main()
