"""Whole runs: what they leave in their folder, and that a broken one ends as an unbroken one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from mtlsi.cli import main
from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.run_folder import load_config
from mtlsi.tasks import TASKS
from mtlsi.training import loop as train_module
from mtlsi.training.loop import resume, train

NYUD = ("semseg", "depth", "normals", "boundary")
FILES = [
    "config.json",
    "config.yaml",
    "curves.png",
    "metrics.jsonl",
    "model.safetensors",
    "samples",
    "scores.json",
    "state",
]


def quiet():
    return Console(file=StringIO())


def metrics_of(out):
    """The lines of ``metrics.jsonl`` without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "train_s", "evaluation_s")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def same_weights(one, other):
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ---- a whole run


def test_a_run_folder_holds_what_is_promised_and_nothing_else(tiny_run):
    assert sorted(os.listdir(tiny_run.out)) == FILES
    images = sorted((tiny_run.out / "samples").glob("*"))
    assert len(images) == 3
    for path in (*images, tiny_run.out / "curves.png"):
        with Image.open(path) as image:
            assert np.asarray(image).std() > 10, path.name
    assert load_config(tiny_run.out) == tiny_run.config


def test_metrics_have_a_line_for_every_step_and_evaluation(tiny_run):
    lines = metrics_of(tiny_run.out)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val/depth/RMSE" in line] == [2, 4, 6]
    weights = {task: TASKS[task].loss_weight for task in NYUD}
    for line in lines:
        if "loss" in line:
            parts = sum(w * (line[f"loss/{task}"] + line[f"loss/coarse/{task}"]) for task, w in weights.items())
            assert line["loss"] == pytest.approx(parts, rel=1e-4)
    figures = {name for line in lines for name in line if name.startswith("val/boundary/")}
    names = {"odsF", "oisF", "AP", "R50", "precision", "recall", "threshold", "ois_precision", "ois_recall"}
    assert figures == {f"val/boundary/{name}" for name in names}  # a curve is no score
    assert "NaN" not in (tiny_run.out / "metrics.jsonl").read_text()
    rates = [line["lr"] for line in lines if "lr" in line]  # what the next step will use: warm-up over two, then poly
    expected = [1e-3, 1e-3, *(1e-3 * (1 - done / 4) ** 0.9 for done in (1, 2, 3, 4))]
    assert rates == pytest.approx(expected)


def test_the_last_evaluation_can_be_limited(two_steps, tmp_path):
    config = replace(two_steps, data=replace(two_steps.data, num_val=3), train=replace(two_steps.train, final_images=2))
    scores = train(config, tmp_path / "run", console=Console(file=StringIO()))
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["images"] == 2
    model, dataset = MTLSINet.from_pretrained(tmp_path / "run"), open_dataset(config.data, "val")
    assert scores["depth"] == pytest.approx(evaluate(model, dataset, config.data, indices=[0, 1])["depth"], rel=1e-5)


def test_scores_are_those_of_the_saved_model_on_every_validation_image(tiny_run):
    stored = json.loads((tiny_run.out / "scores.json").read_text())
    assert (stored["data"], stored["split"], stored["images"]) == ("scenes", "val", 3)
    model = MTLSINet.from_pretrained(tiny_run.out)
    again = evaluate(model, open_dataset(tiny_run.config.data, "val"), tiny_run.config.data)
    for task, figures in tiny_run.scores.items():
        for name, value in figures.items():
            assert again[task][name] == pytest.approx(value, nan_ok=True), (task, name)
            assert stored["scores"][task][name] == (None if math.isnan(value) else value)
    assert metrics_of(tiny_run.out)[-1]["val/depth/RMSE"] == tiny_run.scores["depth"]["RMSE"]


@torch.no_grad()
def test_the_saved_model_is_the_averaged_one(tiny_run):
    last = tiny_run.out / "state" / "step_000006"
    average, weights = load_file(last / "average.safetensors"), load_file(tiny_run.out / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in average.items())
    trained = load_file(last / "model.safetensors")
    assert not torch.equal(trained["heads.refine.spatial"], weights["heads.refine.spatial"])
    rebuilt = create_model("tiny", input_size=(64, 64))
    rebuilt.load_state_dict(average)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, found = rebuilt.eval()(images).final, MTLSINet.from_pretrained(tiny_run.out)(images).final
    assert all(torch.equal(expected[task], found[task]) for task in NYUD)


