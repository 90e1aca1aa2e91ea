"""A training that only says what it would be: everything is built, a few steps are taken and measured, nothing is kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mtlsi import run_folder
from mtlsi.config import RunConfig
from mtlsi.data.datasets import LabelledImages, spread
from mtlsi.errors import MistakeError, counted
from mtlsi.evaluation.report import introduce
from mtlsi.model.freezing import parts_of
from mtlsi.model.inherit import describe
from mtlsi.plugins import import_plugins
from mtlsi.streams import write_line
from mtlsi.timing import synchronise
from mtlsi.training.cuda_graph import WARM_UP, obstacle
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import TrainingRun, assemble, check_tracker, settle
from mtlsi.training.validation import measure

MOST_STEPS, ENOUGH_S = 10, 15.0
"""Steps are timed until there are so many, or three that took so long."""
LOOKED_AT = 8
"""Images that are evaluated, and looked at where a data set cannot list its labels."""


@dataclass(frozen=True)
class Costs:
    """What a run costs, measured over a few of its steps on this machine."""

    step_s: float
    """Of an optimizer step, waiting for its images included."""
    image_s: float
    """Of the evaluation of an image."""
    num_evaluated: int
    """Images that all evaluations of the run look at."""
    iterations: int
    memory: str
    """What was measured, in words."""

    @property
    def total_s(self) -> float:
        """Of the whole run."""
        return self.iterations * self.step_s + self.num_evaluated * self.image_s


def dry_run(config: RunConfig, out: Path | None = None, *, console: Console | None = None) -> Costs:
    """Say what ``config`` trains, on what, and what that costs here in memory and time. Writes nothing.

    Takes a few steps on the run's own images, and evaluates a few. ``out``: the run folder that is meant. Derived
    labels are kept in the cache, as in training. Raises ``MistakeError`` for whatever ``train`` would refuse.
    """
    console = console or Console()
    import_plugins(config.plugins)
    config.check()
    check_tracker(config.train.tracker)
    if out is not None:
        run_folder.check_usable(out)
    settled = settle(replace(config, train=replace(config.train, tracker=None)))
    with TemporaryDirectory() as folder:
        run = assemble(settled, Path(folder) / "run", resume=False)
        lines = chain(what_is_trained(run), what_it_is_trained_on(run), run.notes)
        if run.accelerator.is_main_process:
            introduce(run.train_set, console)
            show(console, lines)
        costs = measured(run)
    if run.accelerator.is_main_process:
        show(console, [*what_it_costs(costs), "dry run: nothing was written"])
    return costs


def show(console: Console, lines: Iterator[Any] | list[Any]) -> None:
    """Print tables, and lines as they are."""
    for line in lines:
        if isinstance(line, str):
            write_line(console, line)
        else:
            console.print(line)


def what_is_trained(run: TrainingRun) -> Iterator[Any]:
    """The network's parts with their sizes, and what it begins with."""
    table = Table(title="parameters", box=SIMPLE_HEAD, show_edge=False)
    for name in ("part", "trained", "frozen"):
        table.add_column(name, justify="left" if name == "part" else "right")
    sums = [0, 0]
    for name, part in parts_of(run.network).items():
        counts = [sum(p.numel() for p in part.parameters() if p.requires_grad is kind) for kind in (True, False)]
        table.add_row(name, *(f"{count:,}" for count in counts))
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
    table.add_row("all", *(f"{count:,}" for count in sums), style="bold")
    yield table
    if run.taken_over:
        yield f"taken over from {run.config.init}: {describe(run.taken_over)}"
    elif run.config.init is None:
        yield f"backbone weights: {run.config.backbone_weights or 'none (random)'}; the decoder begins at random"


def what_it_is_trained_on(run: TrainingRun) -> Iterator[str]:
    """The images, their labels, and the sizes in which the network sees them."""
    for split, dataset in (("train", run.train_set), ("val", run.val_set)):
        labels = ", ".join(f"{task} {found}" for task, found in labels_of(dataset).items())
        yield f"{split}: {counted(len(dataset), 'image')}; labels: {labels}"
    options, data, processes = run.config.train, run.config.data, run.accelerator.num_processes
    whole = "as stored" if data.image_hw is None else "{}x{}".format(*data.image_hw)
    batch = options.batch_size * options.accumulate * processes
    yield (
        f"input: crops of {data.size_hw[0]}x{data.size_hw[1]} from whole images of {whole}; batch {batch} "
        f"({options.batch_size} x {options.accumulate} accumulated x {processes} processes), {options.precision}; "
        f"{options.iterations} steps are {options.iterations * batch / len(run.train_set):.1f} epochs"
    )


