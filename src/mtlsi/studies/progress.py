"""How far a study is, and how long it will take: measured from the runs that have finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor

from mtlsi.run_folder import load_config
from mtlsi.streams import write_line
from mtlsi.studies.plan import StudyRun
from mtlsi.studies.times import times_of

LINE_EVERY_S = 60.0


class StudyProgress:
    """One bar for the study and one for the run that trains; where there is no terminal, a line per run and minute.

    It is a callback of ``train``, too. The time left counts, for each run that waits, the mean time of a step of the
    finished runs of its variant, or of all finished runs where its variant has none; evaluations included.
    """

    only_reads = True

    def __init__(self, runs: Sequence[StudyRun], finished: Sequence[StudyRun], console: Console):
        self.console, self.waiting = console, [run for run in runs if run not in finished]
        self.num_runs, self.num_ended = len(runs), len(finished)
        self.per_step_s: dict[str, list[float]] = {}
        self.current: StudyRun | None = None
        self.began = self.last = 0.0
        self.said = time.perf_counter()
        self.first_step: int | None = None
        for run in finished:
            self._learn(run)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.whole = self.progress.add_task("study", total=self.num_runs, completed=self.num_ended, told="")
        self.bar = self.progress.add_task("", total=1, told="", visible=False)

    def __enter__(self) -> StudyProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def start(self, run: StudyRun) -> None:
        """``run`` begins, or goes on."""
        self.current, self.began, self.first_step = run, time.perf_counter(), None
        self.progress.reset(self.bar, total=run.config.train.iterations, description=run.name, visible=True)
        self.say(f"{run.name}: training ({self.num_ended + 1} of {self.num_runs}{self._left_in_words()})")

    def on_step(self, step: int, losses: dict[str, Tensor], run: Any) -> None:
        """After each optimizer step of the run that trains."""
        now = time.perf_counter()
        if self.first_step is None:
            self.first_step, self.began = step, now
        if now - self.last < 1 and step < run.config.train.iterations:
            return
        self.last = now
        rate = (step - self.first_step) / (now - self.began) if step > self.first_step else 0.0
        told = f"loss {float(losses['loss']):.3f}" + (f", {rate:.2f} steps/s" if rate else "")
        self.progress.update(self.bar, completed=step, total=run.config.train.iterations, told=told)
        own = (run.config.train.iterations - step) / rate if rate else None
        left = self._left_in_words(own, 1 / rate if rate else None)
        self.progress.update(self.whole, told=left.lstrip(", "))
        if not self.console.is_terminal and now - self.said > LINE_EVERY_S:
            self.said = now
            self.say(f"{self.progress.tasks[self.bar].description}: step {step}, {told}{left}")

    def end(self, run: StudyRun, told: str) -> None:
        """``run`` has finished, failed or been left to another process: ``told`` says which."""
        self.num_ended += 1
        self.waiting.remove(run)
        self._learn(run)
        self.current = None
        self.progress.update(self.whole, completed=self.num_ended, told=self._left_in_words().lstrip(", "))
        self.say(f"{run.name}: {told} ({self.num_ended} of {self.num_runs}{self._left_in_words()})")

    def say(self, text: str) -> None:
        """One line above the bars."""
        write_line(self.progress.console, text)

    def seconds_left(self, current_s: float | None = None, step_s: float | None = None) -> float | None:
        """Of all runs that wait, with ``current_s`` for the one that trains, whose steps take ``step_s``.

        None while nothing is known.
        """
        total = current_s or 0.0
        means = {name: sum(values) / len(values) for name, values in self.per_step_s.items()}
        if step_s is not None and self.current is not None:
            means.setdefault(self.current.variant.name, step_s)
        if not means:
            return None
        overall = sum(means.values()) / len(means)
        for run in self.waiting:
            if current_s is None or run is not self.current:
                total += means.get(run.variant.name, overall) * run.config.train.iterations
        return total

    def _learn(self, run: StudyRun) -> None:
        times = times_of(run.out) if (run.out / "scores.json").exists() else None
        steps = load_config(run.out).train.iterations if times is not None else 0
        if times is not None and steps > 0:  # the file may say anything
            seconds = times.training_s + times.evaluation_s
            self.per_step_s.setdefault(run.variant.name, []).append(seconds / steps)

    def _left_in_words(self, current_s: float | None = None, step_s: float | None = None) -> str:
        left = self.seconds_left(current_s, step_s)
        if left is None or not self.waiting:
            return ""
        minutes = round(left / 60)
        return f", about {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f", about {minutes} min left"
