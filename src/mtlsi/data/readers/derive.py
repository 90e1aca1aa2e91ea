"""Labels that follow from other labels: boundaries from a label map, normals from depth. Pure functions, no files.

They are training signals, not a benchmark's own labels: wherever a number rests on them it is called derived.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import distance_transform_edt, grey_opening, uniform_filter

from mtlsi.tasks import invalid_class

DERIVE_VERSION = 1
"""Raised whenever a function here gives other values for the same labels, so that stored results are made again."""

NYU_FOCAL_XY = (518.86, 519.47)
NYU_CENTRE_XY = (325.58, 253.74)
NYU_DEPTH_STEP_M = 1 / 25.5

WORKING_SHORT_SIDE = 240
"""Normals are fitted on a grid thinned to about this many rows: a quarter of the cost for a pixel or two of detail."""
WINDOW_SIZES = (7, 11, 17, 25, 37, 55, 81)
"""Sides of the square windows on the working grid; all odd."""
WINDOW_SHIFTS = (-0.8, -0.4, 0.0, 0.4, 0.8)
"""Where a pixel may sit in a window that speaks for it, as a fraction of the window's half side, along each axis."""


def boundaries_from_labels(labels: np.ndarray, max_crack: int = 10) -> np.ndarray:
    """Boundary map (H W) uint8 of a label map (H W): 1 where the label changes, 0 where it does not, 255 unknown.

    Each pixel answers for two pairs, with its right and with its lower neighbour: 1 if one of the pairs has two
    different labels; else 255 if it or one of these neighbours is unlabelled; else 0. Lines are one pixel wide.

    Choice: an unlabelled neighbour is no evidence for a boundary nor against one, hence 255. But NYUDv2's annotators
    left cracks between their regions, and with those unknown hardly a boundary would remain. So unlabelled pixels in
    cracks at most ``max_crack`` pixels wide first take the nearest label: the boundary runs down the middle of the
    crack. Wider unlabelled areas, and the unlabelled frame around an image, stay unknown.
    """
    labels = _fill_cracks(labels, max_crack)
    known = labels != invalid_class(labels.dtype)
    changes, unknown = np.zeros(labels.shape, bool), ~known
    for here, there in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        changes[here] |= known[here] & known[there] & (labels[here] != labels[there])
        unknown[here] |= ~known[there]
    return np.where(changes, 1, np.where(unknown, 255, 0)).astype(np.uint8)


