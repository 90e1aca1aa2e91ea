"""What the verbs that train by themselves can be asked for; ``mtlsi train`` reads its settings from ``config.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtlsi.config import DataConfig, Names, RunConfig, TrainConfig, split_names
from mtlsi.options.values import REPEATED
from mtlsi.sizes import ModelConfig


@dataclass(frozen=True)
class DemoOptions:
    """Show what the packaged models predict for generated rooms; train a small network on such rooms and measure it."""

    out: Path = Path("demo")
    """Folder for the images and the model."""
    iterations: int | None = None
    """Training steps; the default takes minutes on two cores. 0: only show the packaged models."""


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
    jobs: int = 1
    """Train so many runs at once, each in a process of its own, with the cores' share of threads."""
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
