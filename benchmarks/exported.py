"""Exported models beside the one they come from: scores on labelled images, time of one image, size of the file.

    python benchmarks/exported.py nyud a.onnx b.onnx --data nyud --root DIR [--limit 48] [--threads 1] [--repeats 15]

Every model sees an image as ``mtlsi predict`` shows it, at its own size, and is scored at that size, boundaries by the
default protocol. Times are those of whole predictions, from pixels to arrays, models in turn; the shortest counts, for
other work on the machine only adds. CPU time beside wall time says how busy the machine was. Before each the machine rests:
onnxruntime's threads look out for work for a while after a prediction, and take the time of whatever is next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mtlsi import MTLSINet, Predictor, kinds
from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages, open_dataset, spread
from mtlsi.metrics import MetricSettings, build_metric
from mtlsi.prediction.graph import GraphPredictor
from mtlsi.tasks import TASKS, num_channels
from mtlsi.timing import describe_machine

REST_S = 0.2
Model = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a packaged model, a run or model folder")
    parser.add_argument("exported", nargs="+", type=Path)
    parser.add_argument("--data", default="nyud")
    parser.add_argument("--root", required=True)
    parser.add_argument("--limit", type=int, default=48, help="images, spread over the validation split; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = MTLSINet.from_pretrained(options.model)
    models: dict[str, Model] = {options.model: Predictor(network, device="cpu")}
    models |= {path.name: GraphPredictor(path, num_threads=options.threads) for path in options.exported}
    dataset = open_dataset(DataConfig(name=options.data, root=options.root), "val")
    indices = range(len(dataset)) if not options.limit else spread(options.limit, len(dataset))
    tasks = [task for task in network.tasks if task in dataset.tasks]
    scores = {name: score(model, dataset, tasks, indices) for name, model in models.items()}
    times = time_in_turn(models, pixels_of(dataset[indices[0]]), options.repeats)
    console = Console()
    console.print(describe_machine(torch.device("cpu")), f"{options.threads} threads, {len(indices)} images")
    table = Table("model", *(f"{task} {TASKS[task].score}" for task in tasks), "wall ms", "CPU ms", "MB")
    for name in models:
        size = next((f"{path.stat().st_size / 2**20:.1f}" for path in options.exported if path.name == name), "")
        figures = [f"{scores[name][task]:.3f}" for task in tasks]
        table.add_row(name, *figures, *(f"{1e3 * seconds:.0f}" for seconds in times[name]), size)
    console.print(table)


def pixels_of(sample: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The image of a sample, (H W 3) uint8."""
    return np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())


def score(model: Model, dataset: LabelledImages, tasks: list[str], indices: list[int] | range) -> dict[str, float]:
    """The headline score of every task."""
    meters = {}
    for task in tasks:
        classes = num_channels(task, dataset.classes) if TASKS[task].kind == "classes" else None
        meters[task] = build_metric(
            TASKS[task], MetricSettings(num_classes=classes, boundary_tolerance=dataset.boundary_tolerance)
        )
    for index in indices:
        sample = dataset[index]
        predicted = model(pixels_of(sample))
        for task, meter in meters.items():
            found, label = torch.from_numpy(predicted[task])[None], sample[task][None]
            found = found.permute(0, 3, 1, 2) if found.dim() == 4 else found
            meter.update(found, label, kinds.of(task).valid(label))
    return {task: float(meter.compute()[TASKS[task].score]) for task, meter in meters.items()}


def time_in_turn(models: Mapping[str, Model], pixels: np.ndarray, repeats: int) -> dict[str, tuple[float, float]]:
    """The shortest wall and CPU times of one prediction, in seconds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(1 + repeats):
        for name, model in models.items():
            time.sleep(REST_S)
            wall, cpu = time.perf_counter(), time.process_time()
            model(pixels)
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(min(column) for column in zip(*runs[1:], strict=True)) for name, runs in taken.items()}


if __name__ == "__main__":
    main()
