"""What the verbs that use a trained model can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mtlsi.config import PRECISIONS, Names, split_names
from mtlsi.errors import MistakeError
from mtlsi.options.values import DEFAULT_MODEL, REPEATED, Size

POINT_FORMATS = ("ply", "glb")
"""Results that need a distance and a focal length."""


def has_points(formats: Iterable[str]) -> bool:
    """Whether some of ``formats`` are ``POINT_FORMATS``."""
    return not {*formats}.isdisjoint(POINT_FORMATS)


@dataclass(frozen=True)
class PredictOptions:
    """Predict every task for images of any size, or for a video or a camera; what is written lies in --out."""

    images: list[Path] = field(default_factory=list, metadata={"positional": True})
    """Images or folders of images; or one video, see docs/video.md."""
    model: str = DEFAULT_MODEL
    """A packaged model, a run or model folder, a hub id, or what mtlsi export wrote: model.onnx."""
    tasks: Names | None = None
    """Comma-separated, such as depth,normals; by default all."""
    out: Path = Path("out")
    """Folder for the results; for a video also a file: NAME.mp4, NAME.mkv or NAME.webm."""
    write: Names = ("png", "npy", "panel")
    """What to write, some of png,npy,npz,panel,ply,glb: coloured images, exact arrays, one compressed file of all arrays,
    one sheet of everything, points, a surface."""
    points: bool = False
    """Also write coloured points (.ply) and the surface that they lie on (.glb); see docs/points.md."""
    focal_px: float | None = None
    """The camera's focal length in pixels of the images: rescales metres, shapes points; by default, with --points, that of
    each photo's EXIF, else of the training set."""
    fov_deg: float | None = None
    """Instead of --focal-px: the horizontal field of view in degrees."""
    exif: bool = False
    """Instead of --focal-px: that of each photo's EXIF, where it has one, also without --points."""
    calibrate: tuple[str, ...] = field(default=(), metadata=REPEATED | {"metavar": "X,Y,METRES"})
    """A measured distance of the one image given, such as 320,240,2.35; may be repeated. The metres are multiplied by the
    scale that they give, which is printed."""
    scale: float = 1.0
    """Multiply all metres by this, as an earlier --calibrate printed it."""
    recursive: bool = False
    """Also the images in subfolders; the results have the same tree."""
    overwrite: bool = False
    """Predict images again that the manifest in --out says are done."""
    camera: str | None = None
    """Instead of images: a camera of this machine, 0 for the first, until Ctrl-C or --frames. Needs mtlsi[video]."""
    arrays: bool = False
    """Of a video: also all arrays, one .npz for each frame, in a folder beside it."""
    stride: int = 1
    """Of a video: only every N-th frame, each shown until the next."""
    num_frames: int | None = None
    """Of a video: only the first N frames."""
    num_workers: int = 1
    """Threads that read, and as many that write, while the network works; 0: none."""
    device: str | None = None
    """cpu, cuda or mps; by default an accelerator, if there is one."""
    dtype: str = "float32"
    """float32 (fp32), bfloat16 (bf16) or float16 (fp16)."""
    compile: bool = False
    """Compile the network, which takes a minute for every new image shape."""
    tiles: str = field(default="none", metadata={"metavar": "auto|none|ROWSxCOLUMNS"})
    """Look closer at large images, in overlapping parts; auto: in as many as they have detail for. See docs/tiles.md."""
    smooth: float = 0.0
    """Videos: the share, 0 to below 1, that the network's context keeps from frame to frame; see docs/smoothing.md."""
    smooth_outputs: float = 0.0
    """Videos: the share, 0 to below 1, that the predictions keep from frame to frame: steadier, but what moves leaves a
    trace."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "write", split_names(self.write))
        if self.points:
            object.__setattr__(self, "write", tuple(dict.fromkeys((*self.write, *POINT_FORMATS))))
        for flag, share in (("--smooth", self.smooth), ("--smooth-outputs", self.smooth_outputs)):
            if not 0 <= share < 1:
                raise MistakeError(f"{flag} {share:g}; expected 0 (none) or more, below 1, such as 0.8")
        object.__setattr__(self, "dtype", PRECISIONS.get(self.dtype, self.dtype))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", split_names(self.tasks))


@dataclass(frozen=True)
class ExportOptions:
    """A trained model as one file that takes an image's bytes and gives finished predictions, without this package.

    The file is compared with PyTorch at three sizes first, and not written where they differ. See docs/deploy.md.
    """

    model: str
    """A packaged model, a run or model folder, or a hub id."""
    out: Path = field(kw_only=True)
    """The file to write: NAME.onnx, or NAME.pt2 with --format program."""
    format: str = "onnx"
    """onnx, for any runtime, or program, for PyTorch: torch.export's."""
    tasks: Names | None = None
    """Comma-separated, such as depth,normals; by default all."""
    dtype: str = "float32"
    """float32 (fp32), float16 (fp16) or int8, which needs --images."""
    images: list[Path] = field(default_factory=list)
    """For int8: images, or folders of them, like those that are to be predicted; its scales are found on at most 64."""
    size_hw: Size | None = None
    """Area at which the network sees an image, as a height and a width; by default the model's own."""
    resize: bool = True
    """Take images at the network's own size, sides multiples of 4, by plain operations: for runtimes that support few."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", PRECISIONS.get(self.dtype, self.dtype))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", split_names(self.tasks))


@dataclass(frozen=True)
class PageOptions:
    """A page in the browser: drop in a photo, see every task, read the values, take the results away. Needs mtlsi[page]."""

    models: tuple[str, ...] = field(default=(), metadata={**REPEATED, "flag": "model", "metavar": "NAME|DIR"})
    """Offer this model first: a packaged one, a run or model folder, or a hub id; may be repeated."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets others reach the page."""
    port: int = 7860
    """Port to listen on; 0: any free one."""
    device: str | None = None
    """cpu, cuda or mps; by default an accelerator, if there is one."""
    dtype: str = "float32"
    """float32 (fp32), bfloat16 (bf16) or float16 (fp16)."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", PRECISIONS.get(self.dtype, self.dtype))
