"""The qualitative sheet: what every variant predicts for chosen validation images, below the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from mtlsi.data.datasets import LabelledImages, open_dataset
from mtlsi.device import find_device
from mtlsi.drawing import panels
from mtlsi.errors import MistakeError
from mtlsi.evaluation.one_image import OneImage, predict_image
from mtlsi.io import file_names, replace_array
from mtlsi.model.network import MTLSINet
from mtlsi.streams import write_line
from mtlsi.studies.plan import Plan, StudyRun
from mtlsi.studies.runs import FINISHED, data_of, state_of
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
    """Raises ``MistakeError`` for a name that is not among the first seed's validation images in every variant's data."""
    if names:
        for data in {repr(variant.config.data): variant.config.data for variant in plan.variants}.values():
            dataset = open_dataset(data, "val", plan.seeds[0])
            for name in names:
                index_of(name, dataset)


@dataclass
class Block:
    """Rows of a sheet that have their labels, by which all of them are drawn, in common."""

    data: str
    shown: OneImage
    classes: dict[str, Any]
    """Their names by task."""
    colours: dict[str, Any]
    """Those of the classes, by task."""
    variants: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """By title."""

    def is_of(self, other: Block) -> bool:
        """Whether both can share their labels: they are of the same image, and tasks of both have the same classes."""
        tasks = [task for task in other.shown.truth if task in self.shown.truth]
        theirs = [(other.classes.get(task), other.colours.get(task)) for task in tasks]
        alike = (self.data, self.shown.photo.shape) == (other.data, other.shown.photo.shape)
        return alike and theirs == [(self.classes.get(task), self.colours.get(task)) for task in tasks]

    def add(self, variant: str, title: str, other: Block) -> None:
        """A row, or more of one."""
        self.variants.append(variant)
        self.rows.setdefault(title, {}).update(other.shown.predicted)
        self.shown.truth.update(other.shown.truth)
        self.classes |= other.classes
        self.colours |= other.colours

    def draw(self) -> np.ndarray:
        """The image and its labels above the rows, ``(H W 3) uint8``."""
        truth = {task: self.shown.truth[task] for task in TASKS if task in self.shown.truth}
        maps = {"truth": truth, **self.rows}
        return panels.rows_panel(self.shown.photo, maps, self.classes, scale_of="truth", colours=self.colours)


def draw_sheet(runs: Mapping[str, StudyRun], name: str, single: Sequence[str] = ()) -> np.ndarray:
    """The sheet of one image ``(H W 3) uint8``; ``runs`` by variant. ``single``: those that share a row.

    Variants of other data, classes or image sizes come below one another, each below labels of their own.
    """
    blocks: list[Block] = []
    for variant, run in runs.items():
        dataset = open_dataset(run.config.data, "val", run.seed)
        index = index_of(name, dataset)
        network = MTLSINet.from_pretrained(run.out).to(find_device(None)).eval()
        shown = predict_image(network, dataset, run.config.data, index)
        new = Block(data_of(run.config.data), shown, dict(network.classes), dict(network.colours))
        block = next((block for block in blocks if block.is_of(new)), new)
        block.add(variant, "single-task" if variant in single else variant, new)
        blocks += [new] if block is new else []
    if len(blocks) == 1:
        return blocks[0].draw()
    return panels.sheet({f"{', '.join(block.variants)}: {block.data}": [block.draw()] for block in blocks})


def index_of(name: str, dataset: LabelledImages) -> int:
    """Which image of ``dataset`` is called ``name``."""
    known = [dataset.name(index) for index in range(len(dataset))]
    if name not in known:
        raise MistakeError(f"--sheet {name}: no such validation image; expected names such as {', '.join(known[:3])}")
    return known.index(name)
