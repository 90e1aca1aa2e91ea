"""A person's own data: images, one folder of labels per task, and ``dataset.yaml``.

::

    images/room_01.jpg     .jpg, .jpeg or .png; the name without the suffix is the image's name
    semseg/room_01.png     one folder per task, named as the task; an image may lack any label
    depth/room_01.npy
    dataset.yaml           class names, units, splits: see ``folder_settings.py`` and docs/own_data.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtlsi.data.readers.decoding import (
    UNKNOWN,
    check_strength,
    checked_depth,
    decode_classes,
    decode_grey,
    decode_image,
    decode_npy,
    edges_npy,
    edges_png,
    normals_npy,
    normals_png,
)
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.folder_settings import METRES, SETTINGS, Settings, names_of_splits, read_settings
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.tasks import TASKS, check_tasks

SUFFIXES = {
    IMAGE: (".jpg", ".jpeg", ".png"),
    "semseg": (".png",),
    "parsing": (".png",),
    "saliency": (".png", ".npy"),
    "depth": (".png", ".npy", ".tif", ".tiff"),
    "normals": (".png", ".npy"),
    "boundary": (".png", ".npy"),
}
"""The kinds of files that are read, in either case; in every folder they may be mixed."""


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _depth_and_step(
    path: Path, content: bytes, scale: float | None, invalid: Sequence[float]
) -> tuple[np.ndarray, float | None]:
    """(H W) float32 metres, 0 where there is none, and the step in which they are stored (None: not in steps).

    Choice: without a scale, numbers with a fraction are metres and whole numbers of 16 bits or more millimetres, as depth
    cameras write them; NaN is no depth.
    """
    if _is_npy(path):
        values = decode_npy(path, content)
    else:
        image = decode_image(path, content)
        if image.mode not in ("L", "I", "F", "I;16", "I;16B", "I;16L"):
            raise MistakeError(f"{path}: pixels of mode {image.mode}; expected one channel of depth; convert the file")
        values = np.array(image)
    in_steps = values.dtype.kind != "f"
    if scale is None and values.dtype.itemsize < 2:
        raise MistakeError(f"{path}: 8-bit depth; give tasks.depth.scale in {SETTINGS}: metres per stored unit")
    if scale is None:
        scale = METRES["mm" if in_steps else "m"]
    lacking = np.isin(values, np.asarray(invalid, None if in_steps else values.dtype)) | np.isnan(values)
    metres = np.where(lacking, 0, values.astype(np.float64) * scale)
    return checked_depth(path, metres), scale if in_steps else None


def decode_depth(path: Path, content: bytes, *, scale: float | None, invalid: Sequence[float]) -> np.ndarray:
    """(H W) float32 metres of an image or a NumPy file that holds ``scale`` metres per unit."""
    return _depth_and_step(path, content, scale, invalid)[0]


def decode_vectors(path: Path, content: bytes, *, axes: Sequence[int]) -> np.ndarray:
    """Normals (3 H W), each axis times its sign in ``axes``."""
    normals = normals_npy(path, content) if _is_npy(path) else normals_png(path, content)
    return normals * np.array(axes, np.float32)[:, None, None]


def decode_salient(path: Path, content: bytes, *, threshold: float) -> np.ndarray:
    """(H W) uint8: 1 above ``threshold``, of values in 0..1 or, if one is above 1, 0..255; of these 127 is unknown: 255."""
    values = decode_npy(path, content) if _is_npy(path) else decode_grey(path, content)
    check_strength(path, values, "saliency")
    if values.max(initial=0) <= 1:
        return (values > threshold).astype(np.uint8)
    return np.where(values == UNKNOWN, 255, values > threshold * 255).astype(np.uint8)


def decode_edges(path: Path, content: bytes) -> np.ndarray:
    """(H W) uint8, 1 on boundaries, 255 where unknown."""
    return edges_npy(path, content) if _is_npy(path) else edges_png(path, content)


def derive_normals(
    path: Path,
    content: bytes,
    *,
    scale: float | None,
    invalid: Sequence[float],
    focal_xy: tuple[float, float],
    centre_xy: tuple[float, float],
) -> np.ndarray:
    """Normals (3 H W) of a depth file; the camera's numbers are in pixels of that file."""
    depth_m, step_m = _depth_and_step(path, content, scale, invalid)
    return normals_from_depth(depth_m, focal_xy=focal_xy, centre_xy=centre_xy, step_m=step_m)


