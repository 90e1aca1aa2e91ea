"""A network that begins with another one's weights, as far as tasks and classes of both have the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from mtlsi.errors import MistakeError
from mtlsi.model.decoder import rescale_predictions
from mtlsi.model.forms import spelt_out
from mtlsi.model.network import MTLSINet
from mtlsi.sizes import ModelConfig
from mtlsi.tasks import TASKS

ClassNames = Mapping[str, Sequence[str]]
ALL, NEW = "all", "new"
NAMED = 8
"""Classes that are new are named up to so many."""


def inherit(network: MTLSINet, other: MTLSINet, name: str = "the model") -> dict[str, str]:
    """Copy into ``network`` every weight of ``other`` (called ``name``) that means the same there.

    What serves all tasks is taken as it is; what has a task axis, or lays the tasks side by side, is taken task by task;
    what has an axis of classes class by class. The rest stays as it was. Distances are rescaled by ``distance_factor``.
    Gives by task of ``network`` what of it was taken over: "all", "new", or "3 of 4 classes (new: door)". Raises
    ``MistakeError`` where the two have other sizes or no task in common.
    """
    check_sizes_agree(network.sizes, other.sizes, name)
    shared = [task for task in network.tasks if task in other.tasks]
    if not shared:
        raise MistakeError(
            f"{name} predicts {', '.join(other.tasks)}; expected one of the run's tasks among them, "
            f"{', '.join(network.tasks)}: take its backbone alone, with backbone_weights"
        )
    ours, theirs = tensors_of(network), tensors_of(other)
    with torch.device("meta"):
        twin = tensors_of(with_another_number_of_tasks(network))
        renamed = [task for task in shared if network.classes.get(task) != other.classes.get(task)]
        twins = {task: tensors_of(with_another_number_of_classes(network, task)) for task in renamed}
    pairs = [(network.tasks.index(task), other.tasks.index(task)) for task in shared]
    counts = (len(network.tasks), len(other.tasks))
    with torch.no_grad():
        for key, target in ours.items():
            source = theirs.get(key)
            task = next((part for part in key.split(".") if part in network.tasks), None)
            if source is None or source.dim() != target.dim():
                continue
            of_classes = {t: axes for t, tensors in twins.items() if (axes := differing(target, tensors[key]))}
            if task is not None:
                copy_classes(target, source, of_classes, network.classes, other.classes)
            elif key in twin and not of_classes:
                copy_tasks(target, source, beside(target, twin[key], counts[0]), pairs, counts)
    for task in shared:
        if TASKS[task].kind == "distance":
            rescale_predictions(network.decoder, task, distance_factor(network, other))
    return {task: taken_over(task, network, other) for task in network.tasks}


def check_sizes_agree(ours: ModelConfig, theirs: ModelConfig, name: str) -> None:
    """Raises ``MistakeError`` for the first size in which two networks differ; stochastic depth is no size.

    What a model leaves to its form counts as if it was written out.
    """
    mine, other = (asdict(spelt_out(replace(sizes, drop_path=0.0))) for sizes in (ours, theirs))
    for size, value in other.items():
        if mine[size] != value:
            raise MistakeError(
                f"{name} has {size} {value}, the run {mine[size]}; leave the run's preset and model sizes out, "
                "or take the backbone alone, with backbone_weights"
            )


def with_another_number_of_tasks(network: MTLSINet) -> MTLSINet:
    """A network of the same sizes with a task less, or more where there is one: its shapes say what has a task axis."""
    tasks = list(network.tasks[:-1]) or [network.tasks[0], "normals" if network.tasks[0] != "normals" else "depth"]
    return MTLSINet(tasks, network.classes, network.input_size, **asdict(network.sizes))


def with_another_number_of_classes(network: MTLSINet, task: str) -> MTLSINet:
    """The same with a class of ``task`` less, or more where there is one: its shapes say what has an axis of classes."""
    names = network.classes[task]
    others = list(names[:-1]) or [*names, "a" if names[0] != "a" else "b"]
    return MTLSINet(network.tasks, {**network.classes, task: others}, network.input_size, **asdict(network.sizes))


def tensors_of(network: MTLSINet) -> dict[str, Tensor]:
    """Weights and statistics by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def beside(target: Tensor, twin: Tensor, num_tasks: int) -> list[int]:
    """The axes of ``target`` along which its tasks lie, each with as many rows: those on which ``twin`` differs."""
    return [axis for axis in differing(target, twin) if target.shape[axis] % num_tasks == 0]


