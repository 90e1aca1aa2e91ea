"""Whole studies: what they leave in their folder, what they leave out, and what becomes of a run that is cut or fails."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from mtlsi import study
from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import headline, read_single_task
from mtlsi.metrics.delta import delta_m
from mtlsi.run_folder import load_config
from mtlsi.studies.plan import Plot, read_plan
from mtlsi.studies.study import Outcome
from mtlsi.training import loop

RECIPE = {
    "preset": "tiny",
    "data": {
        "tasks": ["depth", "normals"], "num_train": 4, "num_val": 2, "size_hw": [64, 64], "image_hw": [64, 64],
        "num_workers": 0,
    },
    "train": {
        "iterations": 2, "batch_size": 2, "warmup": 1, "ema": 0.5, "precision": "float32", "checkpoint_every": 0,
        "evaluate_every": 0, "log_every": 1,
    },
}  # fmt: skip
HEADS = {"model.decoder": "heads_only"}
VARIANTS = {
    "mtlsi_8": {"model.num_tokens": 8},
    "heads": HEADS,
    "alone_depth": {**HEADS, "data.tasks": "depth"},
    "alone_normals": {**HEADS, "data.tasks": "normals"},
}
SCORES = {"depth": "RMSE", "normals": "mErr"}


@dataclass
class Study:
    """A study that has been run to its end."""

    file: Path
    out: Path
    outcome: Outcome
    said: str


def write(folder: Path, **content) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"recipe": RECIPE, **content}, sort_keys=False))
    return file


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


pytestmark = pytest.mark.usefixtures("undrawn", "timed_briefly")


@pytest.fixture(scope="module")
def timed_briefly():
    """Any time will do: two rounds of it are a median, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mtlsi.studies.figures.TIME_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, undrawn, timed_briefly) -> Study:  # noqa: ARG001
    """Read it, never write into it."""
    folder, said = tmp_path_factory.mktemp("study"), StringIO()
    file = write(folder, title="Two & two", note="A note.", variants=VARIANTS, seeds=[0, 1], baseline="alone_")
    outcome = study(file, folder / "out", console=Console(file=said, width=200))
    return Study(file, folder / "out", outcome, said.getvalue())


def scores_of(out: Path) -> dict:
    return json.loads((out / "scores.json").read_text())["scores"]


def figures(out: Path, variant: str, task: str) -> np.ndarray:
    """The headline score of both seeds, from the run folders."""
    return np.array([scores_of(out / variant / seed)[task][SCORES[task]] for seed in ("0", "1")])


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return ours.keys() == theirs.keys() and all((tensor == theirs[name]).all() for name, tensor in ours.items())


# ---- a whole study


def test_every_run_is_an_ordinary_run_folder(finished):
    names = {f"{variant}/{seed}" for variant in VARIANTS for seed in (0, 1)}
    assert (set(finished.outcome.finished), finished.outcome.failed, finished.outcome.held) == (names, {}, {})
    for name in names:
        config = load_config(finished.out / name)
        assert config.seed == int(name[-1])
        assert {"model.safetensors", "scores.json", "state"} <= set(os.listdir(finished.out / name))
    assert load_config(finished.out / "mtlsi_8/0").model == {"num_tokens": 8}
    assert load_config(finished.out / "alone_depth/1").data.tasks == ("depth",)
    assert {path.name for path in finished.out.iterdir()} == {
        *VARIANTS, "table.md", "table.csv", "table.tex", "table.json", "baseline.json", "gflop.png", "train_minutes.png",
        "num_tokens.png",
    }  # fmt: skip
    assert "8 of 8" in finished.said
    assert "min left" in finished.said


def test_the_tables_are_the_mean_and_spread_of_the_run_folders(finished):
    rows = {row["variant"]: row for row in csv.DictReader(StringIO((finished.out / "table.csv").read_text()))}
    stored = {row["variant"]: row for row in json.loads((finished.out / "table.json").read_text())["variants"]}
    assert list(rows) == list(stored) == list(VARIANTS)
    for variant, tasks in (("mtlsi_8", SCORES), ("heads", SCORES), ("alone_depth", ["depth"])):
        for task in tasks:
            values = figures(finished.out, variant, task)
            mean, spread = values.mean(), values.std(ddof=1)
            assert float(rows[variant][f"{task}/{SCORES[task]}/mean"]) == pytest.approx(mean)
            assert float(rows[variant][f"{task}/{SCORES[task]}/std"]) == pytest.approx(spread)
            assert stored[variant]["by_seed"]["1"][task] == values[1]
            digits = 4 if task == "depth" else 2
            for ending, sign in (("md", "±"), ("tex", r"$\pm$")):
                assert f"{mean:.{digits}f} {sign} {spread:.{digits}f}" in (finished.out / f"table.{ending}").read_text()
        assert rows[variant]["seeds"] == rows[variant]["planned"] == "2"
        on_scenes = {"data": "scenes of nyud (2 images)", "classes": []}
        assert stored[variant]["labels"] == {task: [on_scenes] for task in tasks}
    assert rows["alone_depth"]["normals/mErr/mean"] == ""


