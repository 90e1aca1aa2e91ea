"""What each verb can be asked for: one dataclass per verb, whose fields are its flags and whose sentences are its help.

``mtlsi.flags`` makes the flags. A field without a default is a positional argument, a keyword-only one a required flag;
``num_``, ``_hw``, ``_xy``, ``_m`` and ``_path`` say what a value is and are left out of the flag.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlsi.config import PRECISIONS, DataConfig, ModelConfig, Names, RunConfig, TrainConfig, split_names
from mtlsi.tasks import BOUNDARY_PROTOCOL

DEFAULT_MODEL = "nyud"
REPEATED = {"repeated": True}
"""Marks a flag that is given once per value, as in --plugin a.py --plugin b.py."""
Size = tuple[int, int]
"""Height and width, in pixels."""
Point = tuple[float, float]


def num_cpus() -> int:
    """Number of CPUs in this machine."""
    return os.cpu_count() or 1


@dataclass(frozen=True)
class DemoOptions:
    """Show what the packaged models predict for generated rooms; train a small network on such rooms and measure it."""

    out: Path = Path("demo")
    """Folder for the images and the model."""
    iterations: int | None = None
    """Training steps; the default takes minutes on two cores. 0: only show the packaged models."""


@dataclass(frozen=True)
class MeasureOptions:
    """What is asked of every verb that measures a trained model on labelled images."""

    model: str
    """A run folder, a model folder or the name of a packaged model."""
    data: str = "nyud"
    """nyud, pascal, cityscapes, cityscapes19, folder, scenes or a data set that a plugin registers."""
    root: str | None = None
    """The data set's folder."""
    split: str = "val"
    """val or train."""
    size_hw: Size | None = None
    """Size at which the model sees the images; by default that of its run, or the model's own."""
    resize: str | None = None
    """How images are brought to that size: stretch, or keep_ratio (one factor, then padded); by default as in its run, else
    stretch."""
    protocol: str | None = None
    """Show the images as a published line of work does, instead of --size: invpt or atrc (padded), mti-net (resized)."""
    tasks: Names | None = None
    """Measure these only, such as depth,normals; the data's other labels are not read."""
    boundary_protocol: str = BOUNDARY_PROTOCOL
    """What boundaries are measured by: float, seism-nms (tables of the InvPT line), seism (MTI-Net's) or bsds."""
    count_unknown_boundaries: bool = False
    """Count boundaries predicted where the label is unknown as false."""
    limit: int = 0
    """Measure on this many images, spread over the split; 0: all."""
    device: str | None = None
    """cpu, cuda or mps; by default an accelerator, if there is one."""
    json_path: Path | None = None
    """Also write everything to this file."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        if self.tasks is not None:
            object.__setattr__(self, "tasks", split_names(self.tasks))


@dataclass(frozen=True)
class EvaluateOptions(MeasureOptions):
    """Measure a model at the labels' own size; prints a table."""

    depth_range_m: tuple[float, float] | None = None
    """Caps of the depth readings beside the raw one, in metres, such as 0.001 80; by default 0.001 10 for the Eigen crop."""
    csv_path: Path | None = None
    """Also write the figures of every single image to this file."""
    curve_path: Path | None = None
    """Also draw the precision-recall curve of the boundaries, as .png, .pdf or .svg."""
    confusion: Path | None = None
    """Folder for the confusion matrix of each task with classes, as CSV and PNG: labels in rows, predictions in columns."""
    save: Path | None = None
    """Folder for the predictions, in the field's formats."""
    legacy_saliency: bool = False
    """Apply one sigmoid too many to the saliency, as some older tables do."""
    single_task: Path | None = None
    """JSON file of single-task scores, for Delta_m."""


@dataclass(frozen=True)
class DiagnoseOptions(MeasureOptions):
    """What each part of a trained MTLSI-Net contributes: its scores with one part taken out at a time, and its tokens."""

    limit: int = 48
    """Measure on this many images, spread over the split; 0: all."""


