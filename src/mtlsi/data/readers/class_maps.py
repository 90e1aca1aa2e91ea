"""Which stored values, and which colours, stand for which classes; a label file to class indices by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mtlsi.data.readers.decoding import decode_npy, is_npy, whole_numbers
from mtlsi.data.readers.label_pixels import STEPS, Pixels, grey_values, percent, read_pixels
from mtlsi.data.readers.stored_classes import StoredClasses, ranges_of
from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import Colour
from mtlsi.tasks import class_dtype, invalid_class


@dataclass(frozen=True)
class ClassMap:
    """How the label files of one task with classes are read."""

    task: str
    num_classes: int
    values: tuple[tuple[int, int], ...]
    """Every stored value with its class; several may stand for one."""
    invalid: tuple[int, ...]
    """Stored values without a label."""
    colours: tuple[tuple[Colour, int], ...] = ()
    """Every colour with its class; none: files are never colour-coded."""
    invalid_colours: tuple[Colour, ...] = ()
    """Colours without a label."""

    @property
    def where(self) -> str:
        """The task's keys, in dataset.yaml."""
        return f"tasks.{self.task}"

    @cached_property
    def meanings(self) -> dict[int, int]:
        """The class, or what marks a pixel without one, by stored value."""
        none = invalid_class(class_dtype(self.num_classes))
        return dict(self.values) | dict.fromkeys(self.invalid, none)

    @cached_property
    def stored(self) -> StoredClasses:
        """The same, to look them up."""
        return StoredClasses(
            self.meanings,
            self.num_classes,
            expected=f"{ranges_of(dict(self.values))}, and {ranges_of(self.invalid)} for unlabelled",
            advice=f"map the labels to the classes, in {self.where}.values, or add it to {self.where}.invalid",
        )

    @cached_property
    def meanings_of_colours(self) -> dict[int, int]:
        """The same by colour, as one number."""
        none = invalid_class(class_dtype(self.num_classes))
        return {_code(colour): index for colour, index in self.colours} | {
            _code(colour): none for colour in self.invalid_colours
        }


def decode_class_map(path: Path, content: bytes, *, classes: ClassMap) -> np.ndarray:
    """Class indices (H W), uint8 with 255 where unlabelled, int32 with 65535 where there are more than 255 classes.

    Choice: where classes have colours, a coloured image is read by them. Grey ones in RGB, and palettes by their indices,
    are read by value, unless a value stands for another class than its colour does: a tool that made the palette numbers
    colours as it likes. An image of one bit holds 0 and 1, or 0 and 255 where 255 stands for something and 1 does not.
    Raises ``MistakeError`` for a value and a colour that stand for nothing.
    """
    pixels = Pixels(_array(path, content)) if is_npy(path) else read_pixels(path, content)
    if classes.colours and _is_coded(pixels, classes):
        return _by_colour(path, colours_of(path, pixels), pixels.known, classes)
    meanings = classes.meanings
    advice = f"give {classes.where}.colours, a colour for every class, and no values; or store the values as grey"
    values = grey_values(path, pixels, advice).values
    if pixels.step > 1 and not (pixels.step == STEPS[1] and 255 in meanings and 1 not in meanings):
        values = values // pixels.step
    return classes.stored.look_up(path, values, pixels.known)


def _array(path: Path, content: bytes) -> np.ndarray:
    """Whole numbers (H W), or colours (H W 3) of 8 bits."""
    values = decode_npy(path, content)
    is_rgb = values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8
    return values if is_rgb else whole_numbers(path, values)


def _is_coded(pixels: Pixels, classes: ClassMap) -> bool:
    """Whether an image is to be read by its colours."""
    values, palette = pixels.values, pixels.palette
    if values.ndim == 2 and palette is None:
        return values.dtype == np.uint8 and pixels.step == 1 and _is_coded_in_grey(values, classes)
    used = values if pixels.known is None else values[pixels.known]
    if values.ndim == 3:
        if (used != used[..., :1]).any():
            return True
        used, palette = used[..., 0], np.arange(256).repeat(3).reshape(256, 3)
    assert palette is not None
    by_value, by_colour = classes.meanings, classes.meanings_of_colours
    said = {
        value: by_colour.get(_code(palette[value])) if value < len(palette) else None
        for value in np.unique(used).tolist()
    }
    if values.ndim == 3 and not said.keys() <= by_value.keys():
        return True
    return any(means is not None and means != by_value.get(value) for value, means in said.items())


def _is_coded_in_grey(values: np.ndarray, classes: ClassMap) -> bool:
    """Whether one channel holds the greys of classes that all are grey, such as 0 and 255, and not only their values."""
    if any(len(set(colour)) > 1 for colour, _ in classes.colours):
        return False
    used = {*np.unique(values).tolist()}
    greys = {colour[0] for colour, _ in classes.colours} | {colour[0] for colour in classes.invalid_colours}
    return used <= greys and not used <= dict(classes.values).keys()


def colours_of(path: Path, pixels: Pixels) -> np.ndarray:
    """The colours (H W 3) of an image in RGB, with a palette, or in grey."""
    if pixels.palette is None:
        return pixels.values if pixels.values.ndim == 3 else np.stack([pixels.values] * 3, -1)
    if (last := pixels.values.max(initial=0)) >= len(pixels.palette):
        raise MistakeError(f"{path}: index {last}, but a palette of {len(pixels.palette)} colours; save it again")
    return pixels.palette[pixels.values]


def _by_colour(path: Path, rgb: np.ndarray, known: np.ndarray | None, classes: ClassMap) -> np.ndarray:
    meanings = classes.meanings_of_colours
    codes = np.array(sorted(meanings))
    wanted = np.array([meanings[code] for code in codes.tolist()])
    stored = (rgb[..., 0].astype(np.int32) << 16) | (rgb[..., 1].astype(np.int32) << 8) | rgb[..., 2]
    place = np.minimum(np.searchsorted(codes, stored), len(codes) - 1)
    found = wanted[place]
    unlabelled = np.zeros(stored.shape, bool) if known is None else ~known
    strange = (codes[place] != stored) & ~unlabelled
    if strange.any():
        _refuse_colours(path, stored, strange, classes)
    dtype = class_dtype(classes.num_classes)
    return np.where(unlabelled, invalid_class(dtype), found).astype(dtype)


def _refuse_colours(path: Path, stored: np.ndarray, strange: np.ndarray, classes: ClassMap) -> None:
    codes, counts = np.unique(stored[strange], return_counts=True)
    code = int(codes[counts.argmax()])
    colour = (code >> 16, code >> 8 & 255, code & 255)
    others = f" and {len(codes) - 1} more colours" if len(codes) > 1 else ""
    advice = f"add it there, or as [r, g, b] to {classes.where}.invalid where it is no label"
    if len(codes) > 3 * len(classes.colours) + 8:
        advice = "the edges were smoothed or the file was a JPEG once: export it without smoothing, at its own size"
    elif len(set(colour)) == 1:
        advice += f"; if the file holds pixel values as grey, give {classes.where}.values"
    share = percent(float(strange.mean()))
    raise MistakeError(
        f"{path}: colour {colour}{others}, in {share} of its pixels, not in {classes.where}.colours; {advice}"
    )


def _code(colour: Iterable[int]) -> int:
    red, green, blue = (int(channel) for channel in colour)
    return red << 16 | green << 8 | blue
