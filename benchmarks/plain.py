"""The network's fast kernels against its reference kernels, interleaved in one run.

    python benchmarks/plain.py [--model hrnet_w18] [--change '{"decoder_stride": 4}'] [--size 448 576] [--repeats 5]

Forward of one image, and a training step (forward, losses, backward) on two images of half the size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mtlsi import kernels
from mtlsi.benchmarking.runs import open_model, random_images, random_labels
from mtlsi.losses import MultiTaskLoss
from mtlsi.timing import describe_machine, time_calls

MODES = ("auto", "cpu", "default", "reference")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hrnet_w18")
    parser.add_argument("--change", default="{}")
    parser.add_argument("--size", type=int, nargs=2, default=(448, 576))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cpu, size = torch.device("cpu"), tuple(given.size)
    model = open_model(given.model, changes=json.loads(given.change))
    images = random_images(1, size, cpu)

    def forward() -> Any:
        with torch.inference_mode():
            return model(images).final

    outputs = {mode: in_mode(mode, forward) for mode in MODES}
    for mode in MODES[:-1]:
        differences = (
            float((outputs[mode][task] - exact).norm() / exact.norm()) for task, exact in outputs["reference"].items()
        )
        print(f"{mode}: largest difference from the reference, over the prediction's norm: {max(differences):.1e}")
    calls = {mode: partial(in_mode, mode, forward) for mode in MODES}
    show("forward", time_calls(calls, repeats=given.repeats, warmup=1))

    model.train()
    half = (size[0] // 2, size[1] // 2)
    images, labels = random_images(2, half, cpu), random_labels(model, 2, half, cpu)
    criterion = MultiTaskLoss(model.tasks)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(images)
        criterion(output.final, output.coarse, labels)[0].backward()

    calls = {mode: partial(in_mode, mode, step) for mode in MODES}
    show("training step", time_calls(calls, repeats=given.repeats, warmup=1))
    print(describe_machine(cpu))


def in_mode(mode: str, call: Callable[[], Any]) -> Any:
    """What the call gives under these kernels."""
    with kernels.use(mode):
        return call()


def show(what: str, taken: Any) -> None:
    """Each mode's time, and the reference's over it."""
    for mode, timing in taken.items():
        ratio = taken["reference"].median_s / timing.median_s
        spread = f"{1e3 * timing.lowest_s:.0f}-{1e3 * timing.highest_s:.0f}"
        print(f"{what}, {mode}: {1e3 * timing.median_s:.0f} ms ({spread}); {ratio:.2f} times as fast as the reference")


if __name__ == "__main__":
    main()