@dataclass(frozen=True)
class PackOptions(MeasureOptions):
    """A folder to share: the model in half the size, and a card with its scores, measured now, its data and its training."""

    out: Path = field(kw_only=True)
    """The new folder, whose name becomes the model's."""
    notes_path: Path | None = None
    """A Markdown file that the card ends with: terms of the data, what the model is not good at."""
    license: str = "mit"
    """Licence of the weights, as model hubs name it."""


@dataclass(frozen=True)
class StudyOptions:
    """Train every variant of a study with every seed, each in the run folder OUT/VARIANT/SEED, and compare them.

    Runs that have finished are left out, runs that were cut are resumed. Exit code 1 if a run failed; the others go on.
    """

    file: Path
    """A YAML file, such as those in recipes/studies/."""
    out: Path = field(kw_only=True)
    """Folder of the study: one folder per variant, the table and the plots."""
    list_commands: bool = field(default=False, metadata={"flag": "list"})
    """Print one command per run, for a job array or several machines, and do nothing."""
    only: tuple[str, ...] = field(default=(), metadata={**REPEATED, "metavar": "VARIANT[/SEED]"})
    """Train these alone, comma-separated or given again, and make no table."""
    table: bool = False
    """Train nothing: make the table of the runs that have finished."""
    time: bool = True
    """Leave out ms per image, which is measured when the table is made."""
    sheet: Names | None = None
    """Names of validation images: draw what every variant predicts for them."""
    pdf: bool = False
    """Write plots and sheets as PDF too, for a paper."""
    seeds: tuple[int, ...] = ()
    """Instead of the file's, such as 0,1."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""
    settings: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "settings_of": {"": RunConfig, "model.": ModelConfig, "data.": DataConfig, "train.": TrainConfig},
            "without": ("seed", "plugins"),
        },
    )
    """Settings of every run, by dotted name, as they are typed."""

    def __post_init__(self) -> None:
        if self.sheet is not None:
            object.__setattr__(self, "sheet", split_names(self.sheet))


@dataclass(frozen=True)
class PredictOptions:
    """Predict every task for images of any size; arrays and images are written to --out."""

    images: list[Path]
    """Images or folders of images."""
    model: str = DEFAULT_MODEL
    """A packaged model, a run or model folder, a hub id, or what mtlsi export wrote: model.onnx."""
    tasks: Names | None = None
    """Comma-separated, such as depth,normals; by default all."""
    out: Path = Path("out")
    """Folder for the results."""
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
    calibrate: tuple[str, ...] = field(default=(), metadata=REPEATED | {"metavar": "X,Y,METRES"})
    """A measured distance of the one image given, such as 320,240,2.35; may be repeated. The metres are multiplied by the
    scale that they give, which is printed."""
    scale: float = 1.0
    """Multiply all metres by this, as an earlier --calibrate printed it."""
    recursive: bool = False
    """Also the images in subfolders; the results have the same tree."""
    overwrite: bool = False
    """Predict images again that the manifest in --out says are done."""
    num_workers: int = 1
    """Threads that read, and as many that write, while the network works; 0: none."""
    device: str | None = None
    """cpu, cuda or mps; by default an accelerator, if there is one."""
    dtype: str = "float32"
    """float32 (fp32), bfloat16 (bf16) or float16 (fp16)."""
    compile: bool = False
    """Compile the network, which takes a minute for every new image shape."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "write", split_names(self.write))
        if self.points:
            object.__setattr__(self, "write", tuple(dict.fromkeys((*self.write, "ply", "glb"))))
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
    """Take images at the network's own size, sides multiples of 4: for runtimes that cannot resize with antialiasing."""
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


