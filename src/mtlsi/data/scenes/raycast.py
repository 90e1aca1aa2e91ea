"""Ray-casts a scene: what each pixel's ray hits first, and where a light is blocked.

Candidate pairs of a ray and a solid are listed first (from the solid's bounding rectangle in the image, or from its
bounding ball on the way to a light), then intersected all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlsi.data.scenes.geometry import (
    NUM_SURFACES,
    SHAPES,
    TINY,
    Floats,
    Geometry,
    Integers,
    disc,
    dot,
    meet,
    slabs,
    transformed,
)
from mtlsi.data.scenes.layout import Camera, Scene
from mtlsi.data.scenes.shapes import Vector


def intrinsics(camera: Camera, size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels, with pixel centres at whole numbers."""
    focal = camera.focal * max(size_hw)
    return focal, focal, (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2


def view_rays(camera: Camera, size_hw: tuple[int, int]) -> Floats:
    """One ray (3 n) per pixel, row by row, in the room's frame, scaled so that its depth is one."""
    fx, fy, cx, cy = intrinsics(camera, size_hw)
    v, u = np.divmod(np.arange(size_hw[0] * size_hw[1]), size_hw[1])
    x, y = ((u - cx) / fx).astype(np.float32), ((cy - v) / fy).astype(np.float32)
    right, up, back = (np.array(axis, np.float32)[:, None] for axis in (camera.right, camera.up, camera.back))
    return x * right + y * up - back


def _rectangles(geometry: Geometry, camera: Camera, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """(solids 4): top, bottom, left, right of the pixels that a solid can cover; the whole image for one at the camera."""
    fx, fy, cx, cy = intrinsics(camera, size_hw)
    signs = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    along = geometry.spread.copy()
    along[:, 1] *= (1 + geometry.stretch)[:, None]
    corners = (
        geometry.centre[:, None]
        - camera.position
        + sum(signs[:, axis, None] * along[:, None, axis] for axis in range(3))
    )
    axes = np.array((camera.right, camera.up, camera.back))
    x, y, depth = (dot(axis, np.moveaxis(corners, 2, 0)) for axis in axes * ((1.0,), (1.0,), (-1.0,)))
    ahead = np.maximum(depth, 0.02)
    u, v = cx + fx * x / ahead, cy - fy * y / ahead
    height, width = size_hw
    edges = np.stack((v.min(1), v.max(1) + 1, u.min(1), u.max(1) + 1), 1)
    edges = np.where((depth > 0.02).all(1, keepdims=True), edges, (0, height, 0, width))
    edges = np.where((depth > 0.02).any(1, keepdims=True), edges, 0)
    whole = np.floor(np.clip(edges, -1, max(size_hw) + 1)).astype(np.int64)
    whole[:, 1::2] += 1
    return np.clip(whole, 0, (height, height, width, width))


@dataclass(frozen=True)
class Hits:
    """What each of n pixels sees, row by row: ``depth`` along the optical axis, the ``solid`` (its index in the
    geometry), ``point`` and ``normal`` (3 n) in the room's frame, ``local`` (3 n) the point in the solid's own frame.
    """

    depth: Floats
    solid: Integers
    point: Floats
    normal: Floats
    local: Floats


def _room(size: Vector, position: Vector, direction: Floats) -> tuple[Floats, Integers]:
    """Where rays from inside leave the room, and through which of the six planes."""
    exits = []
    for axis in range(3):
        inverse = 1 / (direction[axis] + np.float32(TINY))
        low, high = np.float32(-position[axis]) * inverse, np.float32(size[axis] - position[axis]) * inverse
        exits.append(np.maximum(low, high))
    axis = np.argmin(np.stack(exits), 0)
    depth = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    positive = direction[axis, np.arange(axis.size)] > 0
    return depth, 2 * axis + positive


def _nearest(
    geometry: Geometry, camera: Camera, size_hw: tuple[int, int], direction: Floats
) -> tuple[Floats, Integers]:
    """For each pixel the nearest solid other than the room's surfaces: distance (infinity: none) and index."""
    grid = np.arange(size_hw[0] * size_hw[1]).reshape(size_hw)
    rectangles = _rectangles(geometry, camera, size_hw)[NUM_SURFACES:].tolist()
    pieces = [grid[top:bottom, left:right].ravel() for top, bottom, left, right in rectangles]
    ray = np.concatenate([grid[0, :0], *pieces])
    solid = np.repeat(np.arange(NUM_SURFACES, NUM_SURFACES + len(pieces)), [piece.size for piece in pieces])
    solid, ray, distance = meet(geometry, camera.position, solid, ray, direction)
    # The bits of positive floats sort like the floats, so one integer minimum finds distance and solid.
    keys = distance.view(np.uint32).astype(np.uint64) << np.uint64(32) | solid.astype(np.uint64)
    best = np.full(grid.size, np.uint64(np.float32(np.inf).view(np.uint32)) << np.uint64(32))
    np.minimum.at(best, ray, keys)
    return (best >> np.uint64(32)).astype(np.uint32).view(np.float32), (best & np.uint64(0xFFFFFFFF)).astype(np.int64)


def cast(scene: Scene, geometry: Geometry, size_hw: tuple[int, int]) -> Hits:
    """What every pixel of an image of this size sees."""
    camera = scene.camera
    direction = view_rays(camera, size_hw)
    depth, solid = _room(scene.size, camera.position, direction)
    near, nearest = _nearest(geometry, camera, size_hw, direction)
    closer = near < depth
    depth, solid = np.where(closer, near, depth), np.where(closer, nearest, solid)
    point = np.array(camera.position, np.float32)[:, None] + depth * direction
    normal, local = np.zeros_like(point), point.copy()
    for plane in range(NUM_SURFACES):
        normal[plane // 2, solid == plane] = 1 if plane % 2 == 0 else -1
    rows = np.flatnonzero(closer)
    own = solid[rows]
    to_unit = geometry.to_unit[:, :, own]
    start = transformed(to_unit, (camera.position - geometry.centre).T.astype(np.float32)[:, own])
    heading = transformed(to_unit, direction[:, rows])
    outward = transformed(to_unit.swapaxes(0, 1), _outward(geometry, own, start, heading, depth[rows]))
    normal[:, rows] = outward / np.sqrt(dot(outward, outward))
    local[:, rows] = (start + depth[rows] * heading) * geometry.half[own].T
    return Hits(depth, solid, point, normal, local)


def _outward(geometry: Geometry, solid: Integers, start: Floats, heading: Floats, depth: Floats) -> Floats:
    """The outward normal (any length) where rays enter their solids, in the frame of half size one."""
    shape, stretch = geometry.shape[solid], geometry.stretch[solid]
    is_box, is_cylinder = shape == SHAPES.index("box"), shape == SHAPES.index("cylinder")
    point = start + depth * heading
    point[1] -= np.clip(point[1], -stretch, stretch)
    entries, _ = slabs(start, heading, (0, 1, 2))
    lateral, chord, _ = disc(start, heading, (0, 2))
    face = np.argmax(np.stack(entries), 0)
    on_cap = is_cylinder & (entries[1] >= lateral - chord)
    flat = is_box | on_cap
    face = np.where(on_cap, 1, face)
    for axis in range(3):
        side = np.where(face == axis, -np.sign(heading[axis]), np.float32(0))
        round_side = np.where(is_cylinder, np.float32(0), point[axis]) if axis == 1 else point[axis]
        point[axis] = np.where(flat, side, round_side)
    return point


def blocked(scene: Scene, geometry: Geometry, light: Vector, hits: Hits, pixels: Integers) -> NDArray[np.bool_]:
    """For each of ``pixels``: True where its surface faces the light (a point of the room) and a solid hides it."""
    way = hits.point[:, pixels] - np.array(light, np.float32)[:, None]
    facing = np.flatnonzero(dot(way, hits.normal[:, pixels]) < 0)
    way = way[:, facing]
    centre = geometry.centre - light
    reach = np.sqrt((geometry.spread**2).sum((1, 2))) * (1 + geometry.stretch)
    solids, rays = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ends = np.searchsorted(geometry.instance, np.arange(NUM_SURFACES, NUM_SURFACES + len(scene.items) + 1)).tolist()
    for item, begin, end in zip(scene.items, ends[:-1], ends[1:], strict=True):
        if not item.casts_shadow:
            continue
        middle, radius = _ball_around(centre[begin:end], reach[begin:end])
        near = np.flatnonzero(_through_balls(way, middle, radius))
        own = centre[begin:end].T[:, :, None].astype(np.float32)
        close = _through_balls(way[:, None, near], own, reach[begin:end, None].astype(np.float32))
        solid, ray = np.nonzero(close)
        solids.append(begin + solid)
        rays.append(near[ray])
    _, met, distance = meet(geometry, light, np.concatenate(solids), np.concatenate(rays), way)
    hidden = np.zeros(pixels.size, bool)
    hidden[facing[met[distance < 0.998]]] = True
    return hidden


def _ball_around(centre: NDArray, reach: NDArray) -> tuple[Floats, np.float32]:
    """A ball that contains several balls: centre (3) and radius."""
    middle = ((centre - reach[:, None]).min(0) + (centre + reach[:, None]).max(0)) / 2
    radius = (np.sqrt(((centre - middle) ** 2).sum(1)) + reach).max()
    return middle.astype(np.float32), np.float32(radius)


def _through_balls(way: Floats, centre: Floats, radius: Floats | np.float32) -> NDArray[np.bool_]:
    """True where the segment from the origin to ``way`` passes through a ball; arguments are broadcast."""
    along = dot(way, centre)
    square = dot(way, way)
    share = np.clip(along / square, 0, 1)
    return dot(centre, centre) - share * (2 * along - share * square) < radius * radius
