"""``dataset.yaml``, in which a person says what a folder of their own holds: every key, its default, and its mistakes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtlsi.data.readers.files import read_names
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.tasks import MAX_DIST, TASKS

SETTINGS = "dataset.yaml"
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}


@dataclass(frozen=True)
class Key:
    """A key of ``dataset.yaml``: what it takes, in words and as a function that raises ``ValueError`` for all else."""

    expected: str
    read: Callable[[Any], Any]
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Settings:
    """What ``dataset.yaml`` says, with the defaults filled in."""

    path: Path
    name: str
    splits: dict[str, str | tuple[str, ...] | float]
    """By split: a file with one name per line, the names, or the share of the images that is held out for it."""
    tasks: dict[str, dict[str, Any]]
    """By task, a value for every key in ``TASK_KEYS``."""
    boundary_tolerance: float


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], float]:
    """A number between ``low`` and ``high``, both left out where they are finite."""

    def read(value: Any) -> float:
        if isinstance(value, str):
            value = float(value)  # YAML takes 1e-3 for a text
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if (math.isfinite(low) and not value > low) or (math.isfinite(high) and not value < high):
            raise ValueError
        return float(value)

    return read


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return read


def _listed(item: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], tuple]:
    def read(value: Any) -> tuple:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise ValueError
        return tuple(item(one) for one in value)

    return read


def _one_of(*choices: Any) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or value not in choices:
            raise ValueError
        return value

    return read


def _class_names(value: Any) -> tuple[str, ...]:
    names = _listed(_text)(value)
    if not names or len(set(names)) != len(names):
        raise ValueError
    return names


def _intrinsics(value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, dict) or set(value) != {"focal", "centre"}:
        raise ValueError
    return {"focal_xy": _listed(_number(0), 2)(value["focal"]), "centre_xy": _listed(_number(), 2)(value["centre"])}


def _splits(value: Any) -> dict[str, str | tuple[str, ...] | float]:
    if not isinstance(value, dict) or not value:
        raise ValueError
    readers = {str: _text, list: _listed(_text), float: _number(0, 1)}
    if any(type(of) not in readers for of in value.values()):
        raise ValueError
    return {_text(name): readers[type(of)](of) for name, of in value.items()}


def _mapping(value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError
    return value


_CLASS_KEYS = {
    "classes": Key(
        "a list of names, each once, in quotes where YAML reads a number or yes and no", _class_names, required=True
    ),
    "colours": Key("a list of [r, g, b] in 0..255", _listed(_listed(_whole(0, 255), 3))),
    "first": Key("the pixel value of the first class, 0..254", _whole(0, 254), 0),
    "invalid": Key("a list of pixel values in 0..255", _listed(_whole(0, 255)), (255,)),
}
TASK_KEYS: dict[str, dict[str, Key]] = {
    "semseg": _CLASS_KEYS,
    "parsing": _CLASS_KEYS,
    "saliency": {"threshold": Key("a number between 0 and 1", _number(0, 1), 0.5)},
    "depth": {
        "unit": Key(", ".join(METRES), _one_of(*METRES)),
        "scale": Key("a number above 0: metres per stored unit", _number(0)),
        "invalid": Key("a list of stored values", _listed(_number()), (0.0,)),
        "intrinsics": Key("{focal: [fx, fy], centre: [cx, cy]} in pixels of the depth maps", _intrinsics),
    },
    "normals": {
        "axes": Key("three signs for x, y, z, such as [1, -1, -1]", _listed(_one_of(1, -1), 3), (1, 1, 1)),
        "from": Key("depth", _one_of("depth")),
    },
    "boundary": {"from": Key("semseg or parsing", _one_of("semseg", "parsing"))},
}
_KEYS = {
    "name": Key("a name in letters", _text, ""),
    "splits": Key(
        "for each split a file with one name per line, a list of names in quotes, or a share between 0 and 1, such as "
        "{val: 0.2}",
        _splits,
        {"val": 0.2},
    ),
    "tasks": Key("for each task its keys, such as {depth: {unit: mm}}", _mapping, {}),
    "boundary_tolerance": Key("a fraction of the image's diagonal, between 0 and 0.1", _number(0, 0.1), MAX_DIST),
}


def read_settings(root: Path, tasks: Collection[str] = ()) -> Settings:
    """What ``root``/dataset.yaml says, for the tasks that it names and for ``tasks``, whose folders are there.

    Raises ``MistakeError`` naming the file and the key.
    """
    path = root / SETTINGS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MistakeError(
            f"{path}: cannot be read ({root}: {holds(root)}); expected images/, a folder per task and {SETTINGS}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise MistakeError(
            f"{path}: not YAML{where} ({getattr(error, 'problem', None) or 'broken'}); correct it"
        ) from error
    top = _read_keys(path, "", content, _KEYS)
    for task in top["tasks"]:
        if task not in TASKS:
            raise MistakeError(f"{path}: tasks.{task}: unknown task; expected some of {', '.join(TASKS)}")
    known = {task for task in TASKS if task in top["tasks"] or task in tasks}
    found = {task: _read_keys(path, f"tasks.{task}", top["tasks"].get(task), TASK_KEYS[task]) for task in known}
    _check(path, found)
    return Settings(path, top["name"] or root.resolve().name, top["splits"], found, top["boundary_tolerance"])


def _read_keys(path: Path, where: str, values: Any, keys: Mapping[str, Key]) -> dict[str, Any]:
    values, prefix = {} if values is None else values, f"{where}." if where else ""
    if not isinstance(values, dict):
        raise MistakeError(f"{path}: {where or 'holds'} {_short(values)}; expected keys, some of {', '.join(keys)}")
    for name in values:
        if name not in keys:
            raise MistakeError(f"{path}: {prefix}{name}: unknown key; expected some of {', '.join(keys)}")
    read = {}
    for name, key in keys.items():
        if name not in values:
            if key.required:
                raise MistakeError(f"{path}: {prefix}{name}: missing; expected {key.expected}")
            read[name] = key.default
            continue
        try:
            read[name] = key.read(values[name])
        except ValueError as error:
            raise MistakeError(f"{path}: {prefix}{name}: {_short(values[name])}; expected {key.expected}") from error
    return read


def _check(path: Path, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """What no key can tell alone."""
    for task in ("semseg", "parsing"):
        if task not in tasks:
            continue
        keys = tasks[task]
        num_classes, last = len(keys["classes"]), keys["first"] + len(keys["classes"]) - 1
        if last > 255 or num_classes > 255:
            raise MistakeError(
                f"{path}: tasks.{task}.classes: {num_classes} from pixel value {keys['first']} on; 8 bits end at 255"
            )
        if both := [value for value in keys["invalid"] if keys["first"] <= value <= last]:
            raise MistakeError(
                f"{path}: tasks.{task}.invalid: {both[0]} is a class too, of {keys['first']}..{last}; change one"
            )
        if keys["colours"] is not None and len(keys["colours"]) != num_classes:
            raise MistakeError(
                f"{path}: tasks.{task}.colours: {len(keys['colours'])} for {num_classes} classes; give as many"
            )
    depth = tasks.get("depth")
    if depth and depth["unit"] and depth["scale"]:
        raise MistakeError(f"{path}: tasks.depth.scale: given beside unit; give one of the two")
    if tasks.get("normals", {}).get("from") and not (depth and depth["intrinsics"]):
        raise MistakeError(
            f"{path}: tasks.depth.intrinsics: missing, and normals are to come from depth; expected "
            f"{TASK_KEYS['depth']['intrinsics'].expected}"
        )
    source = tasks.get("boundary", {}).get("from")
    if source and source not in tasks:
        raise MistakeError(f"{path}: tasks.{source}: missing, and boundaries are to come from it; give its classes")


def names_of_splits(settings: Settings, images: Collection[str]) -> dict[str, list[str]]:
    """The images of every split. Raises ``MistakeError`` for a list that cannot be read or names what is not there.

    Images on no list are shared out by the hash of their name, so that more images never move one to another split;
    what no share takes is for training.
    """
    lists: dict[str, list[str]] = {}
    shares = {split: of for split, of in settings.splits.items() if isinstance(of, float)}
    for split, of in settings.splits.items():
        if isinstance(of, int | float):
            continue
        lists[split] = _read_list(settings.path, split, of) if isinstance(of, str) else list(of)
        if missing := [name for name in lists[split] if name not in images]:
            raise MistakeError(
                f"{settings.path}: splits.{split}: {missing[0]!r} and {len(missing) - 1} more are not in images/; expected "
                f"file names without their suffix, such as {min(images)!r}"
            )
    if shares and "train" in lists:
        raise MistakeError(
            f"{settings.path}: splits.{next(iter(shares))}: a share, but train is a list; name its images"
        )
    total, train_share = sum(shares.values()), shares.pop("train", None)
    if (train_share is not None and not math.isclose(total, 1)) or sum(shares.values()) >= 1:
        raise MistakeError(
            f"{settings.path}: splits: the shares add up to {total:g}; expected 1 with train, less without"
        )
    taken = {name for names in lists.values() for name in names}
    found = {**lists, "train": lists.get("train", []), **{split: [] for split in shares}}
    if "train" not in lists:
        for name in sorted(set(images) - taken):
            found[_drawn(name, shares)].append(name)
    return {split: found[split] for split in ("train", *(split for split in found if split != "train"))}


def _drawn(name: str, shares: Mapping[str, float]) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _read_list(path: Path, split: str, file: str) -> list[str]:
    if not (path.parent / file).is_file():
        raise MistakeError(f"{path}: splits.{split}: {file}: no such file; expected one with a name per line")
    return read_names(path.parent / file, "room_01")


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