@dataclass(frozen=True)
class BoundaryOptions:
    """One-to-one matching as in the BSDS benchmark; prints ODS, OIS and AP."""

    predictions: Path
    """Folder of NAME.png (grey, white = certainly a boundary), NAME.npy (0..1), NAME_boundary.npy or NAME.mat."""
    truth: Path
    """Folder with the same names: grey images (127 = unknown), NumPy files, or BSDS .mat files."""
    boundary_protocol: str = BOUNDARY_PROTOCOL
    """float, seism-nms (tables of the InvPT line), seism (MTI-Net's) or bsds; the flags below change it."""
    max_dist: float | None = None
    """Reach of a match, as a fraction of the image's diagonal; by default 0.0075, on NYUDv2 papers take 0.011."""
    num_thresholds: int | None = None
    """Number of thresholds, by default 99."""
    nms: bool = True
    """No non-maximum suppression."""
    count_unknown: bool = False
    """Count boundaries predicted where the truth is unknown as false."""
    thin: bool = True
    """Do not thin the binarised maps."""
    num_workers: int = field(default_factory=num_cpus)
    """Threads."""
    json_path: Path | None = None
    """Also write the scores to this file."""
    csv_path: Path | None = None
    """Also write the figures of every single image to this file."""
    curve_path: Path | None = None
    """Also draw the precision-recall curve, as .png, .pdf or .svg."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Parameters, operations, time by part, memory and growth, on this machine."""

    model: str = field(kw_only=True)
    """A preset (random weights), a packaged model, a run or model folder."""
    dataset: str | None = None
    """nyud or pascal: the tasks of a preset, by default nyud's; a trained model has its own."""
    size_hw: Size | None = None
    """Size of the images; by default the one the model was made for."""
    tasks: Names | None = None
    """Predict these only, such as depth,normals."""
    dtype: str = "float32"
    """float32 (fp32) or bfloat16 (bf16)."""
    device: str | None = None
    """cpu, cuda or mps; by default an accelerator, if there is one."""
    changes: Mapping[str, Any] = field(default_factory=dict, metadata={"flag": "change"})
    """Sizes that differ from the preset's, by field of ModelConfig, such as '{"decoder_stride": 4}'."""
    modes: Names = ("eager",)
    """Some of eager,compiled,cudagraphs,exported."""
    batches: tuple[int, ...] = (1, 4)
    """Images at a time, such as 1,4,16."""
    sizes: tuple[Size, ...] = ()
    """Measure growth over these sizes, such as 224x288,320x416,448x576."""
    train: bool = False
    """Also time a training step."""
    repeats: int = 7
    """How often each thing is timed."""
    json_path: Path | None = None
    """Also write everything to this file."""
    plot_path: Path | None = None
    """Also draw the growth over --sizes, as .png, .pdf or .svg."""
    plugin: tuple[str, ...] = field(default=(), metadata=REPEATED)
    """A module of your own to import first: FILE.py or a dotted name; may be repeated. Importing runs its code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", PRECISIONS.get(self.dtype, self.dtype))
        object.__setattr__(self, "modes", split_names(self.modes))
        if self.tasks is not None:
            object.__setattr__(self, "tasks", split_names(self.tasks))


@dataclass(frozen=True)
class CheckOptions:
    """Read every file; print what is there and what is wrong. Exit code 0: nothing is wrong; 1: something is wrong or
    doubtful; 2: the folder cannot be looked into."""

    root: Path
    """The data set's folder."""
    json_path: Path | None = None
    """Also write the report to this file."""
    num_workers: int = field(default_factory=num_cpus)
    """Processes."""


@dataclass(frozen=True)
class DeriveOptions:
    """Derive labels from others and write them as images into OUT/TASK."""

    root: Path
    """The data set's folder."""
    out: Path = field(kw_only=True)
    """Folder for the labels."""
    boundary: bool = False
    """Boundaries from the class labels."""
    normals: bool = False
    """Normals from depth and the camera."""
    saliency: list[str] = field(default_factory=list)
    """Saliency: the pixels of these classes."""
    focal_xy: Point | None = None
    """Focal length in pixels of the depth maps; by default that of dataset.yaml."""
    centre_xy: Point | None = None
    """Principal point in pixels of the depth maps; by default that of dataset.yaml."""
    depth_step_m: float | None = None
    """Quantisation step of the depth in metres, where it is coarse."""
    num_workers: int = field(default_factory=num_cpus)
    """Processes."""


@dataclass(frozen=True)
class PrepareOptions:
    """Write the data set in a form that loads several times as fast."""

    root: Path
    """The data set's folder."""
    out: Path = field(kw_only=True)
    """An empty folder, or one that an earlier call began."""
    size_hw: Size | None = None
    """Resize everything to this."""
    num_workers: int = field(default_factory=num_cpus)
    """Processes."""
