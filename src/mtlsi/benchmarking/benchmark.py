"""Measure what a network costs on this machine: parameters, operations, time, memory, and how they grow with the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mtlsi.benchmarking.runs import DTYPES, MODES, Measured, open_model
from mtlsi.benchmarking.tables import print_report
from mtlsi.config import check_size
from mtlsi.device import find_device
from mtlsi.drawing.plots import plot_scaling
from mtlsi.errors import MistakeError
from mtlsi.io import check_picture, check_writable, replace_text
from mtlsi.model.pretrained import note_on_name
from mtlsi.options.measuring import BenchmarkOptions
from mtlsi.plugins import settle_plugins
from mtlsi.sizes import PRESETS
from mtlsi.streams import write_line
from mtlsi.tasks import check_tasks
from mtlsi.timing import describe_machine


def benchmark(request: BenchmarkOptions, *, console: Console | None = None) -> dict[str, Any]:
    """Everything measured, as it is written to ``json_path``; tables go to the console.

    One image at a time where nothing else is said; parts, memory and growth are those of the eager mode. A mode that
    fails on this machine is reported under ``failed`` and the rest goes on. Raises ``MistakeError`` for a request that
    cannot be met.
    """
    console = console or Console()
    check(request)
    device = find_device(request.device)
    if "cudagraphs" in request.modes and device.type != "cuda":
        raise MistakeError(f"mode cudagraphs on {device.type}; expected a CUDA device: leave it out")
    model = open_model(request.model, request.dataset, request.changes).to(device)
    if (note := note_on_name(request.model)) is not None:
        write_line(console, note)
    size_hw = request.size_hw or model.input_size
    tasks = None if request.tasks is None else check_tasks(request.tasks, among=model.tasks)
    run = Measured(
        model,
        request.model,
        request.dataset,
        tasks,
        request.dtype,
        device,
        request.repeats,
        request.changes,
        plugins=settle_plugins(request.plugin),
    )
    report: dict[str, Any] = {
        "model": request.model,
        "changes": dict(request.changes),
        "tasks": list(tasks or model.tasks),
        "size_hw": list(size_hw),
        "dtype": request.dtype,
        "repeats": request.repeats,
        "machine": describe_machine(device),
        "weights": "random, batch statistics of noise images" if request.model in PRESETS else "trained",
    }
    with console.status("measuring") as status:
        for name, measure in (
            ("rates", run.rates),
            ("parts", lambda: run.parts(size_hw, report["rates"])),
            ("peak_memory_mb", lambda: run.memory_mb(size_hw)),
            ("whole", lambda: run.whole(size_hw, request.modes, request.batches)),
            ("scaling", lambda: run.scaling(request.sizes) if request.sizes else None),
            ("training", lambda: run.training(size_hw) if request.train else None),
        ):
            status.update(f"measuring: {name.replace('_', ' ')}")
            report[name] = measure()
    report |= {"totals": totals(report["parts"]), "failed": run.failed}
    print_report(report, console)
    if request.json_path is not None:
        replace_text(check_writable(request.json_path), json.dumps(report, indent=2) + "\n")
    if request.plot_path is not None:
        draw(report["scaling"], check_writable(request.plot_path))
    return report


def check(request: BenchmarkOptions) -> None:
    """Raises ``MistakeError`` for what cannot be measured, before anything is."""
    if request.dtype not in DTYPES:
        raise MistakeError(f"unknown dtype {request.dtype!r}; expected one of {', '.join(DTYPES)}")
    for mode in request.modes:
        if mode not in MODES:
            raise MistakeError(f"unknown mode {mode!r}; expected some of {', '.join(MODES)}")
    for size in (*(() if request.size_hw is None else (request.size_hw,)), *request.sizes):
        check_size(f"size {size[0]}x{size[1]}", size)
    if request.train and request.tasks is not None:
        raise MistakeError(
            "a step of training is one of all tasks: give --train without --tasks, or --tasks without --train"
        )
    for name, counts in (("batches", request.batches), ("repeats", (request.repeats,))):
        if not counts or min(counts) < 1:
            raise MistakeError(f"{name}: {', '.join(map(str, counts)) or 'none'}; expected 1 or more")
    if request.sizes and len({h * w for h, w in request.sizes}) < 2:
        raise MistakeError("sizes: one number of pixels; expected two sizes or more, to see how the cost grows")
    if request.plot_path is not None and not request.sizes:
        raise MistakeError("a plot of what? give sizes too, such as --sizes 224x288,320x416,448x576")
    if request.plot_path is not None:
        check_picture(request.plot_path)
    for path in (request.json_path, request.plot_path):
        if path is not None:
            check_writable(path)


def totals(parts: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Parameters and operations in all, of the backbone, and of everything else, the decoder."""
    found = {}
    for name in ("parameters", "gflop"):
        total, backbone = sum(part[name] for part in parts), parts[0][name]
        found[name] = {"total": total, "backbone": backbone, "decoder": total - backbone}
    return found


def draw(scaling: dict[str, Any], out_png: Path) -> None:
    """The growth of time and memory, as a picture; ``MistakeError`` where neither could be fitted."""
    rows = scaling["sizes"]
    series = {}
    for name, title in (("decoder_ms", "decoder time (ms)"), ("peak_memory_mb", "peak activation memory (MB)")):
        fit = scaling[f"{name}_fit"]
        if fit is not None:
            series[title] = ([row[name] for row in rows], fit["exponent"], fit["factor"])
    if not series:
        raise MistakeError(f"nothing to draw in {out_png}: the decoder took no time that could be told; repeat more")
    plot_scaling([row["pixels"] for row in rows], series, out_png)
