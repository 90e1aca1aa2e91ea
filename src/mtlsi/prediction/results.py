"""The files of one image's results: which there are, what goes into each."""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi import kinds
from mtlsi.config import split_names
from mtlsi.drawing.panels import Colours, Panel, draw_task, task_box
from mtlsi.drawing.thinning import Thinned
from mtlsi.errors import MistakeError, message_of
from mtlsi.images import FilePath
from mtlsi.io import replace_array, replace_bytes, replace_rows
from mtlsi.kinds.colouring import Colour
from mtlsi.kinds.palette import palette
from mtlsi.memory import hand_back_freed_memory
from mtlsi.options.using import POINT_FORMATS, has_points
from mtlsi.prediction.camera import distance_task
from mtlsi.prediction.images import ImageLike, as_pixels
from mtlsi.prediction.maps import Maps
from mtlsi.prediction.points import points, surface, write_glb, write_ply
from mtlsi.tasks import TASKS

FORMATS = ("png", "npy", "npz", "panel", "ply", "glb")
"""What can be written for an image."""
USUAL_FORMATS = ("png", "npy", "panel")
LARGE = 2**24
"""From so many pixels on, a map is written while it is made, and freed memory is given back between tasks."""
MOST_POINTS = 1_000_000
"""Of larger images every second, third ... row and column are points: viewers grow slow, and depth has no finer detail."""


def save_prediction(
    prediction: Mapping[str, np.ndarray],
    image: ImageLike,
    out_dir: FilePath,
    stem: str,
    classes: Mapping[str, Sequence[str]] | None = None,
    colours: Colours | None = None,
    *,
    write: str | Iterable[str] = USUAL_FORMATS,
    focal_px: float | None = None,
) -> list[Path]:
    """Writes what ``Predictor`` gave for ``image`` into ``out_dir`` and gives the files' paths.

    ==========================  ========  =========================================================================
    ``<stem>_<task>.npy``       npy       the exact array
    ``<stem>_<task>.png``       png       a coloured image, with its legend or scale, 1600 pixels at most
    ``<stem>_semseg_index.png`` png       class indices (any task of classes): 8 bits, shown in the classes' colours,
                                          or 16 bits with more than 255 classes
    ``<stem>_depth_mm.png``     png       whole millimetres (any distance), 16 bits, at most 65.535 m
    ``<stem>.npz``              npz       the arrays of all tasks by name, compressed; floats are float16 but for ``value``
    ``<stem>_panel.png``        panel     the image and all tasks on one sheet
    ``<stem>.ply``              ply       coloured points, a million at most
    ``<stem>.glb``              glb       the surface that they lie on, as coloured triangles
    ==========================  ========  =========================================================================

    ``write`` chooses among ``FORMATS``, the second column. Points need a distance and ``focal_px``, the focal length in
    pixels of the image, and are cut between objects by ``boundary``, where that is predicted. ``classes`` and ``colours``:
    the model's. Writes are atomic; existing files of those names are replaced. A ``stem`` may hold folders, as in
    ``kitchen/a``.
    Choice: float16 tells apart 2 mm at 4 m, a hundredth of what the best networks are wrong by.
    Raises ``MistakeError`` for an unknown format, points without a distance or a focal length, and where the folder or a
    file cannot be written.
    """
    formats = check_formats(write)
    if has_points(formats) and not (focal_px and distance_task(prediction)):
        raise MistakeError("points without a focal length; give focal_px, in pixels of the image")
    folder, pixels = prepare_folder(out_dir), as_pixels(image)
    sheet = Panel(pixels, classes, colours=colours) if "panel" in formats else None
    rgb = pixels if has_points(formats) else None
    files = _TaskFiles(folder / stem, formats, classes or {}, colours or {}, (pixels.shape[0], pixels.shape[1]))
    del image, pixels  # of a large photo 264 MB
    for task in prediction:
        files.write(task, prediction, sheet)
    written = files.written
    if "npz" in formats:
        written.append(_write_whole(folder / f"{stem}.npz", _packed(prediction)))
    if sheet is not None:
        written.append(_write_whole(folder / f"{stem}_panel.png", Image.fromarray(sheet.draw())))
    for name in POINT_FORMATS:
        if rgb is not None and name in formats and focal_px:
            written.append(_write_points(folder / f"{stem}.{name}", prediction, rgb, focal_px))
    return written


