"""Building blocks of generated scenes: random draws, materials, convex solids, objects made of solids.

An object's frame, in metres: x along its front, y up, z out of its front; origin where it stands or hangs.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

Vector = tuple[float, float, float]
Shape = Literal["box", "ellipsoid", "cylinder", "capsule"]
Pattern = Literal[
    "plain", "checker", "stripes", "wood", "tiles", "blotches", "speckle", "cells", "spines", "gradient", "slats"
]
Choice = TypeVar("Choice")


class Dice:
    """The random draws of one scene, a pure function of ``(seed, index, stream)``.

    Choice: numbers are rounded to four decimals to hide last-bit differences between compilers, so that every machine
    builds the same room.
    """

    def __init__(self, seed: int, index: int, stream: int = 0) -> None:
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, stream])))

    def between(self, low: float, high: float) -> float:
        """A uniform number from ``low`` to ``high``."""
        return round(low + (high - low) * self.rng.random(), 4)

    def whole(self, low: int, high: int) -> int:
        """A uniform integer from ``low`` to ``high``, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """One of ``choices``, all equally likely."""
        return choices[int(self.rng.random() * len(choices))]


def turn(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in radians, rounded so that every C library gives the same values."""
    return round(math.cos(angle), 7), round(math.sin(angle), 7)


@dataclass(frozen=True)
class Material:
    """Two colours (linear RGB, 0 to 1) and the pattern that mixes them; ``scale`` is its period in metres."""

    colour: Vector
    accent: Vector
    pattern: Pattern = "plain"
    scale: float = 0.2
    glow: float = 0.0
    """Emitted light, as a multiple of the colour."""


def tint(dice: Dice, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Vector:
    """A random linear RGB colour; hue, saturation and value from 0 to 1, hues may run past 1."""
    red, green, blue = colorsys.hsv_to_rgb(dice.between(*hue) % 1.0, dice.between(*saturation), dice.between(*value))
    return red * red, green * green, blue * blue


def shade(colour: Vector, factor: float) -> Vector:
    """The colour, darker (factor below 1) or lighter."""
    return min(colour[0] * factor, 1.0), min(colour[1] * factor, 1.0), min(colour[2] * factor, 1.0)


def plain(colour: Vector, glow: float = 0.0) -> Material:
    """One slightly uneven colour."""
    return Material(colour, shade(colour, 0.75), "plain", 0.25, glow)


def timber(dice: Dice) -> Material:
    """Wood with its grain, or wood painted white, grey or dark."""
    if dice.chance(0.3):
        return plain(tint(dice, (0.0, 1.0), (0.0, 0.25), (0.2, 0.95)))
    colour = tint(dice, (0.04, 0.11), (0.35, 0.7), (0.4, 0.85))
    return Material(colour, shade(colour, dice.between(0.4, 0.7)), "wood", dice.between(0.03, 0.1))


def fabric(dice: Dice) -> Material:
    """Cloth: plain, striped, checked, woven or blotched."""
    colour = tint(dice, (0.0, 1.0), (0.1, 0.8), (0.3, 0.95))
    pattern: Pattern = dice.pick(("plain", "plain", "stripes", "checker", "speckle", "blotches"))
    accent = tint(dice, (0.0, 1.0), (0.1, 0.7), (0.3, 0.95)) if pattern != "plain" else shade(colour, 0.7)
    return Material(colour, accent, pattern, dice.between(0.04, 0.25))


def metal(dice: Dice) -> Material:
    """Grey, black or brass."""
    return plain(tint(dice, (0.08, 0.14), (0.0, 0.3), (0.15, 0.8)))


@dataclass(frozen=True)
class Solid:
    """A convex solid: ``axes`` are unit vectors, ``half`` the half sizes along them.

    A capsule is a sphere of radius ``half``, extended along its second axis by ``stretch`` radii each way; a cylinder
    stands along its second axis. ``part`` is the human part (0: none).
    """

    shape: Shape
    centre: Vector
    axes: tuple[Vector, Vector, Vector]
    half: Vector
    material: Material
    stretch: float = 0.0
    part: int = 0


UPRIGHT: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Item:
    """One object instance: solids in its own frame, and the objects on it (each its own instance)."""

    def __init__(self, kind: str, footprint: tuple[float, float] = (0.0, 0.0), casts_shadow: bool = True) -> None:
        self.kind = kind
        self.footprint = footprint
        """Width (x) and length (z) of the floor area it needs, centred on its origin."""
        self.front_space = 0.0
        """Floor kept free beyond the footprint, in front of it."""
        self.casts_shadow = casts_shadow
        self.solids: list[Solid] = []
        self.carried: list[Item] = []

    def box(self, centre: Vector, size: Vector, material: Material, part: int = 0) -> None:
        """Adds a box; ``size`` is width, height, length."""
        half = (size[0] / 2, size[1] / 2, size[2] / 2)
        self.solids.append(Solid("box", centre, UPRIGHT, half, material, part=part))

    def ellipsoid(self, centre: Vector, half: Vector, material: Material, part: int = 0) -> None:
        """Adds an ellipsoid with these half axes."""
        self.solids.append(Solid("ellipsoid", centre, UPRIGHT, half, material, part=part))

    def cylinder(self, foot: Vector, radius: float, height: float, material: Material) -> None:
        """Adds an upright cylinder that stands on ``foot``."""
        centre = (foot[0], foot[1] + height / 2, foot[2])
        self.solids.append(Solid("cylinder", centre, UPRIGHT, (radius, height / 2, radius), material))

    def limb(self, start: Vector, end: Vector, radius: float, material: Material, part: int = 0) -> None:
        """Adds a capsule from ``start`` to ``end``, the centres of its round ends."""
        along = (end[0] - start[0], end[1] - start[1], end[2] - start[2])
        length = math.sqrt(along[0] ** 2 + along[1] ** 2 + along[2] ** 2)
        axis = (along[0] / length, along[1] / length, along[2] / length)
        helper = (1.0, 0.0, 0.0) if abs(axis[0]) < 0.8 else (0.0, 0.0, 1.0)
        side = unit(cross(axis, helper))
        centre = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
        axes = (side, axis, cross(side, axis))
        self.solids.append(
            Solid("capsule", centre, axes, (radius, radius, radius), material, length / 2 / radius, part)
        )

    def carry(self, other: Item, at: Vector, yaw: float = 0.0) -> None:
        """Places another object on or beside this one, in this one's frame."""
        self.carried.extend(other.placed(at, yaw))

    def placed(self, at: Vector, yaw: float) -> list[Item]:
        """This object and everything on it, moved to ``at`` and rotated about the vertical by ``yaw`` radians.

        Yaw 0 keeps the front along z; a quarter turn points it along x.
        """
        cosine, sine = turn(yaw)

        def rotated(vector: Vector) -> Vector:
            return cosine * vector[0] + sine * vector[2], vector[1], cosine * vector[2] - sine * vector[0]

        moved = []
        for item in (self, *self.carried):
            copy = Item(item.kind, casts_shadow=item.casts_shadow)
            for solid in item.solids:
                x, y, z = rotated(solid.centre)
                side, up, front = solid.axes
                axes = (rotated(side), rotated(up), rotated(front))
                copy.solids.append(replace(solid, centre=(x + at[0], y + at[1], z + at[2]), axes=axes))
            moved.append(copy)
        return moved


def cross(a: Vector, b: Vector) -> Vector:
    """The cross product, written out."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def unit(a: Vector) -> Vector:
    """The vector scaled to length one."""
    length = math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])
    return a[0] / length, a[1] / length, a[2] / length
