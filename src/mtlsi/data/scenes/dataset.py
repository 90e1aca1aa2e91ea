"""Generated rooms with exact labels for every task: data that needs no download, a pure function of (seed, index).

A room has furniture, wall decoration, people, animals, lamps and shadows. Size, camera, furniture, materials and light
vary from room to room. Labels come from the geometry and are valid at every pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mtlsi.data.scenes.geometry import Floats, Geometry, dot, gather
from mtlsi.data.scenes.layout import FOCAL_RANGE, SURFACES, Camera, Scene, build
from mtlsi.data.scenes.raycast import Hits, cast, intrinsics
from mtlsi.data.scenes.shading import photograph
from mtlsi.data.scenes.shapes import Dice
from mtlsi.errors import MistakeError
from mtlsi.tasks import BUILT_IN, NYUD40, PARTS7, PASCAL21, TASK_SETS, check_tasks

CLASS_NAMES = {
    # object kind: (NYUD class, PASCAL class)
    "wall": ("wall", "background"),
    "floor": ("floor", "background"),
    "ceiling": ("ceiling", "background"),
    "door": ("door", "background"),
    "window": ("window", "background"),
    "curtain": ("curtain", "background"),
    "blinds": ("blinds", "background"),
    "picture": ("picture", "background"),
    "mirror": ("mirror", "background"),
    "whiteboard": ("whiteboard", "background"),
    "rug": ("floor mat", "background"),
    "bed": ("bed", "background"),
    "pillow": ("pillow", "background"),
    "sofa": ("sofa", "sofa"),
    "chair": ("chair", "chair"),
    "dining table": ("table", "dining table"),
    "coffee table": ("table", "background"),
    "desk": ("desk", "background"),
    "cabinet": ("cabinet", "background"),
    "dresser": ("dresser", "background"),
    "night stand": ("night stand", "background"),
    "refrigerator": ("refrigerator", "background"),
    "bookshelf": ("bookshelf", "background"),
    "shelves": ("shelves", "background"),
    "television": ("television", "tv monitor"),
    "lamp": ("lamp", "background"),
    "box": ("box", "background"),
    "books": ("books", "background"),
    "bag": ("bag", "background"),
    "vase": ("other prop", "background"),
    "bottle": ("other prop", "bottle"),
    "potted plant": ("other prop", "potted plant"),
    "person": ("person", "person"),
    "dog": ("other prop", "dog"),
    "cat": ("other prop", "cat"),
}
FIXED = {"wall", "floor", "ceiling", "door", "window", "curtain", "blinds", "picture", "mirror", "whiteboard", "rug"}
"""Kinds that are part of the room and never salient."""
SALIENT_PERSON = 1 / 300
"""The fraction of the image a person must cover to be salient."""
LABEL_SETS: dict[str, tuple[str, ...]] = {
    **{name: tasks.tasks for name, tasks in TASK_SETS.items()},
    "all": BUILT_IN,
}
"""The tasks of each label set; ``all`` has every task, with NYUD's classes."""


