"""What an exported model says of itself, beside its graph: anybody may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlsi.config import RESIZES
from mtlsi.errors import MistakeError, check_choice
from mtlsi.kinds.colouring import Colour, checked_colours
from mtlsi.model.facts import LONGEST_SIDE
from mtlsi.prediction.camera import TrainingCamera
from mtlsi.prediction.shown import Shown, Size
from mtlsi.reading import parse_json, shortened
from mtlsi.tasks import MOST_TASKS, TASKS, check_classes, check_printed, check_tasks, register_records

SHARES = (1e-3, 1e3)


@dataclass(frozen=True)
class GraphFacts:
    """What ``mtlsi export`` wrote into ``metadata_props``."""

    tasks: list[dict[str, Any]]
    """What each task's numbers mean: name, kind, title, unit or class names and their colours."""
    classes: dict[str, tuple[str, ...]]
    colours: dict[str, tuple[Colour, ...]]
    resizes: bool
    """The graph takes images of any size."""
    training_camera: TrainingCamera | None
    share: float
    """What distances are still to be multiplied by: other than 1 in a file of before graphs did so themselves."""


def read_facts(texts: Mapping[str, str]) -> GraphFacts:
    """The facts in ``texts``; registers tasks of its author's own.

    Raises ``MistakeError`` or ``LookupError`` for what is missing, and ``ValueError`` for what is no JSON or cannot be.
    """
    register_records(_a(list, "own_tasks", parse_json(texts["own_tasks"])))
    tasks = [_a(dict, "a task", task) for task in _a(list, "tasks", parse_json(texts["tasks"]))]
    if len(tasks) > MOST_TASKS:
        raise MistakeError(f"{len(tasks)} tasks; expected {MOST_TASKS} at most")
    names = check_tasks([_text("a task's name", task["name"]) for task in tasks])
    of_classes = {name: task for name, task in zip(names, tasks, strict=True) if TASKS[name].kind == "classes"}
    for task in tasks:
        for field in ("kind", "title", "unit"):
            _text(f"{task['name']}'s {field}", task.get(field, ""))
    classes = {name: tuple(_a(list, f"{name}'s classes", task["classes"])) for name, task in of_classes.items()}
    check_classes(classes)
    for name, given in classes.items():
        if not given:
            raise MistakeError(f"{name} has no classes; expected one at least")
        for one in given:
            _text(f"a class of {name}", one)
    colours = {
        name: checked_colours(name, task["colours"], len(classes[name]))
        for name, task in of_classes.items()
        if "colours" in task
    }
    working_size = parse_json(texts["working_size"])
    shown = None
    if working_size is not None:
        resize = parse_json(texts.get("resize", f'"{RESIZES[0]}"'))
        check_choice("resize", resize, RESIZES)
        shown = Shown(_size("working_size", working_size), resize)
    camera = parse_json(texts.get("camera", "null"))
    camera = {} if camera is None else _a(dict, "camera", camera)
    share = _number("shown_share", camera.get("shown_share", 1))
    if not SHARES[0] <= share <= SHARES[1]:
        raise MistakeError(f"shown_share {share:g}; expected {SHARES[0]:g}..{SHARES[1]:g}")
    return GraphFacts(tasks, classes, colours, shown is not None, _camera(camera, shown), share)


def _camera(camera: Mapping[str, Any], shown: Shown | None) -> TrainingCamera | None:
    if not camera:
        return None
    if shown is None:
        raise MistakeError("a camera without a working_size; expected both")
    if "input_size" in camera:  # not in a file of before it mattered, whose working size it is taken to be
        shown = Shown(_size("the camera's input_size", camera["input_size"]), shown.resize)
    return TrainingCamera(
        _number("focal_px", camera["focal_px"]), _size("the camera's size_hw", camera["size_hw"]), shown
    )


def _a(kind: type, what: str, value: Any) -> Any:
    if not isinstance(value, kind):
        raise MistakeError(f"{what}: {shortened(value)}; expected a {kind.__name__}")
    return value


def _text(what: str, value: Any) -> str:
    check_printed(what, _a(str, what, value))
    return value


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MistakeError(f"{what}: {shortened(value)}; expected a number")
    return float(value)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _size(what: str, value: Any) -> Size:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_whole(side, 1, LONGEST_SIDE) for side in value):
        raise MistakeError(f"{what}: {shortened(value)}; expected a height and a width, 1..{LONGEST_SIDE}")
    return value[0], value[1]
