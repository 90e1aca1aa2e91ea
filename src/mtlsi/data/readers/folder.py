"""A person's own data: images, one folder of labels per task, and ``dataset.yaml``.

::

    images/room_01.jpg     any of IMAGE_ENDINGS; the name without the suffix is the image's name
    semseg/room_01.png     one folder per task, named as the task; an image may lack any label
    depth/room_01.npy
    dataset.yaml           class names, units, splits, own tasks: see ``folder_settings.py`` and docs/own_data.md

Images may lie in subfolders, mirrored by the labels, and names may differ by common words: see ``file_names.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtlsi.data.readers.file_names import files_below, name_of_file
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.folder_files import IMAGES, Found, find_files, missing_label_suffix, used_folders
from mtlsi.data.readers.folder_labels import (
    SUFFIXES,
    decoder_of,
    depth_map,
    derive_boundaries,
    derive_normals,
)
from mtlsi.data.readers.folder_settings import SETTINGS, Settings, read_settings
from mtlsi.data.readers.folder_splits import names_of_splits
from mtlsi.errors import MistakeError
from mtlsi.images import IMAGE_ENDINGS
from mtlsi.tasks import BUILT_IN, KINDS, TASKS, check_tasks, register_task


class Folder(FileDataset):
    """One split of a folder of one's own, as ``dataset.yaml`` in it says.

    Every task with a folder or an entry in ``dataset.yaml`` is there; opening the folder registers the tasks that it
    declares. Boundaries can be derived from a label map and normals from depth, where no file gives them. ``splits``
    names all splits; ``colours`` holds, for each task with classes, an RGB colour per class or None; ``passed_over`` names,
    by reason, the files that are not read.

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
        settings, found = _look(root, tasks or ())
        if tasks:
            check_tasks(tasks)
        names = names_of_splits(settings, found.images)
        check_split(split, names, str(settings.path))
        if not names[split]:
            raise MistakeError(
                f"{settings.path}: splits.{split}: none of {len(found.images)} images; give a larger share or name them"
            )
        super().__init__(
            root,
            split,
            layout=f"your own data ({settings.name})",
            names=names[split],
            sources=sources_of(settings, found),
            classes={task: keys["classes"] for task, keys in settings.tasks.items() if "classes" in keys},
            boundary_tolerance=settings.boundary_tolerance,
            tasks=tasks,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )
        self.splits = tuple(names)
        self.intrinsics = settings.tasks.get("depth", {}).get("intrinsics")
        self.passed_over = found.passed_over
        self.colours = {
            task: keys["colours"] and [list(colour) for colour in keys["colours"]]
            for task, keys in settings.tasks.items()
            if task in self.classes
        }

    @property
    def camera(self) -> dict[str, object]:
        """The camera of the depth maps, where ``dataset.yaml`` gives it."""
        if self.intrinsics is None or not self.names_camera:
            return {}
        first = next((index for index in range(len(self)) if self.path("depth", index) is not None), None)
        focal_px = math.sqrt(math.prod(self.intrinsics["focal_xy"]))
        return {} if first is None else {"focal_px": focal_px, "size_hw": list(self.read("depth", first).shape)}

    @property
    def names_camera(self) -> bool:
        """Whether ``dataset.yaml`` gives the camera of the depth maps."""
        return self.intrinsics is not None and "depth" in self.tasks


def splits_of_folder(root: Path, *, empty: bool = False) -> tuple[str, ...]:
    """The splits that hold images, train first; with ``empty`` those that hold none."""
    settings, found = _look(root)
    return tuple(split for split, names in names_of_splits(settings, found.images).items() if bool(names) != empty)


def unread_files(root: Path) -> dict[str, list[str]]:
    """By reason, the files that no split can read: those that are passed over, and labels of no image."""
    _, found = _look(root)
    orphans = {
        f"{task}: labels that no image has the name of": [labels[name] for name in labels if name not in found.images]
        for task, labels in found.labels.items()
    }
    return found.passed_over | {reason: places for reason, places in orphans.items() if places}


def _look(root: Path, asked: Collection[str] = ()) -> tuple[Settings, Found]:
    """What ``dataset.yaml`` says, its own tasks registered, and all files."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    settings = read_settings(root, {*asked, *folders})
    for task in settings.own.values():
        register_task(task)
    found = find_files(root, settings, IMAGE_ENDINGS)
    for folder in sorted(folders - used_folders(found) - {*settings.tasks}):
        if not folder.startswith(".") and any(
            name_of_file(file) in found.images for file in files_below(root / folder)
        ):
            raise MistakeError(
                f"{settings.path}: tasks.{folder}: unknown task, but {root / folder} holds files named as images; "
                f"expected some of {', '.join(BUILT_IN)}; say whose labels they are in {SETTINGS}, files: {{semseg: "
                f"'{folder}/*'}}, or declare a task of your own with its kind: {', '.join(KINDS)}; or move the folder away"
            )
    return settings, found


def sources_of(settings: Settings, found: Found) -> dict[str, tuple[Source, ...]]:
    """Where the files of "image" and of every task are."""
    sources: dict[str, tuple[Source, ...]] = {}
    sources[IMAGE] = (Source(folder=found.folders[IMAGES], suffix=IMAGE_ENDINGS[0], files=found.images),)
    for task, keys in settings.tasks.items():
        place = _place_of(task, found)
        sources[task] = (Source(**place, decode=decoder_of(TASKS[task], keys)),)
        source = keys.get("from")
        if source is not None:
            origin = settings.tasks[source]
            if source == "depth":
                derive = partial(derive_normals, **depth_map(origin), **origin["intrinsics"])
            else:
                derive = partial(derive_boundaries, classes=origin["map"])
            version = hashlib.sha256(repr(sorted(derive.keywords.items())).encode()).hexdigest()[:12]
            derived = Source(**_place_of(source, found), decode=derive, keep=True, derived=True, version=version)
            sources[task] += (derived,)
    return sources


def _place_of(task: str, found: Found) -> dict[str, Any]:
    suffix = missing_label_suffix(found.labels[task], SUFFIXES[TASKS[task].kind])
    own = {} if found.labels[task] else {"folder": task}
    return {"folder": found.folders[task], "suffix": suffix, "files": found.labels[task]} | own
