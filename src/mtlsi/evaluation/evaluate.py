"""Measure a network on labelled images, every task with its metric, at the labels' own size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torchmetrics import Metric

from mtlsi import kinds, processes
from mtlsi.config import DataConfig
from mtlsi.data.batches import evaluation_batches
from mtlsi.data.datasets import LabelledImages
from mtlsi.data.transforms import Box
from mtlsi.drawing.confusion import plot_confusion
from mtlsi.drawing.plots import plot_precision_recall
from mtlsi.errors import MistakeError
from mtlsi.evaluation.field_files import save_for_field
from mtlsi.evaluation.protocols import Showing, cut_back, cut_out, padded, showing_by
from mtlsi.evaluation.report import (
    OF_CLASS,
    Evaluation,
    Scores,
    has_boundaries,
    headline,
    read_single_task,
    tables,
    unlike_boundaries,
    write_confusion,
    write_images,
    write_scores,
)
from mtlsi.evaluation.subject import Subject, check_options, context_of, open_subject, protocol_of, tasks_of
from mtlsi.io import check_folder, check_picture, check_writable
from mtlsi.kinds import decode
from mtlsi.metrics import BoundaryF, MeanIoU, MetricSettings, build_metric
from mtlsi.metrics.boundary.protocols import Protocol
from mtlsi.metrics.delta import delta_m
from mtlsi.nn.layout import resize_maps
from mtlsi.options.measuring import EvaluateOptions
from mtlsi.streams import write_line
from mtlsi.tasks import BOUNDARY_PROTOCOL, TASKS, check_tasks, num_channels

BATCH_SIZE = 4
"""Images that are predicted at once. Processes share out whole batches, so that each image has the neighbours that it has
in one process: a prediction's last digits depend on them."""

OnImage = Callable[[int, dict[str, Tensor], Scores], None]
"""Called with an image's index, its decoded predictions by task at the labels' size, and the image's own figures."""
OnPair = Callable[[str, Tensor, Tensor, Tensor], None]
"""Called with a task, a decoded prediction, its label and where that is valid, as metrics are: a batch of one image."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: LabelledImages,
    config: DataConfig,
    *,
    tasks: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    boundary_protocol: str | Protocol = BOUNDARY_PROTOCOL,
    num_thresholds: int | None = None,
    legacy_saliency: bool = False,
    depth_range_m: tuple[float, float] | None = None,
    showing: Showing | None = None,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    metrics: Mapping[str, Metric] | None = None,
    on_image: OnImage | None = None,
    on_pair: OnPair | None = None,
) -> Evaluation:
    """Scores of ``model`` on the images ``indices`` (None: all) of ``dataset``, with the curves of its boundaries.

    Images are shown as ``showing`` says (None: as ``showing_by`` has it of ``config``) and batched where they have one size;
    predictions are cut back to the image and upsampled bilinearly to the labels' size before they are decoded and compared.
    ``tasks``: those to measure; None: all that the model and the data set share. ``boundary_protocol``: a record, or its
    name in ``mtlsi.metrics.boundary.protocols``; ``num_thresholds``: of the boundary curve, instead of the protocol's.
    ``legacy_saliency``: see ``MaxF``. ``depth_range_m``: caps of the depth readings beside the raw one, in metres; see
    ``mtlsi.metrics.dense.depth``. ``metrics``: by task, instead of the built-in ones. ``on_image``: called with every
    image's results; ``on_pair`` before it, with each task's prediction and label.
    Raises ``MistakeError`` if there are no such tasks, if their classes differ, if an image is larger than ``showing`` pads
    to, if a prediction is not finite, or if a metric of ``metrics`` lacks its task's score.
    """
    tasks = shared_tasks(model, dataset, tasks)
    own = check_metrics(metrics or {}, tasks)
    settings = {
        task: MetricSettings(
            num_classes=num_channels(task, dataset.classes) if TASKS[task].kind == "classes" else None,
            boundary_tolerance=dataset.boundary_tolerance,
            boundary_protocol=boundary_protocol,
            num_thresholds=num_thresholds,
            legacy_saliency=legacy_saliency,
            depth_range_m=depth_range_m,
        )
        for task in tasks
    }
    meters = {
        task: (own[task] if task in own else build_metric(TASKS[task], settings[task])).to(device) for task in tasks
    }
    was_training = model.training
    model.eval()
    showing = showing or showing_by(config)
    config = replace(config, image_hw=showing.resize_hw, resize=showing.resize)
    indices = range(len(dataset)) if indices is None else indices
    waiting = iter(indices)
    with Progress(console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(indices))
        for samples in evaluation_batches(dataset, config, indices, batch_size=batch_size):
            chunk = [next(waiting) for _ in samples]
            names = [_name(dataset, index) for index in chunk]
            samples = [cut_out(sample, showing, name) for sample, name in zip(samples, names, strict=True)]
            shown = [padded(x["image"], showing.pad_hw, name) for x, name in zip(samples, names, strict=True)]
            predictions = _predict(model, shown, tasks, device)
            for index, name, sample, raw in zip(chunk, names, samples, predictions, strict=True):
                decoded, figures = {}, {}
                for task, metric in meters.items():
                    _check_finite(task, raw[task], name)
                    label = sample[task].to(device)[None]
                    decoded[task] = decode(task, resize_maps(raw[task].float(), label.shape[-2:]))
                    valid = kinds.of(task).valid(label)
                    if on_pair is not None:
                        on_pair(task, decoded[task], label, valid)
                    if on_image is None:
                        metric.update(decoded[task], label, valid)
                    else:
                        image_figures = metric(decoded[task], label, valid)
                        figures[task] = {figure: float(value) for figure, value in image_figures.items()}
                if on_image is not None:
                    on_image(index, decoded, figures)
                progress.advance(bar)
    model.train(was_training)
    scores = {task: _scores_of(task, metric, dataset.classes) for task, metric in meters.items()}
    curved = {task: metric for task, metric in meters.items() if isinstance(metric, BoundaryF)}
    return Evaluation(
        scores,
        boundaries=next((metric.protocol for metric in curved.values()), None),
        curves={task: metric.precision_recall() for task, metric in curved.items()},
    )


def check_metrics(metrics: Mapping[str, Metric], tasks: Sequence[str]) -> dict[str, Metric]:
    """Somebody's own metrics, reset, for those of ``tasks`` that have one; ``MistakeError`` for an unknown task."""
    if metrics:
        check_tasks(metrics)
    for metric in metrics.values():
        metric.reset()
    return {task: metric for task, metric in metrics.items() if task in tasks}


