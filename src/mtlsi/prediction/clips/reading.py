"""Videos, read one picture at a time: upright RGB pixels with the moment at which each is shown, and the sound between them.

Whatever PyAV decodes. Nothing is kept but the picture at hand, so that memory does not grow with the length.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.errors import MistakeError, message_of
from mtlsi.images import FilePath, pixel_limit
from mtlsi.later import Later
from mtlsi.prediction.clips.pixels import Upright
from mtlsi.prediction.clips.whole import Extent

if TYPE_CHECKING:
    import av.error
    import av.stream
else:
    av = Later("av")  # the extra [video]

CONTAINERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264",
    "hevc", "av1", "obu", "ivf", "flv", "asf", "ogg", "gif", "apng", "mjpeg", "mxf", "nut", "dv", "rm", "wtv",
    "yuv4mpegpipe",
)  # fmt: skip
"""The file formats that are opened, as FFmpeg calls them. Others of its own are scripts and playlists, which open further
files, wait for pipes and go on without end."""
USUAL_RATE = Fraction(25)
"""Pictures a second where a file does not say."""
MOST_ERRORS = 100
"""Packets in a row that cannot be read before the rest is given up."""
MOST_WAITING = 2000
"""Packets of sound that wait for the picture of their time; files keep both close together."""
LONGEST_GAP_S = 24 * 3600
"""Between two pictures, or the packets of a sound. What a file says beyond is damage: pictures follow one another, and sound
is left out."""
NAMED = 10
"""Broken pictures that are named; more are counted."""
SILENT_PACKETS = ("vp8", "libvpx", "vp9", "libvpx-vp9")
"""Decoders for which a packet may be no picture but help for later ones."""


@dataclass(frozen=True)
class Frame:
    """A picture of a clip."""

    pixels: np.ndarray
    """(H W 3) uint8, upright."""
    number: int
    """Its place in the clip, from 0; broken ones are not counted."""
    start_s: Fraction
    """When it is shown, since the start of the clip."""
    end_s: Fraction
    """When the next one is, or the clip ends."""


@dataclass(frozen=True)
class Sound:
    """A packet of compressed sound, its times counted from the start of the clip."""

    stream: int
    """Its place among ``Clip.sounds``."""
    packet: Any

    @property
    def start_s(self) -> Fraction:
        """When it is heard."""
        return self.packet.pts * self.packet.time_base


class Clip:
    """An opened video, ``name`` in messages, or with ``is_live`` a camera. Use it in a ``with`` statement, and read it once.

    ``say`` takes a line about everything that is passed over. Raises ``MistakeError`` where there are no pictures.
    """

    def __init__(self, name: str, container: Any, say: Callable[[str], None], *, is_live: bool = False):
        self.name, self.container, self.say, self.is_live = name, container, say, is_live
        self.video = _pictures_of(name, container)
        self.video.thread_type = "AUTO"
        if (most := pixel_limit()) < inf:
            # a stream may grow on its way; twice, as FFmpeg counts what it pads rows with, too
            self.video.codec_context.options = {"max_pixels": str(2 * most)}
        self.sounds = [] if is_live else [s for s in container.streams.audio if s.codec_context is not None]
        starts = [s.start_time * s.time_base for s in (self.video, *self.sounds) if s.start_time is not None]
        self.begin_s: Fraction | None = None if is_live else min(starts, default=Fraction(0))
        self.upright = Upright(self.video.sample_aspect_ratio)
        if found := self._too_large(self.video):
            container.close()
            raise MistakeError(f"{name}: frames of {found}; scale the video down")
        self.extent = Extent(container, self.video, self.sounds)
        self.packets = self._packets()
        self.num_decoded = self.num_broken = self.num_packets = 0
        self.has_fields = self.has_jumps = False
        self.last_s, self.end_s, self.heard_s = Fraction(-1), Fraction(0), Fraction(0)

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def rate(self) -> Fraction:
        """Pictures a second, on average."""
        rate = self.video.average_rate or self.video.guessed_rate
        return Fraction(rate) if rate and 0 < rate <= 1000 else USUAL_RATE

    @property
    def duration_s(self) -> float | None:
        """How long it plays; None where that is not known."""
        if self.is_live:
            return None
        if self.video.duration:
            return float(self.video.duration * self.video.time_base)
        return self.container.duration / av.time_base if self.container.duration else None

    @property
    def num_frames(self) -> int | None:
        """About how many pictures there are; None where that is not known."""
        if self.is_live:
            return None
        return self.video.frames or (round(self.duration_s * self.rate) if self.duration_s else None)

    def events(
        self, stride: int = 1, most: int | None = None, is_stopped: Callable[[], bool] = bool
    ) -> Iterator[Frame | Sound]:
        """Every ``stride``-th picture, at most ``most``, and the sound up to their end, in the order of time.

        ``is_stopped`` is asked before each picture whether that was the last.
        """
        held, num_kept, waiting = None, 0, deque[Sound]()
        for packet in self.packets:
            if packet.stream.index != self.video.index:
                waiting += self._sound(packet)
                if len(waiting) > MOST_WAITING:
                    yield waiting.popleft()
                continue
            for number, start_s, frame in self._decoded(packet):
                if number % stride:
                    continue
                if held is not None:
                    yield Frame(*held, start_s)
                    held = None
                while waiting and waiting[0].start_s < start_s:
                    yield waiting.popleft()
                if num_kept == most or is_stopped():
                    yield from self._sound_until(start_s, waiting)
                    return
                held, num_kept = (self.upright(frame), number, start_s), num_kept + 1
        if held is not None:
            yield Frame(*held, self.end_s)
        yield from waiting

    def pictures(self) -> Iterator[tuple[Fraction, Any]]:
        """Every picture as PyAV decodes it, to be given to ``upright`` or left, with its moment."""
        for packet in self.packets:
            if packet.stream.index == self.video.index:
                yield from ((start_s, frame) for _, start_s, frame in self._decoded(packet))

    @property
    def num_lost(self) -> int:
        """After all is read: pictures for which a decoder, after damage, neither gave a picture nor said why."""
        if self.video.codec_context.name in SILENT_PACKETS or self.has_fields:
            return 0
        return max(0, self.num_packets - self.num_decoded - self.num_broken)

    @property
    def missing(self) -> str:
        """After all is read: why the clip was not whole though no more pictures are counted; empty where it seems to be."""
        if said := self.extent.missing():
            return said
        if self.has_jumps:
            hours = LONGEST_GAP_S // 3600
            return f"its clock jumps by more than {hours} hours: frames follow one another there, and sound is left out"
        damaged = 0 if self.num_broken or self.num_lost else self.extent.num_damaged
        return (
            f"{damaged} of its frames are damaged or cut short; they were decoded as well as can be" if damaged else ""
        )

    def seek(self, moment_s: Fraction) -> bool:
        """Go on from the last picture before ``moment_s`` at which decoding can begin; False where that is not possible."""
        try:
            stamp = round((moment_s + (self.begin_s or 0)) / self.video.time_base)
            self.container.seek(stamp, stream=self.video)
        except (av.error.FFmpegError, OSError):
            return False
        self.packets, self.last_s, self.end_s = self._packets(), Fraction(-1), moment_s
        return True

    def _packets(self) -> Iterator[Any]:
        """Compressed pictures and sound, in the file's order."""
        errors, kinds = 0, av.error
        while True:
            try:
                for packet in self.container.demux(self.video, *self.sounds):
                    errors = 0
                    self.extent.note(packet)
                    yield packet
                return
            except kinds.BlockingIOError:  # a camera whose next picture is not there yet
                time.sleep(0.005)
            except kinds.EOFError:
                return
            except (kinds.FFmpegError, OSError) as error:
                errors += 1
                if self.is_live or errors == MOST_ERRORS:
                    self.num_broken += 1
                    self.say(f"{self.name}: the rest cannot be read ({message_of(error)})")
                    return

    def _decoded(self, packet: Any) -> Iterator[tuple[int, Fraction, Any]]:
        """The pictures that a packet completes, each with its number and its moment."""
        self.num_packets += bool(packet.size) and not packet.is_discard
        try:
            frames = self.video.codec_context.decode(packet if packet.size else None)
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            self._pass_over(message_of(error))
            return
        for frame in frames:
            if frame.is_corrupt:
                self._pass_over("damaged")
                continue
            if found := self._too_large(frame):
                self._pass_over(found)
                continue
            self.has_fields |= frame.interlaced_frame
            start_s = self._moment(frame)
            length_s = (frame.duration or 0) * (self.video.time_base)
            self.end_s = start_s + (length_s if 0 < length_s < 10 else 1 / self.rate)
            self.num_decoded += 1
            self.extent.show(start_s)
            yield self.num_decoded - 1, start_s, frame

    def _moment(self, frame: Any) -> Fraction:
        """When a picture is shown; always after the one before."""
        stamp = frame.dts if frame.pts is None else frame.pts
        if stamp is None:
            moment = max(Fraction(0), self.end_s)
        else:
            if self.begin_s is None:
                self.begin_s = stamp * self.video.time_base
            moment = max(Fraction(0), stamp * self.video.time_base - self.begin_s)
            if moment > self.end_s + LONGEST_GAP_S:
                self.has_jumps, moment = True, max(Fraction(0), self.end_s)
        self.last_s = moment if moment > self.last_s else self.last_s + Fraction(1, 1000)
        return self.last_s

    def _sound(self, packet: Any) -> list[Sound]:
        """A packet with its times counted from the clip's start; nothing for the empty one at the end."""
        if not packet.size or packet.dts is None or packet.pts is None:
            return []
        shift = round((self.begin_s or 0) / packet.time_base)
        pts, dts = packet.pts - shift, packet.dts - shift
        earliest_s, latest_s = -LONGEST_GAP_S, max(self.end_s, self.heard_s) + LONGEST_GAP_S
        if not all(earliest_s <= stamp * packet.time_base <= latest_s for stamp in (pts, dts)):
            self.has_jumps = True
            return []
        packet.pts, packet.dts, self.heard_s = pts, dts, max(self.heard_s, pts * packet.time_base)
        return [Sound([stream.index for stream in self.sounds].index(packet.stream.index), packet)]

    def _sound_until(self, end_s: Fraction, waiting: deque[Sound]) -> Iterator[Sound]:
        """The sound before ``end_s`` that is still to come."""
        ended: set[int] = {sound.stream for sound in waiting}
        while len(ended) < len(self.sounds) and (packet := next(self.packets, None)) is not None:
            if packet.stream.index == self.video.index:
                if packet.dts is not None and packet.dts * packet.time_base - (self.begin_s or 0) > end_s + 2:
                    return
                continue
            for sound in self._sound(packet):
                if sound.start_s < end_s:
                    yield sound
                else:
                    ended.add(sound.stream)

    def _too_large(self, pictures: Any) -> str:
        """What is wrong where a stream's pictures, or one, have more pixels, made square, than images may; else empty."""
        width, height = round(pictures.width * max(1, self.upright.pixel_aspect)), pictures.height
        if width * height <= (most := pixel_limit()):
            return ""
        return f"{width}x{height} pixels; expected at most {most // 10**6:.0f} million"

    def _pass_over(self, reason: str) -> None:
        self.num_broken += 1
        if self.num_broken <= NAMED:
            where = "at its start" if self.last_s < 0 else f"after {float(self.last_s):.2f} s"
            more = "; more are counted, not named" if self.num_broken == NAMED else ""
            self.say(f"{self.name}: a frame {where} cannot be decoded ({reason}), passed over{more}")


