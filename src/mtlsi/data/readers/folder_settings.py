"""``dataset.yaml``, in which a person says what a folder of their own holds: every key, its default, and its mistakes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlsi.data.readers.file_names import read_pattern
from mtlsi.data.readers.folder_classes import CLASS_NAMES, settle_classes
from mtlsi.data.readers.keys import Key, listed, mapping, number, one_of, read_keys, span, text, truth, whole
from mtlsi.errors import MistakeError, clipped, one_line
from mtlsi.io import holds
from mtlsi.kinds.colouring import Colour
from mtlsi.tasks import (
    BUILT_IN,
    KINDS,
    LAST_VALUE,
    LONGEST_TEXT,
    LOSSES_OF,
    MAX_DIST,
    METRICS_OF,
    TASKS,
    TOLERANCE_END,
    Task,
    check_classes,
    check_name,
    check_printed,
)
from mtlsi.yaml_files import read_yaml

SETTINGS = "dataset.yaml"
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
Splits = dict[str, str | tuple[str, ...] | float]


@dataclass(frozen=True)
class Settings:
    """What ``dataset.yaml`` says, with the defaults filled in."""

    path: Path
    name: str
    splits: Splits
    """By split: a file with one name per line, a folder in images/ (with a slash at its end), the names, or the share of
    the images that is held out for it. None at all: see ``folder_splits.py``."""
    tasks: dict[str, dict[str, Any]]
    """By task, a value for each of its keys."""
    own: dict[str, Task]
    """The tasks that are declared here, by name."""
    boundary_tolerance: float
    files: dict[str, str]
    """By task, or "images": where its files lie, with one ``*`` for the name; see ``file_names.py``."""


def _class_names(value: Any) -> tuple[str, ...]:
    names = listed(text)(value)
    if not names or len(set(names)) != len(names):
        raise ValueError
    return names


def _intrinsics(value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, dict) or set(value) != {"focal", "centre"}:
        raise ValueError
    return {"focal_xy": listed(number(0), 2)(value["focal"]), "centre_xy": listed(number(), 2)(value["centre"])}


def _files(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError
    return {text(name): read_pattern(pattern) for name, pattern in value.items()}


def _splits(value: Any) -> Splits:
    if not isinstance(value, dict) or not value:
        raise ValueError
    readers = {str: text, list: listed(text), float: number(0, 1)}
    if any(type(names) not in readers for names in value.values()):
        raise ValueError
    return {text(split): readers[type(names)](names) for split, names in value.items()}


def _values(value: Any) -> dict[int, str | None]:
    """Stored value -> the class that it stands for; None: no label."""
    if not isinstance(value, dict) or not value:
        raise ValueError
    return {_STORED(stored): None if name is None else text(name) for stored, name in value.items()}


def _colours(value: Any) -> dict[str, tuple[Colour, ...]] | tuple[tuple[Colour, ...], ...]:
    """By class name or in the order of the classes, its colours, the first of which it is drawn in."""
    if isinstance(value, dict):
        if not value:
            raise ValueError
        return {text(name): _one_or_more(colours) for name, colours in value.items()}
    return listed(_one_or_more)(value)


def _one_or_more(value: Any) -> tuple[Colour, ...]:
    several = isinstance(value, list) and value and isinstance(value[0], list)
    return listed(_COLOUR)(value if several else [value])


def _pixel(value: Any) -> int | Colour:
    return _COLOUR(value) if isinstance(value, list) else _STORED(value)


_STORED = whole(-(2**31), 2**31 - 1)
_COLOUR = listed(whole(0, 255), 3)
FILE_KEYS: dict[str, dict[str, Key]] = {
    "classes": {
        "classes": Key(CLASS_NAMES, _class_names),
        "colours": Key(
            "a list of [r, g, b] in 0..255, one for each class, or {class: [r, g, b]}; a class may have a list of them",
            _colours,
        ),
        "first": Key(f"the pixel value of the first class, 0..{LAST_VALUE - 1}", whole(0, LAST_VALUE - 1)),
        "values": Key(
            "{stored value: class}, such as {0: background, 255: object, 127: null}; null: no label", _values
        ),
        "invalid": Key(
            "a list of stored values, whole numbers, and of [r, g, b] in colour-coded files, without a label",
            listed(_pixel),
        ),
    },
    "strength": {"threshold": Key("a number between 0 and 1", number(0, 1), 0.5)},
    "value": {
        "scale": Key("a number above 0: what one stored unit is worth", number(0)),
        "invalid": Key("a list of stored values", listed(number()), ()),
    },
    "distance": {
        "unit": Key(", ".join(METRES), one_of(*METRES)),
        "scale": Key("a number above 0: metres per stored unit", number(0)),
        "invalid": Key("a list of stored values", listed(number()), (0.0,)),
    },
    "direction": {"axes": Key("three signs for x, y, z, such as [1, -1, -1]", listed(one_of(1, -1), 3), (1, 1, 1))},
}
"""By kind: how the files of a task are read."""
BUILT_IN_KEYS: dict[str, dict[str, Key]] = {
    "semseg": FILE_KEYS["classes"],
    "parsing": FILE_KEYS["classes"],
    "saliency": FILE_KEYS["strength"],
    "depth": FILE_KEYS["distance"]
    | {"intrinsics": Key("{focal: [fx, fy], centre: [cx, cy]} in pixels of the depth maps", _intrinsics)},
    "normals": FILE_KEYS["direction"] | {"from": Key("depth", one_of("depth"))},
    "boundary": {"from": Key("semseg or parsing", one_of("semseg", "parsing"))},
}
_KEYS = {
    "name": Key("a name in letters", text, ""),
    "splits": Key(
        "for each split a file with one name per line, a folder in images/ such as train/, a list of names in quotes, or a "
        "share between 0 and 1, such as {val: 0.2}",
        _splits,
        {},
    ),
    "tasks": Key("for each task its keys, such as {depth: {unit: mm}}", mapping, {}),
    "files": Key(
        "for images or a task where its files lie, with one * for the name, such as {semseg: '*_mask', depth: 'd/*_d.png'}",
        _files,
        {},
    ),
    "boundary_tolerance": Key(
        f"a fraction of the image's diagonal, above 0 and below {TOLERANCE_END}", number(0, TOLERANCE_END), MAX_DIST
    ),
}


def record_keys(kind: str) -> dict[str, Key]:
    """What a person's own task of this kind may say about itself, beside ``FILE_KEYS``: fields of ``Task``."""
    choices = {"loss": LOSSES_OF[kind], "metric": METRICS_OF[kind]}
    keys = {
        "kind": Key(", ".join(KINDS), one_of(*KINDS)),
        "title": Key("a text", text),
        "loss_weight": Key("a number above 0", number(0)),
        **{name: Key(", ".join(names), one_of(*names)) for name, names in choices.items()},
    }
    if kind == "value":
        keys |= {
            "channels": Key("a whole number in 1..1024", whole(1, 1024)),
            "unit": Key("a text", text),
            "range": Key("[low, high], low first", span),
        }
    if kind == "strength":
        keys["thin"] = Key("true or false", truth)
    return keys


