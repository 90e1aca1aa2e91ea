"""What is logged: lines of valid JSON, and to a tracker figures alone."""

from __future__ import annotations

import json
from io import StringIO
from math import inf, nan
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from mtlsi.config import TrainConfig
from mtlsi.run_folder import Position
from mtlsi.training.log import Log, Step


@pytest.fixture
def logged(tmp_path):
    """A log in ``tmp_path``, and what its tracker gets."""
    sent = []
    accelerator = SimpleNamespace(
        is_main_process=True, num_processes=1, log=lambda values, step: sent.append((step, values))
    )
    options = TrainConfig(iterations=2, log_every=1)
    log = Log(accelerator, tmp_path, options, Console(file=StringIO()), Position())  # type: ignore[arg-type]
    return log, sent


def lines_of(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_tracker_gets_scores_and_nothing_that_is_not_defined(logged, tmp_path):
    log, sent = logged
    scores = {
        "boundary": {"odsF": 70.0, "precision": 60.0, "recall": 80.0},
        "semseg": {"mIoU": 30.0, "IoU/wall": 60.0, "IoU/lamp": nan},
        "depth": {"RMSE": inf, "eigen/RMSE": 0.5},
    }
    log.validation(2, scores, 1.5, 3)
    kept = {
        "val/boundary/odsF": 70.0,
        "val/boundary/precision": 60.0,
        "val/boundary/recall": 80.0,
        "val/semseg/mIoU": 30.0,
        "val/semseg/IoU/wall": 60.0,
        "val/depth/eigen/RMSE": 0.5,
        "evaluation_images": 3,
        "evaluation_s": 1.5,
    }
    assert sent == [(2, kept)]
    assert lines_of(tmp_path) == [{"step": 2, **kept, "val/semseg/IoU/lamp": None, "val/depth/RMSE": None}]


def test_a_gradient_without_a_length_is_null(logged, tmp_path):
    log, sent = logged
    log.step(1, Step([{"loss": torch.tensor(2.0), "depth": torch.tensor(1.0)}], torch.tensor(inf)), 1e-3)
    (line,) = lines_of(tmp_path)
    assert line["grad_norm"] is None
    assert (line["loss"], line["loss/depth"]) == (2.0, 1.0)
    ((step, values),) = sent
    assert step == 1
    assert values == {name: value for name, value in line.items() if name not in ("step", "grad_norm")}
