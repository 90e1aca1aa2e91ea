from __future__ import annotations

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch

from mtlsi.model.build import create_model
from mtlsi.model.decoder import start_predictions_at
from mtlsi.model.network import MTLSINet

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install .[export]")

COLOURS = {"semseg": [(6 * i, 255 - i, i) for i in range(40)]}
"""Not the package's own."""


@pytest.fixture(scope="module", autouse=True)
def _shapes_are_not_checked() -> Iterator[None]:
    """Tracing: a check of two sizes would ask of symbols whether they are equal, and hold the graph to the answer.

    For each module anew: set up for the package it was once not in force in modules that came after another package's.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def small() -> Callable[[str], MTLSINet]:
    """Makes a network of a decoder, small, with weights that tell the tasks and the places apart."""

    def make(decoder: str) -> MTLSINet:
        torch.manual_seed(0)
        sizes = {"backbone": "test_efficientnet", "num_tokens": 4, "window": 2}  # tracing takes most of the time
        made = create_model("tiny", dataset="nyud", decoder=decoder, input_size=(96, 128), colours=COLOURS, **sizes)
        return awake(made)

    return make


@pytest.fixture(scope="session")
def tiny(small) -> MTLSINet:
    """Every part of MTLSI-Net."""
    return small("mtlsi")


@torch.no_grad()
def awake(model: MTLSINet) -> MTLSINet:
    """A new network whose parts that begin at zero do something, and whose statistics are those of some images."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.normal_(std=0.1)
        if ".predict." in name:
            parameter.normal_(std=0.3)
    start_predictions_at(model.decoder, "depth", torch.tensor([3.0]))  # metres: differences are relative to them
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 64, 96))
    return model.eval()
