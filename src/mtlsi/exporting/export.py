"""``mtlsi export``: trace, assemble, compare with PyTorch, and only then give the file its name."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mtlsi.config import check_size, split_names
from mtlsi.errors import MistakeError, counted, message_of
from mtlsi.exporting import compare
from mtlsi.io import check_writable
from mtlsi.model.backbone import STRIDES
from mtlsi.model.network import MTLSINet
from mtlsi.options.using import ExportOptions
from mtlsi.prediction.files import check_images
from mtlsi.prediction.images import read_image
from mtlsi.prediction.predictor import shown_to
from mtlsi.prediction.shown import Shown
from mtlsi.prediction.walk import Walk
from mtlsi.run_folder import import_named_plugins
from mtlsi.streams import write_line
from mtlsi.tasks import TASKS, check_tasks

DTYPES = ("float32", "float16", "int8")
FORMATS = ("onnx", "program")
MOST_CALIBRATED = 64
"""Images that are looked at for the scales of 8 bits, spread over those given."""
FEW = 16
"""A person is told of fewer. Choice: the figures in docs/deploy.md are of so many."""


def export(options: ExportOptions, *, console: Console | None = None) -> Path:
    """Write the model as a file for other runtimes; gives its path.

    ONNX: see ``mtlsi.exporting.frame``. Program: see ``mtlsi.exporting.program``. Differences to PyTorch at three sizes are
    printed; in 8 bits on some of the images given, for the scales fit those. Raises ``MistakeError`` for what cannot be
    exported and where a difference is too large; no file is left then.
    """
    console = console or Console()
    check(options)
    import_named_plugins(options.plugin, options.model)
    model = MTLSINet.from_pretrained(options.model).float().cpu()
    tasks = model.tasks if options.tasks is None else check_tasks(split_names(options.tasks), among=model.tasks)
    tasks = tuple(task for task in model.tasks if task in tasks)
    shown = shown_to(model, options.size_hw or model.input_size)
    photos = _chosen(options.images, options.out) if options.images else []
    out = check_writable(options.out)
    part = out.with_name(f".{out.stem}.{uuid.uuid4().hex}{options.out.suffix}")
    try:
        with console.status("tracing the network, which takes a minute or two"):
            if options.format == "program":
                predict = _write_program(model, tasks, part)
            else:
                predict = _write_onnx(options, model, tasks, shown, photos, part)
        _compare(console, model, tasks, shown, predict, options, photos)
        part.replace(out)
    except OSError as error:
        raise MistakeError(f"cannot write {options.out} ({message_of(error)}); give another file") from error
    finally:
        part.unlink(missing_ok=True)
    size = out.stat().st_size / 2**20
    write_line(console, f"{options.out}: {', '.join(tasks)}; {options.dtype}, {size:.1f} MB")
    return options.out


def check(options: ExportOptions) -> None:
    """Raises ``MistakeError`` for what cannot be exported, before anything is loaded."""
    check_writable(options.out)
    for name, value, known in (("dtype", options.dtype, DTYPES), ("format", options.format, FORMATS)):
        if value not in known:
            raise MistakeError(f"--{name} {value}; expected {', '.join(known[:-1])} or {known[-1]}")
    ending = {"onnx": ".onnx", "program": ".pt2"}[options.format]
    if options.out.suffix.lower() != ending:
        raise MistakeError(f"--out {options.out}; expected a name that ends in {ending} for --format {options.format}")
    if options.format == "program" and (options.dtype != "float32" or not options.resize or options.size_hw):
        raise MistakeError("--format program takes no --dtype, --size or --no-resize: leave them out")
    if (options.dtype == "int8") != bool(options.images):
        raise MistakeError("--dtype int8 and --images belong together; expected images like those to be predicted")
    if not options.resize and options.size_hw is not None:
        raise MistakeError("--no-resize takes images of the size that the caller gives them: leave --size out")
    if options.size_hw is not None:
        given = "--size {} {}".format(*options.size_hw)
        if min(options.size_hw) < 32:
            raise MistakeError(f"{given}; expected 32 pixels or more")
        check_size(given, options.size_hw)
    needed = ("onnx", "onnxscript", "onnxruntime") if options.format == "onnx" else ()
    for library in needed:
        if find_spec(library) is None:
            raise MistakeError(f"{library} is not installed, which exporting needs; pip install 'mtlsi[export]'")


def _write_onnx(
    options: ExportOptions,
    model: MTLSINet,
    tasks: tuple[str, ...],
    shown: Shown,
    photos: Sequence[Path],
    path: Path,
) -> compare.Predict:
    import onnx

    from mtlsi.exporting.onnx import check_graph, check_kinds, describe, network_graph, raw_channels, whole_graph
    from mtlsi.prediction.graph import open_session

    check_kinds(tasks)
    resized = shown if options.resize else None
    quantise = None
    if options.dtype == "int8":
        from mtlsi.exporting.int8 import Calibration, in_8_bits

        # the images are read before the network is traced, which takes minutes
        calibration = Calibration(map(read_image, photos), resized)
        quantise = partial(in_8_bits, calibration=calibration, tasks=tasks)
    network = network_graph(model, tasks, torch.float16 if options.dtype == "float16" else torch.float32)
    if quantise is not None:
        network = quantise(network)
    made = whole_graph(network, tasks, raw_channels(model, tasks), resized, model.input_size)
    describe(made, model, tasks, resized, options.dtype)
    check_graph(made)
    onnx.save(made, path)
    session, _ = open_session(path)
    return partial(_run, session, tasks)


def _run(session: Any, tasks: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph gives; ``MistakeError`` where it runs at some sizes only."""
    try:
        return dict(zip(tasks, session.run(list(tasks), {"image": images}), strict=True))
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise MistakeError(
            f"the exported graph does not run for images {images.shape} ({message_of(error, 200)}); nothing was written: "
            "expected a backbone whose shapes follow the image's: of convolutions, Swin or a ViT; export another model"
        ) from error