def read_settings(root: Path, tasks: Collection[str] = ()) -> Settings:
    """What ``root``/dataset.yaml says, for the tasks that it names and for ``tasks``, whose folders are there.

    Raises ``MistakeError`` naming the file and the key.
    """
    path = root / SETTINGS
    try:
        content = read_yaml(path)
    except OSError as error:
        raise MistakeError(
            f"{path}: cannot be read ({root}: {holds(root)}); expected images/, a folder per task and {SETTINGS}"
        ) from error
    top = read_keys(path, "", content, _KEYS)
    own = {task: keys for task, keys in top["tasks"].items() if _declares(path, task, keys)}
    tasks = {*tasks, *top["files"]}
    known = [task for task in TASKS if (task in top["tasks"] or task in tasks) and task not in own]
    found = {
        task: read_keys(path, f"tasks.{task}", top["tasks"].get(task), BUILT_IN_KEYS.get(task) or _file_keys(task))
        for task in known
    }
    records = {}
    for task, keys in own.items():
        records[task], found[task] = _own_task(path, task, keys)
    _check(path, found)
    check_printed(f"{path}: name", top["name"])
    name = top["name"] or clipped(one_line(root.resolve().name), LONGEST_TEXT)
    return Settings(path, name, top["splits"], found, records, top["boundary_tolerance"], top["files"])


def _file_keys(task: str) -> dict[str, Key]:
    return FILE_KEYS[TASKS[task].kind]


def _declares(path: Path, task: Any, keys: Any) -> bool:
    """Whether an entry declares a person's own task; ``MistakeError`` where it is neither that nor a known task."""
    if task in BUILT_IN or (task in TASKS and "kind" not in (keys or {})):
        return False
    if not isinstance(keys, dict) or "kind" not in keys:
        raise MistakeError(
            f"{path}: tasks.{task}: unknown task; expected some of {', '.join(BUILT_IN)}, or for a task of your own its "
            f"kind: {', '.join(KINDS)}"
        )
    try:
        check_name(task)
    except MistakeError as error:
        raise MistakeError(f"{path}: tasks.{task}: {error}") from error
    if keys["kind"] not in KINDS:
        raise MistakeError(f"{path}: tasks.{task}.kind: {keys['kind']!r}; expected {', '.join(KINDS)}")
    return True


def _own_task(path: Path, name: str, values: Mapping[str, Any]) -> tuple[Task, dict[str, Any]]:
    """The record that an entry declares, and how its files are read."""
    kind = values["kind"]
    about_task = record_keys(kind)
    read = read_keys(path, f"tasks.{name}", values, about_task | FILE_KEYS[kind])
    fields = {key: read[key] for key in about_task if read[key] is not None}
    try:
        return Task(name, **fields), {key: read[key] for key in FILE_KEYS[kind]}
    except MistakeError as error:
        raise MistakeError(f"{path}: tasks.{name}: {error}") from error


def _check(path: Path, tasks: Mapping[str, dict[str, Any]]) -> None:
    """What no key can tell alone."""
    for task, keys in tasks.items():
        if "classes" in keys:
            settle_classes(path, task, keys)
        if keys.get("unit") and keys.get("scale"):
            raise MistakeError(f"{path}: tasks.{task}.scale: given beside unit; give one of the two")
    check_classes({task: keys["classes"] for task, keys in tasks.items() if "classes" in keys}, f"{path}: ")
    depth = tasks.get("depth")
    if tasks.get("normals", {}).get("from") and not (depth and depth["intrinsics"]):
        raise MistakeError(
            f"{path}: tasks.depth.intrinsics: missing, and normals are to come from depth; expected "
            f"{BUILT_IN_KEYS['depth']['intrinsics'].expected}"
        )
    source = tasks.get("boundary", {}).get("from")
    if source and source not in tasks:
        raise MistakeError(f"{path}: tasks.{source}: missing, and boundaries are to come from it; give its classes")
