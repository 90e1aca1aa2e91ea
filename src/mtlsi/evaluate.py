"""Measure a network on labelled pictures, every task with its metric, at the labels' own size."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from mtlsi.checkpoint import replace_text
from mtlsi.config import DataConfig
from mtlsi.data.loading import LabelledPictures, evaluation_batches, open_dataset, spread
from mtlsi.data.scenes import label_set_of
from mtlsi.device import find_device
from mtlsi.errors import MistakeError
from mtlsi.metrics import MeanIoU, build_metric, delta_m
from mtlsi.model.network import MTLSINet, decode
from mtlsi.nn.layers import enlarge
from mtlsi.tasks import TASK_SETS, TASKS, num_channels

Scores = dict[str, dict[str, float]]
"""Every figure by task and name: the headline ``TASKS[task].score``, the others, ``IoU/<class>``; NaN: undefined."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: LabelledPictures,
    config: DataConfig,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> Scores:
    """Scores of ``model`` on the pictures ``indices`` (None: all) of ``dataset``.

    Pictures are shown at ``config.picture_hw``; predictions are enlarged bilinearly to the labels' size before they are
    decoded and compared. Tasks are those that the model and the data set share; raises ``MistakeError`` if none, or if
    their classes differ.
    """
    tasks = shared_tasks(model, dataset)
    metrics = {
        task: build_metric(
            TASKS[task],
            num_classes=num_channels(task, dataset.classes) if TASKS[task].output == "class" else None,
            boundary_tolerance=TASK_SETS["pascal" if "parsing" in tasks else "nyud"].boundary_tolerance,
        ).to(device)
        for task in tasks
    }
    was_training = model.training
    model.eval()
    indices = range(len(dataset)) if indices is None else indices
    with Progress(console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(indices))
        for batch in evaluation_batches(dataset, config, indices, batch_size=batch_size):
            images = batch["image"].to(device)
            at_stride_4 = all(side % 4 == 0 for side in images.shape[-2:])  # then the stride's grid fits the picture
            raw = model(images, tasks, full_size=not at_stride_4).final
            for task, metric in metrics.items():
                label = batch[task].to(device)
                metric.update(
                    decode(task, enlarge(raw[task].float(), label.shape[-2:])), label, TASKS[task].valid(label)
                )
            progress.advance(bar, len(batch["image"]))
    model.train(was_training)
    scores = {
        task: {name: float(value) for name, value in metric.compute().items()} for task, metric in metrics.items()
    }
    for task, metric in metrics.items():
        if isinstance(metric, MeanIoU):
            of_classes = zip(dataset.classes[task], metric.per_class().tolist(), strict=True)
            scores[task] |= {f"IoU/{name}": value for name, value in of_classes}
    return scores


def shared_tasks(model: Any, dataset: LabelledPictures) -> tuple[str, ...]:
    """The tasks that both know, in the model's order; ``MistakeError`` if there are none or their classes differ."""
    tasks = tuple(task for task in model.tasks if task in dataset.tasks)
    if not tasks:
        raise MistakeError(
            f"the model predicts {', '.join(model.tasks)}, the data has labels for {', '.join(dataset.tasks)}; "
            "expected at least one task in common"
        )
    for task in tasks:
        ours, theirs = model.classes.get(task), dataset.classes.get(task)
        if ours != theirs:
            raise MistakeError(
                f"{task}: the model has {len(ours or ())} classes, the data {len(theirs or ())} or other names; "
                "expected the classes the model was trained on"
            )
    return tasks


def headline(scores: Scores) -> dict[str, float]:
    """The one figure per task that tables compare."""
    return {task: values[TASKS[task].score] for task, values in scores.items()}


