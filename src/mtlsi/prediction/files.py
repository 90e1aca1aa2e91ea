"""Predictions as files, for any number of images: what is done already is skipped, what is odd is named and passed over."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from mtlsi.errors import MistakeError, counted, message_of
from mtlsi.images import FilePath
from mtlsi.io import number_of
from mtlsi.lock import HeldError, held
from mtlsi.options.using import has_points
from mtlsi.prediction.camera import Camera, Metres, distance_task
from mtlsi.prediction.contract import PredictsPhotos
from mtlsi.prediction.crew import Crew
from mtlsi.prediction.images import VIDEO_ENDINGS, read_image
from mtlsi.prediction.manifest import Line, Manifest, Source, content_of, source_of
from mtlsi.prediction.names import Names, keep_sources
from mtlsi.prediction.results import (
    FORMATS,
    USUAL_FORMATS,
    CannotWriteError,
    check_formats,
    endings_of,
    prepare_folder,
    save_prediction,
)
from mtlsi.prediction.walk import Found, Notes, Walk
from mtlsi.streams import write_line
from mtlsi.tasks import TASKS, check_tasks

CLAIMS = ".claims"
"""In the folder of results: a file for each image that a process is at."""
FATAL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)  # every further write would meet them, too


@dataclass
class Outcome:
    """What ``predict_paths`` did, in numbers of images."""

    written: int = 0
    num_files: int = 0
    num_bytes: int = 0
    skipped: int = 0
    """Their results were there."""
    elsewhere: int = 0
    """Another process is at them."""
    replaced: int = 0
    """Of those written: the results of another file were there under the same name."""
    failed: int = 0
    """Images that could not be predicted and folders that could not be read."""


def predict_paths(
    paths: FilePath | Iterable[FilePath],
    predictor: PredictsPhotos,
    out_dir: FilePath,
    tasks: str | Iterable[str] | None = None,
    *,
    write: str | Iterable[str] = USUAL_FORMATS,
    recursive: bool = False,
    overwrite: bool = False,
    num_workers: int = 0,
    camera: Camera | None = None,
    scale: float = 1.0,
    console: Console | None = None,
) -> Outcome:
    """Predicts every image given and every image in the folders given, and writes the files of ``save_prediction``.

    A folder's own images are taken in natural order (2 before 10); with ``recursive`` those of its subfolders, too, whose
    results lie in the same tree. The results for ``a.jpg`` begin with ``a``; ``Names`` says what keeps them apart.
    ``manifest.jsonl`` has a line for each image written. An image with such a line, unchanged since, is skipped where
    its files are there and model, tasks and ``write`` are the same; ``overwrite`` predicts it again. An image of another
    folder that has the same name is another one: its results replace those that are there, which is said.
    Several processes may write into one folder: each takes images that no other is at. ``num_workers`` threads read and as
    many write while the network works. Memory does not grow with the number of images, but for 60 bytes each.
    ``camera``: by what the images were taken, for metres and points; without it the metres are those of the training set's
    camera, and points have its focal length. ``scale`` multiplies every distance (see ``calibrate``).
    What cannot be predicted or followed is named at once on ``console`` (by default stderr) and passed over; the last line
    says how many images went where.
    Raises ``MistakeError`` for a missing path, a folder without images, a video, an unknown task or format, a folder
    that cannot be written, results that would lie among the images given (all before computing), a full disk, or where no
    image can be read.
    """
    names = check_tasks(predictor.tasks if tasks is None else tasks, among=predictor.tasks)
    formats = check_formats(write)
    if num_workers < 0:
        raise MistakeError(f"workers {num_workers}; expected 0 or more")
    metres = Metres(predictor.training_camera, camera, scale, needed=has_points(formats))
    if metres.matter:
        distance_task(names)
    walk = Walk(paths, out_dir, recursive=recursive)
    check_images(walk)
    found = Names(walk.images, max(map(len, endings_of(names, FORMATS))))
    endings = tuple(endings_of(names, formats))
    keep_sources(walk, found, Path(out_dir), endings)
    folder = prepare_folder(out_dir)
    settings = json.dumps([predictor.identity, names, sorted(formats), *([repr(metres)] if metres.matter else [])])
    manifest = Manifest(folder, ignore_lines=overwrite)
    run = _Run(predictor, names, formats, folder, endings, settings, manifest, found, metres)
    run.console, run.quiet = console or Console(stderr=True), found.num_images == 1
    with Crew(num_workers) as crew:
        run.predict_all(walk, crew)
    if run.outcome.failed and not run.outcome.written and not run.outcome.skipped:
        several = f"none of {found.num_images} images can be read; the first: " if found.num_images > 1 else ""
        raise MistakeError(several + run.first_failure)
    run.say_outcome()
    return run.outcome


@dataclass
class _Job:
    """An image that this process has claimed."""

    image: Found
    name: str
    source: Source
    claim: ExitStack
    before: Line | None
    """About the results that are there."""
    content: int = 0
    pixels: np.ndarray | None = None
    """Until its results are written."""

    def give_pixels(self) -> np.ndarray:
        """The pixels, which it then has no more."""
        pixels, self.pixels = self.pixels, None
        assert pixels is not None
        return pixels


@dataclass
class _Run:
    """One call of ``predict_paths``."""

    predictor: PredictsPhotos
    tasks: tuple[str, ...]
    formats: tuple[str, ...]
    folder: Path
    endings: tuple[str, ...]
    settings: str
    manifest: Manifest
    names: Names
    metres: Metres
    console: Console = field(default_factory=lambda: Console(stderr=True))
    quiet: bool = False
    """Of a single image: what is wrong with it is the message of the error that is raised."""
    outcome: Outcome = field(default_factory=Outcome)
    first_failure: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    claims: dict[str, ExitStack] = field(default_factory=dict)
    views: Counter[str] = field(default_factory=Counter)
    """Where the focal lengths are from."""
    unused: Counter[float] = field(default_factory=Counter)
    """What focal lengths that nothing asked for would multiply metres by."""

    def predict_all(self, walk: Walk, crew: Crew) -> None:
        """Read, predict and write every image, and name what the walk passed over."""
        notes = Notes()
        images = track(
            walk.images(notes),
            "predicting",
            self.names.num_images,
            console=self.console,
            transient=True,
            disable=self.quiet or not self.console.is_terminal,
        )
        try:
            for job, pixels in crew.read(self.read, self.jobs(images)):
                if isinstance(pixels, str):
                    self.fail(job, pixels)
                    continue
                try:
                    prediction = self.predictor.maps(pixels, self.tasks)
                except (MistakeError, MemoryError, RuntimeError) as error:
                    self.fail(job, f"{job.image.path}: {_reason(error)}")
                    continue
                job.pixels = pixels
                write = partial(self.write, job, prediction)
                del pixels, prediction  # else they stay until the next ones are there
                crew.write(write)
            crew.finish()
        finally:
            for claim in [*self.claims.values()]:
                claim.close()
            _remove_empty(self.folder / CLAIMS)
        self.say_notes(notes, recursive=walk.recursive)

    def jobs(self, images: Iterable[Found]) -> Iterator[_Job]:
        """The images that are still to be predicted, each claimed."""
        for image in images:
            name = self.names.of(image)
            try:
                source = source_of(image.path, self.settings)
            except OSError:  # reading it will say why
                source = Source(str(image.path), 0, 0)
            if self.is_done(name, source):
                self.outcome.skipped += 1
                continue
            claim = ExitStack()
            try:
                claim.enter_context(held(self.folder / CLAIMS / f"{number_of(name):016x}.lock"))
            except HeldError:
                self.outcome.elsewhere += 1
                continue
            if self.is_done(name, source):  # another process finished it just before
                claim.close()
                self.outcome.skipped += 1
                continue
            self.claims[name] = claim
            if self.names.is_cut(image):
                self.say(f"{image.path}: a very long name; its results begin with {name}")
            yield _Job(image, name, source, claim, self.manifest.last(name))

    def is_done(self, name: str, source: Source) -> bool:
        """Whether an image's line of the manifest and the files of its results are there."""
        line = self.manifest.last(name)
        if line is None or not all(os.path.exists(f"{self.folder / name}{ending}") for ending in self.endings):
            return False
        try:
            return source.is_of(line)
        except OSError:  # reading it will say why
            return False

    def read(self, job: _Job) -> np.ndarray | str:
        """The image's pixels, or why there are none."""
        try:
            pixels = read_image(job.image.path)
            job.content = content_of(job.image.path)
            return pixels
        except MistakeError as error:
            return str(error)
        except (MemoryError, OSError) as error:
            return f"{job.image.path}: {_reason(error)}"

    def write(self, job: _Job, prediction: Mapping[str, np.ndarray]) -> None:
        """Write an image's results and its line of the manifest."""
        assert job.pixels is not None
        classes, colours = self.predictor.classes, self.predictor.colours
        size_hw = job.pixels.shape[0], job.pixels.shape[1]
        try:
            prediction, view = self.metres.of(prediction, size_hw, job.image.path)
            files = save_prediction(
                prediction,
                job.give_pixels(),
                self.folder,
                job.name,
                classes,
                colours,
                write=self.formats,
                focal_px=view and view.focal_px,
            )
        except CannotWriteError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FATAL:
                raise
            self.fail(job, f"{job.image.path}: {error}")
            return
        except (MemoryError, RuntimeError) as error:
            self.fail(job, f"{job.image.path}: {_reason(error)}")
            return
        facts: dict[str, Any] = {
            "height": size_hw[0],
            "width": size_hw[1],
            "files": [path.relative_to(self.folder).as_posix() for path in files],
        }
        if view is not None:
            facts |= {"focal_px": round(view.focal_px, 2), "focal_from": view.source}
        self.manifest.append(job.name, job.source, job.content, facts)
        num_bytes = sum(path.stat().st_size for path in files)
        unused = self.metres.unused_factor(size_hw, job.image.path) if self.has_distances else None
        with self.lock:
            self.outcome.written += 1
            self.outcome.num_files += len(files)
            self.outcome.num_bytes += num_bytes
            if job.before is not None and job.source.replaces(job.before, job.content):
                self.outcome.replaced += 1
                if self.outcome.replaced == 1:
                    self.say(
                        f"{job.image.path}: its results replaced those of another file in {self.folder}, {job.name}; "
                        "another --out keeps both"
                    )
            if unused is not None:
                self.unused[round(unused, 2)] += 1
            if view is not None:
                self.views.update([f"{view.focal_px:.0f} px, {view.source}" if self.quiet else view.source])
        self.release(job)

    @property
    def has_distances(self) -> bool:
        """Whether some task is of distances."""
        return any(TASKS[task].kind == "distance" for task in self.tasks)

    def release(self, job: _Job) -> None:
        """Leave the image to others."""
        job.claim.close()
        self.claims.pop(job.name, None)

    def fail(self, job: _Job, reason: str) -> None:
        """Name an image that is passed over."""
        self.release(job)
        self.count_failure(reason)

    def count_failure(self, reason: str) -> None:
        with self.lock:
            self.outcome.failed += 1
            self.first_failure = self.first_failure or reason
        if not self.quiet:
            self.say(reason)

    def say(self, line: str) -> None:
        write_line(self.console, line)

    def say_notes(self, notes: Notes, *, recursive: bool) -> None:
        """A line for each folder and link passed over, and one for all files that are no images."""
        for path, reason in notes.failed:
            self.count_failure(f"{path}: cannot be read ({reason})")
        for path, reason in notes.links:
            self.say(f"{path}: {reason}")
        if notes.videos:
            self.say(
                f"{_videos_of(notes)} passed over; each is predicted by itself: mtlsi predict CLIP --out result.mp4"
            )
        others = Counter({ending: n for ending, n in notes.others.items() if ending not in VIDEO_ENDINGS})
        if others:
            kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(8))
            rest = " and others" if len(others) > 8 else ""
            self.say(f"passed over, no images: {kinds}{rest}")
        for path in notes.results:
            self.say(f"{path}: results of mtlsi predict, passed over")
        if notes.num_subfolders and not recursive:
            self.say(
                f"{counted(notes.num_subfolders, 'subfolder')} passed over; --recursive predicts their images, too"
            )

    def say_outcome(self) -> None:
        """The last line."""
        done = self.outcome
        if self.views:
            self.say(
                "focal length: " + ", ".join(v if self.quiet else f"{v} ({n} images)" for v, n in self.views.items())
            )
        if self.unused:
            whose = "this photo's EXIF" if self.quiet else f"the EXIF of {counted(self.unused.total(), 'image')}"
            factors = " to ".join(f"{factor:.2f}" for factor in sorted({min(self.unused), max(self.unused)}))
            self.say(f"the focal length in {whose} was not used; --exif multiplies the metres by {factors}")
        parts = [f"{counted(done.written, 'image')} predicted"]
        if done.written:
            parts[0] += f": {counted(done.num_files, 'file')}, {_size(done.num_bytes)}, in {self.folder}"
        if done.replaced:
            parts[0] += f", {done.replaced} in the place of another file's results"
        if done.skipped:
            parts.append(f"{done.skipped} done before in {self.folder}, skipped (--overwrite predicts again)")
        if done.elsewhere:
            parts.append(f"{done.elsewhere} left to another process")
        if done.failed:
            parts.append(f"{done.failed} failed")
        self.say("; ".join(parts))


