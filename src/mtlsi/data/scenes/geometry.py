"""The solids of a scene as arrays, and where rays enter them.

Choice: labels are computed with sums, products, quotients and square roots only, written out per axis. These round
the same on every machine; the sums inside a matrix product do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlsi.data.scenes.layout import SURFACES, Scene
from mtlsi.data.scenes.shapes import Material, Shape, Vector

Floats = NDArray[np.floating]
"""Vectors are stored axis first, (3 n), so that each axis is contiguous; float32 along the rays."""
Integers = NDArray[np.int64]
NUM_SURFACES = len(SURFACES)
SHAPES: tuple[Shape, ...] = ("box", "ellipsoid", "cylinder", "capsule")
TINY = 1e-20


@dataclass(frozen=True)
class Geometry:
    """The solids of a scene as arrays; the first six are the planes of the room."""

    shape: NDArray[np.int8]
    """Indices into ``SHAPES``."""
    centre: NDArray[np.float64]
    """(solids 3)"""
    spread: NDArray[np.float64]
    """(solids 3 3): unit axes times half sizes."""
    to_unit: Floats
    """(3 3 solids): maps a vector of the room to the frame in which the solid has half size one."""
    half: Floats
    stretch: Floats
    instance: Integers
    """The object of each solid: 0 to 5 are the surfaces of the room, then come the scene's items in order."""
    part: NDArray[np.uint8]
    materials: list[Material]


def gather(scene: Scene) -> Geometry:
    """Collects the solids of a scene into arrays."""
    solids = [(index, solid) for index, item in enumerate(scene.items, NUM_SURFACES) for solid in item.solids]
    centre = np.zeros((NUM_SURFACES + len(solids), 3))
    axes = np.zeros((NUM_SURFACES + len(solids), 3, 3))
    axes[:NUM_SURFACES] = np.eye(3)
    half = np.ones((NUM_SURFACES + len(solids), 3))
    centre[NUM_SURFACES:] = np.reshape([solid.centre for _, solid in solids], (-1, 3))
    axes[NUM_SURFACES:] = np.reshape([solid.axes for _, solid in solids], (-1, 3, 3))
    half[NUM_SURFACES:] = np.reshape([solid.half for _, solid in solids], (-1, 3))
    return Geometry(
        shape=np.array([-1] * NUM_SURFACES + [SHAPES.index(solid.shape) for _, solid in solids], np.int8),
        centre=centre,
        spread=axes * half[:, :, None],
        to_unit=np.ascontiguousarray((axes / half[:, :, None]).transpose(1, 2, 0), np.float32),
        half=half.astype(np.float32),
        stretch=np.array([0.0] * NUM_SURFACES + [solid.stretch for _, solid in solids], np.float32),
        instance=np.array([*range(NUM_SURFACES), *(index for index, _ in solids)], np.int64),
        part=np.array([0] * NUM_SURFACES + [solid.part for _, solid in solids], np.uint8),
        materials=[*scene.surfaces, *(solid.material for _, solid in solids)],
    )


def dot(a: Floats, b: Floats) -> Floats:
    """The dot product of vectors (3 n), written out."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def transformed(matrices: Floats, vectors: Floats) -> Floats:
    """Matrices (3 3 n) times vectors (3 n)."""
    return np.stack([dot(row, vectors) for row in matrices])


def slabs(origin: Floats, direction: Floats, axes: tuple[int, ...]) -> tuple[list[Floats], list[Floats]]:
    """Where rays enter and leave the slab -1..1 of each of the axes."""
    entries, exits = [], []
    for axis in axes:
        inverse = 1 / (direction[axis] + np.float32(TINY))
        middle, reach = -origin[axis] * inverse, np.abs(inverse)
        entries.append(middle - reach)
        exits.append(middle + reach)
    return entries, exits


def disc(origin: Floats, direction: Floats, axes: tuple[int, ...]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Over some axes: where rays come closest to the centre, half their chord through the unit ball, whether they hit it.

    The chord is computed at the closest point, where no large terms cancel, so float32 is enough even for thin limbs.
    """
    square = np.full_like(direction[0], TINY)
    closest = np.zeros_like(direction[0])
    for axis in axes:
        square += direction[axis] * direction[axis]
        closest -= origin[axis] * direction[axis]
    closest /= square
    gap = np.ones_like(closest)
    for axis in axes:
        offset = origin[axis] + closest * direction[axis]
        gap -= offset * offset
    return closest, np.sqrt(np.maximum(gap, 0) / square), gap >= 0


def enter(shape: str, origin: Floats, direction: Floats, stretch: Floats) -> Floats:
    """Where rays enter a solid of half size one, in multiples of ``direction``; infinity where they miss."""
    if shape == "box":
        entries, exits = slabs(origin, direction, (0, 1, 2))
        distance = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
        met = distance <= np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    elif shape == "ellipsoid":
        closest, chord, met = disc(origin, direction, (0, 1, 2))
        distance = closest - chord
    elif shape == "cylinder":
        entries, exits = slabs(origin, direction, (1,))
        closest, chord, met = disc(origin, direction, (0, 2))
        distance = np.maximum(closest - chord, entries[0])
        met = met & (distance <= np.minimum(closest + chord, exits[0]))
    else:
        closest, chord, met = disc(origin, direction, (0, 2))
        side = closest - chord
        height = origin[1] + side * direction[1]
        end = np.clip(height, -stretch, stretch)
        cap, cap_chord, cap_met = disc(np.stack((origin[0], origin[1] - end, origin[2])), direction, (0, 1, 2))
        on_side = height == end
        distance = np.where(on_side, side, cap - cap_chord)
        met = met & (on_side | cap_met)
    return np.where(met & (distance > 0), distance, np.float32(np.inf))


def meet(
    geometry: Geometry, origin: Vector, solid: Integers, ray: Integers, direction: Floats
) -> tuple[Integers, Integers, Floats]:
    """The pairs (solid, ray) that hit: their solids, their rays, and the distances along the rays' ``direction`` (3 n)."""
    start = transformed(geometry.to_unit, (origin - geometry.centre).T.astype(np.float32))
    shapes = geometry.shape[solid]
    solids, rays, distances = [], [], []
    for code, shape in enumerate(SHAPES):
        pairs = np.flatnonzero(shapes == code)
        own, way = solid[pairs], ray[pairs]
        local = transformed(geometry.to_unit[:, :, own], direction[:, way])
        distance = enter(shape, start[:, own], local, geometry.stretch[own])
        met = np.flatnonzero(distance < np.inf)
        solids.append(own[met])
        rays.append(way[met])
        distances.append(distance[met])
    return np.concatenate(solids), np.concatenate(rays), np.concatenate(distances)
