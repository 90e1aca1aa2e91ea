"""Predictions as files: which images a command names, and what is written for each."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from mtlsi import kinds
from mtlsi.drawing.panels import Colours, draw_task, panel
from mtlsi.errors import MistakeError
from mtlsi.images import IMAGE_ENDINGS, FilePath
from mtlsi.io import replace_array
from mtlsi.kinds.colouring import Colour
from mtlsi.kinds.palette import palette
from mtlsi.prediction.images import ImageLike, as_pixels, check_file, read_image
from mtlsi.tasks import check_tasks


def save_prediction(
    prediction: Mapping[str, np.ndarray],
    image: ImageLike,
    out_dir: FilePath,
    stem: str,
    classes: Mapping[str, Sequence[str]] | None = None,
    colours: Colours | None = None,
) -> list[Path]:
    """Writes what ``Predictor`` gave for ``image`` into ``out_dir`` and gives the files' paths.

    ==========================  =======================================================================
    ``<stem>_<task>.npy``       the exact array
    ``<stem>_<task>.png``       a coloured image, with its legend or scale, 1600 pixels at most
    ``<stem>_semseg_index.png`` class indices (any task of classes): 8 bits, shown in the classes' colours, or 16 bits
                                with more than 255 classes
    ``<stem>_depth_mm.png``     whole millimetres (any distance), 16 bits, at most 65.535 m
    ``<stem>_panel.png``        the image and all tasks on one sheet
    ==========================  =======================================================================

    ``classes`` and ``colours``: the model's. Writes are atomic; existing files of those names are replaced.
    Raises ``MistakeError`` where the folder or a file cannot be written.
    """
    folder, classes, colours = _prepare_folder(out_dir), classes or {}, colours or {}
    sheet = panel(as_pixels(image), prediction, classes, colours=colours)
    written = [
        _write_whole(folder / f"{stem}_{ending}", render(array, classes.get(task), colours.get(task)))
        for task, array in prediction.items()
        for ending, render in _files_of(task).items()
    ]
    return [*written, _write_whole(folder / f"{stem}_panel.png", Image.fromarray(sheet))]


class PredictsImages(Protocol):
    """What ``predict_paths`` needs: a ``Predictor``, or a ``GraphPredictor``."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can predict."""
        ...

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The class names of each task that has classes."""
        ...

    @property
    def colours(self) -> Colours:
        """The colours of the classes, by task, where they are not our own."""
        ...

    def __call__(self, image: np.ndarray, tasks: tuple[str, ...], /) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Outcome:
    """What ``predict_paths`` wrote, and the images that it could not read, each with the reason."""

    written: list[Path]
    failed: list[tuple[Path, str]]


def predict_paths(
    paths: FilePath | Iterable[FilePath],
    predictor: PredictsImages,
    out_dir: FilePath,
    tasks: str | Iterable[str] | None = None,
    *,
    console: Console | None = None,
) -> Outcome:
    """Predicts every image given and every image in the folders given, and writes the files of ``save_prediction``.

    A folder's own images are taken in natural order (2 before 10), not its subfolders'. The results for ``a.jpg``
    begin with ``a``; where two images share that name, their endings, then their folders, then a number are added.
    An image that cannot be read is skipped and named at the end on ``console`` (by default stderr).
    Raises ``MistakeError`` for a missing path, a folder without images, a video, an unknown task, a folder
    that cannot be written, results that would replace an image given (all before computing), or no readable image.
    """
    console = console or Console(stderr=True)
    names = check_tasks(predictor.tasks if tasks is None else tasks, among=predictor.tasks)
    stems = _name_results(find_images([paths] if isinstance(paths, str | os.PathLike) else paths))
    folder = _prepare_folder(out_dir)
    _keep_sources(stems, folder, names)
    outcome = Outcome([], [])
    for path, stem in track(stems.items(), "predicting", console=console, transient=True, disable=len(stems) == 1):
        try:
            image = read_image(path)
        except MistakeError as error:
            outcome.failed.append((path, str(error)))
            continue
        files = save_prediction(predictor(image, names), image, folder, stem, predictor.classes, predictor.colours)
        outcome.written.extend(files)
    if not outcome.written:
        several = f"none of {len(stems)} images can be read; the first: " if len(stems) > 1 else ""
        raise MistakeError(several + outcome.failed[0][1])
    if outcome.failed:
        console.print(f"{len(outcome.failed)} of {len(stems)} images could not be read:", highlight=False)
        for _, reason in outcome.failed:
            console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    return outcome


def find_images(paths: Iterable[FilePath]) -> list[Path]:
    """Every image file that ``paths`` name, each once, in the order given."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            check_file(path)
            found.setdefault(path.resolve(), path)
            continue
        try:
            files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and file.name[0] != "."]
        except OSError as error:
            raise MistakeError(f"{path}: cannot be read ({error.strerror}); expected a folder of images") from error
        if not files:
            raise MistakeError(f"{path}: no images in this folder itself; expected .jpg, .png or the like in it")
        found |= {file.resolve(): file for file in sorted(files, key=_natural) if file.resolve() not in found}
    if not found:
        raise MistakeError("no images given; expected image files or folders of them")
    return list(found.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key that reads numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", path.name)]


def _name_results(images: Sequence[Path]) -> dict[Path, str]:
    """What the results of each image begin with: as short as keeps them apart, on any file system."""
    spellings: tuple[Callable[[Path], str], ...] = (
        lambda p: p.stem,
        lambda p: f"{p.stem}_{p.suffix[1:]}",
        lambda p: f"{p.resolve().parent.name}_{p.stem}_{p.suffix[1:]}",
    )
    stems: dict[Path, str] = {}
    for spell in spellings:
        waiting = [path for path in images if path not in stems]
        counts = Counter(name.casefold() for name in (*stems.values(), *map(spell, waiting)))
        stems |= {path: spell(path) for path in waiting if counts[spell(path).casefold()] == 1}
    for number, path in enumerate(images, 1):
        stems.setdefault(path, f"{spellings[-1](path)}_{number}")
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    return {path: stems[path] for path in images}


def _keep_sources(stems: Mapping[Path, str], folder: Path, tasks: Sequence[str]) -> None:
    """Raises ``MistakeError`` where a result would be written over an image that is still to be read."""
    sources = {path.resolve() for path in stems}
    endings = [*(ending for task in tasks for ending in _files_of(task)), "panel.png"]
    for result in (folder.resolve() / f"{stem}_{ending}" for stem in stems.values() for ending in endings):
        if result in sources:
            raise MistakeError(f"{result}: would be replaced by a result of the same name; write to another folder")


def _prepare_folder(out_dir: FilePath) -> Path:
    """The folder, made where it is missing; ``MistakeError`` where it cannot be written."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            return Path(out_dir)
    except OSError as error:
        raise MistakeError(f"{out_dir}: no folder to write to ({error.strerror}); give another one") from error


def _write_whole(path: Path, content: np.ndarray | Image.Image) -> Path:
    """Writes an array or an image atomically."""
    try:
        replace_array(path, content)
    except OSError as error:
        raise MistakeError(f"{path}: cannot be written ({error.strerror or error}); give another folder") from error
    return path


Render = Callable[[np.ndarray, Sequence[str] | None, Sequence[Colour] | None], np.ndarray | Image.Image]
"""What goes into a file, from the array and its classes' names and colours."""


def _files_of(task: str) -> dict[str, Render]:
    """The end of each file's name for one task, and what goes into it."""
    files: dict[str, Render] = {
        f"{task}.npy": lambda array, *_: array,
        f"{task}.png": lambda array, names, colours: Image.fromarray(draw_task(task, array, names, colours=colours)),
    }
    for name, pixels in kinds.of(task).extra_files().items():
        files[f"{task}_{name}.png"] = partial(_draw_pixels, pixels, name == "index")
    return files


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
