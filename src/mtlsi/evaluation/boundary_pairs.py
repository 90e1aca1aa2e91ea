"""Which soft map of one folder belongs to which truth of another, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtlsi.data.readers.file_names import SEPARATORS, files_below, name_of_file, without_words
from mtlsi.errors import MistakeError
from mtlsi.io import holds

USUAL = (".png", ".npy", ".mat")
OTHERS = (".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""Taken where no file of that name is one of ``USUAL``: a JPEG beside a map may be the photo."""
MAP_WORDS = ("boundary", "boundaries", "edge", "edges", "contour", "contours", "pred")
"""What may stand before or after an image's name; ``mtlsi predict`` writes NAME_boundary.npy."""
TRUTH_WORDS = (*MAP_WORDS, "gt", "groundtruth", "label", "mask")
EXPECTED = "NAME.png, NAME.npy, NAME.mat or NAME_boundary.npy"


@dataclass(frozen=True)
class Pairs:
    """Which map belongs to which truth."""

    files: dict[str, tuple[Path, Path]]
    """By the name of the truth, map and truth of every image."""
    without_truth: list[str]
    """Maps that belong to no truth, relative to their folder."""


def find_pairs(predictions: Path, truth: Path) -> Pairs:
    """The map and the truth of every image of the folder ``truth``, subfolders in.

    Names are those of the images, or have common words before or after them, ``MAP_WORDS`` and ``TRUTH_WORDS``, in the two
    folders each in its own way. Raises ``MistakeError`` for a folder without such files, a missing map, and an image of
    which there are two files.
    """
    maps, truths = _files(predictions), _files(truth)
    by_name: dict[str, list[str]] = {}
    for stem in maps:
        for name in {stem, without_words(stem, MAP_WORDS) or stem}:
            by_name.setdefault(name, []).append(stem)
    found: dict[str, tuple[Path, Path]] = {}
    missing, taken = [], {}
    for stem, paths in truths.items():
        stems = _stems_of(stem, by_name, truths)
        if not stems:
            missing.append(stem)
            continue
        chosen = _only(predictions, [path for one in stems for path in maps[one]])
        found[stem] = chosen, _only(truth, paths)
        if taken.setdefault(chosen, stem) != stem:
            raise MistakeError(f"{truth}: both {taken[chosen]} and {stem} fit {chosen.name}; keep one of them")
    if missing:
        folded = {stem.casefold(): stem for stem in maps}
        other = next((folded[stem.casefold()] for stem in missing if stem.casefold() in folded), None)
        hint = f" ({other} differs in upper and lower case)" if other else ""
        raise MistakeError(
            f"{predictions}: no map for {len(missing)} of the {len(truths)} images of {truth}, such as "
            f"{missing[0]}{hint}; add the maps, {EXPECTED}, or take the images out of the truth"
        )
    return Pairs(found, _left(maps, [path for path, _ in found.values()], truths))


def _files(folder: Path) -> dict[str, list[Path]]:
    """By path without the suffix, below ``folder``, in NFC."""
    found: dict[str, list[Path]] = {}
    for place in files_below(folder):
        if Path(place).suffix.lower() in (*USUAL, *OTHERS):
            found.setdefault(name_of_file(place), []).append(folder / place)
    if not found:
        raise MistakeError(f"{folder}: {holds(folder)}; expected files {EXPECTED}")
    return {
        stem: [path for path in paths if path.suffix.lower() in USUAL] or paths for stem, paths in sorted(found.items())
    }


def _stems_of(truth: str, by_name: Mapping[str, list[str]], truths: Iterable[str]) -> list[str]:
    """The maps' stems that fit a truth's; a map of exactly another truth's name is that one's."""
    for name in dict.fromkeys((truth, without_words(truth, TRUTH_WORDS) or truth)):
        if stems := [stem for stem in by_name.get(name, ()) if stem == name or stem not in truths]:
            return stems
    return []


def _only(folder: Path, paths: list[Path]) -> Path:
    """Of ``mtlsi predict``'s NAME_boundary.npy and NAME_boundary.png the first: the other is to be looked at."""
    if len({path.stem for path in paths}) == 1 and paths[0].stem.endswith("_boundary"):
        paths = [path for path in paths if path.suffix == ".npy"] or paths
    if len(paths) > 1:
        raise MistakeError(f"{folder}: both {paths[0].name} and {paths[1].name}; keep one of them")
    return paths[0]


def _left(maps: Mapping[str, list[Path]], chosen: Sequence[Path], truths: Iterable[str]) -> list[str]:
    """The maps that no truth took, but for other files of the same images, such as NAME_depth.npy of ``mtlsi predict``."""
    taken, names = {*chosen}, {name for stem in truths for name in (stem, without_words(stem, TRUTH_WORDS))}
    left = []
    for stem, paths in maps.items():
        beginnings = (stem[:end] for end, sign in enumerate(stem) if sign in SEPARATORS)
        if not taken.intersection(paths) and stem not in names and not any(one in names for one in beginnings):
            left.append(paths[0].name)
    return left
