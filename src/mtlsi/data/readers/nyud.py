"""NYU Depth v2 in the layouts that the field passes round, told apart by what lies in the folder.

::

    package A      images/0001.png  segmentation/0001.png  depth/0001.npy  normals/0001.png  edge/0001.png
    package B      images/0001.jpg  segmentation/0001.png  depth/0001.npy  normals/0001.npy  edge/0001.npy
    8-bit depth    images/0001.jpg  segmentation/0001.png  depth/0001.png  (normals and boundaries are derived)
    16-bit depth   the same, depth in millimetres

each with gt_sets/train.txt and gt_sets/val.txt, one name per line. Segmentation: 0 unlabelled, 1..40 class 0..39; depth
in metres, or 8 bits with metres = (value + 0.5) / 25.5, 0 none; normals c as 2 c / 255 - 1, or the vectors themselves.
A (425x560, the InvPT line) and B (480x640, the MTI-Net line) are two data sets: scores on one are not scores on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import (
    Decoder,
    checked_depth,
    decode_classes,
    decode_grey,
    decode_image,
    depth_metres,
    edges_npy,
    edges_png,
    normals_npy,
    normals_png,
)
from mtlsi.data.readers.derive import (
    NYU_CENTRE_XY,
    NYU_DEPTH_STEP_M,
    NYU_FOCAL_XY,
    boundaries_from_labels,
    normals_from_depth,
)
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split, read_names
from mtlsi.errors import MistakeError
from mtlsi.images import UNREADABLE, peek_image
from mtlsi.io import holds
from mtlsi.tasks import NYUD40, TASK_SETS, check_tasks

SPLITS = ("train", "val")
MILLIMETRE = 0.001
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of 16-bit images."""
SIZE_HW = (480, 640)
"""The size of the official images, to which the camera's numbers belong."""
CROP_HW = (425, 560)
"""The size of that part of them which depth covers."""
CAMERA: dict[str, object] = {"focal_px": NYU_FOCAL_XY[0], "size_hw": list(SIZE_HW)}

_decode_classes = partial(decode_classes, num_classes=len(NYUD40), first=1, invalid=(0,))


def _depth_8bit(path: Path, content: bytes) -> np.ndarray:
    """(H W) float32 metres, the middle of each step. Choice: 0, nearer than any sensor sees, is a hole: invalid."""
    values = decode_grey(path, content)
    return np.where(values > 0, (values + np.float32(0.5)) * np.float32(NYU_DEPTH_STEP_M), 0).astype(np.float32)


def camera_normals(depth_m: np.ndarray, step_m: float | None) -> np.ndarray:
    """Normals (3 H W) of depth (H W) in metres from NYUDv2's camera, at the official size or resized from it."""
    scale_y, scale_x = (length / official for length, official in zip(depth_m.shape, SIZE_HW, strict=True))
    return normals_from_depth(
        depth_m,
        focal_xy=(NYU_FOCAL_XY[0] * scale_x, NYU_FOCAL_XY[1] * scale_y),
        centre_xy=((NYU_CENTRE_XY[0] + 0.5) * scale_x - 0.5, (NYU_CENTRE_XY[1] + 0.5) * scale_y - 0.5),
        step_m=step_m,
    )


def depth_millimetres(path: Path, content: bytes) -> np.ndarray:
    """(H W) float32 metres of a 16-bit image in millimetres."""
    image = decode_image(path, content)
    if image.mode not in SIXTEEN_BITS:
        raise MistakeError(f"{path}: pixels of mode {image.mode}; expected 16 bits: depth in millimetres")
    return checked_depth(path, np.array(image) * np.float32(MILLIMETRE))


def normals_of_millimetres(path: Path, content: bytes) -> np.ndarray:
    """Normals (3 H W) derived from such an image."""
    return camera_normals(depth_millimetres(path, content), MILLIMETRE)


def _normals_of_8bit(path: Path, content: bytes) -> np.ndarray:
    return camera_normals(_depth_8bit(path, content), NYU_DEPTH_STEP_M)


def _boundary_of_classes(path: Path, content: bytes) -> np.ndarray:
    return boundaries_from_labels(_decode_classes(path, content))


@dataclass(frozen=True)
class Layout:
    """One way in which the files may lie."""

    name: str
    sources: dict[str, tuple[Source, ...]]


_SEMSEG = Source(folder="segmentation", suffix=".png", decode=_decode_classes)
_BOUNDARY = Source(folder="segmentation", suffix=".png", decode=_boundary_of_classes, keep=True, derived=True)


