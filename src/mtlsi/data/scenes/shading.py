"""Turns ray hits into a photograph: textures, lights with shadows, then exposure, tint, vignette and noise."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mtlsi.data.scenes.geometry import Floats, Geometry, dot
from mtlsi.data.scenes.layout import Mood, Scene
from mtlsi.data.scenes.raycast import Hits, blocked
from mtlsi.data.scenes.shapes import Dice, Pattern

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


def _hash(*cells: NDArray[np.int64]) -> NDArray[np.uint32]:
    """A 32-bit hash of each lattice cell."""
    bits = np.zeros(cells[0].shape, np.uint32)
    for cell, factor in zip(cells, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F), strict=False):
        bits = (bits ^ cell.astype(np.uint32)) * np.uint32(factor)
        bits ^= bits >> np.uint32(15)
    return bits * np.uint32(0x2C1B3C6D) ^ (bits >> np.uint32(13))


def _fraction(bits: NDArray[np.uint32], byte: int = 3) -> Floats:
    """One of the four bytes, scaled to 0..1."""
    return ((bits >> np.uint32(8 * byte)) & np.uint32(255)).astype(np.float32) * np.float32(1 / 255)


def _noise(place: Floats) -> Floats:
    """Smooth value noise from 0 to 1: the eight corners of each unit lattice cell, interpolated."""
    cells = np.floor(place)
    offset = place - cells
    weights = offset * offset * (3 - 2 * offset)
    x, y, z = cells.astype(np.int64)
    rows = []
    for dy in (0, 1):
        for dz in (0, 1):
            low, high = _fraction(_hash(x, y + dy, z + dz)), _fraction(_hash(x + 1, y + dy, z + dz))
            rows.append(low + (high - low) * weights[0])
    near = rows[0] + (rows[1] - rows[0]) * weights[2]
    far = rows[2] + (rows[3] - rows[2]) * weights[2]
    return near + (far - near) * weights[1]


def _wave(phase: Floats) -> Floats:
    """A triangle wave from 0 to 1 with a period of one."""
    return np.abs(2 * (phase - np.floor(phase)) - 1)


def _blend(pattern: Pattern, place: Floats, noise: Floats) -> Floats:
    """Weight of a material's accent colour, 0 to 1; ``place`` is in periods of the pattern."""
    x, y, z = place
    cells = np.floor(place).astype(np.int64)
    if pattern == "checker":
        return ((cells[0] + cells[1] + cells[2]) & 1).astype(np.float32)
    if pattern == "stripes":
        return np.where(_wave(x + z) < 0.5, np.float32(0), np.float32(1))
    if pattern == "slats":
        return np.where(_wave(y) < 0.3, np.float32(1), np.float32(0))
    if pattern == "wood":
        board = _fraction(_hash(np.floor(x * np.float32(0.37)).astype(np.int64))) * np.float32(0.4)
        return np.minimum(board + np.float32(0.6) * _wave(x + y + np.float32(1.5) * noise), 1)
    if pattern == "tiles":
        seams = (np.abs(place - np.round(place)) < 0.03).any(0)
        return np.where(seams, np.float32(0.9), np.float32(0.2) * _fraction(_hash(*cells)))
    if pattern == "speckle":
        return _fraction(_hash(*np.floor(12 * place).astype(np.int64)))
    if pattern == "gradient":
        return np.clip(y, 0, 1)
    if pattern == "blotches":
        return np.clip(3 * noise - 1, 0, 1)
    return np.float32(0.5) * noise


def _albedo(geometry: Geometry, hits: Hits) -> tuple[Floats, Floats]:
    """Surface colour (3 n) at each pixel, and emitted light as a multiple of it."""
    materials = geometry.materials
    patterns = np.array([PATTERNS.index(material.pattern) for material in materials], np.int8)[hits.solid]
    numbers = np.array([(*m.colour, *m.accent, 1 / m.scale, m.glow) for m in materials], np.float32).T[:, hits.solid]
    phase = _fraction(_hash(hits.solid)) * np.float32(0.8) + np.float32(0.1)
    phase = np.where(patterns == PATTERNS.index("gradient"), np.float32(0.5), phase)
    place = hits.local * numbers[6] + phase
    noise = _noise(place)
    blend = np.zeros_like(noise)
    for code, pattern in enumerate(PATTERNS):
        chosen = np.flatnonzero(patterns == code)
        blend[chosen] = _blend(pattern, place[:, chosen], noise[chosen])
    colour = numbers[:3] + (numbers[3:6] - numbers[:3]) * blend
    for pattern, axes in (("cells", 3), ("spines", 1)):
        chosen = np.flatnonzero(patterns == PATTERNS.index(pattern))
        bits = _hash(*np.floor(place[:axes, chosen]).astype(np.int64), hits.solid[chosen])
        for channel in range(3):
            own = numbers[channel, chosen]
            colour[channel, chosen] = np.float32(0.5) * own + np.float32(0.5) * _fraction(bits, channel) ** 2
    return colour, numbers[7]