def _chosen(paths: Sequence[Path], out: Path) -> list[Path]:
    """Some of the images given, spread over them."""
    walk = Walk(paths, out)
    check_images(walk)
    found = [image.path for image in walk.images()]
    step = -(-len(found) // MOST_CALIBRATED)
    return found[::step]


def _write_program(model: MTLSINet, tasks: tuple[str, ...], path: Path) -> compare.Predict:
    from mtlsi.exporting.program import open_program, whole_program

    written = io.BytesIO()
    torch.export.save(whole_program(model, tasks), written)
    path.write_bytes(written.getbuffer())  # torch's own writer ends the process where the disk is full
    loaded = open_program(path)
    return lambda images: {task: x.numpy() for task, x in loaded(torch.from_numpy(images)).items()}


def _compare(
    console: Console,
    model: MTLSINet,
    tasks: tuple[str, ...],
    shown: Shown,
    predict: compare.Predict,
    options: ExportOptions,
    photos: Sequence[Path],
) -> None:
    """Print how far the file's predictions are from PyTorch's; ``MistakeError`` where that is too far."""
    resizes = options.format == "onnx" and options.resize
    multiple = 1 if resizes else {"onnx": STRIDES[0], "program": STRIDES[-1]}[options.format]
    seen = [read_image(photo) for photo in photos[:4]]
    title = f"{options.dtype} against PyTorch, at three sizes" + (", on images given" if seen else "")
    table = Table("task", "mean difference", "largest", "in", title=title)
    worst: dict[str, tuple[float, float]] = dict.fromkeys(tasks, (0.0, 0.0))
    for images in compare.sample_images(shown.working_size, multiple, seen):
        sides = (images.shape[1], images.shape[2])
        shown_hw = compare.shown_size(sides, shown) if resizes else sides
        share = shown.share(sides, model.input_size) if resizes else 1.0
        ours, theirs = predict(images), compare.under_pytorch(model, images, tasks, shown_hw, share)
        for task in tasks:
            found = compare.difference(task, ours[task], theirs[task])
            worst[task] = (max(worst[task][0], found[0]), max(worst[task][1], found[1]))
    for task, (mean, largest) in worst.items():
        table.add_row(task, f"{mean:.2g}", f"{largest:.2g}", compare.UNITS[TASKS[task].kind])
    console.print(table)
    if 0 < len(photos) < FEW:
        write_line(
            console,
            f"the scales of 8 bits come from {counted(len(photos), 'image')}; give {FEW} or more like those to be predicted",
        )
    for task, (mean, _) in worst.items():
        if not mean <= compare.TOLERANCE[options.dtype]:  # not a number, too
            raise MistakeError(
                f"{task}: the exported graph is {mean:.3g} from PyTorch on average, more than "
                f"{compare.TOLERANCE[options.dtype]:g}; nothing was written: try --dtype float32"
            )
