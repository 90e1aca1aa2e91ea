"""NYU Depth v2 in whichever layout lies in a folder; what is there tells which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlsi.data.readers.files import FileDataset
from mtlsi.data.readers.numbered import NumberedNYUD, is_numbered, is_nyud
from mtlsi.data.readers.nyud import NYUD
from mtlsi.data.readers.nyud_depth import DepthNYUD, is_depth_only
from mtlsi.data.readers.nyud_official import LABELLED, OfficialNYUD
from mtlsi.errors import MistakeError


def open_nyud(
    root: str | Path,
    split: str = "train",
    *,
    tasks: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    may_lack: bool = False,
) -> FileDataset:
    """NYU Depth v2: the official files where they are, else one of the packaged layouts (``nyud.LAYOUTS``), MTAN's NumPy
    files, or the depth images of BTS. Raises ``MistakeError`` for MTAN's files without normals: they may be Cityscapes.
    """
    root = Path(root)
    return _reader_of(root)(root, split, tasks=tasks, cache_dir=cache_dir, may_lack=may_lack)


def _reader_of(root: Path) -> type[NYUD | OfficialNYUD | NumberedNYUD | DepthNYUD]:
    if root.is_file() or (root / LABELLED).is_file():
        return OfficialNYUD
    if (root / "gt_sets").is_dir():
        return NYUD
    if is_numbered(root):
        if not is_nyud(root):
            raise MistakeError(
                f"{root}: holds no normal/, by which NYUv2 is told from Cityscapes; for Cityscapes give --data cityscapes "
                "(in training --data.name), for NYUv2 put normal/ beside label/"
            )
        return NumberedNYUD
    return DepthNYUD if is_depth_only(root) else NYUD
