"""NYU Depth v2 for depth alone, as BTS passes it round: photos and 16-bit depth in millimetres, a folder per scene.

::

    sync/kitchen_0028b/rgb_00045.jpg, sync_depth_00045.png             24231 pairs of the raw videos, for training
    official_splits/test/kitchen/rgb_00045.jpg, sync_depth_00045.png   the 654 official test images
    official_splits/train/kitchen/...                                  the 795 official training images
    nyudepthv2_train_files_with_gt.txt, ..._test_...                   lines PHOTO DEPTH FOCAL, here or in train_test_inputs/

Paths in the lists are relative to ``sync`` or to a folder of ``official_splits``, without ``..``. Without a list every pair
in the split's folder is taken: training from ``sync``, else ``official_splits/train``, else ``train``; testing from
``official_splits/test``, else ``test``. What the files hold follows from cleinc/bts (its reader, and its script that
makes the official splits): metres = value / 1000, 0 is none.

Choice: depth is the only task unless ``normals`` are asked for, which are then derived from it with NYUv2's camera.
Choice: photos are read whole. BTS cuts 43 to 607 and 45 to 471 out in training, for the frames of white or black round the
photos; random crops see them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mtlsi.data.readers.files import IMAGE, FileDataset, Source, check_split
from mtlsi.data.readers.nyud import CAMERA, SPLITS, depth_millimetres, normals_of_millimetres
from mtlsi.errors import MistakeError
from mtlsi.io import holds
from mtlsi.reading import check_relative, read_text, shortened
from mtlsi.tasks import TASK_SETS, check_tasks

PHOTO, DEPTH = "rgb_", "sync_depth_"
LIST_FOLDERS = ("", "train_test_inputs")
LIST_NAMES = {"train": ("train",), "val": ("test", "val", "eval")}
"""Words in the names of the lists."""
PLACES = {
    "train": ("sync", "official_splits/train", "train", ""),
    "val": ("official_splits/test", "test", "val"),
}
"""Where the folders of the scenes may be."""


class DepthNYUD(FileDataset):
    """One split of NYUv2 for depth in 16-bit images.

    Raises ``MistakeError`` at once where there are no pairs, or a listed file is missing, and on reading where one cannot be
    decoded.
    """

    labels_may_lack = False
    camera = CAMERA

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = False,
    ):
        root = Path(root)
        check_split(split, SPLITS, "NYUv2")
        pairs = _pairs(root, split)
        images = {name: photo for name, (photo, _) in pairs.items()}
        depths = {name: depth for name, (_, depth) in pairs.items() if (root / depth).is_file()}
        place = str(Path(next(iter(images.values()))).parent)
        super().__init__(
            root,
            split,
            layout="NYUv2 with 16-bit depth in scene folders (the BTS line)",
            names=list(pairs),
            sources={
                IMAGE: (
                    Source(
                        folder=place,
                        suffix=".jpg",
                        files={name: photo for name, photo in images.items() if (root / photo).is_file()},
                    ),
                ),
                "depth": (Source(folder=place, suffix=".png", decode=depth_millimetres, files=depths),),
                "normals": (
                    Source(
                        folder=place,
                        suffix=".png",
                        decode=normals_of_millimetres,
                        files=depths,
                        keep=True,
                        derived=True,
                        version="mm",
                    ),
                ),
            },
            classes={},
            boundary_tolerance=TASK_SETS["nyud"].boundary_tolerance,
            tasks=check_tasks(tasks, among=("depth", "normals")) if tasks else ("depth",),
            cache_dir=cache_dir,
            may_lack=may_lack,
        )


def is_depth_only(root: Path) -> bool:
    """Whether ``root`` holds folders of scenes with 16-bit depth."""
    return any(_has_pairs(root / place) for places in PLACES.values() for place in places)


def _has_pairs(folder: Path) -> bool:
    return next(folder.glob(f"*/{DEPTH}*.png"), None) is not None


def _pairs(root: Path, split: str) -> dict[str, tuple[str, str]]:
    """Photo and depth, relative to ``root``, by the photo's path without its suffix."""
    if (path := _list_of(root, split)) is not None:
        pairs = _listed(root, split, path)
    else:
        place = next((place for place in PLACES[split] if _has_pairs(root / place)), None)
        if place is None:
            expected = " or ".join(f"{place or '.'}/SCENE/{PHOTO}*.jpg" for place in PLACES[split])
            raise MistakeError(
                f"{root}: no photos with depth for {split} ({holds(root)}); expected {expected}, {DEPTH}*.png beside them"
            )
        pairs = list(_scanned(root, place))
    return {str(Path(photo).with_suffix("")): (photo, depth) for photo, depth in pairs}


def _scanned(root: Path, place: str) -> Iterable[tuple[str, str]]:
    for depth in sorted((root / place).glob(f"*/{DEPTH}*.png")):
        photo = depth.with_name(PHOTO + depth.stem.removeprefix(DEPTH) + ".jpg")
        if not photo.is_file():
            photo = photo.with_suffix(".png")
        if photo.is_file():
            yield photo.relative_to(root).as_posix(), depth.relative_to(root).as_posix()


def _list_of(root: Path, split: str) -> Path | None:
    """The file that lists a split: by its name, and by what its first line says."""
    for folder in LIST_FOLDERS:
        for path in sorted((root / folder).glob("*.txt")):
            if any(word in path.stem for word in LIST_NAMES[split]) and DEPTH in _text(path)[:400]:
                return path
    return None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise MistakeError(f"{path}: cannot be read as text; expected lines PHOTO DEPTH FOCAL") from error


def _listed(root: Path, split: str, path: Path) -> list[tuple[str, str]]:
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    pairs = []
    for number, line in enumerate(lines, 1):
        files = [file.lstrip("/") for file in line[:2]]
        if len(files) < 2 or not all(Path(file).name for file in files):
            raise MistakeError(f"{path}: line {number} holds {shortened(' '.join(line))}; expected PHOTO DEPTH FOCAL")
        for file in files:
            try:
                check_relative(file)
            except MistakeError as error:
                raise MistakeError(f"{path}: line {number}: {error}") from error
        pairs.append((files[0], files[1]))
    places = [
        place for place in ("", *PLACES[split]) if any((root / place / photo).is_file() for photo, _ in pairs[:9])
    ]
    if not places:
        raise MistakeError(
            f"{path}: {pairs[0][0]} is nowhere in {root} ({holds(root)}); expected it in "
            f"{', '.join(place or '.' for place in PLACES[split])}"
        )
    start = f"{places[0]}/" if places[0] else ""
    return [(start + photo, start + depth) for photo, depth in pairs]
