"""Several runs of a study at once, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file

from mtlsi import study
from mtlsi.cli import main
from mtlsi.errors import MistakeError

RECIPE = {
    "preset": "tiny",
    "model": {"decoder": "heads_only"},
    "data": {
        "tasks": ["depth"], "num_train": 4, "num_val": 1, "size_hw": [64, 64], "image_hw": [64, 64], "num_workers": 0,
    },
    "train": {
        "iterations": 2, "batch_size": 2, "warmup": 1, "precision": "float32", "checkpoint_every": 0, "evaluate_every": 0,
    },
}  # fmt: skip
VARIANTS = {"plain": {}, "small": {"train.lr": 1e-4}, "wild": {"train.lr": 1e30, "train.clip_norm": 1e30}}
PATIENCE_S = 120


def write(folder: Path, **content) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"recipe": RECIPE, **content}, sort_keys=False))
    return file


@pytest.mark.slow
def test_runs_at_once_are_those_in_turn_and_one_that_fails_is_named(tmp_path):
    file, said = write(tmp_path, variants=VARIANTS), StringIO()
    settings = {
        "train": {"weight_decay": 0.0},
        "train.loss_weights.depth": 2.0,
        "data.zoom": [0.5, 2],
        "data.tasks": ["depth", "normals"],
    }
    outcome = study(
        file, tmp_path / "at_once", settings=settings, jobs=3, time=False, console=Console(file=said, width=200)
    )
    assert sorted(outcome.finished) == ["plain/0", "small/0"]
    assert list(outcome.failed) == ["wild/0"]
    assert "lower --train.lr" in outcome.failed["wild/0"]
    told = said.getvalue()
    assert "small/0: training, 2 at once" in told
    assert "wild/0: failed: " in told
    assert "(3 of 3)" in told
    assert "| wild | 0 of 1, incomplete | - |" in (tmp_path / "at_once/table.md").read_text()
    study(file, tmp_path / "in_turn", only=["plain"], settings=settings, console=Console(file=StringIO()))
    ours, theirs = (load_file(tmp_path / way / "plain/0/model.safetensors") for way in ("at_once", "in_turn"))
    assert all((ours[name] == tensor).all() for name, tensor in theirs.items())
    quiet = Console(file=StringIO())
    again = study(file, tmp_path / "at_once", settings=settings, only=["plain", "small"], jobs=2, console=quiet)
    assert sorted(again.finished) == ["plain/0", "small/0"]  # at once: no process is started


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # with which rich writes to a pipe as to a terminal
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit('in the place of the library')")
    (tmp_path / "out/plain").mkdir(parents=True)
    (tmp_path / "out/plain/0.lock").write_text(json.dumps({"pid": 7, "host": "another-machine", "since": 0}))
    file = write(tmp_path, variants={"plain": {}})
    outcome = study(file, tmp_path / "out", only=["plain"], jobs=2, console=Console(file=StringIO()))
    assert "process 7 on another-machine" in outcome.held["plain/0"]
    assert (outcome.finished, outcome.failed) == ([], {})


def test_requests_that_cannot_be_met_are_one_line(tmp_path, capsys):
    file = write(tmp_path, variants={"plain": {}})
    for words, told in (
        (["--jobs", "0"], "--jobs 0; expected"),
        (["--jobs", "2", "--table"], "one of --jobs"),
        (["--only", "plain", "--sheet", "a"], "one of --only, which makes no table and draws nothing, and --sheet"),
        (["--only", "plain", "--pdf"], "one of --only"),
        (["--list", "--table"], "one of --list, which only lists commands"),
        (["--out", str(file)], "study.yaml is a file; give the study's folder"),
        (["--out", str(file / "out")], "study.yaml/out; give a folder you may write to with --out"),
        (["--list", "--seeds", str(2**64)], f"seeds: {2**64}; expected 0 to {2**64 - 1}"),
    ):
        assert main(["study", str(file), "--out", str(tmp_path / "out"), *words]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(MistakeError, match="jobs -1; expected"):
        study(file, tmp_path / "out", jobs=-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["table.csv", "baseline.json", "num_tokens.pdf"])
def test_a_folder_in_the_place_of_a_result_is_told_before_anything_is_trained(tmp_path, capsys, name):
    file = write(tmp_path, variants={"plain": {}}, plots=[{"x": "num_tokens"}])
    (tmp_path / "out" / name).mkdir(parents=True)
    for words in ([], ["--table"]):
        assert main(["study", str(file), "--out", str(tmp_path / "out"), "--pdf", *words]) == 2
        assert f"{name} is a folder, where the study writes a file; move it or give" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_saves_every_run_and_the_same_command_goes_on(tmp_path):
    file = write(tmp_path, variants={"plain": {}, "small": {"train.lr": 1e-4}})
    endless = ["--train.iterations", "100000", "--train.checkpoint_every", "5"]
    command = [sys.executable, "-m", "mtlsi.cli", "study", str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    with subprocess.Popen([*command, *endless], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        states = [tmp_path / f"out/{name}/0/state" for name in ("plain", "small")]
        end = time.monotonic() + PATIENCE_S
        while not all(state.is_dir() and list(state.glob("step_*")) for state in states):
            assert time.monotonic() < end, "no run has saved its state"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, said
    assert said.rstrip().endswith("stopping: 2 runs save their state\nmtlsi: stopped; the same command goes on")
    for name in ("plain", "small"):
        assert not (tmp_path / f"out/{name}/0.lock").exists()  # its process has ended in good order


@pytest.mark.slow
def test_runs_whose_times_are_compared_come_last_by_themselves(tmp_path):
    variants = {"plain": {}, "small": {"train.lr": 1e-4}, "as_long": {"iterations_by_time_of": "plain"}}
    said = StringIO()
    file = write(tmp_path, variants=variants)
    outcome = study(file, tmp_path / "out", jobs=2, time=False, console=Console(file=said, width=200))
    assert outcome.finished == ["small/0", "plain/0", "as_long/0"]
    lines = said.getvalue().splitlines()
    assert next(line for line in lines if ": done" in line).startswith("small/0: done (1 of 3")
    assert any(line.startswith("as_long/0: done (3 of 3") for line in lines)
