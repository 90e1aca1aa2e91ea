"""Which images of a folder of one's own belong to which split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from mtlsi.data.readers.files import read_names
from mtlsi.data.readers.folder_settings import Settings
from mtlsi.errors import MistakeError


def names_of_splits(settings: Settings, images: Collection[str]) -> dict[str, list[str]]:
    """The images of every split. Raises ``MistakeError`` for a list that cannot be read or names what is not there.

    Images on no list are shared out by the hash of their name, so that more images never move one to another split;
    what no share takes is for training.
    """
    lists: dict[str, list[str]] = {}
    shares = {split: share for split, share in settings.splits.items() if isinstance(share, float)}
    for split, names in settings.splits.items():
        if isinstance(names, int | float):
            continue
        lists[split] = _read_list(settings.path, split, names) if isinstance(names, str) else list(names)
        if missing := [name for name in lists[split] if name not in images]:
            raise MistakeError(
                f"{settings.path}: splits.{split}: {missing[0]!r} and {len(missing) - 1} more are not in images/; expected "
                f"file names without their suffix, such as {min(images)!r}"
            )
    if shares and "train" in lists:
        raise MistakeError(
            f"{settings.path}: splits.{next(iter(shares))}: a share, but train is a list; name its images"
        )
    total, train_share = sum(shares.values()), shares.pop("train", None)
    if (train_share is not None and not math.isclose(total, 1)) or sum(shares.values()) >= 1:
        raise MistakeError(
            f"{settings.path}: splits: the shares add up to {total:g}; expected 1 with train, less without"
        )
    taken = {name for names in lists.values() for name in names}
    found = {**lists, "train": lists.get("train", []), **{split: [] for split in shares}}
    if "train" not in lists:
        for name in sorted(set(images) - taken):
            found[_split_of(name, shares)].append(name)
    return {split: found[split] for split in ("train", *(split for split in found if split != "train"))}


def _split_of(name: str, shares: Mapping[str, float]) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _read_list(path: Path, split: str, file: str) -> list[str]:
    if not (path.parent / file).is_file():
        raise MistakeError(f"{path}: splits.{split}: {file}: no such file; expected one with a name per line")
    return read_names(path.parent / file, "room_01")
