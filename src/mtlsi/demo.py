"""The demo: train a small network on generated scenes for some minutes and compare it with two baselines."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.evaluation.report import Scores, score_table, write_scores
from mtlsi.training.loop import train
from mtlsi.training.setup import build_model, set_first_weights

ITERATIONS = 600


def run_demo(out: Path, *, iterations: int | None = None, console: Console | None = None) -> dict[str, Scores]:
    """Train the preset ``tiny`` in ``out`` and compare it with the untrained network and the best constant.

    Prints one table, writes ``demo.json`` into the run folder, and gives the three sets of scores, all on scenes that were
    not trained on. Raises ``MistakeError`` if ``out`` holds a run already.
    """
    console = console or Console()
    if iterations is not None and iterations < 1:
        raise MistakeError(f"--iterations {iterations}; expected at least 1")
    config = demo_config(iterations or ITERATIONS)
    console.print(f"training the preset {config.preset} on generated scenes, {config.train.iterations} steps")
    trained = train(config, out, console=console)
    train_set, val_set = open_dataset(config.data, "train"), open_dataset(config.data, "val")
    torch.manual_seed(config.seed)
    console.print("measuring the untrained network and the best constant on the same unseen scenes")
    fresh = build_model(config, train_set)
    set_first_weights(fresh, config, train_set)
    untrained = evaluate(fresh, val_set, config.data)
    constant = evaluate(Constant(train_set), val_set, config.data)
    others = {"untrained": untrained, "constant": constant}
    console.print(score_table(trained, others=others))
    write_scores(trained, out / "demo.json", data="scenes", images=len(val_set), others=others)
    console.print(f"look at {out / 'samples'} and {out / 'curves.png'}")
    return {"trained": trained, **others}


def demo_config(iterations: int) -> RunConfig:
    """A run of a few minutes on two cores."""
    return RunConfig(
        preset="tiny",
        data=DataConfig(
            name="scenes",
            label_set="nyud",
            num_train=1200,
            in_memory=True,
            num_val=100,
            size_hw=(96, 128),
            image_hw=(96, 128),
            zoom=(0.9, 1.4),
        ),
        train=TrainConfig(
            iterations=iterations,
            batch_size=8,
            lr=4e-3,
            backbone_lr_factor=1.0,
            schedule="cosine",
            warmup=min(50, iterations // 5),
            ema=0.98,
            evaluate_every=150,
            evaluate_images=25,
            checkpoint_every=0,
            log_every=25,
            loss_weights={"semseg": 3, "depth": 4, "normals": 5, "boundary": 20},  # balanced for so short a run
        ),
    )
