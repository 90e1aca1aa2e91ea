"""Which data set a name or a folder stands for, and what the project asks of every data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mtlsi import kinds
from mtlsi.config import MOST_SCENES, DataConfig, split_names
from mtlsi.data.readers.cityscapes_png import open_cityscapes, open_cityscapes19
from mtlsi.data.readers.files import FileDataset
from mtlsi.data.readers.folder import Folder, splits_of_folder, unread_files
from mtlsi.data.readers.numbered import CITYSCAPES19
from mtlsi.data.readers.nyud_any import open_nyud
from mtlsi.data.readers.pascal import PASCALContext
from mtlsi.data.readers.prepared import INDEX, Prepared
from mtlsi.data.scenes.dataset import Scenes
from mtlsi.data.transforms import Sample, scales
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.kinds.colouring import Colour
from mtlsi.tasks import TASKS


class LabelledImages(Protocol):
    """What the project asks of a data set: samples by index, their names, its tasks and class names."""

    tasks: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    derived: tuple[str, ...]
    """Tasks whose labels are worked out from others: tables say so."""
    left_out: dict[str, str]
    """Tasks without any label, and why: verbs say so."""
    boundary_tolerance: float
    """How far a boundary pixel may lie from its match, as a fraction of the image's diagonal."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def name(self, index: int, /) -> str: ...


@runtime_checkable
class ZoomableImages(Protocol):
    """A data set that need not enlarge what is stored, since it shows a whole image as sharp at any zoom."""

    def at_zoom(self, index: int, zoom: float) -> Sample:
        """The sample with ``zoom`` times the height and width that it has in training at zoom 1; depth as it is."""
        ...


READERS: dict[str, Callable[..., FileDataset]] = {
    "nyud": open_nyud,
    "pascal": PASCALContext,
    "cityscapes": open_cityscapes,
    "cityscapes19": open_cityscapes19,
    "folder": Folder,
}
"""By ``DataConfig.name``, called with (root, split, tasks=...)."""
SIGNS: dict[str, tuple[str, ...]] = {
    "folder": ("dataset.yaml",),
    "pascal": ("JPEGImages", "ImageSets/Context"),
    "nyud": (
        "nyu_depth_v2_labeled.mat",
        "gt_sets",
        "train/normal/*.npy",
        "val/normal/*.npy",
        "official_splits",
        "*/sync_depth_*.png",
        "*/*/sync_depth_*.png",
    ),
    "cityscapes": ("train/image/*.npy", "val/image/*.npy", "train/seg/*.png", "val/seg/*.png"),
}
"""Files or folders, by reader, any of which tells that a folder is of its layout; ``*`` stands for any name."""
BUILT_IN = ("scenes", *READERS)
MOST_ENLARGED = 1.3
"""How far stored images may be enlarged for a training: depth then came out 1 to 2 % too far, at 1.8 times 7 to 10 %."""


def register_dataset(name: str, reader: Callable[..., FileDataset], *, signs: Sequence[str] = ()) -> None:
    """Let ``name`` stand for a data set of one's own: ``--data.name NAME``, ``--data NAME``.

    ``reader(root, split, tasks=...)`` opens one split, train or val, of the folder ``root`` and gives an object with the
    attributes and methods of ``LabelledImages``; ``tasks`` is a tuple of names, or None for all that it has. ``signs``:
    files or folders inside ``root``, any of which tells ``mtlsi data`` that the reader is for it; what ``mtlsi data`` does
    needs a ``FileDataset``. A name of one's own may be registered again; raises ``MistakeError`` for a built-in one.
    """
    if name in BUILT_IN:
        raise MistakeError(f"data set {name!r} is built in; register yours under another name")
    READERS[name] = reader
    SIGNS.pop(name, None)
    if signs:
        SIGNS[name] = tuple(signs)


def open_dataset(config: DataConfig, split: str, seed: int = 0) -> LabelledImages:
    """The data set that ``config`` names, ``split`` train or val. Raises ``MistakeError`` for an unknown name."""
    tasks = None if config.tasks is None else split_names(config.tasks)
    if config.name == "scenes":
        if split not in ("train", "val"):
            raise MistakeError(f"unknown split {split!r} of scenes; expected train or val")
        training = split == "train"
        return Scenes(
            config.num_train if training else config.num_val,
            seed=seed,
            size_hw=config.image_hw or config.size_hw,
            label_set=config.label_set,
            tasks=tasks,
            first_index=0 if training else MOST_SCENES,
        )
    if config.name not in READERS:
        raise MistakeError(f"unknown data set {config.name!r}; expected scenes, {', '.join(READERS)}")
    if config.root is None:
        raise MistakeError(f"data {config.name} needs its folder; give --data.root (train) or --root (evaluate)")
    root = Path(config.root)
    if (root / INDEX).is_file():
        prepared = Prepared(root, split, tasks=tasks)
        check_name(config.name, prepared)
        return prepared
    return READERS[config.name](root, split, tasks=tasks)


def check_name(name: str, prepared: Prepared) -> None:
    """Raises ``MistakeError`` where a prepared folder is of another data set than ``name``; older ones do not say which."""
    classes = len(prepared.classes.get("semseg", CITYSCAPES19))
    same = prepared.data == name or (name, prepared.data, classes) == ("cityscapes19", "cityscapes", len(CITYSCAPES19))
    if prepared.data is not None and not same:
        raise MistakeError(
            f"data {name}, but {prepared.root} was prepared from {prepared.data}; name that, or prepare {name}: mtlsi data "
            f"prepare FOLDER --out ANOTHER --data {name}"
        )


