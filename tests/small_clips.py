"""Small videos in the formats that people have: for tests of what reads and writes them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlsi.prediction.camera import TrainingCamera
from mtlsi.prediction.shown import Shown

av: Any = pytest.importorskip("av", reason="PyAV is not installed: pip install .[video]")

TICKS = Fraction(1, 1000)
RATE_HZ = 48_000


def pictures(count: int, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """Random blocks, each picture another."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), np.uint8)
    return [block.repeat(8, 0).repeat(8, 1)[:height, :width] for block in blocks]


def grey_levels(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Each picture flat, a little brighter than the one before: which one it is can be read from what any codec leaves."""
    return [np.full((height, width, 3), 20 + 200 * n // max(1, count - 1), np.uint8) for n in range(count)]


def write_clip(
    path: Path,
    shown: Sequence[np.ndarray],
    times_ms: Sequence[int] | None = None,
    *,
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    given: str = "rgb24",
    options: Mapping[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    pixel_aspect: Fraction | None = None,
    begin_ms: int = 0,
    **settings: Any,
) -> Path:
    """Pictures at their moments (by default 25 a second), lossless by default, and mono sound (float32 in -1..1)."""
    times_ms = range(0, 40 * len(shown), 40) if times_ms is None else times_ms
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=dict(options or {}))
        video.height, video.width, video.pix_fmt = shown[0].shape[0], shown[0].shape[1], pix_fmt
        video.codec_context.time_base = TICKS
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        for name, value in settings.items():
            setattr(video.codec_context, name, value)
        audio = None if sound is None else container.add_stream(sound_codec, rate=RATE_HZ, layout="mono")
        packets = []
        for pixels, moment in zip(shown, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=given)
            frame.pts, frame.time_base = moment + begin_ms, TICKS
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound is not None:
            for start in range(0, len(sound), 1024):
                frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024].astype(np.float32), "fltp", "mono")
                frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
                frame.pts = start + begin_ms * RATE_HZ // 1000
                packets += audio.encode(frame)
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def click(seconds: float, at_s: float) -> np.ndarray:
    """Silence with a short burst of sound."""
    sound = np.zeros(round(seconds * RATE_HZ), np.float32)
    start = round(at_s * RATE_HZ)
    sound[start : start + 2400] = 0.8 * np.sin(np.arange(2400) * 2 * np.pi * 1000 / RATE_HZ)
    return sound


def heard(path: Path) -> tuple[np.ndarray, float]:
    """The loudness of a file's sound, and when it begins in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([np.abs(frame.to_ndarray()).max(0) for frame in frames]), float(frames[0].time)


def turn(path: Path, matrix: Sequence[int]) -> Path:
    """Writes a display matrix, a b c d, into the header of an .mp4 or .mov file, as phones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (65536 * entry for entry in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def damage(path: Path, *numbers: int) -> Path:
    """Overwrites most of the compressed pictures of these numbers."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for number in numbers:
        start = content.index(packets[number])
        end, start = start + len(packets[number]), start + len(packets[number]) // 4
        content[start:end] = rng.integers(0, 256, end - start, np.uint8).tobytes()
    path.write_bytes(content)
    return path


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    """Every picture of a file with its moment in seconds."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


class Levels:
    """Depth in metres: a hundredth of each pixel's red. Needs no torch."""

    tasks = ("depth", "semseg")
    classes: Mapping[str, Any] = {"semseg": ("dark", "bright")}
    colours: Mapping[str, Any] = {}
    training_camera = TrainingCamera(100.0, (32, 48), Shown((32, 48)))
    identity = "levels"

    def __call__(self, image: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        depth = image[..., 0].astype(np.float32) / 100
        return {task: depth if task == "depth" else (depth > 1).astype(np.uint8) for task in tasks}
