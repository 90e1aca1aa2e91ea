"""The best and the worst images of each task: the image, its label and the prediction, in one picture."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mtlsi.data.transforms import Sample
from mtlsi.drawing.panels import triple
from mtlsi.evaluation.report import Scores, decimals
from mtlsi.kinds.colouring import Colour
from mtlsi.tasks import TASKS


class Shown(NamedTuple):
    """One image of a sheet."""

    rank: tuple[float, int]
    """Smaller ones come first; of equal scores the earlier image."""
    name: str
    score: float
    row: np.ndarray
    """(H W 3) uint8."""


class Sheets:
    """Keeps, while images pass, the ``num_shown`` with the best and those with the worst score of each task.

    An image's score is its task's headline figure measured on that image alone: the mean IoU of the classes that it holds,
    the RMSE over its pixels, the mean angle, the F of its boundaries at its own best threshold. An image without a label
    of the task has none and is passed over. An image all of one class cannot be among the best of a task with classes:
    where many images are empty, as with human parts, a sheet of empty ones would say nothing. Rows are drawn as images
    enter, so that no map is kept.
    ``read``: gives an image with its labels, by index; called for those that enter only.
    """

    def __init__(
        self,
        num_shown: int,
        read: Callable[[int], Sample],
        name: Callable[[int], str],
        classes: Mapping[str, Sequence[str]],
        colours: Mapping[str, Sequence[Colour]],
    ) -> None:
        self.num_shown, self.read, self.name = num_shown, read, name
        self.classes, self.colours = classes, colours
        self.kept: dict[tuple[str, str], list[Shown]] = {}
        """By end, best or worst, and task."""
        self.num_scored: dict[str, int] = {}
        self.uniform: set[str] = set()
        """The tasks whose label of the present image is all of one class."""

    def look_at(self, task: str, labelled: Tensor | None) -> None:
        """The labels (n) of the image that ``add`` takes in next, of a task with classes; None: another kind's."""
        self.uniform.discard(task)
        if labelled is not None and labelled.numel() and bool((labelled == labelled[0]).all()):
            self.uniform.add(task)

    def add(self, index: int, decoded: Mapping[str, Tensor], figures: Scores) -> None:
        """Take in one image, as ``evaluate`` calls it."""
        sample = None
        for task, values in figures.items():
            score = values[TASKS[task].score]
            if isnan(score):
                continue
            self.num_scored[task] = self.num_scored.get(task, 0) + 1
            badness = -score if TASKS[task].higher_is_better else score
            ranks = {"best": (badness, index), "worst": (-badness, index)}
            if task in self.uniform:
                del ranks["best"]
            entered = {end: rank for end, rank in ranks.items() if self._enters(self._kept(end, task), rank)}
            if entered:
                sample = sample or self.read(index)
                row = self._draw(task, index, sample, decoded[task], score)
            for end, rank in entered.items():
                kept = self._kept(end, task)
                insort(kept, Shown(rank, self.name(index), score, row), key=lambda shown: shown.rank)
                del kept[self.num_shown :]

    def _kept(self, end: str, task: str) -> list[Shown]:
        return self.kept.setdefault((end, task), [])

    def _enters(self, kept: Sequence[Shown], rank: tuple[float, int]) -> bool:
        return len(kept) < self.num_shown or rank < kept[-1].rank

    def _draw(self, task: str, index: int, sample: Sample, prediction: Tensor, score: float) -> np.ndarray:
        return triple(
            sample["image"].permute(1, 2, 0).numpy(),
            task,
            sample[task].numpy(),
            prediction[0].cpu().numpy(),
            (f"{self.name(index)}", "label", f"prediction: {said(task, score)}"),
            self.classes.get(task),
            self.colours.get(task),
        )

    def of(self, task: str) -> tuple[list[Shown], list[Shown]]:
        """The best images and the worst ones, the worst last; no image is in both."""
        best, worst = self._kept("best", task), self._kept("worst", task)
        among_best = {shown.rank[1] for shown in best}
        return best, [shown for shown in reversed(worst) if shown.rank[1] not in among_best]

    def record(self, task: str) -> dict[str, Any]:
        """Names and scores of the images on a task's sheet, for a file."""
        best, worst = ([{"image": x.name, "score": x.score} for x in part] for part in self.of(task))
        return {"score": TASKS[task].score, "images": self.num_scored.get(task, 0), "best": best, "worst": worst}


def said(task: str, score: float) -> str:
    """An image's score in words."""
    record = TASKS[task]
    return f"{record.score} {score:.{min(decimals(task), 3)}f} {record.unit}".strip()
