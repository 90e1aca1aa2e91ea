"""Callbacks: a person's own code at every step, evaluation and saved state of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import Scores
from mtlsi.training.setup import TrainingRun

METHODS = ("on_step", "on_evaluation", "on_save")


class Callbacks:
    """Calls every callback in turn. A callback is an object with any of three methods:

    - ``on_step(step, losses, run)``: after each optimizer step. ``losses``: detached scalars, means over the step's
      micro-batches of this process: ``loss`` (the total), and each ``task`` and ``coarse/task``, unweighted.
    - ``on_evaluation(step, scores, run)``: after each evaluation. ``scores``: ``{task: {figure: value}}``.
    - ``on_save(step, folder, run)``: when the state and the model are whole in the run folder ``folder``.

    With an attribute ``only_reads`` that is true a callback says that it changes nothing of the run. Where all do, a GPU
    replays a recording of the step (``train.cuda_graph``), which would not follow such a change. A recorded step writes its
    gradients where the one before had them: clone one that you keep.

    ``step`` counts finished optimizer steps. ``run`` is the ``TrainingRun``: network, optimizer, data, configuration.
    All processes of a distributed run call them; ``run.accelerator.is_main_process`` is true in one of them.
    Raises ``MistakeError`` for an object that has none of the methods.
    """

    def __init__(self, callbacks: Iterable[Any]):
        self.callbacks = tuple(callbacks)
        for callback in self.callbacks:
            if not any(hasattr(callback, name) for name in METHODS):
                raise MistakeError(f"callback {callback!r} has no method that is called; expected {', '.join(METHODS)}")
        self.only_read = all(getattr(callback, "only_reads", False) for callback in self.callbacks)

    def on_step(self, step: int, losses: dict[str, Tensor], run: TrainingRun) -> None:
        """After an optimizer step."""
        self._call("on_step", step, losses, run)

    def on_evaluation(self, step: int, scores: Scores, run: TrainingRun) -> None:
        """After an evaluation."""
        self._call("on_evaluation", step, scores, run)

    def on_save(self, step: int, folder: Path, run: TrainingRun) -> None:
        """After the state and the model were saved."""
        self._call("on_save", step, folder, run)

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            if hasattr(callback, method):
                getattr(callback, method)(*arguments)
