"""Which images of a folder of one's own belong to which split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from mtlsi.data.readers.file_names import composed
from mtlsi.data.readers.files import read_names
from mtlsi.data.readers.folder_settings import Settings, Splits
from mtlsi.errors import MistakeError
from mtlsi.reading import check_inside, shortened

DEFAULT: Splits = {"val": 0.2}
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Folders in images/ that are splits, where ``dataset.yaml`` names none."""


def names_of_splits(settings: Settings, images: Collection[str]) -> dict[str, list[str]]:
    """The images of every split. Raises ``MistakeError`` for a list that cannot be read or names what is not there.

    Without ``splits`` the folders train and val in images/ are the splits; where there are none, a fifth is for val.
    Images on no list are shared out by the hash of their name, so that more images never move one to another split;
    what no share takes is for training. Choice: a split by share is never empty while another has two images; it gets the
    image whose hash is nearest, so only in very small sets can an image move when others are added.
    """
    if not settings.splits and (folders := _of_folders(images)):
        return folders
    splits = settings.splits or DEFAULT
    lists: dict[str, list[str]] = {}
    shares = {split: share for split, share in splits.items() if isinstance(share, float)}
    for split, names in splits.items():
        if isinstance(names, int | float):
            continue
        lists[split] = _resolve(settings, split, names, images)
    if shares and "train" in lists:
        raise MistakeError(
            f"{settings.path}: splits.{next(iter(shares))}: a share, but train is a list; name its images"
        )
    total, train_share = sum(shares.values()), shares.pop("train", None)
    if (train_share is not None and not math.isclose(total, 1)) or sum(shares.values()) >= 1:
        raise MistakeError(
            f"{settings.path}: splits: the shares add up to {total:g}; expected 1 with train, less without"
        )
    found = {**lists, "train": lists.get("train", []), **{split: [] for split in shares}}
    if "train" not in lists:
        taken = {name for names in lists.values() for name in names}
        found |= _shared_out(sorted(set(images) - taken), shares)
    return {split: found[split] for split in ("train", *(split for split in found if split != "train"))}


def _of_folders(images: Iterable[str]) -> dict[str, list[str]]:
    """The splits that the first folders of the images' names are; none where there is not train and another."""
    split_of = {folder: split for split, folders in SPLIT_FOLDERS.items() for folder in folders}
    found: dict[str, list[str]] = {}
    for name in sorted(images):
        first, slash, _ = name.partition("/")
        if slash and (split := split_of.get(first.lower())):
            found.setdefault(split, []).append(name)
    return (
        {split: found[split] for split in SPLIT_FOLDERS if split in found}
        if len(found) > 1 and "train" in found
        else {}
    )


def _shared_out(names: Iterable[str], shares: Mapping[str, float]) -> dict[str, list[str]]:
    starts, start = {}, 0.0
    for split, share in shares.items():
        starts[split], start = (start, start + share), start + share
    starts["train"] = (start, 1.0)
    places = {name: _place_of(name) for name in names}
    found: dict[str, list[str]] = {
        split: [name for name, place in places.items() if low <= place < high] for split, (low, high) in starts.items()
    }
    for split, (low, high) in starts.items():
        giver = max(found, key=lambda other: len(found[other]))
        if not found[split] and len(found[giver]) > 1:
            nearest = min(found[giver], key=lambda name: max(low - places[name], places[name] - high))
            found[giver].remove(nearest)
            found[split].append(nearest)
    return found


def _place_of(name: str) -> float:
    """Where a name's hash lies in 0..1; a name need not be UTF-8."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


def _resolve(settings: Settings, split: str, names: str | tuple[str, ...], images: Collection[str]) -> list[str]:
    """The images that a list, the file of one, or a folder with a slash at its end names."""
    if isinstance(names, str) and names.endswith("/"):
        folder = composed(names)
        found = sorted(name for name in images if name.startswith(folder))
        if not found:
            raise MistakeError(
                f"{settings.path}: splits.{split}: {names}: no images there; expected a folder in images/ that holds some"
            )
        return found
    listed = _read_list(settings.path, split, names) if isinstance(names, str) else list(names)
    resolved = [_image(name, images) for name in listed]
    if missing := [name for name, image in zip(listed, resolved, strict=True) if image is None]:
        raise MistakeError(
            f"{settings.path}: splits.{split}: {shortened(missing[0])} and {len(missing) - 1} more are not in images/; "
            f"expected file names without their suffix, such as {min(images)!r}"
        )
    return [name for name in resolved if name is not None]


def _image(listed: str, images: Collection[str]) -> str | None:
    """The image that a line of a list stands for: its name, or its path with a suffix, below images/ or above."""
    name = composed(listed)
    if name in images:
        return name
    name = name.replace("\\", "/").removeprefix("./").removeprefix("images/")
    tried = (name, str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name)
    return next((one for one in tried if one in images), None)


def _read_list(path: Path, split: str, file: str) -> list[str]:
    """The names in a list. Choice: it lies in the data set's folder, so that nobody's data set shows another file."""
    try:
        check_inside(path.parent, path.parent / file)
    except (MistakeError, OSError, ValueError) as error:
        raise MistakeError(
            f"{path}: splits.{split}: {shortened(file)} lies outside the folder; expected a list inside it: copy it there"
        ) from error
    if not (path.parent / file).is_file():
        raise MistakeError(f"{path}: splits.{split}: {file}: no such file; expected one with a name per line")
    return read_names(path.parent / file, "room_01")
