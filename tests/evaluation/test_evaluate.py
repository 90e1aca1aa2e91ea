from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from math import isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate, evaluate_from_command, shared_tasks
from mtlsi.evaluation.report import Evaluation, SingleTask, headline, write_scores, write_single_task
from mtlsi.evaluation.subject import data_config, open_subject
from mtlsi.metrics.boundary.protocols import PROTOCOLS
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet, Output
from mtlsi.options.measuring import EvaluateOptions
from mtlsi.run_folder import save_config
from mtlsi.tasks import TASK_SETS, TASKS

CONFIG = DataConfig(num_val=5, size_hw=(48, 64), label_set="all", num_workers=0)


@pytest.fixture(scope="module")
def rooms():
    return open_dataset(CONFIG, "val")


class Oracle(nn.Module):
    """Gives raw predictions that decode to what ``answer(task, index)`` says, for the images ``order`` in turn."""

    def __init__(self, dataset, order, answer):
        super().__init__()
        self.tasks, self.classes = dataset.tasks, dataset.classes
        self.order, self.answer, self.modes = list(order), answer, []

    def forward(self, images, tasks, *, full_size):  # noqa: ARG002
        self.modes.append(self.training)
        now, self.order = self.order[: len(images)], self.order[len(images) :]
        return Output({task: torch.stack([self.raw(task, self.answer(task, i)) for i in now]) for task in tasks}, {})

    def raw(self, task, value):
        kind = TASKS[task].kind
        if kind == "classes":
            return nn.functional.one_hot(value.long(), len(self.classes[task])).movedim(-1, 0).float()
        if kind == "strength" and TASKS[task].channels == 2:
            return torch.stack([torch.zeros(value.shape), torch.logit(value.double(), 1e-9).float()])
        if kind == "strength":
            return torch.logit(value.double(), 1e-9)[None].float()
        return value if value.dim() == 3 else value[None]


def truth_of(dataset):
    return lambda task, index: dataset[index][task]


# ---- against the truth and against plain counting


def test_the_truth_scores_perfectly(rooms):
    scores = headline(evaluate(Oracle(rooms, range(5), truth_of(rooms)), rooms, CONFIG, batch_size=2))
    assert scores.keys() == set(TASKS)
    for task, score in scores.items():
        # boundaries within five pixels of the image's edge fade out, as in the field's benchmark
        leeway = 5 if task == "boundary" else 1e-3
        assert score == pytest.approx(100 if TASKS[task].higher_is_better else 0, abs=leeway), task


