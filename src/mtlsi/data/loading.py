"""From a configuration to batches: which data set, in which order, with which draws.

The order of the pictures and every draw of their augmentation are pure functions of (seed, position in the run), so that
a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mtlsi.config import DataConfig
from mtlsi.data.files import FileDataset, holds
from mtlsi.data.folder import Folder, splits_of_folder
from mtlsi.data.nyud_official import open_nyud
from mtlsi.data.pascal import PASCALContext
from mtlsi.data.prepared import INDEX, Prepared
from mtlsi.data.scenes import Scenes
from mtlsi.data.transforms import EvaluationTransform, Sample, TrainTransform
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS

FIRST_VALIDATION_SCENE = 1_000_000
"""Scenes from this index on are never trained on."""


class LabelledPictures(Protocol):
    """What the project asks of a data set: samples by index, their names, its tasks and class names."""

    tasks: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    derived: tuple[str, ...]
    """Tasks whose labels are worked out from others: tables say so."""
    left_out: dict[str, str]
    """Tasks without any label, and why: verbs say so."""
    boundary_tolerance: float
    """How far a boundary pixel may lie from its match, as a fraction of the picture's diagonal."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def name(self, index: int, /) -> str: ...


READERS: dict[str, Callable[..., FileDataset]] = {"nyud": open_nyud, "pascal": PASCALContext, "folder": Folder}
"""By ``DataConfig.name``, called with (root, split, tasks=...)."""


def open_dataset(config: DataConfig, split: str, seed: int = 0) -> LabelledPictures:
    """The data set that ``config`` names, ``split`` train or val. Raises ``MistakeError`` for an unknown name."""
    if config.name == "scenes":
        if split not in ("train", "val"):
            raise MistakeError(f"unknown split {split!r} of scenes; expected train or val")
        training = split == "train"
        return Scenes(
            config.num_train if training else config.num_val,
            seed=seed,
            size_hw=config.picture_hw or config.size_hw,
            label_set=config.label_set,
            tasks=config.tasks,
            first_index=0 if training else FIRST_VALIDATION_SCENE,
        )
    if config.name not in READERS:
        raise MistakeError(f"unknown data set {config.name!r}; expected scenes, {', '.join(READERS)}")
    if config.root is None:
        raise MistakeError(f"data {config.name} needs its folder; give --data.root (train) or --root (evaluate)")
    root = Path(config.root)
    if (root / INDEX).is_file():
        return Prepared(root, split, tasks=config.tasks)
    return READERS[config.name](root, split, tasks=config.tasks)


def recognise(root: Path) -> str:
    """Which of ``READERS`` reads the folder ``root``, by what lies in it; ``MistakeError`` where none does."""
    signs = {
        "folder": ("dataset.yaml",),
        "nyud": ("nyu_depth_v2_labeled.mat", "gt_sets"),
        "pascal": ("JPEGImages", "ImageSets/Context"),
    }
    if (root / INDEX).is_file():
        raise MistakeError(f"{root}: made by mtlsi data prepare; give the folder that it was made from")
    if root.suffix == ".mat" and root.is_file():
        return "nyud"
    for name, files in signs.items():
        if any((root / file).exists() for file in files):
            return name
    raise MistakeError(
        f"{root}: {holds(root)}; expected dataset.yaml (your own data), gt_sets/ or nyu_depth_v2_labeled.mat (NYUDv2) or "
        "JPEGImages/ (PASCAL-Context)"
    )


