"""The figures of every variant: scores over its finished seeds, size, operations, time, and Delta_m."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console

from mtlsi.benchmarking.parts import count_flops
from mtlsi.benchmarking.runs import Forward, forward_of, random_images
from mtlsi.device import find_device
from mtlsi.errors import MistakeError, counted, message_of
from mtlsi.evaluation.report import SingleTask, boundary_record, has_boundaries, names_of_classes, same_boundaries
from mtlsi.metrics import delta_m
from mtlsi.model.network import MTLSINet
from mtlsi.reading import read_json, shortened
from mtlsi.run_folder import load_config
from mtlsi.studies.plan import Plan, StudyRun
from mtlsi.studies.runs import FINISHED, data_of, state_of
from mtlsi.studies.times import times_of
from mtlsi.tasks import TASKS
from mtlsi.timing import time_calls

TIME_ROUNDS = 9
"""Rounds in which every variant predicts one image in turn; the table has the median."""
MOST_SCORE = 1e12
"""Of a score without its sign: means and plots of larger ones are no numbers any more."""


@dataclass(frozen=True)
class Labels:
    """What a task was measured against: scores compare where these are equal."""

    data: str
    """Which data set, in words, and how many of its images."""
    classes: tuple[str, ...] = ()
    """The names of the task's classes, where it has some."""

    def __str__(self) -> str:
        return f"{self.data}, {len(self.classes)} classes" if self.classes else self.data


@dataclass
class Row:
    """One variant. A figure that cannot be given is None; a score that is undefined (NaN) too."""

    variant: str
    num_planned: int
    by_seed: dict[int, dict[str, float]]
    """The headline score of every task, by finished seed."""
    mean: dict[str, float | None]
    """By task, over the finished seeds."""
    spread: dict[str, float | None]
    """By task, the standard deviation over the finished seeds (of a sample: n - 1); None with fewer than two."""
    iterations: list[int]
    """By finished seed."""
    train_minutes: float | None
    """Mean over the finished seeds, evaluations left out."""
    parameters: int | None = None
    decoder_parameters: int | None = None
    """All but the backbone's."""
    gflop: float | None = None
    """2 x MAC of one image at the size of evaluation, in 10^9."""
    size_hw: tuple[int, int] | None = None
    """That size."""
    ms: float | None = None
    """Median time of one image at that size, on this machine."""
    num_tokens: int | None = None
    """K; None for a decoder without tokens."""
    boundaries: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    """By finished seed that learned boundaries, the record of the protocol that they were measured by; None: its folder does
    not say."""
    labels: dict[str, tuple[Labels, ...]] = field(default_factory=dict)
    """By task, what its scores were measured against, each once: several where the data was changed between seeds."""
    delta_m: float | None = None
    """In percent, of the means, against the single-task runs; of complete variants only."""

    @property
    def is_complete(self) -> bool:
        """Every seed has finished."""
        return len(self.by_seed) == self.num_planned


@torch.no_grad()
def measure(plan: Plan, out: Path, *, time: bool, console: Console) -> list[Row]:
    """One row per variant, in the order of the file. Raises ``MistakeError`` where no run has finished.

    ``time``: measure ms per image too, all variants in turn in this process.
    """
    finished = [run for run in plan.runs(out) if state_of(run) == FINISHED]
    if not finished:
        raise MistakeError(f"{out}: no run of the study has finished; expected one at least, to make a table of")
    first = {run.variant.name: run for run in reversed(finished)}
    device, calls, rows = find_device(None), {}, []
    with console.status("counting operations") as status:
        for variant in plan.variants:
            name = variant.name
            # the model comes first: it knows the tasks of one's own
            model = MTLSINet.from_pretrained(first[name].out).to(device).eval() if name in first else None
            runs = [run for run in finished if run.variant.name == name]
            row = scored(name, runs, len(plan.seeds))
            row.labels = labels_of(runs)
            if model is not None:
                calls[name] = count(row, model, first[name], device)
            rows.append(row)
        if time:
            status.update("timing")
            for name, timing in time_calls(calls, repeats=TIME_ROUNDS, device=device).items():
                next(row for row in rows if row.variant == name).ms = 1e3 * timing.median_s
    add_delta_m(plan, rows)
    return rows


def scored(variant: str, runs: Sequence[StudyRun], num_planned: int) -> Row:
    """Means and spreads over the finished ``runs``."""
    by_seed = {run.seed: headline_of(run.out) for run in runs}
    tasks = {
        task: [scores.get(task, nan) for scores in by_seed.values()] for scores in by_seed.values() for task in scores
    }
    times = [times_of(run.out) for run in runs]
    seconds = [found.training_s for found in times if found is not None]
    return Row(
        variant,
        num_planned,
        by_seed,
        mean={task: _defined(fmean(values)) for task, values in tasks.items()},
        spread={task: _spread(values) for task, values in tasks.items()},
        iterations=[load_config(run.out).train.iterations for run in runs],
        train_minutes=fmean(seconds) / 60 if seconds and len(seconds) == len(runs) else None,
        boundaries={run.seed: protocol_of(run.out) for run in runs if any(map(has_boundaries, by_seed[run.seed]))},
    )


def labels_of(runs: Sequence[StudyRun]) -> dict[str, tuple[Labels, ...]]:
    """By task, what the scores of ``runs`` were measured against, each once."""
    found: dict[str, dict[Labels, None]] = {}
    for run in runs:
        with reading(run.out / "scores.json") as stored:
            data = f"{data_of(run.config.data)} ({counted(int(stored['images']), 'image')})"
            for task, scores in stored["scores"].items():
                found.setdefault(task, {})[Labels(data, names_of_classes(scores))] = None
    return {task: tuple(several) for task, several in found.items()}