def check_images(walk: Walk) -> None:
    """Raises ``MistakeError`` for a folder given that holds no image."""
    for path in walk.roots.values():
        notes = Notes()
        if next(walk.images_of(path, notes), None) is None:
            where = "in this folder or below it" if walk.recursive else "in this folder itself"
            hint = f"; its {counted(notes.num_subfolders, 'subfolder')}: --recursive" if notes.num_subfolders else ""
            if notes.videos:
                hint += f"; {_videos_of(notes)}: give each by itself"
            raise MistakeError(f"{path}: no images {where}; expected .jpg, .png or the like{hint}")


def _videos_of(notes: Notes) -> str:
    """The videos of a folder: the first by name, then their number."""
    more = sum(notes.others[ending] for ending in VIDEO_ENDINGS) - len(notes.videos)
    named = ", ".join(map(str, notes.videos)) + (f" and {more} more" if more else "")
    return f"video {named}" if len(notes.videos) == 1 else f"videos {named}"


def _reason(error: BaseException) -> str:
    """Why an image is passed over, in one line; what is no trouble with an image is raised again."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower()):
        return "too large for the memory of this machine; make it smaller first"
    if isinstance(error, OSError):
        return f"cannot be read ({message_of(error)})"
    if isinstance(error, MistakeError):
        return str(error)
    raise error


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another process is at work, or there is none
        return


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
