"""The best evaluation and the end of patience, against a plain reading of the list of scores."""

from __future__ import annotations

import json
import os

import pytest
from safetensors.torch import load_file

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.run_folder import kept_step, note_of_best
from mtlsi.training.best import Best, keep

TASKS = ("semseg", "depth")
CLASSES = {"semseg": ("wall", "floor")}
NAN = float("nan")


def best_of(score, values, patience=0):
    best = Best(score, patience, CLASSES, TASKS, 5)
    task, figure = score.split(".")
    news = [best.take_in(10 * (i + 1), {task: {figure: value}}) for i, value in enumerate(values)]
    return best, news


def test_higher_or_lower_is_better_as_the_record_of_the_score_says():
    values = [2.0, 3.0, 3.0, 1.0, 1.0]
    best, news = best_of("semseg.mIoU", values)
    assert (best.best, news) == ((20, 3.0), [True, True, False, False, False])  # the first of equals
    best, news = best_of("depth.RMSE", values)
    assert (best.best, news) == ((40, 1.0), [True, False, False, True, False])
    assert best.describe() == "depth.RMSE 1 at step 40"


@pytest.mark.parametrize(
    ("values", "patience", "over_after"),
    [([5, 4, 3, 6, 7], 2, 5), ([5, 6, 4, 6, 3], 2, None), ([5, 4, 3], 0, None), ([NAN, NAN], 2, 2), ([5, 5, 5], 2, 3)],
)
def test_patience_ends_after_so_many_evaluations_without_a_better_one(values, patience, over_after):
    best = Best("depth.RMSE", patience, CLASSES, TASKS, 5)
    over = []
    for i, value in enumerate(values):
        best.take_in(i, {"depth": {"RMSE": value}})
        over.append(best.is_over)
    assert (over.index(True) + 1 if True in over else None) == over_after


def test_a_score_that_is_not_defined_is_never_the_best():
    best, news = best_of("semseg.mIoU", [NAN, 1.0, NAN])
    assert (best.best, news, best.waited) == ((20, 1.0), [False, True, False], 1)
    best, _ = best_of("semseg.mIoU", [NAN])
    assert best.best is None
    assert best.describe() == "semseg.mIoU undefined"


def test_delta_is_the_geometric_mean_of_the_gains_over_the_first_evaluation_with_all_scores():
    best = Best("delta", 0, CLASSES, TASKS, 5)
    pairs = [(0.0, 1.0), (10.0, 2.0), (20.0, 2.0), (40.0, 4.0), (20.0, 1.0)]
    for step, (miou, rmse) in enumerate(pairs):
        best.take_in(step, {"semseg": {"mIoU": miou}, "depth": {"RMSE": rmse}})
    found = [one.value for one in best.evaluations]
    assert found[0] is None
    expected = [100 * ((miou / 10 * 2 / rmse) ** 0.5 - 1) for miou, rmse in pairs[1:]]
    assert found[1:] == pytest.approx(expected, abs=1e-9)
    assert best.best == (4, pytest.approx(100.0))


def test_what_the_metrics_say_up_to_a_step_is_remembered(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "val/depth/RMSE": 1.5, "val/depth/eigen/RMSE": 1.0, "evaluation_images": 5, "evaluation_s": 0.1},
        {"step": 4, "val/depth/RMSE": None, "evaluation_images": 5, "evaluation_s": 0.1},
        {"step": 4, "val/depth/RMSE": 0.1, "evaluation_images": 9, "evaluation_s": 0.1},  # of other images
        {"step": 6, "val/depth/RMSE": 1.2, "val/depth/eigen/RMSE": 1.1, "evaluation_images": 5, "evaluation_s": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "va')
    for score, step, expected in (
        ("depth.RMSE", 6, [(2, 1.5), (4, None), (6, 1.2)]),
        ("depth.RMSE", 5, [(2, 1.5), (4, None)]),
        ("depth.eigen/RMSE", 6, [(2, 1.0), (4, None), (6, 1.1)]),
    ):
        best = Best(score, 0, CLASSES, TASKS, 5)
        best.remember(tmp_path, step)
        assert best.evaluations == expected
    Best("depth.RMSE", 0, CLASSES, TASKS, 5).remember(tmp_path / "new", 0)


def test_an_unknown_score_is_a_mistake():
    with pytest.raises(MistakeError, match=r"train\.best_by 'depth\.odsF'; expected one of semseg\.mIoU.*, delta$"):
        Best("depth.odsF", 0, CLASSES, TASKS, 5)


def test_a_kept_model_is_a_model_folder_and_replaces_the_one_before(tmp_path):
    assert kept_step(tmp_path) is None
    for step, seed in ((3, 0), (7, 1)):
        network = create_model("tiny", tasks=("depth",))
        keep(network, network.state_dict(), {"depth": {"RMSE": 1.0, "MAE": NAN}}, tmp_path, step=step)
        assert kept_step(tmp_path) == step
        assert os.listdir(tmp_path) == ["best"]
        assert sorted(os.listdir(tmp_path / "best")) == ["config.json", "model.safetensors", "scores.json"]
        kept, own = load_file(tmp_path / "best" / "model.safetensors"), network.state_dict()
        assert all((kept[name] == own[name]).all() for name in own), seed
    assert MTLSINet.from_pretrained(tmp_path / "best").tasks == ("depth",)
    assert json.loads((tmp_path / "best" / "scores.json").read_text())["scores"] == {
        "depth": {"RMSE": 1.0, "MAE": None}
    }


def test_a_run_with_a_better_model_than_its_last_says_so(tmp_path):
    run = tmp_path / "run"
    (run / "state" / "step_000007").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    assert note_of_best(run) is None
    network = create_model("tiny", tasks=("depth",))
    keep(network, network.state_dict(), {"depth": {"RMSE": 1.0}}, run, step=3)
    assert note_of_best(str(run)) == f"{run} has the run's last weights; the best, of step 3: {run / 'best'}"
    assert note_of_best(run / "best") is None
    assert note_of_best("nyud") is None
    keep(network, network.state_dict(), {"depth": {"RMSE": 1.0}}, run, step=7)
    assert note_of_best(run) is None  # the last is the best