def open_clip(path: FilePath, say: Callable[[str], None] = lambda _: None) -> Clip:
    """A video file. Raises ``MistakeError`` where it is not there, is no video, or has no pictures."""
    check_av()
    if not Path(path).is_file():
        raise MistakeError(f"{path}: not there, or no plain file; expected a video such as clip.mp4")
    if not Path(path).stat().st_size:
        raise MistakeError(f"{path}: an empty file; expected a video")
    try:
        only = {"format_whitelist": ",".join(CONTAINERS)}
        # a name such as "12:30 kitchen.mkv" would be taken for a protocol, and "concat:a.mkv" open another file
        container = av.open(os.path.abspath(path), metadata_errors="replace", container_options=only)
    except (av.error.FFmpegError, OSError) as error:
        raise MistakeError(
            f"{path}: no video that can be read ({message_of(error)}); give an undamaged copy"
        ) from error
    return Clip(str(path), container, say)


def check_av() -> None:
    """Raises ``MistakeError`` where PyAV is not installed."""
    if find_spec("av") is None:
        raise MistakeError("videos need PyAV, which is not installed; pip install 'mtlsi[video]'")


def _pictures_of(name: str, container: Any) -> Any:
    """The stream of pictures. A song's cover is none."""
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & cover]
    if not streams:
        container.close()
        raise MistakeError(f"{name}: without pictures that can be decoded; expected a video")
    best = container.streams.best("video")
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])
