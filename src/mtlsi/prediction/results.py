"""The files of one image's results: which there are, what goes into each."""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi import kinds
from mtlsi.config import split_names
from mtlsi.drawing.panels import Colours, draw_task, panel
from mtlsi.errors import MistakeError, message_of
from mtlsi.images import FilePath
from mtlsi.io import replace_array, replace_bytes
from mtlsi.kinds.colouring import Colour
from mtlsi.kinds.palette import palette
from mtlsi.prediction.camera import distance_task
from mtlsi.prediction.images import ImageLike, as_pixels
from mtlsi.prediction.points import points, surface, write_glb, write_ply

FORMATS = ("png", "npy", "npz", "panel", "ply", "glb")
"""What can be written for an image."""
USUAL_FORMATS = ("png", "npy", "panel")
POINT_FORMATS = ("ply", "glb")
"""Those that need a distance and a focal length."""
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
    ``<stem>.npz``              npz       the arrays of all tasks by name, compressed; floats are float16
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
    if {*formats} & {*POINT_FORMATS} and not (focal_px and distance_task(prediction)):
        raise MistakeError("points without a focal length; give focal_px, in pixels of the image")
    folder = prepare_folder(out_dir)
    classes, colours, written = classes or {}, colours or {}, []
    for task, array in prediction.items():
        for ending, render in _files_of(task, formats).items():
            content = render(array, classes.get(task), colours.get(task))
            written.append(_write_whole(folder / f"{stem}_{ending}", content))
    if "npz" in formats:
        written.append(_write_whole(folder / f"{stem}.npz", _packed(prediction)))
    if "panel" in formats:
        sheet = panel(as_pixels(image), prediction, classes, colours=colours)
        written.append(_write_whole(folder / f"{stem}_panel.png", Image.fromarray(sheet)))
    for name in POINT_FORMATS:
        if name in formats and focal_px:
            written.append(_write_points(folder / f"{stem}.{name}", prediction, as_pixels(image), focal_px))
    return written


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
        raise CannotWriteError(f"{path}: cannot be written ({message_of(error)}); give another folder") from error
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
        raise CannotWriteError(f"{path}: cannot be written ({message_of(error)}); give another folder") from error
    return path


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
    """A compressed NumPy archive, floats in float16. The same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for task, array in prediction.items():
            content = io.BytesIO()
            np.save(content, _halved(array) if array.dtype.kind == "f" else array)
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
