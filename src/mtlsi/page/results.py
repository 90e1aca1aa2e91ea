"""One photo's predictions as the page shows them and gives them away, and the results that are kept meanwhile."""

from __future__ import annotations

import io
import math
import secrets
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from mtlsi import kinds
from mtlsi.drawing.panels import Colours, panel
from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import Swatches
from mtlsi.prediction.points import points, write_glb, write_ply
from mtlsi.tasks import TASKS

SHOWN_PIXELS = 1_000_000
"""A larger result is shown, and read under the pointer, at every n-th pixel; what is downloaded is whole."""
CLOUD_POINTS = 400_000
"""Points of the cloud that turns in the browser; the downloaded one has a point for every pixel."""
KEPT_RESULTS, KEPT_BYTES = 32, 2**30


@dataclass(frozen=True)
class Result:
    """What a model predicted for a photo.

    ``image (H W 3) uint8``; ``prediction`` as ``Predictor`` gives it; ``focal_px`` the photo's focal length in its own
    pixels; ``classes`` and ``colours`` the model's.
    """

    image: np.ndarray
    prediction: Mapping[str, np.ndarray]
    stem: str
    focal_px: float
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    colours: Colours = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return self.image.nbytes + sum(array.nbytes for array in self.prediction.values())

    def shown(self, array: np.ndarray) -> np.ndarray:
        """Every n-th pixel of a map of the photo's size, so many that a page can hold them; (H W) or (H W c)."""
        height, width = self.image.shape[:2]
        rows, columns = shown_size((height, width))
        row_of = (np.arange(rows) * 2 + 1) * height // (2 * rows)
        column_of = (np.arange(columns) * 2 + 1) * width // (2 * columns)
        return array[row_of[:, None], column_of]

    # ---- what the page shows

    def description(self) -> dict[str, Any]:
        """What the page must know to lay the result out, ready for JSON."""
        height, width = self.image.shape[:2]
        rows, columns = shown_size((height, width))
        tasks = [self._describe(task, self.prediction[task]) for task in self.prediction]
        return {"size": [width, height], "grid": [columns, rows], "tasks": tasks}

    def _describe(self, task: str, array: np.ndarray) -> dict[str, Any]:
        kind, record, names = kinds.of(task), TASKS[task], list(self.classes.get(task, ()))
        shown = self.shown(array)
        meaning = kind.legend(shown, names, kind.limits(shown), 5, self.colours.get(task))
        packed = _packed(record.kind, shown)
        described = {
            "name": task, "title": record.title, "kind": record.kind, "unit": record.unit, "classes": names,
            "type": packed.dtype.name, "channels": packed.shape[2] if packed.ndim == 3 else 1,
            "steps": _steps(record.kind),
        }  # fmt: skip
        if isinstance(meaning, Swatches):
            return described | {
                "swatches": [["#{:02x}{:02x}{:02x}".format(*rgb), word] for rgb, word in meaning.entries]
            }
        stops = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in meaning.table[:: max(1, len(meaning.table) // 16)]]
        return described | {"scale": stops, "marks": meaning.marks}

    def photo(self) -> bytes:
        """The photo as shown, PNG."""
        return _png(self.shown(self.image))

    def drawing(self, task: str) -> bytes:
        """A task's map in colours, as shown, without its legend, PNG."""
        array, kind = self.shown(self.prediction[task]), kinds.of(task)
        return _png(kind.colours(array, kind.limits(array), self.colours.get(task)))

    def values(self, task: str) -> bytes:
        """A task's values as shown, row by row, in the type that ``description`` names, little-endian."""
        packed = _packed(TASKS[task].kind, self.shown(self.prediction[task]))
        return packed.astype(packed.dtype.newbyteorder("<")).tobytes()

    def turning_cloud(self) -> bytes:
        """The cloud that turns on the page, a .glb file."""
        return self.cloud(write_glb, CLOUD_POINTS)

    # ---- what is taken away

    def arrays(self) -> bytes:
        """The exact arrays of all tasks by name, as an .npz file, lightly compressed: NumPy's way takes twice as long."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for task, array in self.prediction.items():
                with archive.open(f"{task}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        return buffer.getvalue()

    def panel(self) -> bytes:
        """The photo and all tasks with their legends on one sheet, PNG."""
        return _png(panel(self.image, self.prediction, self.classes, colours=self.colours))

    def cloud(self, write: Callable[[Path, np.ndarray, np.ndarray], None], most: int | None = None) -> bytes:
        """The file that ``write`` makes of the point cloud, of at most ``most`` points.

        Raises ``MistakeError`` without a task of distances.
        """
        task, step = self.distance_task(), self.step(most)
        if task is None:
            raise MistakeError("no depth was predicted, from which a point cloud is made; choose the task depth, too")
        thin = (slice(step // 2, None, step), slice(step // 2, None, step))
        boundary = self.prediction.get("boundary")
        seen = points(
            self.prediction[task][thin],
            self.image[thin],
            self.cloud_focal_px(most),
            None if boundary is None else boundary[thin],
        )
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "cloud", *seen)
            return (Path(folder) / "cloud").read_bytes()

    def step(self, most: int | None) -> int:
        """Every how many-th pixel is a point of the cloud, for at most ``most`` points."""
        height, width = self.image.shape[:2]
        return 1 if most is None else max(1, math.ceil(math.sqrt(height * width / most)))

    def cloud_focal_px(self, most: int | None = None) -> float:
        """The focal length, in pixels of the cloud."""
        return self.focal_px / self.step(most)

    def distance_task(self) -> str | None:
        """The first task of distances, if there is one."""
        return next((task for task in self.prediction if TASKS[task].kind == "distance"), None)


def shown_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns at which a photo of this size is shown."""
    height, width = size_hw
    scale = min(1.0, math.sqrt(SHOWN_PIXELS / (height * width)))
    return max(1, int(height * scale)), max(1, int(width * scale))


class Results:
    """The latest results, each under a name that cannot be guessed; the oldest go when there are too many."""

    def __init__(self, most: int = KEPT_RESULTS, most_bytes: int = KEPT_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Result] = OrderedDict()
        self._lock = Lock()

    def keep(self, result: Result) -> str:
        """Keeps a result and gives its name."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = result
            while len(self._kept) > 1 and (len(self._kept) > self._most or self._num_bytes() > self._most_bytes):
                self._kept.popitem(last=False)
        return name

    def find(self, name: str) -> Result:
        """The result of that name. Raises ``MistakeError`` where it is not kept any more."""
        with self._lock:
            if name not in self._kept:
                raise MistakeError("this result is no longer kept; predict the photo again")
            self._kept.move_to_end(name)
            return self._kept[name]

    def _num_bytes(self) -> int:
        return sum(result.num_bytes for result in self._kept.values())


DOWNLOADS: dict[str, tuple[str, str, Callable[[Result], bytes]]] = {
    "arrays.npz": ("arrays", "application/octet-stream", Result.arrays),
    "panel.png": ("panel", "image/png", Result.panel),
    "points.ply": ("points", "application/octet-stream", lambda result: result.cloud(write_ply)),
    "points.glb": ("points", "model/gltf-binary", lambda result: result.cloud(write_glb)),
}
"""What a result is taken away as: by name, what its file's name ends in, its type, and what makes it."""


def _packed(kind: str, array: np.ndarray) -> np.ndarray:
    """A map in as few bytes as still give the numbers that the page prints."""
    if kind == "classes":
        return array.astype(np.uint8 if array.dtype == np.uint8 else np.uint16)
    if steps := _steps(kind):
        return np.rint(array * steps).astype(np.int16)
    return array.astype(np.float32)


def _steps(kind: str) -> int:
    """How many whole steps 1 is sent as; 0: numbers are sent as they are."""
    return 10_000 if kind in ("strength", "direction") else 0


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
