"""What a photo costs: the packaged models, all their tasks, and networks that predict one thing, in turn in one process.

    python benchmarks/photo.py [--size 480 640] [--models nyud nyud-mobilenetv2] [--threads 1] [--repeats 15] [--no-others]

A packaged model is timed through mtlsi.Predictor, from the photo's pixels to finished arrays at its size: resizing,
network, decoding. The others are torchvision's and timm's networks with random weights, which cost what trained ones do:
timed without any reading or decoding, on a photo that is already a float tensor, so that the comparison favours them. The
encoder alone of a ViT-S/14 depth model sees 518x686, the size at which Depth Anything is published for photos of this shape.
CPU time is that of all threads; on a busy machine it says more than the wall clock. Ratios are to the first model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torchvision.models import segmentation

from mtlsi.model.network import MTLSINet
from mtlsi.prediction.predictor import Predictor
from mtlsi.timing import describe_machine

VIT_SIZE = (518, 686)


def packaged(name: str, photo: np.ndarray) -> tuple[str, Callable[[], Any]]:
    """What the model predicts, and a call that predicts it."""
    predictor = Predictor(MTLSINet.from_pretrained(name), device="cpu")
    return ", ".join(predictor.model.tasks), lambda: predictor(photo)


def forward(network: nn.Module, size_hw: tuple[int, int]) -> Callable[[], Any]:
    """A forward pass of one float image."""
    network, image = network.eval(), torch.randn(1, 3, *size_hw)

    def call() -> Any:
        with torch.inference_mode():
            return network(image)

    return call


def others(size_hw: tuple[int, int]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Networks of one task."""
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=VIT_SIZE, dynamic_img_size=False)
    nothing = {"weights": None, "weights_backbone": None}
    return {
        "LRASPP-MobileNetV3-L": ("classes", forward(segmentation.lraspp_mobilenet_v3_large(**nothing), size_hw)),
        "DeepLabV3-MobileNetV3-L": ("classes", forward(segmentation.deeplabv3_mobilenet_v3_large(**nothing), size_hw)),
        "DeepLabV3-ResNet50": ("classes", forward(segmentation.deeplabv3_resnet50(**nothing), size_hw)),
        "ViT-S/14 encoder, 518x686": ("none: the part before a depth head", forward(vit, VIT_SIZE)),
    }


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--models", nargs="+", default=["nyud", "nyud-mobilenetv2"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-others", action="store_true", help="packaged models only")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = (given.size[0], given.size[1])
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    calls = {name: packaged(name, photo) for name in given.models}
    if not given.no_others:
        calls |= others(size)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(given.repeats + 2):
        for name, (_, call) in calls.items():
            wall, cpu = perf_counter(), process_time()
            call()
            if turn >= 2:
                seconds[name].append((process_time() - cpu, perf_counter() - wall))
    print(
        describe_machine(torch.device("cpu")),
        f"{given.threads} thread(s), {given.repeats} rounds, photo {size[0]}x{size[1]}",
    )
    print("| | predicts | CPU time, ms | ratio | wall, ms |\n|---|---|---|---|---|")
    first = median(cpu for cpu, _ in seconds[given.models[0]])
    for name, taken in seconds.items():
        cpu, wall = ([1e3 * pair[i] for pair in taken] for i in (0, 1))
        print(
            f"| {name} | {calls[name][0]} | {median(cpu):.0f} ({min(cpu):.0f}-{max(cpu):.0f}) | "
            f"{median(cpu) / (1e3 * first):.2f} | {median(wall):.0f} |"
        )


if __name__ == "__main__":
    main()
