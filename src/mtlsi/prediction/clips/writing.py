"""Videos, written one picture at a time: every picture at its own moment, the sound of another clip beside it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.errors import MistakeError, message_of
from mtlsi.io import check_writable
from mtlsi.later import Later
from mtlsi.prediction.clips.reading import Frame, Sound
from mtlsi.prediction.clips.sound import Track, track_of

if TYPE_CHECKING:
    import av.error
else:
    av = Later("av")  # the extra [video]

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm"}
"""By the end of a file's name, FFmpeg's name of its format."""
TICKS = Fraction(1, 90_000)
"""What moments are rounded to: of 24, 25, 30 and 60 pictures a second each is exact."""
COARSE_TICKS = Fraction(1, 60_000)
"""The finest that MPEG-4 can say."""
MOST_TICKS = 2**31 - 1
"""For which .mp4 can show a picture: 6.6 hours of ``TICKS``."""


@dataclass(frozen=True)
class Encoder:
    """How pictures are compressed."""

    codec: str
    options: dict[str, str]
    ticks: Fraction = TICKS


ENCODERS = {
    "mp4": (
        Encoder("libx264", {"crf": "20", "preset": "veryfast", "bf": "0"}),
        Encoder("libopenh264", {"b": "8M"}),
        Encoder("mpeg4", {"b": "12M"}, COARSE_TICKS),
    ),
    "webm": (
        Encoder("libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
        Encoder("libvpx", {"crf": "10", "b": "8M", "deadline": "realtime", "cpu-used": "6"}),
    ),
}
ENCODERS["matroska"] = ENCODERS["mp4"]
"""By format, what is tried in turn: H.264, which every player knows, where this PyAV can write it.

Choice: no pictures out of order (``bf`` 0): .mp4 counts a clip's length in the order in which pictures are stored, and would
end before the last ones where some are shown long."""


class ClipWriter:
    """Writes pictures ``(H W 3) uint8`` and sound into ``path``: in a ``with`` statement, ``add`` and ``add_sound``.

    The file is written beside and renamed at the end; nothing is left of it where the ``with`` block is left by an error.
    A link stays one, and what it leads to is written.
    ``rate``: pictures a second, on average, which only guides the compression. ``sounds``: the streams that the packets of
    ``add_sound`` come from. Choice: a picture of an odd side gets its last row or column twice, as the pixels of
    players' formats stand in squares of four (yuv420p).
    Raises ``MistakeError`` for a name that ends in none of ``CONTAINERS``, and where the file cannot be written.
    """

    def __init__(self, path: Path, size_hw: tuple[int, int], rate: Fraction, sounds: Sequence[Any] = ()):
        check_ending(path)
        self.path, self.target = path, check_writable(path)
        self.part = self.target.with_name(f".{uuid.uuid4().hex}.part")
        self.format = CONTAINERS[path.suffix.lower()]
        self.encoder = encoder_for(self.format)
        height, width = (side + side % 2 for side in size_hw)
        self.lengths: dict[int, int] = {}
        self.last_stamp = -1
        try:
            # the index at the front: a browser plays the file while it loads
            options = {"movflags": "+faststart"} if self.format == "mp4" else {}
            self.container = av.open(os.path.abspath(self.part), "w", format=self.format, options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise MistakeError(f"{path}: cannot be written ({message_of(error)}); give another place") from error
        self.video: Any = self.container.add_stream(self.encoder.codec, rate=rate, options=dict(self.encoder.options))
        self.video.width, self.video.height, self.video.pix_fmt = width, height, "yuv420p"
        self.video.codec_context.time_base = self.encoder.ticks
        self.video.codec_context.colorspace = self.video.codec_context.color_primaries = BT709
        self.video.codec_context.color_trc, self.video.codec_context.color_range = BT709, LIMITED
        self.tracks: list[Track | None] = [track_of(stream, self.container) for stream in sounds]

    @property
    def sound(self) -> str:
        """What became of the sound, for a person."""
        words = dict.fromkeys(track.word if track else "left out, which cannot be read" for track in self.tracks)
        return " and ".join(words) or "none"

    def add(self, pixels: np.ndarray, frame: Frame) -> None:
        """A picture, shown from ``frame.start_s`` to ``frame.end_s``."""
        pad = [(0, side % 2) for side in pixels.shape[:2]]
        whole = np.pad(pixels, [*pad, (0, 0)], mode="edge") if any(after for _, after in pad) else pixels
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(whole), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
        ticks = self.encoder.ticks
        stamp = max(self.last_stamp + 1, round(frame.start_s / ticks))
        picture.pts, picture.time_base, self.last_stamp = stamp, ticks, stamp
        self.lengths[stamp] = max(1, round(frame.end_s / ticks) - stamp)
        if self.format == "mp4" and self.lengths[stamp] > MOST_TICKS:
            hours, most = (float(length * ticks / 3600) for length in (self.lengths[stamp], MOST_TICKS))
            raise MistakeError(
                f"{self.path}: a frame is shown for {hours:.1f} hours; .mp4 can say at most {most:.1f}; write .mkv"
            )
        self._write(picture)

    def add_sound(self, sound: Sound) -> None:
        """A packet of the sound."""
        track = self.tracks[sound.stream]
        if track is not None:
            self._mux(track.packets(sound.packet))

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close(quietly=kind is not None)
            self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._write(None)
        for track in self.tracks:
            if track is not None:
                self._mux(track.packets(None))
        self._close()
        try:
            self.part.replace(self.target)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, picture: Any) -> None:
        try:
            packets = self.video.encode(picture)
        except (av.error.FFmpegError, OSError) as error:
            size = f"{self.video.height}x{self.video.width}"
            raise MistakeError(
                f"{self.path}: {self.encoder.codec} cannot write {size} ({message_of(error)})"
            ) from error
        for packet in packets:
            packet.duration = self.lengths.pop(packet.pts, 0)  # of the last picture nothing else says it
        self._mux(packets)

    def _mux(self, packets: list[Any]) -> None:
        try:
            for packet in packets:
                self.container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _close(self, *, quietly: bool = False) -> None:
        try:
            self.container.close()
        except (av.error.FFmpegError, OSError) as error:
            if not quietly:
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> MistakeError:
        return MistakeError(f"{self.path}: cannot be written ({message_of(error)}); give another place")


BT709, LIMITED = 1, 1
"""FFmpeg's numbers of the colours in which every player shows high definition."""


def check_ending(path: Path) -> None:
    """Raises ``MistakeError`` where the end of a name is none of ``CONTAINERS``."""
    if path.suffix.lower() not in CONTAINERS:
        raise MistakeError(f"{path}: of no kind that is written; expected a name that ends in {', '.join(CONTAINERS)}")


def encoder_for(format_name: str) -> Encoder:
    """The first encoder for a format that this PyAV has; ``MistakeError`` where there is none."""
    for encoder in ENCODERS[format_name]:
        try:
            av.Codec(encoder.codec, "w")
        except ValueError:  # what av raises for an unknown codec derives from it
            continue
        return encoder
    raise MistakeError(f"this PyAV has no encoder for {format_name}; pip install --upgrade av, or write another format")
