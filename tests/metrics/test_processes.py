"""Two real processes that share out uneven batches get the scores of one. This file is also their program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from forks import start_forks
from mtlsi.metrics import MetricSettings, build_metric
from mtlsi.tasks import TASKS

SETTINGS = MetricSettings(num_classes=5, boundary_tolerance=0.05, num_thresholds=9)


def score_share(folder: Path, rank: int) -> None:
    """Into ``folder``, what a process of two finds the scores of all images to be."""
    dist.init_process_group("gloo")
    scores = {}
    for name, task in TASKS.items():
        metric = build_metric(task, SETTINGS)
        for batch in torch.load(folder / f"{name}-{rank}.pt"):
            metric.update(*batch)
        scores[name] = {key: float(value) for key, value in metric.compute().items()}
        if name == "boundary":
            scores |= metric.precision_recall().points()
    (folder / f"scores-{rank}.json").write_text(json.dumps(scores))
    dist.barrier()


def images(name, count, seed):
    draw = torch.Generator().manual_seed(seed)
    shape = (count, 20, 28)
    valid = torch.rand(shape, generator=draw) > 0.2
    task = TASKS[name]
    if task.kind == "direction":
        a, b = (torch.nn.functional.normalize(torch.randn(count, 3, 20, 28, generator=draw), dim=1) for _ in range(2))
        return a, b, valid
    if task.kind == "distance":
        return torch.rand(shape, generator=draw) + 1, torch.rand(shape, generator=draw) + 1, valid
    if task.kind == "classes":
        label = torch.randint(5, shape, generator=draw).to(torch.uint8)
        return torch.randint(5, shape, generator=draw), label, valid
    return torch.rand(shape, generator=draw), (torch.rand(shape, generator=draw) > 0.9).to(torch.uint8), valid


@pytest.mark.skipif(
    not dist.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed, and a system that forks"
)
def test_two_processes_with_uneven_batches_score_as_one(tmp_path):
    alone = {}
    for name, task in TASKS.items():
        shares = [[images(name, 3, 1), images(name, 1, 2)], [images(name, 2, 3)]]
        for rank, share in enumerate(shares):
            torch.save(share, tmp_path / f"{name}-{rank}.pt")
        metric = build_metric(task, SETTINGS)
        for batch in shares[1] + shares[0]:
            metric.update(*batch)
        alone[name] = {key: float(value) for key, value in metric.compute().items()}
        if name == "boundary":
            alone |= metric.precision_recall().points()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        together = json.loads((tmp_path / f"scores-{rank}.json").read_text())
        assert together.keys() == alone.keys()
        for name, scores in alone.items():
            assert together[name] == pytest.approx(scores, rel=1e-12, nan_ok=True), name


if __name__ == "__main__":  # nothing was computed here: a process whose threads have worked may hang after a fork
    folder = Path(sys.argv[1])
    start_forks(partial(score_share, folder), 2, folder)
