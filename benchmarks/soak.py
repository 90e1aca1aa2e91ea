"""A long training and many predictions, while memory, open files and threads are watched.

    python benchmarks/soak.py --json soak.json                        # 20,000 steps and 10,000 predictions
    python benchmarks/soak.py --part train --steps 2000

Each part runs in a process of its own. The training is one of ``tiny`` on small scenes that its loader process keeps in
memory, with checkpoints, evaluations and lines of metrics on the way. The predictions are those of one ``Predictor`` on
photos of many sizes, in turn from one thread and from eight at once; each must be, bit for bit, what the photo gave alone.

Memory is what the process and its loader processes alone hold (USS, from /proc: Linux). With the pages that they share, by
their shares (PSS), it is kept too, but it also rises when another program ends that has the same libraries open, and RSS, of
the process without its loaders. What the process itself has asked the C library for and not given back (glibc's
``mallinfo2``) is kept as well: where that stays and memory rises, the allocator holds what nobody uses. A line is fitted to
the second half. Memory is flat where the upper end of the slope's 95 % interval, over 40,000 steps or calls, the length of
the paper's trainings, comes to less than 32 MB. Samples of memory hang together, so their number is reduced by their
correlation from one to the next before the interval is computed.
Open files and threads are constant where the second half never has more than the first had at some time.
Exit code 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

LONG_RUN = 40_000
MOST_GROWTH = 32 * 2**20
"""Bytes that a long run may grow by."""
NUM_SAMPLES = 400
"""Of memory, in each part."""
CHECKPOINTS = 20
"""Of the training; as many evaluations."""
THREADS = 8
MEMORY = ("pss", "uss", "rss", "in_use")
"""The kinds of memory to which a line is fitted."""


@dataclass
class Watched:
    """What was seen of a part, sample by sample."""

    count: list[int] = field(default_factory=list)
    """Steps or calls until then."""
    pss: list[int] = field(default_factory=list)
    """Bytes."""
    uss: list[int] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    """Bytes; of the process itself, without its loaders."""
    in_use: list[int] = field(default_factory=list)
    """Bytes that the process itself has from the C library."""
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self, count: int) -> None:
        """Adds a sample: this process and all below it."""
        processes = _family(os.getpid())
        maps = [_rollup(process) for process in processes]
        self.count.append(count)
        self.pss.append(sum(values.get("Pss", 0) for values in maps))
        self.uss.append(sum(values.get("Private_Clean", 0) + values.get("Private_Dirty", 0) for values in maps))
        self.rss.append(maps[0].get("Rss", 0))
        self.in_use.append(_in_use())
        self.files.append(sum(len(_listed(f"/proc/{process}/fd")) for process in processes))
        self.threads.append(sum(len(_listed(f"/proc/{process}/task")) for process in processes))


def _family(process: int) -> list[int]:
    found = [process]
    for task in _listed(f"/proc/{process}/task"):
        try:
            children = Path(f"/proc/{process}/task/{task}/children").read_text().split()
        except OSError:  # ended meanwhile
            continue
        found += [other for child in children for other in _family(int(child))]
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _rollup(process: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}


class _MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``: the sums over all of its arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _in_use() -> int:
    """Bytes of this process's allocations; 0 with a C library that does not tell."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _MallInfo
    told = ask()
    return told.uordblks + told.hblkhd


# ---- the fit


@dataclass(frozen=True)
class Slope:
    """Bytes per step or call, with the half width of the 95 % interval."""

    value: float
    margin: float


