"""A generated room seen by a camera that moves: frames with exact labels, poses and intrinsics.

A pose is the matrix (4 4) that takes a point of the camera's frame (x right, y up, z towards the camera, metres) to the
room's: its columns are the camera's axes and its position. A pixel (u, v) of depth d is the point
((u - cx) d / fx, (cy - v) d / fy, -d); the pose of one frame and the inverse of another's take it to the other's pixel.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mtlsi.data.scenes.dataset import check_arguments, labels_of
from mtlsi.data.scenes.geometry import Geometry, gather
from mtlsi.data.scenes.layout import Camera, Scene, build
from mtlsi.data.scenes.moves import MOTIONS, Move, moved
from mtlsi.data.scenes.raycast import cast, intrinsics
from mtlsi.data.scenes.shading import brightness_of, develop, seen_light
from mtlsi.data.scenes.shapes import Dice, Vector
from mtlsi.errors import MistakeError

CLEARANCE = 0.15
"""Metres that the camera keeps from everything in the room."""
SAME_SURFACE = 0.02
"""Two depths of one point differ by less than this share."""


class ScenePath:
    """One room along a camera path: ``ScenePath(7, motion="orbit").frame(12)``; 30 frames are a second.

    ``motion``: ``pan`` turns the camera to and fro, ``dolly`` carries it forward and back, ``orbit`` round a point ahead
    that it keeps looking at, ``hand`` is held still by a hand that is not. Frame 0 is ``render_scene``'s image of the same
    index; the path has no end, and what a frame shows depends on (seed, index, motion, frame) alone. The exposure is that
    of frame 0, and every frame has noise of its own. Ways are halved until the camera keeps ``CLEARANCE`` from all things;
    where it begins nearer to some, it goes no way at all.
    Raises ``MistakeError`` for an unknown motion and for what ``render_scene`` refuses.
    """

    def __init__(
        self,
        index: int,
        *,
        motion: str = "pan",
        seed: int = 0,
        size_hw: tuple[int, int] = (120, 160),
        label_set: str = "nyud",
    ) -> None:
        check_arguments(index, seed, size_hw, label_set)
        if motion not in MOTIONS:
            raise MistakeError(f"motion given: {motion!r}; expected one of {', '.join(MOTIONS)}")
        self.index, self.motion, self.seed = index, motion, seed
        self.size_hw, self.label_set = (int(size_hw[0]), int(size_hw[1])), label_set
        self._scene = build(Dice(seed, index))
        self._geometry = gather(self._scene)
        self._move = self._with_clearance()

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy) in pixels, as ``scene_intrinsics`` gives them: the same for every frame."""
        return intrinsics(self._scene.camera, self.size_hw)

    def pose(self, frame: int) -> NDArray[np.float64]:
        """From the camera's frame to the room's (4 4)."""
        camera, matrix = self._camera(frame), np.eye(4)
        matrix[:3] = np.array((camera.right, camera.up, camera.back, camera.position)).T
        return matrix

    def frame(self, number: int) -> dict[str, NDArray]:
        """``image`` (H W 3) uint8 and the label of each task, as ``render_scene`` gives them."""
        scene = replace(self._scene, camera=self._camera(number))
        hits = cast(scene, self._geometry, self.size_hw)
        linear = seen_light(scene, self._geometry, hits, self.size_hw)
        grain = Dice(self.seed, self.index, stream=1 if number == 0 else 2 + number)
        image = develop(linear, self._brightness, scene.mood, grain, self.size_hw)
        return {"image": image, **labels_of(scene, self._geometry, hits, self.size_hw, self.label_set)}

    @cached_property
    def _brightness(self) -> float:
        """Of frame 0."""
        hits = cast(self._scene, self._geometry, self.size_hw)
        return brightness_of(seen_light(self._scene, self._geometry, hits, self.size_hw))

    def _camera(self, frame: int) -> Camera:
        if frame < 0:
            raise MistakeError(f"frame given: {frame}; expected 0 or more")
        return moved(self._scene.camera, self._move(frame))

    def _with_clearance(self) -> Move:
        """The motion, its way halved until nothing is near."""
        for way in (1.0, 0.5, 0.25, 0.125):
            move = MOTIONS[self.motion](Dice(self.seed, self.index, stream=2), way)
            places = (moved(self._scene.camera, move(frame)).position for frame in range(0, 300, 6))
            if all(clearance(self._scene, self._geometry, place) >= CLEARANCE for place in places):
                return move
        return MOTIONS[self.motion](Dice(self.seed, self.index, stream=2), 0.0)


def clearance(scene: Scene, geometry: Geometry, place: Vector) -> float:
    """Metres from a place in the room to the nearest wall or box around a solid; 0 inside one."""
    walls = min(min(x, size - x) for x, size in zip(place, scene.size, strict=True))
    offset = place - geometry.centre  # solids 3
    half = geometry.half.astype(np.float64)
    local = (geometry.to_unit.transpose(2, 0, 1) @ offset[:, :, None])[..., 0] * half
    reach = half * np.stack((np.ones(len(half)), 1 + geometry.stretch, np.ones(len(half))), 1)
    outside = np.maximum(np.abs(local) - reach, 0)[6:]  # behind the six planes
    return min(walls, float(np.sqrt((outside**2).sum(1)).min(initial=np.inf)))


def seen_from(
    depth: NDArray, pose: NDArray, other_pose: NDArray, lens: tuple[float, float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where another frame shows the points of this one: columns, rows (fractions of pixels) and depths there, each (H W).

    ``depth`` (H W) and ``pose`` are this frame's, ``lens`` is (fx, fy, cx, cy). A depth of 0 or less lies behind the other
    camera.
    """
    fx, fy, cx, cy = lens
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    points = np.stack(((u - cx) / fx, (cy - v) / fy, -np.ones(depth.shape)))
    motion = np.linalg.inv(other_pose) @ pose
    x, y, z = np.tensordot(motion[:3, :3], points * depth, 1) + motion[:3, 3, None, None]
    ahead = np.where(z < 0, -z, np.nan)
    return cx + fx * x / ahead, cy - fy * y / ahead, -z


def visible_in(
    columns: NDArray, rows: NDArray, depths: NDArray, other_depth: NDArray, tolerance: float = SAME_SURFACE
) -> NDArray[np.bool_]:
    """Where the other frame shows the very points that ``seen_from`` found: where it has their depth.

    Its depth between pixels is interpolated as its inverse, which is linear in a plane's image.
    """
    height, width = other_depth.shape
    with np.errstate(invalid="ignore"):
        inside = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1) & (depths > 0)
    x, y = (np.where(inside, place, 0) for place in (columns, rows))
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    inverse, across, down = 1 / other_depth.astype(np.float64), x - left, y - top
    upper = inverse[top, left] * (1 - across) + inverse[top, right] * across
    lower = inverse[bottom, left] * (1 - across) + inverse[bottom, right] * across
    return inside & (np.abs(depths * (upper * (1 - down) + lower * down) - 1) < tolerance)