@dataclass
class _TaskFiles:
    """The files of each task of an image, task by task."""

    start: Path
    """How their names begin."""
    formats: tuple[str, ...]
    classes: Mapping[str, Sequence[str]]
    colours: Colours
    size_hw: tuple[int, int]
    written: list[Path] = field(default_factory=list)

    @property
    def is_large(self) -> bool:
        return math.prod(self.size_hw) >= LARGE

    def write(self, task: str, prediction: Mapping[str, np.ndarray], sheet: Panel | None) -> None:
        """Write a task's files and draw it on the sheet."""
        if self.is_large:
            hand_back_freed_memory()
        if (
            self.is_large
            and "npy" in self.formats
            and isinstance(prediction, Maps)
            and not kinds.of(task).extra_files()
        ):
            self._write_bands(task, prediction, sheet)
            return
        array = prediction[task]
        for ending, render in _files_of(task, self.formats).items():
            content = render(array, self.classes.get(task), self.colours.get(task))
            self.written.append(_write_whole(self._path(ending), content))
        if sheet is not None:
            sheet.add(task, array)

    def _path(self, ending: str) -> Path:
        return self.start.with_name(f"{self.start.name}_{ending}")

    def _write_bands(self, task: str, prediction: Maps, sheet: Panel | None) -> None:
        """Write a map while it is made: it never stands in memory whole."""
        drawn = Thinned(self.size_hw, task_box(self.size_hw))
        on_sheet = Thinned(self.size_hw, sheet.box) if sheet is not None else None

        def passing() -> Iterator[np.ndarray]:
            for band in prediction.bands(task):
                for thinned in (drawn, on_sheet):
                    if thinned is not None:
                        thinned.add(band)
                yield band

        path, classes, colours = self._path(f"{task}.npy"), self.classes.get(task), self.colours.get(task)
        try:
            replace_rows(path, passing(), self.size_hw[0])
        except OSError as error:
            raise _cannot_write(path, error) from error
        self.written.append(path)
        if "png" in self.formats:
            content = draw_task(task, drawn.array(), classes, colours=colours, size_hw=self.size_hw)
            self.written.append(_write_whole(self._path(f"{task}.png"), Image.fromarray(content)))
        if sheet is not None and on_sheet is not None:
            sheet.add(task, on_sheet.array())


def _write_points(path: Path, prediction: Mapping[str, np.ndarray], pixels: np.ndarray, focal_px: float) -> Path:
    depth_m = prediction[distance_task(prediction)]
    seen = depth_m, pixels, focal_px, prediction.get("boundary")
    step = max(1, math.ceil(math.sqrt(depth_m.size / MOST_POINTS)))
    try:
        if path.suffix == ".ply":
            write_ply(path, *points(*seen, step=step))
        else:
            write_glb(path, *surface(*seen, step=step))
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def endings_of(tasks: Iterable[str], write: Iterable[str]) -> Iterator[str]:
    """What the names of an image's results end in, after its stem."""
    for task in tasks:
        yield from (f"_{ending}" for ending in _files_of(task, write))
    others = {"npz": ".npz", "panel": "_panel.png", "ply": ".ply", "glb": ".glb"}
    yield from (ending for name, ending in others.items() if name in write)


def check_formats(write: str | Iterable[str]) -> tuple[str, ...]:
    """The names in ``write``, or in a string with commas; ``MistakeError`` for one that is none of ``FORMATS``."""
    names = split_names(write)
    for name in names:
        if name not in FORMATS:
            raise MistakeError(f"cannot write {name!r}; expected some of {','.join(FORMATS)}")
    return names


def prepare_folder(out_dir: FilePath) -> Path:
    """The folder, made where it is missing; ``MistakeError`` where it cannot be written."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            return Path(out_dir)
    except OSError as error:
        raise MistakeError(f"{out_dir}: no folder to write to ({error.strerror}); give another one") from error


class CannotWriteError(MistakeError):
    """A result that cannot be written; its cause is the system's ``OSError``."""


def _write_whole(path: Path, content: np.ndarray | Image.Image | bytes) -> Path:
    """Writes an array, an image or bytes atomically."""
    try:
        if isinstance(content, bytes):
            replace_bytes(path, content)
        else:
            replace_array(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def _cannot_write(path: Path, error: OSError) -> CannotWriteError:
    return CannotWriteError(f"{path}: cannot be written ({message_of(error)}); give another folder")


Render = Callable[[np.ndarray, Sequence[str] | None, Sequence[Colour] | None], np.ndarray | Image.Image]
"""What goes into a file, from the array and its classes' names and colours."""


def _files_of(task: str, write: Iterable[str]) -> dict[str, Render]:
    """The end of each file's name for one task, and what goes into it."""
    files: dict[str, Render] = {}
    if "npy" in write:
        files[f"{task}.npy"] = lambda array, *_: array
    if "png" in write:
        files[f"{task}.png"] = lambda array, names, colours: Image.fromarray(
            draw_task(task, array, names, colours=colours)
        )
        for name, pixels in kinds.of(task).extra_files().items():
            files[f"{task}_{name}.png"] = partial(_draw_pixels, pixels, name == "index")
    return files


def _packed(prediction: Mapping[str, np.ndarray]) -> bytes:
    """A compressed NumPy archive. The same arrays give the same bytes.

    Floats are in float16, but for tasks of kind ``value``: of what size theirs are, and how exact, nobody knows here.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for task, array in prediction.items():
            content = io.BytesIO()
            np.save(content, _halved(array) if array.dtype.kind == "f" and TASKS[task].kind != "value" else array)
            archive.writestr(zipfile.ZipInfo(f"{task}.npy"), content.getbuffer(), zipfile.ZIP_DEFLATED, 4)
    return buffer.getvalue()


def _halved(array: np.ndarray) -> np.ndarray:
    """Floats in float16, where that can hold them."""
    return array.astype(np.float16) if np.abs(array).max(initial=0) < np.finfo(np.float16).max else array


def _draw_pixels(
    pixels: Callable[[np.ndarray], np.ndarray],
    in_colours: bool,
    array: np.ndarray,
    _: Sequence[str] | None,
    colours: Sequence[Colour] | None,
) -> Image.Image:
    """An array as an image file's numbers; 8-bit classes are shown in their colours."""
    image = Image.fromarray(pixels(array))
    if in_colours and image.mode == "L":
        image.putpalette(np.asarray(palette(256, colours), np.uint8).tobytes())
    return image
