"""NYU Depth v2 in the plain layout: pictures, 8-bit depth and 40-class labels on disk, normals and boundaries derived.

::

    images/0003.jpg          RGB
    depth/0003.png           uint8, metres = (value + 0.5) / 25.5, 0: no depth
    segmentation/0003.png    uint8, 0: unlabelled, 1..40: class 0..39
    gt_sets/train.txt        one name per line; val.txt likewise
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from mtlsi.data.derive import (
    DERIVE_VERSION,
    NYU_CENTRE_XY,
    NYU_DEPTH_STEP_M,
    NYU_FOCAL_XY,
    boundaries_from_labels,
    normals_from_depth,
)
from mtlsi.errors import MistakeError
from mtlsi.tasks import NYUD40, TASK_SETS, check_tasks

SPLITS = ("train", "val")
SIZE_HW = (480, 640)
"""The size of the official pictures, to which the camera's numbers belong."""
SOURCES = {"semseg": "segmentation", "boundary": "segmentation", "depth": "depth", "normals": "depth"}
SUFFIXES = {"images": ".jpg", "depth": ".png", "segmentation": ".png"}


def default_cache_dir() -> Path:
    """Where derived labels are kept: ``$MTLSI_CACHE``, else ``$XDG_CACHE_HOME/mtlsi``, else ``~/.cache/mtlsi``."""
    if chosen := os.environ.get("MTLSI_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mtlsi"


class NYUD(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """One split of NYU Depth v2: item i is a dictionary of "image" (3 H W) uint8 and the labels of ``tasks``.

    Labels follow the conventions of ``mtlsi.tasks``. Normals come from the depth and boundaries from the segmentation
    (``derived`` names both); they are made once and kept in ``cache_dir``, never in ``root``. The camera's numbers
    scale with the pictures, so a resized copy of the set gives the right normals too.

    Raises ``MistakeError`` at once where ``root`` is not in this layout or a listed file is missing, and on reading
    where a file cannot be decoded, sizes disagree or a label is out of range.
    """

    derived = ("normals", "boundary")

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] = TASK_SETS["nyud"].tasks,
        cache_dir: str | Path | None = None,
    ):
        self.root = Path(root)
        self.split = split
        self.tasks = check_tasks(tasks, among=TASK_SETS["nyud"].tasks)
        self.classes: dict[str, tuple[str, ...]] = {"semseg": NYUD40}
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self.names = _read_split(self.root, split)
        for folder in ("images", *dict.fromkeys(SOURCES[task] for task in self.tasks)):
            _check_listed(self.root / folder, SUFFIXES[folder], self.names, split)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The official number of item ``index``, such as "0003"."""
        return self.names[index]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        picture = _decode(*self._read("images", index)).convert("RGB")
        item = {"image": torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())}
        for task in self.tasks:
            label = self._derived(task, index) if task in self.derived else self._stored(task, index)
            if label.shape[-2:] != item["image"].shape[-2:]:
                folder = SOURCES[task]
                raise MistakeError(
                    f"{self._path(folder, index)}: {_size(label.shape)}, but {self._path('images', index)} has "
                    f"{_size(item['image'].shape)}; give both the same size"
                )
            item[task] = torch.from_numpy(label)
        return item

    def prepare(self, num_workers: int = 0) -> None:
        """Fill the cache with every derived label of ``tasks``, in ``num_workers`` processes (0: in this one)."""
        console, title = Console(stderr=True), f"Deriving labels, {self.split}"
        indices = range(len(self))
        if not num_workers:
            for index in track(indices, title, console=console):
                self._derive_all(index)
            return
        pool = ProcessPoolExecutor(num_workers)
        try:
            for _ in track(pool.map(self._derive_all, indices, chunksize=4), title, len(self), console=console):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _derive_all(self, index: int) -> None:
        for task in self.tasks:
            if task in self.derived:
                self._derived(task, index)

    def _path(self, folder: str, index: int) -> Path:
        return self.root / folder / (self.names[index] + SUFFIXES[folder])

    def _read(self, folder: str, index: int) -> tuple[Path, bytes]:
        path = self._path(folder, index)
        try:
            return path, path.read_bytes()
        except OSError as error:
            raise MistakeError(f"{path}: cannot be read ({error.strerror}); restore the file") from error

    def _stored(self, task: str, index: int) -> np.ndarray:
        path, content = self._read(SOURCES[task], index)
        return _depth(path, content) if task == "depth" else _classes(path, content)

    def _derived(self, task: str, index: int) -> np.ndarray:
        """The derived label, from the cache where it is there. Its key is what it follows from: file and version."""
        path, content = self._read(SOURCES[task], index)
        key = hashlib.sha256(content).hexdigest()[:32]
        kept = self.cache_dir / f"{task}-{DERIVE_VERSION}" / f"{key}.png"
        if kept.exists():
            pixels = np.array(_decode(kept, kept.read_bytes()))
        else:
            pixels = encode_normals(_normals(path, content)) if task == "normals" else _boundary(path, content)
            _write_beside_and_rename(kept, pixels)
        return decode_normals(pixels) if task == "normals" else pixels


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals (3 H W) as a picture (H W 3) uint8: 127 n + 128, so that (0, 0, 0), invalid, is kept exactly.

    Choice: rounding turns a normal by at most 0.4 degrees, far less than the error of deriving it, for a thirtieth
    of the space of float32.
    """
    return (np.rint(normals * 127) + 128).astype(np.uint8).transpose(1, 2, 0)


