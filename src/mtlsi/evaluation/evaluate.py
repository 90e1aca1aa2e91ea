"""Measure a network on labelled images, every task with its metric, at the labels' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torchmetrics import Metric

from mtlsi import kinds, run_folder
from mtlsi.config import DataConfig
from mtlsi.data.batches import evaluation_batches
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.data.scenes.dataset import label_set_of
from mtlsi.data.transforms import Sample
from mtlsi.device import find_device
from mtlsi.drawing.plots import plot_precision_recall
from mtlsi.errors import MistakeError
from mtlsi.evaluation.field_files import save_for_field
from mtlsi.evaluation.report import (
    Scores,
    compare_single_task,
    introduce,
    paper_row,
    score_table,
    write_images,
    write_scores,
)
from mtlsi.io import check_writable
from mtlsi.kinds import decode
from mtlsi.metrics import BoundaryF, MeanIoU, MetricSettings, build_metric
from mtlsi.metrics.boundary.protocols import Protocol, protocol_named
from mtlsi.model.network import MTLSINet
from mtlsi.nn.layout import resize_maps
from mtlsi.options import EvaluateOptions, MeasureOptions
from mtlsi.tasks import BOUNDARY_PROTOCOL, TASKS, check_tasks, num_channels

OnImage = Callable[[int, dict[str, Tensor], Scores], None]
"""Called with an image's index, its decoded predictions by task at the labels' size, and the image's own figures."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: LabelledImages,
    config: DataConfig,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 4,
    boundary_protocol: str | Protocol = BOUNDARY_PROTOCOL,
    num_thresholds: int | None = None,
    legacy_saliency: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    metrics: Mapping[str, Metric] | None = None,
    on_image: OnImage | None = None,
) -> Scores:
    """Scores of ``model`` on the images ``indices`` (None: all) of ``dataset``.

    Images are resized to ``config.image_hw`` and batched where they have one size; predictions are upsampled bilinearly to
    the labels' size before they are decoded and compared. ``boundary_protocol``: a record, or its name in
    ``mtlsi.metrics.boundary.protocols``; ``num_thresholds``: of the boundary curve, instead of the protocol's.
    ``legacy_saliency``: see ``MaxF``. ``metrics``: by task, instead of the built-in ones. ``on_image``: called with every
    image's results.
    Tasks are those that the model and the data set share. Raises ``MistakeError`` if there are none, if their classes
    differ, or if a metric of ``metrics`` lacks its task's score.
    """
    tasks = shared_tasks(model, dataset)
    own = check_metrics(metrics or {}, tasks)
    settings = {
        task: MetricSettings(
            num_classes=num_channels(task, dataset.classes) if TASKS[task].kind == "classes" else None,
            boundary_tolerance=dataset.boundary_tolerance,
            boundary_protocol=boundary_protocol,
            num_thresholds=num_thresholds,
            legacy_saliency=legacy_saliency,
        )
        for task in tasks
    }
    meters = {
        task: (own[task] if task in own else build_metric(TASKS[task], settings[task])).to(device) for task in tasks
    }
    was_training = model.training
    model.eval()
    indices = range(len(dataset)) if indices is None else indices
    waiting = iter(indices)
    with Progress(console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(indices))
        for samples in evaluation_batches(dataset, config, indices, batch_size=batch_size):
            for sample, raw in _predict(model, samples, tasks, device):
                decoded, figures = {}, {}
                for task, metric in meters.items():
                    label = sample[task].to(device)[None]
                    decoded[task] = decode(task, resize_maps(raw[task].float(), label.shape[-2:]))
                    valid = kinds.of(task).valid(label)
                    if on_image is None:
                        metric.update(decoded[task], label, valid)
                    else:
                        image_figures = metric(decoded[task], label, valid)
                        figures[task] = {name: float(value) for name, value in image_figures.items()}
                index = next(waiting)
                if on_image is not None:
                    on_image(index, decoded, figures)
                progress.advance(bar)
    model.train(was_training)
    return {task: _scores_of(task, metric, dataset.classes) for task, metric in meters.items()}


