"""The best evaluation of a run so far, by one score, and whether the run has waited long enough for a better one.

Everything follows from the lines of ``metrics.jsonl``, so that a resumed run knows what the unbroken one would.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mtlsi import run_folder
from mtlsi.evaluation.report import Scores, write_scores
from mtlsi.field_types import check_types
from mtlsi.metrics.directions import figure_named
from mtlsi.reading import read_json
from mtlsi.run_folder import BEST
from mtlsi.tasks import TASKS

DELTA = "delta"


class Evaluated(NamedTuple):
    """An evaluation."""

    step: int
    value: float | None
    """Of the score; None where it is not defined."""


class Best:
    """Which of the evaluations of ``tasks`` on ``num_images`` images was best by ``score``.

    ``score``: ``TASK.FIGURE``, see ``figure_named``, or delta: 100 (g - 1) in percent, with g the geometric mean over the
    tasks of their headline scores over those of the first evaluation in which all are above 0, upside down where
    lower is better. Choice: a geometric mean, because which of two evaluations is the better one then does not depend on
    the first, whose scores may be close to 0.
    Raises ``MistakeError`` for a score that there is not.
    """

    def __init__(
        self, score: str, patience: int, classes: Mapping[str, Sequence[str]], tasks: Sequence[str], num_images: int
    ):
        self.tasks, self.patience, self.num_images = tuple(tasks), patience, num_images
        self.figure = None
        if score != DELTA:
            self.figure = figure_named(score, self.tasks, classes, what="train.best_by", others=[DELTA])
        self.score = DELTA if self.figure is None else f"{self.figure.task}.{self.figure.name}"
        self.higher_is_better = self.figure is None or self.figure.higher_is_better
        self.first: dict[str, float] | None = None
        self.evaluations: list[Evaluated] = []

    def remember(self, out: Path, last_step: int) -> None:
        """Take in the evaluations up to ``last_step`` that the metrics of the run folder ``out`` tell of."""
        for line in run_folder.read_metrics(out)[0]:
            if line.get("evaluation_images") == self.num_images and line["step"] <= last_step:
                self.take_in(line["step"], scores_in(line))

    def take_in(self, step: int, scores: Scores) -> bool:
        """Add an evaluation; gives whether it is the best so far."""
        self.evaluations.append(Evaluated(step, self._value(scores)))
        return self.best is self.evaluations[-1]

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation, the first of equals; None where the score was never defined."""
        defined = [one for one in self.evaluations if one.value is not None]
        if not defined:
            return None
        sign = 1 if self.higher_is_better else -1
        return max(defined, key=lambda one: sign * (one.value or 0.0))  # the first of equals

    @property
    def waited(self) -> int:
        """How many evaluations have passed since the best one."""
        return len(self.evaluations) - (0 if self.best is None else 1 + self.evaluations.index(self.best))

    @property
    def is_over(self) -> bool:
        """Whether ``patience`` evaluations have brought nothing better."""
        return 0 < self.patience <= self.waited

    def describe(self) -> str:
        """In a few words: ``semseg.mIoU 41.23 at step 2000``."""
        best = self.best
        return f"{self.score} undefined" if best is None else f"{self.score} {best.value:.4g} at step {best.step}"

    def _value(self, scores: Scores) -> float | None:
        if self.figure is not None:
            return finite(scores.get(self.figure.task, {}).get(self.figure.name))
        headline = {task: finite(scores.get(task, {}).get(TASKS[task].score)) for task in self.tasks}
        values = {task: value for task, value in headline.items() if value is not None and value > 0}
        if len(values) < len(self.tasks):
            return None
        self.first = self.first or values
        logs = [
            math.log(value / self.first[task]) * (1 if TASKS[task].higher_is_better else -1)
            for task, value in values.items()
        ]
        return 100 * math.expm1(math.fsum(logs) / len(logs))


def finite(value: float | None) -> float | None:
    """``value``, or None where it is not defined."""
    return value if value is not None and math.isfinite(value) else None


def scores_in(line: Mapping[str, Any]) -> Scores:
    """The scores in a line of ``metrics.jsonl``; those that are not defined are left out."""
    scores: Scores = {}
    for key, value in line.items():
        start, _, rest = key.partition("/")
        task, _, figure = rest.partition("/")
        if start == "val" and value is not None:
            scores.setdefault(task, {})[figure] = value
    return scores


@dataclass(frozen=True)
class Kept:
    """The model in a run's best/."""

    step: int
    score: str
    """By which it is the best."""
    value: float
    num_images: int
    """How many it was measured on."""


def kept(out: Path) -> Kept:
    """What ``out``/best says of itself; ``MistakeError`` where it says nothing."""
    path = out / BEST / run_folder.SCORES
    found = read_json(path, "scores")
    values: dict[str, Any] = {name: found.get(key) for name, key in KEYS.items()}
    check_types(Kept, values, f"{path}: ")
    return Kept(**values)


KEYS = {"step": "step", "score": "best_by", "value": "value", "num_images": "images"}
"""Where ``scores.json`` has what ``Kept`` says."""


def keep(model: nn.Module, state: Mapping[str, Tensor], scores: Scores, out: Path, **context: Any) -> None:
    """Make ``out``/best the model folder of ``state``, with its ``scores``. Atomic: written beside, then renamed."""
    fresh, old = out / f".{BEST}.new", out / f".{BEST}.old"
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir()
    run_folder.save_model(model, dict(state), fresh)
    write_scores(scores, fresh / run_folder.SCORES, **context)
    if (out / BEST).exists():
        os.replace(out / BEST, old)
    os.replace(fresh, out / BEST)
    shutil.rmtree(old, ignore_errors=True)