def decode_normals(picture: np.ndarray) -> np.ndarray:
    """The unit normals (3 H W) float32 of a picture made by ``encode_normals``."""
    normals = picture.transpose(2, 0, 1).astype(np.float32) - 128
    length = np.sqrt((normals**2).sum(0))
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)


def _read_split(root: Path, split: str) -> list[str]:
    if split not in SPLITS:
        raise MistakeError(f"split {split!r}: unknown; expected one of {', '.join(SPLITS)}")
    path = root / "gt_sets" / f"{split}.txt"
    if not path.is_file():
        found = sorted(entry.name for entry in os.scandir(root)) if root.is_dir() else None
        seen = "no such folder" if found is None else f"it holds {', '.join(found[:6]) or 'nothing'}"
        raise MistakeError(
            f"{root}: {seen}; expected images/, depth/, segmentation/ and gt_sets/{split}.txt; "
            "point root at the folder that holds them"
        )
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise MistakeError(f"{path}: empty; expected one picture name per line, such as 0003")
    return names


def _check_listed(folder: Path, suffix: str, names: list[str], split: str) -> None:
    if not folder.is_dir():
        raise MistakeError(
            f"{folder}: no such folder; expected one file {names[0]}{suffix} for each name of {split}.txt"
        )
    found = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in names if name + suffix not in found]
    if missing:
        kinds = ", ".join(sorted({Path(name).suffix or name for name in found})[:4]) or "nothing"
        raise MistakeError(
            f"{folder / (missing[0] + suffix)}: missing, and so are {len(missing) - 1} more that gt_sets/{split}.txt "
            f"lists (the folder holds {kinds}); restore the files or take the names off the list"
        )


def _decode(path: Path, content: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow's SyntaxError: a broken PNG chunk
        raise MistakeError(f"{path}: not a whole picture ({len(content)} bytes); fetch it anew or delete it") from error
    return picture


def _label_map(path: Path, content: bytes) -> np.ndarray:
    picture = _decode(path, content)
    if picture.mode not in ("L", "P"):
        raise MistakeError(f"{path}: pixels of mode {picture.mode}; expected one 8-bit channel; convert the file")
    return np.array(picture)


def _classes(path: Path, content: bytes) -> np.ndarray:
    """(H W) uint8, classes 0..39 and 255: the file's 0 wraps round to 255."""
    values = _label_map(path, content)
    if values.max() > len(NYUD40):
        raise MistakeError(
            f"{path}: label {values.max()}; expected 0 (unlabelled) or 1..{len(NYUD40)}; "
            "map the labels to the 40 classes"
        )
    return values - np.uint8(1)


def _depth(path: Path, content: bytes) -> np.ndarray:
    """(H W) float32 metres, the middle of each step. Choice: 0, nearer than any sensor sees, is a hole: invalid."""
    values = _label_map(path, content)
    return np.where(values > 0, (values + np.float32(0.5)) * np.float32(NYU_DEPTH_STEP_M), 0).astype(np.float32)


def _normals(path: Path, content: bytes) -> np.ndarray:
    depth_m = _depth(path, content)
    scale_y, scale_x = (length / official for length, official in zip(depth_m.shape, SIZE_HW, strict=True))
    return normals_from_depth(
        depth_m,
        focal_xy=(NYU_FOCAL_XY[0] * scale_x, NYU_FOCAL_XY[1] * scale_y),
        centre_xy=((NYU_CENTRE_XY[0] + 0.5) * scale_x - 0.5, (NYU_CENTRE_XY[1] + 0.5) * scale_y - 0.5),
    )


def _boundary(path: Path, content: bytes) -> np.ndarray:
    return boundaries_from_labels(_classes(path, content))


def _write_beside_and_rename(path: Path, pixels: np.ndarray) -> None:
    """Several processes may make the same file at once: each writes its own, and the last rename wins."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
        try:
            Image.fromarray(pixels).save(part, format="PNG", compress_level=3)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise MistakeError(
            f"{path.parent}: derived labels cannot be kept there ({error.strerror}); set MTLSI_CACHE to a folder that "
            "can be written"
        ) from error


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]} pixels"
