"""Directions of a folder of one's own: unit vectors, or a line that says what they are instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import as_vectors, decode_npy, is_npy, lengths_of, unit_vectors, vectors_of_image
from mtlsi.data.readers.label_pixels import percent
from mtlsi.errors import MistakeError

NOTHING = 0.1
"""A vector shorter than this is no label: (0, 0, 0), or the middle grey of an image, which 8 bits miss by a hundredth."""
SHORT, LONG = 0.9, 1.1
BLENDED = 0.5
"""Resizing blends neighbours, down to half their length where they stand at 120 degrees: still a direction."""
MOST_STRAY, MOST_BLENDED = 0.001, 0.1
"""Shares of a file's vectors that may be of an impossible length, and blended ones; impossible ones get no label."""


def decode_vectors(path: Path, content: bytes, *, axes: Sequence[int], key: str, facing: bool) -> np.ndarray:
    """Unit vectors (3 H W), each axis times its sign in ``axes``, (0, 0, 0) where there is no label.

    No label: (0, 0, 0), in an image also black, white and opacity 0. ``facing``: what the camera sees faces it, z towards
    the camera; ``key`` is where ``axes`` stands. Raises ``MistakeError`` for vectors far from unit length and for a map
    whose larger part looks away from the camera.
    """
    stored = decode_npy(path, content) if is_npy(path) else vectors_of_image(path, content)
    vectors = as_vectors(path, stored)
    lengths = lengths_of(vectors)
    labelled = lengths >= NOTHING
    if labelled.any():
        _check_lengths(path, vectors, lengths, labelled)
    possible = (lengths >= BLENDED) & (lengths <= LONG)
    found = unit_vectors(vectors, lengths, possible)
    for axis, sign in zip(found, axes, strict=True):
        axis *= sign
    if facing and possible.mean() > 0.01:
        _check_facing(path, found[2][possible], axes, key)
    return found


def _check_lengths(path: Path, vectors: np.ndarray, lengths: np.ndarray, labelled: np.ndarray) -> None:
    of_labelled = lengths[labelled]
    if is_npy(path) and vectors.min() >= 0 and _is_shifted(vectors[:, labelled], of_labelled):
        raise MistakeError(
            f"{path}: vectors stored as 0..1 (2 v - 1 has unit length, v has not); expected -1..1; store 2 v - 1"
        )
    stray = (of_labelled < BLENDED) | (of_labelled > LONG)
    blended = (of_labelled < SHORT) & ~stray
    if stray.mean() <= MOST_STRAY and blended.mean() <= MOST_BLENDED:
        return
    far = of_labelled[stray | blended]
    advice = "normalise them; a map that was resized takes the nearest pixel"
    if is_npy(path) and vectors.min() >= 0 and vectors.max() > 2:
        advice = "they seem to be the channels c of an image: store 2 c / 255 - 1"
    raise MistakeError(
        f"{path}: {percent(far.size / lengths.size)} of its pixels hold vectors far from unit length, {far.min():.2g} to "
        f"{far.max():.3g} long; expected unit vectors, and (0, 0, 0), black or white where there is none; {advice}"
    )


def _is_shifted(vectors: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether 2 v - 1 has unit length more often than v, and often."""
    return _share(lengths_of(2 * vectors - 1)) > max(0.2, _share(lengths))


def _share(lengths: np.ndarray) -> float:
    """How many of these are 1, as far as 8 bits can tell."""
    return float((np.abs(lengths - 1) < 0.02).mean())


def _check_facing(path: Path, z: np.ndarray, axes: Sequence[int], key: str) -> None:
    """Choice: more than half of the labels with z below -0.1; at the edge of a wide view some surfaces may have it."""
    away = float((z < -0.1).mean())
    if away > 0.5:
        shown, turned = list(axes), [axes[0], axes[1], -axes[2]]
        both = f"{turned}, or {[axes[0], -axes[1], -axes[2]]} where y points the other way, too"
        raise MistakeError(
            f"{path}: {percent(away)} of its normals look away from the camera, by {key} {shown}; expected x right, y "
            f"up, z towards the camera; give {key} {both}"
        )