def test_scores_of_noisy_predictions_are_those_of_plain_counting(rooms):
    numbers = np.random.default_rng(0)
    truth = [{task: x.numpy() for task, x in rooms[index].items()} for index in range(5)]
    guesses = []
    for labels in truth:
        wrong = numbers.random(labels["semseg"].shape) < 0.3
        normals = labels["normals"] + numbers.normal(0, 0.3, labels["normals"].shape).astype(np.float32)
        guesses.append(
            {
                "semseg": np.where(wrong, numbers.integers(0, 40, wrong.shape), labels["semseg"]),
                "parsing": np.where(wrong, 0, labels["parsing"]),
                "saliency": np.clip(0.7 * labels["saliency"] + numbers.uniform(0, 0.3, wrong.shape), 0, 1),
                "depth": np.abs(labels["depth"] + numbers.normal(0, 0.5, wrong.shape)).astype(np.float32),
                "normals": normals / np.sqrt((normals**2).sum(0)),
                "boundary": labels["boundary"].astype(np.float32),
            }
        )
    chosen = [4, 0, 3]
    oracle = Oracle(rooms, chosen, lambda task, index: torch.from_numpy(guesses[index][task]))
    scores = evaluate(oracle, rooms, CONFIG, indices=chosen, batch_size=2)

    def pixels(of, task):
        return np.concatenate([of[index][task].reshape(3 if task == "normals" else 1, -1) for index in chosen], 1)

    for task, names in rooms.classes.items():
        guess, label = pixels(guesses, task)[0], pixels(truth, task)[0]
        of_classes = []
        for index, name in enumerate(names):
            union = ((guess == index) | (label == index)).sum()
            iou = 100 * ((guess == index) & (label == index)).sum() / union if union else float("nan")
            assert scores[task][f"IoU/{name}"] == pytest.approx(iou, nan_ok=True), name
            of_classes.append(iou)
        assert scores[task]["mIoU"] == pytest.approx(np.nanmean(of_classes))
        assert scores[task]["pixel_acc"] == pytest.approx(100 * (guess == label).mean())
    depth_error = pixels(guesses, "depth").astype(float) - pixels(truth, "depth")
    assert scores["depth"]["RMSE"] == pytest.approx(sqrt((depth_error**2).mean()))
    cosine = (pixels(guesses, "normals").astype(float) * pixels(truth, "normals")).sum(0)
    assert scores["normals"]["mErr"] == pytest.approx(np.degrees(np.arccos(cosine.clip(-1, 1))).mean(), abs=0.01)
    best = 0.0
    for threshold in np.arange(1, 20) / 20:
        salient, label = pixels(guesses, "saliency") >= threshold, pixels(truth, "saliency") == 1
        hits = (salient & label).sum()
        precision, recall = hits / max(salient.sum(), 1), hits / label.sum()
        best = max(best, 1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    assert scores["saliency"]["maxF"] == pytest.approx(100 * best, abs=0.05)


def test_predictions_at_a_quarter_of_the_size_are_enlarged_along_straight_lines():
    class Ramp:
        """Depth rises evenly from left to right; the margin, where upsampling has no neighbours, is unlabelled."""

        tasks, classes, derived, boundary_tolerance = ("depth",), {}, (), 0.01

        def __len__(self):
            return 3

        def __getitem__(self, index):
            depth = (1 + 0.1 * torch.arange(64.0)).repeat(48, 1) + index
            depth[:, :2], depth[:, -2:] = 0, 0
            return {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "depth": depth}

    def coarse(_, index):  # the ramp at the centres of cells of 4 x 4 pixels
        return (1 + 0.1 * (4 * torch.arange(16.0) + 1.5)).repeat(12, 1) + index

    scores = evaluate(Oracle(Ramp(), range(3), coarse), Ramp(), CONFIG)  # type: ignore[arg-type]
    assert scores["depth"]["RMSE"] == pytest.approx(0, abs=1e-5)


def test_the_model_is_asked_in_evaluation_mode_and_left_as_it_was(rooms):
    for training in (True, False):
        oracle = Oracle(rooms, range(5), truth_of(rooms)).train(training)
        evaluate(oracle, rooms, CONFIG)
        assert oracle.modes == [False, False]
        assert oracle.training is training


def test_a_task_without_any_label_has_no_score(rooms):
    class WithoutNormals:
        tasks, classes, derived, boundary_tolerance = rooms.tasks, rooms.classes, (), 0.01

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {name: x for name, x in rooms[index].items() if name != "normals"}

    scores = headline(evaluate(Oracle(rooms, range(2), truth_of(rooms)), WithoutNormals(), CONFIG))  # type: ignore[arg-type]
    assert isnan(scores["normals"])
    assert scores["depth"] == pytest.approx(0, abs=1e-6)


# ---- what a model and a data set share


class Known:
    def __init__(self, tasks, classes):
        self.tasks, self.classes = tasks, classes


def test_shared_tasks_come_in_the_models_order():
    model = Known(("depth", "semseg", "normals"), {"semseg": ("a", "b")})
    data = Known(("semseg", "boundary", "depth"), {"semseg": ("a", "b")})
    assert shared_tasks(model, data) == ("depth", "semseg")  # type: ignore[arg-type]


def test_nothing_in_common_and_other_classes_are_mistakes():
    model = Known(("depth", "semseg"), {"semseg": ("a", "b")})
    with pytest.raises(MistakeError, match=r"predicts depth, semseg, .* labels for normals; .* at least one"):
        shared_tasks(model, Known(("normals",), {}))  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match="semseg: the model has 2 classes, the data 3"):
        shared_tasks(model, Known(("semseg",), {"semseg": ("a", "b", "c")}))  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match="or other names"):
        shared_tasks(model, Known(("semseg",), {"semseg": ("b", "a")}))  # type: ignore[arg-type]