def score_table(scores: Scores, *, derived: Sequence[str] = (), others: Mapping[str, Scores] | None = None) -> Table:
    """All figures on one screen; ``derived`` marks tasks whose labels were computed, ``others`` adds columns to compare."""
    table = Table(title="scores")
    table.add_column("task")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name in others or {}:
        table.add_column(name, justify="right")
    for task, values in scores.items():
        record = TASKS[task]
        for name, value in values.items():
            if "/" in name:  # one class among many: for the JSON file
                continue
            best = name == record.score
            arrow = ("^" if record.higher_is_better else "v") + f" {record.unit}" if best else ""
            label = record.title + (" (derived labels)" if task in derived else "") if best else ""
            row = [f"{value:.4g}"] + [
                f"{other.get(task, {}).get(name, float('nan')):.4g}" for other in (others or {}).values()
            ]
            table.add_row(label, f"{name} {arrow}".strip(), *row, style="bold" if best else None)
    return table


def write_scores(scores: Scores, path: Path, **context: Any) -> None:
    """``scores`` and what they were measured on as JSON, written whole or not at all."""
    check_writable(path)
    defined = {task: {name: None if isnan(v) else v for name, v in of.items()} for task, of in scores.items()}
    try:
        replace_text(path, json.dumps({**context, "scores": defined}, indent=2) + "\n")
    except OSError as error:
        raise MistakeError(
            f"cannot write {path} ({error.strerror}); give a file in a folder you may write to"
        ) from error


def check_writable(path: Path) -> None:
    """Raises ``MistakeError`` where ``path`` is a folder or its folder is not there or may not be written to."""
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise MistakeError(f"cannot write {path}; give a file in a folder that is there and may be written to")


def compare_single_task(scores: Scores, path: Path) -> float:
    """Delta_m in percent against the single-task scores in the JSON file ``path``: {task: headline figure}.

    Also reads the files of ``write_scores``. Raises ``MistakeError`` for a file that is neither.
    """
    try:
        stored = json.loads(path.read_text())
        single = headline(stored["scores"]) if "scores" in stored else {task: float(v) for task, v in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MistakeError(f'{path}: {error}; expected JSON such as {{"semseg": 40.1, "depth": 0.61}}') from error
    return delta_m(headline(scores), single)


def evaluate_from_command(
    model: str,
    *,
    data: str,
    root: str | None,
    split: str,
    size_hw: tuple[int, int] | None,
    limit: int,
    device: str | None,
    json_path: Path | None,
    single_task: Path | None,
    console: Console | None = None,
) -> Scores:
    """Load, measure, print, write: ``mtlsi evaluate``. Pictures are shown at the model's own size by default."""
    console = console or Console()
    if json_path is not None:
        check_writable(json_path)
    if limit < 0:
        raise MistakeError(f"--limit {limit}; expected the number of pictures, or 0 for all")
    if size_hw is not None and min(size_hw) < 1:
        raise MistakeError(f"--size {size_hw[0]} {size_hw[1]}; expected a height and a width in pixels")
    network = MTLSINet.from_pretrained(model)
    place = find_device(device)
    network.to(place)
    config = DataConfig(name=data, root=root, picture_hw=size_hw or network.input_size)
    config = replace(config, size_hw=config.picture_hw)
    if data == "scenes":
        config = replace(config, label_set=label_set_of(network.classes, network.tasks))
    dataset = open_dataset(config, split)
    indices = spread(limit, len(dataset))
    scores = evaluate(network, dataset, config, indices=indices, device=place, console=console)
    console.print(score_table(scores, derived=getattr(dataset, "derived", ())))
    if "boundary" in scores:
        console.print("boundary: matched within a tolerance, not one to one; not comparable with published odsF")
    context: dict[str, Any] = {
        "model": model,
        "data": data,
        "split": split,
        "pictures": len(indices),
        "shown_at": config.picture_hw,
    }
    if single_task is not None:
        context["delta_m_percent"] = compare_single_task(scores, single_task)
        console.print(f"Delta_m against {single_task}: {context['delta_m_percent']:+.2f} %")
    if json_path is not None:
        write_scores(scores, json_path, **context)
    return scores