def label_set_of(classes: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> str:
    """The first label set that has all of ``tasks`` with these ``classes``."""
    pascal = len(classes.get("semseg", ())) == len(PASCAL21)
    order = ("pascal",) if pascal else ("nyud", "pascal", "all") if "semseg" not in classes else ("nyud", "all")
    return next((name for name in order if set(tasks) <= set(LABEL_SETS[name])), "all")


def check_arguments(index: int, seed: int, size_hw: tuple[int, int], label_set: str) -> None:
    """Raises ``MistakeError`` for what is no scene."""
    if label_set not in LABEL_SETS:
        raise MistakeError(f"label set given: {label_set!r}; expected one of {', '.join(LABEL_SETS)}")
    if min(size_hw) < 2:
        raise MistakeError(f"size given: {tuple(size_hw)}; expected height and width of at least 2 pixels")
    if index < 0 or seed < 0:
        raise MistakeError(f"scene index {index}, seed {seed} given; expected neither below 0")


def outlines(instance: NDArray) -> NDArray[np.uint8]:
    """Boundaries (H W) of an instance map (H W): 1 where a pixel differs from its right or lower neighbour.

    Choice: an instance is a whole object or one surface of the room (a wall, the floor, the ceiling), so the outline of
    a chair is a boundary and the crease between its seat and back is not. Lines are one pixel wide, on the left or upper
    side of the change.
    """
    edge = np.zeros(instance.shape, np.uint8)
    edge[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    edge[:-1] |= instance[:-1] != instance[1:]
    return edge


def _salient(instance: NDArray[np.int64], kinds: list[str]) -> NDArray[np.uint8]:
    """The salient objects (H W): every person that covers at least ``SALIENT_PERSON`` of the image; if there is none, the
    single movable object with the largest visible area, weighted towards the centre.

    A pixel's weight is its distance to the nearer vertical border times its distance to the nearer horizontal one.
    Choice: PASCAL's saliency labels are distilled from a network; this rule is exact and favours what people look at.
    """
    height, width = instance.shape
    area = np.bincount(instance.ravel(), minlength=len(kinds))
    chosen = np.array([kind == "person" for kind in kinds]) & (area >= SALIENT_PERSON * instance.size)
    if not chosen.any():
        rows, columns = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 1 for size in (height, width))
        weight = np.bincount(instance.ravel(), (rows[:, None] * columns).ravel(), minlength=len(kinds))
        weight[[kind in FIXED for kind in kinds]] = 0
        chosen = (np.arange(len(kinds)) == weight.argmax()) & (weight > 0)
    return chosen.astype(np.uint8)[instance]


def _in_camera(camera: Camera, normal: Floats) -> Floats:
    """Room normals (3 n) as unit vectors in the camera frame: x right, y up, z towards the camera."""
    axes = np.array((camera.right, camera.up, camera.back), np.float32)
    turned = np.stack([dot(axis[:, None], normal) for axis in axes])
    return turned / np.sqrt(dot(turned, turned))


def render_scene(
    index: int, *, seed: int = 0, size_hw: tuple[int, int] = (120, 160), label_set: str = "nyud"
) -> dict[str, NDArray]:
    """``image`` (H W 3) uint8 and a label for each task of the label set, laid out as ``mtlsi.tasks`` says.

    ``label_set`` is ``nyud``, ``pascal`` or ``all`` (every task, NYUD classes). The room does not depend on it, nor on
    ``size_hw`` (H, W), which only sets the sampling: the longer side spans the field of view. All pixels are valid.
    The same arguments give the same bytes on every machine, as long as NumPy draws the same random numbers.
    Raises ``MistakeError`` for an unknown label set, a size below 2 pixels, or an index or seed below 0.
    """
    check_arguments(index, seed, size_hw, label_set)
    scene = build(Dice(seed, index))
    geometry = gather(scene)
    hits = cast(scene, geometry, size_hw)
    image = photograph(scene, geometry, hits, Dice(seed, index, stream=1), size_hw)
    return {"image": image, **labels_of(scene, geometry, hits, size_hw, label_set)}


def labels_of(
    scene: Scene, geometry: Geometry, hits: Hits, size_hw: tuple[int, int], label_set: str
) -> dict[str, NDArray]:
    """The label of each task of the label set for what the scene's camera sees."""
    instance = geometry.instance[hits.solid].reshape(size_hw)
    kinds = [*SURFACES, *(item.kind for item in scene.items)]
    pascal = label_set == "pascal"
    names = PASCAL21 if pascal else NYUD40
    classes = np.array([names.index(CLASS_NAMES[kind][int(pascal)]) for kind in kinds], np.uint8)
    labels = {
        "semseg": classes[instance],
        "parsing": geometry.part[hits.solid].reshape(size_hw),
        "saliency": _salient(instance, kinds),
        "depth": hits.depth.reshape(size_hw),
        "normals": _in_camera(scene.camera, hits.normal).reshape(3, *size_hw),
        "boundary": outlines(instance),
    }
    return {task: labels[task] for task in LABEL_SETS[label_set]}


def scene_intrinsics(
    index: int, *, seed: int = 0, size_hw: tuple[int, int] = (120, 160)
) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels of a scene's pinhole camera: pixel (column u, row v) of depth d is the point
    ((u - cx) d / fx, (cy - v) d / fy, -d) in the frame of the normals (x right, y up, z towards the camera).
    """
    check_arguments(index, seed, size_hw, "all")
    return intrinsics(build(Dice(seed, index)).camera, size_hw)


class Scenes(torch.utils.data.Dataset):
    """``length`` generated scenes, numbered from ``first_index``: sets with disjoint ranges share no room.

    An item holds ``image`` (3 H W) uint8 and one tensor per task of ``tasks`` (None: the whole label set), as
    ``render_scene`` gives them. Raises ``MistakeError`` for a task that is not in the label set.
    """

    derived: tuple[str, ...] = ()

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        size_hw: tuple[int, int] = (120, 160),
        label_set: str = "nyud",
        tasks: Sequence[str] | None = None,
        first_index: int = 0,
    ) -> None:
        check_arguments(first_index, seed, size_hw, label_set)
        if length < 0:
            raise MistakeError(f"number of scenes given: {length}; expected 0 or more")
        self.length, self.seed, self.first_index = length, seed, first_index
        self.size_hw, self.label_set = (int(size_hw[0]), int(size_hw[1])), label_set
        self.tasks = check_tasks(LABEL_SETS[label_set] if tasks is None else tasks, among=LABEL_SETS[label_set])
        self.left_out: dict[str, str] = {}
        self.boundary_tolerance = TASK_SETS["pascal" if label_set == "pascal" else "nyud"].boundary_tolerance
        known = {"semseg": PASCAL21 if label_set == "pascal" else NYUD40, "parsing": PARTS7}
        self.classes: dict[str, tuple[str, ...]] = {task: known[task] for task in self.tasks if task in known}

    @property
    def camera(self) -> dict[str, object]:
        """The middle of the cameras that take these scenes, as ``MTLSINet`` takes it."""
        return {"focal_px": sum(FOCAL_RANGE) / 2 * max(self.size_hw), "size_hw": list(self.size_hw)}

    def __len__(self) -> int:
        return self.length

    def _number(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return self.first_index + index

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.at_zoom(index, 1.0)

    def at_zoom(self, index: int, zoom: float) -> dict[str, torch.Tensor]:
        """The item rendered at ``zoom`` times the height and width, in whole pixels: as sharp as it is at zoom 1."""
        size_hw = round(self.size_hw[0] * zoom), round(self.size_hw[1] * zoom)
        arrays = render_scene(self._number(index), seed=self.seed, size_hw=size_hw, label_set=self.label_set)
        sample = {name: torch.from_numpy(arrays[name]) for name in ("image", *self.tasks)}
        sample["image"] = sample["image"].permute(2, 0, 1).contiguous()
        return sample

    def name(self, index: int) -> str:
        """A file name without suffix, unique to the scene."""
        return f"scene_{self.seed}_{self._number(index):06d}"
