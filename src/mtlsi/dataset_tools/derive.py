"""Work out labels from others and write them as files: ``mtlsi data derive``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from mtlsi import kinds
from mtlsi.data.datasets import open_folder, splits_of
from mtlsi.data.readers.decoding import UNKNOWN
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.files import FileDataset
from mtlsi.data.readers.folder_settings import SETTINGS, read_settings
from mtlsi.errors import MistakeError
from mtlsi.io import replace_array
from mtlsi.lock import OF_FOLDER, HeldError, held
from mtlsi.parallel import for_each
from mtlsi.reading import check_relative
from mtlsi.streams import write_line

SOURCES = {"boundary": "semseg", "normals": "depth", "saliency": "semseg"}
"""Which label each derived one follows from."""


@dataclass(frozen=True)
class Camera:
    """Focal length and principal point, in pixels of the depth map."""

    focal_xy: tuple[float, float]
    centre_xy: tuple[float, float]

    def __post_init__(self) -> None:
        if not all(0 < x < math.inf for x in self.focal_xy) or not all(map(math.isfinite, self.centre_xy)):
            raise MistakeError(
                f"camera of {self}; expected focal lengths above 0 and a centre, in pixels of the depth maps"
            )

    def __str__(self) -> str:
        return "focal {:g} {:g}, centre {:g} {:g}".format(*self.focal_xy, *self.centre_xy)


@dataclass(frozen=True)
class Derivation:
    """What to make, and from what else than the labels."""

    tasks: tuple[str, ...]
    camera: Camera | None = None
    """For normals; None: the one that the data set's ``dataset.yaml`` gives."""
    depth_step_m: float | None = None
    """For normals: the step in which depth was stored, if that shows."""
    salient: tuple[str, ...] = ()
    """For saliency: the classes that are salient."""


@dataclass(frozen=True)
class _Deriver:
    dataset: FileDataset
    wanted: Derivation
    out: Path

    def __call__(self, index: int) -> int:
        """Write what can be made for one image; gives the number of files."""
        made = 0
        for task in self.wanted.tasks:
            if self.dataset.path(SOURCES[task], index) is not None:
                label = self.dataset.read(SOURCES[task], index)
                image = Image.fromarray(self._make(task, label))
                replace_array(self.out / task / f"{self.dataset.name(index)}.png", image)
                made += 1
        return made

    def _make(self, task: str, label: np.ndarray) -> np.ndarray:
        if task == "boundary":
            return np.array([0, 255, UNKNOWN], np.uint8)[np.minimum(boundaries_from_labels(label), 2)]
        if task == "saliency":
            names = self.dataset.classes["semseg"]
            salient = np.isin(label, [names.index(name) for name in self.wanted.salient])
            return np.where(kinds.of("semseg").valid(label), np.where(salient, 255, 0), UNKNOWN).astype(np.uint8)
        assert self.wanted.camera is not None
        normals = normals_from_depth(
            label,
            focal_xy=self.wanted.camera.focal_xy,
            centre_xy=self.wanted.camera.centre_xy,
            step_m=self.wanted.depth_step_m,
        )
        return np.rint((normals.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


def derive(
    root: Path, out: Path, wanted: Derivation, *, num_workers: int = 2, console: Console | None = None
) -> dict[str, int]:
    """Write labels of ``wanted`` for every image of the data set in ``root`` into ``out``/TASK; gives counts by split.

    PNG files as ``Folder`` and package A read them: boundaries and saliency 0 or 255, 127 where unknown; normals c as
    2 c / 255 - 1. The camera of normals is the one given, else that of ``tasks.depth.intrinsics`` in ``root``'s
    ``dataset.yaml``; either is in pixels of the depth maps as they are stored, and so are the normals. Raises
    ``MistakeError`` where ``root`` lacks the labels that these follow from, for a class or a camera that is not given, and
    where ``out``/TASK already holds labels of ``root``.
    """
    console = console or Console()
    needed: Sequence[str] = sorted({SOURCES[task] for task in wanted.tasks})
    if not needed:
        raise MistakeError("nothing to derive; give one or more of --boundary, --normals and --saliency CLASS ...")
    if wanted.depth_step_m is not None and not 0 < wanted.depth_step_m < math.inf:
        raise MistakeError(f"--depth-step {wanted.depth_step_m:g}; expected metres, above 0")
    for task in wanted.tasks:
        check_free(out / task, root)
    if "normals" in wanted.tasks and wanted.camera is None:
        wanted = replace(wanted, camera=camera_of(root))
        write_line(console, f"camera: {wanted.camera}, of {root / SETTINGS}")
    datasets = {split: open_folder(root, split, tasks=needed, may_lack=True) for split in splits_of(root)}
    for dataset in datasets.values():
        for name in dataset.names:
            check_relative(name)  # a name may come from a list
        known = dataset.classes.get("semseg", ())
        for name in wanted.salient:
            if name not in known:
                raise MistakeError(f"class {name!r} is not one of the data set's: {', '.join(known)}")
    counts = {}
    try:
        with held(out / OF_FOLDER):  # else the labels of two calls with other settings would lie there mixed
            for task in wanted.tasks:
                (out / task).mkdir(parents=True, exist_ok=True)
            for split, dataset in datasets.items():
                work, title = _Deriver(dataset, wanted, out), f"deriving {split}"
                counts[split] = sum(for_each(work, len(dataset), title=title, num_workers=num_workers, console=console))
    except HeldError as holder:
        raise MistakeError(f"labels are being derived into {out} by {holder}; wait, or give another --out") from holder
    except OSError as error:
        raise MistakeError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    write_line(console, f"{sum(counts.values())} labels in {out}")
    return counts


def check_free(folder: Path, root: Path) -> None:
    """Raises ``MistakeError`` where ``folder`` lies in the data set's own and has files: they may be its labels."""
    if folder.resolve().is_relative_to(root.resolve()) and folder.is_dir() and any(folder.iterdir()):
        raise MistakeError(f"{folder} holds files of the data set itself; give another --out, or remove them first")


def camera_of(root: Path) -> Camera:
    """The camera that ``dataset.yaml`` in ``root`` gives; ``MistakeError`` where it gives none."""
    keys = read_settings(root, ("depth",)).tasks["depth"] if (root / SETTINGS).is_file() else {}
    if not keys.get("intrinsics"):
        raise MistakeError(
            "normals follow from depth and the camera; give --focal FX FY and --centre CX CY in pixels of its maps, or "
            f"write tasks.depth.intrinsics into {root / SETTINGS}"
        )
    return Camera(**keys["intrinsics"])
