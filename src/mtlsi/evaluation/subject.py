"""What a measuring verb is asked about: a trained network, labelled images, and how the one is shown the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mtlsi import run_folder
from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.data.scenes.dataset import label_set_of
from mtlsi.device import find_device
from mtlsi.errors import MistakeError
from mtlsi.evaluation.protocols import Showing
from mtlsi.evaluation.report import introduce
from mtlsi.io import check_writable
from mtlsi.metrics.boundary.protocols import Protocol, protocol_named
from mtlsi.model.network import MTLSINet
from mtlsi.options import EvaluateOptions, MeasureOptions
from mtlsi.tasks import BOUNDARY_PROTOCOL, check_tasks


def check_options(options: MeasureOptions, *files: Path | None) -> None:
    """Refuse, in one line and before anything is computed, what cannot be done; ``files`` are to be written, too."""
    for path in (options.json_path, *files):
        if path is not None:
            check_writable(path)
    if options.limit < 0:
        raise MistakeError(f"--limit {options.limit}; expected the number of images, or 0 for all")
    if options.size_hw is not None and min(options.size_hw) < 1:
        raise MistakeError(f"--size {options.size_hw[0]} {options.size_hw[1]}; expected a height and a width in pixels")


def data_config(
    options: MeasureOptions,
    network: MTLSINet,
    *,
    tasks: tuple[str, ...] | None = None,
    showing: Showing | None = None,
) -> DataConfig:
    """The data with the labels of ``tasks`` (None: all), images sized as ``showing`` says.

    Without it they have the size that is asked for, else that of the run, if ``options.model`` is a run folder, else the
    network's own.
    """
    size_hw: Any = network.input_size
    if (Path(options.model) / "config.yaml").is_file():
        size_hw = run_folder.load_config(Path(options.model)).data.image_hw
    size_hw = showing.resize_hw if showing else options.size_hw or size_hw
    config = DataConfig(name=options.data, root=options.root, tasks=tasks, image_hw=size_hw)
    if options.data == "scenes":
        wanted = tasks or network.tasks
        classes = {task: names for task, names in network.classes.items() if task in wanted}
        label_set = label_set_of(classes, wanted)
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
    showing: Showing
    """How the images are shown to the network."""


def open_subject(
    options: MeasureOptions,
    console: Console,
    *,
    tasks: tuple[str, ...] | None = None,
    showing: Showing | None = None,
) -> Subject:
    """What the options name, loaded and introduced, with the labels of ``tasks`` (None: all).

    ``showing``: a published protocol's, instead of the options' size. Raises ``MistakeError`` for what cannot be loaded and
    for a task that the network does not predict or the data has no labels of.
    """
    run_folder.import_named_plugins(options.plugin, options.model)
    network = MTLSINet.from_pretrained(options.model)
    if tasks is not None:
        check_tasks(tasks, among=network.tasks)
    device = find_device(options.device)
    network.to(device)
    config = data_config(options, network, tasks=tasks, showing=showing)
    dataset = open_dataset(config, options.split)
    introduce(dataset, console)
    indices = spread(options.limit, len(dataset))
    return Subject(network, device, config, dataset, indices, showing or Showing(config.image_hw))


def context_of(options: MeasureOptions, subject: Subject) -> dict[str, Any]:
    """What a JSON file says of how its figures were measured."""
    showing = subject.showing
    return {
        "model": options.model,
        "data": options.data,
        "layout": getattr(subject.dataset, "layout", None),
        "split": options.split,
        "images": len(subject.indices),
        "protocol": showing.protocol,
        "shown": str(showing),
        "shown_at": showing.pad_hw or showing.resize_hw,
        "resized_to": showing.resize_hw,
        "padded_to": showing.pad_hw,
        "derived_labels": subject.dataset.derived,
        "boundaries": protocol_of(options).on_data(subject.dataset.boundary_tolerance).record(),
    }


def protocol_of(options: MeasureOptions) -> Protocol:
    """What the boundaries are measured by; ``MistakeError`` for a protocol that nobody knows."""
    if not isinstance(options, EvaluateOptions):
        return protocol_named(BOUNDARY_PROTOCOL)
    mask_unknown = False if options.count_unknown_boundaries else None
    return protocol_named(options.boundary_protocol).with_changes(mask_unknown=mask_unknown)
