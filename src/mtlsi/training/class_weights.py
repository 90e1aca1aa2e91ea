"""What each class weighs in its task's loss: given by name, or from the shares of the training labels.

A run folder holds the weights in use in ``class_weights.json``, from which a resumed run takes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlsi import kinds
from mtlsi.config import FROM_SHARES, RunConfig
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.errors import MistakeError, message_of
from mtlsi.io import replace_text
from mtlsi.reading import read_json, shortened
from mtlsi.tasks import TASKS

FILE = "class_weights.json"
SHARES_OF_IMAGES = 300
"""Shares are counted on at most so many training images, spread evenly over the split.

Choice: enough for a class in one image of a hundred to be met, and read in seconds.
"""

ClassWeights = dict[str, tuple[float, ...]]
"""By task, a weight for each class in the order of the classes."""


def wanted_by_task(given: Mapping[str, Any] | str, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """``train.class_weights`` by task: ``from_shares``, or weights by class name.

    ``classes``: the names of the classes of each task that is trained and has them. A recipe's weights serve any of its
    tasks: those of tasks that have classes and are not trained here have no say. Raises ``MistakeError`` for a task without
    classes, an unknown one, and a class that is not among those of its task.
    """
    if isinstance(given, str):
        return dict.fromkeys(classes, given)
    for task, weights in given.items():
        if task not in TASKS or TASKS[task].kind != "classes":
            known = ", ".join(name for name, record in TASKS.items() if record.kind == "classes")
            raise MistakeError(f"train.class_weights.{task}: no such task with classes; expected some of {known}")
        for name in weights if task in classes and isinstance(weights, Mapping) else ():
            if name not in classes[task]:
                raise MistakeError(
                    f"train.class_weights.{task}.{name}: no such class; expected some of {', '.join(classes[task])}"
                )
    return {task: weights for task, weights in given.items() if task in classes}


def weights_for(config: RunConfig, dataset: LabelledImages, stored: Path | None = None) -> ClassWeights:
    """The class weights that the run ``config`` trains with on ``dataset``; {} where all classes weigh alike.

    ``stored``: the folder of a run that is resumed, whose own are taken.
    """
    classes = {task: names for task, names in dataset.classes.items() if TASKS[task].kind == "classes"}
    wanted = wanted_by_task(config.train.class_weights, classes) if config.train.class_weights else {}
    if not wanted:
        return {}
    if stored is not None:
        return load(stored / FILE, {task: classes[task] for task in wanted})
    from_shares = tuple(task for task, weights in wanted.items() if weights == FROM_SHARES)
    found = median_frequency_weights(config, from_shares) if from_shares else {}
    return {
        task: found[task] if task in found else tuple(float(weights.get(name, 1)) for name in classes[task])
        for task, weights in wanted.items()
    }


def median_frequency_weights(config: RunConfig, tasks: tuple[str, ...]) -> ClassWeights:
    """Weights of the classes of ``tasks`` from ``SHARES_OF_IMAGES`` images of the training split, read without other labels.

    Choice: median frequency balancing (Eigen and Fergus, ICCV 2015, on NYUDv2; SegNet on CamVid and SUN), w = median f / f,
    where a class's frequency f is its share of the labelled pixels of those images that show it. A class that none of the
    images shows weighs as much as the rarest that they do.
    """
    labels = open_dataset(replace(config.data, tasks=tasks), "train", config.seed)
    pixels = {task: torch.zeros(len(labels.classes[task]), dtype=torch.float64) for task in tasks}
    around = {task: torch.zeros_like(counts) for task, counts in pixels.items()}
    for index in spread(SHARES_OF_IMAGES, len(labels)):
        sample = labels[index]
        for task in (task for task in tasks if task in sample):
            counts = _count(task, sample[task], len(pixels[task]))
            pixels[task] += counts
            around[task] += torch.where(counts > 0, counts.sum(), 0)
    return {task: _balanced(task, pixels[task], around[task]) for task in tasks}


def _count(task: str, label: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(label[kinds.of(task).valid(label)].long(), minlength=num_classes).double()


def _balanced(task: str, pixels: Tensor, around: Tensor) -> tuple[float, ...]:
    """median f / f, for f = ``pixels`` / ``around`` of each class."""
    shown = pixels > 0
    if not shown.any():
        raise MistakeError(
            f"train.class_weights.{task} {FROM_SHARES}: none of the training images that were looked at has a label of it; "
            "give weights by class name"
        )
    frequency = pixels[shown] / around[shown]
    weights = torch.full_like(pixels, float(frequency.quantile(0.5) / frequency.min()))
    weights[shown] = frequency.quantile(0.5) / frequency
    return tuple(weights.tolist())


def save(weights: ClassWeights, classes: Mapping[str, Sequence[str]], out: Path) -> None:
    """``class_weights.json`` in the run folder ``out``: by task and class name."""
    named = {task: dict(zip(classes[task], numbers, strict=True)) for task, numbers in weights.items()}
    replace_text(out / FILE, json.dumps(named, indent=2) + "\n", on_disk=True)


def load(path: Path, classes: Mapping[str, Sequence[str]]) -> ClassWeights:
    """What ``save`` wrote; ``MistakeError`` where that is not there or has no number for a class of ``classes``."""
    expected = "the class weights that the run began with"
    stored = read_json(path, expected)
    try:
        return {task: tuple(_weight(stored[task][name]) for name in names) for task, names in classes.items()}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; expected {expected}") from error


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the weight {shortened(value)}, which is no number of at least 0")
    return float(value)