def labels_of(dataset: LabelledImages) -> dict[str, str]:
    """How many images have a label of each task; of a data set that has no files, of a few that are looked at."""
    if hasattr(dataset, "path"):
        of_file: Any = dataset
        return {
            task: str(sum(of_file.path(task, index) is not None for index in range(len(dataset))))
            for task in dataset.tasks
        }
    samples = [dataset[index] for index in spread(LOOKED_AT, len(dataset))]
    return {task: f"{sum(task in sample for sample in samples)} of {len(samples)} looked at" for task in dataset.tasks}


def measured(run: TrainingRun) -> Costs:
    """Train a few steps of ``run`` and evaluate a few images. Raises ``MistakeError`` for a loss that is not finite."""
    device, options = run.accelerator.device, run.config.train
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    idle = 1 + 2 * run.config.data.num_workers  # the loader has prepared two batches per worker by the first step's end
    if not obstacle(run):
        idle = max(idle, WARM_UP + 1)  # the steps before the first that is replayed, and the one that is recorded
    taken: list[float] = []
    run.model.train()
    with closing(iter(batches_from(0, run))) as batches:  # whose processes end with it: their memory is known then
        while len(taken) < min(options.iterations, idle + MOST_STEPS):
            start = time.perf_counter()
            step = optimizer_step(run, batches)
            losses = {name: float(value) for name, value in step.mean_losses().items()}
            synchronise(device)
            taken.append(time.perf_counter() - start)
            if bad := [name for name, value in losses.items() if not isfinite(value)]:
                raise MistakeError(f"{', '.join(bad)} is not a number at step {len(taken)}; give a lower --train.lr")
            if len(taken) >= idle + 3 and sum(taken[idle:]) > ENOUGH_S:
                break
    timed = taken[idle:] or taken[-1:]
    measure(run, 1)  # compiles what is compiled
    start, num_images = time.perf_counter(), len(spread(LOOKED_AT, len(run.val_set)))
    measure(run, num_images)
    image_s = (time.perf_counter() - start) / num_images
    return Costs(sum(timed) / len(timed), image_s, images_evaluated(run), options.iterations, memory_of(device))


def images_evaluated(run: TrainingRun) -> int:
    """How many images the evaluations of ``run`` look at, all together."""
    options, every = run.config.train, run.config.train.evaluate_every
    on_the_way, at_the_end = (
        len(spread(count, len(run.val_set))) for count in (options.evaluate_images, options.final_images)
    )
    before = (options.iterations - 1) // every if every else 0
    twice = options.best_by is not None and on_the_way != at_the_end
    return (before + twice) * on_the_way + at_the_end


def memory_of(device: torch.device) -> str:
    """The most memory used so far, in words: of the GPU what torch took, else what this process had resident."""
    if device.type == "cuda":
        taken, used = torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
        there = torch.cuda.get_device_properties(device).total_memory
        return f"{taken / 2**30:.2f} GiB of the GPU's {there / 2**30:.1f} ({used / 2**30:.2f} in use at once)"
    try:
        import resource
    except ImportError:  # Windows
        return "not measured on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    own, loader = (resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    beside = f", a loader process up to {loader / 2**30:.2f} GiB, in part shared" if loader else ""
    return f"{own / 2**30:.2f} GiB resident at most{beside}"


def what_it_costs(costs: Costs) -> Iterator[str]:
    """Memory and time, in words."""
    yield f"memory: {costs.memory}"
    training, evaluation = costs.iterations * costs.step_s, costs.num_evaluated * costs.image_s
    yield (
        f"time: {costs.step_s:.3g} s a step, {costs.image_s:.3g} s an evaluated image; about {spoken(costs.total_s)} in "
        f"all: {costs.iterations} steps {spoken(training)}, {counted(costs.num_evaluated, 'image')} evaluated "
        f"{spoken(evaluation)}"
    )


def spoken(seconds: float) -> str:
    """``2 h 05 min``, ``12 min`` or ``40 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min"
