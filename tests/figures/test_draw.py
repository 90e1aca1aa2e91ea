"""``mtlsi figures``: its numbers against the arrays themselves, and what it draws and refuses."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mtlsi.cli import main
from mtlsi.evaluation.evaluate import evaluate_from_command
from mtlsi.evaluation.one_image import predict_image
from mtlsi.evaluation.protocols import showing_by
from mtlsi.evaluation.subject import Subject, open_subject
from mtlsi.figures.draw import DRAWERS, draw_sheet, figures_from_command, measure, out_of
from mtlsi.kinds import decode
from mtlsi.model.build import create_model
from mtlsi.model.network import Output
from mtlsi.options.measuring import EvaluateOptions, FiguresOptions
from mtlsi.tasks import TASKS, Task, register_task

QUIET = Console(file=StringIO())
LIMIT = 3


@pytest.fixture(scope="module")
def drawn(tiny_run, tmp_path_factory):
    """The folder of a run's figures and their numbers."""
    out = tmp_path_factory.mktemp("figures") / "new"
    options = FiguresOptions(str(tiny_run.out), limit=LIMIT, num_shown=1, out=out)
    files = figures_from_command(options, console=QUIET)
    assert sorted(files) == sorted(out.iterdir())
    return out, json.loads((out / "figures.json").read_text())


@pytest.fixture(scope="module")
def arrays(tiny_run):
    """Prediction and label of each image, by task."""
    options = FiguresOptions(str(tiny_run.out), data="scenes", limit=LIMIT)
    subject = open_subject(options, QUIET)
    subject.network.eval()
    images = [predict_image(subject.network, subject.dataset, subject.config, index) for index in subject.indices]
    return {task: [(x.predicted[task], x.truth[task]) for x in images] for task in subject.network.tasks}


def test_every_figure_is_there_and_can_be_read(drawn):
    out, _ = drawn
    assert {path.name for path in out.iterdir()} == {
        "figures.json",
        "training.png",
        "semseg_iou.png",
        "semseg_confusion.png",
        "semseg_best_worst.png",
        "depth_errors.png",
        "depth_best_worst.png",
        "normals_angles.png",
        "normals_best_worst.png",
        "boundary_precision_recall.png",
        "boundary_best_worst.png",
    }
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 5


def test_scores_and_curves_are_those_of_evaluate(drawn, tiny_run, tmp_path):
    _, numbers = drawn
    path = tmp_path / "scores.json"
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=LIMIT, json_path=path)
    evaluate_from_command(options, console=QUIET)
    stored = json.loads(path.read_text())
    assert numbers["scores"] == stored["scores"]
    for name, values in stored["curves"]["boundary"].items():
        assert numbers["figures"]["boundary"][name] == values
    assert numbers["figures"]["semseg"]["confusion"] == stored["confusion"]["semseg"]["pixels"]
    assert numbers["boundaries"] == stored["boundaries"]


def test_ious_are_those_of_the_arrays(drawn, arrays):
    semseg = drawn[1]["figures"]["semseg"]
    predicted, labelled = (np.concatenate([x[i].ravel() for x in arrays["semseg"]]) for i in (0, 1))
    valid = labelled != 255
    for index in range(len(semseg["classes"])):
        p, y = predicted[valid] == index, labelled[valid] == index
        assert semseg["labelled_pixels"][index] == y.sum()
        if (p | y).any():
            assert semseg["iou"][index] == pytest.approx(100 * (p & y).sum() / (p | y).sum())
        else:
            assert semseg["iou"][index] is None


def test_errors_of_depth_are_those_of_the_arrays_in_each_bin(drawn, arrays):
    depth = drawn[1]["figures"]["depth"]
    predicted, labelled = (np.concatenate([x[i].ravel() for x in arrays["depth"]]).astype(float) for i in (0, 1))
    predicted, labelled = predicted[labelled > 0], labelled[labelled > 0]
    where = np.digitize(labelled, depth["edges"][1:-1])
    for index, pixels in enumerate(depth["pixels"]):
        p, y = predicted[where == index], labelled[where == index]
        assert pixels == len(y)
        if pixels:
            assert depth["rmse"][index] == pytest.approx(np.sqrt(np.mean((p - y) ** 2)), rel=1e-5)
            assert depth["abs_rel"][index] == pytest.approx(np.mean(np.abs(p - y) / y), rel=1e-5)
    assert sum(depth["pixels"]) == len(labelled) > 0


