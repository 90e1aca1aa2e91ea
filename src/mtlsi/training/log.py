"""Training logger: console, metrics.jsonl, tracker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mtlsi import processes, run_folder
from mtlsi.config import TrainConfig
from mtlsi.evaluation.report import Scores, defined, headline
from mtlsi.run_folder import Position
from mtlsi.tasks import TASKS


class Step(NamedTuple):
    """What one optimizer step gave."""

    losses: list[dict[str, Tensor]]
    """Of every micro-batch: ``loss``, the total, and the losses by task; detached."""
    norm: Tensor | None
    """The gradient's norm before clipping."""
    balance: Mapping[str, Tensor] = MappingProxyType({})
    """By task, what a balance multiplied its loss or gradient by."""
    gradients: Mapping[str, float] = MappingProxyType({})
    """Figures of the tasks' gradients, where they were measured."""
    finite: Tensor = torch.tensor(True)
    """Whether the losses and the norm are, on their device."""
    batches: Sequence[Mapping[str, Tensor]] = ()
    """Every micro-batch, as the network got it."""
    skipped: bool = False
    """The step was passed over, because it is not finite: no weight has moved."""
    seed: int = 0
    """Of the network's own random draws."""

    def mean_losses(self) -> dict[str, Tensor]:
        """The losses, as means over the micro-batches."""
        return {name: torch.stack([one[name] for one in self.losses]).mean() for name in self.losses[0]}


class Log:
    """Mean losses and weights of every ``log_every`` steps, on the console, in ``metrics.jsonl`` and with a tracker.

    Keeps ``position.seconds``, which goes on where a resumed run's saved state left it.
    """

    def __init__(self, accelerator: Accelerator, out: Path, options: TrainConfig, console: Console, position: Position):
        self.accelerator, self.out, self.options, self.console = accelerator, out, options, console
        self.sums: dict[str, Tensor] = {}
        self.num_added, self.since = 0, time.perf_counter()
        self.position, self.began = position, self.since - position.seconds
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not accelerator.is_main_process,
        )
        self.bar = self.progress.add_task("", total=options.iterations, completed=position.step)

    def step(self, step: int, result: Step, lr: float) -> None:
        """Take in the optimizer step ``step``; every ``log_every`` of them writes a line, and every one passed over."""
        if result.skipped:
            self._write({"step": step, "skipped": self.position.skipped})
        if result.gradients:
            self._write({"step": step, **result.gradients})
        weights = {f"balance/{task}": weight for task, weight in result.balance.items()}
        for losses in () if result.skipped else result.losses:
            named = {name if name == "loss" else f"loss/{name}": value for name, value in losses.items()}
            for name, value in {**named, **weights}.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_added += 0 if result.skipped else len(result.losses)
        self.position.seconds = time.perf_counter() - self.began
        self.progress.advance(self.bar)
        if not self.is_due(step) or not self.num_added:
            return
        means = processes.means({name: float(value) / self.num_added for name, value in self.sums.items()})
        seconds = time.perf_counter() - self.since
        images = self.num_added * self.options.batch_size * self.accelerator.num_processes
        line = {"step": step, **means, "lr": lr, "grad_norm": float(result.norm or 0), "images_per_s": images / seconds}
        self._write({**line, "train_s": self.position.seconds})
        losses = " ".join(f"{name[5:]} {value:.3f}" for name, value in means.items() if name[5:] in TASKS)
        text = f"loss {means['loss']:.3f} ({losses}) {line['images_per_s']:.1f} images/s"
        self.progress.update(self.bar, description=text)
        if not self.console.is_terminal and self.accelerator.is_main_process:
            seconds_per_step = seconds / self.num_added * self.options.accumulate
            minutes_left = (self.options.iterations - step) * seconds_per_step / 60
            self.console.print(f"{step}/{self.options.iterations} {text} {minutes_left:.0f} min left", soft_wrap=True)
        self.sums, self.num_added, self.since = {}, 0, time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether a line is written after ``step``."""
        return step % self.options.log_every == 0 or step == self.options.iterations

    def validation(self, step: int, scores: Scores, seconds: float, num_images: int) -> None:
        """Scores of an evaluation of ``num_images``; its ``seconds`` do not count as training time."""
        self.since += seconds
        self.began += seconds
        figures = {f"val/{task}/{name}": value for task, values in scores.items() for name, value in values.items()}
        self._write({"step": step, **figures, "evaluation_images": num_images, "evaluation_s": seconds})
        if self.accelerator.is_main_process:
            text = ", ".join(f"{task} {TASKS[task].score} {value:.4g}" for task, value in headline(scores).items())
            self.progress.console.print(f"step {step}: {text}", soft_wrap=True)

    def _write(self, line: dict[str, float]) -> None:
        """A line, in which a figure that is not defined is null; a tracker does not get it."""
        if self.accelerator.is_main_process:
            run_folder.append_metrics(self.out, defined(line))
        known = {name: value for name, value in line.items() if name != "step" and isfinite(value)}
        self.accelerator.log(known, step=int(line["step"]))
