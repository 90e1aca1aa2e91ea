from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from contextlib import suppress
from itertools import chain

import numpy as np
import pytest
import torch

from mtlsi import kinds, processes
from mtlsi.config import DataConfig
from mtlsi.data.batches import Collate, EvaluationImages, TrainingImages, evaluation_batches, training_batches
from mtlsi.data.datasets import constant_predictions, open_dataset
from mtlsi.data.sampling import RunSampler
from mtlsi.data.scenes.dataset import Scenes, render_scene
from mtlsi.data.transforms import EvaluationTransform, TrainTransform
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS

if os.name != "nt":
    import resource

SMALL = DataConfig(num_train=5, num_val=3, size_hw=(32, 32), image_hw=(32, 48), num_workers=0)


def sampler(length=7, batch_size=3, *, seed=0, start=0, stop=20, **more):
    return RunSampler(length, batch_size, seed=seed, start=start, stop=stop, **more)


class Counting:
    """Samples of numbers, and how often each has been read."""

    def __init__(self, tasks: tuple[str, ...] = ("depth",)):
        self.tasks, self.reads = tasks, [0] * 4
        self.classes: dict[str, tuple[str, ...]] = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.reads[index] += 1
        image = (torch.arange(3 * 40 * 40).view(3, 40, 40) * (index + 1) % 256).to(torch.uint8)
        return {"image": image, "depth": torch.full((40, 40), float(index + 1))}

    def name(self, index):
        return str(index)


# ---- the order


