"""Our presets and other networks, interleaved in one process: operations, time, memory, training step.

    python benchmarks/peers.py hrnet_w18 MTI-Net=DIR/mtinet.py ATRC=DIR/atrc.py [--size 448 576] [--repeats 5]

Each NAME=FILE[:ARGUMENT] is a Python file of yours with a function ``build([ARGUMENT])`` that returns the other network with
random weights; its ``backbone`` is the part that is timed alone. This project contains none of their code. A training step
is forward and backward of two images of half the size, to the mean of everything the network returns. All networks run
with our allocator settings, which help the others too.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtlsi.benchmarking.runs import DTYPES, FIRST_SIZE, forward_of, open_model, random_images
from mtlsi.device import keep_freed_memory
from mtlsi.model.network import Output
from mtlsi.timing import Timing, describe_machine, peak_memory, time_calls

CPU = torch.device("cpu")


def open_network(given: str) -> nn.Module:
    """A preset's name, or NAME=FILE[:ARGUMENT]."""
    if "=" not in given:
        return open_model(given)
    path, _, argument = given.partition("=")[2].partition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(*([argument] if argument else [])).eval()


def prepare(given: str, size_hw: tuple[int, int]) -> Any:
    """A forward pass of a network built for this measurement alone."""
    network = open_network(given)
    keep_freed_memory()
    small = size_hw if "=" in given else FIRST_SIZE  # some networks accept only one size
    forward_of(network, random_images(1, small, CPU), CPU, torch.float32)()
    return forward_of(network, random_images(1, size_hw, CPU), CPU, torch.float32)


def floats(result: Any) -> Iterator[Tensor]:
    """Every floating-point tensor that a network returns, however nested."""
    if isinstance(result, Output):
        result = [result.final, result.coarse]
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from floats(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from floats(value)


def train_step(network: nn.Module, images: Tensor) -> None:
    """Forward and backward."""
    network.zero_grad(set_to_none=True)
    torch.stack([x.float().mean() for x in floats(network(images))]).sum().backward()


def works(call: Any) -> bool:
    """Whether the call runs; if it does not, prints why."""
    try:
        call()
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        print(f"  skipped: {' '.join(str(error).split())[:120]}")
        return False
    return True


def shown(timing: Timing | None) -> str:
    """Milliseconds with their range."""
    if timing is None:
        return "-"
    return f"{1e3 * timing.median_s:.0f} ({1e3 * timing.lowest_s:.0f}-{1e3 * timing.highest_s:.0f})"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="PRESET or NAME=FILE[:ARGUMENT]")
    parser.add_argument("--size", type=int, nargs=2, default=(448, 576))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    size = (given.size[0], given.size[1])
    images = random_images(1, size, CPU)
    names = {text: text.partition("=")[0] for text in given.networks}
    networks = {text: open_network(text) for text in names}
    gflop: dict[tuple[str, str], float] = {}
    calls: dict[tuple[str, str, str], Any] = {}
    for text, network in networks.items():
        for part, module in (("whole", network), ("backbone", cast(nn.Module, network.backbone))):
            for name, dtype in DTYPES.items():
                forward = forward_of(module, images, CPU, dtype)
                print(f"{names[text]}, {part}, {name}")
                if works(forward):
                    calls[text, part, name] = forward
            with FlopCounterMode(display=False) as counter:
                calls[text, part, "float32"]()
            gflop[text, part] = counter.get_total_flops() / 1e9
    taken = time_calls(calls, repeats=given.repeats, warmup=1)

    half = random_images(2, (size[0] // 2, size[1] // 2), CPU)
    steps = {}
    for text, network in networks.items():
        step = partial(train_step, network.train(), half)
        print(f"{names[text]}, training step")
        if works(step):
            steps[text] = step
    trained = time_calls(steps, repeats=given.repeats, warmup=1)

    print(
        "| network | GFLOP (backbone) | float32 ms | backbone alone ms | ratio | bf16 ms | memory MB | training step ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for text in networks:
        whole, alone = taken[text, "whole", "float32"], taken[text, "backbone", "float32"]
        rise = peak_memory(partial(prepare, text, size), CPU)
        cells = (
            names[text],
            f"{gflop[text, 'whole']:.1f} ({gflop[text, 'backbone']:.1f})",
            shown(whole),
            shown(alone),
            f"{whole.median_s / alone.median_s:.2f}",
            shown(taken.get((text, "whole", "bfloat16"))),
            "-" if rise is None else f"{rise / 1e6:.0f}",
            shown(trained.get(text)),
        )
        print("| " + " | ".join(cells) + " |", flush=True)
    print(describe_machine(CPU))


if __name__ == "__main__":
    main()
