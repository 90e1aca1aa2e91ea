"""Two processes take the step that one process takes with twice the micro-batches. This file is also their program."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from forks import start_forks
from mtlsi.config import RunConfig
from mtlsi.run_folder import load_config, save_config
from mtlsi.training.loop import batches_from, optimizer_step
from mtlsi.training.setup import assemble, settle

NAMES = ("uncertainty", "dwa", "famo", "upgrad")


def take_two_steps(config: RunConfig, name: str, out: Path) -> dict[str, Any]:
    """With the balance ``name``: what the first step gave, and the weights of the second."""
    run = assemble(settle(replace(config, train=replace(config.train, balance=name))), out, resume=False)
    run.model.eval()  # on stored batch statistics: of two processes they would be those of both, of a micro-batch its own
    batches = iter(batches_from(0, run))
    figures = dict(optimizer_step(run, batches).gradients)
    gradients = {name: p.grad.cpu().clone() for name, p in run.network.named_parameters() if p.grad is not None}
    weights = {task: float(weight) for task, weight in optimizer_step(run, batches).balance.items()}
    return {"gradients": gradients, "figures": figures, "weights": weights}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_two_processes_go_as_one_with_twice_the_micro_batches(two_steps, tmp_path):
    pytest.importorskip("torchjd", reason="pip install 'mtlsi[balance]'")
    options = replace(two_steps.train, warmup=0, gradients_every=1, dwa_window=1)
    config = replace(two_steps, data=replace(two_steps.data, tasks=("depth", "normals")), train=options)
    save_config(config, tmp_path)
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    twice = replace(config, train=replace(options, accumulate=2))
    expected = {name: take_two_steps(twice, name, tmp_path / f"one-{name}") for name in NAMES}
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    for name, one in expected.items():
        for rank in "01":
            found = torch.load(tmp_path / f"{name}-{rank}.pt")
            torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
            assert found["figures"] == pytest.approx(one["figures"], rel=1e-4), name
            if name != "famo":  # whose weights hold the losses of the process's own images
                assert found["weights"] == pytest.approx(one["weights"], rel=1e-3), name


def in_a_process(folder: Path, rank: int) -> None:
    """What the test asks of each of two processes."""
    for name in NAMES:
        torch.save(take_two_steps(load_config(folder), name, folder / name), folder / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":  # no gradient was computed here, after which torch cannot fork
    folder = Path(sys.argv[1])
    start_forks(partial(in_a_process, folder), 2, folder)
