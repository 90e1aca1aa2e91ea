import dataclasses
import itertools

import numpy as np
import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.losses import LOSSES, MultiTaskLoss
from mtlsi.metrics import METRICS, MetricSettings, build_metric
from mtlsi.model.build import create_model
from mtlsi.model.heads import decode
from mtlsi.tasks import NYUD40, PASCAL21, TASK_SETS, TASKS, check_tasks, num_channels, palette

CLASSES = {"semseg": tuple("abcde"), "parsing": tuple("abc")}


def label_full_of(task, value, dtype=None):
    """A label (2 2), or (3 2 2), that holds ``value`` everywhere, as NumPy has it."""
    shape = (3, 2, 2) if task.label_channels else (2, 2)
    return np.full(shape, value, dtype or task.label_dtype)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_record_names_things_that_exist(task):
    assert TASKS[task.name] is task
    assert task.loss in LOSSES
    assert task.metric in METRICS
    assert task.loss_weight > 0


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_record_agrees_with_itself(task):
    """Channels, label and the meaning of the output have to fit each other."""
    assert (task.channels is None) == (task.output == "class") == (task.image == "palette")
    assert task.label_channels in (0, 3)
    expected_channels = {"foreground": 2, "probability": 1, "value": 1, "direction": 3, "class": None}
    assert task.channels == expected_channels[task.output]
    assert (task.label_channels == 3) == (task.output == "direction") == (task.flip == "negate_x")
    assert task.invalid == (255 if task.label_dtype == "uint8" else 0)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_metric_gives_the_score_and_the_direction_of_the_record(task):
    """A prediction that equals its label is better than one that is shifted sideways."""
    label = torch.zeros(1, 3, 16, 16) if task.label_channels else torch.zeros(1, 16, 16)
    label[..., 8] = 1  # one column
    label = label.to(getattr(torch, task.label_dtype))
    scores = []
    for prediction in (label, label.roll(5, -1)):
        metric = build_metric(task, MetricSettings(num_classes=4, boundary_tolerance=0.01))
        metric.update(prediction if task.output == "class" else prediction.float(), label, task.valid(label))
        scores.append(float(metric.compute()[task.score]))
    good, bad = scores
    assert good > bad if task.higher_is_better else good < bad


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_valid_is_false_exactly_at_the_invalid_value(task, as_tensor):
    empty, label = label_full_of(task, task.invalid), label_full_of(task, 1)
    label[..., 0, 1] = task.invalid
    if as_tensor:
        empty, label = torch.from_numpy(empty), torch.from_numpy(label)
    assert not task.valid(empty).any()
    assert task.valid(label).tolist() == [[True, False], [True, True]]


def test_nan_and_negative_depth_are_invalid():
    depth = np.array([[np.nan, 0.0], [-1.0, 2.5]], np.float32)
    for label in (depth, torch.from_numpy(depth)):
        assert TASKS["depth"].valid(label).tolist() == [[False, False], [False, True]]


def test_task_sets_speak_of_known_tasks_and_name_all_their_classes():
    for name, task_set in TASK_SETS.items():
        assert task_set.name == name
        assert check_tasks(task_set.tasks) == task_set.tasks
        assert set(task_set.classes) == {task for task in task_set.tasks if TASKS[task].channels is None}
        for names in task_set.classes.values():
            assert len(set(names)) == len(names) < 255
    assert (len(NYUD40), len(PASCAL21)) == (40, 21)


def test_num_channels_comes_from_the_record_or_from_the_class_names():
    assert {task: num_channels(task, CLASSES) for task in TASKS} == {
        "semseg": 5, "parsing": 3, "saliency": 2, "depth": 1, "normals": 3, "boundary": 1,
    }  # fmt: skip
    with pytest.raises(MistakeError, match="parsing: no class names given"):
        num_channels("parsing", {"semseg": ["a"]})


def test_tasks_as_a_plain_string():
    assert check_tasks("depth") == ("depth",)
    assert check_tasks("normals, depth", among=["depth", "normals"]) == ("normals", "depth")


@pytest.mark.parametrize(
    ("given", "among", "said"),
    [
        (["depth", "dept"], TASKS, "unknown task 'dept'; expected some of semseg, parsing"),
        (["parsing"], ["semseg", "depth"], "unknown task 'parsing'; expected some of semseg, depth"),
        ([], TASKS, "at least one"),
        (["depth", "depth"], TASKS, "each once"),
        ("depth,dept", TASKS, "unknown task 'dept'"),
    ],
)
def test_check_tasks_says_what_was_wrong_in_one_line(given, among, said):
    with pytest.raises(MistakeError, match=said) as error:
        check_tasks(given, among)
    assert "\n" not in str(error.value)


def test_check_tasks_keeps_the_given_order():
    assert check_tasks(name for name in ("normals", "depth")) == ("normals", "depth")


def test_palette_has_a_colour_of_its_own_for_every_class():
    colours = palette(255)
    assert len(set(colours)) == len(colours) == 255
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    assert palette(40) == colours[:40]


def test_neighbouring_classes_look_different():
    """The 40 classes of NYUDv2: no two colours closer than what an eye tells apart side by side."""
    colours = np.array(palette(40), float)
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2))
    assert nearest > 10


def test_a_seventh_task_is_one_record(monkeypatch):
    """A task that needs no new loss or metric needs nothing but its record."""
    record = dataclasses.replace(TASKS["normals"], name="flow", title="flow direction", loss_weight=3.0)
    monkeypatch.setitem(TASKS, "flow", record)
    tasks = ("semseg", "flow")
    model = create_model("tiny", tasks=tasks, classes=CLASSES)
    out = model(torch.randn(1, 3, 64, 64))
    assert out.final["flow"].shape == (1, 3, 64, 64)
    labels = {
        "semseg": torch.zeros(1, 64, 64, dtype=torch.uint8),
        "flow": torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 64, 64),
    }
    total, parts = MultiTaskLoss(tasks)(out.final, out.coarse, labels)
    total.backward()
    expected = sum(TASKS[name.removeprefix("coarse/")].loss_weight * value for name, value in parts.items())
    assert total.item() == pytest.approx(float(expected), rel=1e-4)
    assert model.heads.predict.of_task["flow"].weight.grad.abs().sum() > 0
    direction = decode("flow", out.final["flow"])
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(1, 64, 64))