def test_the_histogram_of_angles_is_that_of_the_arrays(drawn, arrays):
    normals = drawn[1]["figures"]["normals"]
    predicted, labelled = (
        np.concatenate([x[i].reshape(3, -1) for x in arrays["normals"]], 1).astype(float) for i in (0, 1)
    )
    valid = np.linalg.norm(labelled, axis=0) > 0.5
    p, y = (x[:, valid] / np.linalg.norm(x[:, valid], axis=0) for x in (predicted, labelled))
    angle = np.degrees(np.arccos(np.clip((p * y).sum(0), -1, 1)))
    expected, _ = np.histogram(angle, np.arange(181))
    assert np.abs(np.array(normals["pixels_by_degree"]) - expected).sum() <= 2e-3 * len(angle)  # rounding at the edges
    for limit in (11.25, 22.5, 30):
        assert normals["within"][f"{limit:g}"] == pytest.approx(100 * np.mean(angle < limit), abs=0.1)


def test_the_best_and_the_worst_image_are_those_of_the_arrays(drawn, arrays):
    rmse = [np.sqrt(np.mean((p[y > 0] - y[y > 0]) ** 2.0)) for p, y in arrays["depth"]]
    shown = drawn[1]["figures"]["depth"]["images"]
    assert (shown["score"], shown["images"]) == ("RMSE", LIMIT)
    assert shown["best"][0]["score"] == pytest.approx(min(rmse), rel=1e-5)
    assert shown["worst"][0]["score"] == pytest.approx(max(rmse), rel=1e-5)
    assert shown["best"][0]["image"] != shown["worst"][0]["image"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_by_default_they_do_not_lie_behind_a_link_out_of_the_run(tiny_run, tmp_path, capsys):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors"):
        shutil.copy(tiny_run.out / name, run / name)
    (run / "figures").symlink_to(elsewhere)
    assert main(["figures", str(run), "--limit", "1", "--tasks", "depth"]) == 2
    assert "figures: a link out of the run; expected a folder in it: say with --out" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_by_default_they_lie_in_the_run_and_of_a_model_folder_here(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors", "metrics.jsonl"):
        shutil.copy(tiny_run.out / name, run / name)
    assert main(["figures", "run", "--limit", "1", "--tasks", "depth", "--shown", "0"]) == 0
    assert f"2 figures and figures.json in {run.relative_to(tmp_path) / 'figures'}" in capsys.readouterr().out
    assert {path.name for path in (run / "figures").iterdir()} == {"figures.json", "training.png", "depth_errors.png"}
    shutil.copytree(run, run / "best", ignore=lambda *_: ["config.yaml", "metrics.jsonl", "figures"])
    assert main(["figures", "run/best", "--limit", "1", "--tasks", "depth", "--shown", "0"]) == 0  # of its run's data
    names = {path.name for path in (run / "best" / "figures").iterdir()}
    assert names == {"figures.json", "training.png", "depth_errors.png"}
    (run / "config.yaml").unlink()
    (run / "metrics.jsonl").unlink()
    monkeypatch.chdir(run)
    assert out_of(".") == Path("run-figures")
    monkeypatch.chdir(tmp_path)
    assert main(["figures", "run", "--data", "scenes", "--limit", "1", "--tasks", "normals"]) == 0
    names = {path.name for path in (tmp_path / "run-figures").iterdir()}
    assert names == {"figures.json", "normals_angles.png", "normals_best_worst.png"}


@pytest.mark.parametrize("kind", [list, tuple])
def test_sheets_are_drawn_in_the_colours_of_a_data_set_that_reads_them_from_a_file(tiny_run, tmp_path, kind):
    options = FiguresOptions(str(tiny_run.out), data="scenes", limit=1, tasks="semseg", out=tmp_path / "out")
    subject = open_subject(options, QUIET)
    subject.dataset.colours = {"semseg": kind(kind((n, 2 * n, 3 * n)) for n in range(40))}
    _, seen = measure(options, subject, QUIET)
    with Image.open(draw_sheet("semseg", seen.sheets, tmp_path)[0]) as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(10**6)}
    labels = {int(value) for value in subject.dataset[subject.indices[0]]["semseg"].unique()}
    assert {(n, 2 * n, 3 * n) for n in labels} <= colours


def test_tasks_of_other_classes_are_left_out(nyud_root, tmp_path, capsys):
    network = create_model(
        "tiny", tasks=("semseg", "depth"), classes={"semseg": ("room", "thing")}, input_size=(64, 64)
    )
    network.save_pretrained(tmp_path / "model")
    arguments = ["figures", str(tmp_path / "model"), "--data", "nyud", "--root", str(nyud_root), "--limit", "1"]
    assert main([*arguments, "--shown", "0", "--out", str(tmp_path / "out")]) == 0
    told = "left out: semseg (the model has 2 classes, the data 40 or other names)"
    assert told in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"figures.json", "depth_errors.png"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shown", "-1"], "--shown -1; expected"),
        (["--limit", "-1"], "--limit -1; expected"),
        (["--tasks", "smell"], "unknown task 'smell'"),
        (["--data", "nyud"], "needs its folder"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(tiny_run, tmp_path, capsys, arguments, told):
    assert main(["figures", str(tiny_run.out), *arguments, "--out", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []


# ---- tasks of one's own, of every kind

OWN = (
    Task("material", kind="classes"),
    Task("wetness", kind="strength"),
    Task("cracks", kind="strength", thin=True),
    Task("curvature", kind="value", channels=2),
    Task("heat", kind="value", unit="K"),
    Task("lidar", kind="distance", metric="value_error"),
    Task("flow", kind="direction"),
)
SIDE = 32


class Rooms:
    """A few images with a label of every kind; the last one is not labelled."""

    def __init__(self):
        self.tasks = tuple(task.name for task in OWN)
        self.classes = {"material": ("wood", "metal", "cloth")}
        self.derived, self.left_out, self.boundary_tolerance = (), {}, 0.02

    def __len__(self):
        return 4

    def name(self, index):
        return f"room{index}"

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        sample = {"image": torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=draw)}
        for task in OWN:
            kind, channels = TASKS[task.name].kind, task.channels or 3
            raw = torch.rand(1, channels, SIDE, SIDE, generator=draw)
            label = decode(task.name, raw)[0] if kind != "strength" else (raw[0, 0] > 0.9).to(torch.uint8)
            sample[task.name] = label
        if index == 3:
            sample = {"image": sample["image"], "lidar": sample["lidar"]}
        return sample


class Guess(torch.nn.Module):
    """Says something else for every image."""

    def __init__(self):
        super().__init__()
        self.tasks, self.classes = tuple(task.name for task in OWN), {"material": ("wood", "metal", "cloth")}

    def forward(self, images, tasks, *, full_size):
        draw = torch.Generator().manual_seed(int(images.sum()) % 1000)
        channels = {task.name: task.channels or 3 for task in OWN}
        raw = {t: torch.rand(len(images), channels[t], SIDE, SIDE, generator=draw) for t in tasks}
        return Output(raw, {}, full_size=full_size)


def test_tasks_of_ones_own_are_drawn_by_their_kind(tiny_config, tmp_path):
    for task in OWN:
        register_task(task)
    dataset, config = Rooms(), replace(tiny_config.data, image_hw=None)
    subject = Subject(Guess(), torch.device("cpu"), config, dataset, [0, 1, 2, 3], showing_by(config))
    scores, seen = measure(FiguresOptions("guess", data="rooms", num_shown=1), subject, QUIET)
    numbers = {}
    for task in scores:
        _, numbers[task] = DRAWERS[TASKS[task].kind](task, seen, scores, tmp_path)
        draw_sheet(task, seen.sheets, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("material_iou.png", "material_confusion.png", "wetness_precision_recall.png", "cracks_precision_recall.png"),
        *("curvature_errors.png", "heat_errors.png", "lidar_errors.png", "flow_angles.png"),
        *(f"{task.name}_best_worst.png" for task in OWN),
    }
    assert sum(numbers["curvature"]["pixels"]) == 3 * 2 * SIDE * SIDE  # every channel is a number
    assert sum(numbers["lidar"]["pixels"]) == 4 * SIDE * SIDE
    assert [seen.sheets.record(task)["images"] for task in ("heat", "lidar")] == [3, 4]
    curve = numbers["wetness"]
    wet = torch.cat([dataset[i]["wetness"].flatten() == 1 for i in range(3)])
    for threshold, recall in zip(curve["thresholds"], curve["recall"], strict=True):
        if threshold < 0.25:  # the sigmoid of a difference below 1 is between 0.27 and 0.73
            assert recall == 1
        elif threshold > 0.75:
            assert recall == 0
    assert curve["precision"][0] == pytest.approx(float(wet.float().mean()), rel=1e-6)


def test_a_task_without_a_label_is_left_out(tiny_config, tmp_path):
    for task in OWN:
        register_task(task)
    config = replace(tiny_config.data, image_hw=None)
    subject = Subject(Guess(), torch.device("cpu"), config, Rooms(), [3], showing_by(config))
    scores, seen = measure(FiguresOptions("guess", data="rooms", num_shown=1), subject, QUIET)
    drawn = [task for task in scores if DRAWERS[TASKS[task].kind](task, seen, scores, tmp_path) is not None]
    assert drawn == ["lidar"]
