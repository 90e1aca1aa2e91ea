"""A few pictures from all over a clip, found without reading all of it: for what is to be the same from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from mtlsi.images import FilePath
from mtlsi.prediction.clips.reading import open_clip

MOST_SAMPLES = 9
NEAR_S = 10
"""Pictures closer together are reached by decoding what is between them, others by seeking."""


def sample_clip(path: FilePath, most_frames: int | None = None) -> Iterator[np.ndarray]:
    """Pictures ``(H W 3) uint8`` spread evenly over a video, or over its first ``most_frames``.

    One of ten, at least one, at most ``MOST_SAMPLES``. The first alone where the length is not known; fewer where the file
    cannot be searched. What is broken is passed over in silence: whoever reads the clip names it.
    """
    with open_clip(path) as clip:
        duration_s, num_frames = clip.duration_s or 0.0, clip.num_frames or 1
        if most_frames is not None and most_frames < num_frames:
            duration_s, num_frames = duration_s * most_frames / num_frames, most_frames
        count = min(MOST_SAMPLES, max(1, num_frames // 10)) if duration_s else 1
        pictures, reached_s = clip.pictures(), Fraction(0)
        for place in range(count):
            wanted_s = Fraction(duration_s) * (2 * place + 1) / (2 * count)
            if wanted_s - reached_s > NEAR_S:
                if not clip.seek(wanted_s):
                    break
                pictures = clip.pictures()
            latest = None
            for reached_s, frame in pictures:
                latest = frame
                if reached_s >= wanted_s:
                    break
            if latest is not None:
                yield clip.upright(latest)
