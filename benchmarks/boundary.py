"""How many boundary maps are scored per second, and how many if every threshold is matched from scratch.

    python benchmarks/boundary.py [--root NYUDV2_FOLDER] [--images 40] [--again 1] [--workers 2]

Maps are 425x560; the labels are the outlines of the classes. A map holds the labelled outlines, displaced by a pixel or
two and of varying strength, the photo's gradients as false boundaries, and noise, so that a low threshold keeps very many
pixels. Without --root, smooth noise replaces the classes and the photo. For --again images every threshold is also matched
from scratch, by SciPy and by the matcher of this package; the numbers of pairs must be equal. SciPy takes up to half a
minute for a single threshold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mtlsi.metrics.boundary.curve import thresholds_of
from mtlsi.metrics.boundary.matching import Matcher
from mtlsi.metrics.boundary.score import boundary_counts, count_pairs
from mtlsi.metrics.boundary.suppression import suppress_non_maxima
from mtlsi.metrics.boundary.thinning import thin, thin_levels

SIZE, MAX_DIST, NUM_THRESHOLDS, NUM_IMAGES = (425, 560), 0.011, 99, 654


def make_pair(index: int, root: Path | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """A soft map (H W) float32 and its single label (H W) bool."""
    draw = np.random.default_rng(index)

    def smooth(sigma: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(draw.standard_normal(SIZE), sigma)
        return noise / noise.std()

    if root is None:
        photo, classes = smooth(2) + smooth(8), np.digitize(smooth(25), [-1.0, -0.3, 0.3, 1.0])
    else:
        name, crop = f"{index + 1:04d}", (slice(27, 452), slice(40, 600))
        photo = np.asarray(Image.open(root / "images" / f"{name}.jpg").convert("L"), dtype=np.float64)[crop]
        classes = np.asarray(Image.open(root / "segmentation" / f"{name}.png")).astype(int)[crop]
    label = ndimage.maximum_filter(classes, 2) != ndimage.minimum_filter(classes, 2)
    at = np.indices(SIZE) + 1.5 * np.stack([smooth(20), smooth(20)])
    moved = ndimage.gaussian_filter(ndimage.map_coordinates(label.astype(float), at, order=1), 1.5)
    gradient = ndimage.gaussian_gradient_magnitude(photo, 1.2)
    soft = moved / moved.max() * np.clip(0.5 + 0.3 * smooth(15), 0.05, 1)
    soft += 0.35 * np.clip(gradient / np.percentile(gradient, 99), 0, 1) + 0.02 * smooth(0.1)
    return np.clip(soft, 0, 1).astype(np.float32), [label]


def match_from_scratch(levels: list[np.ndarray], truth: np.ndarray, stride: int, distance: float) -> list[int]:
    """The number of pairs at each level, each level from scratch, with SciPy."""
    reach = int(distance)
    steps = [
        row * stride + column
        for row in range(-reach, reach + 1)
        for column in range(-reach, reach + 1)
        if row**2 + column**2 <= distance**2
    ]
    number = np.full((SIZE[0] + 2 * reach) * stride, -1)
    number[truth] = np.arange(len(truth))
    pairs = []
    for pixels in levels:
        partners = [number[pixels + step] for step in steps]
        rows = np.concatenate([np.flatnonzero(partner >= 0) for partner in partners])
        columns = np.concatenate([partner[partner >= 0] for partner in partners])
        graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(pixels), len(truth)))
        pairs.append(int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()) if len(rows) else 0)
    return pairs


def time_parts(soft: np.ndarray, label: np.ndarray, again: bool) -> dict[str, float]:
    """Seconds that each part takes for one image on one core."""
    thresholds, distance = thresholds_of(NUM_THRESHOLDS), MAX_DIST * float(np.hypot(*SIZE))
    rim = int(distance)
    stride = SIZE[1] + 2 * rim
    marks = {"": perf_counter()}
    ridges = suppress_non_maxima(soft, thresholds[0])
    marks["suppression"] = perf_counter()
    candidates, levels = thin_levels(ridges.astype(np.float64), thresholds, rim, True)
    levels = list(levels)
    truth = np.flatnonzero(np.pad(thin(label), rim)).astype(np.int32)
    marks["thinning"] = perf_counter()
    matcher = Matcher(candidates, truth, stride, distance, nearest=False)
    kept = [matcher.match(level).sum() for level in levels]
    marks["matching"] = perf_counter()
    if again:
        own = [Matcher(candidates, truth, stride, distance, nearest=False).match(level).sum() for level in levels]
        marks["from scratch, ours"] = perf_counter()
        scipy = match_from_scratch(levels, truth, stride, distance)
        marks["from scratch, SciPy"] = perf_counter()
        if not kept == own == scipy:
            raise SystemExit("the matchers differ")
    times = list(marks.values())
    return dict(zip(list(marks)[1:], np.diff(times), strict=True))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="folder with images/ and segmentation/ of NYUDv2")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--again", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    pairs = [make_pair(index, options.root) for index in range(options.images)]
    boundary_counts(*pairs[0], max_dist=MAX_DIST)  # compiles

    times = [time_parts(soft, label, index < options.again) for index, (soft, [label]) in enumerate(pairs)]
    seconds = {part: float(np.mean([one[part] for one in times if part in one])) for part in times[0]}
    before = seconds["suppression"] + seconds["thinning"]
    for part, value in seconds.items():
        rate = (
            f"   {1 / (before + value):7.3f} maps per second, in total"
            if part == "matching" or "scratch" in part
            else ""
        )
        print(f"{part:20} {value:8.3f} s per map{rate}")
    begin = perf_counter()
    for _ in count_pairs(pairs, max_dist=MAX_DIST, num_workers=options.workers):
        pass
    rate = len(pairs) / (perf_counter() - begin)
    minutes = NUM_IMAGES / rate / 60
    print(f"{options.workers} threads: {rate:.2f} maps per second, {NUM_IMAGES} maps in {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