def open_folder(root: Path, split: str, **options: Any) -> FileDataset:
    """One split of the data set in ``root``, whichever it is; ``options`` as its reader takes them."""
    return READERS[recognise(root)](root, split, **options)


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits that the data set in ``root`` has."""
    return splits_of_folder(root) if recognise(root) == "folder" else ("train", "val")


def spread(num_pictures: int, length: int) -> list[int]:
    """Indices of ``num_pictures`` (0: all) spread evenly over ``length``: neighbours in a data set show the same room."""
    count = min(num_pictures or length, length)
    return [i * length // count for i in range(count)]


def constant_predictions(dataset: LabelledPictures, num_pictures: int = 50) -> dict[str, Tensor]:
    """The best prediction per task that never looks at the picture, from some labels of ``dataset`` (training ones).

    The commonest class, the median depth, the mean direction, the share of ones; laid out as a decoded prediction of one
    pixel: () or (3,). A task without labels is left out.
    """
    samples = [dataset[index] for index in spread(num_pictures, len(dataset))]
    constants = {}
    for name in dataset.tasks:
        task, labels = TASKS[name], [sample[name] for sample in samples if name in sample]
        values = torch.cat([label[..., task.valid(label)] for label in labels], -1) if labels else torch.empty(0)
        if values.numel() == 0:
            continue
        if task.output == "class":
            constants[name] = values.flatten().mode().values
        elif task.output == "value":
            constants[name] = values.median()
        elif task.output == "direction":
            constants[name] = F.normalize(values.mean(-1), dim=0)
        else:
            constants[name] = values.float().mean()
    return constants


class TrainingPictures(Dataset):
    """Augmented samples by (position in the run, index in the data set)."""

    def __init__(self, dataset: LabelledPictures, transform: TrainTransform, seed: int, *, in_memory: bool = False):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.kept: dict[int, Sample] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        generator = torch.Generator().manual_seed(_mix(self.seed, 1, position))
        return self.transform(self._read(index), generator)

    def _read(self, index: int) -> Sample:
        if self.kept is None:
            return self.dataset[index]
        if index not in self.kept:
            self.kept[index] = self.dataset[index]
        return self.kept[index]


class EvaluationPictures(Dataset):
    """Samples for testing, by index; a label that a picture lacks is filled with its task's invalid value."""

    def __init__(self, dataset: LabelledPictures, transform: EvaluationTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.transform(self.dataset[index])
        return {"image": sample["image"]} | {
            task: sample[task] if task in sample else _no_label(task, sample) for task in self.dataset.tasks
        }


class RunSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (position, index) for micro-steps ``start`` to ``stop``, of one of ``num_processes`` processes.

    Position p of the run shows picture p modulo the length in the shuffle of its epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        process: int = 0,
        num_processes: int = 1,
    ):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.process, self.num_processes = start, stop, process, num_processes

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffles: dict[int, Tensor] = {}
        for step in range(self.start, self.stop):
            first = (step * self.num_processes + self.process) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch not in shuffles:
                    generator = torch.Generator().manual_seed(_mix(self.seed, 0, epoch))
                    shuffles[epoch] = torch.randperm(self.length, generator=generator)
                batch.append((position, int(shuffles[epoch][place])))
            for epoch in [e for e in shuffles if e < first // self.length]:
                del shuffles[epoch]
            yield batch


def training_batches(
    dataset: LabelledPictures, config: DataConfig, sampler: RunSampler, *, seed: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of augmented samples in the sampler's order."""
    transform = TrainTransform(config.size_hw, config.picture_hw, config.zoom, config.class_limit)
    return DataLoader(
        TrainingPictures(dataset, transform, seed, in_memory=config.in_memory),
        batch_sampler=sampler,
        collate_fn=Collate(dataset.tasks),
        num_workers=config.num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
    )


def evaluation_batches(
    dataset: LabelledPictures, config: DataConfig, indices: Sequence[int], *, batch_size: int = 1
) -> DataLoader:
    """Lists of whole pictures, labels at their stored size, in the order of ``indices``."""
    return DataLoader(
        torch.utils.data.Subset(EvaluationPictures(dataset, EvaluationTransform(config.picture_hw)), list(indices)),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=config.num_workers,
        worker_init_fn=_one_thread,
    )


class Collate:
    """Samples of one size to a batch; a label that a sample lacks is filled with its task's invalid value."""

    def __init__(self, tasks: Sequence[str]):
        self.tasks = tuple(tasks)

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        sizes = {tuple(sample["image"].shape[-2:]) for sample in samples}
        if len(sizes) > 1:
            raise MistakeError(f"pictures of sizes {sorted(sizes)} in one batch; give them one size")
        batch = {"image": torch.stack([sample["image"] for sample in samples])}
        for name in self.tasks:
            labels = [s[name] if name in s else _no_label(name, s) for s in samples]
            sizes = {tuple(label.shape[-2:]) for label in labels}
            if len(sizes) > 1:
                raise MistakeError(f"{name}: labels of sizes {sorted(sizes)} in one batch; give them one size")
            batch[name] = torch.stack(labels)
        return batch


def _no_label(name: str, sample: Sample) -> Tensor:
    task = TASKS[name]
    others = [x for key, x in sample.items() if key != "image"]
    size = (others[0] if others else sample["image"]).shape[-2:]
    shape = (task.label_channels, *size) if task.label_channels else tuple(size)
    return torch.full(shape, task.invalid, dtype=getattr(torch, task.label_dtype))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # workers share the cores with the training process


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, different for different numbers in all likelihood (FNV-1a over 64-bit words)."""
    value = 0xCBF29CE484222325
    for number in numbers:
        for shift in range(0, 64, 8):
            value = ((value ^ ((number >> shift) & 0xFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value >> 1
