"""Builds the network of every recipe, counts what it costs at the recipe's size, and trains it two steps.

    python benchmarks/step_recipes.py                              # every recipe; the large ones take minutes and 8 GB
    python benchmarks/step_recipes.py --only nyud_swin_tiny ...    # some of them
    python benchmarks/step_recipes.py --count                      # build and count only: seconds, and next to no memory

Needs no data and no download: weights are random, and the steps see one generated scene at a time, cut to 64x96, with the
tasks and classes of the recipe's data set. Everything else is the recipe's: network, optimizer, losses, what is frozen.
A line per recipe says its parameters; of one image at its crop size the operations (2 x MAC) of a forward, those of a
training step (twice as many again backward, except through a body that is all frozen), and what the step keeps for its
backward pass in float32, without the weights; and the loss of both steps.
Exits with 1 and names the recipes that could not be built, or gave a loss or a gradient that is missing or not finite.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtlsi.benchmarking.runs import DID_NOT_WORK
from mtlsi.config import RunConfig
from mtlsi.data.scenes.dataset import LABEL_SETS
from mtlsi.errors import MistakeError, message_of
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.tasks import TASK_SETS
from mtlsi.train_command import read_run, train_parser
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import assemble, settle

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CROP_HW = (64, 96)
STEPS = 2


@dataclass(frozen=True)
class Cost:
    """What one image at the recipe's crop size costs."""

    parameters: int
    trained: int
    """Of the parameters, those that are not frozen."""
    flops: int
    """Of a forward."""
    step_flops: int
    """Of a forward and a backward pass. torch would count gradients of depthwise convolutions as dense ones."""
    kept_bytes: int
    """What the forward keeps for the backward pass, each storage once, without the weights."""


def read_recipe(path: Path) -> RunConfig:
    """The settings of a recipe, as ``mtlsi train --config`` reads them."""
    config = read_run(train_parser().parse_args(["--config", str(path)]))
    config.check()
    return config


def label_set(config: RunConfig) -> str:
    """The tasks and classes that stand for those of the recipe's data: nyud, pascal or all, those of scenes."""
    return {"scenes": config.data.label_set, "pascal": "pascal"}.get(config.data.name, "nyud")


def network_of(config: RunConfig) -> MTLSINet:
    """The recipe's network with random weights."""
    tasks = LABEL_SETS[label_set(config)]
    classes = {**TASK_SETS["pascal"].classes, **TASK_SETS["nyud" if "depth" in tasks else "pascal"].classes}
    return create_model(config.preset, tasks=tasks, classes=classes, **config.model).eval()


def count(config: RunConfig) -> Cost:
    """The cost of the recipe's network, on the meta device: shapes without arithmetic or memory."""
    with torch.device("meta"):
        network = network_of(config)
        network.backbone.freeze(config.train.freeze_stride, norm=config.train.freeze_norm)
        network.recompute(config.train.recompute)
        images = torch.zeros(1, 3, *config.data.size_hw)
        flops = flops_of(network, images)
        frozen = flops_of(network.backbone.own_maps, images) if network.backbone.body_is_frozen else 0
        kept = kept_bytes(network.train(), images, full_size=config.train.loss_at == "image")
    parameters = list(network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return Cost(sum(p.numel() for p in parameters), trained, flops, 3 * flops - 2 * frozen, kept)


def flops_of(network: Callable[[Tensor], Any], images: Tensor) -> int:
    """Operations of a forward: 2 x MAC of products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


def kept_bytes(network: MTLSINet, images: Tensor, *, full_size: bool) -> int:
    """``Cost.kept_bytes`` of a training forward of ``images``."""
    kept: dict[int, Tensor] = {}  # by storage; the tensors are held, so that no other storage gets the address

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = network(images, full_size=full_size)
        _ = output.coarse  # upsampled only when it is asked for
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def two_steps(config: RunConfig) -> list[float]:
    """The losses of two optimizer steps on generated scenes.

    Raises ``MistakeError`` for a loss that is not finite and for a trained weight without a finite gradient.
    """
    data = replace(
        config.data, name="scenes", label_set=label_set(config), num_train=STEPS, num_val=1, num_workers=0,
        size_hw=CROP_HW, image_hw=CROP_HW,
    )  # fmt: skip
    options = replace(config.train, iterations=STEPS, batch_size=1, precision="float32")
    config = replace(config, backbone_weights="none", data=data, train=options)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(settle(config), Path(folder) / "run", resume=False)
        run.model.train()
        batches = iter(batches_from(0, run))
        losses = [float(optimizer_step(run, batches).mean_losses()["loss"]) for _ in range(STEPS)]
    if not all(map(math.isfinite, losses)):
        raise MistakeError(f"losses {losses}; expected finite ones")
    for name, parameter in run.network.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise MistakeError(f"no finite gradient reaches {name}")
    return losses


def line_of(path: Path, *, steps: bool) -> str:
    """What there is to say about the recipe in ``path``."""
    config = read_recipe(path)
    cost, start = count(config), time.perf_counter()
    height, width = config.data.size_hw
    frozen = f" ({cost.trained / 1e6:.2f} M trained)" if cost.trained < cost.parameters else ""
    said = (
        f"{path.stem}: {cost.parameters / 1e6:.2f} M parameters{frozen}; one image of {height}x{width}: "
        f"{cost.flops / 1e9:.1f} GFLOP, {cost.step_flops / 1e9:.1f} a step, {cost.kept_bytes / 1e9:.2f} GB kept"
    )
    if steps:
        losses = ", ".join(f"{loss:.3f}" for loss in two_steps(config))
        said += f"; losses {losses} (finite) in {time.perf_counter() - start:.0f} s"
    return said


def main() -> int:
    """Goes through the recipes; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="names of recipes")
    parser.add_argument("--count", action="store_true", help="build and count, but take no step")
    options = parser.parse_args()
    failed = []
    for name in options.only:
        try:
            print(line_of(RECIPES / f"{name}.yaml", steps=not options.count), flush=True)
        except (MistakeError, *DID_NOT_WORK) as error:
            failed.append(name)
            print(f"{name}: FAILED: {message_of(error)}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
