from __future__ import annotations

import json

import pytest

from mtlsi.errors import MistakeError
from mtlsi.prediction.graph_facts import read_facts
from mtlsi.prediction.shown import Shown

SEMSEG = {
    "name": "semseg",
    "kind": "classes",
    "title": "semantic segmentation",
    "classes": ["wall", "floor"],
    "colours": [[1, 2, 3], [4, 5, 6]],
}
DEPTH = {"name": "depth", "kind": "distance", "title": "depth", "unit": "metres", "range": None}
CAMERA = {"focal_px": 100.0, "size_hw": [64, 96]}


def texts(**changes):
    facts = {
        "tasks": [SEMSEG, DEPTH],
        "working_size": [64, 96],
        "resize": "keep_ratio",
        "own_tasks": [],
        "camera": CAMERA,
    }
    return {name: json.dumps(value) for name, value in (facts | changes).items()}


def test_what_export_writes_is_read():
    found = read_facts(texts())
    assert [task["name"] for task in found.tasks] == ["semseg", "depth"]
    assert found.classes == {"semseg": ("wall", "floor")}
    assert found.colours == {"semseg": ((1, 2, 3), (4, 5, 6))}
    assert found.resizes
    assert found.share == 1
    assert found.training_camera is not None
    assert found.training_camera.shown == Shown((64, 96), "keep_ratio")
    plain = read_facts(texts(working_size=None, camera=None))
    assert not plain.resizes
    assert plain.training_camera is None
    assert read_facts(texts(camera=CAMERA | {"shown_share": 0.5})).share == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": 5}, "semseg's colours: 5; expected a list"),
        ({"colours": None}, "semseg's colours: None; expected a list"),
        ({"colours": [[1, 2, 3]]}, "1 colours for 2 classes"),
        ({"colours": [[1, 2, 3]] * 1000}, "1000 colours for 2 classes"),
        ({"colours": [[1, 2, 300], [1, 2, 3]]}, r"a colour of semseg: \[1, 2, 300\]; expected \[red, green, blue\]"),
        ({"colours": [[1, 2, -1], [1, 2, 3]]}, "a colour of semseg"),
        ({"colours": [[1, 2, 0.5], [1, 2, 3]]}, "a colour of semseg"),
        ({"colours": [[True, True, True], [1, 2, 3]]}, "a colour of semseg"),
        ({"colours": [[1, 2, 3, 4], [1, 2, 3]]}, "a colour of semseg"),
        ({"colours": ["abc", "def"]}, "a colour of semseg"),
        ({"classes": 5}, "semseg's classes: 5; expected a list"),
        ({"classes": "ab"}, "semseg's classes: 'ab'; expected a list"),
        ({"classes": []}, "semseg has no classes"),
        ({"classes": [1, 2]}, "a class of semseg: 1; expected a str"),
        ({"classes": ["a", "b\x1b[31m"]}, "a class of semseg.*; expected no control characters"),
        ({"classes": ["a", "\ud800"]}, "a class of semseg: .*; expected whole characters"),
        ({"classes": ["a", "b" * 1000]}, "1000 characters; expected 200 at most"),
        ({"classes": ["x"] * 5000}, "5000 of semseg; expected 4096"),
        ({"title": "x" * 1000}, "semseg's title: 1000 characters"),
        ({"title": "\x1b[31m"}, "semseg's title.*; expected no control characters"),
        ({"unit": 5}, "semseg's unit: 5; expected a str"),
        ({"name": 3}, "a task's name: 3; expected a str"),
        ({"name": "smell"}, "unknown task 'smell'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_facts(texts(tasks=[SEMSEG | change]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": None}, "tasks: None; expected a list"),
        ({"tasks": {}}, "tasks: {}; expected a list"),
        ({"tasks": ["depth"]}, "a task: 'depth'; expected a dict"),
        ({"tasks": [DEPTH] * 65}, "65 tasks; expected 64 at most"),
        ({"tasks": [DEPTH] * 2}, "each once"),
        ({"own_tasks": None}, "own_tasks: None; expected a list"),
        *[
            ({"working_size": size}, "working_size: .*; expected a height and a width")
            for size in ([], [1], [0, 0], [-1, 5], [1, 2, 3], [1.5, 2], ["a", "b"], "ab", 5, True, [True, True], [1, 10**9])
        ],
        ({"working_size": None}, "a camera without a working_size"),
        ({"resize": "foo"}, "resize 'foo'; expected one of stretch, keep_ratio"),
        ({"resize": ["stretch"]}, "resize"),
        ({"camera": 3}, "camera: 3; expected a dict"),
        ({"camera": []}, r"camera: \[\]; expected a dict"),
        *[
            ({"camera": CAMERA | {"focal_px": focal}}, "focal length")
            for focal in (0, -5, 1e-320, 1e308)
        ],
        ({"camera": CAMERA | {"focal_px": "nan"}}, "focal_px: 'nan'; expected a number"),
        ({"camera": CAMERA | {"focal_px": True}}, "focal_px: True; expected a number"),
        *[
            ({"camera": CAMERA | {"size_hw": size}}, "the camera's size_hw")
            for size in ([0, 0], [-1, 5], ["a", "b"], 64, [64], [64, 96, 3], [None, 1], [1e308, 1e308])
        ],
        *[
            ({"camera": CAMERA | {"shown_share": share}}, "shown_share")
            for share in (0, -2, "nan", 1e308, 1e-320, [1])
        ],
    ],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(MistakeError, match=message):
        read_facts(texts(**changes))


def test_a_task_of_classes_without_them_is_refused():
    with pytest.raises(LookupError, match="classes"):
        read_facts(texts(tasks=[{"name": "semseg"}]))
