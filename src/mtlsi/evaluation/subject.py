"""What a measuring verb is asked about: a trained network, labelled images, and how the one is shown the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mtlsi import processes, run_folder
from mtlsi.config import RESIZES, DataConfig, check_size, split_names
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.data.scenes.dataset import label_set_of
from mtlsi.device import find_device
from mtlsi.errors import MistakeError, check_choice
from mtlsi.evaluation.protocols import Showing, showing_by, showing_of
from mtlsi.evaluation.report import introduce
from mtlsi.io import check_writable
from mtlsi.metrics.boundary.protocols import Protocol, protocol_named
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import MeasureOptions
from mtlsi.streams import write_line
from mtlsi.tasks import check_tasks


def check_options(options: MeasureOptions, *files: Path | None) -> Showing | None:
    """Refuse, in one line and before anything is computed, what cannot be done; ``files`` are to be written, too.

    Gives how the protocol that is asked for shows images, if one is.
    """
    for path in (options.json_path, *files):
        if path is not None:
            check_writable(path)
    if options.limit < 0:
        raise MistakeError(f"--limit {options.limit}; expected the number of images, or 0 for all")
    if options.size_hw is not None:
        check_size(f"--size {options.size_hw[0]} {options.size_hw[1]}", options.size_hw)
    if options.resize is not None:
        check_choice("--resize", options.resize, RESIZES)
    protocol_of(options)
    if options.protocol is None:
        return None
    for flag, given in (("--size", options.size_hw), ("--resize", options.resize)):
        if given is not None:
            raise MistakeError(f"{flag} and --protocol both say how the images are shown; give one of them")
    return showing_of(options.protocol, options.data)


def data_config(options: MeasureOptions, network: MTLSINet, *, showing: Showing | None = None) -> DataConfig:
    """The data with the labels of the tasks asked for (None: all), images shown as ``showing``, a protocol's, says.

    Without it they have the size and the way of resizing that are asked for, else those of the run, if ``options.model`` is
    from one, else they are brought to the network's own size as in its training. Raises ``MistakeError`` for a run's size
    that no network sees images at.
    """
    size_hw: Any = network.input_size
    resize, tasks = network.resize, tasks_of(options)
    if (run := run_folder.run_of(options.model)) is not None:
        of_run = run_folder.load_config(run).data
        size_hw, resize = of_run.image_hw, of_run.resize
        if size_hw is not None:  # the run may be a stranger's
            check_size(f"{run / 'config.yaml'}: data.image_hw {list(size_hw)}", size_hw)
    size_hw, resize = options.size_hw or size_hw, options.resize or resize
    if showing is not None:
        size_hw, resize = showing.resize_hw, showing.resize
    config = DataConfig(name=options.data, root=options.root, tasks=tasks, image_hw=size_hw, resize=resize)
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


def open_subject(options: MeasureOptions, console: Console, *, showing: Showing | None = None) -> Subject:
    """What the options name, loaded and introduced, with the labels of the tasks asked for (None: all).

    ``showing``: what ``check_options`` gave. Raises ``MistakeError`` for what cannot be loaded and for a task that the
    network does not predict or the data has no labels of.
    """
    run_folder.import_named_plugins(options.plugin, options.model)
    network = MTLSINet.from_pretrained(options.model)
    if (note := run_folder.note_of_best(options.model)) is not None:
        write_line(console, note)
    if (tasks := tasks_of(options)) is not None:
        check_tasks(tasks, among=network.tasks)
    own = processes.own_device() if options.device is None else None
    device = own or find_device(options.device)
    network.to(device)
    config = data_config(options, network, showing=showing)
    dataset = open_dataset(config, options.split)
    introduce(dataset, console)
    indices = spread(options.limit, len(dataset))
    showing = showing or replace(showing_by(config), rendered=options.data == "scenes")
    return Subject(network, device, config, dataset, indices, showing)


def tasks_of(options: MeasureOptions) -> tuple[str, ...] | None:
    """The tasks asked for; None: all."""
    return None if options.tasks is None else split_names(options.tasks)


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
        "resize": showing.resize,
        "padded_to": showing.pad_hw,
        "derived_labels": subject.dataset.derived,
        "boundaries": protocol_of(options).on_data(subject.dataset.boundary_tolerance).record(),
    }


def protocol_of(options: MeasureOptions) -> Protocol:
    """What the boundaries are measured by; ``MistakeError`` for a protocol that nobody knows."""
    mask_unknown = False if options.count_unknown_boundaries else None
    return protocol_named(options.boundary_protocol).with_changes(mask_unknown=mask_unknown)
