"""Which files of a folder of one's own are images, which are labels of which image, and which are neither."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtlsi.data.readers.file_names import (
    Names,
    Pattern,
    files_below,
    name_of_file,
    pattern_of,
    without_words,
    words_of,
)
from mtlsi.data.readers.folder_labels import SUFFIXES
from mtlsi.data.readers.folder_settings import Settings
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.tasks import TASKS

IMAGES = "images"
NOTES = (".txt", ".md", ".csv", ".yaml", ".yml", ".ini", ".db", ".log", ".pdf")
"""What people keep beside images and labels, and nobody takes for one."""


@dataclass
class Found:
    """The files of a folder: names are NFC, with the subfolders below that of their kind; paths relative to the root."""

    images: dict[str, str] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """By task. A label of no image goes by the name of its file."""
    folders: dict[str, str] = field(default_factory=dict)
    """By task and for "images", where they are looked for."""
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    """By reason, the files that are not read though they look as if they should be."""


@dataclass(frozen=True)
class _File:
    place: str
    """Relative to the root."""
    stem: str
    """Below its folder, without the suffix, in NFC."""

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.place)[1]


def find_files(root: Path, settings: Settings, image_suffixes: Sequence[str]) -> Found:
    """All files of ``root``. Raises ``MistakeError`` where there are no images, or two files for one image or label."""
    found = Found()
    patterns = _patterns(root, settings)
    found.folders = {what: pattern.folder for what, pattern in patterns.items()}
    beside = {what: pattern for what, pattern in patterns.items() if pattern.folder == patterns[IMAGES].folder}
    others = _find_images(
        root, patterns[IMAGES], [beside[task] for task in beside if task != IMAGES], image_suffixes, found
    )
    if not found.images:
        place = root / patterns[IMAGES].folder
        if above := sorted(entry.name for entry in root.iterdir() if (entry / IMAGES).is_dir()):
            raise MistakeError(
                f"{root}: the images lie in {above[0]}/{IMAGES}; expected the split below the kind: move {above[0]}/{IMAGES}"
                f" to {IMAGES}/{above[0]}, and its labels likewise, such as to semseg/{above[0]}"
            )
        raise MistakeError(f"{place}: no images ({holds(place)}); expected files ending in {', '.join(image_suffixes)}")
    names = Names(found.images)
    for task in settings.tasks:
        if task in patterns:
            found.labels[task] = _labels_by_pattern(root, task, patterns[task], names, found)
        else:
            found.folders[task] = patterns[IMAGES].folder
            found.labels[task] = {}
    others = _labels_among_images(settings, [task for task in settings.tasks if task not in patterns], others, found)
    for file in others:
        _pass_over(found, f"{patterns[IMAGES].folder}/: {file.suffix or 'no suffix'} is no image", file)
    return found


def _patterns(root: Path, settings: Settings) -> dict[str, Pattern]:
    """Where the images and each task are; a task that is declared and has no folder of its own is not there."""
    for what in settings.files:
        if what not in (IMAGES, *settings.tasks):
            raise MistakeError(
                f"{settings.path}: files.{what}: no such task; expected {IMAGES} or some of {', '.join(settings.tasks)}"
            )
    own = {task: settings.files.get(task) for task in settings.tasks}
    patterns = {IMAGES: pattern_of(settings.files.get(IMAGES), IMAGES)}
    return patterns | {
        task: pattern_of(text, task) for task, text in own.items() if text is not None or (root / task).is_dir()
    }


def _listed(root: Path, folder: str) -> list[_File]:
    return [_File(f"{folder}/{place}", name_of_file(place)) for place in files_below(root / folder)]


def _find_images(
    root: Path, pattern: Pattern, labels: Sequence[Pattern], suffixes: Sequence[str], found: Found
) -> list[_File]:
    """Fills in the images; gives the files beside them that end otherwise."""
    others = []
    for file in _listed(root, pattern.folder):
        below = file.place[len(pattern.folder) + 1 :]
        if any(not label.plain and label.name_of(below) is not None for label in labels):
            continue
        name = pattern.name_of(below)
        if name is None:
            # beside labels a pattern is there to tell the images from all else
            if not labels:
                _pass_over(found, f"{pattern.folder}/: other names than files.{IMAGES} says", file)
        elif file.suffix.lower() not in suffixes:
            others.append(file)
        else:
            _add(found.images, name, file.place, root / pattern.folder)
    return others


def _labels_by_pattern(root: Path, task: str, pattern: Pattern, names: Names, found: Found) -> dict[str, str]:
    kind = TASKS[task].kind
    labels: dict[str, str] = {}
    orphans: dict[str, str] = {}
    images = set(found.images.values())
    for file in _listed(root, pattern.folder):
        if file.place in images:
            continue
        name = pattern.name_of(file.place[len(pattern.folder) + 1 :])
        if name is None:
            if pattern.folder != found.folders[IMAGES]:
                _pass_over(found, f"{pattern.folder}/: other names than files.{task} says", file)
        elif file.suffix.lower() not in SUFFIXES[kind]:
            _pass_over(found, f"{pattern.folder}/: {file.suffix or 'no suffix'} is no file of {task}", file)
        elif image := names.find(name, words_of(task, kind)):
            _add(labels, image, file.place, root / pattern.folder)
        elif names.but_for_case(name):
            _pass_over(found, f"{pattern.folder}/: the name differs from an image's in upper and lower case", file)
        else:
            orphans.setdefault(name, file.place)
    return labels | orphans


def _labels_among_images(
    settings: Settings, tasks: Sequence[str], others: Sequence[_File], found: Found
) -> list[_File]:
    """Labels of tasks without a folder of their own that lie beside their images: ``a.jpg``, ``a_mask.png``.

    Gives those of ``others`` that are none.
    """
    folder = found.folders[IMAGES]
    names = {place: name for name, place in found.images.items()}
    left = []
    for file in [*(_File(place, name) for place, name in names.items()), *others]:
        for task in tasks:
            kind = TASKS[task].kind
            image = without_words(file.stem, words_of(task, kind))
            if image in found.images and file.suffix.lower() in SUFFIXES[kind]:
                _add(found.labels[task], image, file.place, settings.path.parent / folder)
                found.images.pop(names.get(file.place, ""), None)
                break
        else:
            left.append(file)
    return [file for file in left if file.place not in names]


def _add(files: dict[str, str], name: str, place: str, folder: Path) -> None:
    if name in files:
        first, second = (Path(path).name for path in (files[name], place))
        raise MistakeError(f"{folder}: holds {first} and {second}; expected one; remove the other")
    files[name] = place


def _pass_over(found: Found, reason: str, file: _File) -> None:
    if file.suffix.lower() not in NOTES:
        found.passed_over.setdefault(reason, []).append(file.place)


def used_folders(found: Found) -> set[str]:
    """The folders in the root that hold images or labels."""
    return {place.split("/")[0] for place in found.folders.values()}


def missing_label_suffix(labels: Mapping[str, str], known: Sequence[str]) -> str:
    """The suffix in which a missing label is looked for, for messages: one that others have, else the first of ``known``."""
    return min((os.path.splitext(place)[1] for place in labels.values()), default=known[0])
