"""The demo: what the packaged models predict for generated rooms, at once; then a small network, trained in some minutes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.scenes.dataset import label_set_of
from mtlsi.drawing.panels import compare_panel
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.evaluation.one_image import predict_image
from mtlsi.evaluation.report import Scores, score_table, write_scores
from mtlsi.io import replace_array
from mtlsi.model.network import MTLSINet
from mtlsi.run_folder import prepare_run_folder
from mtlsi.streams import write_line
from mtlsi.training.loop import train
from mtlsi.training.setup import build_model, set_first_weights

ITERATIONS = 600
SHOWN = ("scenes", "nyud-efficientnet-lite2")
"""The packaged models that the demo shows: one that knows generated rooms, and one that knows photographs alone."""
SCORES = "demo.json"
NUM_ROOMS = 5
"""Generated rooms that a packaged model is measured on."""


def run_demo(out: Path, *, iterations: int | None = None, console: Console | None = None) -> dict[str, Scores]:
    """Show packaged models, then train the preset ``tiny`` in ``out`` and compare it with two baselines.

    Of each model of ``SHOWN`` ``<model>.png``, predictions above labels, lies in ``out``. Prints tables, writes
    ``demo.json``, and gives the scores of the ``trained`` network, the ``untrained`` one and the best ``constant``, all on
    scenes that were not trained on; nothing is trained, and {} given, with 0 iterations. Raises ``MistakeError`` if ``out``
    holds a run already.
    """
    console = console or Console()
    if iterations is not None and iterations < 0:
        raise MistakeError(f"--iterations {iterations}; expected 0, to train nothing, or more")
    prepare_run_folder(out, resume=False)
    for file in (*(f"{name}.png" for name in SHOWN), SCORES):
        if (out / file).is_dir():
            raise MistakeError(
                f"{out / file} is a folder, where a file is to be written; remove it or give another --out"
            )
    for name in SHOWN:
        show_packaged(name, out, console)
    if iterations == 0:
        return {}
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
    write_scores(trained, out / SCORES, data="scenes", images=len(val_set), others=others)
    write_line(console, f"look at {out / 'samples'} and {out / 'curves.png'}")
    return {"trained": trained, **others}


def show_packaged(name: str, out: Path, console: Console) -> None:
    """Measure the packaged model ``name`` on generated rooms, beside the best constant, and draw one of them."""
    network = MTLSINet.from_pretrained(name)
    config = DataConfig(
        name="scenes",
        label_set=label_set_of(network.classes, network.tasks),
        num_train=NUM_ROOMS,
        num_val=NUM_ROOMS,
        size_hw=network.input_size,
    )
    rooms, train_set = open_dataset(config, "val"), open_dataset(config, "train")
    console.print(f"the packaged model {name} on {len(rooms)} generated rooms that it has never seen")
    scores = evaluate(network, rooms, config)
    console.print(score_table(scores, others={"constant": evaluate(Constant(train_set), rooms, config)}))
    shown = predict_image(network, rooms, config, 0)
    sheet = compare_panel(shown.photo, shown.predicted, shown.truth, network.classes, colours=network.colours)
    replace_array(out / f"{name}.png", Image.fromarray(sheet))
    write_line(console, f"look at {out / name}.png")


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
