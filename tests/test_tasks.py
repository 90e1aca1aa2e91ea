import dataclasses
import json

import pytest
import torch

import mtlsi
from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.losses import LOSSES, MultiTaskLoss
from mtlsi.metrics import METRICS, MetricSettings, build_metric
from mtlsi.model.build import create_model
from mtlsi.tasks import (
    BUILT_IN,
    KINDS,
    LOSSES_OF,
    METRICS_OF,
    NYUD40,
    PASCAL21,
    SCORES,
    TASK_SETS,
    TASKS,
    Task,
    check_classes,
    check_tasks,
    num_channels,
    own_records,
    register_records,
    register_task,
)

CLASSES = {"semseg": tuple("abcde"), "parsing": tuple("abc")}


@pytest.fixture(autouse=True)
def own_tasks_end_with_the_test(monkeypatch):
    for name in set(TASKS) - set(BUILT_IN):
        monkeypatch.delitem(TASKS, name)
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)


def test_every_kind_has_its_losses_metrics_and_behaviour():
    assert set(KINDS) == set(LOSSES_OF) == set(METRICS_OF) == set(kinds.KIND_TYPES)
    assert {name for names in LOSSES_OF.values() for name in names} == set(LOSSES)
    assert {name for names in METRICS_OF.values() for name in names} == set(METRICS) == set(SCORES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_and_a_kind_are_a_whole_record(kind):
    task = Task("mine", kind=kind)
    assert task.title == "mine"
    assert (task.loss, task.metric) == (LOSSES_OF[kind][0], METRICS_OF[kind][0])
    assert (task.score, task.higher_is_better) == SCORES[task.metric][:2]
    assert task.channels == {"classes": None, "strength": 2, "value": 1, "distance": 1, "direction": 3}[kind]


def test_built_in_records_say_what_the_papers_peers_use():
    assert {name: (task.channels, task.loss, task.loss_weight, task.metric, task.unit) for name, task in TASKS.items()} == {
        "semseg": (None, "cross_entropy", 1, "miou", "%"),
        "parsing": (None, "cross_entropy", 2, "miou", "%"),
        "saliency": (2, "balanced_cross_entropy", 5, "max_f", "%"),
        "depth": (1, "l1", 1, "depth_error", "m"),
        "normals": (3, "unit_l1", 10, "angular_error", "deg"),
        "boundary": (1, "weighted_bce", 50, "boundary_f", "%"),
    }  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_gives_its_score_and_knows_which_way_is_better(metric):
    """A prediction that equals its label is better than one that is shifted sideways."""
    kind = next(kind for kind, names in METRICS_OF.items() if metric in names)
    task = Task("mine", kind=kind, metric=metric)
    label = torch.zeros(1, 3, 16, 16) if kind == "direction" else torch.zeros(1, 16, 16)
    label[..., 8] = 1  # one column
    label = label.to(kinds.of(task).label_dtype())
    scores = []
    for prediction in (label, label.roll(5, -1)):
        measure = build_metric(task, MetricSettings(num_classes=4, boundary_tolerance=0.01))
        measure.update(prediction if kind == "classes" else prediction.float(), label, kinds.of(task).valid(label))
        scores.append(float(measure.compute()[task.score]))
    good, bad = scores
    assert good > bad if task.higher_is_better else good < bad


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "colour"}, "task 'mine': kind 'colour'; expected one of classes, strength, value"),
        ({"kind": "value", "loss": "unit_l1"}, "task 'mine': loss 'unit_l1'; expected one of l1, l2, smooth_l1"),
        ({"kind": "value", "metric": "miou"}, "task 'mine': metric 'miou'; expected value_error"),
        ({"kind": "value", "channels": 0}, "task 'mine': channels 0; expected 1..1024"),
        ({"kind": "direction", "channels": 2}, "task 'mine': channels 2; expected 3"),
        ({"kind": "strength", "loss": "weighted_bce", "channels": 2}, "task 'mine': channels 2; expected 1"),
        ({"kind": "classes", "channels": 7}, "task 'mine': channels 7; expected none"),
        ({"kind": "value", "range": (1, 0)}, r"task 'mine': range \[1, 0\]; expected"),
        ({"kind": "direction", "range": (0, 1)}, r"range \[0, 1\]; expected"),
        ({"kind": "value", "thin": True}, "thin with kind value; expected kind strength"),
        ({"kind": "value", "loss_weight": float("nan")}, "loss_weight nan; expected a number of at least 0"),
    ],
)
def test_a_record_that_contradicts_its_kind_is_refused_in_one_line(fields, message):
    with pytest.raises(MistakeError, match=message) as raised:
        Task("mine", **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["depth", "my task", "a.b", "", "image", "panel", "3d", "values", "training", "größe"])