def test_the_costs_are_those_of_the_models(finished):
    rows = {row["variant"]: row for row in json.loads((finished.out / "table.json").read_text())["variants"]}
    for variant, row in rows.items():
        sizes = {
            name: x.numel()
            for name, x in load_file(finished.out / variant / "0/model.safetensors").items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }
        backbone = sum(size for name, size in sizes.items() if name.startswith("backbone."))
        assert row["parameters"] == sum(sizes.values())
        assert row["decoder_parameters"] == sum(sizes.values()) - backbone
        assert row["ms"] > 0
        lines = [
            [json.loads(line) for line in (finished.out / variant / seed / "metrics.jsonl").read_text().splitlines()]
            for seed in ("0", "1")
        ]
        seconds = [max(line.get("train_s", 0) for line in of) for of in lines]
        assert row["train_minutes"] == pytest.approx(np.mean(seconds) / 60)
    assert rows["mtlsi_8"]["gflop"] > rows["heads"]["gflop"] > rows["alone_depth"]["gflop"] > 0
    assert (rows["mtlsi_8"]["num_tokens"], rows["heads"]["num_tokens"]) == (8, None)


def test_delta_m_is_against_the_single_task_runs_and_evaluate_reads_the_baseline(finished):
    rows = {row["variant"]: row for row in json.loads((finished.out / "table.json").read_text())["variants"]}
    single = {task: figures(finished.out, f"alone_{task}", task).mean() for task in SCORES}
    for variant in ("mtlsi_8", "heads"):
        changes = [1 - figures(finished.out, variant, task).mean() / single[task] for task in SCORES]  # lower is better
        assert rows[variant]["delta_m"] == pytest.approx(100 * np.mean(changes))
    assert rows["alone_depth"]["delta_m"] is None
    assert json.loads((finished.out / "baseline.json").read_text()) == pytest.approx(single)
    run = scores_of(finished.out / "heads/0")
    changes = [1 - run[task][SCORES[task]] / single[task] for task in SCORES]
    assert delta_m(headline(run), read_single_task(finished.out / "baseline.json").scores) == pytest.approx(
        100 * np.mean(changes)
    )


