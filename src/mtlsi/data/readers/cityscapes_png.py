"""The images that auto-lambda made of Cityscapes: semseg of 19 classes and disparity.

::

    train/image/0.png        128x256 or 256x512
    train/seg/0.png          the official label numbers, 0..33
    train/depth/0.png        the official disparity, 16 bits: 256 d + 1, and 0 where there is none
    train/part_seg/0.tif     panoptic parts: not read
    val/...

What the files hold follows from the reader of lorenmt/auto-lambda.
Choice: disparity is in that reader's unit, pixels of an image of a quarter of the official size, (v - 1) / 1024, so that its
MAE stands beside that line's tables; MTAN's NumPy files have another unit. See ``numbered.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import Decoder, decode_image, decode_indices, decode_rgb
from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.data.readers.numbered import CITYSCAPES19, DISPARITY, SPLITS, Cityscapes, names_in, sources_in
from mtlsi.data.readers.stored_classes import StoredClasses, ranges_of
from mtlsi.errors import MistakeError
from mtlsi.tasks import MAX_DIST, check_tasks, register_task

EVALUATED = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
"""The official numbers of the classes in ``CITYSCAPES19``."""
NUMBERS = dict.fromkeys((*range(34), 255), 255) | {number: i for i, number in enumerate(EVALUATED)}
OFFICIAL = StoredClasses(
    NUMBERS,
    len(CITYSCAPES19),
    expected=f"the official label numbers, {ranges_of(NUMBERS)}",
    advice="labels of this layout are not renumbered",
)
SUFFIX = ".png"
STEPS_PER_PIXEL = 256 * 4
UNREAL = 2**15
"""No official disparity is as large: they end at 32257."""


def open_cityscapes(root: str | Path, split: str = "train", *, num_classes: int | None = None, **how) -> FileDataset:
    """One split of Cityscapes, in the NumPy files of MTAN and LibMTL or in the images of auto-lambda."""
    if is_png(Path(root)):
        return CityscapesPNG(root, split, **how)
    return Cityscapes(root, split, num_classes=num_classes, **how)


open_cityscapes19: Callable[..., FileDataset] = partial(open_cityscapes, num_classes=len(CITYSCAPES19))


def is_png(root: Path) -> bool:
    """Whether ``root`` holds numbered images with labels in ``seg``."""
    return any((root / split / "seg").is_dir() and not any((root / split).glob("image/*.npy")) for split in SPLITS)


class CityscapesPNG(FileDataset):
    """One split of Cityscapes as auto-lambda has it.

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
    ):
        root = Path(root)
        register_task(DISPARITY)
        decoders: dict[str, tuple[str, Decoder]] = {
            "semseg": ("seg", decode_official),
            "disparity": ("depth", decode_disparity),
        }
        super().__init__(
            root,
            split,
            layout="Cityscapes in images, 19 classes (the auto-lambda line)",
            names=names_in(root, split, "Cityscapes", SUFFIX),
            sources=sources_in(root, split, {IMAGE: ("image", decode_rgb), **decoders}, SUFFIX),
            classes={"semseg": CITYSCAPES19},
            boundary_tolerance=MAX_DIST,
            tasks=check_tasks(tasks, among=decoders) if tasks else None,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )


def decode_official(path: Path, content: bytes) -> np.ndarray:
    """Class indices (H W) uint8 of official label numbers; 255 for those that are not evaluated."""
    pixels = decode_indices(path, content)
    return OFFICIAL.look_up(path, pixels.values, pixels.known)


def decode_disparity(path: Path, content: bytes) -> np.ndarray:
    """Disparity (H W) float32 in pixels of a quarter of the official size, NaN where there is none."""
    values = np.array(decode_image(path, content))
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize < 2 or values.max() >= UNREAL:
        raise MistakeError(
            f"{path}: {values.dtype} of shape {list(values.shape)}, up to {values.max()}; expected one "
            f"channel of 16 bits below {UNREAL}: 256 times the disparity plus 1"
        )
    return np.where(values > 0, (values.astype(np.float32) - 1) / STEPS_PER_PIXEL, np.nan).astype(np.float32)
