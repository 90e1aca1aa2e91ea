"""How many labelled scenes are generated in a second of one core.

python benchmarks/scenes.py [--scenes 60] [--size 120 160]
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time

import torch

from mtlsi.data.scenes.dataset import render_scene
from mtlsi.timing import describe_machine


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160))
    options = parser.parse_args()
    size_hw = (options.size[0], options.size[1])
    render_scene(0, size_hw=size_hw)
    seconds = []
    for index in range(options.scenes):
        start = process_time()
        render_scene(index, size_hw=size_hw, label_set="all")
        seconds.append(process_time() - start)
    print(f"{options.scenes / sum(seconds):.1f} scenes/s; one scene takes {1e3 * median(seconds):.0f} ms (median)")
    print(describe_machine(torch.device("cpu")))


if __name__ == "__main__":
    main()
