"""Batches: samples read, augmented and stacked, in the sampler's order."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtlsi import kinds, processes
from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages, ZoomableImages
from mtlsi.data.sampling import RunSampler, mix_seeds
from mtlsi.data.transforms import EvaluationTransform, Sample, TrainTransform
from mtlsi.errors import MistakeError, message_of
from mtlsi.tasks import invalid_class, own_records, register_records


class TrainingImages(Dataset):
    """Augmented samples by (position in the run, index in the data set).

    The field's augmentation draws a zoom for each and resizes what is stored. ``ZoomableImages`` are asked for theirs in
    place of that: each index has one, so that ``in_memory`` changes nothing but the time.
    """

    def __init__(
        self, dataset: LabelledImages, transform: Callable[..., Sample], seed: int, *, in_memory: bool = False
    ):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.kept: dict[int, Sample] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        generator = self._generator(1, position)
        if not isinstance(self.transform, TrainTransform):
            return self.transform(self._read(index, self.dataset.__getitem__), generator)
        if not isinstance(self.dataset, ZoomableImages):
            return self.transform(self._checked(index, self.dataset.__getitem__), generator)
        zoom = self.transform.draw_zoom(self._generator(2, index))
        return self.transform(self._checked(index, partial(self.dataset.at_zoom, zoom=zoom)), generator, zoom)

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix_seeds(self.seed, *numbers))

    def _checked(self, index: int, read: Callable[[int], Sample]) -> Sample:
        """The sample, whose labels lie on the image's pixels: crops are cut at the same place of all.

        Raises ``MistakeError`` where they do not, and as ``_check_marks``.
        """
        sample = self._read(index, read)
        _check_marks(sample, self.dataset, index)
        sides = sample["image"].shape[-2:]
        for task in sample.keys() & set(self.dataset.tasks):
            label = sample[task]
            if label.shape[-2:] != sides:
                raise MistakeError(
                    f"{self.dataset.name(index)}: a {task} label of {label.shape[-2]}x{label.shape[-1]} for an image of "
                    f"{sides[0]}x{sides[1]}; expected labels of the image's size: resize one of them in the data set"
                )
        return sample

    def _read(self, index: int, read: Callable[[int], Sample]) -> Sample:
        if self.kept is None:
            return read(index)
        if index not in self.kept:
            self.kept[index] = read(index)
        return self.kept[index]


class EvaluationImages(Dataset):
    """Samples for testing, by index; a label that an image lacks is filled with its task's invalid value."""

    def __init__(self, dataset: LabelledImages, transform: EvaluationTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        stored = self.dataset[index]
        _check_marks(stored, self.dataset, index)
        sample = self.transform(stored)
        return {"image": sample["image"]} | {
            task: sample[task] if task in sample else _no_label(task, sample, self.dataset.classes)
            for task in self.dataset.tasks
        }


def _check_marks(sample: Sample, dataset: LabelledImages, index: int) -> None:
    """Raises ``MistakeError`` for a type of class indices whose mark of unlabelled pixels is a class."""
    for task, names in dataset.classes.items():
        if task in sample and invalid_class(sample[task].dtype) < len(names):
            raise MistakeError(
                f"{dataset.name(index)}: a {task} label of {len(names)} classes in {sample[task].dtype}, of which 255 is no "
                "class; expected int32, where 65535 is none"
            )


class Loader(DataLoader):
    """A loader whose processes end with the reading, and whose ``MistakeError`` says one thing wherever it was raised.

    Left to Python's end, they would be waited for, who take no notice of SIGTERM: a traceback is enough to hold the
    iterator that would end them.
    """

    def __iter__(self) -> Generator[Any, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _read(super().__iter__())  # its processes start now, not at the first batch


def _read(batches: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        yield from batches
    except MistakeError as error:  # from a process, torch puts that process's traceback in front of the message
        _, found, message = str(error).rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")
        if not found:
            raise
        raise MistakeError(message.strip()) from None
    except (EOFError, ConnectionError) as error:  # before torch has noticed that its process ended
        raise RuntimeError(f"{processes.LOADER} unknown) broke off") from error
    finally:
        if end := getattr(batches, "_shutdown_workers", None):
            end()  # asks them, waits some seconds, and sends SIGTERM to one that still reads
            for loader in getattr(batches, "_workers", ()):
                loader.kill()


def training_batches(
    dataset: LabelledImages,
    config: DataConfig,
    sampler: RunSampler,
    *,
    seed: int,
    pin_memory: bool = False,
    transform: Callable[[Sample, torch.Generator], Sample] | None = None,
) -> Loader:
    """Batches of augmented samples in the sampler's order; ``transform`` replaces the field's augmentation."""
    transform = transform or TrainTransform(
        config.size_hw, config.image_hw, config.zoom, config.class_limit, config.resize
    )
    return Loader(
        TrainingImages(dataset, transform, seed, in_memory=config.in_memory),
        batch_sampler=sampler,
        collate_fn=Collate(dataset.tasks, dataset.classes),
        num_workers=config.num_workers,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, own_records(dataset.tasks)),
    )


def evaluation_batches(
    dataset: LabelledImages, config: DataConfig, indices: Sequence[int], *, batch_size: int = 1
) -> Loader:
    """Lists of whole images, not padded, labels at their stored size, in the order of ``indices``."""
    images = EvaluationImages(dataset, EvaluationTransform(config.image_hw, config.resize))
    return Loader(
        torch.utils.data.Subset(images, list(indices)),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=config.num_workers,
        worker_init_fn=partial(_start_worker, own_records(dataset.tasks)),
    )


class Collate:
    """Samples of one size to a batch; a label that a sample lacks is filled with its task's invalid value."""

    def __init__(self, tasks: Sequence[str], classes: Mapping[str, Sequence[str]] | None = None):
        self.tasks, self.classes = tuple(tasks), dict(classes or {})

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        sizes = {tuple(sample["image"].shape[-2:]) for sample in samples}
        if len(sizes) > 1:
            raise MistakeError(f"images of sizes {sorted(sizes)} in one batch; give them one size")
        batch = {"image": torch.stack([sample["image"] for sample in samples])}
        for name in self.tasks:
            labels = [s[name] if name in s else _no_label(name, s, self.classes) for s in samples]
            sizes = {tuple(label.shape[-2:]) for label in labels}
            if len(sizes) > 1:
                raise MistakeError(f"{name}: labels of sizes {sorted(sizes)} in one batch; give them one size")
            batch[name] = torch.stack(labels)
        return batch


def _no_label(name: str, sample: Sample, classes: Mapping[str, Sequence[str]]) -> Tensor:
    others = [x for key, x in sample.items() if key != "image"]
    size = (others[0] if others else sample["image"]).shape[-2:]
    return kinds.of(name).empty(size, len(classes.get(name, ())) or None)


def ignore_signals() -> None:
    """Leave Ctrl-C and SIGTERM to the training process, which ends its loaders itself.

    All processes of a job get them, and may get them twice. The step in hand, which may wait for its batch, ends first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_at_faults() -> None:
    """End this loader process where a thread of its own cannot hand a batch over, for want of file handles or memory.

    Left to itself it would print a traceback and go on, and the training process would wait for that batch without end.
    """

    def end(error: BaseException) -> NoReturn:
        print(f"mtlsi: a loader process: {message_of(error)}", file=sys.stderr, flush=True)
        os._exit(1)

    hook = staticmethod(lambda error, _: end(error))
    multiprocessing.queues.Queue._on_queue_feeder_error = hook  # pyright: ignore[reportAttributeAccessIssue]
    sys.excepthook = lambda _, error, __: end(error)  # of what gives out the handles of its memory


def _start_worker(records: list[dict[str, Any]], _: int) -> None:
    ignore_signals()
    end_at_faults()
    register_records(records)  # a spawned process knows the built-in tasks only
    torch.set_num_threads(1)  # workers share the cores with the training process
