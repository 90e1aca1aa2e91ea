"""``mtlsi pack``: a run's model in a folder to share, with its scores measured and its card written."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from mtlsi import interrupts, run_folder
from mtlsi.config import RunConfig
from mtlsi.data.datasets import LabelledImages, open_dataset
from mtlsi.data.scenes.dataset import render_scene
from mtlsi.drawing.panels import panel
from mtlsi.errors import MistakeError, Stopped, message_of
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate, measurable_tasks
from mtlsi.evaluation.protocols import showing_by
from mtlsi.evaluation.report import score_table
from mtlsi.evaluation.subject import Subject, check_options, open_subject, protocol_of, tasks_of
from mtlsi.io import replace_array
from mtlsi.model.hub import check_push, push_folder
from mtlsi.model.stored import WEIGHTS
from mtlsi.options.measuring import MeasureOptions, PackOptions
from mtlsi.packing.card import PICTURE, Measured, Trained, card
from mtlsi.prediction.predictor import Predictor
from mtlsi.reading import read_text
from mtlsi.streams import write_line
from mtlsi.tasks import check_printed
from mtlsi.training.best import Kept, kept

ROOMS = (1_000_246, 1_000_236)
"""Generated rooms on a card's picture; validation images start at 1,000,000."""
ROOM_HW = (288, 384)
NOT_OF_SCORES = ("model", "data", "device", "json_path")
"""Options that a card's command has in another place, or that do not change what it measures."""


def pack_from_command(options: PackOptions, *, console: Console | None = None) -> Path:
    """Write the folder ``options.out``, whole or not at all, upload it where asked to, and give its path.

    The scores are those of the packed weights. ``model`` is a run folder, the best model in one, or any other model, of
    whose training the card then says nothing. Raises ``MistakeError`` where there is no such model, ``out`` is there already
    or the data cannot be read; where ``out`` appears meanwhile it says where the finished folder lies.
    """
    console = console or Console()
    run, notes = run_folder.run_of(options.model), read_notes(options.notes_path)
    showing = check_options(options)
    if options.push is not None:
        check_push(options.push)
    check_printed("--license", options.license)
    check_printed("--out", options.out.name, None)
    is_there = os.path.lexists(options.out) or os.path.exists(os.path.realpath(options.out))
    if is_there:  # or a link to nothing, or nope/..
        raise MistakeError(f"--out {options.out} is there already; give a new folder")
    config = None if run is None else run_folder.load_config(run)
    best = None if run is None or run_folder.is_run(options.model) else kept(run)
    run_folder.import_named_plugins(options.plugin, options.model)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = options.out.parent / f".{options.out.name}-{uuid.uuid4().hex}"
        fresh.mkdir()
    except OSError as error:
        raise MistakeError(f"cannot write to {options.out.parent} ({message_of(error)}); give another --out") from error
    with ending_by_sigterm(), removed_unless_finished(fresh):
        wide = run_folder.pack_model(options.model, fresh)
        if showing is None and config is not None:  # an older model does not say how its run resized
            options = replace(options, resize=options.resize or config.data.resize)
        subject = open_subject(replace(options, model=str(fresh)), console, showing=showing)
        training = open_dataset(subject.config, "train")
        measured = measure(options, subject, training, console)
        said: dict[str, Any] = {"derived": measured.derived, "caption": str(subject.showing)}
        console.print(score_table(measured.scores, others={"constant": measured.constant}, **said))
        replace_array(fresh / PICTURE, Image.fromarray(rooms(subject)))
        text = card(
            options.push or options.out.name,
            subject.network,
            measured,
            None if run is None or config is None else trained(run, config, best),
            on_disk=on_disk(fresh / WEIGHTS, len(wide)),
            license=options.license,
            notes=notes,
        )
        (fresh / "README.md").write_text(text, encoding="utf-8")
    try:
        fresh.rename(options.out)
    except OSError as error:  # another process was faster; the work of minutes is not thrown away
        raise MistakeError(
            f"--out {options.out} cannot be written any more ({message_of(error)}); the finished folder is {fresh}: move it"
        ) from error
    if (note := run_folder.note_of_best(options.model)) is not None:
        write_line(console, note)
    write_line(console, f"model folder: {options.out}")
    if options.push is not None:
        push(options, console)
    return options.out


