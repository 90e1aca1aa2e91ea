"""NYU Depth v2 as its authors publish it: ``nyu_depth_v2_labeled.mat`` and ``splits.mat``.

The first is an HDF5 file (MATLAB 7.3) whose axes run the other way round than MATLAB shows them: ``images``
(1449 3 640 480) uint8, ``depths`` (1449 640 480) float32 metres, in-painted, ``labels`` (1449 640 480) uint16, 0 unlabelled
and 1..894 the classes that ``names`` holds. The second lists ``trainNdxs`` and ``testNdxs``, counted from 1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.data.readers.decoding import checked_depth, decode_mat
from mtlsi.data.readers.derive import boundaries_from_labels
from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.mat73 import lies_elsewhere, num_bytes
from mtlsi.data.readers.nyud import CAMERA, SPLITS, camera_normals
from mtlsi.errors import MistakeError
from mtlsi.images import pixel_limit
from mtlsi.io import holds
from mtlsi.reading import MOST_BYTES, read_content
from mtlsi.tasks import NYUD40, TASK_SETS, check_tasks

if TYPE_CHECKING:
    import h5py

LABELLED, SPLIT_LISTS = "nyu_depth_v2_labeled.mat", "splits.mat"
INDICES = {"train": "trainNdxs", "val": "testNdxs"}

NUM_RAW_CLASSES = 894
MOST_NAMES, MOST_LETTERS = 10_000, 1000
"""Raw classes that ``names`` may hold, and letters of one; what is larger is none."""
NAMED = (
    21, 11, 3, 157, 5, 83, 19, 28, 59, 88, 64, 7, 80, 36, 42, 89, 169, 119, 122, 143,
    141, 4, 85, 17, 172, 15, 135, 123, 26, 45, 331, 158, 124, 24, 144, 136, 55,
)  # fmt: skip
"""The raw class that is each of the first 37 of the 40 classes, in their order: wall, floor, ... bag."""
OTHER_STRUCTURE = (
    8, 25, 33, 38, 51, 53, 57, 58, 62, 65, 79, 94, 104, 112, 134, 153, 215, 216, 223, 225, 238, 241, 242, 256, 295, 301,
    339, 342, 354, 363, 372, 380, 392, 408, 412, 453, 456, 463, 477, 497, 541, 550, 553, 567, 573, 582, 591, 609, 612,
    615, 642, 645, 657, 658, 659, 663, 667, 668, 686, 700, 702, 777, 778, 782, 850, 861, 868, 874,
)  # fmt: skip
OTHER_FURNITURE = (
    12, 43, 48, 50, 87, 106, 111, 161, 163, 174, 183, 204, 214, 219, 221, 224, 236, 262, 278, 291, 298, 313, 343, 344,
    356, 359, 373, 393, 401, 414, 418, 419, 430, 443, 444, 447, 448, 457, 458, 460, 462, 475, 479, 485, 486, 493, 494,
    498, 499, 509, 510, 515, 521, 524, 540, 549, 551, 554, 556, 558, 576, 580, 608, 625, 703, 734, 770, 772, 797, 800,
    803, 804, 813, 814, 815, 820, 829, 835, 858, 863, 882, 892,
)  # fmt: skip
LANDMARKS = ("wall", "floor", "bed", "chair", "sofa", "table", "door", "window")
"""Classes whose place in the file's own ``names`` shows that its labels are numbered as the table above says."""


def classes_of_raw() -> np.ndarray:
    """(895) uint8: raw label -> one of the 40 classes from 0, or 255 for 0, unlabelled.

    Paper: Gupta, Arbelaez, Malik, "Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images", CVPR 2013
    (their ``classMapping40.mat``). What is none of the tuples above is "other prop".
    """
    table = np.full(NUM_RAW_CLASSES + 1, NYUD40.index("other prop"), np.uint8)
    table[0] = 255
    table[list(NAMED)] = np.arange(len(NAMED))
    table[list(OTHER_STRUCTURE)] = NYUD40.index("other structure")
    table[list(OTHER_FURNITURE)] = NYUD40.index("other furniture")
    return table


