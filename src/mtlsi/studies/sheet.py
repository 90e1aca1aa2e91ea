"""The qualitative sheet: what every variant predicts for chosen validation images, below the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from mtlsi.data.datasets import LabelledImages, open_dataset
from mtlsi.device import find_device
from mtlsi.drawing.panels import rows_panel
from mtlsi.errors import MistakeError
from mtlsi.evaluation.one_image import predict_image
from mtlsi.io import file_names, replace_array
from mtlsi.model.network import MTLSINet
from mtlsi.streams import write_line
from mtlsi.studies.plan import Plan, StudyRun
from mtlsi.studies.runs import FINISHED, state_of
from mtlsi.tasks import TASKS


def write_sheets(
    plan: Plan, out: Path, names: Sequence[str], console: Console, pictures: Sequence[str] = (".png",)
) -> None:
    """``sheet_NAME.png`` in ``out`` for each validation image: its truth, and below a row per variant, a column per task.

    Every variant is shown with the first seed of the study (the seed decides which scenes are generated); those that have
    not finished it are left out. Raises ``MistakeError`` for a name that is not among the validation images.
    ``pictures``: the endings of a sheet's files.
    """
    runs = {run.variant.name: run for run in plan.runs(out) if run.seed == plan.seeds[0] and state_of(run) == FINISHED}
    if not runs:
        raise MistakeError(f"--sheet: no variant has finished seed {plan.seeds[0]}; train one first")
    files = file_names(names, len("sheet_") + max(map(len, pictures)))
    for name, file in files.items():
        sheet = Image.fromarray(draw_sheet(runs, name, tuple(plan.baseline.values())))
        for ending in pictures:
            path = out / f"sheet_{file}{ending}"
            replace_array(path, sheet)
            write_line(console, f"sheet: {path}")


def check_names(plan: Plan, names: Sequence[str]) -> None:
    """Raises ``MistakeError`` for a name that is not among the validation images of the first seed."""
    if names:
        dataset = open_dataset(plan.variants[0].config.data, "val", plan.seeds[0])
        for name in names:
            index_of(name, dataset)


def draw_sheet(runs: dict[str, StudyRun], name: str, single: Sequence[str] = ()) -> np.ndarray:
    """The sheet of one image ``(H W 3) uint8``; ``runs`` by variant. ``single``: those that share a row."""
    photo, truth, rows, classes, colours = np.empty(0), {}, {}, {}, {}
    for variant, run in runs.items():
        dataset = open_dataset(run.config.data, "val", run.seed)
        index = index_of(name, dataset)
        network = MTLSINet.from_pretrained(run.out).to(find_device(None)).eval()
        shown = predict_image(network, dataset, run.config.data, index)
        rows.setdefault("single-task" if variant in single else variant, {}).update(shown.predicted)
        photo = shown.photo
        truth |= shown.truth
        classes |= network.classes
        colours |= network.colours
    order = [task for task in TASKS if task in truth]
    maps = {"truth": {task: truth[task] for task in order}, **rows}
    return rows_panel(photo, maps, classes, scale_of="truth", colours=colours)


def index_of(name: str, dataset: LabelledImages) -> int:
    """Which image of ``dataset`` is called ``name``."""
    known = [dataset.name(index) for index in range(len(dataset))]
    if name not in known:
        raise MistakeError(f"--sheet {name}: no such validation image; expected names such as {', '.join(known[:3])}")
    return known.index(name)
