"""Every fact about a task, once: adding a task is adding one record to ``TASKS``.

Labels, everywhere in the project (leading batch axes allowed):

==========  ================  =======================================  =====================
task        layout, dtype     values                                   invalid pixel
==========  ================  =======================================  =====================
semseg      (H W) uint8       class index from 0                       255
parsing     (H W) uint8       0 background, then the parts             255
saliency    (H W) uint8       0 background, 1 salient                  255
depth       (H W) float32     metres along the optical axis            0 (or NaN)
normals     (3 H W) float32   unit vectors, x right, y up, z to the    (0, 0, 0)
                              camera
boundary    (H W) uint8       0 inside, 1 boundary                     255
==========  ================  =======================================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mtlsi.errors import MistakeError


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the rest of the project needs to know about one task."""

    name: str
    title: str
    """What a person reads above an image."""
    channels: int | None
    """Channels of the prediction; None: one for every class of the data set."""
    loss: Literal["cross_entropy", "balanced_cross_entropy", "l1", "unit_l1", "weighted_bce"]
    loss_weight: float
    metric: Literal["miou", "depth_error", "angular_error", "max_f", "boundary_f"]
    score: str
    """The metric's headline: the key that tables and Delta_m use."""
    higher_is_better: bool
    unit: str
    label_dtype: Literal["uint8", "float32"]
    label_channels: int
    """0: the label is a plain map (H W); 3: vectors (3 H W)."""
    invalid: int
    """The value that fills pixels without a label."""
    output: Literal["class", "probability", "foreground", "value", "direction"]
    """class: argmax; foreground: softmax, second channel; probability: sigmoid; value: as is; direction: unit length."""
    shrink: Literal["nearest", "max"]
    """How a label map is brought to a coarser grid: thin lines survive only by the maximum."""
    zoom: Literal["keep", "divide"]
    """What upsampling the image does to the values: a closer look divides metres."""
    flip: Literal["keep", "negate_x"]
    """What a left-right flip does to the values, beyond moving them."""
    image: Literal["palette", "distance", "direction", "strength"]
    """How a person is shown the prediction."""

    def valid(self, label: Any) -> Any:
        """True where the label says something. Takes NumPy arrays or torch tensors, ``(... H W)`` or ``(... 3 H W)``."""
        if self.label_channels:
            return (label * label).sum(-3) > 0.25
        if self.label_dtype == "float32":
            return label > self.invalid
        return label != self.invalid


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="semseg", title="semantic segmentation", channels=None, loss="cross_entropy", loss_weight=1.0,
            metric="miou", score="mIoU", higher_is_better=True, unit="%", label_dtype="uint8", label_channels=0,
            invalid=255, output="class", shrink="nearest", zoom="keep", flip="keep", image="palette",
        ),
        Task(
            name="parsing", title="human parts", channels=None, loss="cross_entropy", loss_weight=2.0,
            metric="miou", score="mIoU", higher_is_better=True, unit="%", label_dtype="uint8", label_channels=0,
            invalid=255, output="class", shrink="nearest", zoom="keep", flip="keep", image="palette",
        ),
        Task(
            name="saliency", title="saliency", channels=2, loss="balanced_cross_entropy", loss_weight=5.0,
            metric="max_f", score="maxF", higher_is_better=True, unit="%", label_dtype="uint8", label_channels=0,
            invalid=255, output="foreground", shrink="nearest", zoom="keep", flip="keep", image="strength",
        ),
        Task(
            name="depth", title="depth", channels=1, loss="l1", loss_weight=1.0,
            metric="depth_error", score="RMSE", higher_is_better=False, unit="m", label_dtype="float32",
            label_channels=0, invalid=0, output="value", shrink="nearest", zoom="divide", flip="keep", image="distance",
        ),
        Task(
            name="normals", title="surface normals", channels=3, loss="unit_l1", loss_weight=10.0,
            metric="angular_error", score="mErr", higher_is_better=False, unit="deg", label_dtype="float32",
            label_channels=3, invalid=0, output="direction", shrink="nearest", zoom="keep", flip="negate_x",
            image="direction",
        ),
        Task(
            name="boundary", title="boundaries", channels=1, loss="weighted_bce", loss_weight=50.0,
            metric="boundary_f", score="odsF", higher_is_better=True, unit="%", label_dtype="uint8", label_channels=0,
            invalid=255, output="probability", shrink="max", zoom="keep", flip="keep", image="strength",
        ),
    )
}  # fmt: skip

