"""PASCAL-Context for multi-task learning, as the field passes it round: the folder PASCALContext, also called PASCAL_MT.

::

    JPEGImages/2008_000002.jpg               image
    semseg/VOC12/2008_000002.png             semseg: palette image, 0..20, 255 unlabelled; where there is none,
    semseg/pascal-context/2008_000002.png    the same classes from PASCAL-Context's labels
    human_parts/2008_000002.mat              parsing: PASCAL-Part's struct anno
    sal_distill/2008_000002.png              saliency: salient above half of 255; the output of a network
    normals_distill/2008_000002.png          normals: c as 2 c / 255 - 1; the output of a network trained on NYUDv2
    pascal-context/trainval/2008_000002.mat  boundary: LabelMap, one of 459 labels for each pixel
    ImageSets/Context/train.txt, val.txt     the splits, 4998 and 5105 names

What the values mean is what the field's readers make of them: ASTMT (facebookresearch/astmt) and, after it,
SimonVandenhende/Multi-Task-Learning-PyTorch and the ATRC and InvPT lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import decode_classes, decode_mat, normals_png
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split, read_names
from mtlsi.data.readers.label_pixels import strength_pixels
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.tasks import PARTS7, PASCAL21, TASK_SETS

SPLITS = ("train", "val")

PERSON = PASCAL21.index("person")

HUMAN_PARTS = {
    name: PARTS7.index(part)
    for part, names in {
        "head": "head hair lear rear leye reye lebrow rebrow nose mouth",
        "torso": "torso neck",
        "upper arm": "luarm ruarm",
        "lower arm": "llarm rlarm lhand rhand",
        "upper leg": "luleg ruleg",
        "lower leg": "llleg rlleg lfoot rfoot",
    }.items()
    for name in names.split()
}
"""Class by PASCAL-Part's name: its 24 parts of a person make the benchmark's six."""

NUM_CONTEXT_LABELS = 459

LABELS_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56,
    59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124,
    135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202,
    213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261,
    263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314,
    315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442,
    443, 444, 446, 454, 457,
)  # fmt: skip
"""PASCAL-Context's labels whose name, letter for letter, is one of NYUDv2's 894, bar "unknown"; and "tvmonitor"."""

_HAS_NORMALS = np.isin(np.arange(NUM_CONTEXT_LABELS + 1), LABELS_WITH_NORMALS)


class PASCALContext(FileDataset):
    """One split of PASCAL-Context; an image may lack labels, and a task without any file is in ``left_out``.

    Parsing: an image in which no part of a person is labelled says nothing, 255 everywhere; elsewhere what is no
    labelled part is background, people without labelled parts too. Boundary: see ``boundaries_from_label_map``.
    Normals: (0, 0, 0) where the label is none of ``LABELS_WITH_NORMALS``, so an image has them only with its label map.

    Choice: normals keep their stored axes, which none of the field's readers states. All negate the first when they flip
    an image, so it is horizontal; ASTMT's rotation turns the first two as right and down, or as left and up.
    Choice: without label maps normals are left out, for unmasked ones are guesses about sky and grass.
    Choice: ``ImageSets/Parts``, where peers note which images show people, is neither read nor written: the
    annotations say it, and decoded once they are kept in ``cache_dir``.
    Differs: peers decide after cropping whether parts are labelled, so they ignore a crop beside the person.

    Raises ``MistakeError`` at once where ``root`` has no such split or a listed image is missing, and on reading where
    a file cannot be decoded, sizes disagree or a label is out of range.
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
        check_split(split, SPLITS, "PASCAL-Context")
        path = root / "ImageSets" / "Context" / f"{split}.txt"
        if not path.is_file():
            raise MistakeError(
                f"{root}: {holds(root)}; expected JPEGImages/, folders of labels and ImageSets/Context/{split}.txt; "
                "point root at the folder that holds them (PASCALContext or PASCAL_MT)"
            )
        super().__init__(
            root,
            split,
            layout="PASCAL-Context (PASCAL_MT)",
            names=read_names(path, "2008_000002"),
            sources=SOURCES,
            classes={"semseg": PASCAL21, "parsing": PARTS7},
            boundary_tolerance=TASK_SETS["pascal"].boundary_tolerance,
            tasks=tasks,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )
        self._demand(IMAGE)