def test_tasks_that_are_not_wanted_may_have_other_classes():
    model = Known(("depth", "semseg", "normals"), {"semseg": ("a", "b")})
    data = Known(("semseg", "normals", "depth"), {"semseg": ("a", "b", "c")})
    assert shared_tasks(model, data, ("normals", "depth")) == ("depth", "normals")  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match=r"semseg: the model has 2 .*--tasks"):
        shared_tasks(model, data)  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match="unknown task 'boundary'; expected some of depth, semseg, normals"):
        shared_tasks(model, data, ("boundary",))  # type: ignore[arg-type]


def test_only_the_tasks_asked_for_are_measured(rooms):
    oracle = Oracle(rooms, range(5), truth_of(rooms))
    whole = evaluate(oracle, rooms, CONFIG)
    oracle.order = list(range(5))
    some = evaluate(oracle, rooms, CONFIG, tasks=("normals", "depth"))
    assert some == {task: whole[task] for task in ("depth", "normals")}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_no_number_is_refused_by_task_and_image(rooms, task, value):
    class Broken(Oracle):
        def raw(self, name, label):
            raw = super().raw(name, label)
            if name == task and len(self.order) < 3:  # the third image and those behind it
                raw[..., 0, 0] = value
            return raw

    with pytest.raises(MistakeError) as caught:
        evaluate(Broken(rooms, range(5), truth_of(rooms)), rooms, CONFIG, batch_size=1)
    assert str(caught.value).startswith(f"{task}: the prediction for image {rooms.name(2)} holds NaN or infinite")
    assert "\n" not in str(caught.value)


# ---- image by image


def test_every_image_is_told_of_with_its_own_figures_and_predictions(rooms):
    heard = []

    def answer(task, index):
        label = rooms[index][task]
        return label + 0.1 * (index + 1) if task == "depth" else label

    chosen = [3, 1, 4]
    scores = evaluate(
        Oracle(rooms, chosen, answer),
        rooms,
        CONFIG,
        indices=chosen,
        batch_size=2,
        on_image=lambda *a: heard.append(a),
    )
    assert [index for index, _, _ in heard] == chosen
    for index, decoded, own in heard:
        assert own["depth"]["RMSE"] == pytest.approx(0.1 * (index + 1), abs=1e-5)
        assert own["semseg"]["mIoU"] == pytest.approx(100)
        assert torch.equal(decoded["semseg"][0].long(), rooms[index]["semseg"].long())
    pooled = np.sqrt(np.mean([(0.1 * (index + 1)) ** 2 for index in chosen]))
    assert scores["depth"]["RMSE"] == pytest.approx(pooled, abs=1e-5)


def test_images_of_different_sizes_are_shown_one_by_one():
    class Mixed:
        """Depth is the same everywhere; every image has its own size, and the second one no label."""

        tasks, classes, derived, boundary_tolerance = ("depth",), {}, (), 0.01
        sizes = ((48, 64), (40, 52), (64, 48))

        def __len__(self):
            return 3

        def __getitem__(self, index):
            sample = {"image": torch.zeros(3, *self.sizes[index], dtype=torch.uint8)}
            return sample if index == 1 else sample | {"depth": torch.full(self.sizes[index], 2.0 + index)}

    shown = []

    class Flat(nn.Module):
        tasks, classes = ("depth",), {}

        def forward(self, images, tasks, *, full_size):  # noqa: ARG002
            shown.append(tuple(images.shape))
            return Output({"depth": torch.full((len(images), 1, 12, 12), 2.0)}, {})

    scores = evaluate(Flat(), Mixed(), DataConfig(image_hw=None, num_workers=0), batch_size=4)  # type: ignore[arg-type]
    assert shown == [(1, 3, 48, 64), (1, 3, 40, 52), (1, 3, 64, 48)]
    assert scores["depth"]["RMSE"] == pytest.approx(sqrt((0 + 4) / 2))  # the two labelled ones have as many pixels


