"""Train a network: one function that reads from top to bottom, and its steps below it in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import Metric

from mtlsi import processes, run_folder
from mtlsi.config import DataConfig, RunConfig
from mtlsi.data.batches import Loader, training_batches
from mtlsi.data.datasets import LabelledImages, spread
from mtlsi.data.sampling import RunSampler
from mtlsi.device import deterministic
from mtlsi.drawing.panels import compare_panel
from mtlsi.errors import MistakeError
from mtlsi.evaluation.one_image import predict_image
from mtlsi.evaluation.report import Scores, introduce, write_scores
from mtlsi.io import file_names, replace_array
from mtlsi.model.inherit import describe
from mtlsi.model.network import MTLSINet
from mtlsi.model.stored import WEIGHTS
from mtlsi.plugins import import_plugins
from mtlsi.streams import write_line
from mtlsi.training import run_state, sharding
from mtlsi.training.callbacks import Callbacks
from mtlsi.training.changes import changed
from mtlsi.training.cuda_graph import notes_on_recording, obstacle
from mtlsi.training.faults import how_to_go_on, told_plainly
from mtlsi.training.log import Log, Step
from mtlsi.training.not_finite import Watch, all_finite
from mtlsi.training.passes import forward_backward, losses_again
from mtlsi.training.setup import TrainingRun, Transform, assemble, learning_rate_factor, settle
from mtlsi.training.shared_maps import TaskGradients
from mtlsi.training.stopping import StopRequest
from mtlsi.training.validation import Validation
from mtlsi.training.whole_batch import WholeBatch
from mtlsi.weights import is_whole


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
    A resumed run needs the same four again: the run folder does not hold them. It is refused without the first three, or
    with others by name.
    Raises ``MistakeError`` for a configuration or folder that cannot be used, and for a loss that is not finite.
    """
    processes.join()
    console, told = console or Console(quiet=not processes.is_first()), Callbacks(callbacks)
    import_plugins(config.plugins)
    config.check()
    same_bits = deterministic(config.train.deterministic)
    how = how_to_go_on(out, run_state.own_parts(criterion, train_transform, metrics))
    with (
        same_bits,
        told_plainly(out, how),
        ExitStack() as claims,
        StopRequest() as stop,
        stop.telling_how_to_go_on(out, how),
    ):
        run = assemble(
            settle(config, resume=resume),
            out,
            resume=resume,
            criterion=criterion,
            train_transform=train_transform,
            metrics=metrics,
            console=console,
            claims=claims,
        )
        return train_assembled(run, told, stop, console)


def train_assembled(run: TrainingRun, told: Callbacks, stop: StopRequest, console: Console) -> Scores:
    """``train``, once all of ``run`` is there: the steps that are left, and what follows the last one."""
    out, options, position = run.out, run.config.train, run.position
    renewed = renew_model(run) if position.step else []
    if not (told.only_read or obstacle(run)):
        run.passes, reason = forward_backward, "a callback may change the run; one that does not says so by only_reads"
        run.notes = (*run.notes, *notes_on_recording(run, reason))
    if run.accelerator.is_main_process:
        introduce(run.train_set, console)
        if run.taken_over:
            text = f"taken over from {run.config.init}: {describe(run.taken_over)}"
            write_line(console, text)
        for note in [*run.notes, *renewed]:
            write_line(console, note)
    batches = iter(batches_from(position.step, run))  # begun now: torch draws a number of its own for it
    log, watch = Log(run.accelerator, out, options, console, position), Watch(run)
    scores: Scores = {}
    run.model.train()
    with closing(batches), log.progress, stop.deferred():
        validation = Validation(run, log, told, stop)
        validation.make_up()
        stop.raise_if_asked()
        while not validation.is_last:
            if not run.network.training:  # a callback predicted with it
                run.model.train()
            step = optimizer_step(run, batches)
            watch.look(step)
            if log.is_due(position.step):
                watch.settle()
            log.step(position.step, step, options.lr * learning_rate_factor(position.step, options))
            told.on_step(position.step, step.mean_losses(), run)
            stopping = stop.asked(run.accelerator)
            evaluated = is_evaluated_after(position.step, run)
            due = stopping or position.step == options.iterations or is_due(options.checkpoint_every, position.step)
            if due := due or (evaluated and options.best_by is not None):
                watch.settle()
                save(run, told)
            if evaluated and not stopping:
                scores = validation.after_step()
                if (stopping := stop.asked(run.accelerator)) and not due:
                    watch.settle()
                    save(run, told)
            if stopping:
                run.accelerator.wait_for_everyone()  # the first that ends ends the others, in their callbacks, too
                stop.raise_if_asked()
    if not scores:
        scores = measure_finished(run, validation)
    stop.raise_if_asked()
    with run.averaged():
        if run.accelerator.is_main_process:
            finish(run, scores, validation, console)
    for tracker in run.accelerator.trackers:  # end_training would also part the processes
        tracker.finish()
    return scores


def resume(
    out: Path, settings: Mapping[str, Any] = MappingProxyType({}), *, console: Console | None = None, **own: Any
) -> Scores:
    """Continue the run in ``out`` under its own ``config.yaml``, to the very weights of an unbroken run.

    It goes on from the newest checkpoint that is whole; a run that was cut before its first one begins again.
    ``settings``: by dotted name, such as ``train.iterations``, what is to be changed of it; see ``training.changes``.
    ``own``: criterion, train_transform, metrics and callbacks as ``train`` was given them.
    """
    config = changed(run_folder.load_config(out), settings)
    return train(config, out, resume=True, console=console, **own)