def derive_boundaries(
    path: Path, content: bytes, *, num_classes: int, first: int, invalid: Sequence[int]
) -> np.ndarray:
    """Boundaries (H W) of a label map file."""
    return boundaries_from_labels(decode_classes(path, content, num_classes=num_classes, first=first, invalid=invalid))


class Folder(FileDataset):
    """One split of a folder of one's own, as ``dataset.yaml`` in it says.

    Every task with a folder or an entry in ``dataset.yaml`` is there. Boundaries can be derived from a label map and
    normals from depth, where no file gives them. ``splits`` names all splits; ``colours`` holds, for each task with
    classes, an RGB colour per class or None.

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
        asked = check_tasks(tasks) if tasks else ()
        settings, images = _look(root, asked)
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
    """What ``dataset.yaml`` says, and the names of all images."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    settings = read_settings(root, {*asked, *folders})
    images = set(_files(root / "images", SUFFIXES[IMAGE]))
    if not images:
        place = root / "images"
        raise MistakeError(
            f"{place}: no images ({holds(place)}); expected files ending in {', '.join(SUFFIXES[IMAGE])}"
        )
    for folder in sorted(folders - {"images", *TASKS}):
        if not folder.startswith(".") and any(entry.stem in images for entry in (root / folder).iterdir()):
            raise MistakeError(
                f"{settings.path}: tasks.{folder}: unknown task, but {root / folder} holds files named as images; "
                f"expected some of {', '.join(TASKS)}; rename the folder, or move it elsewhere"
            )
    return settings, images


def sources_of(root: Path, settings: Settings) -> dict[str, tuple[Source, ...]]:
    """Where the files of "image" and of every task are: one source for each suffix in each folder."""
    of = settings.tasks
    suffixes = {what: _suffixes(root, what) for what in (IMAGE, *of)}
    found = {IMAGE: tuple(Source(folder="images", suffix=suffix) for suffix in suffixes[IMAGE])}
    for task, keys in of.items():
        decode: Any = decode_edges
        if "classes" in keys:
            decode = partial(decode_classes, **_class_map(keys))
        elif task == "saliency":
            decode = partial(decode_salient, threshold=keys["threshold"])
        elif task == "depth":
            decode = partial(decode_depth, **_depth_map(keys))
        elif task == "normals":
            decode = partial(decode_vectors, axes=keys["axes"])
        found[task] = tuple(Source(folder=task, suffix=suffix, decode=decode) for suffix in suffixes[task])
        source = keys.get("from")
        if source is not None:
            if source == "depth":
                derive = partial(derive_normals, **_depth_map(of["depth"]), **of["depth"]["intrinsics"])
            else:
                derive = partial(derive_boundaries, **_class_map(of[source]))
            found[task] += tuple(_derived(source, suffix, derive) for suffix in suffixes[source])
    return found


def _derived(folder: str, suffix: str, derive: partial) -> Source:
    version = hashlib.sha256(repr(sorted(derive.keywords.items())).encode()).hexdigest()[:12]
    return Source(folder=folder, suffix=suffix, decode=derive, keep=True, derived=True, version=version)


def _class_map(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_classes": len(keys["classes"]), "first": keys["first"], "invalid": keys["invalid"]}


def _depth_map(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {"scale": METRES[keys["unit"]] if keys["unit"] else keys["scale"], "invalid": keys["invalid"]}


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


def _suffixes(root: Path, what: str) -> tuple[str, ...]:
    """The suffixes of the files of "image" or of a task; where there are none the commonest, so that it can be missed."""
    files = _files(root / ("images" if what == IMAGE else what), SUFFIXES[what])
    return tuple(sorted(set(files.values()))) or SUFFIXES[what][:1]
