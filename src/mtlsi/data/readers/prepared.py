"""A data set packed for fast loading: one safetensors file per image, whatever layout it came from.

::

    prepared.json               where it came from, its data set's name, tasks, own tasks, classes, their colours, splits
    pictures/0003.safetensors   image and labels

An image is kept as its own JPEG file's bytes, or as pixels. Labels are packed by their kind: class maps and strengths are
deflated, distances are 16 bits of their own image's range (a step of range / 65535), directions 8 bits a component (a turn
of 0.4 degrees at most), values deflated float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from mtlsi import kinds
from mtlsi.data.readers.files import IMAGE, check_split
from mtlsi.errors import MistakeError, message_of
from mtlsi.images import UNREADABLE, pixel_limit, size_of_jpeg
from mtlsi.kinds.colouring import checked_colours
from mtlsi.reading import check_relative, read_content, read_json, shortened
from mtlsi.tasks import LONGEST_TEXT, TASKS, TOLERANCE_END, check_classes, check_printed, check_tasks, register_records
from mtlsi.tensor_files import check_tensor_bytes

INDEX = "prepared.json"
VERSION = 1
BROKEN = (SafetensorError, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning, *UNREADABLE)
"""What reading an image's file raises where it is not whole."""


def pack(sample: Mapping[str, Tensor], jpeg: bytes | None = None) -> bytes:
    """One sample ("image" (3 H W) uint8 and labels) as the content of its file; ``jpeg`` is kept in the pixels' place."""
    image = sample[IMAGE]
    tensors = {"size": np.array(image.shape[-2:])}
    tensors |= {"image": image.numpy()} if jpeg is None else {"image.jpg": np.frombuffer(jpeg, np.uint8)}
    for name, label in sample.items():
        if name != IMAGE:
            tensors |= kinds.of(name).pack(label)
    return safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in tensors.items()})


