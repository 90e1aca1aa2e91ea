"""Kill a tiny training at random moments, resume it, and compare its last weights with those of an unbroken run.

Each round starts or resumes one run with ``python -m mtlsi train``, waits a random time and sends SIGKILL, in one round of
four SIGTERM or Ctrl-C to the whole process group, as a scheduler or a terminal would. A run that has ended is compared with
the unbroken one, tensor by tensor, bit for bit, and the next run begins. Prints a line per round and a summary; exit code 1
where a run ended otherwise, a signal was answered with another exit code, or a process ended in a traceback.

    python benchmarks/faults.py --kills 30
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = """
preset: tiny
data: {{num_train: 6, num_val: 1, size_hw: [64, 64], image_hw: [64, 64], num_workers: {workers}, tasks: [depth, normals]}}
train: {{iterations: {steps}, batch_size: 2, warmup: 2, ema: 0.9, precision: float32, checkpoint_every: 1, evaluate_every: 3,
        evaluate_images: 1, log_every: 1}}
"""
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
SAID = "said.txt"


@dataclass
class Summary:
    """What became of the rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    in_a_checkpoint: int = 0
    """Kills that left half a checkpoint behind."""
    before_the_first: int = 0
    """Kills of a run that had no checkpoint yet."""
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def start(arguments: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    """The command ``mtlsi train`` in a process group of its own; what it says of faults goes to the file ``said``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "mtlsi", "train", *arguments]
    with said.open("ab") as file:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )


def tensors_of(out: Path) -> dict[str, bytes]:
    """Every weight of the last model and of the last checkpoint, as bytes."""
    from safetensors.torch import load_file

    paths = [out / "model.safetensors", *max((out / "state").glob("step_*")).glob("*.safetensors")]
    return {
        f"{path.name}/{name}": tensor.numpy().tobytes() for path in paths for name, tensor in load_file(path).items()
    }


def metrics_of(out: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "train_s", "evaluation_s")} for line in lines]


def is_held(lock: Path, pid: int) -> bool:
    """Whether the process has its run folder; the lock of a process that was killed lies there until it is taken over."""
    try:
        return json.loads(lock.read_text())["pid"] == pid
    except (OSError, ValueError):
        return False


def wait_to_kill(process: subprocess.Popen[bytes], out: Path, number: int, chosen: random.Random) -> bool:
    """Whether the process lives after a random time from its first sign of work, and then gets the signal."""
    begun, sign = time.monotonic(), out / ".lock"
    while process.poll() is None and not is_held(sign, process.pid) and time.monotonic() - begun < 600:
        time.sleep(0.01)  # imports, which nothing can harm
    if chosen.random() < 0.4:  # in the midst of a checkpoint, where most can go wrong
        while process.poll() is None and not list((out / "state").glob(".step_*.new")):
            time.sleep(0.001)
        time.sleep(chosen.uniform(0, 0.05))
    else:
        time.sleep(chosen.uniform(0, 4))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, number)
    return True


def one_round(config: Path, out: Path, chosen: random.Random, summary: Summary) -> bool:
    """Start or resume the run in ``out`` and kill it; whether it has ended."""
    given = ["--resume", str(out)] if (out / "config.yaml").exists() else ["--config", str(config), "--out", str(out)]
    number = chosen.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT])
    process = start(given, config.with_name(SAID))
    killed = wait_to_kill(process, out, number, chosen)
    process.wait(timeout=600)
    stale = list((out / "state").glob(".step_*")) if (out / "state").is_dir() else []
    had_checkpoint = any((out / "state").glob("step_*"))
    ended = (out / "scores.json").exists()  # the last thing that a run writes
    if killed and process.returncode in (CODES[number], -number if ended else CODES[number]):
        summary.kills[signal.Signals(number).name] += 1
        summary.in_a_checkpoint += bool(stale)
        summary.before_the_first += not had_checkpoint
    elif process.returncode != 0:
        summary.faults.append(
            f"{' '.join(given)} ended with {process.returncode} after {number if killed else 'no signal'}"
        )
    return process.returncode == 0 or ended


def kill_often(folder: Path, kills: int, *, seed: int = 0, steps: int = 6, workers: int = 1, said=print) -> Summary:
    """Rounds in ``folder`` until ``kills`` signals ended a process and the last run is whole."""
    config, chosen, summary = folder / "config.yaml", random.Random(seed), Summary()
    config.write_text(SETTINGS.format(steps=steps, workers=workers))
    unbroken = start(["--config", str(config), "--out", str(folder / "unbroken")], folder / SAID)
    if unbroken.wait(timeout=1200):
        raise SystemExit("the unbroken run failed")
    expected, lines = tensors_of(folder / "unbroken"), metrics_of(folder / "unbroken")
    while not summary.faults:
        out = folder / f"run{summary.runs}"
        while sum(summary.kills.values()) < kills and not summary.faults:
            if one_round(config, out, chosen, summary):
                break
            said(f"{sum(summary.kills.values())}/{kills} {dict(summary.kills)}, {summary.runs} runs ended")
        if not (out / "scores.json").exists():
            given = (
                ["--resume", str(out)]
                if (out / "config.yaml").exists()
                else ["--config", str(config), "--out", str(out)]
            )
            if code := start(given, folder / SAID).wait(timeout=1200):
                summary.faults.append(f"the last resume of {out} ended with {code}")
                break
        if tensors_of(out) != expected:
            summary.faults.append(f"{out} has other weights than the unbroken run")
        if metrics_of(out) != lines:
            summary.faults.append(f"{out} has other metrics than the unbroken run")
        summary.runs += 1
        if sum(summary.kills.values()) >= kills:
            break
    if "Traceback" in (said_all := (folder / SAID).read_text(errors="replace")):
        summary.faults.append(f"a process ended in a traceback: {said_all[-500:]}")
    return summary


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run, each with a checkpoint")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        summary = kill_often(
            Path(folder), options.kills, seed=options.seed, steps=options.steps, workers=options.workers
        )
    print(f"{sum(summary.kills.values())} kills ({dict(summary.kills)}) in {time.monotonic() - begun:.0f} s")
    print(f"{summary.in_a_checkpoint} inside a checkpoint, {summary.before_the_first} before the first one")
    print(f"{summary.runs} runs ended, all compared with the unbroken one: {len(summary.faults)} faults")
    for fault in summary.faults:
        print(fault)
    return 1 if summary.faults else 0


if __name__ == "__main__":
    sys.exit(main())
