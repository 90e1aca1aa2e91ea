"""From a photo to arrays and files: reading images, running the network on them, writing what it sees."""

from __future__ import annotations

import copy
import math
import os
import re
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch._dynamo.exc import TorchDynamoException

from mtlsi.data.transforms import normalise
from mtlsi.device import find_device
from mtlsi.drawing.panels import draw_task, panel
from mtlsi.errors import MistakeError
from mtlsi.io import replace_array
from mtlsi.kernels.convolve_linears import convolve_linears, has_linears
from mtlsi.kernels.fold_norms import fold_norms
from mtlsi.model.backbone import STRIDES
from mtlsi.model.network import MTLSINet, Output, decode
from mtlsi.tasks import TASKS, check_tasks, palette
from mtlsi.timing import convolutions_are_faster

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
FilePath = str | os.PathLike[str]
Size = tuple[int, int]
"""Height and width, in pixels."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BAND_VALUES = 2**24
"""How many numbers of one task's raw output are held at the image's own size at a time (64 MB)."""
LONGEST_SIDE = 4
"""The longer side that the network sees is at most so many times the longer side of its training size."""
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
)  # fmt: skip
"""What Pillow's readers raise on broken files."""


class Predictor:
    """Predicts every task on one image of any size: ``Predictor(model)("photo.jpg")``.

    Choice: the image is resized, its shape kept, to the area of the images that the network was trained on
    (``model.input_size``, or ``working_size`` (height, width) in its place): things then have the size that the network
    knows, and upright and wide images cost the same. Raw outputs are brought back to the image's own size before
    they become classes, directions or strengths. Metres are those of a camera like the training set's.

    The model is moved to ``device`` (None: an accelerator where there is one, else the CPU) and put in evaluation
    mode. ``dtype`` is float32, bfloat16 or float16 (mixed precision). ``compile`` hands the network to ``torch.compile``,
    which takes a minute for the first image of every new shape: for streams, not for albums.
    Raises ``MistakeError`` for a device that is not there, an unknown dtype or a machine that cannot compile.
    """

    def __init__(
        self,
        model: MTLSINet,
        *,
        device: str | None = None,
        dtype: str = "float32",
        working_size: Size | None = None,
        compile: bool = False,
    ):
        if dtype not in PRECISIONS:
            raise MistakeError(f"unknown dtype {dtype!r}; expected one of {', '.join(PRECISIONS)}")
        if working_size and min(working_size) < 1:
            raise MistakeError(f"working size {working_size}; expected a height and a width in pixels, such as 448 576")
        self.device = find_device(device)
        self.dtype = PRECISIONS[dtype]
        self.working_size = working_size or model.input_size
        self.model = model.to(self.device).eval()
        self.network: Callable[..., Output] = for_prediction(self.model, self.dtype)
        if compile:
            # on a GPU a recorded graph of kernels, whose buffers every image uses again
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self.network = torch.compile(self.network, dynamic=False, mode=mode)

    def __call__(
        self, image: FilePath | Image.Image | np.ndarray, tasks: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The prediction of each task (default: all that the model has), as arrays of the image's own size ``H W``.

        ``image`` is a path, a PIL image or ``(H W 3) uint8``. Gives semseg and parsing ``(H W) uint8``, depth
        ``(H W) float32`` in metres, normals ``(H W 3) float32`` of unit length, boundary and saliency ``(H W) float32``
        in 0..1.
        Raises ``MistakeError`` for an unreadable image or an unknown task.
        """
        names = check_tasks(self.model.tasks if tasks is None else tasks, among=self.model.tasks)
        pixels = _as_pixels(image)
        height, width = pixels.shape[:2]
        with torch.inference_mode():
            raw = self._run(self._shrink(pixels), names)
            return {task: _at_own_size(task, raw[task], (height, width)) for task in names}

    def _shrink(self, pixels: np.ndarray) -> torch.Tensor:
        """The image as the network wants it, ``(1 3 h w)``: at the working size, ImageNet-normalised."""
        height, width = fit_size(pixels.shape[:2], self.working_size)
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        return normalise(torch.from_numpy(np.array(small)).to(self.device).permute(2, 0, 1)[None].float() / 255)

    def _run(self, images: torch.Tensor, tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The raw outputs ``(1 c h w) float32``."""
        mixed = self.dtype is not torch.float32
        fits = all(side % STRIDES[0] == 0 for side in images.shape[-2:])  # the predictions' grid is the image's
        with torch.autocast(self.device.type, self.dtype) if mixed else nullcontext():
            try:
                final = self.network(images, tasks=tasks, full_size=not fits).final
            except TorchDynamoException as error:
                reason = " ".join(str(error).split())[:200]
                raise MistakeError(f"this machine cannot compile ({reason}); predict without compile") from error
        raw = {task: final[task].float() for task in tasks}
        for task, values in raw.items():
            if not torch.isfinite(values).all():
                advice = "use float32" if mixed else "the weights are damaged or their training diverged"
                raise MistakeError(f"the network's {task} is not finite (dtype {self.dtype}); {advice}")
        return raw


def for_prediction(model: MTLSINet, dtype: torch.dtype) -> MTLSINet:
    """The model, or a copy that predicts the same faster, where there is one.

    Convolutions have taken up the backbone's batch norms; where they cannot, since their results are read before the norm,
    the norms stay. On a CPU on which they are the faster way to multiply, they do the backbone's linear layers too.
    """
    if not isinstance(model, MTLSINet):
        return model
    device, body = next(model.parameters()).device, model.backbone.body
    folds = bool(model.backbone.batch_norms())
    convolves = device.type == "cpu" and dtype is torch.float32 and has_linears(body) and convolutions_are_faster()
    if not folds and not convolves:
        return model
    copied = _copy_with_same_weights(model)
    if folds:
        probe = torch.randn(1, 3, 2 * STRIDES[-1], 2 * STRIDES[-1], device=device)
        if not fold_norms(copied.backbone.body, probe):
            copied = _copy_with_same_weights(model)
    if convolves:
        convolve_linears(copied.backbone.body)
    return copied


def _copy_with_same_weights(model: MTLSINet) -> MTLSINet:
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def fit_size(size_hw: tuple[int, ...], working_size: Size) -> Size:
    """The height and width of the working size's area in the image's own shape, each at least 1 pixel.

    Sides of 64 pixels or more are multiples of 4, at which the network predicts: what it makes is then brought to the
    image's size in one step.

    An image that is very long and thin stays below that area: its longer side is held to ``LONGEST_SIDE`` times the
    working size's.
    """
    height, width = size_hw
    scale = math.sqrt(working_size[0] * working_size[1] / (height * width))
    scale = min(scale, LONGEST_SIDE * max(working_size) / max(height, width))
    rounded = (STRIDES[0] * round(x * scale / STRIDES[0]) if x * scale >= 64 else round(x * scale) for x in size_hw)
    height, width = (max(1, side) for side in rounded)
    return height, width


def read_image(path: FilePath) -> np.ndarray:
    """The image in a file, ``(H W 3) uint8`` RGB, upright as its EXIF orientation says.

    Grey, palette, CMYK and one-bit images become RGB; 16-bit grey is scaled from 0..65535; of an animation the first
    frame is taken. Choice: a transparent image is laid on white, as viewers show it.
    Raises ``MistakeError`` where there is no such file, it cannot be read whole, or it has more than
    ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million).
    """
    _check_file(path := Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MistakeError(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first") from error
    except MistakeError as error:
        raise MistakeError(f"{path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise MistakeError(f"{path}: not an image that can be read; expected JPEG, PNG, WebP or TIFF") from error
    except UNREADABLE as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        raise MistakeError(f"{path}: the image is damaged or cannot be read ({reason}); give a whole copy") from error


def _check_file(path: Path) -> None:
    """Raises ``MistakeError`` where ``path`` cannot be an image, without opening it."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there" if not path.exists() else "not a plain file"
        raise MistakeError(f"{path}: {what}; expected an image file such as photo.jpg")
    if not path.stat().st_size:
        raise MistakeError(f"{path}: an empty file; expected an image")
    if path.suffix.lower() in VIDEO_ENDINGS:
        raise MistakeError(f"{path}: videos are not supported yet; save its frames in a folder and give that")


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image as upright ``(H W 3) uint8``."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise MistakeError("an image of floating-point numbers; expected 8 or 16 bits: convert it first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise MistakeError("a grey image with values outside 0..65535; expected 8 or 16 bits: convert it first")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.array(image.convert("RGB"))


def _as_pixels(image: FilePath | Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise MistakeError(
            f"an array of shape {image.shape}, {image.dtype}; expected an image (height, width, 3), uint8"
        )
    return image


def _at_own_size(task: str, raw: torch.Tensor, size_hw: Size) -> np.ndarray:
    """``raw (1 c h w)`` resized, then decoded; in bands of rows, so that forty maps never stand at full size."""
    channels, (height, width) = raw.shape[1], size_hw
    if height * width <= raw.shape[2] * raw.shape[3]:
        return _to_numpy(decode(task, F.interpolate(raw, size_hw, mode="bilinear", antialias=True)))
    raw = raw.contiguous(memory_format=torch.channels_last)  # more than twice as fast here
    rows = max(1, BAND_VALUES // (channels * width))
    if rows >= height:
        return _to_numpy(decode(task, F.interpolate(raw, size_hw, mode="bilinear")))
    whole = np.empty(0)
    for top in range(0, height, rows):
        band = _to_numpy(decode(task, _rows_of(raw, size_hw, top, min(top + rows, height))))
        if top == 0:
            whole = np.empty((height, *band.shape[1:]), band.dtype)
        whole[top : top + rows] = band
    return whole


def _rows_of(raw: torch.Tensor, size_hw: Size, top: int, bottom: int) -> torch.Tensor:
    """Rows ``top`` to ``bottom`` of ``raw`` after bilinear resizing to ``size_hw``, and only those."""
    height, width = size_hw
    source = (torch.arange(top, bottom, device=raw.device) + 0.5) * (raw.shape[2] / height) - 0.5
    source = source.clamp(0, raw.shape[2] - 1)
    above = source.long()
    below = (above + 1).clamp(max=raw.shape[2] - 1)
    mixed = torch.lerp(raw[:, :, above], raw[:, :, below], (source - above).view(-1, 1).to(raw))
    return F.interpolate(mixed, (bottom - top, width), mode="bilinear")


def _to_numpy(decoded: torch.Tensor) -> np.ndarray:
    """``(1 H W)`` or ``(1 3 H W)`` as ``(H W)`` or ``(H W 3)``."""
    array = decoded[0].cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if array.ndim == 3 else array


def save_prediction(
    prediction: Mapping[str, np.ndarray],
    image: np.ndarray,
    out_dir: FilePath,
    stem: str,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Writes what ``Predictor`` gave for ``image (H W 3) uint8`` into ``out_dir`` and gives the files' paths.

    ==========================  =======================================================================
    ``<stem>_<task>.npy``       the exact array
    ``<stem>_<task>.png``       an image to look at, with its legend or scale, 1600 pixels at most
    ``<stem>_semseg_index.png`` the class indices, 8 bits, shown in the classes' colours (also parsing)
    ``<stem>_depth_mm.png``     depth in whole millimetres, 16 bits, at most 65.535 m
    ``<stem>_panel.png``        the image and all tasks on one sheet
    ==========================  =======================================================================

    Each file appears whole or not at all; files of those names from before are replaced.
    Raises ``MistakeError`` where the folder or a file cannot be written.
    """
    folder, classes = _prepare_folder(out_dir), classes or {}
    written = [
        _write_whole(folder / f"{stem}_{ending}", render(array, classes.get(task)))
        for task, array in prediction.items()
        for ending, render in _files_of(task).items()
    ]
    return [*written, _write_whole(folder / f"{stem}_panel.png", Image.fromarray(panel(image, prediction, classes)))]


@dataclass(frozen=True)
class Outcome:
    """What ``predict_paths`` wrote, and the images that it could not read, each with the reason."""

    written: list[Path]
    failed: list[tuple[Path, str]]


def predict_paths(
    paths: Iterable[FilePath],
    predictor: Predictor,
    out_dir: FilePath,
    tasks: Iterable[str] | None = None,
    *,
    console: Console | None = None,
) -> Outcome:
    """Predicts every image given and every image in the folders given, and writes the files of ``save_prediction``.

    A folder's own images are taken in natural order (2 before 10), not its subfolders'. The results for ``a.jpg``
    begin with ``a``; where two images share that name, their endings, then their folders, then a number are added.
    An image that cannot be read is passed over and named at the end on ``console`` (by default stderr).
    Raises ``MistakeError`` for a path that is not there, a folder without images, a video, an unknown task, a folder
    that cannot be written, results that would replace an image given (all before computing), or no readable image.
    """
    console = console or Console(stderr=True)
    names = check_tasks(predictor.model.tasks if tasks is None else tasks, among=predictor.model.tasks)
    stems = _name_results(_find_images(paths))
    folder = _prepare_folder(out_dir)
    _keep_sources(stems, folder, names)
    outcome = Outcome([], [])
    for path, stem in track(stems.items(), "predicting", console=console, transient=True, disable=len(stems) == 1):
        try:
            image = read_image(path)
        except MistakeError as error:
            outcome.failed.append((path, str(error)))
            continue
        files = save_prediction(predictor(image, names), image, folder, stem, predictor.model.classes)
        outcome.written.extend(files)
    if not outcome.written:
        several = f"none of {len(stems)} images can be read; the first: " if len(stems) > 1 else ""
        raise MistakeError(several + outcome.failed[0][1])
    if outcome.failed:
        console.print(f"{len(outcome.failed)} of {len(stems)} images could not be read:", highlight=False)
        for _, reason in outcome.failed:
            console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)
    return outcome


def _find_images(paths: Iterable[FilePath]) -> list[Path]:
    """Every image file that ``paths`` name, each once, in the order given."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            _check_file(path)
            found.setdefault(path.resolve(), path)
            continue
        try:
            files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_ENDINGS and file.name[0] != "."]
        except OSError as error:
            raise MistakeError(f"{path}: cannot be read ({error.strerror}); expected a folder of images") from error
        if not files:
            raise MistakeError(f"{path}: no images in this folder itself; expected .jpg, .png or the like in it")
        found |= {file.resolve(): file for file in sorted(files, key=_natural) if file.resolve() not in found}
    if not found:
        raise MistakeError("no images given; expected image files or folders of them")
    return list(found.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key that reads numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", path.name)]


def _name_results(images: Sequence[Path]) -> dict[Path, str]:
    """What the results of each image begin with: as short as keeps them apart, on any file system."""
    spellings: tuple[Callable[[Path], str], ...] = (
        lambda p: p.stem,
        lambda p: f"{p.stem}_{p.suffix[1:]}",
        lambda p: f"{p.resolve().parent.name}_{p.stem}_{p.suffix[1:]}",
    )
    stems: dict[Path, str] = {}
    for spell in spellings:
        waiting = [path for path in images if path not in stems]
        counts = Counter(name.casefold() for name in (*stems.values(), *map(spell, waiting)))
        stems |= {path: spell(path) for path in waiting if counts[spell(path).casefold()] == 1}
    for number, path in enumerate(images, 1):
        stems.setdefault(path, f"{spellings[-1](path)}_{number}")
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    return {path: stems[path] for path in images}


def _keep_sources(stems: Mapping[Path, str], folder: Path, tasks: Sequence[str]) -> None:
    """Raises ``MistakeError`` where a result would be written over an image that is still to be read."""
    sources = {path.resolve() for path in stems}
    endings = [*(ending for task in tasks for ending in _files_of(task)), "panel.png"]
    for result in (folder.resolve() / f"{stem}_{ending}" for stem in stems.values() for ending in endings):
        if result in sources:
            raise MistakeError(f"{result}: would be replaced by a result of the same name; write to another folder")


def _prepare_folder(out_dir: FilePath) -> Path:
    """The folder, made where it is missing; ``MistakeError`` where it cannot be written."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            return Path(out_dir)
    except OSError as error:
        raise MistakeError(f"{out_dir}: no folder to write to ({error.strerror}); give another one") from error


def _write_whole(path: Path, content: np.ndarray | Image.Image) -> Path:
    """Writes an array or an image: what is there is always whole."""
    try:
        replace_array(path, content)
    except OSError as error:
        raise MistakeError(f"{path}: cannot be written ({error.strerror or error}); give another folder") from error
    return path


def _files_of(task: str) -> dict[str, Callable[[np.ndarray, Sequence[str] | None], np.ndarray | Image.Image]]:
    """The end of each file's name for one task, and what goes into it."""
    files = {f"{task}.npy": lambda a, _: a, f"{task}.png": lambda a, names: Image.fromarray(draw_task(task, a, names))}
    if TASKS[task].output == "class":
        files[f"{task}_index.png"] = _to_index
    if TASKS[task].unit == "m":
        files[f"{task}_mm.png"] = lambda a, _: Image.fromarray(np.clip(np.round(a * 1000), 0, 65535).astype(np.uint16))
    return files


def _to_index(array: np.ndarray, _: Sequence[str] | None) -> Image.Image:
    image = Image.fromarray(array)
    image.putpalette(np.asarray(palette(256), np.uint8).tobytes())
    return image