def test_names_that_cannot_be_a_tasks_are_refused(name):
    with pytest.raises(MistakeError, match="expected"):
        register_task(Task(name, kind="value"))
    assert tuple(TASKS) == BUILT_IN


def test_a_later_record_replaces_an_earlier_one_of_its_name():
    mtlsi.register_task(mtlsi.Task("albedo", kind="value"))
    register_task(Task("albedo", kind="value", channels=3))
    assert TASKS["albedo"].channels == kinds.of("albedo").label_channels == 3
    assert check_tasks(["albedo", "depth"]) == ("albedo", "depth")


def test_records_survive_json():
    tasks = [Task("albedo", kind="value", channels=3, range=(0, 1)), Task("mark", kind="strength", thin=True)]
    for task in tasks:
        register_task(task)
    records = json.loads(json.dumps(own_records(["depth", "mark", "albedo"])))
    assert [record["name"] for record in records] == ["mark", "albedo"]
    for task in tasks:
        del TASKS[task.name]
    register_records(records)
    assert [TASKS[task.name] for task in tasks] == tasks


@pytest.mark.parametrize("record", [{"name": "a"}, {"name": "a", "kind": "value", "colour": 1}, 3])
def test_a_record_that_is_none_is_told_in_one_line(record):
    with pytest.raises(MistakeError, match=r"expected the fields of mtlsi\.tasks\.Task") as raised:
        register_records([record])
    assert "\n" not in str(raised.value)


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


def test_a_seventh_task_is_one_record():
    """A task that needs no new loss or metric needs nothing but its record."""
    record = dataclasses.replace(TASKS["normals"], name="flow", title="flow direction", loss_weight=3.0)
    register_task(record)
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
    assert model.decoder.heads.predict.of_task["flow"].weight.grad.abs().sum() > 0
    direction = mtlsi.decode("flow", out.final["flow"])
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(1, 64, 64))


@pytest.mark.parametrize("sign", ["\x1b[2J", "\x9b2J", "\r", "\x00"])
def test_names_that_would_steer_a_terminal_are_refused(sign):
    for make in (
        lambda: create_model("tiny", tasks=("semseg",), classes={"semseg": ["floor", f"wall{sign}"]}),
        lambda: Task("albedo", kind="value", title=f"a{sign}"),
        lambda: Task("albedo", kind="value", unit=sign),
    ):
        with pytest.raises(MistakeError, match="expected no control characters") as refused:
            make()
        assert sign not in str(refused.value)
    assert create_model("tiny", tasks=("semseg",), classes={"semseg": ["床", "стена", "a\u00a0b"]}).classes


@pytest.mark.parametrize(
    ("text", "told"), [("w" * 201, "201 characters; expected 200 at most"), ("wall\ud800", "expected whole characters")]
)
def test_names_that_are_too_long_or_no_text_are_refused(text, told):
    for make in (
        lambda: check_classes({"semseg": ["floor", text]}, "dataset.yaml: "),
        lambda: Task("albedo", kind="value", title=text),
        lambda: Task("albedo", kind="value", unit=text),
        lambda: register_task(Task(text, kind="value", title="albedo")),
    ):
        with pytest.raises(MistakeError, match=told) as refused:
            make()
        assert len(str(refused.value).encode()) < 400
    check_classes({"semseg": ["w" * 200, "floor [wood]", "Küche: 床", "$5"]})
