"""``mtlsi figures``: one pass over labelled images, and every figure of every task, by its kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import Tensor
from torchmetrics import Metric

from mtlsi import run_folder
from mtlsi.data.datasets import colours_of
from mtlsi.data.transforms import Sample
from mtlsi.drawing.confusion import plot_confusion
from mtlsi.drawing.errors import plot_angles, plot_class_scores, plot_errors_by_value
from mtlsi.drawing.panels import sheet
from mtlsi.drawing.plots import plot_curves, plot_precision_recall
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate, measurable_tasks, shared_tasks
from mtlsi.evaluation.protocols import cut_out
from mtlsi.evaluation.report import Evaluation, write_figures
from mtlsi.evaluation.subject import Subject, check_options, context_of, open_subject, protocol_of, tasks_of
from mtlsi.figures.by_value import DISTANCE_EXPONENT, ErrorsByValue
from mtlsi.figures.sheet import Sheets
from mtlsi.io import check_folder, check_writable, replace_array
from mtlsi.metrics import AngularError, MaxF, MeanIoU
from mtlsi.options.measuring import FiguresOptions
from mtlsi.streams import write_line
from mtlsi.tasks import TASKS, num_channels

NUMBERS = "figures.json"


def figures_from_command(options: FiguresOptions, *, console: Console | None = None) -> list[Path]:
    """Load, measure in one pass, draw, write: ``mtlsi figures``. Gives the files that it wrote.

    Raises ``MistakeError`` for what cannot be loaded, measured or written.
    """
    console = console or Console()
    options = filled_in(options)
    showing = check_options(options)
    if options.num_shown < 0:
        raise MistakeError(f"--shown {options.num_shown}; expected the number of images, or 0 for no sheets")
    out = options.out or out_of(options.model)
    subject = open_subject(options, console, showing=showing)
    tasks = tasks_of(options) or measurable_tasks(subject.network, subject.dataset, console)
    options = replace(options, tasks=shared_tasks(subject.network, subject.dataset, tasks))
    check_folder(out)
    check_writable(out / NUMBERS)
    scores, seen = measure(options, subject, console)
    run = run_folder.run_of(options.model)
    written, numbers = [] if run is None else draw_training(run, out), {}
    for task in scores:
        found = DRAWERS[TASKS[task].kind](task, seen, scores, out)
        if found is None:
            write_line(console, f"left out: {task} (no labelled pixel)")
            continue
        files, numbers[task] = found
        written += [*files, *draw_sheet(task, seen.sheets, out)]
        numbers[task]["images"] = seen.sheets.record(task)
    write_figures({**context_of(options, subject), "scores": scores, "figures": numbers}, out / NUMBERS)
    write_line(console, f"{len(written)} figures and {NUMBERS} in {out}")
    return [*written, out / NUMBERS]


def filled_in(options: FiguresOptions) -> FiguresOptions:
    """The options with the data of the run where none is named."""
    if options.data:
        return options
    if (run := run_folder.run_of(options.model)) is None:
        return replace(options, data="nyud")
    data = run_folder.load_config(run).data
    return replace(options, data=data.name, root=options.root or data.root)


def out_of(model: str) -> Path:
    """Where figures go unless told otherwise. Raises ``MistakeError`` where a run's folder for them is a link elsewhere."""
    if run_folder.run_of(model) is None:
        return Path(f"{Path(os.path.abspath(model)).name or 'model'}-figures")  # the folder's own name, of ``.``, too
    out = Path(model, "figures")
    if not out.resolve().is_relative_to(Path(model).resolve()):
        raise MistakeError(f"{out}: a link out of the run; expected a folder in it: say with --out where figures go")
    return out


# ---- the pass over the images