def _main_visibility(scene: Scene, geometry: Geometry, hits: Hits, size_hw: tuple[int, int]) -> Floats:
    """The fraction of the main light that reaches each pixel.

    Each pixel of a 2 by 2 block tests another corner of the lamp; averaging over neighbours softens shadow edges.
    """
    light = scene.lights[0]
    hidden = np.zeros(size_hw, np.float32)
    pixels = np.arange(hidden.size).reshape(size_hw)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y, z = light.position
        corner = (x + (row - 0.5) * light.radius, y, z + (column - 0.5) * light.radius)
        quarter = pixels[row::2, column::2]
        hidden[row::2, column::2] = blocked(scene, geometry, corner, hits, quarter.ravel()).reshape(quarter.shape)
    padded = np.pad(hidden, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return 1 - (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]).ravel() / 16


def _light(scene: Scene, geometry: Geometry, hits: Hits, size_hw: tuple[int, int]) -> Floats:
    """Incoming light at each pixel's surface: ambient, brighter from above, plus every lamp."""
    total = (np.float32(0.75) + np.float32(0.25) * hits.normal[1]) * np.array(scene.ambient, np.float32)[:, None]
    for number, light in enumerate(scene.lights):
        way = np.array(light.position, np.float32)[:, None] - hits.point
        square = dot(way, way)
        strength = np.maximum(dot(way, hits.normal), 0) / np.sqrt(square) / (square + np.float32(0.4))
        if number == 0:
            strength = strength * _main_visibility(scene, geometry, hits, size_hw)
        total += strength * np.array(light.power, np.float32)[:, None]
    return total


def brightness_of(linear: Floats) -> float:
    """The mean of a linear image, highlights cut, for which a photograph is exposed."""
    brightness = np.minimum((linear[0] + 2 * linear[1] + linear[2]) * np.float32(0.25), 4)
    # Summed as integers, so that the order does not matter.
    return int((brightness * 65536).astype(np.int64).sum()) / 65536 / brightness.size


def develop(linear: Floats, mean: float, mood: Mood, dice: Dice, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The photograph (H W 3) of a linear image: exposed for a brightness of ``mean``, tinted, vignetted, noisy."""
    v, u = np.divmod(np.arange(linear.shape[1]), size_hw[1])
    across = (2 * u + 1 - size_hw[1]) / size_hw[1], (2 * v + 1 - size_hw[0]) / size_hw[0]
    falloff = (1 - mood.vignette * (across[0] ** 2 + across[1] ** 2) / 2).astype(np.float32)
    grain = dice.rng.standard_normal((linear.shape[1], 3), np.float32) * np.float32(mood.noise)
    image = np.empty((linear.shape[1], 3), np.uint8)
    for channel in range(3):
        level = linear[channel] * falloff * np.float32(mood.exposure / max(mean, 1e-6) * mood.balance[channel])
        shown = np.sqrt(level * (1 + level / 4) / (1 + level))  # a soft shoulder, then a gamma of two
        image[:, channel] = np.rint(np.clip(255 * np.minimum(shown * np.float32(1.12), 1) + grain[:, channel], 0, 255))
    return image.reshape(*size_hw, 3)


def seen_light(scene: Scene, geometry: Geometry, hits: Hits, size_hw: tuple[int, int]) -> Floats:
    """The linear RGB (3 n) that reaches each pixel."""
    colour, glow = _albedo(geometry, hits)
    return colour * (_light(scene, geometry, hits, size_hw) + glow)


def photograph(scene: Scene, geometry: Geometry, hits: Hits, dice: Dice, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The scene as an RGB image (H W 3), exposed for its own brightness."""
    linear = seen_light(scene, geometry, hits, size_hw)
    return develop(linear, brightness_of(linear), scene.mood, dice, size_hw)