@pytest.mark.parametrize(("length", "batch_size"), [(7, 3), (3, 8), (6, 2)])
def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(length, batch_size):
    keys = list(chain(*sampler(length, batch_size, stop=6 * length)))
    assert [position for position, _ in keys] == list(range(len(keys)))
    indices = [index for _, index in keys]
    epochs = [tuple(indices[first : first + length]) for first in range(0, len(indices), length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert len(set(epochs)) > 1


@pytest.mark.parametrize("start", [1, 5, 13, 20])
def test_starting_later_gives_the_rest_of_an_unbroken_run(start):
    whole, rest = list(sampler()), list(sampler(start=start))
    assert rest == whole[start:]
    assert len(sampler(start=start)) == len(rest)


def test_several_processes_share_out_the_batches_of_one():
    parts = [list(sampler(batch_size=2, process=process, num_processes=3)) for process in range(3)]
    together = [list(chain(*batches)) for batches in zip(*parts, strict=True)]
    assert together == list(sampler(batch_size=6))


def test_another_seed_gives_another_order():
    orders = {tuple(index for _, index in chain(*sampler(length=50, seed=seed, stop=16))) for seed in range(5)}
    assert len(orders) == 5


# ---- the samples


def test_a_training_sample_depends_on_seed_position_and_index_alone():
    images = TrainingImages(Counting(), TrainTransform((16, 16)), seed=0)
    first = images[5, 2]
    _ = images[6, 1]
    again = TrainingImages(Counting(), TrainTransform((16, 16)), seed=0)[5, 2]
    assert all(torch.equal(first[name], again[name]) for name in first)
    others = [images[6, 2], TrainingImages(Counting(), TrainTransform((16, 16)), seed=1)[5, 2]]
    assert not any(torch.equal(first["image"], other["image"]) for other in others)


def test_images_kept_in_memory_are_read_once_and_are_the_same():
    dataset = Counting()
    kept = TrainingImages(dataset, TrainTransform((16, 16)), seed=0, in_memory=True)
    read = TrainingImages(Counting(), TrainTransform((16, 16)), seed=0)
    for position in range(12):
        sample, expected = kept[position, position % 3], read[position, position % 3]
        assert all(torch.equal(sample[name], expected[name]) for name in expected), position
    assert dataset.reads == [1, 1, 1, 0]


class Labelled(Counting):
    """One more label in every sample."""

    def __init__(self, task, label, num_classes=0):
        super().__init__(("depth", task))
        self.label, self.classes = label, {task: tuple(f"class {n}" for n in range(num_classes))}

    def __getitem__(self, index):
        return super().__getitem__(index) | {self.tasks[1]: self.label}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("task", "label", "told"),
    [
        (
            "semseg",
            torch.full((20, 20), 3, dtype=torch.uint8),
            "2: a semseg label of 20x20 for an image of 40x40; expected",
        ),
        (
            "normals",
            torch.zeros(3, 40, 41),
            "2: a normals label of 40x41 for an image of 40x40; expected labels of the im",
        ),
        (
            "semseg",
            torch.zeros(40, 40, dtype=torch.int64),
            "of 300 classes in torch.int64, of which 255 is no class; expe",
        ),
    ],
)
def test_labels_that_training_would_take_for_others_are_a_mistake(task, label, told, in_memory):
    images = TrainingImages(
        Labelled(task, label, 300 if label.dtype is torch.int64 else 4),
        TrainTransform((16, 16)),
        seed=0,
        in_memory=in_memory,
    )
    with pytest.raises(MistakeError, match=told) as mistake:
        _ = images[0, 2]
    assert "\n" not in str(mistake.value)


def test_class_indices_that_evaluation_would_take_for_unlabelled_are_a_mistake():
    dataset = Labelled("semseg", torch.zeros(40, 40, dtype=torch.uint8), 300)
    with pytest.raises(
        MistakeError, match=r"2: a semseg label of 300 classes in torch\.uint8, of which 255 is no class"
    ):
        _ = EvaluationImages(dataset, EvaluationTransform())[2]


def test_class_indices_in_any_type_that_can_hold_them_are_taken():
    label = torch.full((40, 40), 7)
    for dtype, num_classes in ((torch.uint8, 255), (torch.int64, 255), (torch.int32, 300)):
        images = TrainingImages(Labelled("semseg", label.to(dtype), num_classes), TrainTransform((16, 16)), seed=0)
        assert (images[0, 2]["semseg"] == 7).all()


class Zoomable(Counting):
    """Its samples at any zoom, and which zooms it was asked for."""

    def __init__(self):
        super().__init__()
        self.zooms: list[tuple[int, float]] = []

    def at_zoom(self, index, zoom):
        self.zooms.append((index, zoom))
        return super().__getitem__(index)


@pytest.mark.parametrize("zoom", [0.8, 1.3])
def test_a_room_is_rendered_at_the_size_of_its_zoom(zoom):
    # Not resized: what is enlarged is blurred, and the blur would tell the zoom, by which depth is divided.
    images = TrainingImages(Scenes(3, size_hw=(32, 48)), TrainTransform((32, 32), (32, 48), (zoom, zoom)), seed=0)
    for index in range(3):
        depth = torch.from_numpy(render_scene(index, size_hw=(round(32 * zoom), round(48 * zoom)))["depth"])
        height, width = min(depth.shape[0], 32), 32
        top = (32 - height) // 2
        seen = images[index, index]["depth"][top : top + height] * zoom
        windows = depth.unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
        found = [window for window in (*windows, *windows.flip(-1)) if torch.allclose(window, seen)]
        assert len(found) == 1, index


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_image_at_any_zoom_is_asked_for_at_one(in_memory):
    dataset, transform = Zoomable(), TrainTransform((16, 16), zoom=(0.5, 2.0))
    images = TrainingImages(dataset, transform, seed=0, in_memory=in_memory)
    samples = [images[position, position % 4] for position in range(12)]
    zooms = dict(dataset.zooms)
    assert set(dataset.zooms) == set(zooms.items())  # the same each time
    assert all(0.5 <= zoom <= 2 for zoom in zooms.values())
    assert len(set(zooms.values())) == 4
    for position, sample in enumerate(samples):
        index = position % 4
        assert torch.allclose(
            sample["depth"], torch.tensor((index + 1) / zooms[index])
        )  # which lies at index + 1 metres
    assert not torch.equal(samples[0]["image"], samples[4]["image"])  # another crop
    assert dataset.reads == ([1] * 4 if in_memory else [3] * 4)
    other = Zoomable()
    again = TrainingImages(other, transform, seed=0)[9, 1]  # nothing was read before
    assert torch.equal(again["image"], samples[9]["image"])
    _ = TrainingImages(other, transform, seed=1)[9, 1]
    assert other.zooms[0] == (1, zooms[1]) != other.zooms[1]


def test_a_transform_of_ones_own_gets_the_image_as_it_is():
    dataset = Zoomable()
    sample = TrainingImages(dataset, lambda sample, _: sample, seed=0)[0, 2]
    assert torch.equal(sample["image"], dataset[2]["image"])
    assert dataset.zooms == []


def test_a_loader_process_gives_the_same_batches_as_none():
    dataset = open_dataset(SMALL, "train")

    def read(num_workers):
        config = DataConfig(**{**vars(SMALL), "num_workers": num_workers})
        return list(training_batches(dataset, config, sampler(5, 2, stop=3), seed=0))

    for here, there in zip(read(0), read(1), strict=True):
        assert here.keys() == {"image", "semseg", "depth", "normals", "boundary"}
        assert here["image"].shape == (2, 3, 32, 32)
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_evaluation_batches_hold_the_images_asked_for_with_labels_as_stored():
    dataset = open_dataset(SMALL, "val")
    config = DataConfig(**{**vars(SMALL), "image_hw": (16, 24)})
    batches = list(evaluation_batches(dataset, config, [2, 0, 1], batch_size=2))
    assert [len(samples) for samples in batches] == [2, 1]
    assert batches[0][0]["image"].shape[-2:] == (16, 24)
    for place, index in enumerate((2, 0)):
        for task in dataset.tasks:
            assert torch.equal(batches[0][place][task], dataset[index][task]), task


# ---- batches


def test_a_label_that_a_sample_lacks_is_invalid_everywhere():
    whole = {"image": torch.zeros(3, 8, 8), **{name: _label(task) for name, task in TASKS.items()}}
    poor = {"image": torch.zeros(3, 8, 8), "semseg": whole["semseg"]}
    batch = Collate(tuple(TASKS))([whole, poor, {"image": torch.zeros(3, 8, 8)}])
    for name, task in TASKS.items():
        assert torch.equal(batch[name][0], whole[name])
        assert batch[name].shape == (3, 3, 8, 8) if name == "normals" else (3, 8, 8)
        known = kinds.of(task).valid(batch[name]).flatten(1)
        assert known.all(1).tolist() == [True, name == "semseg", False]
        assert not known[2].any()


def _label(task):
    shape = (3, 8, 8) if task.name == "normals" else (8, 8)
    return torch.ones(shape, dtype=kinds.of(task).label_dtype())


@pytest.mark.parametrize("task", ["semseg", None])
def test_images_of_several_sizes_in_a_batch_are_refused_in_one_line(task):
    sizes = [(8, 8), (8, 10)]
    if task is None:
        samples = [{"image": torch.zeros(3, *size)} for size in sizes]
    else:  # shown at one size, labelled at their own
        samples = [{"image": torch.zeros(3, 8, 8), task: torch.zeros(size, dtype=torch.uint8)} for size in sizes]
    with pytest.raises(MistakeError, match="size") as caught:
        Collate(("semseg",))(samples)
    assert "\n" not in str(caught.value)


# ---- opening


def test_training_and_validation_scenes_are_different_rooms():
    config = DataConfig(num_train=30, num_val=20, size_hw=(32, 32))
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
    assert (len(train), len(val)) == (30, 20)
    names = [[dataset.name(i) for i in range(len(dataset))] for dataset in (train, val)]
    assert len({*names[0], *names[1]}) == 50
    assert not torch.equal(train[0]["image"], val[0]["image"])
    assert not torch.equal(train[0]["image"], open_dataset(config, "train", seed=1)[0]["image"])


def test_scenes_have_the_tasks_asked_for():
    config = DataConfig(num_train=2, size_hw=(32, 32), tasks=("depth", "boundary"))
    dataset = open_dataset(config, "train")
    assert dataset.tasks == ("depth", "boundary")
    assert Collate(dataset.tasks)([dataset[0]]).keys() == {"image", "depth", "boundary"}


@pytest.mark.parametrize(
    ("config", "split", "told"),
    [
        (DataConfig(name="scene"), "train", "'scene'"),
        (DataConfig(name="nyud"), "train", "root"),
        (DataConfig(name="nyud", root="not/there"), "val", "not/there"),
        (DataConfig(label_set="cityscapes"), "train", "cityscapes"),
        (DataConfig(tasks=("depth", "smell")), "train", "smell"),
        (DataConfig(), "test", "test"),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_a_mistake_in_one_line(config, split, told):
    with pytest.raises(MistakeError, match=told) as caught:
        open_dataset(config, split)
    assert "\n" not in str(caught.value)


# ---- constants


@pytest.mark.parametrize("label_set", ["nyud", "pascal"])
def test_constant_predictions_are_the_labels_commonest_middle_or_mean(label_set):
    dataset = open_dataset(DataConfig(num_train=9, size_hw=(32, 40), label_set=label_set), "train")
    samples = [dataset[index] for index in (0, 2, 4, 6)]  # four of nine, evenly spread: floor(9 i / 4)
    pixels = {
        task: np.concatenate([s[task].numpy().reshape(3 if task == "normals" else 1, -1) for s in samples], 1)
        for task in dataset.tasks
    }
    constants = {task: value.numpy() for task, value in constant_predictions(dataset, 4).items()}
    assert set(constants) == set(dataset.tasks)
    for task in {"semseg", "parsing"} & set(constants):
        counts = np.bincount(pixels[task][0])
        assert constants[task] == counts.argmax(), task
    for task in {"saliency", "boundary"} & set(constants):
        assert constants[task] == pytest.approx((pixels[task] == 1).mean(), rel=1e-5), task
    mean = pixels["normals"].astype(np.float64).mean(1)
    np.testing.assert_allclose(constants["normals"], mean / np.sqrt((mean**2).sum()), atol=1e-4)
    if "depth" in constants:
        assert constants["depth"] == np.sort(pixels["depth"][0])[(pixels["depth"].size - 1) // 2]


def test_constant_predictions_look_at_labelled_pixels_only():
    class Half(Counting):
        def __getitem__(self, index):
            depth = torch.zeros(40, 40)
            depth[0, :3] = torch.tensor([1.0, 2.0, 30.0])
            return {"image": torch.zeros(3, 40, 40), "depth": depth}

    constants = constant_predictions(Half(("depth", "semseg")))
    assert constants.keys() == {"depth"}
    assert constants["depth"] == 2


def test_images_of_mixed_shapes_share_a_batch_and_keep_their_shape():
    class Mixed(Counting):
        sizes = ((40, 80), (80, 40), (50, 50), (10, 90))

        def __getitem__(self, index):
            image = torch.full((3, *self.sizes[index]), 200, dtype=torch.uint8)
            return {"image": image, "depth": torch.full(self.sizes[index], 2.0)}

    config = DataConfig(size_hw=(32, 32), image_hw=(32, 32), zoom=(1, 1), resize="keep_ratio", num_workers=0)
    order = RunSampler(4, 4, seed=0, start=0, stop=1)
    (batch,) = training_batches(Mixed(), config, order, seed=0)  # type: ignore[arg-type]
    assert batch["image"].shape == (4, 3, 32, 32)
    known = batch["depth"] > 0
    assert torch.equal(batch["image"].abs().sum(1) > 0, known)  # padding is the mean colour, without a label
    found = {(int(x.any(1).sum()), int(x.any(0).sum())) for x in known}
    assert found == {(16, 32), (32, 16), (32, 32), (4, 32)}

    shown = [sample for (sample,) in evaluation_batches(Mixed(), config, [0, 1, 3])]  # type: ignore[arg-type]
    assert [tuple(sample["image"].shape[1:]) for sample in shown] == [(16, 32), (32, 16), (4, 32)]
    assert [tuple(sample["depth"].shape) for sample in shown] == [(40, 80), (80, 40), (10, 90)]


class Refusing(Counting):
    """Its third image cannot be read."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return super().__getitem__(index)


@pytest.fixture
def loaders():
    """The processes that were started since, and that have not ended."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


def batches_of_refused(error, num_workers, *, training):
    config = DataConfig(size_hw=(16, 16), num_workers=num_workers, tasks="depth")
    if training:
        return training_batches(Refusing(error), config, sampler(4, 2, stop=4), seed=0)
    return evaluation_batches(Refusing(error), config, range(4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_in_a_loader_process_is_said_as_here(loaders, num_workers, training):
    told = "a: b.png\nis no image; expected: one"
    with pytest.raises(MistakeError) as refused:
        list(batches_of_refused(MistakeError(told), num_workers, training=training))
    assert str(refused.value) == told
    assert loaders() == set()


@pytest.mark.parametrize("training", [True, False])
def test_loader_processes_end_with_the_reading_though_its_error_is_held(loaders, training):
    # At the end of Python they would be waited for without end: they take no notice of SIGTERM.
    with pytest.raises(ValueError, match="odd") as held:
        list(batches_of_refused(ValueError("odd"), 2, training=training))
    assert loaders() == set()
    assert held.traceback  # which holds the frames of the reading


def test_loader_processes_end_where_reading_stops_early(loaders):
    batches = iter(batches_of_refused(ValueError("odd"), 1, training=False))
    _ = next(batches)
    assert len(loaders()) == 1
    batches.close()
    assert loaders() == set()


class Slow(Counting):
    """Of four images the first is there at once; each other one takes the seconds that are given."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __getitem__(self, index):
        if index:
            time.sleep(self.seconds)
        return super().__getitem__(index)


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_signals_to_all_processes_of_a_job_leave_a_loader_at_its_work(loaders):
    config = DataConfig(size_hw=(16, 16), num_workers=1, tasks="depth")
    batches = iter(evaluation_batches(Slow(0.3), config, range(4)))  # type: ignore[arg-type]
    _ = next(batches)
    (loader,) = loaders()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(loader.pid, number)
        time.sleep(0.1)  # two that wait at once are one
    assert len(list(batches)) == 3
    assert loaders() == set()


def test_a_loader_that_does_not_answer_ends_with_the_reading(loaders, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # how long torch waits for it
    config = DataConfig(size_hw=(16, 16), num_workers=1, tasks="depth")
    batches = iter(evaluation_batches(Slow(1000), config, range(4)))  # type: ignore[arg-type]
    _ = next(batches)
    (loader,) = loaders()
    batches.close()
    loader.join(60)
    assert loader.exitcode == -signal.SIGKILL


class Limited:
    """An augmentation that leaves the loader process, in which it runs, files of so many bytes, or so many file handles."""

    def __init__(self, num_bytes=None, num_handles=0):
        self.num_bytes, self.num_handles, self.held = num_bytes, num_handles, list[int]()

    def __call__(self, sample, _):
        if self.num_bytes is not None:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, limits[1]))
        elif not self.held:
            with suppress(OSError):
                while True:
                    self.held.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(self.num_handles):
                os.close(self.held.pop())
        return sample


@pytest.mark.skipif(os.name == "nt", reason="no such limits there")
@pytest.mark.parametrize("limits", [(1000,), *((None, number) for number in (0, 1, 2, 4))], ids=str)
def test_a_loader_process_that_cannot_hand_a_batch_over_ends(limits, capfd):
    """It would be waited for without end."""
    config = DataConfig(num_workers=1)
    batches = training_batches(Counting(), config, sampler(4, 2, stop=9), seed=0, transform=Limited(*limits))
    with pytest.raises(RuntimeError) as caught:
        list(batches)
    assert "a loader process ended unexpectedly" in (processes.lost_loader(caught.value) or "")
    assert re.fullmatch(r"mtlsi: a loader process: .*(File too large|Too many open files).*\n", capfd.readouterr().err)
    del caught  # with it the frames that hold the loader
    assert multiprocessing.active_children() == []
