"""The cameras of this machine, through FFmpeg's readers: v4l2 on Linux, avfoundation on macOS, dshow on Windows."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mtlsi.errors import MistakeError, message_of
from mtlsi.later import Later
from mtlsi.prediction.clips.reading import Clip, check_av

if TYPE_CHECKING:
    import av.error
else:
    av = Later("av")  # the extra [video]

READERS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
"""By system, FFmpeg's reader of cameras, and what it calls the one of a number or a name."""


def open_camera(camera: str, say: Callable[[str], None] = lambda _: None) -> Clip:
    """A camera by its number, 0 for the first, or its name. Raises ``MistakeError`` where it cannot be opened."""
    check_av()
    if sys.platform not in READERS:
        raise MistakeError(f"camera {camera}: cameras are read on Linux, macOS and Windows; this is {sys.platform}")
    reader, called = READERS[sys.platform]
    if reader == "dshow" and camera.isdecimal():
        camera = _windows_name(int(camera))
    place = camera if camera.startswith("/") else called.format(camera)
    try:
        container = av.open(place, format=reader, options={"framerate": "30"} if reader == "avfoundation" else {})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MistakeError(
            f"camera {camera}: {place} cannot be opened ({message_of(error)}); expected 0, 1 ... or a name"
        ) from error
    return Clip(f"camera {camera}", container, say, is_live=True)


def _windows_name(number: int) -> str:
    """What dshow, which knows no numbers, calls a camera."""
    names = [device.description for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
    if number >= len(names):
        raise MistakeError(f"camera {number}: not there; expected a number below {len(names)}, or a name")
    return names[number]


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only makes the function that it gives say True; a second one interrupts as ever."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # to which alone Python hands signals
        yield pressed.is_set
        return

    def note(*_: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