# ---- the command


def test_the_command_writes_what_it_measured_and_saves_predictions(tiny_run, tmp_path):
    said = StringIO()
    options = EvaluateOptions(
        str(tiny_run.out),
        data="scenes",
        limit=2,
        json_path=tmp_path / "scores.json",
        csv_path=tmp_path / "images.csv",
        save=tmp_path / "saved",
        curve_path=tmp_path / "curve.png",
        confusion=tmp_path / "confusion",
    )
    options = replace(options, boundary_protocol="seism")
    scores = evaluate_from_command(options, console=Console(file=said, width=160))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["images"] == 2
    assert written["scores"]["depth"]["RMSE"] == pytest.approx(scores["depth"]["RMSE"])
    assert "the papers' row" in said.getvalue()
    assert "images rendered at 64x64" in said.getvalue()
    (table,) = (written["confusion"][task] for task in ("semseg",))
    pixels = np.array(table["pixels"])
    assert pixels.sum() == 2 * 64 * 64
    assert 100 * pixels.trace() / pixels.sum() == pytest.approx(scores["semseg"]["pixel_acc"])
    lines = list(csv.reader((tmp_path / "confusion/semseg.csv").read_text().splitlines()))
    assert lines[0][1:] == [line[0] for line in lines[1:]] == table["classes"]
    assert [[int(x) for x in line[1:]] for line in lines[1:]] == table["pixels"]
    how = written["boundaries"]
    assert (how["protocol"], how["max_dist"], how["nms"], how["thresholds"]) == ("seism", 0.011, False, 99)
    assert "boundaries: seism, not suppressed, 8-bit maps, 99 thresholds, within 0.011" in " ".join(
        said.getvalue().split()
    )
    assert "higher is better, seism" in said.getvalue()
    (points,) = (written["curves"][task] for task in ("boundary",))
    figures = np.array([points[axis] for axis in ("thresholds", "precision", "recall")])
    assert figures.shape == (3, 99)
    best = [scores["boundary"][figure] / 100 for figure in ("precision", "recall")]
    at = scores["boundary"]["threshold"]
    assert best == pytest.approx([np.interp(at, figures[0], axis) for axis in figures[1:]], abs=1e-6)
    assert not any(char.isdigit() for name in scores["boundary"] for char in name.replace("R50", ""))
    with Image.open(tmp_path / "confusion/semseg.png") as drawn:
        assert min(drawn.size) > 1000  # forty classes are legible
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert (tmp_path / "curve.png").stat().st_size > 5000
    saved = np.load(tmp_path / "saved/depth" / f"{rows[0]['image']}.npy")
    truth = open_dataset(data_config(options, MTLSINet.from_pretrained(tiny_run.out)), "val")
    label = next(truth[i]["depth"] for i in range(len(truth)) if truth.name(i) == rows[0]["image"]).numpy()
    assert float(rows[0]["depth/RMSE"]) == pytest.approx(np.sqrt(((saved - label) ** 2).mean()), rel=1e-4)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"semseg", "depth", "normals", "edge"}


