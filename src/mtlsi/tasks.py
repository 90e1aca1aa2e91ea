"""Every fact about a task, once: a task is one record, here or registered with ``register_task``.

What follows from a task's kind (the layout of its labels, invalid pixels, decoding, flips, colours) is in ``kinds/``.
Labels, everywhere in the project (leading batch axes allowed):

==========  ================  =======================================  =====================
kind        layout, dtype     values                                   invalid pixel
==========  ================  =======================================  =====================
classes     (H W) uint8       class index from 0                       255
            (H W) int32       the same, with more than 255 classes     65535
strength    (H W) uint8       0 or 1                                   255
distance    (H W) float32     metres along the optical axis            0 (or NaN)
value       (H W) or          any numbers, one or several channels     NaN in any channel
            (C H W) float32
direction   (3 H W) float32   unit vectors, x right, y up, z to the    (0, 0, 0)
                              camera
==========  ================  =======================================  =====================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from mtlsi.errors import MistakeError, check_choice
from mtlsi.field_types import check_types
from mtlsi.reading import shortened

KINDS = ("classes", "strength", "value", "distance", "direction")
LOSSES_OF = {
    "classes": ("cross_entropy",),
    "strength": ("balanced_cross_entropy", "weighted_bce"),
    "value": ("l1", "l2", "smooth_l1"),
    "distance": ("l1", "l2", "smooth_l1"),
    "direction": ("unit_l1",),
}
"""The losses that fit each kind, the default first."""
METRICS_OF = {
    "classes": ("miou",),
    "strength": ("max_f", "boundary_f"),
    "value": ("value_error",),
    "distance": ("depth_error", "value_error"),
    "direction": ("angular_error",),
}
"""The metrics that fit each kind, the default first."""
SCORES = {
    "miou": ("mIoU", True, "%"),
    "max_f": ("maxF", True, "%"),
    "boundary_f": ("odsF", True, "%"),
    "depth_error": ("RMSE", False, "m"),
    "value_error": ("RMSE", False, ""),
    "angular_error": ("mErr", False, "deg"),
}
"""By metric: its headline score, whether higher is better, and the unit."""
LAST_VALUE = 65535
"""The greatest of 16 bits: in label files and in memory a pixel without a class."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters, those of terminals among them."""
LONGEST_TEXT = 200
"""Characters of a title, of a unit, of a class's name."""
MOST_CLASSES = 2**12
"""Of all tasks of a data set or a model together. Choice: ADE20K in full has 3,688; pixels are counted by label and
prediction, in 128 MB for so many, of which a batch takes as much again."""
MOST_TASKS = 64
"""Of one's own, and of one network."""
RESERVED = ("image", "images", "size", "panel")
"""Names that samples, folders and files use for other things."""


def check_printed(what: str, text: Any, most: int | None = LONGEST_TEXT) -> None:
    """Raises ``MistakeError``, which begins with ``what``, for a text of more than ``most`` characters, with signs that
    would steer a terminal, or with halves of characters, which no file takes."""
    if not isinstance(text, str):
        return
    if most is not None and len(text) > most:
        raise MistakeError(f"{what}: {len(text)} characters; expected {most} at most")
    if CONTROL.search(text):
        raise MistakeError(f"{what}: {shortened(text)}; expected no control characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MistakeError(f"{what}: {shortened(text)}; expected whole characters") from error


@dataclass(frozen=True)
class Task:
    """One task. Only ``name`` and ``kind`` must be given; the kind has a default for everything else.

    Raises ``MistakeError`` for a value that does not fit the kind.
    """

    name: str
    _: KW_ONLY
    kind: str
    """One of ``KINDS``."""
    title: str = ""
    """Heading in panels and tables. Default: the name."""
    channels: int | None = None
    """Channels of the prediction; None: one per class of the data set. Default of ``value``: 1."""
    loss: str = ""
    """One of ``LOSSES_OF`` the kind."""
    loss_weight: float = 1.0
    metric: str = ""
    """One of ``METRICS_OF`` the kind."""
    score: str = ""
    """The metric's headline: the key that tables and Delta_m use."""
    higher_is_better: bool | None = None
    unit: str | None = None
    """Unit of the score, and of a value."""
    range: tuple[float, float] | None = None
    """Lowest and highest value of kind ``value``: predictions are clamped to it, colours span it."""
    thin: bool = False
    """A strength map of thin lines: coarser grids keep the maximum, where the nearest pixel would lose the line."""

    def __post_init__(self) -> None:
        check_choice(f"task {self.name!r}: kind", self.kind, KINDS)
        losses, metrics = LOSSES_OF[self.kind], METRICS_OF[self.kind]
        defaults = {
            "title": self.name.replace("_", " "),
            "loss": losses[-1 if self.thin else 0],
            "metric": metrics[-1 if self.thin else 0],
        }
        for field, default in defaults.items():
            _set(self, field, getattr(self, field) or default)
        check_choice(f"task {self.name!r}: loss", self.loss, losses)
        check_choice(f"task {self.name!r}: metric", self.metric, metrics)
        score, higher_is_better, unit = SCORES[self.metric]
        _set(self, "score", self.score or score)
        if self.higher_is_better is None:
            _set(self, "higher_is_better", higher_is_better)
        if self.unit is None:
            _set(self, "unit", "m" if self.kind == "distance" else unit)
        for field in ("title", "unit"):
            check_printed(f"task {self.name!r}: {field}", getattr(self, field))
        self._check_numbers()

    def _check_numbers(self) -> None:
        fixed = {
            "classes": None,
            "strength": 1 if self.loss == "weighted_bce" else 2,
            "value": self.channels or 1,
            "distance": 1,
            "direction": 3,
        }[self.kind]
        if self.kind == "value" and self.channels is not None and not 1 <= self.channels <= 1024:
            raise MistakeError(f"task {self.name!r}: channels {self.channels}; expected 1..1024")
        if self.channels not in (None, fixed):
            expected = f"{fixed} with loss {self.loss}" if fixed else "none: classes have one each"
            raise MistakeError(f"task {self.name!r}: channels {self.channels}; expected {expected}")
        _set(self, "channels", fixed)
        if not self.loss_weight >= 0:
            raise MistakeError(f"task {self.name!r}: loss_weight {self.loss_weight}; expected a number of at least 0")
        if self.thin and self.kind != "strength":
            raise MistakeError(f"task {self.name!r}: thin with kind {self.kind}; expected kind strength")
        if self.range is not None:
            low, high = (*self.range, None, None)[:2]
            if self.kind != "value" or len(self.range) != 2 or low is None or high is None or not low < high:
                raise MistakeError(
                    f"task {self.name!r}: range {list(self.range)}; expected [low, high], low first, with kind value"
                )
            _set(self, "range", (float(low), float(high)))


def _set(task: Task, field: str, value: Any) -> None:
    object.__setattr__(task, field, value)  # the dataclass is frozen


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("semseg", kind="classes", title="semantic segmentation"),
        Task("parsing", kind="classes", title="human parts", loss_weight=2.0),
        Task("saliency", kind="strength", loss_weight=5.0),
        Task("depth", kind="distance"),
        Task("normals", kind="direction", title="surface normals", loss_weight=10.0),
        Task("boundary", kind="strength", title="boundaries", loss_weight=50.0, thin=True),
    )
}
"""Every known task by name: the built-in ones, then the registered ones."""
BUILT_IN = tuple(TASKS)


