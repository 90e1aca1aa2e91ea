"""What a person and the run folder are told while a network trains."""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mtlsi import run_folder
from mtlsi.config import TrainConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import Scores, headline
from mtlsi.tasks import TASKS


class Log:
    """Means of the losses since the last line, on the screen, in ``metrics.jsonl`` and with accelerate's tracker."""

    def __init__(self, accelerator: Accelerator, out: Path, options: TrainConfig, console: Console, first_step: int):
        self.accelerator, self.out, self.options, self.console = accelerator, out, options, console
        self.sums: dict[str, Tensor] = {}
        self.num_added, self.since = 0, time.perf_counter()
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
        self.bar = self.progress.add_task("", total=options.iterations, completed=first_step)

    def add(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """One micro-step's losses."""
        for name, value in {"loss": loss.detach(), **{f"loss/{task}": part for task, part in parts.items()}}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.num_added += 1

    def step(self, step: int, norm: Tensor | float | None, lr: float) -> None:
        """After an optimizer step; every ``log_every`` of them writes a line. Raises ``MistakeError`` for a NaN loss."""
        self.progress.advance(self.bar)
        if step % self.options.log_every and step != self.options.iterations:
            return
        means = {name: float(value) / self.num_added for name, value in self.sums.items()}
        if bad := [name for name, value in means.items() if not isfinite(value)]:
            raise MistakeError(f"{', '.join(bad)} is not a number at step {step}; start again with a lower --train.lr")
        seconds = time.perf_counter() - self.since
        images = self.num_added * self.options.batch_size * self.accelerator.num_processes
        line = {"step": step, **means, "lr": lr, "grad_norm": float(norm or 0), "images_per_s": images / seconds}
        self._write(line)
        losses = " ".join(f"{name[5:]} {value:.3f}" for name, value in means.items() if name[5:] in TASKS)
        text = f"loss {means['loss']:.3f} ({losses}) {line['images_per_s']:.1f} images/s"
        self.progress.update(self.bar, description=text)
        if not self.console.is_terminal and self.accelerator.is_main_process:
            left = (self.options.iterations - step) * seconds * self.accelerator.num_processes
            left = left / max(1, images) * self.options.batch_size * self.options.accumulate
            self.console.print(f"{step}/{self.options.iterations} {text} {left / 60:.0f} min left", soft_wrap=True)
        self.sums, self.num_added, self.since = {}, 0, time.perf_counter()

    def validation(self, step: int, scores: Scores, seconds: float) -> None:
        """Scores of an evaluation; its ``seconds`` do not count as training time."""
        self.since += seconds
        figures = {f"val/{task}/{name}": value for task, values in scores.items() for name, value in values.items()}
        self._write({"step": step, **figures})
        if self.accelerator.is_main_process:
            text = ", ".join(f"{task} {TASKS[task].score} {value:.4g}" for task, value in headline(scores).items())
            self.progress.console.print(f"step {step}: {text}", soft_wrap=True)

    def _write(self, line: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            run_folder.append_metrics(self.out, line)
        self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))