def check_metrics(metrics: Mapping[str, Metric], tasks: Sequence[str]) -> dict[str, Metric]:
    """Somebody's own metrics, reset, for those of ``tasks`` that have one; ``MistakeError`` for an unknown task."""
    if metrics:
        check_tasks(metrics)
    for metric in metrics.values():
        metric.reset()
    return {task: metric for task, metric in metrics.items() if task in tasks}


def _scores_of(task: str, metric: Metric, classes: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """All figures of one task, those of single classes and of the boundary curve included."""
    scores = {name: float(value) for name, value in metric.compute().items()}
    if TASKS[task].score not in scores:
        raise MistakeError(
            f"the metric of {task} gives {', '.join(scores) or 'nothing'}; expected its score {TASKS[task].score} among them"
        )
    if isinstance(metric, MeanIoU):
        ious = zip(classes[task], metric.per_class().tolist(), strict=True)
        scores |= {f"IoU/{name}": value for name, value in ious}
    if isinstance(metric, BoundaryF):
        scores |= metric.curve()
    return scores


def _predict(
    model: nn.Module, samples: Sequence[Sample], tasks: Sequence[str], device: torch.device | str
) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
    """Each sample with its raw predictions (1 c h w); samples of one size are batched."""
    one_size = len({sample["image"].shape for sample in samples}) == 1
    for group in [samples] if one_size else [[sample] for sample in samples]:
        images = torch.stack([sample["image"] for sample in group]).to(device)
        at_stride_4 = all(side % 4 == 0 for side in images.shape[-2:])  # then the stride's grid fits the image
        raw = model(images, tasks, full_size=not at_stride_4).final
        for i, sample in enumerate(group):
            yield sample, {task: x[i : i + 1] for task, x in raw.items()}


def shared_tasks(model: Any, dataset: LabelledImages) -> tuple[str, ...]:
    """The tasks that both know, in the model's order; ``MistakeError`` if there are none or their classes differ."""
    tasks = tuple(task for task in model.tasks if task in dataset.tasks)
    if not tasks:
        raise MistakeError(
            f"the model predicts {', '.join(model.tasks)}, the data has labels for {', '.join(dataset.tasks)}; "
            "expected at least one task in common"
        )
    for task in tasks:
        ours, theirs = model.classes.get(task), dataset.classes.get(task)
        if ours != theirs:
            raise MistakeError(
                f"{task}: the model has {len(ours or ())} classes, the data {len(theirs or ())} or other names; "
                "expected the classes the model was trained on"
            )
    return tasks


def check_options(options: MeasureOptions, *files: Path | None) -> None:
    """Refuse, in one line and before anything is computed, what cannot be done; ``files`` are to be written, too."""
    for path in (options.json_path, *files):
        if path is not None:
            check_writable(path)
    if options.limit < 0:
        raise MistakeError(f"--limit {options.limit}; expected the number of images, or 0 for all")
    if options.size_hw is not None and min(options.size_hw) < 1:
        raise MistakeError(f"--size {options.size_hw[0]} {options.size_hw[1]}; expected a height and a width in pixels")


def data_config(options: MeasureOptions, network: MTLSINet) -> DataConfig:
    """The data, at the image size of the run, if ``options.model`` is a run folder, else at the network's own."""
    size_hw: Any = network.input_size
    if (Path(options.model) / "config.yaml").is_file():
        size_hw = run_folder.load_config(Path(options.model)).data.image_hw
    config = DataConfig(name=options.data, root=options.root, image_hw=options.size_hw or size_hw)
    if options.data == "scenes":
        label_set = label_set_of(network.classes, network.tasks)
        config = replace(config, label_set=label_set, size_hw=config.image_hw or network.input_size)
    return config


@dataclass
class Subject:
    """A trained network and the images that it is measured on."""

    network: MTLSINet
    device: torch.device
    config: DataConfig
    dataset: LabelledImages
    indices: list[int]


def open_subject(options: MeasureOptions, console: Console) -> Subject:
    """What the options name, loaded and introduced; ``MistakeError`` where it cannot be."""
    run_folder.import_named_plugins(options.plugin, options.model)
    network = MTLSINet.from_pretrained(options.model)
    device = find_device(options.device)
    network.to(device)
    config = data_config(options, network)
    dataset = open_dataset(config, options.split)
    introduce(dataset, console)
    return Subject(network, device, config, dataset, spread(options.limit, len(dataset)))


def context_of(options: MeasureOptions, subject: Subject) -> dict[str, Any]:
    """What a JSON file says of how its figures were measured."""
    return {
        "model": options.model,
        "data": options.data,
        "layout": getattr(subject.dataset, "layout", None),
        "split": options.split,
        "images": len(subject.indices),
        "shown_at": subject.config.image_hw,
        "derived_labels": subject.dataset.derived,
        "boundaries": protocol_of(options).on_data(subject.dataset.boundary_tolerance).record(),
    }


def protocol_of(options: MeasureOptions) -> Protocol:
    """What the boundaries are measured by; ``MistakeError`` for a protocol that nobody knows."""
    if not isinstance(options, EvaluateOptions):
        return protocol_named(BOUNDARY_PROTOCOL)
    mask_unknown = False if options.count_unknown_boundaries else None
    return protocol_named(options.boundary_protocol).with_changes(mask_unknown=mask_unknown)


def evaluate_from_command(options: EvaluateOptions, *, console: Console | None = None) -> Scores:
    """Load, measure, print, write: ``mtlsi evaluate``."""
    console = console or Console()
    check_options(options, options.csv_path, options.curve_path)
    protocol = protocol_of(options)
    subject = open_subject(options, console)
    dataset = subject.dataset
    rows: list[tuple[str, Scores]] = []

    def on_image(index: int, decoded: dict[str, Tensor], figures: Scores) -> None:
        rows.append((dataset.name(index), figures))
        if options.save is not None:
            save_for_field(options.save, dataset.name(index), {t: x[0].cpu().numpy() for t, x in decoded.items()})

    scores = evaluate(
        subject.network,
        dataset,
        subject.config,
        indices=subject.indices,
        device=subject.device,
        console=console,
        boundary_protocol=protocol,
        legacy_saliency=options.legacy_saliency,
        on_image=on_image if options.csv_path or options.save else None,
    )
    console.print(score_table(scores, derived=dataset.derived, boundary=protocol.on_data(dataset.boundary_tolerance)))
    context = context_of(options, subject)
    delta = None if options.single_task is None else compare_single_task(scores, options.single_task)
    if delta is not None:
        context["delta_m_percent"] = delta
    console.print(paper_row(scores, derived=dataset.derived, delta_percent=delta, boundary=protocol))
    if options.json_path is not None:
        write_scores(scores, options.json_path, **context)
    if options.csv_path is not None:
        write_images(rows, options.csv_path)
    if options.curve_path is not None:
        draw_curve(scores, options.curve_path)
    return scores


def draw_curve(scores: Scores, path: Path) -> None:
    """The precision-recall curve of the boundaries as PNG; ``MistakeError`` where no boundaries were measured."""
    if "boundary" not in scores:
        raise MistakeError(f"--curve {path}: no boundaries were measured; expected a model and data that have them")
    figures = {name: value / 100 for name, value in scores["boundary"].items()}
    recall, precision = (
        [value for name, value in figures.items() if name.startswith(f"{axis}/")] for axis in ("recall", "precision")
    )
    plot_precision_recall(recall, precision, path, ods=(figures["recall"], figures["precision"]))
