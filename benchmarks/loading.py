"""How many images per second two loader processes read from a data set, before and after mtlsi data prepare.

    python benchmarks/loading.py ROOT PREPARED [--images 200] [--workers 2]

Both are read once before measuring, so that neither the disk nor labels derived for the first time count; then they take
turns. Whole images with float labels have 7 MB each: sending them between processes takes longer than reading prepared ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter

from torch.utils.data import DataLoader, Dataset, Subset

from mtlsi.data.datasets import open_folder
from mtlsi.data.readers.prepared import Prepared


class Read(Dataset):
    """Reads an image with its labels and returns only its index."""

    def __init__(self, whole: Dataset):
        self.whole = whole

    def __getitem__(self, index: int) -> int:
        self.whole[index]
        return index


def seconds(dataset: Dataset, images: int, workers: int) -> float:
    """Seconds to read the first ``images`` of ``dataset``, not counting the start of the processes."""
    loader = DataLoader(Subset(dataset, range(images)), batch_size=None, num_workers=workers, prefetch_factor=4)
    start = 0.0
    for index, _ in enumerate(loader):
        if index == 0:
            start = perf_counter()
    return perf_counter() - start


def main() -> None:
    """Prints images per second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    original, prepared = open_folder(options.root, "train"), Prepared(options.prepared, "train")
    count = min(options.images, len(original))
    for what, sets in (
        ("read by the workers", {"original": Read(original), "prepared": Read(prepared)}),
        ("and sent to the training process", {"original": original, "prepared": prepared}),
    ):
        times: dict[str, list[float]] = {name: [] for name in sets}
        for turn in range(6):
            for name, dataset in sets.items():
                spent = seconds(dataset, count, options.workers)
                if turn:
                    times[name].append(spent)
        print(what)
        for name, taken in times.items():
            spread = f"{count / max(taken):.0f} to {count / min(taken):.0f}"
            print(f"  {name}: {count / median(taken):.0f} images/s (median of 5; {spread})")
        print(f"  {median(times['original']) / median(times['prepared']):.1f} times as fast")


if __name__ == "__main__":
    main()