def class_dtype(num_classes: int) -> str:
    """The type of class indices in memory: uint8, or int32 beyond 255 classes, since torch's uint16 lacks operations."""
    return "uint8" if num_classes <= 255 else "int32"


def invalid_class(dtype: Any) -> int:
    """What marks a pixel without a class in labels of this NumPy or torch type: 255, or 65535 in wide types."""
    return LAST_VALUE if str(dtype).endswith(("int32", "uint16")) else 255


def register_task(task: Task) -> Task:
    """Add a task of one's own; gives ``task``. A later record of the same name replaces the earlier one.

    Raises ``MistakeError`` for the name of a built-in task and for one that is no plain word.
    """
    check_name(task.name)
    TASKS[task.name] = task
    return task


def check_name(name: str) -> None:
    """Raises ``MistakeError`` unless ``name`` may be the name of a person's own task."""
    from torch.nn import ModuleDict

    check_printed("a task's name", name)
    if name in BUILT_IN:
        raise MistakeError(f"task {name!r}: built in; expected another name for a task of your own")
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        raise MistakeError(f"task {name!r}: no task name; expected letters, digits and _, such as albedo")
    if name in RESERVED or hasattr(ModuleDict, name) or name in ModuleDict().__dict__:
        raise MistakeError(f"task {name!r}: reserved; expected another name, such as {name}_map")


def own_records(tasks: Iterable[str]) -> list[dict[str, Any]]:
    """The records of those of ``tasks`` that are not built in, ready for JSON; see ``register_records``."""
    records = [asdict(TASKS[name]) for name in tasks if name in TASKS and name not in BUILT_IN]
    return [record | {"range": record["range"] and list(record["range"])} for record in records]


def register_records(records: Iterable[Mapping[str, Any]]) -> None:
    """Register the tasks that ``own_records`` described.

    Raises ``MistakeError`` for a record that is none, and for more than ``MOST_TASKS``.
    """
    records = list(records)
    if len(records) > MOST_TASKS:
        raise MistakeError(f"{len(records)} records of tasks; expected {MOST_TASKS} at most")
    for record in records:
        try:
            check_types(Task, record, "task record: ")
            task = Task(**{**record, "range": record.get("range") and tuple(record["range"])})
        except (TypeError, AttributeError, MistakeError) as error:
            raise MistakeError(
                f"task record {shortened(record)}; expected the fields of mtlsi.tasks.Task ({error})"
            ) from error
        if TASKS.get(task.name) != task:
            register_task(task)


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
TOLERANCE_END = 0.02
"""Below which a data set's own lies. Choice: nearly twice NYUDv2's, the widest in use; matching takes ever longer, and
at 0.1 minutes for an image."""
NYUD_RANGE_M = (1e-3, 10.0)
"""Least and greatest depth of NYUDv2 that its benchmarks compare, in metres."""
BOUNDARY_PROTOCOL = "seism-nms"
"""How boundaries are measured where nothing else is asked for: one of ``mtlsi.metrics.boundary.protocols.PROTOCOLS``.

Choice: what the tables of InvPT, TaskPrompter and those after them hold.
"""


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


def check_classes(classes: Mapping[str, Sequence[Any]], where: str = "") -> None:
    """Raises ``MistakeError``, which begins with ``where``, for more than ``MOST_CLASSES``, and as ``check_printed``."""
    counts = {task: len(names) for task, names in classes.items()}
    if sum(counts.values()) > MOST_CLASSES:
        shown = ", ".join(f"{count} of {task}" for task, count in counts.items())
        raise MistakeError(
            f"{where}classes: {shown}; expected {MOST_CLASSES} in all at most; leave out or merge rare ones"
        )
    for task, names in classes.items():
        for name in names:
            check_printed(f"{where}a class of {task}", name)


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
