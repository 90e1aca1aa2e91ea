"""The network against the plain form of its equations (``tests/plain_network.py``), interleaved in one run.

    python benchmarks/plain.py [--model hrnet_w18] [--change '{"decoder_stride": 4}'] [--size 448 576] [--repeats 5]

Forward of one image, and a training step (forward, losses, backward) on two images of half the size.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mtlsi.benchmarking.benchmark import read_changes
from mtlsi.benchmarking.runs import open_model, random_images, random_labels
from mtlsi.losses import MultiTaskLoss
from mtlsi.timing import describe_machine, time_calls
from plain_network import plain_forward


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hrnet_w18")
    parser.add_argument("--change", default="{}")
    parser.add_argument("--size", type=int, nargs=2, default=(448, 576))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cpu, size = torch.device("cpu"), tuple(given.size)
    model = open_model(given.model, changes=read_changes(given.change))
    images = random_images(1, size, cpu)

    def no_grad(forward: Any) -> Any:
        with torch.inference_mode():
            return forward(images)

    forwards = {"ours": lambda: no_grad(model), "plain": lambda: no_grad(lambda x: plain_forward(model, x))}
    ours, (plain, _) = forwards["ours"]().final, forwards["plain"]()
    error = max(float((ours[task] - plain[task]).norm() / plain[task].norm()) for task in plain)
    show("forward", time_calls(forwards, repeats=given.repeats, warmup=1))
    print(f"largest difference between the two, relative to the prediction's norm: {error:.1e}")

    model.train()
    half = (size[0] // 2, size[1] // 2)
    images, labels = random_images(2, half, cpu), random_labels(model, 2, half, cpu)
    criterion = MultiTaskLoss(model.tasks)

    def step(final: Any, coarse: Any) -> None:
        model.zero_grad(set_to_none=True)
        criterion(final, coarse, labels)[0].backward()

    def our_step() -> None:
        output = model(images)
        step(output.final, output.coarse)

    steps = {"ours": our_step, "plain": lambda: step(*plain_forward(model, images))}
    show("training step", time_calls(steps, repeats=given.repeats, warmup=1))
    print(describe_machine(cpu))


def show(what: str, taken: Any) -> None:
    """Prints both times and their ratio."""
    times = ", ".join(
        f"{name} {1e3 * t.median_s:.0f} ms ({1e3 * t.lowest_s:.0f}-{1e3 * t.highest_s:.0f})"
        for name, t in taken.items()
    )
    print(f"{what}: {times}; plain / ours {taken['plain'].median_s / taken['ours'].median_s:.2f}")


if __name__ == "__main__":
    main()
