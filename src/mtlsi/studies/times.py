"""How long runs train: read from their folders, and measured on a few steps before a run starts."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mtlsi.config import RunConfig
from mtlsi.run_folder import TIMES, is_time, read_metrics
from mtlsi.timing import synchronise
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import assemble, settle

WARM_UP_STEPS, TIMED_STEPS = 10, 20


@dataclass(frozen=True)
class RunTimes:
    """Seconds of a run, whatever breaks it had."""

    training_s: float
    """Optimizer steps, the loading of their images and the saving of states; no evaluation."""
    evaluation_s: float


def times_of(out: Path) -> RunTimes | None:
    """What ``metrics.jsonl`` of the run folder ``out`` says; None where an older run left no times in it, or odd ones."""
    lines, _ = read_metrics(out)
    training, evaluation = ([line[name] for line in lines if line.get(name) is not None] for name in TIMES)
    if not training or not all(map(is_time, [*training, *evaluation])):
        return None
    return RunTimes(training[-1], sum(evaluation))


def seconds_per_step(config: RunConfig) -> float:
    """What one optimizer step of ``config`` takes here: the mean of 20 after 10 of warm-up, with their loading."""
    short = replace(config, train=replace(config.train, iterations=WARM_UP_STEPS + TIMED_STEPS, tracker=None))
    with TemporaryDirectory() as folder:
        run = assemble(settle(short), Path(folder) / "timing", resume=False)
        run.model.train()
        with closing(iter(batches_from(0, run))) as batches:
            for _ in range(WARM_UP_STEPS):
                optimizer_step(run, batches)
            synchronise(run.accelerator.device)
            start = time.perf_counter()
            for _ in range(TIMED_STEPS):
                optimizer_step(run, batches)
            synchronise(run.accelerator.device)
            seconds = time.perf_counter() - start
    return seconds / TIMED_STEPS
