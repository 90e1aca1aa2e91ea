from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlsi.figures.sheet import Sheets


def sheets_of(scores, num_shown, uniform=(), task="depth", score="RMSE"):
    """What is kept of images with these scores, and the indices that were read."""
    read = []

    def sample(index):
        read.append(index)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        return {"image": image, "depth": torch.ones(8, 8), "semseg": torch.zeros(8, 8, dtype=torch.uint8)}

    sheets = Sheets(num_shown, sample, lambda index: f"image{index}", {"semseg": ("a", "b")}, {})
    for index, value in enumerate(scores):
        if task == "semseg":
            sheets.look_at(task, torch.tensor([0, 0] if index in uniform else [0, 1], dtype=torch.uint8))
        prediction = torch.ones(1, 8, 8) if task == "depth" else torch.zeros(1, 8, 8, dtype=torch.uint8)
        sheets.add(index, {task: prediction}, {task: {score: value}})
    return sheets, read


def indices(shown):
    return [x.rank[1] for x in shown]


@pytest.mark.parametrize(("task", "score", "sign"), [("depth", "RMSE", 1), ("semseg", "mIoU", -1)])
def test_the_best_and_the_worst_are_those_of_a_sorted_list(task, score, sign):
    scores = np.random.default_rng(0).permutation(40).astype(float)
    sheets, read = sheets_of(scores, 3, task=task, score=score)
    best, worst = sheets.of(task)
    order = np.argsort(sign * scores)
    assert indices(best) == order[:3].tolist()
    assert indices(worst) == order[-3:].tolist()  # the worst last
    assert [x.score for x in best] == scores[order[:3]].tolist()
    assert len(read) == len(set(read)) < 30  # only what entered was read, and once
    assert sheets.record(task)["best"][0] == {"image": f"image{order[0]}", "score": scores[order[0]]}


def test_of_equal_scores_the_earlier_image_stays():
    best, worst = sheets_of([2.0, 1.0, 1.0, 2.0, 1.0], 1)[0].of("depth")
    assert (indices(best), indices(worst)) == ([1], [0])


def test_images_without_a_label_are_passed_over_and_none_is_shown_twice():
    sheets, _ = sheets_of([float("nan"), 3.0, 1.0, float("nan"), 2.0], 2)
    best, worst = sheets.of("depth")
    assert (indices(best), indices(worst)) == ([2, 4], [1])
    assert sheets.record("depth")["images"] == 3


def test_empty_images_are_not_among_the_best_but_may_be_the_worst():
    sheets, _ = sheets_of([100.0, 90.0, 0.0, 80.0, 100.0], 2, uniform=(0, 2, 4), task="semseg", score="mIoU")
    best, worst = sheets.of("semseg")
    assert (indices(best), indices(worst)) == ([1, 3], [2])