def test_a_person_is_told_how_it_goes(tiny_run):
    assert "6/6" in tiny_run.said
    assert "images/s" in tiny_run.said
    assert f"run folder: {tiny_run.out}" in tiny_run.said.replace("\n", "")


def test_a_run_that_starts_from_a_model_says_what_it_takes_over_and_resumes_without_it(tiny_run, two_steps, tmp_path):
    donor, said = tmp_path / "donor", StringIO()
    shutil.copytree(tiny_run.out, donor)
    options = replace(two_steps.train, checkpoint_every=1)
    config = replace(
        two_steps, init=str(donor), data=replace(two_steps.data, tasks=("depth", "boundary")), train=options
    )
    train(config, tmp_path / "run", console=Console(file=said, width=300))
    assert f"taken over from {donor}: depth, boundary: all" in said.getvalue()
    shutil.rmtree(donor)
    (tmp_path / "run" / "scores.json").unlink()  # as if it was cut before it was scored
    assert resume(tmp_path / "run", console=quiet()).keys() == {"depth", "boundary"}


# ---- resuming

KILLED = """
import os, signal, sys
from mtlsi.cli import main
from mtlsi.training import validation

rename = os.replace

def rename_or_die(source, target):
    if str(source).endswith(".step_000004.new"):
        os.kill(os.getpid(), signal.SIGKILL)  # the new checkpoint is written and not yet in place
    rename(source, target)

os.replace = rename_or_die
validation.plot_curves = lambda *_, **__: None
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_killed_at_the_worst_moment_ends_with_the_very_weights_of_an_unbroken_one(tiny_run, tmp_path, capsys):
    out = tmp_path / "run"
    # a run's config.yaml is all that is needed to run it again
    command = ["train", "--config", str(tiny_run.out / "config.yaml"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(os.listdir(out / "state")) == [".step_000004.new", "step_000002"]
    assert not (out / "scores.json").exists()

    assert main(["train", "--resume", str(out)]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert same_weights(out, tiny_run.out)
    assert metrics_of(out) == metrics_of(tiny_run.out)
    assert sorted(os.listdir(out)) == FILES
    assert sorted(os.listdir(out / "state")) == ["step_000004", "step_000006"]
    assert json.loads((out / "scores.json").read_text()) == json.loads((tiny_run.out / "scores.json").read_text())


@pytest.mark.slow
def test_a_run_stopped_between_checkpoints_goes_on_from_the_last_one(tiny_run, tmp_path, monkeypatch):
    def stop(run, batches):
        if run.position.step == 5:
            raise KeyboardInterrupt
        return step(run, batches)

    step = train_module.optimizer_step
    with monkeypatch.context() as patched:
        patched.setattr(train_module, "optimizer_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_run.config, tmp_path / "run", console=quiet())
    assert metrics_of(tmp_path / "run")[-1]["step"] == 5
    position = json.loads((tmp_path / "run/state/step_000004/state.json").read_text())["position"]
    resume(tmp_path / "run", console=quiet())
    # the time of training: rises through the break, on from what the saved state had
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    train_s = [line["train_s"] for line in lines if "train_s" in line]
    assert train_s == sorted(train_s)
    assert train_s[3] == position["seconds"] > 0  # after step 4
    assert same_weights(tmp_path / "run", tiny_run.out)
    assert metrics_of(tmp_path / "run") == metrics_of(tiny_run.out)


def test_a_run_stopped_after_its_last_step_still_gets_its_scores(tiny_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny_run.out, out)
    for name in ("scores.json", "curves.png", "model.safetensors"):  # the last things that a run writes
        (out / name).unlink()
    shutil.rmtree(out / "samples")
    scores = resume(out, console=quiet())
    assert scores["depth"] == tiny_run.scores["depth"]
    assert same_weights(out, tiny_run.out)
    assert sorted(os.listdir(out)) == FILES


def test_a_run_that_has_ended_is_not_resumed(tiny_run):
    with pytest.raises(MistakeError, match="has ended at step 6"):
        resume(tiny_run.out, console=quiet())
    assert sorted(os.listdir(tiny_run.out)) == FILES