def slope_of(across: Sequence[float], up: Sequence[float]) -> Slope:
    """Least squares; the interval for as many samples as the correlation of neighbours leaves independent.

    With r the correlation of each residual with the next, n samples count as n (1 - r) / (1 + r).
    """
    fitted = statistics.linear_regression(across, up)
    rest = [y - fitted.intercept - fitted.slope * x for x, y in zip(across, up, strict=True)]
    squares = sum(value * value for value in rest)
    if not squares:
        return Slope(fitted.slope, 0.0)
    together = max(0.0, sum(a * b for a, b in pairwise(rest)) / squares)
    independent = max(3.0, len(rest) * (1 - together) / (1 + together))
    mean = statistics.fmean(across)
    spread = sum((x - mean) ** 2 for x in across) * independent / len(rest)
    error = math.sqrt(squares / len(rest) * independent / (independent - 2) / spread)
    return Slope(fitted.slope, _quantile(independent - 2) * error)


def _quantile(freedom: float) -> float:
    """Of Student's t, at 97.5 %."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def verdict_of(watched: Watched) -> dict[str, Any]:
    """The slopes of the second half, and whether memory is flat and files and threads are constant."""
    half = len(watched.count) // 2
    slopes = {name: slope_of(watched.count[half:], getattr(watched, name)[half:]) for name in MEMORY}
    growth = LONG_RUN * (slopes["uss"].value + slopes["uss"].margin)
    few = {
        name: max(getattr(watched, name)[half:]) <= max(getattr(watched, name)[:half]) for name in ("files", "threads")
    }
    return {
        "slope_bytes": {name: [slope.value, slope.margin] for name, slope in slopes.items()},
        "flat": growth < MOST_GROWTH,
        "constant": few,
        "uss_mb": {"half": watched.uss[half] / 2**20, "end": watched.uss[-1] / 2**20, "most": max(watched.uss) / 2**20},
        "files": [watched.files[half], watched.files[-1], max(watched.files)],
        "threads": [watched.threads[half], watched.threads[-1], max(watched.threads)],
    }


# ---- what is watched


class TimeIsUpError(Exception):
    """Ends a part before its last step."""


class Watcher:
    """A callback of the training: a sample every so many steps; raises where the time is up."""

    def __init__(self, every: int, watched: Watched, until: float):
        self.every, self.watched, self.until = every, watched, until

    def on_step(self, step: int, _losses: dict[str, Any], _run: Any) -> None:
        """Looks where it is time."""
        if step % self.every == 0:
            self.watched.look(step)
            if len(self.watched.count) % 20 == 0:
                _say(f"step {step}: {self.watched.uss[-1] / 2**20:.1f} MB")
            if time.monotonic() > self.until:
                raise TimeIsUpError


def soak_training(steps: int, seconds: float) -> dict[str, Any]:
    """Trains; what was seen and the verdict."""
    import torch
    from rich.console import Console

    from mtlsi.config import DataConfig, RunConfig, TrainConfig
    from mtlsi.training.loop import train

    torch.set_num_threads(1)
    data = DataConfig(
        num_train=64, num_val=2, size_hw=(64, 64), image_hw=(64, 64), in_memory=True, tasks=("semseg", "depth")
    )
    options = TrainConfig(
        iterations=steps, batch_size=1, warmup=10, precision="float32", checkpoint_every=max(1, steps // CHECKPOINTS),
        evaluate_every=max(1, steps // CHECKPOINTS), evaluate_images=2, log_every=20,
    )  # fmt: skip
    watched, begun = Watched(), time.monotonic()
    watcher = Watcher(max(1, steps // NUM_SAMPLES), watched, begun + seconds)
    with tempfile.TemporaryDirectory() as folder, suppress(TimeIsUpError):
        train(
            RunConfig(data=data, train=options), Path(folder) / "run", console=Console(quiet=True), callbacks=[watcher]
        )
    done = watched.count[-1] if watched.count else 0
    rounds = done // options.checkpoint_every
    return _result(watched, begun, steps=done, checkpoints=rounds, evaluations=rounds)


def soak_predictions(calls: int, seconds: float) -> dict[str, Any]:
    """Predicts; what was seen and the verdict. Half of the calls come from eight threads at once."""
    import numpy as np
    import torch

    from mtlsi.model.build import create_model
    from mtlsi.prediction.predictor import Predictor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    predictor = Predictor(create_model("tiny", dataset="nyud"), device="cpu", working_size=(64, 96))
    chosen = random.Random(0)
    sizes = [(chosen.randrange(20, 400), chosen.randrange(20, 400)) for _ in range(40)]
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    alone = [_digest(predictor(photo)) for photo in photos]
    watched, begun, other = Watched(), time.monotonic(), 0
    every = max(THREADS, calls // NUM_SAMPLES)
    lock = threading.Lock()

    def call(index: int) -> None:
        nonlocal other
        if _digest(predictor(photos[index])) != alone[index]:
            with lock:
                other += 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: time.sleep(0.05), range(THREADS)))  # all eight there before the first sample
        for begin in range(0, calls, every):
            some = [chosen.randrange(len(photos)) for _ in range(min(every, calls - begin))]
            if begin // every % 2:
                list(pool.map(call, some))
            else:
                for index in some:
                    call(index)
            watched.look(begin + len(some))
            if time.monotonic() > begun + seconds:
                break
            if len(watched.count) % 20 == 0:
                _say(f"prediction {watched.count[-1]}: {watched.uss[-1] / 2**20:.1f} MB")
    return _result(watched, begun, calls=watched.count[-1], threads_at_once=THREADS, differing_from_alone=other)


def _digest(prediction: dict[str, Any]) -> bytes:
    digest = blake2b(digest_size=16)
    for task, array in prediction.items():
        digest.update(f"{task} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()


def _result(watched: Watched, begun: float, **facts: Any) -> dict[str, Any]:
    return {**facts, "seconds": time.monotonic() - begun, **verdict_of(watched), "samples": asdict(watched)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- the command line


def line_of(name: str, result: dict[str, Any]) -> str:
    """The summary of a part."""
    (value, margin), (used, about) = (result["slope_bytes"][kind] for kind in ("uss", "in_use"))
    memory, constant = result["uss_mb"], result["constant"]
    number = result.get("steps", result.get("calls"))
    different = f", {result['differing_from_alone']} unlike alone" if "differing_from_alone" in result else ""
    flat, files, threads = ("flat" if result["flat"] else "GROWS", *(
        "constant" if constant[what] else "MORE" for what in ("files", "threads")
    ))  # fmt: skip
    return (
        f"{name}: {number:,} in {result['seconds'] / 60:.0f} min, {memory['half']:.1f} MB at half, {memory['end']:.1f} MB "
        f"at the end, {value:+.1f} +- {margin:.1f} bytes each ({flat}), in use {used:+.1f} +- {about:.1f}; open files "
        f"{result['files'][1]} of at most {result['files'][2]} ({files}), threads {result['threads'][1]} of at most "
        f"{result['threads'][2]} ({threads}){different}"
    )


def in_a_process(part: str, number: int, minutes: float) -> dict[str, Any]:
    """What a part gives in a process of its own, whose memory holds nothing of the other's."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "soak.json"
        command = [sys.executable, __file__, "--part", part, "--steps", str(number), "--predictions", str(number)]
        command += ["--minutes", str(minutes), "--json", str(told)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        return json.loads(told.read_text())[part]


def main() -> int:
    """The exit code: 1 where something grows or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--part", choices=("train", "predict"), help="that one alone")
    parser.add_argument("--json", type=Path, help="where everything that was seen goes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the most that each part may take")
    options = parser.parse_args()
    parts: dict[str, tuple[Callable[[int, float], dict[str, Any]], int]] = {
        "train": (soak_training, options.steps),
        "predict": (soak_predictions, options.predictions),
    }
    results = {}
    if options.part:
        soak, number = parts[options.part]
        results[options.part] = soak(number, 60 * options.minutes)
    else:
        results = {name: in_a_process(name, number, options.minutes) for name, (_, number) in parts.items()}
    for name, result in results.items():
        print(line_of(name, result), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results))
    good = all(
        result["flat"] and all(result["constant"].values()) and not result.get("differing_from_alone")
        for result in results.values()
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