def unpack(path: Path, content: bytes, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The sample in the content of a file, with the labels of ``tasks`` that it holds.

    Raises ``MistakeError`` for what ``pack`` would not have written.
    """
    try:
        check_tensor_bytes(path, content)
        tensors = safetensors.numpy.load(content)
        h, w = (int(side) for side in tensors["size"])
        if min(h, w) < 1 or h * w > pixel_limit():
            raise ValueError(f"{h}x{w} pixels")
        if "image.jpg" in tensors:
            if size_of_jpeg(tensors["image.jpg"].tobytes()) != (h, w):
                raise ValueError("another size")
            # copied: torch warns of memory that it may not write to
            image = decode_jpeg(torch.from_numpy(tensors["image.jpg"].copy()), ImageReadMode.RGB)
            assert isinstance(image, Tensor), "one image in, one image out"
        else:
            image = torch.from_numpy(tensors["image"].copy())
        sample: dict[str, Tensor] = {IMAGE: image}
        for name in tasks:
            if name in tensors:
                kind = kinds.of(name)
                sample[name] = kind.unpack(tensors, (h, w))
                if sample[name].shape != ((kind.label_channels, h, w) if kind.label_channels else (h, w)):
                    raise ValueError(f"{name} of another shape")
        if image.dtype != torch.uint8 or image.shape != (3, h, w):
            raise ValueError("an image of another type or shape")
    except BROKEN as error:
        raise MistakeError(f"{path}: not a whole prepared image; run mtlsi data prepare again") from error
    return sample


class Prepared(torch.utils.data.Dataset[dict[str, Tensor]]):
    """One split of a folder that ``mtlsi data prepare`` made; raises ``MistakeError`` where it is not one."""

    def __init__(self, root: str | Path, split: str = "train", *, tasks: Sequence[str] | None = None):
        self.root, self.split = Path(root), split
        index = read_index(self.root)
        register_records(index.get("own_tasks", ()))
        check_split(split, index["splits"], str(self.root))
        self.names: list[str] = index["splits"][split]
        if not self.names:
            raise MistakeError(f"{self.root / INDEX}: no images of the split {split}; run mtlsi data prepare again")
        held = check_tasks(index["tasks"][split])
        self.tasks = check_tasks(tasks, among=held) if tasks else held
        self.classes = {task: tuple(names) for task, names in index["classes"].items() if task in self.tasks}
        self.colours = {task: chosen for task, chosen in index.get("colours", {}).items() if task in self.classes}
        self.camera = index.get("camera", {})
        self.derived = tuple(task for task in self.tasks if task in index["derived"])
        self.boundary_tolerance: float = index["boundary_tolerance"]
        self.layout = f"prepared from {index['layout']}"
        self.data: str | None = index.get("data")
        """The name of the data set that it was made from."""
        self.left_out: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path = image_path(self.root, self.names[index])
        try:
            content = read_content(path)
        except OSError as error:
            raise MistakeError(f"{path}: cannot be read ({error.strerror}); run mtlsi data prepare again") from error
        sample = unpack(path, content, self.tasks)
        for task, label in sample.items():
            if (number := self._num_classes(task)) and ((label >= number) & kinds.of(task).valid(label)).any():
                raise MistakeError(f"{path}: {task} beyond its {number} classes; run mtlsi data prepare again")
        return sample

    def _num_classes(self, task: str) -> int:
        """How many values a label of ``task`` may have; 0: any number."""
        if task in self.classes:
            return len(self.classes[task])
        return 2 if task != IMAGE and TASKS[task].kind == "strength" else 0

    def name(self, index: int) -> str:
        """The name that item ``index`` has in the data set it came from."""
        return self.names[index]


def image_path(root: Path, name: str) -> Path:
    """The file of one image."""
    return root / "pictures" / f"{name}.safetensors"


def read_index(root: Path) -> dict:
    """What ``prepared.json`` says; ``MistakeError`` where it is not there, not whole or of another version."""
    path = root / INDEX
    index = read_json(path, "a folder made by mtlsi data prepare")
    if index.get("version") != VERSION:
        raise MistakeError(f"{path}: version {index.get('version')}; expected {VERSION}: run mtlsi data prepare again")
    if not index.get("complete"):
        raise MistakeError(f"{path}: not finished; run the same mtlsi data prepare again, it goes on where it stopped")
    try:
        _check_index(index)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; run mtlsi data prepare again") from error
    return index


def _check_index(index: dict[str, Any]) -> None:
    """Raises ``KeyError``, ``ValueError`` or ``MistakeError`` for what ``mtlsi data prepare`` would not have written."""
    for key, kind in (("splits", dict), ("tasks", dict), ("classes", dict), ("derived", list), ("layout", str)):
        _expect(key, index[key], kind)
    _expect("boundary_tolerance", index["boundary_tolerance"], (int, float))
    if not 0 < index["boundary_tolerance"] < TOLERANCE_END:
        raise ValueError(
            f"boundary_tolerance is {shortened(index['boundary_tolerance'])}; expected a share of the image's "
            f"diagonal below {TOLERANCE_END}"
        )
    _expect("data", index.get("data", ""), str)
    check_printed("data", index.get("data"))
    check_printed("layout", index["layout"], 2 * LONGEST_TEXT)  # it quotes a name
    _expect("own_tasks", index.get("own_tasks", []), list)
    _expect("colours", index.get("colours", {}), dict)
    _expect("camera", index.get("camera", {}), dict)
    for key in ("splits", "tasks", "classes"):
        for name, values in index[key].items():
            _expect(f"{key}.{name}", values, list)
            for value in values:
                _expect(f"{key}.{name}", value, str)
    check_classes(index["classes"])
    for names in index["splits"].values():
        for name in names:
            check_relative(name)
    for split in index["splits"]:
        if split not in index["tasks"]:
            raise ValueError(f"tasks.{split} is missing")
    for value in index["derived"]:
        _expect("derived", value, str)
    for task, colours in index.get("colours", {}).items():
        checked_colours(task, colours, len(index["classes"][task]))


def _expect(key: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{shortened(key)} is {shortened(value)}")