def _scores_of(task: str, metric: Metric, classes: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """All figures of one task, those of single classes included."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was called before the ``update``")  # a process that has no image
        scores = {name: float(value) for name, value in metric.compute().items()}
    if TASKS[task].score not in scores:
        raise MistakeError(
            f"the metric of {task} gives {', '.join(scores) or 'nothing'}; expected its score {TASKS[task].score} among them"
        )
    if isinstance(metric, MeanIoU):
        ious = zip(classes[task], metric.per_class().tolist(), strict=True)
        scores |= {f"{OF_CLASS}{name}": value for name, value in ious}
    return scores


def _predict(
    model: nn.Module, shown: Sequence[tuple[Tensor, Box]], tasks: Sequence[str], device: torch.device | str
) -> Iterator[dict[str, Tensor]]:
    """The raw predictions (1 c h w) of each image, for the part of it in its box; images of one size are batched."""
    one_size = len({image.shape for image, _ in shown}) == 1
    for group in [shown] if one_size else [[one] for one in shown]:
        images = torch.stack([image for image, _ in group]).to(device)
        size_hw = images.shape[-2:]
        # the stride's grid fits an image of whole cells that fills the input
        full_size = any(side % 4 for side in size_hw) or any(box[2:] != size_hw for _, box in group)
        raw = model(images, tasks, full_size=full_size).final
        for i, (_, box) in enumerate(group):
            yield {task: cut_back(x[i : i + 1], box) if full_size else x[i : i + 1] for task, x in raw.items()}


def _check_finite(task: str, raw: Tensor, name: str) -> None:
    if not torch.isfinite(raw).all():
        raise MistakeError(
            f"{task}: the prediction for image {name} holds NaN or infinite values; expected numbers: the "
            "weights are damaged or their training diverged, give another model"
        )


def _name(dataset: LabelledImages, index: int) -> str:
    """What the image is called; its number where a data set of one's own has no names."""
    return dataset.name(index) if hasattr(dataset, "name") else str(index)


def shared_tasks(model: Any, dataset: LabelledImages, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The tasks that both know, or those of them that are ``wanted``, in the model's order.

    Raises ``MistakeError`` if there are none, if one that is wanted is not among them, or if their classes differ.
    """
    tasks = tuple(task for task in model.tasks if task in dataset.tasks)
    if not tasks:
        raise MistakeError(
            f"the model predicts {', '.join(model.tasks)}, the data has labels for {', '.join(dataset.tasks)}; "
            "expected at least one task in common"
        )
    if wanted is not None:
        wanted = check_tasks(wanted, among=tasks)
        tasks = tuple(task for task in tasks if task in wanted)
    for task in tasks:
        ours, theirs = model.classes.get(task), dataset.classes.get(task)
        if ours != theirs:
            raise MistakeError(
                f"{task}: the model has {len(ours or ())} classes, the data {len(theirs or ())} or other names; "
                "expected the classes the model was trained on, or other tasks alone (--tasks)"
            )
    return tasks


def measurable_tasks(model: Any, dataset: LabelledImages, console: Console) -> tuple[str, ...]:
    """The tasks that both know by the same classes; says which ones are left out because theirs differ.

    Raises ``MistakeError`` as ``shared_tasks`` does where none is left.
    """
    shared = [task for task in model.tasks if task in dataset.tasks]
    same = [task for task in shared if model.classes.get(task) == dataset.classes.get(task)]
    for task in shared if same else ():
        if task not in same:
            ours, theirs = len(model.classes.get(task, ())), len(dataset.classes.get(task, ()))
            text = f"left out: {task} (the model has {ours} classes, the data {theirs} or other names)"
            write_line(console, text)
    return shared_tasks(model, dataset, same or None)


def evaluate_from_command(options: EvaluateOptions, *, console: Console | None = None) -> Evaluation:
    """Load, measure, print, write: ``mtlsi evaluate``. Several processes share the images out, and the first one tells."""
    processes.join(cpu=options.device == "cpu")
    console = console or Console(quiet=not processes.is_first())
    showing = check_evaluation(options)
    protocol, subject = protocol_of(options), open_subject(options, console, showing=showing)
    dataset = subject.dataset
    tasks = tasks_of(options) or measurable_tasks(subject.network, dataset, console)
    shared = shared_tasks(subject.network, dataset, tasks)
    for note in check_asked_of(options, shared, dataset.classes, protocol.on_data(dataset.boundary_tolerance)):
        write_line(console, note)
    of_classes = {task: MeanIoU(num_channels(task, dataset.classes)) for task in shared if TASKS[task].metric == "miou"}
    rows: list[tuple[int, Scores]] = []

    def on_image(index: int, decoded: dict[str, Tensor], figures: Scores) -> None:
        rows.append((index, figures))
        if options.save is not None:
            save_for_field(options.save, dataset.name(index), {t: x[0].cpu().numpy() for t, x in decoded.items()})

    scores = evaluate(
        subject.network,
        dataset,
        subject.config,
        tasks=tasks,
        indices=processes.share(subject.indices, BATCH_SIZE),
        device=subject.device,
        console=console if processes.is_first() else None,
        boundary_protocol=protocol,
        legacy_saliency=options.legacy_saliency,
        depth_range_m=options.depth_range_m,
        showing=subject.showing,
        metrics=of_classes,
        on_image=on_image if options.csv_path or options.save else None,
    )
    pixels = {task: metric.pixels().tolist() for task, metric in of_classes.items()}
    found = [row for part in processes.gathered(rows) for row in part]
    if processes.is_first():
        measured = Measured(
            scores, pixels, [(dataset.name(index), figures) for index, figures in sorted(found, key=_index)]
        )
        tell(options, subject, measured, console)
    return scores


class Measured(NamedTuple):
    """What an evaluation found, over all processes."""

    scores: Evaluation
    pixels: Mapping[str, Sequence[Sequence[int]]]
    """By task, its confusion matrix."""
    rows: Sequence[tuple[str, Scores]]
    """Of every image its name and its own figures, in the order of the data; empty where they were not asked for."""


def _index(row: tuple[int, Scores]) -> int:
    return row[0]


def tell(options: EvaluateOptions, subject: Subject, measured: Measured, console: Console) -> None:
    """Print what was measured, and write the files that were asked for."""
    scores, pixels, dataset = measured.scores, measured.pixels, subject.dataset
    delta = delta_of(options, scores)
    for table in tables(scores, str(subject.showing), dataset.derived, options.depth_range_m, delta):
        console.print(table)
    if options.json_path is not None:
        context = context_of(options, subject) | ({} if delta is None else {"delta_m_percent": delta})
        classes = {task: dataset.classes[task] for task in pixels}
        confusion = {task: {"classes": classes[task], "pixels": counts} for task, counts in pixels.items()}
        write_scores(scores, options.json_path, **context, depth_range_m=options.depth_range_m, confusion=confusion)
    if options.confusion is not None:
        write_confusion(pixels, dataset.classes, options.confusion)
        for task, counts in pixels.items():
            plot_confusion(counts, dataset.classes[task], options.confusion / f"{task}.png", title=TASKS[task].title)
    if options.csv_path is not None:
        write_images(measured.rows, options.csv_path)
    if options.curve_path is not None:
        draw_curve(scores, check_writable(options.curve_path))


def delta_of(options: EvaluateOptions, scores: Evaluation) -> float | None:
    """Delta_m, where it is asked for and every one of its tasks turned out to have labels."""
    if options.single_task is None:
        return None
    found, single = headline(scores), read_single_task(options.single_task).scores
    return delta_m(found, single) if set(found) == set(single) else None


def check_evaluation(options: EvaluateOptions) -> Showing | None:
    """Refuse, before anything is loaded, what cannot be done; how the protocol shows images, if one is asked for."""
    showing = check_options(options, options.csv_path, options.curve_path)
    if options.curve_path is not None:
        check_picture(options.curve_path)
    if options.depth_range_m is not None and not 0 <= options.depth_range_m[0] < options.depth_range_m[1]:
        given = "{:g} {:g}".format(*options.depth_range_m)
        raise MistakeError(f"--depth-range {given}; expected the least and the greatest depth in metres: 0.001 80")
    if options.single_task is not None:
        read_single_task(options.single_task)
    if options.confusion is not None:
        check_folder(options.confusion)
    return showing


def check_asked_of(
    options: EvaluateOptions, tasks: Sequence[str], classes: Mapping[str, Sequence[str]], protocol: Protocol
) -> tuple[str, ...]:
    """Refuse, before anything is measured, what cannot be made of the measured ``tasks``; gives a note on what is assumed.

    ``classes``: the names of each task's. ``protocol``: what boundaries will be measured by.
    """
    notes = ()
    if options.single_task is not None:
        single = read_single_task(options.single_task)
        delta_m(dict.fromkeys(tasks, 1.0), single.scores)
        for task, theirs in single.classes.items():
            if task in tasks and theirs != (ours := tuple(classes.get(task, ()))):
                raise MistakeError(
                    f"--single-task {options.single_task}: its {task} is of {len(theirs)} classes, here are {len(ours)} or "
                    "others; expected scores on the same classes"
                )
        if single.boundaries is not None and (unlike := unlike_boundaries(single.boundaries, protocol.record())):
            raise MistakeError(
                f"--single-task {options.single_task}: its boundaries were measured otherwise: {unlike}; expected scores "
                "by the same protocol: choose it with --boundary-protocol, or measure the single tasks again"
            )
        if single.boundaries is None and any(map(has_boundaries, tasks)):
            notes = (
                f"{options.single_task} does not say what its boundaries were measured by; Delta_m takes it for "
                f"{protocol.name}, as here",
            )
    if options.curve_path is not None and "boundary" not in tasks:
        raise MistakeError(
            f"--curve {options.curve_path}: no boundaries are measured; expected a model and data with them"
        )
    if options.confusion is not None:
        with_classes = [task for task in tasks if TASKS[task].metric == "miou"]
        if not with_classes:
            raise MistakeError(f"--confusion {options.confusion}: no task with classes is measured; leave it out")
        for task in with_classes:
            for ending in (".csv", ".png"):
                check_writable(options.confusion / (task + ending))
    return notes


def draw_curve(scores: Evaluation, path: Path) -> None:
    """The precision-recall curve of the boundaries as a picture; ``MistakeError`` where no boundaries were measured."""
    if "boundary" not in scores.curves:
        raise MistakeError(f"--curve {path}: no boundaries were measured; expected a model and data that have them")
    curve = scores.curves["boundary"]
    points = (curve.recall.tolist(), curve.precision.tolist())
    plot_precision_recall(*points, path, ods=(curve.ods_recall, curve.ods_precision))