def test_a_study_that_has_finished_trains_nothing_more(finished, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("mtlsi.studies.runs.train", refuse)
    monkeypatch.setattr("mtlsi.studies.runs.resume", refuse)
    before = (finished.out / "table.csv").read_text()
    assert main(["study", str(finished.file), "--out", str(finished.out), "--sheet", "scene_0_1000001", "--pdf"]) == 0
    drawn = {path.name: path for path in finished.out.glob("*.pdf")}
    assert drawn.keys() == {"gflop.pdf", "train_minutes.pdf", "num_tokens.pdf", "sheet_scene_0_1000001.pdf"}
    for path in drawn.values():
        assert path.read_bytes().startswith(b"%PDF-")
        path.unlink()
    told = capsys.readouterr().out
    assert "mtlsi_8" in told
    assert "Delta_m" in told
    after = (finished.out / "table.csv").read_text()
    for one, other in zip(csv.DictReader(StringIO(before)), csv.DictReader(StringIO(after)), strict=True):
        assert {**one, "ms": ""} == {**other, "ms": ""}
    sheet = finished.out / "sheet_scene_0_1000001.png"
    with Image.open(
        sheet
    ) as image:  # truth, mtlsi_8, heads and one row for both single-task runs; the image and two tasks
        assert image.height / image.width == pytest.approx(4 / 3, rel=0.35)
    sheet.unlink()


def test_a_run_of_another_configuration_is_refused_and_what_differs_is_named(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}
    with pytest.raises(MistakeError, match=r"mtlsi_8/0 holds another run: train.lr 0.001 there, 0.5 in the study"):
        study(finished.file, finished.out, settings={"train.lr": 0.5}, console=quiet())
    with pytest.raises(MistakeError, match=r"model.scales"):
        study(finished.file, finished.out, settings={"model.scales": [3]}, table_only=True, console=quiet())
    assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")} == before
    # loader processes change no result
    only = study(finished.file, finished.out, only=["heads"], settings={"data.num_workers": 1}, console=quiet())
    assert only.finished == ["heads/0", "heads/1"]


@pytest.mark.slow
def test_each_listed_command_trains_its_run_as_the_study_does(finished, tmp_path, capsys):
    settings = ["--seeds", "1", "--train.loss_weights={depth: 1.0}", "--only", "heads,alone_depth"]
    file = write(tmp_path, variants=VARIANTS, seeds=[0, 1], baseline="alone_")
    assert main(["study", str(file), "--out", str(tmp_path / "it's here"), "--list", *settings]) == 0
    commands = capsys.readouterr().out.strip().splitlines()
    assert [shlex.split(command)[5:7] for command in commands] == [["--only", "heads/1"], ["--only", "alone_depth/1"]]
    assert not (tmp_path / "it's here").exists()
    words = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    command = commands[0].replace("mtlsi", words, 1)  # what a shell makes of the line
    read = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    assert main(json.loads(read)) == 0
    assert {path.name for path in (tmp_path / "it's here").rglob("scores.json")} == {"scores.json"}
    run = tmp_path / "it's here" / "heads" / "1"
    assert load_config(run).train.loss_weights == {"depth": 1.0}  # the field's own weight of depth
    for task, score in SCORES.items():
        assert scores_of(run)[task][score] == pytest.approx(scores_of(finished.out / "heads/1")[task][score], rel=1e-4)


# ---- runs that do not go well


@pytest.mark.parametrize(
    "steps_before",
    [pytest.param(1, id="after a saved state"), pytest.param(0, id="before any", marks=pytest.mark.slow)],
)
def test_a_run_that_is_cut_is_resumed_to_the_scores_of_an_unbroken_one(finished, tmp_path, monkeypatch, steps_before):
    step, often = loop.optimizer_step, {"train.checkpoint_every": 1}

    def stop(run, batches):
        if run.position.step == steps_before:
            raise KeyboardInterrupt
        return step(run, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", stop)
        with pytest.raises(KeyboardInterrupt):
            study(finished.file, tmp_path, only=["heads/0"], settings=often, console=quiet())
    assert not (tmp_path / "heads/0/scores.json").exists()
    assert sorted(os.listdir(tmp_path / "heads")) == ["0"]  # and no lock
    assert (tmp_path / "heads/0/state").is_dir() == bool(steps_before)
    assert study(finished.file, tmp_path, only=["heads/0"], settings=often, console=quiet()).finished == ["heads/0"]
    assert scores_of(tmp_path / "heads/0") == scores_of(finished.out / "heads/0")
    assert same_weights(tmp_path / "heads/0", finished.out / "heads/0")
    steps = [json.loads(line)["step"] for line in (tmp_path / "heads/0/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2]  # the last: its evaluation


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    file = write(tmp_path, variants={"wild": {**HEADS, "train.lr": 1e30, "train.clip_norm": 1e30}, "heads": HEADS})
    assert main(["study", str(file), "--out", str(tmp_path / "out"), "--data.tasks", "depth", "--no-time"]) == 1
    told = capsys.readouterr().out
    assert "wild/0: failed: " in told
    assert "lower --train.lr" in told
    assert (tmp_path / "out/heads/0/scores.json").exists()
    table = (tmp_path / "out/table.md").read_text()
    assert "| wild | 0 of 1, incomplete | - |" in table
    assert "Incomplete variants" in table
    assert "| ms |" not in table


def test_a_variant_that_cannot_be_built_is_told_before_anything_is_trained(tmp_path):
    for change, told in (
        ({"model.decoder": "guess"}, "unknown decoder 'guess'"),
        ({"model.num_tokens": "many"}, "num_tokens 'many'; expected a whole number"),
        ({"data.name": "nyud", "data.root": str(tmp_path / "nowhere")}, "nowhere"),
        ({"backbone_weights": str(tmp_path / "none.safetensors")}, r"none\.safetensors"),
        ({"train.tracker": "abacus"}, "abacus"),
        ({"train.class_weights.depth": "from_shares"}, "no such task with classes"),
    ):
        file = write(tmp_path, variants={"heads": HEADS, "bad": change})
        with pytest.raises(MistakeError, match=f"variant bad(?:| cannot be trained): .*{told}") as mistake:
            study(file, tmp_path / "out", console=quiet())
        assert "\n" not in str(mistake.value)
    assert not (tmp_path / "out").exists()


def test_a_plot_of_a_task_that_nobody_knows_is_told_before_anything_is_trained(finished, tmp_path, monkeypatch):
    def of_albedo(*file, **given):
        return replace(read_plan(*file, **given), plots=(Plot("gflop", ("depth", "albedo")),))

    monkeypatch.setattr("mtlsi.studies.study.read_plan", of_albedo)
    monkeypatch.setattr("mtlsi.studies.study.measure", lambda *_, **__: pytest.fail("was compared"))
    for out, more in ((finished.out, {}), (finished.out, {"table_only": True}), (tmp_path / "out", {})):
        with pytest.raises(MistakeError, match="plots: y albedo: unknown task; expected some of depth, normals"):
            study(finished.file, out, console=quiet(), **more)
    assert not (tmp_path / "out").exists()


def test_odd_times_of_a_finished_run_stop_no_other_run(finished, tmp_path):
    """A run whose time another one is to take is named, and the others are trained."""
    shutil.copytree(finished.out / "heads/0", tmp_path / "out/heads/0")
    with (tmp_path / "out/heads/0/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train_s": Infinity}\n')
    variants = {
        "heads": HEADS,
        "timed": {**HEADS, "iterations_by_time_of": "heads"},
        "new": {**HEADS, "train.lr": 2e-3},
    }
    outcome = study(write(tmp_path, variants=variants), tmp_path / "out", time=False, console=quiet())
    assert outcome.finished == ["heads/0", "new/0"]
    assert "whose metrics.jsonl has no seconds of training" in outcome.failed["timed/0"]
    assert json.loads((tmp_path / "out/table.json").read_text())["variants"][0]["train_minutes"] is None


def test_a_run_that_another_process_trains_is_left_to_it(finished, tmp_path):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads/0.lock").write_text(json.dumps({"pid": 7, "host": "another-machine", "since": 0}))
    outcome = study(finished.file, tmp_path, only=["heads/0"], console=quiet())
    assert list(outcome.held) == ["heads/0"]
    assert "process 7 on another-machine" in outcome.held["heads/0"]
    assert (outcome.finished, outcome.failed) == ([], {})
    assert os.listdir(tmp_path / "heads") == ["0.lock"]


def test_incomplete_variants_are_marked_and_have_no_delta_m(finished, tmp_path):
    for variant in ("heads", "alone_depth", "alone_normals"):
        for seed in "01":
            (tmp_path / variant).mkdir(exist_ok=True)
            (tmp_path / variant / seed).symlink_to(finished.out / variant / seed)
    (tmp_path / "mtlsi_8").mkdir()
    (tmp_path / "mtlsi_8/1").symlink_to(finished.out / "mtlsi_8/1")
    study(finished.file, tmp_path, table_only=True, time=False, console=quiet())
    rows = {row["variant"]: row for row in json.loads((tmp_path / "table.json").read_text())["variants"]}
    assert (rows["mtlsi_8"]["is_complete"], rows["mtlsi_8"]["delta_m"]) == (False, None)
    assert rows["mtlsi_8"]["spread"] == {"depth": None, "normals": None}
    assert rows["heads"]["delta_m"] is not None
    assert "| mtlsi_8 | 1 of 2, incomplete |" in (tmp_path / "table.md").read_text()

    (tmp_path / "alone_depth/0").unlink()  # now the baseline is incomplete: Delta_m has nothing to stand on
    study(finished.file, tmp_path, table_only=True, time=False, console=quiet())
    rows = {row["variant"]: row for row in json.loads((tmp_path / "table.json").read_text())["variants"]}
    assert rows["heads"]["delta_m"] is None
    assert not (tmp_path / "baseline.json").exists()
    assert "Delta_m: none, alone_depth must finish." in (tmp_path / "table.md").read_text()


def test_a_study_without_any_finished_run_has_no_table(finished, tmp_path):
    with pytest.raises(MistakeError, match="no run of the study has finished"):
        study(finished.file, tmp_path / "out", table_only=True, console=quiet())


# ---- equal training time


@pytest.mark.slow
def test_a_variant_may_take_as_many_steps_as_another_ones_time_allows(tmp_path, monkeypatch):
    file = write(tmp_path, variants={"timed": {**HEADS, "iterations_by_time_of": "heads"}, "heads": HEADS})
    early = study(file, tmp_path / "out", only=["timed"], console=quiet())
    assert early.failed == {"timed/0": "its training time is that of heads/0, which has not finished; train that first"}

    study(file, tmp_path / "out", only=["heads"], console=quiet())
    lines = [json.loads(line) for line in (tmp_path / "out/heads/0/metrics.jsonl").read_text().splitlines()]
    seconds = max(line.get("train_s", 0) for line in lines)
    monkeypatch.setattr("mtlsi.studies.runs.seconds_per_step", lambda _: seconds / 3.2)
    assert study(file, tmp_path / "out", only=["timed"], console=quiet()).finished == ["timed/0"]
    assert load_config(tmp_path / "out/timed/0").train.iterations == 3
    monkeypatch.setattr("mtlsi.studies.runs.seconds_per_step", lambda _: seconds / 50)  # what was chosen stays
    assert study(file, tmp_path / "out", only=["timed"], console=quiet()).finished == ["timed/0"]
    assert load_config(tmp_path / "out/timed/0").train.iterations == 3
