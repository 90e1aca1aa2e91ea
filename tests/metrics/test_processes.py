"""Two processes that share out uneven batches get the scores of one. This file is also the program of two real ones."""

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
    for name in TASKS:
        scores |= scores_of(name, metric_of(name, torch.load(folder / f"{name}-{rank}.pt")))
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


def shares_of(name):
    """The batches of each of two processes."""
    return [[images(name, 3, 1), images(name, 1, 2)], [images(name, 2, 3)]]


def metric_of(name, batches):
    metric = build_metric(TASKS[name], SETTINGS)
    for batch in batches:
        metric.update(*batch)
    return metric


def scores_of(name, metric):
    """And, of boundaries, their curve's points by their own names."""
    scores = {name: {key: float(value) for key, value in metric.compute().items()}}
    return scores | (metric.precision_recall().points() if name == "boundary" else {})


def test_what_two_processes_gather_scores_as_one(monkeypatch):
    """As two processes compute, without the second one: what it would send is read from its metric."""
    for name in TASKS:
        shares = shares_of(name)
        alone = scores_of(name, metric_of(name, shares[1] + shares[0]))
        mine, other = (metric_of(name, share) for share in shares)

        def gathered(state, group=None, mine=mine, other=other):  # noqa: ARG001
            (attribute,) = [key for key, value in mine.metric_state.items() if value is state]
            return [state, getattr(other, attribute)]

        with monkeypatch.context() as patched:
            patched.setattr("torchmetrics.metric.gather_all_tensors", gathered)
            mine.distributed_available_fn = lambda: True
            together = scores_of(name, mine)
        assert together.keys() == alone.keys()
        for key, scores in alone.items():
            assert together[key] == pytest.approx(scores, rel=1e-12, nan_ok=True), key


@pytest.mark.slow
@pytest.mark.skipif(
    not dist.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed, and a system that forks"
)
def test_two_processes_with_uneven_batches_score_as_one(tmp_path):
    alone = {}
    for name in TASKS:
        shares = shares_of(name)
        for rank, share in enumerate(shares):
            torch.save(share, tmp_path / f"{name}-{rank}.pt")
        alone |= scores_of(name, metric_of(name, shares[1] + shares[0]))
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
