"""A person's own data: images, one folder of labels per task, and ``dataset.yaml``.

::

    images/room_01.jpg     any of IMAGE_ENDINGS; the name without the suffix is the image's name
    semseg/room_01.png     one folder per task, named as the task; an image may lack any label
    depth/room_01.npy
    dataset.yaml           class names, units, splits, own tasks: see ``folder_settings.py`` and docs/own_data.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.folder_labels import (
    SUFFIXES,
    class_map,
    decoder_of,
    depth_map,
    derive_boundaries,
    derive_normals,
)
from mtlsi.data.readers.folder_settings import SETTINGS, Settings, read_settings
from mtlsi.data.readers.folder_splits import names_of_splits
from mtlsi.errors import MistakeError
from mtlsi.images import IMAGE_ENDINGS
from mtlsi.io import holds
from mtlsi.tasks import BUILT_IN, KINDS, TASKS, check_tasks, register_task

IMAGE_SUFFIXES = IMAGE_ENDINGS


class Folder(FileDataset):
    """One split of a folder of one's own, as ``dataset.yaml`` in it says.

    Every task with a folder or an entry in ``dataset.yaml`` is there; opening the folder registers the tasks that it
    declares. Boundaries can be derived from a label map and normals from depth, where no file gives them. ``splits``
    names all splits; ``colours`` holds, for each task with classes, an RGB colour per class or None.

    Raises ``MistakeError`` at once for a mistake in ``dataset.yaml``, a folder that is no task's, two files for one label
    and a split that names an image that is not there; on reading where a file cannot be decoded, sizes disagree or a
    label is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = True,
    ):
        root = Path(root)
        settings, images = _look(root, tasks or ())
        if tasks:
            check_tasks(tasks)
        names = names_of_splits(settings, images)
        check_split(split, names, str(settings.path))
        if not names[split]:
            raise MistakeError(
                f"{settings.path}: splits.{split}: none of {len(images)} images; give a larger share or name them"
            )
        super().__init__(
            root,
            split,
            layout=f"your own data ({settings.name})",
            names=names[split],
            sources=sources_of(root, settings),
            classes={task: keys["classes"] for task, keys in settings.tasks.items() if "classes" in keys},
            boundary_tolerance=settings.boundary_tolerance,
            tasks=tasks,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )
        self.splits = tuple(names)
        self.colours = {
            task: keys["colours"] and [list(colour) for colour in keys["colours"]]
            for task, keys in settings.tasks.items()
            if task in self.classes
        }


def splits_of_folder(root: Path) -> tuple[str, ...]:
    """The splits that hold images, train first."""
    return tuple(split for split, names in names_of_splits(*_look(root)).items() if names)


def _look(root: Path, asked: Collection[str] = ()) -> tuple[Settings, set[str]]:
    """What ``dataset.yaml`` says, its own tasks registered, and the names of all images."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    settings = read_settings(root, {*asked, *folders})
    for task in settings.own.values():
        register_task(task)
    images = set(_files(root / "images", IMAGE_SUFFIXES))
    if not images:
        place = root / "images"
        raise MistakeError(f"{place}: no images ({holds(place)}); expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    for folder in sorted(folders - {"images", *settings.tasks}):
        if not folder.startswith(".") and any(entry.stem in images for entry in (root / folder).iterdir()):
            raise MistakeError(
                f"{settings.path}: tasks.{folder}: unknown task, but {root / folder} holds files named as images; "
                f"expected some of {', '.join(BUILT_IN)}; rename the folder, move it elsewhere, or declare it in {SETTINGS} "
                f"with its kind: {', '.join(KINDS)}"
            )
    return settings, images


def sources_of(root: Path, settings: Settings) -> dict[str, tuple[Source, ...]]:
    """Where the files of "image" and of every task are: one source for each suffix in each folder."""
    suffixes = {IMAGE: _suffixes(root / "images", IMAGE_SUFFIXES)}
    suffixes |= {task: _suffixes(root / task, SUFFIXES[TASKS[task].kind]) for task in settings.tasks}
    found = {IMAGE: tuple(Source(folder="images", suffix=suffix) for suffix in suffixes[IMAGE])}
    for task, keys in settings.tasks.items():
        decode = decoder_of(TASKS[task], keys)
        found[task] = tuple(Source(folder=task, suffix=suffix, decode=decode) for suffix in suffixes[task])
        source = keys.get("from")
        if source is not None:
            origin = settings.tasks[source]
            if source == "depth":
                derive = partial(derive_normals, **depth_map(origin), **origin["intrinsics"])
            else:
                derive = partial(derive_boundaries, **class_map(origin))
            found[task] += tuple(_derived(source, suffix, derive) for suffix in suffixes[source])
    return found


def _derived(folder: str, suffix: str, derive: partial) -> Source:
    version = hashlib.sha256(repr(sorted(derive.keywords.items())).encode()).hexdigest()[:12]
    return Source(folder=folder, suffix=suffix, decode=derive, keep=True, derived=True, version=version)


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """The files in ``folder`` that end in one of ``suffixes``, stem -> suffix."""
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            raise MistakeError(
                f"{folder}: holds {file.stem}{found[file.stem]} and {file.name}; expected one; remove the other"
            )
        found[file.stem] = file.suffix
    return found


def _suffixes(folder: Path, known: Sequence[str]) -> tuple[str, ...]:
    """The suffixes of the files in ``folder``; where there are none the first of ``known``, to name what is missing."""
    return tuple(sorted(set(_files(folder, known).values()))) or tuple(known[:1])