def batches_from(step: int, run: TrainingRun) -> Loader:
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
    statistics = buffers_of(run.network) if options.skip_not_finite else []
    run.optimizer.zero_grad(set_to_none=True)
    measured = is_due(options.gradients_every, run.position.step + 1)
    gradients = TaskGradients(accelerator, run.network.tasks) if measured else None
    read = [next(batches) for _ in range(options.accumulate)]
    seen = [{name: x.to(accelerator.device, non_blocking=True) for name, x in batch.items()} for batch in read]
    whole = WholeBatch(run, seen)
    for index, batch in enumerate(seen):
        with whole.meeting(index):
            losses.append(run.passes(run, batch, whole, gradients))
    norm, collected = None, run.balance is None or run.balance.collect(seeds[0])
    if collected:
        norm = sharding.whole(accelerator.clip_grad_norm_(run.model.parameters(), options.clip_norm))
    finite = all_finite(losses, norm) if collected else torch.tensor(False, device=accelerator.device)
    finite = processes.in_all(finite)
    # where the verdict is at hand, or is waited for because steps may be passed over
    skipped = bool((options.skip_not_finite or finite.device.type == "cpu") and not finite)
    if skipped:
        pass_over(run, statistics)
    else:
        run.optimizer.step()
        run.scheduler.step()
        run.average.update(run.network)
        if run.balance is not None:
            run.balance.after_step(lambda: losses_again(run, whole, seeds[1]))
    run.position.step += 1
    run.position.skipped += skipped
    figures = gradients.figures() if gradients and not skipped else {}
    return Step(losses, norm, {} if skipped else run.balance_weights(), figures, finite, seen, skipped, seeds[1])


def buffers_of(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The network's buffers, such as batch statistics, each with a copy of its values."""
    return [(buffer, buffer.clone()) for buffer in network.buffers()]


def pass_over(run: TrainingRun, statistics: Iterable[tuple[Tensor, Tensor]]) -> None:
    """End a step that is not finite as if its images had not been: weights, moments and ``statistics`` stay as they were."""
    run.optimizer.zero_grad(set_to_none=True)
    for buffer, before in statistics:
        buffer.copy_(before)
    if run.balance is not None:
        run.balance.forget_step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the schedule, where the first step of all is passed over
        run.scheduler.step()


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of the network's own random draws in one step, of 64 bits: a pure function of its arguments."""
    return ((seed * 1_000_003 + step) * 4_096 + process) % 2**64


def is_due(every: int, step: int) -> bool:
    """Whether something that happens ``every`` so many steps (0: never) happens after ``step``."""
    return every > 0 and step % every == 0


def is_evaluated_after(step: int, run: TrainingRun) -> bool:
    """Whether the run is evaluated after ``step``."""
    return step == run.config.train.iterations or is_due(run.config.train.evaluate_every, step)


def save(run: TrainingRun, told: Callbacks) -> None:
    """Write a checkpoint and the averaged model, and tell the callbacks."""
    run_state.save(run)
    save_average(run)
    run.accelerator.wait_for_everyone()
    told.on_save(run.position.step, run.out, run)


def save_average(run: TrainingRun) -> None:
    """Write the averaged model into the run folder; every process must ask."""
    average = run.whole_average()
    if run.accelerator.is_main_process:
        run_folder.save_model(run.network, average, run.out)


def renew_model(run: TrainingRun) -> list[str]:
    """Bring the run folder's model to the checkpoint that the run goes on from; gives a note where it was damaged."""
    path, ended = run.out / WEIGHTS, (run.out / run_folder.SCORES).exists()
    damaged = processes.of_first(path.exists() and not is_whole(path))
    # killed between checkpoint and model, it would be that of the checkpoint before
    if processes.of_first(damaged or not ended):
        save_average(run)
    return [f"{path} is damaged; it is written again from the checkpoint"] if damaged else []


def measure_finished(run: TrainingRun, validation: Validation) -> Scores:
    """Scores of a run that was stopped between its last saved state and its scores."""
    if (run.out / run_folder.SCORES).exists():
        step, advice = run.position.step, "nothing is left to do; a larger --train.iterations goes on"
        if validation.is_over:
            advice = "for want of a better train.best_by; a larger --train.patience goes on"
        raise MistakeError(f"the run in {run.out} has ended at step {step} already, {advice}")
    return validation.of_the_end()


def finish(run: TrainingRun, scores: Scores, validation: Validation, console: Console) -> None:
    """Curves, sample panels and, as the sign that the run has ended, last of all its scores, into the run folder."""
    out, data = run.out, run.config.data
    images = len(spread(run.config.train.final_images, len(run.val_set)))
    context = {"data": data.name, "split": "val", "images": images}
    validation.draw_curves()
    validation.stop.raise_if_asked()  # drawing is full of weak references, where a signal can only wait
    draw_samples(run.network, run.val_set, data, out / "samples")
    validation.stop.raise_if_asked()
    write_scores(scores, out / run_folder.SCORES, **context)
    for line in (*validation.farewell(), f"run folder: {out}"):
        write_line(console, line)


def draw_samples(
    network: MTLSINet, dataset: LabelledImages, config: DataConfig, folder: Path, num_images: int = 3
) -> None:
    """A few images of ``dataset``, each with its predictions above its labels, as PNG files in ``folder``."""
    network.eval()
    folder.mkdir(exist_ok=True)
    chosen = spread(num_images, len(dataset))
    files = file_names([dataset.name(index) for index in chosen], len(".png"))
    for index in chosen:
        shown = predict_image(network, dataset, config, index)
        sheet = compare_panel(shown.photo, shown.predicted, shown.truth, network.classes, colours=network.colours)
        replace_array(folder / f"{files[dataset.name(index)]}.png", Image.fromarray(sheet))