def tasks_of_run(out: Path) -> tuple[str, ...]:
    """The tasks that a run folder has scores of, whether they are known or not."""
    with reading(out / "scores.json") as stored:
        return tuple(stored["scores"])


def headline_of(out: Path) -> dict[str, float]:
    """The headline score of every task in a run folder's ``scores.json``; NaN where it is undefined."""
    with reading(out / "scores.json") as stored:
        found = {task: values[TASKS[task].score] for task, values in stored["scores"].items()}
        for value in found.values():
            if not isinstance(value, float | int | None) or isinstance(value, bool):
                raise TypeError(f"{shortened(value)} is no number")
            if value is not None and abs(value) > MOST_SCORE:
                raise ValueError(f"{shortened(value)} is no score of a task")
        return {task: nan if value is None else float(value) for task, value in found.items()}


def protocol_of(out: Path) -> dict[str, Any] | None:
    """What a run folder's boundaries were measured by; None: it was made before there were several protocols."""
    with reading(out / "scores.json") as stored:
        return boundary_record(stored)


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The content of a file of scores; ``MistakeError`` where it is not what the context takes it for."""
    expected = "the scores of a finished run: remove the file to measure again"
    stored = read_json(path, expected)
    try:
        yield stored
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; expected {expected}") from error


def count(row: Row, model: MTLSINet, run: StudyRun, device: torch.device) -> Forward:
    """Parameters and operations of ``model`` into ``row``; gives one forward of it, for timing."""
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    row.decoder_parameters = row.parameters - sum(parameter.numel() for parameter in model.backbone.parameters())
    height, width = run.config.data.image_hw or model.input_size
    row.size_hw = height, width
    forward = forward_of(model, random_images(1, row.size_hw, device), device, torch.float32)
    row.gflop = sum(count_flops(model, forward).values()) / 1e9
    sizes = run.config.model_config()
    has_tokens = sizes.decoder == "mtlsi" and sizes.cross_window
    row.num_tokens = sizes.num_tokens if has_tokens else None
    return forward


def add_delta_m(plan: Plan, rows: Sequence[Row]) -> None:
    """Delta_m of every complete variant that has all tasks of the complete single-task runs, over these tasks.

    None where the two do not compare: see ``unlike_single_tasks``.
    """
    single = single_task_scores(plan, rows).scores
    for row in rows:
        if has_tasks_of(single, row) and len(single) > 1 and not unlike_single_tasks(plan, row, rows):
            means = {task: value for task in single if (value := row.mean[task]) is not None}
            row.delta_m = _defined(delta_m(means, single))


def has_tasks_of(single: Mapping[str, float], row: Row) -> bool:
    """Whether a complete variant has a score of every task in ``single``."""
    return row.is_complete and all(row.mean.get(task) is not None for task in single)


def unlike_single_tasks(plan: Plan, row: Row, rows: Sequence[Row]) -> str:
    """Why a variant's scores do not compare with those of the single tasks, "" where they do."""
    by_name = {one.variant: one for one in rows}
    unlike = [task for task, name in plan.baseline.items() if row.labels.get(task) != by_name[name].labels.get(task)]
    if unlike:
        return f"other classes or data of {', '.join(unlike)}"
    theirs = single_task_boundaries(plan, rows)
    if theirs and not all(same_boundaries(theirs[0], ours) for ours in row.boundaries.values()):
        return "boundaries by another protocol"
    return ""


def single_task_scores(plan: Plan, rows: Sequence[Row]) -> SingleTask:
    """The mean score of every task alone; without any where ``missing_single_tasks`` says why not."""
    if missing_single_tasks(plan, rows):
        return SingleTask({})
    by_task = {task: row for row in rows for task, name in plan.baseline.items() if row.variant == name}
    scores = {task: value for task, row in by_task.items() if (value := row.mean[task]) is not None}
    classes = {task: one.classes for task, row in by_task.items() for one in row.labels.get(task, ()) if one.classes}
    return SingleTask(scores, next(iter(single_task_boundaries(plan, rows)), None), classes)


def single_task_boundaries(plan: Plan, rows: Sequence[Row]) -> list[dict[str, Any] | None]:
    """What the boundaries of the single-task runs were measured by, run by run."""
    names = {name for task, name in plan.baseline.items() if has_boundaries(task)}
    return [record for row in rows if row.variant in names for record in row.boundaries.values()]


def missing_single_tasks(plan: Plan, rows: Sequence[Row]) -> str:
    """Why there is nothing to compare with: single-task runs that have not finished, that do not compare with one another,
    or a score that is not above 0."""
    by_name = {row.variant: row for row in rows}
    waiting = [name for name in plan.baseline.values() if not by_name[name].is_complete]
    if waiting:
        return f"{', '.join(waiting)} must finish"
    for task, name in plan.baseline.items():
        value = by_name[name].mean.get(task)
        if value is None or not value > 0:
            shown = "undefined" if value is None else f"{value:g}"
            return f"the {TASKS[task].score} of {name} is {shown}, and a change is relative to a score above 0"
        if len(by_name[name].labels.get(task, ())) > 1:
            return f"the seeds of {name} were measured on different classes or data"
    measured_by = single_task_boundaries(plan, rows)
    if not all(same_boundaries(measured_by[0], other) for other in measured_by):
        return "the boundaries of the single-task runs were measured by several protocols"
    return ""


def _defined(value: float) -> float | None:
    return value if isfinite(value) else None


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 and not any(map(isnan, values)) else None
