"""The evaluations of a run: when one is due, what is kept of the best one, and when they end the run."""

from __future__ import annotations

import gc
import time
from contextlib import suppress

from mtlsi import processes, run_folder
from mtlsi.data.datasets import spread
from mtlsi.drawing.plots import plot_curves
from mtlsi.errors import MistakeError, Stopped, counted
from mtlsi.evaluation.evaluate import BATCH_SIZE, evaluate
from mtlsi.evaluation.report import Scores
from mtlsi.run_folder import BEST
from mtlsi.streams import write_line
from mtlsi.training.best import Best, Kept, keep, kept
from mtlsi.training.callbacks import Callbacks
from mtlsi.training.log import Log
from mtlsi.training.setup import TrainingRun
from mtlsi.training.stopping import StopRequest


class Validation:
    """Measures the averaged weights of ``run`` after its present step, and keeps the best model where the run asks for it.

    The evaluations on the way are of ``evaluate_images``, the last one is of ``final_images``. Where these are others, the
    last weights are measured on both: what is compared is measured on the same images.
    """

    def __init__(self, run: TrainingRun, log: Log, told: Callbacks, stop: StopRequest):
        options = run.config.train
        self.run, self.log, self.told, self.stop = run, log, told, stop
        self.on_the_way, self.at_the_end = (
            len(spread(count, len(run.val_set))) for count in (options.evaluate_images, options.final_images)
        )
        self.best: Best | None = None
        if options.best_by is not None:
            network = run.network
            self.best = Best(options.best_by, options.patience, network.classes, network.tasks, self.on_the_way)
            self.best.remember(run.out, run.position.step)

    @property
    def is_over(self) -> bool:
        """Whether the run has waited long enough for a better score."""
        return self.best is not None and self.best.is_over

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after the present step."""
        return self.is_over or self.run.position.step >= self.run.config.train.iterations

    def after_step(self) -> Scores:
        """Evaluate; gives the scores, those of ``final_images`` where nothing comes after."""
        scores: Scores = {}
        if self.best is not None or not self.is_last:
            scores = self._compare()
        if self.is_last and not (scores and self.on_the_way == self.at_the_end):
            scores = self._measure(self.at_the_end)
        return scores

    def make_up(self) -> None:
        """What a resumed run owes: the evaluation, and the model to keep, if it was stopped before these.

        A run that had ended and goes on has no scores any more.
        """
        step, every = self.run.position.step, self.run.config.train.evaluate_every
        ended = processes.of_first((self.run.out / run_folder.SCORES).exists())
        if ended and not self.is_last and self.run.accelerator.is_main_process:
            (self.run.out / run_folder.SCORES).unlink()
        if not step or (ended and self.is_last):
            return
        due = not ended and ((every and step % every == 0) or (self.is_last and self.best is not None))
        if due and not processes.of_first(run_folder.was_evaluated(self.run.out, step)):
            self._compare()
            return
        best = self.best.best if self.best is not None else None
        if best is None or processes.of_first(self._keeps_best()):
            return
        if best.step == step:
            self._keep(measure(self.run, self.on_the_way))
        elif self.run.accelerator.is_main_process:  # by another best_by it is the best: these weights are gone
            write_line(self.log.progress.console, self._of_best())

    def of_the_end(self) -> Scores:
        """The last scores of a run that was stopped before it had them."""
        if run_folder.was_evaluated(self.run.out, self.run.position.step, self.at_the_end):
            return measure(self.run, self.at_the_end)
        return self._measure(self.at_the_end)

    def _compare(self) -> Scores:
        scores = self._measure(self.on_the_way)
        if not scores:
            return scores
        if self.best is not None and self.best.take_in(self.run.position.step, scores):
            self._keep(scores)
        if self.run.accelerator.is_main_process and not self.is_last:  # at the end they are drawn with all the rest
            self.draw_curves()
        return scores

    def _measure(self, num_images: int) -> Scores:
        """Scores that are logged and told of; {} where a signal cut the evaluation, which then leaves no trace."""
        step, start, scores = self.run.position.step, time.perf_counter(), {}
        with suppress(Stopped), self.stop.between_images(self.run.network, self.run.accelerator):
            scores = measure(self.run, num_images)
        if not scores:
            return scores
        self.log.validation(step, scores, time.perf_counter() - start, num_images)
        self.told.on_evaluation(step, scores, self.run)
        return scores

    def draw_curves(self) -> None:
        """The curves so far, with the best step marked, into the run folder."""
        best = self.best.best if self.best is not None else None
        metrics, picture = self.run.out / run_folder.METRICS, self.run.out / "curves.png"
        plot_curves(metrics, picture, best_step=None if best is None else best.step)
        gc.collect()  # a figure's parts refer to one another: megabytes, which otherwise pile up

    def _keep(self, scores: Scores) -> None:
        run, best = self.run, self.best
        if best is None or best.best is None:
            return
        average = run.whole_average()
        if not run.accelerator.is_main_process:
            return
        context = {"data": run.config.data.name, "split": "val", "images": self.on_the_way}
        found = {"step": best.best.step, "best_by": best.score, "value": best.best.value}
        keep(run.network, average, scores, run.out, **context, **found)

    def farewell(self) -> list[str]:
        """What a person is told at the end: why it came early, and which model was the best."""
        lines = []
        if self.best is None:
            return lines
        if self.is_over and self.run.position.step < self.run.config.train.iterations:
            step, waited = self.run.position.step, self.best.waited
            lines.append(f"ended at step {step}: {counted(waited, 'evaluation')} without a better {self.best.score}")
        return [*lines, self._of_best()]

    def _keeps_best(self) -> bool:
        """Whether best/ is the model of the best evaluation, by the present score."""
        found = self._kept()
        if self.best is None or self.best.best is None or found is None:
            return False
        return (found.step, found.score) == (self.best.best.step, self.best.score)

    def _kept(self) -> Kept | None:
        try:
            return kept(self.run.out)
        except MistakeError:
            return None

    def _of_best(self) -> str:
        """Which evaluation was the best, and what best/ is: after a change of ``best_by`` another model, perhaps."""
        assert self.best is not None
        folder, found = self.run.out / BEST, self._kept()
        what = f"best {self.best.describe()}" if self.best.best is not None else f"{self.best.score} was never defined"
        if self._keeps_best():
            return f"{what}: {folder}; give that as the model: {self.run.out} has the last weights"
        if found is None:
            return f"{what}: no model is kept in {folder}"
        measured = f"{found.score} {found.value:.4g} at step {found.step} on {counted(found.num_images, 'image')}"
        return f"{what}: no model of that is kept; {folder} is the best by {measured}"


def measure(run: TrainingRun, num_images: int) -> Scores:
    """Scores of the averaged weights on ``num_images`` validation images (0: all), split over the processes."""
    accelerator = run.accelerator
    chosen = processes.share(spread(num_images, len(run.val_set)), BATCH_SIZE)
    with run.averaged():
        return evaluate(
            run.network, run.val_set, run.config.data, indices=chosen, device=accelerator.device, metrics=run.metrics
        )