def test_what_can_be_measured_is_measured_where_the_classes_differ(nyud_root, tmp_path):
    classes = {"semseg": ("room", "furniture", "thing")}
    for tasks in (("semseg", "depth"), ("semseg",)):
        network = create_model("tiny", tasks=tasks, classes=classes, input_size=(64, 64))
        network.save_pretrained(tmp_path / "-".join(tasks))
    for data, root in (("nyud", str(nyud_root)), ("scenes", None)):
        options, said = EvaluateOptions(str(tmp_path / "semseg-depth"), data=data, root=root, limit=1), StringIO()
        scores = evaluate_from_command(options, console=Console(file=said, width=200))
        assert scores.keys() == {"depth"}
        assert "left out: semseg (the model has 3 classes, the data 40 or other names)" in said.getvalue()
        asked = evaluate_from_command(replace(options, tasks="depth"), console=Console(file=StringIO()))
        assert asked == scores
        for wrong in (replace(options, tasks="semseg"), replace(options, model=str(tmp_path / "semseg"))):
            with pytest.raises(MistakeError, match=r"semseg: the model has 3 classes, the data 40 .*--tasks"):
                evaluate_from_command(wrong, console=Console(file=StringIO()))


def test_images_are_shown_as_the_run_showed_them(tiny_run, tmp_path):
    network = MTLSINet.from_pretrained(tiny_run.out)
    assert data_config(EvaluateOptions(str(tiny_run.out)), network).image_hw == (64, 64)
    assert data_config(EvaluateOptions(str(tiny_run.out), size_hw=(32, 48)), network).image_hw == (32, 48)
    network.save_pretrained(tmp_path / "model")
    assert data_config(EvaluateOptions(str(tmp_path / "model")), network).image_hw == network.input_size
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert "resize" not in config  # so that versions without it read the file
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"resize": "keep_ratio"}))
    alone = MTLSINet.from_pretrained(tmp_path / "model")
    assert data_config(EvaluateOptions(str(tmp_path / "model")), alone).resize == "keep_ratio"
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"resize": "fit"}))
    with pytest.raises(MistakeError, match="resize 'fit'; expected stretch or keep_ratio"):
        MTLSINet.from_pretrained(tmp_path / "model")

    kept = replace(tiny_run.config, data=replace(tiny_run.config.data, resize="keep_ratio"))
    save_config(kept, tmp_path / "model")
    for asked, expected in ((None, "keep_ratio"), ("stretch", "stretch")):
        options = EvaluateOptions(str(tmp_path / "model"), resize=asked)
        assert data_config(options, network).resize == expected
    (tmp_path / "model" / "best").mkdir()  # the best model of a run is shown images as its run was
    assert data_config(EvaluateOptions(str(tmp_path / "model" / "best")), network).resize == "keep_ratio"
    assert data_config(EvaluateOptions(str(tiny_run.out)), network).resize == "stretch"
    assert data_config(EvaluateOptions(str(tiny_run.out), resize="keep_ratio"), network).resize == "keep_ratio"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": -1}, "--limit -1"),
        ({"size_hw": (0, 5)}, "--size 0 5"),
        ({"csv_path": "no/x.csv"}, "cannot write"),
        ({"confusion": __file__}, "cannot write"),
        ({"curve_path": "curve.jpg"}, "picture curve.jpg: of no known kind; expected a name that ends in .png, .pdf"),
        ({"boundary_protocol": "SEISM"}, "boundary protocol 'SEISM'; expected one of bsds"),
        ({"single_task": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_before_anything_is_loaded(changes, message):
    changes = {name: x if name in ("limit", "size_hw", "boundary_protocol") else Path(x) for name, x in changes.items()}
    with pytest.raises(MistakeError, match=message):
        evaluate_from_command(EvaluateOptions("no such model", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"single_task": '{"depth": 0.5, "semseg": 40}'}, "expected the same tasks in both"),
        ({"single_task": '{"depth": 0}'}, "single-task score of depth: 0.0; expected a number above 0"),
        ({"curve_path": ""}, "curve.png: no boundaries are measured"),
        ({"confusion": ""}, "no task with classes is measured; leave it out"),
    ],
)
def test_what_cannot_be_made_of_the_tasks_is_told_before_they_are_measured(
    tiny_run, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr("mtlsi.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("was measured"))
    paths = {"single_task": tmp_path / "single.json", "curve_path": tmp_path / "curve.png", "confusion": tmp_path / "c"}
    for name, text in changes.items():
        if text:
            paths[name].write_text(text)
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, tasks="depth")
    with pytest.raises(MistakeError, match=message):
        evaluate_from_command(replace(options, **{name: paths[name] for name in changes}))


def test_a_folder_in_the_place_of_a_confusion_matrix_is_told_before_anything_is_measured(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("mtlsi.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("was measured"))
    (tmp_path / "semseg.png").mkdir()
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, confusion=tmp_path)
    with pytest.raises(MistakeError, match=r"^cannot write .*semseg\.png; give a file in an existing folder"):
        evaluate_from_command(options)


SEISM_NMS = PROTOCOLS["seism-nms"].on_data(TASK_SETS["nyud"].boundary_tolerance)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"boundary_protocol": "bsds"}, "protocol seism-nms there, bsds here, max_dist 0.011 there, 0.0075 here, nms True"),
        ({"count_unknown_boundaries": True}, "were measured otherwise: unknown masked there, no boundary here;"),
    ],
)  # fmt: skip
def test_single_task_boundaries_by_another_protocol_are_refused_before_they_are_measured(
    tiny_run, tmp_path, monkeypatch, changes, told
):
    monkeypatch.setattr("mtlsi.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("was measured"))
    path = tmp_path / "single.json"
    write_single_task(SingleTask({"boundary": 50.0}, SEISM_NMS.record()), path)
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, tasks="boundary", single_task=path)
    with pytest.raises(MistakeError, match=told) as mistake:
        evaluate_from_command(replace(options, **changes))
    assert "\n" not in str(mistake.value)


