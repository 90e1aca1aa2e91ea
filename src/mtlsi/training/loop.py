"""Train a network: one function that reads from top to bottom, and its steps below it in order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import Metric

from mtlsi import processes, run_folder
from mtlsi.config import DataConfig, RunConfig
from mtlsi.data.batches import training_batches
from mtlsi.data.datasets import LabelledImages, spread
from mtlsi.data.sampling import RunSampler
from mtlsi.drawing.panels import compare_panel
from mtlsi.drawing.plots import plot_curves
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import BATCH_SIZE, evaluate
from mtlsi.evaluation.one_image import predict_image
from mtlsi.evaluation.report import Scores, introduce, write_scores
from mtlsi.model.inherit import describe
from mtlsi.model.network import MTLSINet
from mtlsi.plugins import import_plugins
from mtlsi.training.callbacks import Callbacks
from mtlsi.training.log import Log, Step
from mtlsi.training.passes import forward_backward, losses_again
from mtlsi.training.setup import TrainingRun, Transform, assemble, learning_rate_factor, settle
from mtlsi.training.shared_maps import TaskGradients
from mtlsi.training.whole_batch import WholeBatch


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    criterion: nn.Module | None = None,
    train_transform: Transform | None = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Iterable[Any] = (),
) -> Scores:
    """Run ``config`` in the folder ``out`` and give the scores of the last weights on the validation split.

    ``resume``: continue from the last saved state, to the very weights of an unbroken run.
    ``criterion``: instead of ``MultiTaskLoss``, a module called as it is, with ``(final, coarse, labels)``; gives the total
    to minimise and a dict of detached losses to log. Parameters of its own are trained.
    ``train_transform``: instead of ``TrainTransform``, called with ``(sample, generator)``; gives the normalised image
    (3 H W) and the labels, all samples at one size.
    ``metrics``: by task, instead of the built-in metric; updated with ``(decoded, label, valid)``, computes a dict of
    scalars with the task's score in it.
    ``callbacks``: objects with any of ``on_step``, ``on_evaluation``, ``on_save``; see ``Callbacks``.
    A resumed run needs the same four again: the run folder does not hold them.
    Raises ``MistakeError`` for a configuration or folder that cannot be used, and for a loss that is not finite.
    """
    processes.join()
    console, told = console or Console(quiet=not processes.is_first()), Callbacks(callbacks)
    import_plugins(config.plugins)
    config.check()
    run = assemble(
        settle(config, resume=resume),
        out,
        resume=resume,
        criterion=criterion,
        train_transform=train_transform,
        metrics=metrics,
    )
    options, position = run.config.train, run.position
    if run.accelerator.is_main_process:
        introduce(run.train_set, console)
        if run.taken_over:
            text = f"taken over from {run.config.init}: {describe(run.taken_over)}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    batches = iter(batches_from(position.step, run))
    log = Log(run.accelerator, out, options, console, position)
    scores: Scores = {}
    run.model.train()
    with log.progress:
        while position.step < options.iterations:
            step = optimizer_step(run, batches)
            log.step(position.step, step, options.lr * learning_rate_factor(position.step, options))
            told.on_step(position.step, step.mean_losses(), run)
            last = position.step == options.iterations
            if last or is_due(options.checkpoint_every, position.step):
                save(run, step.norm)
                told.on_save(position.step, out, run)
            if last or is_due(options.evaluate_every, position.step):
                start = time.perf_counter()
                scores = measure(run, options.final_images if last else options.evaluate_images)
                log.validation(position.step, scores, time.perf_counter() - start)
                told.on_evaluation(position.step, scores, run)
    next(batches, None)  # exhausted: ends the loader processes now, not whenever the iterator is collected
    if not scores:
        scores = measure_finished(run)
    if run.accelerator.is_main_process:
        with run.average.lent_to(run.network):
            finish(run, scores, console)
    for tracker in run.accelerator.trackers:  # end_training would also part the processes
        tracker.finish()
    return scores


def resume(out: Path, *, console: Console | None = None, **own: Any) -> Scores:
    """Continue the run in ``out`` under its own ``config.yaml``, to the very weights of an unbroken run.

    ``own``: criterion, train_transform, metrics and callbacks as ``train`` was given them.
    """
    run_folder.recover_state(out)
    return train(run_folder.load_config(out), out, resume=True, console=console, **own)


def batches_from(step: int, run: TrainingRun) -> Iterable[dict[str, Tensor]]:
    """This process's batches of the steps after ``step``."""
    config, options, accelerator = run.config, run.config.train, run.accelerator
    sampler = RunSampler(
        len(run.train_set),
        options.batch_size,
        seed=config.seed,
        start=step * options.accumulate,
        stop=options.iterations * options.accumulate,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    on_gpu = accelerator.device.type == "cuda"
    return training_batches(
        run.train_set, config.data, sampler, seed=config.seed, pin_memory=on_gpu, transform=run.train_transform
    )


def optimizer_step(run: TrainingRun, batches: Iterator[dict[str, Tensor]]) -> Step:
    """One step of the weights, on the gradient of the mean loss of all processes' ``accumulate`` micro-batches."""
    options, accelerator = run.config.train, run.accelerator
    losses = []
    seeds = [step_seed(run.config.seed, run.position.step, process) for process in (0, accelerator.process_index)]
    torch.manual_seed(seeds[1])  # drop path's draws
    run.optimizer.zero_grad(set_to_none=True)
    measured = is_due(options.gradients_every, run.position.step + 1)
    gradients = TaskGradients(accelerator, run.network.tasks) if measured else None
    read = [next(batches) for _ in range(options.accumulate)]
    parts = [{name: x.to(accelerator.device, non_blocking=True) for name, x in batch.items()} for batch in read]
    whole = WholeBatch(run, parts)
    for index, batch in enumerate(parts):
        with whole.meeting(index):
            losses.append(forward_backward(run, batch, whole, gradients))
    if run.balance is not None:
        run.balance.collect(seeds[0])
    norm = accelerator.clip_grad_norm_(run.model.parameters(), options.clip_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.average.update(run.network)
    if run.balance is not None:
        run.balance.after_step(lambda: losses_again(run, whole, seeds[1]))
    run.position.step += 1
    return Step(losses, norm, run.balance_weights(), gradients.figures() if gradients else {})


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of the network's own random draws in one step: a pure function of its arguments."""
    return (seed * 1_000_003 + step) * 4_096 + process


def is_due(every: int, step: int) -> bool:
    """Whether something that happens ``every`` so many steps (0: never) happens after ``step``."""
    return every > 0 and step % every == 0


def save(run: TrainingRun, norm: Tensor | None) -> None:
    """Save the state and the averaged model, unless ``norm`` says that the weights are broken."""
    if norm is not None and not torch.isfinite(norm):  # must not replace a good state
        raise MistakeError(
            f"the gradient at step {run.position.step} is not finite; start again with a lower --train.lr"
        )
    run_folder.save_state(run.accelerator, run.out)
    if run.accelerator.is_main_process:
        run_folder.save_model(run.network, run.average.state, run.out)


def measure(run: TrainingRun, num_images: int) -> Scores:
    """Scores of the averaged weights on ``num_images`` validation images (0: all), split over the processes."""
    accelerator = run.accelerator
    chosen = processes.share(spread(num_images, len(run.val_set)), BATCH_SIZE)
    with run.average.lent_to(run.network):
        return evaluate(
            run.network, run.val_set, run.config.data, indices=chosen, device=accelerator.device, metrics=run.metrics
        )


def measure_finished(run: TrainingRun) -> Scores:
    """Scores of a run that was stopped between its last saved state and its scores."""
    if (run.out / "scores.json").exists():
        raise MistakeError(f"the run in {run.out} has ended at step {run.position.step} already; nothing is left to do")
    if run.accelerator.is_main_process:
        run_folder.save_model(run.network, run.average.state, run.out)
    return measure(run, run.config.train.final_images)


def finish(run: TrainingRun, scores: Scores, console: Console) -> None:
    """Scores, curves and sample panels, into the run folder."""
    out, data = run.out, run.config.data
    images = len(spread(run.config.train.final_images, len(run.val_set)))
    context = {"data": data.name, "split": "val", "images": images}
    write_scores(scores, out / "scores.json", **context)
    plot_curves(out / run_folder.METRICS, out / "curves.png")
    draw_samples(run.network, run.val_set, data, out / "samples")
    console.print(f"run folder: {out}")


def draw_samples(
    network: MTLSINet, dataset: LabelledImages, config: DataConfig, folder: Path, num_images: int = 3
) -> None:
    """A few images of ``dataset``, each with its predictions above its labels, as PNG files in ``folder``."""
    network.eval()
    folder.mkdir(exist_ok=True)
    for index in spread(num_images, len(dataset)):
        shown = predict_image(network, dataset, config, index)
        sheet = compare_panel(shown.photo, shown.predicted, shown.truth, network.classes, colours=network.colours)
        Image.fromarray(sheet).save(folder / f"{dataset.name(index).replace('/', '_')}.png")