NYUD40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard",
    "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
PASCAL21 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
PARTS7 = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
NUM_THRESHOLDS = 99
"""How many thresholds the boundary benchmark reports on, evenly spaced inside 0..1."""
MAX_DIST = 0.0075
"""How far it lets a boundary pixel lie from its match, as a fraction of the image's diagonal."""


@dataclass(frozen=True)
class TaskSet:
    """The tasks that a benchmark trains together, with its class names."""

    name: str
    tasks: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]
    size_hw: tuple[int, int]
    """The size at which the field trains and tests."""
    boundary_tolerance: float
    """How far a boundary pixel may lie from its match, as a fraction of the image's diagonal."""


TASK_SETS: dict[str, TaskSet] = {
    "nyud": TaskSet("nyud", ("semseg", "depth", "normals", "boundary"), {"semseg": NYUD40}, (448, 576), 0.011),
    "pascal": TaskSet(
        "pascal",
        ("semseg", "parsing", "saliency", "normals", "boundary"),
        {"semseg": PASCAL21, "parsing": PARTS7},
        (512, 512),
        MAX_DIST,
    ),
}


def num_channels(task: str, classes: dict[str, Any]) -> int:
    """How many channels the prediction of ``task`` has, given the class names of each task that has classes."""
    record = TASKS[task]
    if record.channels is not None:
        return record.channels
    if task not in classes:
        raise MistakeError(f"{task}: no class names given; expected a list of names under classes.{task}")
    return len(classes[task])


def check_tasks(tasks: str | Iterable[str], among: Iterable[str] = TASKS) -> tuple[str, ...]:
    """``tasks`` as a tuple, or a ``MistakeError`` that names the unknown one and the known ones.

    A plain string is one task, or several with commas between: "depth", "depth,normals".
    """
    known = tuple(among)
    tasks = tuple(name.strip() for name in tasks.split(",")) if isinstance(tasks, str) else tuple(tasks)
    for task in tasks:
        if task not in known:
            raise MistakeError(f"unknown task {task!r}; expected some of {', '.join(known)}")
    if not tasks or len(set(tasks)) != len(tasks):
        raise MistakeError(f"tasks given: {list(tasks)}; expected at least one, each once, of {', '.join(known)}")
    return tasks


def palette(num_classes: int) -> list[tuple[int, int, int]]:
    """One RGB colour per class: slate for the first (wall or background), the others spread over lightness and hue.

    Choice: not the PASCAL VOC colours, in which the commonest class of a room would be black. Colours are spaced in
    OKLab, where equal steps look equal; the first 255 are all different.
    """
    colours = [(72, 77, 89)]
    for index in range(1, num_classes):
        lightness, chroma = 0.48 + 0.40 * (index * 0.024 % 1), 0.09 + 0.07 * (index * 0.497 % 1)
        hue = 2 * math.pi * (index * 0.36 % 1)
        colours.append(_oklab_to_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue)))
    return colours[:num_classes]


def _oklab_to_rgb(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """8-bit sRGB of an OKLab colour, cut to what a screen can show (matrices: Bjoern Ottosson's definition)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    encoded = (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in (max(x, 0.0) for x in linear))
    red, green, blue = (round(255 * min(x, 1.0)) for x in encoded)
    return red, green, blue
