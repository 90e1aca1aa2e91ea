"""One run of a study: what its folder holds, whether it can be built, how it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mtlsi import run_folder
from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages, note_on_blur, open_dataset
from mtlsi.errors import MistakeError, message_of
from mtlsi.evaluation.evaluate import shared_tasks
from mtlsi.evaluation.report import introduce
from mtlsi.model.network import MTLSINet
from mtlsi.streams import write_line
from mtlsi.studies.plan import StudyRun
from mtlsi.studies.times import seconds_per_step, times_of
from mtlsi.training.class_weights import wanted_by_task
from mtlsi.training.loop import resume, train
from mtlsi.training.same_settings import flat
from mtlsi.training.setup import build_criterion, build_model, check_tracker, load_backbone, settle

FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What a run may end with while the others go on."""
FINISHED, STARTED, NEW = "finished", "started", "new"
NO_MATTER = ("data.num_workers", "data.in_memory", "train.cuda_graph")
"""Settings on which no result depends, but for rounding on a GPU."""


def state_of(run: StudyRun) -> str:
    """Finished, started or new. Raises ``MistakeError`` where the folder holds a run of another configuration."""
    if not (run.out / "config.yaml").exists():
        return NEW
    stored = run_folder.load_config(run.out)
    wanted = run.config
    if wanted.train.precision == "auto":
        wanted = replace(wanted, train=replace(wanted.train, precision=stored.train.precision))
    passed_over = (*NO_MATTER, "train.iterations") if run.variant.time_of else NO_MATTER
    ours, theirs = (flat(config, passed_over) for config in (settle(wanted), stored))
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        told = ", ".join(f"{name} {theirs.get(name)} there, {ours.get(name)} in the study" for name in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise MistakeError(f"{run.out} holds another run: {told}{more}; remove it, or give another --out")
    return FINISHED if (run.out / "scores.json").exists() else STARTED


def data_of(data: DataConfig) -> str:
    """Which data that is, in words; the same words, the same images and labels, but for how many and how large they are."""
    if data.name == "scenes":
        return f"scenes of {data.label_set}"
    return data.name if data.root is None else f"{data.name} in {Path(data.root).resolve()}"


# ---- before anything is trained


def check_runs(runs: Iterable[StudyRun], console: Console) -> dict[str, tuple[str, ...]]:
    """Opens the data and builds the network of every variant; a ``MistakeError`` names the one that cannot be.

    Tells about each data set what ``train`` would; gives the tasks of every variant.
    """
    tasks: dict[str, tuple[str, ...]] = {}
    opened: dict[str, tuple[LabelledImages, LabelledImages]] = {}
    weights: set[tuple[str, str]] = set()
    for variant in dict.fromkeys(run.variant.name for run in runs):
        run = next(run for run in runs if run.variant.name == variant)
        try:
            train_set, val_set = _open(run.config.data, opened, console)
            network = build_model(settle(run.config), train_set)
            shared_tasks(network, val_set)
            build_criterion(network.tasks, run.config.train)
            if run.config.train.class_weights:
                wanted_by_task(run.config.train.class_weights, train_set.classes)
            check_tracker(run.config.train.tracker)
            _check_weights(network, run.config.backbone_weights or "none", weights)
            tasks[variant] = network.tasks
        except FAILURES as error:
            raise MistakeError(f"variant {variant} cannot be trained: {one_line(error)}") from error
    return tasks


def _open(
    data: DataConfig, opened: dict[str, tuple[LabelledImages, LabelledImages]], console: Console
) -> tuple[LabelledImages, LabelledImages]:
    """Both splits; those of a configuration met before are not read again."""
    key = repr(data)
    if key not in opened:
        opened[key] = open_dataset(data, "train"), open_dataset(data, "val")
        introduce(opened[key][0], console)
        for note in note_on_blur(opened[key][0], data):
            write_line(console, note)
    return opened[key]


def _check_weights(network: MTLSINet, weights: str, seen: set[tuple[str, str]]) -> None:
    """Loads the backbone's first weights, once for each backbone; a download is left to the run."""
    if weights in ("none", "pretrained") or (network.backbone.name, weights) in seen:
        return
    load_backbone(network, weights)
    seen.add((network.backbone.name, weights))


# ---- training


def train_run(run: StudyRun, runs_by_name: Mapping[str, StudyRun], callbacks: Iterable[Any]) -> None:
    """Train ``run`` to its end, from where it was cut; the caller holds its lock."""
    quiet = Console(quiet=True, force_terminal=False)
    config = run.config
    if state_of(run) == STARTED:
        resume(run.out, console=quiet, callbacks=callbacks)  # with the number of steps that was chosen then
        return
    if run.variant.time_of is not None:
        steps = iterations_for(run, runs_by_name[f"{run.variant.time_of}/{run.seed}"])
        config = replace(config, train=replace(config.train, iterations=steps))
    train(config, run.out, console=quiet, callbacks=callbacks)


def iterations_for(run: StudyRun, other: StudyRun) -> int:
    """How many steps of ``run`` take as long as the whole training of ``other``, which must have finished."""
    if state_of(other) != FINISHED:
        raise MistakeError(f"its training time is that of {other.name}, which has not finished; train that first")
    if (times := times_of(other.out)) is None:
        raise MistakeError(
            f"its training time is that of {other.name}, whose metrics.jsonl has no seconds of training from 0 on; remove "
            f"{other.out} to train it again"
        )
    return max(1, round(times.training_s / seconds_per_step(run.config)))


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks; its kind first where it is not a person's mistake."""
    kind = "" if isinstance(error, MistakeError) else f"{type(error).__name__}: "
    return kind + message_of(error)