def differing(target: Tensor, twin: Tensor) -> list[int]:
    """The axes on which two tensors have different numbers of rows."""
    return [axis for axis, (rows, others) in enumerate(zip(target.shape, twin.shape, strict=True)) if rows != others]


def copy_tasks(
    target: Tensor, source: Tensor, axes: Sequence[int], pairs: Sequence[tuple[int, int]], counts: tuple[int, int]
) -> None:
    """Copy the rows of the tasks ``pairs`` (ours, theirs) on ``axes``; nothing where a shape differs otherwise."""
    to, of = [list(range(n)) for n in target.shape], [list(range(n)) for n in source.shape]
    for axis in axes:
        rows = target.shape[axis] // counts[0]
        if source.shape[axis] != rows * counts[1]:
            return
        to[axis] = [task * rows + row for task, _ in pairs for row in range(rows)]
        of[axis] = [task * rows + row for _, task in pairs for row in range(rows)]
    copy_block(target, source, to, of)


def copy_classes(
    target: Tensor, source: Tensor, axes: Mapping[str, Sequence[int]], ours: ClassNames, theirs: ClassNames
) -> None:
    """Copy a task's own layer; on ``axes``, which are of classes of some tasks, the rows of those that both name."""
    to, of = [list(range(n)) for n in target.shape], [list(range(n)) for n in source.shape]
    for task, found in axes.items():
        both = [name for name in ours[task] if name in theirs[task]]
        for axis in found:
            if (target.shape[axis], source.shape[axis]) != (len(ours[task]), len(theirs[task])):
                return
            to[axis], of[axis] = [ours[task].index(n) for n in both], [theirs[task].index(n) for n in both]
    copy_block(target, source, to, of)


def copy_block(target: Tensor, source: Tensor, to: Sequence[Sequence[int]], of: Sequence[Sequence[int]]) -> None:
    """Copy the rows ``of`` each axis of ``source`` to the rows ``to`` of ``target``; nothing where their numbers differ."""
    if not to:  # a count of batches
        target.copy_(source)
    elif all(len(a) == len(b) for a, b in zip(to, of, strict=True)):
        ours, theirs = (torch.meshgrid([torch.tensor(list(x)) for x in rows], indexing="ij") for rows in (to, of))
        target[ours] = source[theirs]


def taken_over(task: str, network: MTLSINet, other: MTLSINet) -> str:
    """What of ``task`` ``other`` brings."""
    if task not in other.tasks:
        return NEW
    ours, theirs = network.classes.get(task, ()), other.classes.get(task, ())
    if TASKS[task].kind == "distance" and abs((factor := distance_factor(network, other)) - 1) >= 0.005:
        return f"{ALL}, its distances times {factor:.2f}"
    if ours == theirs:
        return ALL
    new = [name for name in ours if name not in theirs]
    more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
    named = f" (new: {', '.join(new[:NAMED])}{more})" if new else ""
    return f"{len(ours) - len(new)} of {len(ours)} classes{named}"


def distance_factor(network: MTLSINet, other: MTLSINet) -> float:
    """How much farther away a thing is that ``network`` is shown as large as ``other`` was in its training.

    The ratio of their focal lengths in pixels of the images that they are shown, Z / Z' = f / f': a network of images half
    as wide is shown everything half as large, though it is as far away. Where one of the cameras is not known, both count
    as having one field of view.
    """
    ours, theirs = (focal_px_shown(one) for one in (network, other))
    if ours is None or theirs is None:
        ours, theirs = (math.sqrt(math.prod(one.input_size)) for one in (network, other))
    return ours / theirs


def focal_px_shown(network: MTLSINet) -> float | None:
    """The focal length of the training images as the network was shown them, in pixels; None where it is not known."""
    if not network.camera:
        return None
    sides = [shown / stored for shown, stored in zip(network.input_size, network.camera["size_hw"], strict=True)]
    return network.camera["focal_px"] * (min(sides) if network.resize == "keep_ratio" else math.sqrt(math.prod(sides)))


def describe(found: Mapping[str, str]) -> str:
    """In a few words: ``depth, normals: all; semseg: 3 of 13 classes``."""
    by_extent: dict[str, list[str]] = {}
    for task, extent in found.items():
        by_extent.setdefault(extent, []).append(task)
    return "; ".join(f"{', '.join(tasks)}: {extent}" for extent, tasks in by_extent.items())