def _depth_images(depth: Decoder, normals: Decoder, version: str = "") -> dict[str, tuple[Source, ...]]:
    """The sources of a layout whose depth is in images."""
    return {
        IMAGE: (Source(folder="images", suffix=".jpg"),),
        "semseg": (_SEMSEG,),
        "depth": (Source(folder="depth", suffix=".png", decode=depth),),
        "normals": (Source(folder="depth", suffix=".png", decode=normals, keep=True, derived=True, version=version),),
        "boundary": (_BOUNDARY,),
    }


LAYOUTS = (
    Layout(
        "NYUDv2 package A (PNG images, the InvPT line)",
        {
            IMAGE: (Source(folder="images", suffix=".png"),),
            "semseg": (_SEMSEG,),
            "depth": (Source(folder="depth", suffix=".npy", decode=depth_metres),),
            "normals": (Source(folder="normals", suffix=".png", decode=normals_png),),
            "boundary": (Source(folder="edge", suffix=".png", decode=edges_png), _BOUNDARY),
        },
    ),
    Layout(
        "NYUDv2 package B (JPEG images, the MTI-Net line)",
        {
            IMAGE: (Source(folder="images", suffix=".jpg"),),
            "semseg": (_SEMSEG,),
            "depth": (Source(folder="depth", suffix=".npy", decode=depth_metres),),
            "normals": (Source(folder="normals", suffix=".npy", decode=normals_npy),),
            "boundary": (Source(folder="edge", suffix=".npy", decode=edges_npy), _BOUNDARY),
        },
    ),
    Layout(
        "NYUDv2 with 8-bit depth (normals and boundaries derived)",
        _depth_images(_depth_8bit, _normals_of_8bit),
    ),
)
DEPTH_16BIT = Layout(
    "NYUDv2 with 16-bit depth in millimetres (normals and boundaries derived)",
    _depth_images(depth_millimetres, normals_of_millimetres, "mm"),
)


class NYUD(FileDataset):
    """One split of NYU Depth v2 in one of ``LAYOUTS``, or with ``DEPTH_16BIT``.

    Labels that a layout lacks are derived where they can be (``derived`` names them), once, and kept in ``cache_dir``. The
    camera's numbers scale with the images, so a resized copy of the 8-bit set gives the right normals too.

    Raises ``MistakeError`` at once where ``root`` is in none of the layouts or a listed file is missing, and on reading
    where a file cannot be decoded, sizes disagree or a label is out of range.
    """

    labels_may_lack = False

    @property
    def camera(self) -> dict[str, object]:
        """Of the official images, or of the crop of them that the InvPT line's files hold."""
        path = self.path(IMAGE, 0)
        if path is not None:
            with peek_image(path) as image:
                if (image.height, image.width) == CROP_HW:
                    return CAMERA | {"size_hw": list(CROP_HW)}
        return CAMERA

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = False,
    ):
        root = Path(root)
        check_split(split, SPLITS, "NYUDv2")
        if tasks:
            check_tasks(tasks, among=TASK_SETS["nyud"].tasks)
        path = root / "gt_sets" / f"{split}.txt"
        if not path.is_file():
            raise MistakeError(
                f"{root}: {holds(root)}; expected images/, depth/, segmentation/ and gt_sets/{split}.txt, or "
                "nyu_depth_v2_labeled.mat and splits.mat; point root at the folder that holds them"
            )
        layout = find_layout(root)
        super().__init__(
            root,
            split,
            layout=layout.name,
            names=read_names(path, "0003"),
            sources=layout.sources,
            classes={"semseg": NYUD40},
            boundary_tolerance=TASK_SETS["nyud"].boundary_tolerance,
            tasks=tasks,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )


def find_layout(root: Path) -> Layout:
    """The layout whose files ``root`` holds most kinds of; images count double, of equals the first is taken."""

    def kinds(layout: Layout) -> int:
        found = {
            (source.folder, source.suffix): 2 if what == IMAGE else 1
            for what, sources in layout.sources.items()
            for source in sources
            if any((root / source.folder).glob(f"*{source.suffix}"))
        }
        return sum(found.values())

    found = max(LAYOUTS, key=kinds)
    first = next((root / "depth").glob("*.png"), None)
    return DEPTH_16BIT if found is LAYOUTS[-1] and first is not None and _is_16bit(first) else found


def _is_16bit(path: Path) -> bool:
    try:
        with peek_image(path) as image:
            return image.mode in SIXTEEN_BITS
    except UNREADABLE:  # named when it is read
        return False
