"""Whether all of a clip was read: what came out of its file, against what the file says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

MATROSKA = "matroska,webm"
FORMATS = (MATROSKA, "mov,mp4,m4a,3gp,3g2,mj2", "flv")
"""FFmpeg's names of the formats that write down how long they play; of others it is reckoned from what can be read."""
MICROSECOND = Fraction(1, 1_000_000)
SHORTEST_S = Fraction(1, 4)
"""Less than this, a file may be wrong about its end."""
EVEN, UNEVEN = 2, 10
"""So many of the longest time between two pictures may lack at the end: where all are alike, and at a variable rate.

Choice: a clip's last picture may be shown longer than any other, and Matroska does not say how long.
"""
HOLE = 1024
"""Bytes between one packet and the next from which on something may have been passed over. Choice: a hole counts where it is
also several times larger than any before, and the time between two pictures is, too: frames that a camera dropped leave no
hole, and what a file keeps beside its pictures, such as their opacity, leaves one at each."""
TIMES = 3


class Extent:
    """What was read of a file: ``note`` takes every packet of these streams, ``show`` every picture's moment."""

    def __init__(self, container: Any, video: Any, sounds: Sequence[Any]):
        self.container, self.video = container, video
        self.reads_all = len(container.streams) == 1 + len(sounds)
        self.shown_s = self.heard_s = Fraction(0)
        self.newest_s: Fraction | None = None
        self.num_damaged = 0
        self.read_to: int | None = None
        self.hole = self.largest_hole = 0
        self.longest_step_s = Fraction(0)
        self.hole_s: Fraction | None = None
        self.last_s: Fraction | None = None
        self.steps: tuple[Fraction, Fraction] | None = None

    def note(self, packet: Any) -> None:
        """A packet, as it is in the file."""
        if not packet.size or packet.pts is None:
            return
        start_s = packet.pts * packet.time_base
        end_s = start_s + (packet.duration or 0) * packet.time_base
        if packet.pos is not None:
            self.hole += max(0, packet.pos - (packet.pos if self.read_to is None else self.read_to))
            self.read_to = packet.pos + packet.size
        if packet.stream.index == self.video.index:
            before_s = start_s if self.newest_s is None else self.newest_s
            self._note_hole(before_s, max(Fraction(0), start_s - before_s))
            self.newest_s = max(before_s, start_s)
            self.shown_s = max(self.shown_s, end_s)
            self.num_damaged += packet.is_corrupt
        else:
            self.heard_s = max(self.heard_s, end_s)

    def _note_hole(self, before_s: Fraction, step_s: Fraction) -> None:
        """What was not read before a picture, ``step_s`` after the newest one before it."""
        is_hole = self.hole > max(HOLE, TIMES * self.largest_hole) and step_s > TIMES * self.longest_step_s > 0
        if is_hole and self.reads_all and self.container.format.name == MATROSKA:
            self.hole_s = before_s if self.hole_s is None else self.hole_s
        else:
            self.largest_hole = max(self.largest_hole, self.hole)
            self.longest_step_s = max(self.longest_step_s, step_s)
        self.hole = 0

    def show(self, moment_s: Fraction) -> None:
        """The moment of a decoded picture, in order."""
        if self.last_s is not None:
            step = moment_s - self.last_s
            shortest, longest = self.steps or (step, step)
            self.steps = min(shortest, step), max(longest, step)
        self.last_s = moment_s

    def missing(self) -> str:
        """After all is read: what says that more should have been there; empty where nothing does."""
        if self.hole_s is not None:
            return f"after {float(self.hole_s):.2f} s a part of the file cannot be read: frames are missing"
        said, read_s = self._ends_s()
        if said is None or self.steps is None:
            return ""
        shortest, longest = self.steps
        may_lack = longest * (EVEN if longest < shortest * 3 / 2 else UNEVEN)
        if said - read_s <= max(SHORTEST_S, may_lack):
            return ""
        return (
            f"it ends at {float(read_s):.2f} s, and says that it plays until {float(said):.2f} s: the rest is missing"
        )

    def _ends_s(self) -> tuple[Fraction | None, Fraction]:
        """When the pictures, or where the file does not say it all of it, should end, and when what was read ends."""
        if self.container.format.name not in FORMATS:
            return None, self.shown_s
        whole_s = self.container.duration * MICROSECOND if self.container.duration else None
        if found := re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,9})?)", self.video.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(Fraction, found.groups())
            end_s = (60 * hours + minutes) * 60 + seconds
            return end_s if whole_s is None else min(end_s, whole_s), self.shown_s
        if self.video.duration:
            return ((self.video.start_time or 0) + self.video.duration) * self.video.time_base, self.shown_s
        return whole_s if self.reads_all else None, max(self.shown_s, self.heard_s)