def recognise(root: Path) -> str:
    """Which of ``READERS`` reads the folder ``root``, by what lies in it; ``MistakeError`` where none does."""
    if (root / INDEX).is_file():
        raise MistakeError(f"{root}: made by mtlsi data prepare; give the folder that it was made from")
    if root.suffix == ".mat" and root.is_file():
        return "nyud"
    for name, files in SIGNS.items():
        if any(next(root.glob(file), None) is not None for file in files):
            return name
    raise MistakeError(
        f"{root}: {holds(root)}; expected dataset.yaml (your own data), gt_sets/ or nyu_depth_v2_labeled.mat (NYUDv2), "
        "JPEGImages/ (PASCAL-Context), train/image/0.npy (MTAN's NYUv2 or Cityscapes), train/seg/0.png (auto-lambda's "
        "Cityscapes) or SCENE/sync_depth_*.png (BTS)"
        + "".join(f" or {' or '.join(SIGNS[name])} ({name})" for name in SIGNS if name not in BUILT_IN)
    )


def open_folder(root: Path, split: str, *, data: str | None = None, **options: Any) -> FileDataset:
    """One split of the data set in ``root``, whichever it is or the one named ``data``; ``options``: its reader's.

    Raises ``MistakeError`` for an unknown name and where ``root`` is no data set.
    """
    if data is not None and data not in READERS:
        raise MistakeError(f"unknown data set {data!r}; expected one of {', '.join(READERS)}")
    return READERS[data or recognise(root)](root, split, **options)


def empty_splits_of(root: Path) -> tuple[str, ...]:
    """The splits that a folder of one's own names and that hold no image."""
    return splits_of_folder(root, empty=True) if recognise(root) == "folder" else ()


def unread_files_of(root: Path) -> dict[str, list[str]]:
    """By reason, the files of a folder of one's own that are not read, where no split of it can be opened."""
    return unread_files(root) if recognise(root) == "folder" else {}


def splits_of(root: Path, *, data: str | None = None) -> tuple[str, ...]:
    """The splits that the data set in ``root``, whichever it is or the one named ``data``, has."""
    return splits_of_folder(root) if (data or recognise(root)) == "folder" else ("train", "val")


def spread(num_images: int, length: int) -> list[int]:
    """Indices of ``num_images`` (0: all) spread evenly over ``length``: neighbours in a data set show the same room."""
    count = min(num_images or length, length)
    return [i * length // count for i in range(count)]


def note_on_camera(dataset: LabelledImages) -> tuple[str, ...]:
    """What a person should know of depth in a folder of their own that does not say its camera; () where it does."""
    metric = any(TASKS[task].kind == "distance" for task in dataset.tasks)
    if not isinstance(dataset, Folder) or not metric or dataset.names_camera:
        return ()
    return (
        "dataset.yaml names no camera: a model trained on it refuses --focal-px, and its metres are right for such a camera "
        "alone; give tasks.depth.intrinsics: {focal: [fx, fy], centre: [cx, cy]}, in pixels of the depth maps",
    )


def note_on_blur(dataset: LabelledImages, config: DataConfig) -> tuple[str, ...]:
    """What a person should know of a training whose zoom enlarges the stored images of ``dataset``; () where it does not.

    What is enlarged is blurred, so that a network learns to read the zoom, by which depth is divided, from the blur. Whole
    images at zoom 1 are as sharp as those of any smaller zoom, and are taken for the mean of these: too far away. Measured
    in docs/results.md, "Blur tells the zoom".
    """
    if isinstance(dataset, ZoomableImages) or all(
        kinds.of(task).zoom(torch.ones(()), 2.0) == 1 for task in dataset.tasks
    ):
        return ()
    height, width = dataset[0]["image"].shape[-2:]
    shown = config.image_hw or (height, width)
    enlarged = min(scales((height, width), shown, config.resize))
    least, most = (zoom * enlarged for zoom in config.zoom)
    if not (least < 1 and most > MOST_ENLARGED):
        return ()
    return (
        f"data.zoom enlarges the stored images of {height}x{width} up to {most:.3g} times: their blur tells the zoom, and "
        f"depth comes out too far; give images of {math.ceil(height * most)}x{math.ceil(width * most)} with --data.image_hw "
        f"'[{shown[0]}, {shown[1]}]', or a zoom that does not enlarge: --data.zoom "
        f"'[{config.zoom[0]:g}, {1 / enlarged:.3g}]'",
    )


def colours_of(dataset: LabelledImages) -> dict[str, Sequence[Colour]]:
    """The colours that a data set chose for its classes, by task; a data set need not have the attribute ``colours``."""
    return {task: tuple(map(tuple, chosen)) for task, chosen in getattr(dataset, "colours", {}).items() if chosen}


def camera_of(dataset: LabelledImages) -> dict[str, Any]:
    """The camera of a data set's images, as ``MTLSINet`` takes it; {} where the attribute ``camera`` is not there."""
    return dict(getattr(dataset, "camera", {}))


def constant_predictions(dataset: LabelledImages, num_images: int = 50) -> dict[str, Tensor]:
    """The best prediction per task that never looks at the image, from some labels of ``dataset`` (training ones).

    See ``Kind.constant``; laid out as a decoded prediction of one pixel: () or (channels,). A task without labels is left
    out.
    """
    samples = [dataset[index] for index in spread(num_images, len(dataset))]
    constants = {}
    for name in dataset.tasks:
        kind, labels = kinds.of(name), [sample[name] for sample in samples if name in sample]
        values = torch.cat([label[..., kind.valid(label)] for label in labels], -1) if labels else torch.empty(0)
        if values.numel():
            constants[name] = kind.constant(values)
    return constants
