"""Which way figures get better, against what the metrics compute of a good and of a bad prediction."""

from __future__ import annotations

import math

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.metrics.build import MetricSettings, build_metric
from mtlsi.metrics.directions import directions_of, figure_named
from mtlsi.tasks import TASKS, Task, register_task

CLASSES = {"semseg": ("wall", "night stand"), "parsing": ("head",)}


def figures(task, seed, noise):
    """What the metric of ``task`` says of labels predicted with so much ``noise``."""
    numbers = torch.Generator().manual_seed(seed)
    valid = torch.ones(2, 24, 32, dtype=torch.bool)
    drawn, wrong = (torch.rand(2, 24, 32, generator=numbers) for _ in range(2))
    if TASKS[task].kind == "classes":
        label = (drawn * 4).long()
        prediction = torch.where(wrong < noise, (label + 1) % 4, label)
    elif TASKS[task].kind == "strength":
        label = torch.zeros(2, 24, 32, dtype=torch.long)
        label[:, 10:13, 4:28] = 1
        prediction = (1 - noise) * label + noise * wrong * 0.9
    elif TASKS[task].kind == "direction":
        label = torch.nn.functional.normalize(torch.randn(2, 3, 24, 32, generator=numbers), dim=1)
        shift = torch.randn(2, 3, 24, 32, generator=numbers)
        prediction = torch.nn.functional.normalize(label + 0.5 * noise * shift, dim=1)
    else:
        label = 1 + drawn
        prediction = label * (1 + 0.4 * noise * wrong)
    metric = build_metric(TASKS[task], MetricSettings(num_classes=4))
    metric.update(prediction, label, valid)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("task", ["semseg", "saliency", "depth", "normals", "boundary", "heat"])
def test_every_figure_gets_better_the_way_that_is_written(task):
    register_task(Task("heat", kind="value"))
    good, bad, known = figures(task, 0, 0.05), figures(task, 0, 0.9), directions_of(task)
    assert next(iter(known)) == TASKS[task].score
    assert known[TASKS[task].score] is TASKS[task].higher_is_better
    computed = {name.rpartition("/")[2] for name in good}
    assert computed - {"threshold"} == known.keys()
    for name, higher in known.items():
        if math.isfinite(bad[name]) and bad[name] != good[name]:
            assert (good[name] > bad[name]) is higher, name


@pytest.mark.parametrize(
    ("text", "name", "higher"),
    [
        ("semseg.miou", "mIoU", True),
        ("semseg/mIoU", "mIoU", True),
        ("semseg.IoU/night stand", "IoU/night stand", True),
        ("depth.RMSE", "RMSE", False),
        ("depth.eigen/delta1", "eigen/delta1", True),
        ("normals.within_11.25", "within_11.25", True),
        ("normals/within_7.5", "within_7.5", True),
    ],
)
def test_figures_are_named_by_task_and_name(text, name, higher):
    figure = figure_named(text, ("semseg", "depth", "normals"), CLASSES, what="best_by")
    assert (figure.name, figure.higher_is_better) == (name, higher)
    assert text.startswith(figure.task)


@pytest.mark.parametrize(
    "text", ["semseg.rmse", "parsing.mIoU", "mIoU", "", "semseg", "boundary.odsF", "semseg.x/mIoU"]
)
def test_an_unknown_figure_is_told_with_the_known_ones(text):
    with pytest.raises(
        MistakeError, match=r"best_by '.*'; expected one of semseg\.mIoU, .*depth\.RMSE, .*, delta$"
    ) as caught:
        figure_named(text, ("semseg", "depth"), CLASSES, what="best_by", others=["delta"])
    assert "\n" not in str(caught.value)
    assert "threshold" not in str(caught.value)


def test_an_unknown_class_is_told_with_the_known_ones():
    with pytest.raises(MistakeError, match="no such class; expected one of wall, night stand"):
        figure_named("semseg.IoU/door", ("semseg",), CLASSES, what="best_by")


def test_a_score_of_ones_own_is_the_only_figure_known_of_its_task():
    register_task(Task("glow", kind="value", score="flicker", higher_is_better=True))
    assert directions_of("glow") == {"flicker": True}
