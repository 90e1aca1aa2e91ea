"""How cameras move along a path: turns and ways as functions of the frame's number, 30 frames a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mtlsi.data.scenes.layout import Camera
from mtlsi.data.scenes.shapes import Dice, Vector, cross, turn, unit

FRAMES_PER_SECOND = 30


@dataclass(frozen=True)
class Step:
    """From where the camera began: ways in metres along its level axes, turns in radians.

    ``yaw`` turns to the left about the vertical, ``pitch`` up, ``roll`` anticlockwise.
    """

    right: float = 0.0
    up: float = 0.0
    ahead: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


Move = Callable[[int], Step]
"""A frame's number, 0 or more, to the step that the camera has made; none at frame 0."""


def moved(camera: Camera, step: Step) -> Camera:
    """The camera after a step."""
    ahead = unit((-camera.back[0], 0.0, -camera.back[2]))
    right = cross(ahead, (0.0, 1.0, 0.0))
    x, y, z = (
        start + step.right * side + step.up * upward + step.ahead * forward
        for start, side, upward, forward in zip(camera.position, right, (0.0, 1.0, 0.0), ahead, strict=True)
    )
    cosine, sine = turn(step.yaw)
    axes = [
        (cosine * axis[0] + sine * axis[2], axis[1], cosine * axis[2] - sine * axis[0])
        for axis in (camera.right, camera.up, camera.back)
    ]
    axes[1], axes[2] = _turned(axes[1], axes[2], step.pitch)
    axes[0], axes[1] = _turned(axes[0], axes[1], step.roll)
    return Camera((x, y, z), axes[0], axes[1], axes[2], camera.focal)


def _turned(first: Vector, second: Vector, angle: float) -> tuple[Vector, Vector]:
    """Two axes turned in their plane, the first towards the second."""
    cosine, sine = turn(angle)
    a, b, c = (cosine * p + sine * q for p, q in zip(first, second, strict=True))
    d, e, f = (cosine * q - sine * p for p, q in zip(first, second, strict=True))
    return (a, b, c), (d, e, f)


def swing(frame: int, period: float, phase: float = 0.0) -> tuple[float, float]:
    """Cosine and sine of a swing that takes ``period`` frames; ``phase`` in periods."""
    return turn(2 * math.pi * (frame / period + phase))


def pan(dice: Dice, way: float) -> Move:  # noqa: ARG001
    """To and fro by 6 to 18 degrees, at most 0.1 to 0.75 degrees a frame."""
    reach = math.radians(dice.between(6, 18)) * dice.pick((-1, 1))
    period, nod = dice.between(150, 300), dice.between(-0.15, 0.15)

    def move(frame: int) -> Step:
        sine = swing(frame, period)[1]
        return Step(yaw=reach * sine, pitch=nod * reach * sine)

    return move


def dolly(dice: Dice, way: float) -> Move:
    """Forward by 0.3 to 0.6 m and back, a slow walk."""
    reach, period = way * dice.between(0.3, 0.6), dice.between(120, 240)

    def move(frame: int) -> Step:
        return Step(ahead=reach * (1 - swing(frame, period)[0]) / 2)

    return move


def orbit(dice: Dice, way: float) -> Move:
    """To and fro on an arc round a point 1.5 to 3 m ahead, by 4 to 8 degrees; the point stays where it is in the image."""
    radius, reach = dice.between(1.5, 3.0), way * math.radians(dice.between(4, 8)) * dice.pick((-1, 1))
    period = dice.between(150, 300)

    def move(frame: int) -> Step:
        angle = reach * swing(frame, period)[1]
        cosine, sine = turn(angle)
        return Step(right=radius * sine, ahead=radius * (1 - cosine), yaw=angle)

    return move


def hand(dice: Dice, way: float) -> Move:
    """A hand's tremor: every axis swings at four frequencies from 0.3 to 5 Hz, the faster the less.

    Choice: half a degree and 8 mm at the slowest, falling with the frequency.
    """
    axes = []
    for reach in (*3 * (way * 0.008,), *3 * (math.radians(0.5),)):
        hertz = (dice.between(0.3, 0.5), dice.between(0.7, 1.1), dice.between(1.6, 2.4), dice.between(3.5, 5.0))
        axes.append([(reach * hertz[0] / f, FRAMES_PER_SECOND / f, dice.between(0, 1)) for f in hertz])

    def move(frame: int) -> Step:
        return Step(
            *(sum(reach * (swing(frame, *rest)[1] - swing(0, *rest)[1]) for reach, *rest in axis) for axis in axes)
        )

    return move


MOTIONS: dict[str, Callable[[Dice, float], Move]] = {"pan": pan, "dolly": dolly, "orbit": orbit, "hand": hand}
"""By name; a maker draws a motion whose way is ``way`` times as long, at most 1."""
