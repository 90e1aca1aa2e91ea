"""The NumPy files that MTAN made and LibMTL passes on: NYUv2 with 13 classes, and Cityscapes.

::

    NYUv2, 288x384                        Cityscapes, 128x256 (or 256x512)
      train/image/0.npy    (H W 3) 0..1     train/image/0.npy      (H W 3) 0..1
      train/label/0.npy    (H W) -1..12     train/label_7/0.npy    (H W) -1..6, also label_19, -1..18; LibMTL: label
      train/depth/0.npy    (H W 1) metres   train/depth/0.npy      (H W 1) disparity
      train/normal/0.npy   (H W 3)
      val/...                               val/...

-1 has no label, a depth or disparity of 0 is none, normals of (0, 0, 0) are none. Files are numbered in every split anew,
so item names begin with the split: ``train/0``.

What the files hold follows from the readers of lorenmt/mtan and median-research-group/LibMTL and from what their authors
say in their trackers: classes are SceneNet's 13 (github.com/ankurhanda/SceneNetv1.0), normals are those of Eigen and Fergus.
Choice: normals keep their stored axes; both readers negate the first when they flip an image, so it is horizontal.
Choice: no boundaries are derived: tables of this line have the three tasks, or on Cityscapes two.

**Disparity.** MTAN's Cityscapes has no depth: its numbers are the official 16-bit disparity maps / 65535, which end at
32257 / 65535 = 0.492. Choice: they are a task of their own, ``disparity``, of kind value, in the unit in which they are
stored, so that its MAE is the absolute depth error in LibMTL's tables; calling it depth would call it metres. Metric depth
is baseline * focal length / ((65535 v - 1) / 256), about 1.85 m / v with the usual 0.209 m and 2262 pixels, but both differ
by some percent from one drive to the next and are not in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import Decoder, checked_normals, decode_npy, depth_metres
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.nyud import CAMERA
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.reading import read_content
from mtlsi.tasks import MAX_DIST, TASK_SETS, Task, check_tasks, register_task

SPLITS = ("train", "val")
NYUD13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "television", "wall",
    "window",
)  # fmt: skip
"""SceneNet's classes in the order of their numbers, here from 0."""
CITYSCAPES7 = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
"""The categories of Cityscapes but void."""
CITYSCAPES19 = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""The classes of Cityscapes that are evaluated, in the order of its train ids."""
DISPARITY = Task("disparity", kind="value")
LOOKED_AT = 16
"""Label files in which a class beyond the seventh is looked for."""


def is_numbered(root: Path) -> bool:
    """Whether ``root`` holds numbered NumPy files in one of these layouts."""
    return any(next((root / split / "image").glob("*.npy"), None) is not None for split in SPLITS)


def is_nyud(root: Path) -> bool:
    """Whether numbered files are those of NYUv2: only it has normals."""
    return any((root / split / "normal").is_dir() for split in SPLITS)


class NumberedNYUD(FileDataset):
    """One split of NYUv2 as MTAN and LibMTL have it: 795 and 654 images of 288x384, semseg, depth and normals.

    Raises ``MistakeError`` at once for a file that is missing, and on reading for one that cannot be decoded.
    """

    labels_may_lack = False
    camera = CAMERA

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = False,
    ):
        decoders: dict[str, tuple[str, Decoder]] = {
            "semseg": ("label", partial(numbered_classes, num_classes=len(NYUD13))),
            "depth": ("depth", depth_metres),
            "normals": ("normal", numbered_normals),
        }
        super().__init__(
            root,
            split,
            layout="NYUv2 in NumPy files, 13 classes (the MTAN and LibMTL line)",
            names=names_in(Path(root), split, "NYUv2"),
            sources=sources_in(Path(root), split, {IMAGE: ("image", numbered_image), **decoders}),
            classes={"semseg": NYUD13},
            boundary_tolerance=TASK_SETS["nyud"].boundary_tolerance,
            tasks=check_tasks(tasks, among=decoders) if tasks else None,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )


class Cityscapes(FileDataset):
    """One split of Cityscapes as MTAN and LibMTL have it: 2975 and 500 images, semseg and disparity.

    ``num_classes`` None: 7 where there are labels of 7, as tables of this line have, else what the files show.
    Raises ``MistakeError`` at once for a file that is missing, and on reading for one that cannot be decoded.
    """

    labels_may_lack = False

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = False,
        num_classes: int | None = None,
    ):
        root = Path(root)
        if is_numbered(root) and is_nyud(root):
            raise MistakeError(
                f"{root}: holds normals, so it is NYUv2; give --data nyud, or --data.name nyud in training"
            )
        register_task(DISPARITY)
        names = names_in(root, split, "Cityscapes")
        folder, num_classes = _label_folder(root, split, num_classes)
        decoders: dict[str, tuple[str, Decoder]] = {
            "semseg": (folder, partial(numbered_classes, num_classes=num_classes)),
            "disparity": ("depth", numbered_disparity),
        }
        super().__init__(
            root,
            split,
            layout=f"Cityscapes in NumPy files, {num_classes} classes (the MTAN and LibMTL line)",
            names=names,
            sources=sources_in(root, split, {IMAGE: ("image", numbered_image), **decoders}),
            classes={"semseg": CITYSCAPES7 if num_classes == len(CITYSCAPES7) else CITYSCAPES19},
            boundary_tolerance=MAX_DIST,
            tasks=check_tasks(tasks, among=decoders) if tasks else None,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )


def names_in(root: Path, split: str, what: str, suffix: str = ".npy") -> list[str]:
    """``split``/NUMBER of every image of the data set ``what``, in the order of the numbers."""
    check_split(split, SPLITS, what)
    folder = root / split / "image"
    numbers = sorted(int(file.stem) for file in folder.glob(f"*{suffix}") if file.stem.isdecimal())
    if not numbers:
        raise MistakeError(
            f"{folder}: no numbered {suffix} files ({holds(folder)}); expected 0{suffix}, 1{suffix}, ...; "
            "point root at the folder that holds train and val"
        )
    return [f"{split}/{number}" for number in numbers]


def sources_in(
    root: Path, split: str, places: Mapping[str, tuple[str, Decoder]], suffix: str = ".npy"
) -> dict[str, tuple[Source, ...]]:
    """The files of the image and of every task, from the folder of each and what decodes it."""
    return {
        what: (Source(folder=f"{split}/{folder}", suffix=suffix, decode=decode, files=_files(root, folder, suffix)),)
        for what, (folder, decode) in places.items()
    }


def _files(root: Path, folder: str, suffix: str) -> dict[str, str]:
    return {
        f"{split}/{file.stem}": f"{split}/{folder}/{file.name}"
        for split in SPLITS
        for file in sorted((root / split / folder).glob(f"*{suffix}"))
    }


def _label_folder(root: Path, split: str, num_classes: int | None) -> tuple[str, int]:
    """The folder of the labels, and how many classes they have."""
    asked = (num_classes,) if num_classes else (len(CITYSCAPES7), len(CITYSCAPES19))
    for number in asked:
        if (root / split / f"label_{number}").is_dir():
            return f"label_{number}", number
    found = len(CITYSCAPES7)
    for file in sorted((root / split / "label").glob("*.npy"))[:LOOKED_AT]:
        if decode_npy(file, read_content(file)).max(initial=0) >= len(CITYSCAPES7):
            found = len(CITYSCAPES19)
    if found not in asked:
        raise MistakeError(
            f"{root / split}: no label_{asked[0]}, and the labels in label have {found} classes; give --data cityscapes"
        )
    return "label", found


def numbered_image(path: Path, content: bytes) -> np.ndarray:
    """Pixels (H W 3) uint8 of floats in 0..1, or of whole numbers or floats in 0..255."""
    values = decode_npy(path, content)
    if values.ndim != 3 or values.shape[-1] != 3:
        raise MistakeError(f"{path}: an array of shape {list(values.shape)}; expected an image (height, width, 3)")
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= 255):
        raise MistakeError(f"{path}: pixels {low:g}..{high:g}; expected 0..1 or 0..255")
    scale = 255 if values.dtype.kind == "f" and high <= 1 else 1
    return np.rint(values * scale).astype(np.uint8)


def numbered_classes(path: Path, content: bytes, *, num_classes: int) -> np.ndarray:
    """Class indices (H W) uint8 of whole numbers, stored as integers or floats; -1, no label, becomes 255."""
    values = _map(path, content, "labels")
    strange = ~np.isin(values, np.arange(-1, num_classes))
    if strange.any():
        raise MistakeError(
            f"{path}: label {values[strange].max():g}; expected 0..{num_classes - 1}, and -1 for unlabelled; it is of "
            "another data set, or of another number of classes"
        )
    return np.where(values < 0, 255, values).astype(np.uint8)


def numbered_normals(path: Path, content: bytes) -> np.ndarray:
    """Normals (3 H W), however long: resizing shortened those at edges."""
    values = decode_npy(path, content).astype(np.float32)
    if values.ndim == 3 and values.shape[-1] == 3:
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        values = np.divide(values, length, out=np.zeros_like(values), where=(length > 0.1) & (length <= 2))
    return checked_normals(path, values)


def numbered_disparity(path: Path, content: bytes) -> np.ndarray:
    """Disparity (H W) float32 in 1 / 65535 of the official maps' unit, NaN where there is none: 0, or below."""
    values = _map(path, content, "disparity").astype(np.float32)
    if values.max(initial=0) > 1:
        raise MistakeError(
            f"{path}: disparity up to {values.max():g}; expected 0..1, the official 16-bit numbers / 65535"
        )
    return np.where(values > 0, values, np.nan).astype(np.float32)


def _map(path: Path, content: bytes, what: str) -> np.ndarray:
    values = decode_npy(path, content)
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2 or not np.isfinite(values).all():
        raise MistakeError(
            f"{path}: an array of shape {list(values.shape)}; expected {what} (height, width), all finite"
        )
    return values
