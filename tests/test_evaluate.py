from __future__ import annotations

import json
import os
from math import isnan, sqrt

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mtlsi.config import DataConfig
from mtlsi.data.loading import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluate import compare_single_task, evaluate, headline, score_table, shared_tasks, write_scores
from mtlsi.model.network import Output
from mtlsi.tasks import TASKS

CONFIG = DataConfig(num_val=5, size_hw=(48, 64), label_set="all", num_workers=0)
SCORES = {"semseg": {"mIoU": 40.0, "pixel_acc": 70.0}, "depth": {"RMSE": 0.6, "abs_rel": float("nan")}}


@pytest.fixture(scope="module")
def rooms():
    return open_dataset(CONFIG, "val")


class Oracle(nn.Module):
    """Gives raw predictions that decode to what ``answer(task, index)`` says, for the pictures ``order`` in turn."""

    def __init__(self, dataset, order, answer):
        super().__init__()
        self.tasks, self.classes = dataset.tasks, dataset.classes
        self.order, self.answer, self.modes = list(order), answer, []

    def forward(self, images, tasks, *, full_size):  # noqa: ARG002
        self.modes.append(self.training)
        now, self.order = self.order[: len(images)], self.order[len(images) :]
        return Output({task: torch.stack([self.raw(task, self.answer(task, i)) for i in now]) for task in tasks}, {})

    def raw(self, task, value):
        output = TASKS[task].output
        if output == "class":
            return nn.functional.one_hot(value.long(), len(self.classes[task])).movedim(-1, 0).float()
        if output == "foreground":
            return torch.stack([torch.zeros(value.shape), torch.logit(value.double(), 1e-9).float()])
        if output == "probability":
            return torch.logit(value.double(), 1e-9)[None].float()
        return value if value.dim() == 3 else value[None]


def truth_of(dataset):
    return lambda task, index: dataset[index][task]


# ---- against the truth and against plain counting


def test_the_truth_scores_perfectly(rooms):
    scores = headline(evaluate(Oracle(rooms, range(5), truth_of(rooms)), rooms, CONFIG, batch_size=2))
    assert scores.keys() == set(TASKS)
    for task, score in scores.items():
        # boundaries within five pixels of the picture's edge fade out, as in the field's benchmark
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
        """Depth rises evenly from left to right; the margin, where enlarging has no neighbours, is unlabelled."""

        tasks, classes = ("depth",), {}

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
        tasks, classes = rooms.tasks, rooms.classes

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


# ---- files and tables


def test_scores_are_written_whole_with_what_they_were_measured_on(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("from before")
    write_scores(SCORES, path, data="scenes", pictures=3)
    expected = {"semseg": SCORES["semseg"], "depth": {"RMSE": 0.6, "abs_rel": None}}
    assert json.loads(path.read_text()) == {"data": "scenes", "pictures": 3, "scores": expected}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_scores_that_cannot_be_written_are_a_mistake_and_leave_nothing(tmp_path):
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for path in (tmp_path / "a file" / "scores.json", tmp_path / "nowhere" / "scores.json", tmp_path / "a folder"):
        with pytest.raises(MistakeError, match="cannot write"):
            write_scores(SCORES, path)
        assert sorted(os.listdir(tmp_path)) == before, path


def test_delta_m_reads_plain_figures_and_the_files_of_write_scores(tmp_path):
    expected = 100 * ((40 - 50) / 50 - (0.6 - 0.8) / 0.8) / 2  # depth: lower is better
    plain, written = tmp_path / "plain.json", tmp_path / "written.json"
    plain.write_text('{"semseg": 50, "depth": 0.8}')
    write_scores({"semseg": {"mIoU": 50.0}, "depth": {"RMSE": 0.8}}, written, data="scenes")
    for path in (plain, written):
        assert compare_single_task(SCORES, path) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "[1, 2]", "7", '{"semseg": "much", "depth": 1}', '{"semseg": 40}', '{"semseg": 40, "depth": 0}', "\x00",
        '{"scores": {"semseg": {"acc": 1}}}', '{"scores": {"smell": {"mIoU": 1}}}', '{"semseg": null, "depth": 1}',
    ],
)  # fmt: skip
def test_single_task_scores_that_cannot_be_used_are_a_mistake_in_one_line(tmp_path, text):
    (tmp_path / "single.json").write_text(text)
    with pytest.raises(MistakeError) as caught:
        compare_single_task(SCORES, tmp_path / "single.json")
    assert "\n" not in str(caught.value)


def test_a_file_of_single_task_scores_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(MistakeError, match=r"single\.json"):
        compare_single_task(SCORES, tmp_path / "single.json")


def test_the_table_has_every_figure_its_unit_and_the_columns_to_compare(tmp_path):
    others = {"constant": {"depth": {"RMSE": 1.25}}}
    scores = {**SCORES, "semseg": {**SCORES["semseg"], "IoU/wall": 77.77}}
    with (tmp_path / "table").open("w") as file:
        Console(file=file, width=120).print(score_table(scores, derived=("depth",), others=others))
    lines = {line.split("│")[2].strip(): line for line in (tmp_path / "table").read_text().splitlines() if "│" in line}
    assert lines.keys() == {"mIoU ^ %", "pixel_acc", "RMSE v m", "abs_rel"}
    assert "semantic segmentation" in lines["mIoU ^ %"]
    assert "40" in lines["mIoU ^ %"]
    assert "depth (derived labels)" in lines["RMSE v m"]
    assert "0.6" in lines["RMSE v m"]
    assert "1.25" in lines["RMSE v m"]
