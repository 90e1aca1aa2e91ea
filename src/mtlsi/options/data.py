"""What ``mtlsi data`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mtlsi.options.values import Point, Size, num_cpus


@dataclass(frozen=True)
class CheckOptions:
    """Read every file; print what is there and what is wrong. Exit code 0: nothing is wrong; 1: something is wrong or
    doubtful; 2: the folder cannot be looked into."""

    root: Path
    """The data set's folder."""
    json_path: Path | None = None
    """Also write the report to this file."""
    num_workers: int = field(default_factory=num_cpus)
    """Processes; 0: this one alone."""


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
    """Processes; 0: this one alone."""


@dataclass(frozen=True)
class PrepareOptions:
    """Write the data set in a form that loads several times as fast."""

    root: Path
    """The data set's folder."""
    out: Path = field(kw_only=True)
    """An empty folder, or one that an earlier call began."""
    data: str | None = None
    """Which data set the folder is, such as cityscapes19 where it has labels of 7 and of 19 classes; by default what lies in
    it tells."""
    size_hw: Size | None = None
    """Resize everything to this."""
    num_workers: int = field(default_factory=num_cpus)
    """Processes; 0: this one alone."""
