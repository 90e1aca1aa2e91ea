"""Bring a data set of any layout into one that loads fast: ``mtlsi data prepare``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mtlsi.config import check_size
from mtlsi.data.datasets import camera_of, colours_of, open_folder, recognise, splits_of
from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.data.readers.prepared import INDEX, VERSION, image_path, pack
from mtlsi.data.transforms import resize
from mtlsi.errors import MistakeError
from mtlsi.images import is_plain
from mtlsi.io import replace_bytes, replace_text
from mtlsi.lock import OF_FOLDER, HeldError, held
from mtlsi.parallel import for_each
from mtlsi.reading import check_relative, read_json
from mtlsi.streams import write_line
from mtlsi.tasks import own_records


@dataclass(frozen=True)
class _Packer:
    """Writes the images of one split, each whole or not at all; what is there already is left as it is."""

    dataset: FileDataset
    out: Path
    size_hw: tuple[int, int] | None

    def __call__(self, index: int) -> int:
        path = image_path(self.out, self.dataset.name(index))
        if not path.exists():
            sample, jpeg = self.dataset[index], None
            source = self.dataset.path(IMAGE, index)
            if self.size_hw is not None:
                sample = resize(sample, self.size_hw)
            elif source is not None and source.suffix.lower() in (".jpg", ".jpeg") and is_plain(source):
                jpeg = source.read_bytes()
            replace_bytes(path, pack(sample, jpeg))
        return path.stat().st_size


def prepare(
    root: Path,
    out: Path,
    *,
    data: str | None = None,
    size_hw: tuple[int, int] | None = None,
    num_workers: int = 2,
    console: Console | None = None,
) -> None:
    """Write every split of the data set in ``root`` into ``out``; goes on where an earlier call stopped.

    ``data`` names the data set, None: what lies in ``root`` tells; it is written down, and the copy opened under no other
    name. ``size_hw`` None: images keep their sizes and JPEG files their bytes. Else images and labels are brought to that
    size, as training does; scores on such labels are not scores on the benchmark's. Raises ``MistakeError`` for a data set
    that cannot be read or names images outside it, and for an ``out`` that holds something else.
    """
    console = console or Console()
    if size_hw is not None:
        check_size("--size {} {}".format(*size_hw), size_hw)
    data = data or recognise(root)
    splits = {split: open_folder(root, split, data=data) for split in splits_of(root, data=data)}
    for dataset in splits.values():
        for name in dataset.names:
            check_relative(name)  # a name may come from a list; what is written is read back under such names alone
    index = _describe(splits, size_hw) | {"data": data}
    try:
        with held(out / OF_FOLDER):
            _claim(out, index)
            total = 0
            for split, dataset in splits.items():
                work, title = _Packer(dataset, out, size_hw), f"preparing {split}"
                total += sum(for_each(work, len(dataset), title=title, num_workers=num_workers, console=console))
            replace_text(out / INDEX, json.dumps(index | {"complete": True}, indent=1) + "\n")
    except HeldError as holder:
        raise MistakeError(f"{out} is being prepared by {holder}; wait for it, or give another --out") from holder
    except OSError as error:
        raise MistakeError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    write_line(console, f"{sum(map(len, splits.values()))} images, {total / 1e6:.0f} MB in {out}")


def _describe(splits: Mapping[str, FileDataset], size_hw: tuple[int, int] | None) -> dict[str, Any]:
    first = next(iter(splits.values()))
    index = {
        "version": VERSION,
        "complete": False,
        "layout": first.layout,
        "size_hw": size_hw,
        "tasks": {split: dataset.tasks for split, dataset in splits.items()},
        "classes": first.classes,
        "derived": sorted({task for dataset in splits.values() for task in dataset.derived}),
        "boundary_tolerance": first.boundary_tolerance,
        "splits": {split: dataset.names for split, dataset in splits.items()},
    }
    if own := own_records({task: None for dataset in splits.values() for task in dataset.tasks}):
        index["own_tasks"] = own
    if colours := colours_of(first):
        index["colours"] = colours
    if camera := camera_of(first):
        index["camera"] = camera
    return json.loads(json.dumps(index))  # as it will be read


def _claim(out: Path, index: Mapping[str, Any]) -> None:
    """Write down what ``out`` will hold, or refuse a folder that holds something else; hidden files are no matter."""
    if any(not path.name.startswith(".") for path in out.iterdir()):
        there = read_json(out / INDEX, "a folder made by mtlsi data prepare") if (out / INDEX).exists() else None
        if there is None or {"data": index["data"]} | there | {"complete": False} != index:  # older ones have no name
            raise MistakeError(
                f"{out} holds something else than this data set with these settings; give an empty folder"
            )
        return
    replace_text(out / INDEX, json.dumps(index, indent=1) + "\n")  # first of all: a call that is cut off here can go on
