"""Measure a network on labelled images, every task with its metric, at the labels' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

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
from mtlsi.metrics import BoundaryF, MeanIoU, MetricSettings, build_metric
from mtlsi.model.network import MTLSINet, decode
from mtlsi.nn.layers import resize_maps
from mtlsi.tasks import TASKS, num_channels

OnImage = Callable[[int, dict[str, Tensor], Scores], None]
"""Called with an image's index, its decoded predictions by task at the labels' size, and the figures on it alone."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: LabelledImages,
    config: DataConfig,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 4,
    num_thresholds: int = 99,
    legacy_saliency: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    on_image: OnImage | None = None,
) -> Scores:
    """Scores of ``model`` on the images ``indices`` (None: all) of ``dataset``.

    Images are shown at ``config.image_hw``, several at once where they have one size; predictions are upsampled
    bilinearly to the labels' size before they are decoded and compared. ``num_thresholds``: of the boundary curve;
    ``legacy_saliency``: see ``MaxF``; ``on_image``: told of every image. Tasks are those that the model and the data
    set share; raises ``MistakeError`` if none, or if their classes differ.
    """
    tasks = shared_tasks(model, dataset)
    metrics = {
        task: build_metric(
            TASKS[task],
            MetricSettings(
                num_classes=num_channels(task, dataset.classes) if TASKS[task].kind == "classes" else None,
                boundary_tolerance=dataset.boundary_tolerance,
                num_thresholds=num_thresholds,
                legacy_saliency=legacy_saliency,
            ),
        ).to(device)
        for task in tasks
    }
    was_training = model.training
    model.eval()
    indices = range(len(dataset)) if indices is None else indices
    waiting = iter(indices)
    with Progress(console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(indices))
        for samples in evaluation_batches(dataset, config, indices, batch_size=batch_size):
            for sample, raw in _predict(model, samples, tasks, device):
                decoded, own = {}, {}
                for task, metric in metrics.items():
                    label = sample[task].to(device)[None]
                    decoded[task] = decode(task, resize_maps(raw[task].float(), label.shape[-2:]))
                    valid = kinds.of(task).valid(label)
                    if on_image is None:
                        metric.update(decoded[task], label, valid)
                    else:
                        own[task] = {name: float(value) for name, value in metric(decoded[task], label, valid).items()}
                index = next(waiting)
                if on_image is not None:
                    on_image(index, decoded, own)
                progress.advance(bar)
    model.train(was_training)
    scores = {
        task: {name: float(value) for name, value in metric.compute().items()} for task, metric in metrics.items()
    }
    for task, metric in metrics.items():
        if isinstance(metric, MeanIoU):
            of_classes = zip(dataset.classes[task], metric.per_class().tolist(), strict=True)
            scores[task] |= {f"IoU/{name}": value for name, value in of_classes}
        if isinstance(metric, BoundaryF):
            scores[task] |= metric.curve()
    return scores


def _predict(
    model: nn.Module, samples: Sequence[Sample], tasks: Sequence[str], device: torch.device | str
) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
    """Each sample with its raw predictions (1 c h w); samples go through the model together if they have one size."""
    together = len({sample["image"].shape for sample in samples}) == 1
    for group in [samples] if together else [[sample] for sample in samples]:
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


@dataclass(frozen=True)
class Request:
    """What ``mtlsi evaluate`` is asked for."""

    model: str
    data: str = "nyud"
    root: str | None = None
    split: str = "val"
    size_hw: tuple[int, int] | None = None
    """The size to show images at; None: as the run did, or the model's own size."""
    limit: int = 0
    """Images to measure on, spread over the split; 0: all."""
    device: str | None = None
    json_path: Path | None = None
    csv_path: Path | None = None
    curve_path: Path | None = None
    """An image of the boundaries' precision-recall curve."""
    save: Path | None = None
    """A folder for the predictions, in the field's formats."""
    single_task: Path | None = None
    legacy_saliency: bool = False

    def check(self) -> None:
        """Refuse, in one line and before anything is computed, what cannot be done."""
        for path in (self.json_path, self.csv_path, self.curve_path):
            if path is not None:
                check_writable(path)
        if self.limit < 0:
            raise MistakeError(f"--limit {self.limit}; expected the number of images, or 0 for all")
        if self.size_hw is not None and min(self.size_hw) < 1:
            raise MistakeError(f"--size {self.size_hw[0]} {self.size_hw[1]}; expected a height and a width in pixels")

    def data_config(self, network: MTLSINet) -> DataConfig:
        """The data, shown as the run showed it, if ``model`` is a run folder, else at the network's own size."""
        shown: Any = network.input_size
        if (Path(self.model) / "config.yaml").is_file():
            shown = run_folder.load_config(Path(self.model)).data.image_hw
        config = DataConfig(name=self.data, root=self.root, image_hw=self.size_hw or shown)
        if self.data == "scenes":
            label_set = label_set_of(network.classes, network.tasks)
            config = replace(config, label_set=label_set, size_hw=config.image_hw or network.input_size)
        return config


def evaluate_from_command(request: Request, *, console: Console | None = None) -> Scores:
    """Load, measure, print, write: ``mtlsi evaluate``."""
    console = console or Console()
    request.check()
    network = MTLSINet.from_pretrained(request.model)
    device = find_device(request.device)
    network.to(device)
    config = request.data_config(network)
    dataset = open_dataset(config, request.split)
    introduce(dataset, console)
    indices = spread(request.limit, len(dataset))
    rows: list[tuple[str, Scores]] = []

    def on_image(index: int, decoded: dict[str, Tensor], own: Scores) -> None:
        rows.append((dataset.name(index), own))
        if request.save is not None:
            save_for_field(request.save, dataset.name(index), {t: x[0].cpu().numpy() for t, x in decoded.items()})

    by_image = on_image if request.csv_path or request.save else None
    scores = evaluate(
        network,
        dataset,
        config,
        indices=indices,
        device=device,
        console=console,
        legacy_saliency=request.legacy_saliency,
        on_image=by_image,
    )
    console.print(score_table(scores, derived=dataset.derived))
    context: dict[str, Any] = {
        "model": request.model,
        "data": request.data,
        "layout": getattr(dataset, "layout", None),
        "split": request.split,
        "images": len(indices),
        "shown_at": config.image_hw,
        "derived_labels": dataset.derived,
    }
    delta = None if request.single_task is None else compare_single_task(scores, request.single_task)
    if delta is not None:
        context["delta_m_percent"] = delta
    console.print(paper_row(scores, derived=dataset.derived, delta_percent=delta))
    if request.json_path is not None:
        write_scores(scores, request.json_path, **context)
    if request.csv_path is not None:
        write_images(rows, request.csv_path)
    if request.curve_path is not None:
        draw_curve(scores, request.curve_path)
    return scores


def draw_curve(scores: Scores, path: Path) -> None:
    """The boundaries' precision-recall curve as PNG; ``MistakeError`` where no boundaries were measured."""
    if "boundary" not in scores:
        raise MistakeError(f"--curve {path}: no boundaries were measured; expected a model and data that have them")
    of = {name: value / 100 for name, value in scores["boundary"].items()}
    recall, precision = ([of[name] for name in of if name.startswith(f"{what}/")] for what in ("recall", "precision"))
    plot_precision_recall(recall, precision, path, ods=(of["recall"], of["precision"]))
