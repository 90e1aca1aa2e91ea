"""What the results of each image begin with: the same for every run, as short as keeps them apart."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.io import LONGEST_NAME, fitting, number_of
from mtlsi.prediction.walk import Found, Walk


class Names:
    """Names of results, below the results' folder and with slashes: ``a`` or ``kitchen/a``.

    Where two images would share one, in any letter case, their endings, then their folder's name, then a number made of
    their path are added. A name that would be too long with ``longest_ending`` after it is cut, and a number made of all of
    it added. Takes 8 bytes an image: of all names only a hash is kept. ``num_images`` counts them.
    """

    def __init__(self, images: Callable[[], Iterable[Found]], longest_ending: int):
        self.room = LONGEST_NAME - longest_ending - 1
        self.shared: list[np.ndarray] = []
        while len(self.shared) < len(SPELLINGS) - 1:
            hashes = np.sort(
                np.frombuffer(array("Q", (number_of(self.of(image).casefold()) for image in images())), np.uint64)
            )
            self.num_images = len(hashes)
            self.shared.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
            if not len(self.shared[-1]):
                break

    def of(self, image: Found) -> str:
        """The name of an image's results."""
        name = ""
        for level in range(len(self.shared) + 1):
            name = image.below + fitting(SPELLINGS[level](image), self.room)
            if not any(_holds(shared, number_of(name.casefold())) for shared in self.shared[level:]):
                break
        return name

    def is_cut(self, image: Found) -> bool:
        """Whether the image's own name leaves no room for what the results' names end in."""
        return len(os.fsencode(image.path.stem)) > self.room


SPELLINGS: tuple[Callable[[Found], str], ...] = (
    lambda image: image.path.stem,
    lambda image: f"{image.path.stem}_{image.path.suffix[1:]}",
    lambda image: f"{image.path.resolve().parent.name}_{image.path.stem}_{image.path.suffix[1:]}",
    lambda image: f"{image.path.stem}_{image.path.suffix[1:]}_{number_of(str(image.path.absolute())) & 0xFFFFFFFF:08x}",
)


def keep_sources(walk: Walk, names: Names, folder: Path, endings: Sequence[str]) -> None:
    """Raises ``MistakeError`` where a result would be written over, or among, the images that are to be read."""
    if (photo := walk.photo_in_out()) is not None:
        raise MistakeError(
            f"{folder} lies in the folder given and holds images of its own, such as {photo.name}: its results would lie "
            "among them; write to another folder"
        )
    out, sources = os.path.realpath(folder), set(walk.files)
    if not any(walk.is_below_out(path) for path in chain(sources, walk.roots)):
        return
    for image in walk.images():
        name = names.of(image)
        place = os.path.realpath(os.path.join(out, os.path.dirname(name)))
        if walk.is_walked(place):
            raise MistakeError(
                f"{place}: the results would lie among the images of this folder; write to another folder"
            )
        for ending in endings:
            if (result := os.path.join(place, os.path.basename(name) + ending)) in sources:
                raise MistakeError(f"{result}: would be replaced by a result of the same name; write to another folder")


def _holds(found: np.ndarray, value: int) -> bool:
    """Whether a sorted array has the value."""
    place = int(np.searchsorted(found, np.uint64(value)))
    return place < len(found) and int(found[place]) == value