@contextmanager
def removed_unless_finished(folder: Path) -> Iterator[None]:
    """``folder`` and all in it are gone where the context is left by an exception."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """SIGTERM raises ``Stopped`` within the context, once: what is half made is then removed, as after Ctrl-C.

    Outside the main thread, where Python allows no handlers, it does what it did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a process forked meanwhile
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not interrupts.puts_off(end, number, frame):
            signal.signal(number, signal.SIG_IGN)
            raise Stopped(number)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def push(options: PackOptions, console: Console) -> None:
    """Upload the finished folder; where that fails it stays, and the message says how to try again."""
    name = str(options.push)
    try:
        address = push_folder(options.out, name, private=options.private)
    except MistakeError as error:
        raise MistakeError(f"{error}; {options.out} is complete: hf upload {name} {options.out} tries again") from error
    write_line(console, f"on the hub: {address}")


def read_notes(path: Path | None) -> str:
    """The Markdown that a card ends with."""
    try:
        return "" if path is None else read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise MistakeError(f"--notes {path}: {message_of(error)}; expected a Markdown file") from error


def measure(options: PackOptions, subject: Subject, training: LabelledImages, console: Console) -> Measured:
    """The model's scores and, on the same images, those of the best constant of the split ``training``."""
    dataset, indices, showing = subject.dataset, subject.indices, subject.showing
    protocol = protocol_of(options)
    tasks = tasks_of(options) or measurable_tasks(subject.network, dataset, console)
    asked: dict[str, Any] = {"tasks": tasks, "indices": indices, "showing": showing}
    asked["boundary_protocol"] = protocol
    scores = evaluate(subject.network, dataset, subject.config, device=subject.device, console=console, **asked)
    constant = evaluate(Constant(training), dataset, subject.config, **asked)
    shown_at = subject.config.image_hw or subject.network.input_size
    plain = showing.protocol is None and showing.pad_hw is None
    return Measured(
        scores,
        {task: values for task, values in constant.items() if task in scores},
        options.data,
        getattr(dataset, "layout", "generated rooms"),
        len(indices),
        options.split,
        "shown at {}x{}".format(*shown_at) if plain else f"shown as follows: {showing}",
        dataset.derived,
        flags_of(replace(options, resize=None) if options.resize == subject.network.resize else options),
        str(protocol.on_data(dataset.boundary_tolerance)),
    )


def flags_of(options: PackOptions) -> str:
    """What ``mtlsi evaluate`` needs beyond the data's name, to measure the packed model as it was measured here.

    Folders of one's own are not a reader's: the data's stands as FOLDER, a plugin's is left out.
    """
    words: list[str] = []
    for field in fields(MeasureOptions):
        value, flag = getattr(options, field.name), f"--{field.name.removesuffix('_hw').replace('_', '-')}"
        if field.name in NOT_OF_SCORES or value == field.default:
            continue
        if value is True:
            words.append(flag)
        elif field.name == "root":
            words += [flag, "FOLDER"]
        elif field.name == "plugin":
            for name in value:
                words += [flag, Path(name).name if name.endswith(".py") else name]
        elif field.name == "tasks":
            words += [flag, ",".join(value)]
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return "".join(f" {shlex.quote(word)}" for word in words)


def trained(run: Path, config: RunConfig, best: Kept | None) -> Trained:
    """What the run folder says of its training, and the folder of its data, where it is here, of the images.

    ``best``: what is packed; None: the last weights.
    """
    images, layout, whole = None, config.data.name, showing_by(config.data).resized
    if config.data.name == "scenes":
        images, layout = config.data.num_train, "generated rooms"
        whole = "rendered at {}x{}".format(*(config.data.image_hw or config.data.size_hw))
    else:
        try:
            training = open_dataset(config.data, "train")
            images, layout = len(training), getattr(training, "layout", layout)
        except (MistakeError, OSError):  # trained elsewhere
            pass
    progress = run_folder.progress_of(run, config)
    if best is not None:
        progress = run_folder.Progress(best.step, run_folder.seconds_until(run, best.step))
    return Trained(config, layout, images, whole, progress, best)


def on_disk(weights: Path, num_wide: int) -> str:
    """How large the packed weights are, of which ``num_wide`` matrices hold numbers beyond float16."""
    stored = "matrices in float16" + (f" but {num_wide}, whose numbers it does not reach" if num_wide else "")
    return f"{weights.stat().st_size / 1e6:.1f} MB on disk ({stored})"


def rooms(subject: Subject) -> np.ndarray:
    """What the model predicts for generated rooms, one below the other, (H W 3) uint8."""
    predictor, sheets = Predictor(subject.network, device=subject.device), []
    for index in ROOMS:
        image = render_scene(index, size_hw=ROOM_HW)["image"]
        network = subject.network
        sheets.append(panel(image, predictor(image), network.classes, colours=network.colours))
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in sheets]
    return np.concatenate(padded)