def _fill_cracks(labels: np.ndarray, max_crack: int) -> np.ndarray:
    """``labels``, with the nearest label in unlabelled pixels that no unlabelled square of ``max_crack`` + 1 covers."""
    unlabelled = labels == invalid_class(labels.dtype)
    if max_crack < 1 or not unlabelled.any() or unlabelled.all():
        return labels
    # Beyond the image counts as unlabelled, so that the frame is a wide area and not a crack.
    padded = np.pad(unlabelled, max_crack + 1, constant_values=True).astype(np.uint8)
    wide = grey_opening(padded, size=(max_crack + 1, max_crack + 1))[
        max_crack + 1 : -max_crack - 1, max_crack + 1 : -max_crack - 1
    ]
    _, (rows, columns) = distance_transform_edt(unlabelled, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    return np.where(unlabelled & (wide == 0), labels[rows, columns], labels)


def normals_from_depth(
    depth_m: np.ndarray,
    *,
    focal_xy: tuple[float, float] = NYU_FOCAL_XY,
    centre_xy: tuple[float, float] = NYU_CENTRE_XY,
    step_m: float | None = NYU_DEPTH_STEP_M,
    noise_per_m: float = 2e-3,
) -> np.ndarray:
    """Unit surface normals (3 H W) float32, x right, y up, z towards the camera, of a depth map (H W) in metres.

    The pixel at column u, row v lies on the ray x = (u - centre x) / focal x, y = (centre y - v) / focal y; the
    camera's numbers are those of the given map's own size. Where depth is not finite or not positive, the normal is
    (0, 0, 0), invalid.

    Model: a scene is planes piece by piece, and a plane's inverse depth is an affine function of the ray,
    1 / z = a x + b y + c, with the normal along (-a, -b, c). Inverse depth is known to a tolerance: a depth stored in
    steps of ``step_m`` (None: not in steps) is off by up to half a step, evenly (variance step^2 / 12), and a sensor
    adds noise that is constant in inverse depth (``noise_per_m``, standard deviation in 1 / m). Planes are fitted by
    least squares in windows of several sizes. A pixel's plane is the mean over all windows that hold it, off centre
    too, weighted by three factors: the window's size, because the error of a slope in steps falls with it; how well the
    window's residual agrees with the tolerance, which rules out windows across a crease or a jump; and how near the
    pixel itself lies to the plane. So a flat wall is judged by windows far wider than a step of its depth, and at a
    crease the windows on the pixel's own side decide.

    Choice: 2e-3 / m lies above a Kinect's random noise (about 1.4e-3), for its depth is also warped a little over a
    whole wall; with less, walls show blotches, with more, things as flat as a cup melt into the wall. Near depth jumps
    smeared by in-painting no plane is right and the normals there are a compromise.
    """
    valid = np.isfinite(depth_m) & (depth_m > 0)
    stride = max(1, round(min(depth_m.shape) / WORKING_SHORT_SIDE))
    known = valid[::stride, ::stride]
    inverse = np.where(known, 1 / np.where(known, depth_m[::stride, ::stride], 1).astype(np.float64), 0)
    rows, columns = (np.asarray(axis * stride) for axis in np.indices(known.shape))
    rays = np.asarray((columns - centre_xy[0]) / focal_xy[0]), np.asarray((centre_xy[1] - rows) / focal_xy[1])
    precision = known / ((step_m or 0.0) ** 2 / 12 * inverse**4 + noise_per_m**2)

    planes = _blended_planes(rays, inverse, precision)
    directions = planes * np.array([-1, -1, 1], np.float32)[:, None, None]
    length = np.sqrt((directions**2).sum(0))
    normals = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
    height, width = depth_m.shape
    return normals.repeat(stride, 1).repeat(stride, 2)[:, :height, :width] * valid


def _blended_planes(rays: tuple[np.ndarray, np.ndarray], inverse: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The plane (a, b, c) of every pixel, (3 H W) float32: the weighted mean over all windows that hold it."""
    x, y, values, weights = (a.astype(np.float32) for a in (*rays, inverse, precision))
    total = np.zeros((3, *inverse.shape), np.float32)
    total_weight = np.zeros(inverse.shape, np.float32)
    for size in WINDOW_SIZES:
        planes, trust = _window_planes(*rays, inverse, precision, size)
        for window, pixel in _shifts(inverse.shape, size // 2):
            a, b, c = (plane[window] for plane in planes)
            misfit = values[pixel] - (a * x[pixel] + b * y[pixel] + c)
            # Tails like a power's, not a Gaussian's: a pixel that no window fits still takes the least bad one.
            weight = trust[window] / (1 + 0.5 * misfit * misfit * weights[pixel]) ** 2
            for channel, plane in enumerate((a, b, c)):
                total[channel][pixel] += weight * plane
            total_weight[pixel] += weight
    return np.divide(total, total_weight, out=np.zeros_like(total), where=total_weight > 0)


def _window_planes(
    x: np.ndarray, y: np.ndarray, inverse: np.ndarray, precision: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares plane (3 H W) of the window centred on every pixel, and the trust (H W) in it; both float32."""

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, size, mode="constant")

    share = mean((precision > 0).astype(np.float64))
    enough = share > 0.2  # a window centred on the image's corner still has a quarter of itself inside
    weight = np.where(enough, mean(precision), 1)
    mean_x, mean_y, mean_i = (mean(precision * a) / weight for a in (x, y, inverse))

    def covariance(a: np.ndarray, b: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray) -> np.ndarray:
        return mean(precision * a * b) / weight - mean_a * mean_b

    xx, xy, yy = covariance(x, x, mean_x, mean_x), covariance(x, y, mean_x, mean_y), covariance(y, y, mean_y, mean_y)
    xi, yi = covariance(x, inverse, mean_x, mean_i), covariance(y, inverse, mean_y, mean_i)
    determinant = xx * yy - xy * xy
    enough &= determinant > 1e-6 * (xx + yy) ** 2
    determinant = np.where(enough, determinant, 1)
    a, b = (yy * xi - xy * yi) / determinant, (xx * yi - xy * xi) / determinant
    residual = covariance(inverse, inverse, mean_i, mean_i) - a * xi - b * yi
    # Residual in units of its expectation: about 1 where the window is one plane, whatever the depth.
    excess = np.maximum(residual * weight / np.where(enough, share, 1) - 0.8, 0)
    trust = np.where(enough, float(size) ** 4 / (1 + 4 * excess**2) ** 6, 0)
    planes = np.where(enough, np.stack((a, b, mean_i - a * mean_x - b * mean_y)), 0)
    return planes.astype(np.float32), trust.astype(np.float32)


def _shifts(shape: tuple[int, ...], half: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For every shift of the window: where the windows' centres are, and where the pixels that they then speak for."""
    offsets = [round(fraction * half) for fraction in WINDOW_SHIFTS]
    for down in offsets:
        for right in offsets:
            if abs(down) < shape[0] and abs(right) < shape[1]:
                spans = [(n, offset) for n, offset in zip(shape, (down, right), strict=True)]
                window = tuple(slice(max(offset, 0), n + min(offset, 0)) for n, offset in spans)
                pixel = tuple(slice(max(-offset, 0), n + min(-offset, 0)) for n, offset in spans)
                yield window, pixel  # pyright: ignore[reportReturnType]