def test_single_task_scores_of_other_classes_are_refused_before_they_are_measured(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("mtlsi.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("was measured"))
    named = tmp_path / "named.json", tmp_path / "scored.json"
    write_single_task(SingleTask({"semseg": 50.0}, None, {"semseg": ("wall", "floor")}), named[0])
    write_scores({"semseg": {"mIoU": 50.0, "IoU/wall": 60.0, "IoU/floor": 40.0}}, named[1])
    for path in named:
        options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, tasks="semseg", single_task=path)
        with pytest.raises(
            MistakeError, match=r"its semseg is of 2 classes, here are \d+ or others; expected scores on"
        ):
            evaluate_from_command(options)


@pytest.mark.parametrize(("measured_by", "noted"), [(SEISM_NMS.record(), False), (None, True)])
def test_what_is_assumed_of_single_task_boundaries_is_said(tiny_run, tmp_path, monkeypatch, measured_by, noted):
    path, said = tmp_path / "single.json", StringIO()
    write_single_task(SingleTask({"boundary": 50.0}, measured_by), path)
    found = Evaluation({"boundary": {"odsF": 60.0}}, boundaries=SEISM_NMS)
    monkeypatch.setattr("mtlsi.evaluation.evaluate.evaluate", lambda *_, **__: found)
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, tasks="boundary", single_task=path)
    evaluate_from_command(options, console=Console(file=said, width=300))
    assert "+20.00" in said.getvalue()
    note = "does not say what its boundaries were measured by; Delta_m takes it for seism-nms, as here"
    assert (note in said.getvalue()) == noted


def test_every_pair_is_heard_before_its_image(tiny_run):
    """What ``on_pair`` hears gives the scores again."""
    options = EvaluateOptions(str(tiny_run.out), data="scenes", limit=2, tasks="depth")
    subject = open_subject(options, Console(file=StringIO()))
    heard, squared, count = [], 0.0, 0

    def on_pair(task, prediction, label, valid):
        nonlocal squared, count
        heard.append(task)
        squared += float(((prediction - label)[valid].double() ** 2).sum())
        count += int(valid.sum())

    scores = evaluate(
        subject.network,
        subject.dataset,
        subject.config,
        tasks=("depth",),
        indices=subject.indices,
        on_pair=on_pair,
        on_image=lambda index, _, __: heard.append(index),
    )
    assert heard == ["depth", subject.indices[0], "depth", subject.indices[1]]
    assert scores["depth"]["RMSE"] == pytest.approx((squared / count) ** 0.5, rel=1e-6)