def decode_human_parts(path: Path, content: bytes) -> np.ndarray:
    """(H W) uint8 of a PASCAL-Part annotation: 0 background, 1..6 the parts in ``PARTS7``; 255 where none is labelled.

    Objects and parts are painted in the file's order: later ones hide earlier ones. Other animals' parts are ignored.
    """
    variables = decode_mat(path, content)
    try:
        objects = variables["anno"]["objects"].item().ravel()
        height, width = objects[0]["mask"].shape
        parts = [
            (part["part_name"].item(), part["mask"])
            for each in objects
            if each["class_ind"].item() == PERSON
            for part in each["parts"].ravel()
        ]
        if not all(
            isinstance(name, str) and isinstance(mask, np.ndarray) and mask.dtype.kind in "uifb" for name, mask in parts
        ):
            raise ValueError("a part that has no name, or no numbers")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MistakeError(
            f"{path}: no annotation of PASCAL-Part; expected anno.objects with class_ind, mask and parts, each part with "
            "part_name and mask; download the file again or delete it"
        ) from error
    label = np.zeros((height, width), np.uint8)
    for name, mask in parts:
        if name not in HUMAN_PARTS:
            raise MistakeError(f"{path}: human part {name!r}; expected one of {', '.join(HUMAN_PARTS)}")
        if mask.shape != label.shape:
            raise MistakeError(
                f"{path}: {name}: a mask of shape {mask.shape}; expected {label.shape}, as the first object's"
            )
        label[mask > 0] = HUMAN_PARTS[name]
    return label if label.any() else np.full_like(label, 255)


def decode_label_map(path: Path, content: bytes) -> np.ndarray:
    """(H W) int64, each pixel's label in PASCAL-Context, 1..459; 0 is let pass."""
    variables = decode_mat(path, content)
    labels = variables.get("LabelMap")
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iuf" or not labels.size:
        found = ", ".join(name for name in variables if not name.startswith("__")) or "nothing"
        raise MistakeError(
            f"{path}: holds {found}; expected LabelMap, labels of shape (height, width); download it again"
        )
    wrong = labels[~((labels >= 0) & (labels <= NUM_CONTEXT_LABELS) & (labels == np.floor(labels)))]
    if wrong.size:
        raise MistakeError(f"{path}: label {wrong[0]:g}; expected whole numbers in 0..{NUM_CONTEXT_LABELS}")
    return labels.astype(np.int64)


def boundaries_from_label_map(labels: np.ndarray) -> np.ndarray:
    """(H W) uint8, 1 on boundaries, of a label map (H W), exactly as the benchmark draws them.

    A pixel counts where the labels of its four neighbours do not add up to four times its own; beyond the image lies
    its mirror image about the outermost pixels. That marks both sides of a boundary, which is then thinned to one pixel.
    Labels that cancel out, such as 9 and 11 beside 10, go unseen: the benchmark's labels have these gaps too.
    """
    from mtlsi.metrics.boundary.thinning import (
        thin,  # here because it loads a compiler, and boundaries are drawn only once
    )

    around = np.pad(labels, 1, mode="reflect")
    neighbours = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    marked = np.ascontiguousarray(neighbours != 4 * labels)  # MATLAB's files hold columns, thinning goes by rows
    return thin(marked).astype(np.uint8)


def _boundary(path: Path, content: bytes) -> np.ndarray:
    return boundaries_from_label_map(decode_label_map(path, content))


def _saliency(path: Path, content: bytes) -> np.ndarray:
    values, known = strength_pixels(path, content)
    salient = (values > 255 / 2).astype(np.uint8)
    return salient if known is None else np.where(known, salient, np.uint8(255))


def _normals(path: Path, content: bytes, labels_path: Path, labels_content: bytes) -> np.ndarray:
    normals, labels = normals_png(path, content), decode_label_map(labels_path, labels_content)
    if normals.shape[1:] != labels.shape:
        raise MistakeError(
            f"{path}: {normals.shape[1]}x{normals.shape[2]} pixels, but {labels_path} has {labels.shape[0]}x"
            f"{labels.shape[1]} pixels; give both the same size"
        )
    return np.where(_HAS_NORMALS[labels], normals, np.float32(0))


_classes = partial(decode_classes, num_classes=len(PASCAL21))

_LABEL_MAPS = "pascal-context/trainval"

SOURCES = {
    IMAGE: (Source(folder="JPEGImages", suffix=".jpg"),),
    "semseg": (
        Source(folder="semseg/VOC12", suffix=".png", decode=_classes),
        Source(folder="semseg/pascal-context", suffix=".png", decode=_classes),
    ),
    "parsing": (Source(folder="human_parts", suffix=".mat", decode=decode_human_parts, keep=True),),
    "saliency": (Source(folder="sal_distill", suffix=".png", decode=_saliency),),
    "normals": (Source(folder="normals_distill", suffix=".png", decode=_normals, beside=(_LABEL_MAPS, ".mat")),),
    "boundary": (Source(folder=_LABEL_MAPS, suffix=".mat", decode=_boundary, keep=True),),
}
