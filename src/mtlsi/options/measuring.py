"""What the verbs that measure can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlsi.config import PRECISIONS, Names, split_names
from mtlsi.options.values import REPEATED, Size, num_cpus
from mtlsi.tasks import BOUNDARY_PROTOCOL


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
class FiguresOptions(MeasureOptions):
    """Draw how a model was trained and where it is right and wrong, as PNG files, with their numbers as JSON."""

    data: str = ""
    """As for evaluate; by default the data of the run, and of a model that is no run folder nyud."""
    out: Path | None = None
    """Folder of the figures; by default figures/ in the run folder, and NAME-figures here for a model that is no run."""
    num_shown: int = 3
    """How many of the best and how many of the worst images a sheet shows; 0: no sheets."""


@dataclass(frozen=True)
class PackOptions(MeasureOptions):
    """A folder to share: the model in half the size, and a card with its scores, measured now, its data and its training."""

    out: Path = field(kw_only=True)
    """The new folder, whose name becomes the model's."""
    notes_path: Path | None = None
    """A Markdown file that the card ends with: terms of the data, what the model is not good at."""
    license: str = "mit"
    """Licence of the weights, as model hubs name it."""
    push: str | None = None
    """Also upload the folder to the Hugging Face hub, as OWNER/NAME."""
    private: bool = False
    """With --push: for your eyes only, where the model is not on the hub yet."""


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
    """Also time a training step, of all tasks."""
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