_CLASSES = classes_of_raw()
_STORED = Source(folder="", suffix=".mat")
_DERIVED = Source(folder="", suffix=".mat", keep=True, derived=True)
SOURCES = {
    IMAGE: (_STORED,),
    "semseg": (_STORED,),
    "depth": (_STORED,),
    "normals": (_DERIVED,),
    "boundary": (_DERIVED,),
}


class OfficialNYUD(FileDataset):
    """One split of the official NYU Depth v2; ``root`` is the folder with the two files, or the large one itself.

    Items are named by their index from 1, such as "0003". Normals (from depth) and boundaries (from the 40 classes) are
    derived and kept in ``cache_dir`` under the large file's name, size and time of change: hashing its 2.8 GB would take
    longer than reading what is asked for. The file is opened on first use, again in every process.

    Raises ``MistakeError`` at once where a file is missing, broken or lacks something, and on reading where a stored
    image or label cannot be unpacked or is out of range.
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
        root = Path(root)
        self.file = root if root.is_file() else root / LABELLED
        check_split(split, SPLITS, "NYUDv2")
        if tasks:
            check_tasks(tasks, among=TASK_SETS["nyud"].tasks)
        if not self.file.is_file():
            raise MistakeError(
                f"{self.file}: no such file ({root}: {holds(root)}); point root at the folder that holds it"
            )
        with _open(self.file) as opened:
            self.num_images = _check(self.file, opened)
        self._opened: tuple[int, h5py.File] | None = None
        super().__init__(
            self.file.parent,
            split,
            layout=f"NYUDv2, official ({self.file.name}; normals and boundaries derived)",
            names=[f"{index:04}" for index in read_indices(self.file.parent / SPLIT_LISTS, split, self.num_images)],
            sources=SOURCES,
            classes={"semseg": NYUD40},
            boundary_tolerance=TASK_SETS["nyud"].boundary_tolerance,
            tasks=tasks,
            cache_dir=cache_dir,
            may_lack=may_lack,
        )

    def stems(self, what: str) -> set[str]:  # noqa: ARG002  every image has every label
        """The names of all images, listed in a split or not."""
        return {f"{index:04}" for index in range(1, self.num_images + 1)}

    def read(self, what: str, index: int) -> np.ndarray:
        """The image (H W 3) uint8 or a label, laid out as ``tasks.py`` says. Raises ``MistakeError`` naming the file."""
        name = self.names[index]
        place = Path(f"{self.file}[{name}]")
        if what == IMAGE:
            return self._stored("images", name).transpose(2, 1, 0)
        if what == "depth":
            return checked_depth(place, self._stored("depths", name).T)
        if what == "semseg":
            labels = self._stored("labels", name).T
            if labels.max(initial=0) > NUM_RAW_CLASSES:
                raise MistakeError(
                    f"{place}: label {labels.max()}; expected 0..{NUM_RAW_CLASSES}; download the file again"
                )
            return _CLASSES[labels]
        if what not in self.sources:
            raise MistakeError(f"{name}: no {what}; the official NYUDv2 has {', '.join(self.sources)}")
        return self._kept(what, self._key(name), partial(self._derive, what, index))

    def _derive(self, task: str, index: int) -> np.ndarray:
        if task == "boundary":
            return boundaries_from_labels(self.read("semseg", index))
        return camera_normals(self.read("depth", index), step_m=None)

    def _key(self, name: str) -> str:
        state = self.file.stat()
        facts = f"{self.file.name} {state.st_size} {state.st_mtime_ns} {name}"
        return hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()[:32]  # a name need not be UTF-8

    def _find(self, what: str, name: str) -> tuple[Path, Source]:  # noqa: ARG002
        return self.file, self.sources[what][0]

    def _stored(self, variable: str, name: str) -> np.ndarray:
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:  # a forked worker: reading through its parent's handle would mix their places
                self._opened[1].close()
            self._opened = os.getpid(), _open(self.file)
        try:
            return self._opened[1][variable][int(name) - 1]  # pyright: ignore[reportIndexIssue, reportReturnType]
        except OSError as error:
            raise MistakeError(
                f"{self.file}[{name}]: {variable} cannot be unpacked; download the file again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_opened": None}


def read_indices(path: Path, split: str, num_images: int) -> list[int]:
    """The indices from 1 of a split, as ``splits.mat`` lists them. Raises ``MistakeError`` naming the file."""
    try:
        content = read_content(path)
    except OSError as error:
        raise MistakeError(f"{path}: cannot be read ({error.strerror}); put the official {path.name} there") from error
    variables = decode_mat(path, content)
    if INDICES[split] not in variables:
        raise MistakeError(f"{path}: no variable {INDICES[split]}; put the official {path.name} there")
    indices = np.asarray(variables[INDICES[split]]).ravel()
    is_list = indices.dtype.kind in "uif" and indices.size and np.isfinite(indices).all()
    if not is_list or indices.min() < 1 or indices.max() > num_images:
        raise MistakeError(
            f"{path}: {INDICES[split]} is no list of numbers in 1..{num_images}; download both files again"
        )
    return [int(index) for index in indices]


def _open(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r", locking=False)  # nothing is written, and network disks often cannot lock
    except OSError as error:
        reason = "cut short" if "truncated" in str(error) else "not an HDF5 file (MATLAB 7.3)"
        raise MistakeError(f"{path}: {reason}, {path.stat().st_size} bytes; download it again") from error


def _check(path: Path, file: h5py.File) -> int:
    """The number of images in a file that holds what it should."""
    missing = [name for name in ("images", "depths", "labels", "names") if name not in file]
    if missing:
        raise MistakeError(f"{path}: no variable {missing[0]}; expected the official {LABELLED}")
    images, depths, labels = (file[name] for name in ("images", "depths", "labels"))
    _check_plain(path, images, depths, labels, file["names"])
    try:
        count, channels, width, height = images.shape  # pyright: ignore[reportAttributeAccessIssue]
        sound = channels == 3 and depths.shape == labels.shape == (count, width, height)  # pyright: ignore
        sound &= (images.dtype, depths.dtype.kind, labels.dtype.kind) == (np.uint8, "f", "u")  # pyright: ignore
    except (AttributeError, ValueError):
        sound, count, width, height = False, 0, 0, 0
    if not sound:
        shapes = ", ".join(
            f"{name} {list(getattr(file[name], 'shape', []))}" for name in ("images", "depths", "labels")
        )
        raise MistakeError(
            f"{path}: holds {shapes}; expected images (n 3 640 480), depths and labels (n 640 480); download it again"
        )
    if width * height > pixel_limit():
        raise MistakeError(f"{path}: images of {width}x{height} pixels; expected 640x480; download it again")
    for name in LANDMARKS:
        raw = NAMED[NYUD40.index(name)]
        if (found := _raw_name(path, file, raw)) != name:
            raise MistakeError(
                f"{path}: class {raw} is called {found!r}; expected {name!r}: its labels are other classes"
            )
    return count


def _check_plain(path: Path, *variables: Any) -> None:
    """Raises ``MistakeError`` where a variable lies in another file, or is packed in pieces too large to be unpacked."""
    import h5py

    for variable in variables:
        if isinstance(variable, h5py.Dataset):
            if lies_elsewhere(variable):
                raise MistakeError(f"{path}: {variable.name} lies in another file; download it again")
            if num_bytes(variable, variable.chunks or ()) > MOST_BYTES:
                raise MistakeError(
                    f"{path}: {variable.name} is packed in pieces of more than {MOST_BYTES // 2**20} MB; download it again"
                )


def _raw_name(path: Path, file: h5py.File, raw: int) -> str:
    """The name of a raw class: ``names`` is a cell array, that is, references to arrays of character codes."""
    import h5py

    try:
        names = file["names"]
        if names.size > MOST_NAMES or names.dtype != h5py.ref_dtype:  # pyright: ignore
            return ""
        letters = file[names[()].ravel()[raw - 1]]  # pyright: ignore
        _check_plain(path, letters)
        if letters.size > MOST_LETTERS or letters.dtype.kind not in "iu":  # pyright: ignore
            return ""
        return "".join(map(chr, np.asarray(letters).ravel()))
    except MistakeError:
        raise
    except (OSError, OverflowError, IndexError, ValueError, TypeError, AttributeError, KeyError):
        return ""
