from __future__ import annotations

import os
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test reaches for the network

import pytest
import torch
from rich.console import Console

from mtlsi.config import DataConfig, RunConfig, TrainConfig

if TYPE_CHECKING:
    from mtlsi.evaluate import Scores

torch.set_num_threads(1)  # one order of summation, here and in the processes that tests start


@dataclass
class Run:
    """A finished training."""

    config: RunConfig
    out: Path
    scores: Scores
    said: str
    """What it printed."""


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """The smallest run that does everything: two epochs, three checkpoints, an evaluation on the way."""
    return RunConfig(
        preset="tiny",
        data=DataConfig(num_train=6, num_val=3, size_hw=(64, 64), picture_hw=(64, 64), num_workers=0),
        train=TrainConfig(
            iterations=6,
            batch_size=2,
            warmup=2,
            ema=0.9,
            precision="float32",
            checkpoint_every=2,
            evaluate_every=2,
            evaluate_pictures=1,
            log_every=1,
        ),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``tiny_config``, trained without a break. Read it, never write into it."""
    from mtlsi.train import train

    out, said = tmp_path_factory.mktemp("tiny") / "run", StringIO()
    scores = train(tiny_config, out, console=Console(file=said, width=200))
    return Run(tiny_config, out, scores, said.getvalue())


@pytest.fixture
def two_steps(tiny_config: RunConfig) -> RunConfig:
    """As short as a training gets."""
    train = replace(tiny_config.train, iterations=2, evaluate_every=0, checkpoint_every=0)
    return replace(tiny_config, data=replace(tiny_config.data, num_val=1), train=train)


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps one precision per process; a test that needs another starts and ends with none."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
