"""Predictions for a video or a camera, as a video: picture by picture, in memory that does not grow with the length."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mtlsi.errors import MistakeError, counted
from mtlsi.images import IMAGE_ENDINGS, FilePath
from mtlsi.io import check_writable
from mtlsi.kinds.colouring import Limits
from mtlsi.lock import OF_FOLDER, HeldError, held
from mtlsi.prediction.camera import Camera, Metres, distance_task
from mtlsi.prediction.clips.arrays import MOMENT, earlier_arrays, name_of
from mtlsi.prediction.clips.reading import Clip, Frame, Sound, open_clip
from mtlsi.prediction.clips.samples import sample_clip
from mtlsi.prediction.clips.view import ClipView, limits_of, thinned
from mtlsi.prediction.clips.webcam import until_interrupted
from mtlsi.prediction.clips.writing import ClipWriter, check_ending
from mtlsi.prediction.contract import PredictsImages
from mtlsi.prediction.crew import Crew
from mtlsi.prediction.results import prepare_folder, save_prediction
from mtlsi.streams import write_line
from mtlsi.tasks import TASKS, check_tasks

Predict = Callable[[np.ndarray, tuple[str, ...]], Mapping[str, np.ndarray]]
"""From a picture (H W 3) uint8 and names of tasks to the arrays of each."""


@dataclass
class VideoOutcome:
    """What ``predict_video`` did."""

    path: Path
    """The video that was written."""
    arrays: Path | None = None
    """The folder of arrays."""
    limits: dict[str, Limits] = field(default_factory=dict)
    """By task, the values at the ends of its colour scale."""
    sound: str = "none"
    """What became of it."""
    num_frames: int = 0
    """Pictures predicted."""
    num_broken: int = 0
    """Pictures that could not be decoded."""
    is_whole: bool = True
    """Whether nothing says that there were more pictures in the clip than were read."""
    duration_s: float = 0.0
    """How long it plays."""
    num_bytes: int = 0
    spent_s: float = 0.0


def predict_video(
    source: FilePath | Clip,
    predictor: PredictsImages,
    out: FilePath = "out",
    tasks: str | list[str] | tuple[str, ...] | None = None,
    *,
    predict: Predict | None = None,
    as_panel: bool | None = None,
    arrays: bool = False,
    stride: int = 1,
    num_frames: int | None = None,
    camera: Camera | None = None,
    scale: float = 1.0,
    num_workers: int = 1,
    console: Console | None = None,
) -> VideoOutcome:
    """Predicts every picture of a video and writes a video of the predictions, its sound beside them.

    ``source``: a file, or a camera that ``open_camera`` opened, which is read until Ctrl-C or ``num_frames`` and closed.
    ``out``: a name that ends in .mp4, .mkv or .webm, or a folder, which gets ``<stem>_panel.mp4`` or ``<stem>_<task>.mp4``.
    A sheet of the picture and all ``tasks`` is drawn, with legends; of a single task its coloured map alone, at the
    clip's own size, unless ``as_panel``. ``arrays``: also ``<out's stem>_arrays/<number>.npz``, a file for each picture:
    the arrays by task, floats in float16, and ``time_us``, its moment; those of an earlier run are removed. ``stride``:
    every n-th picture, each shown until the next. ``num_frames``: the first so many of those. ``camera`` and ``scale``: as
    for ``predict_paths``.
    ``predict``: called in the place of ``predictor`` for each picture, in order; for what remembers the ones before.
    ``num_workers``: 0 draws and writes in the calling thread, else another does while the network works.

    Choice: the colours of numbers have one scale for the whole clip, and legends do not move. They are found first, on at
    most nine pictures from all over the clip (``sample_clip``), which ``predictor`` predicts for this alone: the 0.5th and
    the 99.5th percentile of all; what lies outside has the colour of the nearer end. A camera's are its first picture's.
    Choice: an error or Ctrl-C leaves no file, since one that ends early looks like a whole one; a camera's is ended whole.
    A picture that cannot be decoded is named on ``console`` (by default stderr) and passed over: the one before stays.
    So is a clip that ends before its file says that it does.
    Raises ``MistakeError`` for what is no video, has no pictures, an unknown task, where nothing can be written, and where
    another process writes its arrays into the same folder.
    """
    names = check_tasks(predictor.tasks if tasks is None else tasks, among=predictor.tasks)
    for flag, number in (("stride", stride), ("frames", num_frames)):
        if number is not None and number < 1:
            raise MistakeError(f"{flag} {number}; expected 1 or more")
    metres = Metres(predictor.training_camera, camera, scale)
    if metres.matter:
        distance_task(names)
    as_panel = len(names) > 1 if as_panel is None else as_panel
    console = console or Console(stderr=True)
    say = partial(write_line, console)
    clip = source if isinstance(source, Clip) else open_clip(_checked(Path(source)), say)
    clip.say = say
    with clip:
        target = _target(Path(out), clip, "panel" if as_panel else names[0])
        folder = prepare_folder(target.with_name(f"{target.stem}_arrays")) if arrays else None
        run = _Run(clip, predictor, names, metres, as_panel, VideoOutcome(target, folder))
        with _alone_in(folder) if folder else nullcontext():
            run.earlier = earlier_arrays(folder) if folder else []
            run.predict = predict or predictor
            if not clip.is_live:
                run.take_samples(None if num_frames is None else num_frames * stride)
            run.predict_all(stride, num_frames, num_workers, console)
    say(run.summary())
    return run.outcome


@dataclass
class _Run:
    """One call of ``predict_video``."""

    clip: Clip
    predictor: PredictsImages
    tasks: tuple[str, ...]
    metres: Metres
    as_panel: bool
    outcome: VideoOutcome
    samples: list[dict[str, np.ndarray]] = field(default_factory=list)
    view: ClipView | None = None
    writer: ClipWriter | None = None
    earlier: list[Path] = field(default_factory=list)
    """Arrays of an earlier run, to be removed."""

    def __post_init__(self) -> None:
        self.predict: Predict = self.predictor
        self.early: list[Sound] = []

    def take_samples(self, most_frames: int | None) -> None:
        """Predict a few pictures from all over the clip, where colours or legends depend on them."""
        needs = [task for task in self.tasks if self.as_panel or limits_of(task, [np.ones((1, 1), np.float32)])]
        if needs:
            for pixels in sample_clip(self.clip.name, most_frames):
                self.samples.append(thinned(self.of(self.predictor, pixels)))

    def of(self, predict: Predict, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        """The predictions of a picture, in metres of its own camera."""
        size_hw = pixels.shape[0], pixels.shape[1]
        return self.metres.of(predict(pixels, self.tasks), size_hw, Path(self.clip.name))[0]

    def predict_all(self, stride: int, most: int | None, num_workers: int, console: Console) -> None:
        """Read, predict and write every picture."""
        began, known = time.perf_counter(), self.clip.num_frames
        total = min((n for n in (known and math.ceil(known / stride), most) if n), default=None)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        listening = until_interrupted() if self.clip.is_live else nullcontext(bool)
        with listening as is_stopped, ExitStack() as stack, bar:
            row = bar.add_task("predicting", total=total)
            with Crew(min(num_workers, 1)) as crew:  # one: pictures stay in order
                for event in self.clip.events(stride, most, is_stopped):
                    if isinstance(event, Sound):
                        crew.write(partial(self.hear, event))
                        continue
                    prediction = self.of(self.predict, event.pixels)
                    if self.writer is None:
                        crew.finish()
                        self.begin(event, prediction, stride, stack)
                    crew.write(partial(self.write, event, prediction))
                    del event, prediction  # else they stay until the next ones are there
                    bar.advance(row)
                crew.finish()
            if self.writer is None:
                raise MistakeError(f"{self.clip.name}: no picture in it can be decoded; give an undamaged copy")
            if most is None and not self.clip.is_live:
                self.look_for_more(console)
        self.outcome.spent_s = time.perf_counter() - began
        self.outcome.num_broken += self.clip.num_broken
        self.outcome.num_bytes = self.outcome.path.stat().st_size

    def look_for_more(self, console: Console) -> None:
        """Say, after all is read, what is known of pictures that did not come."""
        if lost := self.clip.num_lost:
            write_line(console, f"{self.clip.name}: {lost} frames are missing, which the decoder gave up after damage")
            self.outcome.num_broken += lost
        if missing := self.clip.missing:
            write_line(console, f"{self.clip.name}: {missing}")
            self.outcome.is_whole = False

    def begin(self, frame: Frame, prediction: Mapping[str, np.ndarray], stride: int, stack: ExitStack) -> None:
        """Lay out the pictures and open the file, when the size is known."""
        samples = self.samples or [thinned(prediction)]
        size_hw = frame.pixels.shape[0], frame.pixels.shape[1]
        classes, colours = self.predictor.classes, self.predictor.colours
        self.view = ClipView(size_hw, samples, classes, colours, as_panel=self.as_panel)
        rate = self.clip.rate / stride
        self.writer = stack.enter_context(ClipWriter(self.outcome.path, self.view.size_hw, rate, self.clip.sounds))
        self.outcome.limits, self.outcome.sound = self.view.limits, self.writer.sound
        self.samples.clear()
        for path in self.earlier:  # of another stride or clip, some would stay among the new ones
            path.unlink(missing_ok=True)
        for sound in self.early:
            self.writer.add_sound(sound)
        self.early.clear()

    def hear(self, sound: Sound) -> None:
        """Write a packet of sound, or keep it until the file is opened."""
        if self.writer is None:
            self.early.append(sound)
        else:
            self.writer.add_sound(sound)

    def write(self, frame: Frame, prediction: Mapping[str, np.ndarray]) -> None:
        """Draw and write a picture, and its arrays."""
        assert self.view is not None
        assert self.writer is not None
        self.writer.add(self.view.draw(frame.pixels, prediction), frame)
        if self.outcome.arrays is not None:
            timed = {**prediction, MOMENT: np.asarray(round(frame.start_s * 1_000_000), np.int64)}
            save_prediction(timed, frame.pixels, self.outcome.arrays, name_of(frame.number), write="npz")
        self.outcome.num_frames += 1
        self.outcome.duration_s = float(frame.end_s)

    def summary(self) -> str:
        """The last line."""
        done = self.outcome
        speed = done.num_frames / max(done.spent_s, 1e-9)
        line = f"{counted(done.num_frames, 'frame')} predicted, {speed:.1f} a second: {done.path}, "
        line += f"{done.num_bytes / 1e6:.1f} MB, {done.duration_s:.1f} s"
        for task, (low, high) in done.limits.items():
            line += f"; {task} in colours from {low:.2f} to {high:.2f} {TASKS[task].unit}".rstrip()
        if done.sound != "none":
            line += f"; sound {done.sound}"
        if done.arrays is not None:
            line += f"; arrays in {done.arrays}"
        if done.num_broken:
            line += f"; {counted(done.num_broken, 'broken frame')} passed over"
        if not done.is_whole:
            line += "; the clip is not whole"
        return line


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other command writes its arrays into ``folder``, and removes ours, within the context."""
    try:
        with held(folder / OF_FOLDER):
            yield
    except HeldError as holder:
        raise MistakeError(
            f"{folder}: arrays are being written there by {holder}; wait, or give another --out"
        ) from holder


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        """The text of the column."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} frames/s" if speed else "", style="progress.data.speed")


def _checked(path: Path) -> Path:
    """Raises ``MistakeError`` for an image, which PyAV would read as a video of one picture."""
    if path.suffix.lower() in IMAGE_ENDINGS and path.suffix.lower() != ".gif":
        raise MistakeError(f"{path}: an image; expected a video such as clip.mp4: for images give a folder to write to")
    return path


def _target(out: Path, clip: Clip, word: str) -> Path:
    """The file to write, its folder made; ``MistakeError`` for a name of another kind, and for the clip itself."""
    if out.is_dir() or not out.suffix:
        stem = f"camera_{time.strftime('%Y-%m-%d_%H-%M-%S')}" if clip.is_live else Path(clip.name).stem
        out = out / f"{stem}_{word}.mp4"
    check_ending(out)
    prepare_folder(out.parent)
    if out.exists() and not clip.is_live and os.path.samefile(out, clip.name):
        raise MistakeError(f"{out}: is the clip itself; give another name")
    check_writable(out)
    return out
