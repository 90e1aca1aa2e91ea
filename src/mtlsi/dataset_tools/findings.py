"""What looks wrong in the labels of a data set though every file can be read: for ``mtlsi data check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.data.readers.folder import Folder
from mtlsi.dataset_tools.readings import Reading
from mtlsi.images import SIDEWAYS, UPRIGHT
from mtlsi.tasks import TASKS

NAMED = 3
"""Files or classes that are named, with more only counted."""
SAME_RATIO = 0.02
"""Relative difference of two images' ratios of width to height that nobody sees."""


def shares_of(readings: Iterable[Reading], classes: Sequence[str]) -> dict[str, float]:
    """Class -> its share of the labelled pixels; every class is there, absent ones with 0."""
    pixels: Counter[int] = Counter()
    for reading in readings:
        for value, count in zip(reading.values, reading.counts, strict=True):
            pixels[int(value)] += count
    total = pixels.total()
    return {name: pixels[index] / total if total else 0.0 for index, name in enumerate(classes)}


def doubts_of_task(dataset: FileDataset, task: str, readings: Sequence[Reading]) -> list[str]:
    """What the labels of one task in one split give reason to doubt."""
    split, doubts = dataset.split, []
    empty = [reading.path for reading in readings if not reading.valid]
    # an image without people has an empty label of parts in PASCAL-Context: there only a whole set of them is odd
    if empty and (isinstance(dataset, Folder) or len(empty) == len(readings)):
        doubts.append(f"{split}: {len(empty)} of {len(readings)} {task} labels have no valid pixel: {named(empty)}")
    labelled = [reading for reading in readings if reading.valid]
    if labelled and TASKS[task].kind in ("classes", "strength"):
        values = {value for reading in labelled for value in reading.values}
        names = dataset.classes.get(task, ("no", "yes"))
        if len(values) == 1 and len(names) > 1:
            doubts.append(f"{split}: every labelled pixel of {task} is {names[int(values.pop())]!r}, the only class")
    if task == "normals" and labelled:
        z = sum(reading.z for reading in labelled) / len(labelled)
        if z < 0:
            doubts.append(
                f"{split}: z of {task} is {z:.2f} on average: they look away from the camera; expected x right, y up, z "
                "towards it (in your own data the key axes turns them)"
            )
    return doubts


def absent_classes(task: str, shares: dict[str, dict[str, float]]) -> tuple[list[str], list[str]]:
    """Doubts and notes about classes that no pixel has; ``shares`` by split."""
    if not any(any(share.values()) for share in shares.values()):
        return [], []
    somewhere = {name for share in shares.values() for name, part in share.items() if part}
    nowhere = [name for name in next(iter(shares.values())) if name not in somewhere]
    doubts = [f"{_classes(nowhere, task)} no pixel at all: {named(nowhere)}"] if nowhere else []
    notes = []
    for split, share in shares.items():
        if not any(share.values()):
            continue
        absent = [name for name, part in share.items() if not part and name in somewhere]
        if absent and split == "train":
            doubts.append(f"{split}: {_classes(absent, task)} no pixel, which is never learnt: {named(absent)}")
        elif absent:
            notes.append(f"{split}: {_classes(absent, task)} no pixel: {named(absent)}")
    return doubts, notes


def _classes(names: Sequence[str], task: str) -> str:
    """How many classes, and the verb that goes with them."""
    return f"{len(names)} {task} class has" if len(names) == 1 else f"{len(names)} {task} classes have"


def stretched(images: Sequence[Reading]) -> str | None:
    """What to say where images of several shapes would be brought to one size."""
    shapes = Counter(reading.size_hw for reading in images)
    ratios: Counter[float] = Counter()
    for (height, width), count in shapes.most_common():
        ratio = width / height
        ratios[next((other for other in ratios if abs(ratio / other - 1) < SAME_RATIO), ratio)] += count
    if len(ratios) < 2:
        return None
    shown = [f"{height}x{width} ({count})" for (height, width), count in shapes.most_common(NAMED)]
    more = f" and {len(shapes) - NAMED} more sizes" if len(shapes) > NAMED else ""
    return (
        f"images have {len(ratios)} shapes: {', '.join(shown)}{more}; data.image_hw stretches them to one unless "
        "data.resize is keep_ratio"
    )


def turned(images: Sequence[Reading], labels: Iterable[Reading]) -> tuple[list[str], list[str]]:
    """Doubts and notes about orientation tags: where labels have the shape of the upright image, they were turned too."""
    tagged = [reading for reading in images if reading.tag != UPRIGHT]
    if not tagged:
        return [], []
    sure = [reading for reading in tagged if reading.tag in SIDEWAYS and len(set(reading.size_hw)) == 2]
    unsure = [reading for reading in tagged if reading not in sure]
    line = "{} images have an orientation tag and are read upright: {}"
    notes = [line.format(len(sure), named([reading.path for reading in sure]))] if sure else []
    if not unsure:
        return [], notes
    told = line.format(len(unsure), named([reading.path for reading in unsure]))
    if not any(True for _ in labels):
        return [], [*notes, told]
    return [told + "; their labels may lie as the pixels are stored: look at some, or remove the tag"], notes


def passed_over(dataset: FileDataset) -> tuple[list[str], list[str]]:
    """Doubts and notes about files that nobody reads."""
    if isinstance(dataset, Folder):
        return passed_over_lines(dataset.passed_over), []
    suffixes: dict[str, set[str]] = {}
    for sources in dataset.sources.values():
        for source in sources:
            for folder, suffix in source.places if source.files is None and source.folder else ():
                suffixes.setdefault(folder, set()).add(suffix)
    notes = []
    for folder, known in suffixes.items():
        place = dataset.root / folder
        others = [
            f"{folder}/{path.name}"
            for path in (sorted(place.iterdir()) if place.is_dir() else ())
            if path.is_file() and not path.name.startswith(".") and not path.name.endswith(tuple(known))
        ]
        if others:
            notes.append(f"{len(others)} files in {folder}/ are passed over: {named(others)}")
    return [], notes


def passed_over_lines(files: Mapping[str, Sequence[str]]) -> list[str]:
    """One for each reason of ``files``."""
    return [f"{len(places)} files are passed over, {reason}: {named(places)}" for reason, places in files.items()]


def named(names: Sequence[str | Path]) -> str:
    """The first few of ``names``, and how many more there are."""
    shown = ", ".join(map(str, names[:NAMED]))
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def labels_of(readings: Iterable[Reading]) -> Iterable[Reading]:
    """The readings that are no images."""
    return (reading for reading in readings if reading.what != IMAGE)