class Seen:
    """What figures need of a pass over images beside the scores."""

    def __init__(self, tasks: Sequence[str], sheets: Sheets) -> None:
        self.sheets, self.classes = sheets, sheets.classes
        kinds, metrics = ({t: getattr(TASKS[t], field) for t in tasks} for field in ("kind", "metric"))
        self.ious = {t: MeanIoU(num_channels(t, dict(self.classes))) for t in tasks if metrics[t] == "miou"}
        self.strengths = {t: MaxF() for t in tasks if metrics[t] == "max_f"}
        self.angles = {t: AngularError() for t in tasks if metrics[t] == "angular_error"}
        self.errors = {t: ErrorsByValue(EXPONENTS[kind]) for t, kind in kinds.items() if kind in EXPONENTS}

    def metrics(self) -> dict[str, Metric]:
        """The metrics that ``evaluate`` is to use in place of its own, by task."""
        return {**self.ious, **self.strengths, **self.angles}

    def add_pair(self, task: str, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Take in one image's prediction and label, as ``evaluate`` calls it; every channel of a pixel is a number."""
        self.sheets.look_at(task, label[valid] if TASKS[task].kind == "classes" else None)
        if task in self.errors:
            pair = [x.movedim(1, -1) if label.dim() == 4 else x for x in (prediction, label)]
            self.errors[task].update(*(x[valid].flatten().cpu().numpy() for x in pair))


EXPONENTS = {"distance": DISTANCE_EXPONENT, "value": None}
"""By kind, how fine the errors are kept."""


def measure(options: FiguresOptions, subject: Subject, console: Console) -> tuple[Evaluation, Seen]:
    """The scores, as ``mtlsi evaluate`` gives them, and what else figures need."""
    dataset, tasks = subject.dataset, shared_tasks(subject.network, subject.dataset, tasks_of(options))

    def read(index: int) -> Sample:
        return cut_out(dataset[index], subject.showing, dataset.name(index))

    sheets = Sheets(options.num_shown, read, dataset.name, dataset.classes, colours_of(dataset))
    seen = Seen(tasks, sheets)
    scores = evaluate(
        subject.network,
        dataset,
        subject.config,
        tasks=tasks,
        indices=subject.indices,
        boundary_protocol=protocol_of(options),
        showing=subject.showing,
        device=subject.device,
        console=console,
        metrics=seen.metrics(),
        on_image=sheets.add if options.num_shown else None,
        on_pair=seen.add_pair,
    )
    return scores, seen


# ---- the figures of each kind: their files and numbers, or None where nothing is labelled

Found = tuple[list[Path], dict[str, Any]] | None


def draw_classes(task: str, seen: Seen, _: Evaluation, out: Path) -> Found:
    """IoU and share of the pixels by class, and the confusion matrix."""
    metric, names, title = seen.ious[task], seen.classes[task], TASKS[task].title
    confusion, ious = metric.pixels().cpu().numpy(), metric.per_class().tolist()
    labelled = confusion.sum(1).tolist()
    if not sum(labelled):
        return None
    files = [
        plot_class_scores(ious, labelled, names, out / f"{task}_iou.png", title=title),
        plot_confusion(confusion.tolist(), names, out / f"{task}_confusion.png", title=title),
    ]
    return files, {"classes": names, "iou": ious, "labelled_pixels": labelled, "confusion": confusion.tolist()}


def draw_strength(task: str, seen: Seen, scores: Evaluation, out: Path) -> Found:
    """Precision over recall: of matched lines by the protocol in use, or of pixels."""
    path, title = out / f"{task}_precision_recall.png", TASKS[task].title
    if task in scores.curves:
        curve = scores.curves[task]
        if not isfinite(curve.ods):
            return None
        best, beta_squared, points = (curve.ods_recall, curve.ods_precision), 1.0, curve.points()
        beside: dict[str, Any] = {}
        if scores.boundaries is not None:
            title, beside = f"{title} ({scores.boundaries.name})", {"protocol": scores.boundaries.record()}
    else:
        metric, figures = seen.strengths[task], scores[task]
        if not isfinite(figures["recall"]):
            return None
        best, beta_squared, points = (
            (figures["recall"] / 100, figures["precision"] / 100),
            metric.BETA_SQUARED,
            metric.curve(),
        )
        beside = {"beta_squared": beta_squared}
    plot_precision_recall(points["recall"], points["precision"], path, ods=best, title=title, beta_squared=beta_squared)
    return [path], {**points, **beside}


def draw_errors(task: str, seen: Seen, _: Evaluation, out: Path) -> Found:
    """Errors over the labels' distance, or over the value that they say."""
    bins, record = seen.errors[task].bins(), TASKS[task]
    if bins is None:
        return None
    unit = f" ({record.unit})" if record.unit else ""
    if record.kind == "distance":
        quantity, series = f"labelled distance{unit}", [(f"RMSE{unit}", bins.rmse), ("abs rel (%)", 100 * bins.abs_rel)]
    else:
        quantity, series = f"labelled value{unit}", [(f"RMSE{unit}", bins.rmse), (f"MAE{unit}", bins.mae)]
    path = plot_errors_by_value(
        bins.edges.tolist(),
        [(name, values.tolist()) for name, values in series],
        bins.pixels.tolist(),
        out / f"{task}_errors.png",
        quantity=f"{quantity}; the bins at the ends hold all beyond",
        title=f"{record.title}: errors by {quantity.split(' (')[0]}",
    )
    return [path], bins.record()


def draw_directions(task: str, seen: Seen, scores: Evaluation, out: Path) -> Found:
    """How often each angle occurs, in bins of a degree, with the field's marks."""
    figures = scores[task]
    by_degree = seen.angles[task].histogram.reshape(180, -1).sum(1).tolist()
    if not sum(by_degree):
        return None
    within = [(limit, figures[f"within_{limit}"]) for limit in MARKS_DEG]
    path = plot_angles(
        by_degree,
        out / f"{task}_angles.png",
        within=within,
        mean_deg=figures["mErr"],
        median_deg=figures["median"],
        title=f"{TASKS[task].title}: angle between prediction and label",
    )
    return [path], {"pixels_by_degree": by_degree, "within": {f"{limit:g}": share for limit, share in within}}


MARKS_DEG = (11.25, 22.5, 30)
DRAWERS = {
    "classes": draw_classes,
    "strength": draw_strength,
    "distance": draw_errors,
    "value": draw_errors,
    "direction": draw_directions,
}
"""By ``Task.kind``."""


def draw_training(run: Path, out: Path) -> list[Path]:
    """The curves of a run that has logged something."""
    metrics = run / run_folder.METRICS
    return [plot_curves(metrics, out / "training.png")] if metrics.is_file() else []


def draw_sheet(task: str, sheets: Sheets, out: Path) -> list[Path]:
    """The best and the worst images of a task that has any."""
    best, worst = sheets.of(task)
    if not best and not worst:
        return []
    among = f"of {sheets.num_scored[task]} images by {TASKS[task].score}"
    rows = {f"the best {among}": best, f"the worst {among}, the worst last": worst}
    parts = {f"{TASKS[task].title}: {heading}": [x.row for x in shown] for heading, shown in rows.items() if shown}
    path = out / f"{task}_best_worst.png"
    replace_array(path, Image.fromarray(sheet(parts)))
    return [path]
