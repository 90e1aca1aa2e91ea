"""The settings of a run: plain data, read from YAML and the command line, written into every run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtlsi.errors import MistakeError, check_choice
from mtlsi.field_types import check_types
from mtlsi.reading import shortened
from mtlsi.sizes import ModelConfig, sizes_of

Names = tuple[str, ...] | str
"""Several names: a tuple, or one string of comma-separated names. A configuration always holds the tuple."""

PRECISIONS = {
    "float32": "float32", "fp32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16",
}  # fmt: skip
"""Every spelling of a floating-point type, with the name it has in this project: torch's."""


BALANCES = ("fixed", "uncertainty", "dwa", "famo", "upgrad", "pcgrad", "cagrad", "nash_mtl")
"""What train.balance may be."""
RESIZES = ("stretch", "keep_ratio")
"""What data.resize may be; the second name is MMSegmentation's."""
MOST_WORKERS = 512
"""Loader processes: machines have no more cores for one training, and each takes memory before it has read anything."""
MOST_SCENES = 1_000_000
"""Generated scenes have a number: below this one those to train on, from it on as many to evaluate on."""
MOST_SIDE, MOST_PIXELS = 16_384, 2**25
"""Of every size that a network is to see images at, the second also of a model's input size: one such image takes gigabytes
before anything is computed."""
LARGEST_SEED = 2**64 - 1
"""What torch takes."""
FROM_SHARES = "from_shares"
"""What train.class_weights may be, for a task or for all: from the classes' shares of the training labels."""


def split_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """``"depth,normals"``, ``"[depth, normals]"`` or a sequence of names, as a tuple of names."""
    if not isinstance(names, str):
        return tuple(names)
    text = names.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return tuple(name.strip().strip("'\"") for name in text.split(","))


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are augmented."""

    name: str = "scenes"
    """scenes, nyud, pascal, cityscapes, cityscapes19, folder (your own labels) or a data set that a plugin registers."""
    root: str | None = None
    """The data set's folder; scenes need none."""
    tasks: Names | None = None
    """The tasks to learn, such as depth,normals; None: all that the data has."""
    label_set: str = "nyud"
    """For scenes: nyud (four tasks), pascal (five) or all (six, with the classes of nyud)."""
    size_hw: tuple[int, int] = (128, 160)
    """Height and width of the crops that train the network; multiples of 32 waste no padding."""
    image_hw: tuple[int, int] | None = None
    """Size of a whole image at zoom 1, in training and in evaluation; None: as stored."""
    resize: str = "stretch"
    """How an image of another shape is brought to image_hw. stretch: to that size; keep_ratio: by one factor, to the largest
    size that fits in it, the rest padded without labels."""
    zoom: tuple[float, float] = (0.5, 2.0)
    """Range of the random zoom."""
    class_limit: float = 0.75
    """A crop is drawn again while one class fills more than this share of it."""
    num_train: int = 2000
    """Number of generated scenes to train on."""
    num_val: int = 200
    """Number of generated scenes to evaluate on, none of which is trained on."""
    num_workers: int = 1
    """Loader processes; 0: load in the training process."""
    in_memory: bool = False
    """Each loader process keeps the decoded training images it has read."""

    def __post_init__(self) -> None:
        if self.tasks is not None:
            object.__setattr__(self, "tasks", split_names(self.tasks))

    def check(self) -> None:
        """Raises ``MistakeError`` for numbers that cannot be trained with."""
        _at_least(1, "data", self, "num_train", "num_val")
        for name in ("num_train", "num_val"):
            if (number := getattr(self, name)) > MOST_SCENES:
                raise MistakeError(f"data.{name} {number}; expected {MOST_SCENES} at most")
        _at_least(0, "data", self, "num_workers")
        if self.num_workers > MOST_WORKERS:
            raise MistakeError(f"data.num_workers {self.num_workers}; expected at most {MOST_WORKERS}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise MistakeError(f"data.zoom {list(self.zoom)}; expected two numbers above 0, the smaller one first")
        check_choice("data.resize", self.resize, RESIZES)
        for name in ("size_hw", "image_hw"):
            if (size := getattr(self, name)) is not None:
                check_size(f"data.{name} {list(size)}", size)


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    iterations: int = 40000
    """Optimizer steps."""
    batch_size: int = 8
    """Images per process and micro-batch."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    optimizer: str = "adamw"
    """adamw or adam."""
    lr: float = 1e-3
    """Learning rate of the decoder."""
    backbone_lr_factor: float = 0.1
    """The backbone's learning rate over the decoder's."""
    weight_decay: float = 1e-2
    """Weight decay; norms, biases and other vectors have none."""
    schedule: str = "poly"
    """poly (power 0.9) or cosine."""
    warmup: int = 100
    """Steps of linear warm-up of the learning rate."""
    clip_norm: float = 10.0
    """Gradients are clipped to this norm."""
    precision: str = "auto"
    """float32 (fp32), bfloat16 (bf16), or auto: the one that multiplies matrices faster on this device."""
    deterministic: bool = False
    """Only operations that give the same bits every time: on a GPU slower, and refused where torch knows none."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is evaluated and saved; 0: off."""
    coarse_weight: float = 1.0
    """Weight of the losses on the coarse predictions."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Loss weight by task, where it should differ from the field's; those of tasks that are not trained have no say."""
    class_weights: dict[str, Any] | str = field(default_factory=dict)
    """By task with classes, what its classes weigh in the loss: weights by class name, those not named 1, or from_shares,
    the rarer the more (see mtlsi.training.class_weights); from_shares alone: in every such task. Those of tasks that are not
    trained have no say."""
    balance: str = "fixed"
    """How the tasks' losses become one gradient: fixed (by loss_weights), or from there on uncertainty, dwa, famo, upgrad,
    pcgrad, cagrad, nash_mtl; the last four need pip install 'mtlsi[balance]'. See docs/balancing.md."""
    dwa_window: int = 100
    """Steps over which dwa averages losses before it compares them; the paper's is an epoch."""
    boundary_positive: float = 0.95
    """Weight of boundary pixels in the boundary loss; all others weigh one minus this."""
    loss_at: str = "prediction"
    """prediction: labels are downsampled to the network's stride 4 (cheap); image: predictions are upsampled to it."""
    freeze_stride: int = 0
    """Freeze the backbone's pretrained weights up to the map of this stride; 0: train all of them; 32: freeze all, without
    drop path and on stored statistics. Of a plain ViT 4, 8, 16, 32 freeze a quarter of its blocks to all; the pyramid that
    makes four maps of it is always trained."""
    freeze: Names = ()
    """Parts of the network that stay as they are: backbone, and those of the decoder, preliminary, fusion, distiller, local,
    cross_window and heads in MTLSI-Net's; their batch norms use stored statistics. For a run that starts from a model."""
    freeze_norm: bool = False
    """The backbone's batch norms use their stored statistics: for small batches."""
    recompute: bool = False
    """Activation checkpointing: keep few activations and recompute the others in the backward pass."""
    cuda_graph: bool = True
    """On a GPU, record a step's forward and backward pass once and replay it, which spares a small network most of a step's
    time. Where it cannot be, the run says why and its steps go as without: with several processes, accumulate, recompute,
    balance, modules and criteria of one's own, and callbacks that may change the run. The recording keeps the memory of a
    step to itself: evaluations and gradients_every need theirs beside it."""
    shard: bool = False
    """Share weights, gradients, moving average and the optimizer's moments out among the processes, so that each keeps a
    part of them (FSDP2): for networks too large for one device. One process goes on as without it."""
    evaluate_every: int = 2000
    """Steps between evaluations; 0: only at the end."""
    evaluate_images: int = 100
    """Images per evaluation during training, spread over the validation split; 0: all."""
    final_images: int = 0
    """Images of the last evaluation, spread over the validation split; 0: all."""
    best_by: str | None = None
    """A score of the evaluations, such as semseg.mIoU or depth.RMSE, or delta, the mean relative gain over the tasks: the
    model with the best one so far is kept in RUN/best. A state is then saved at every evaluation."""
    patience: int = 0
    """Evaluations in a row without a better best_by after which the run ends; 0: it goes on to the end."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: only at the end, and where the run is stopped."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; should the newest be damaged, a run goes on from the one before."""
    skip_not_finite: int = 0
    """How many steps whose loss or gradient is not finite are passed over, their batches written to RUN/not_finite; the next
    one stops the run. On a GPU more than 0 waits for every step."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    gradients_every: int = 0
    """Steps between measurements of the tasks' gradients at the backbone's maps, norms and cosines; 0: none."""
    tracker: str | None = None
    """Name of an accelerate tracker, such as tensorboard."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", PRECISIONS.get(self.precision, self.precision))
        object.__setattr__(self, "freeze", split_names(self.freeze) if self.freeze else ())

    def check(self) -> None:
        """Raises ``MistakeError`` for settings that cannot be trained with."""
        for name, known in (
            ("optimizer", ("adamw", "adam")),
            ("schedule", ("poly", "cosine")),
            ("loss_at", ("prediction", "image")),
            ("precision", ("float32", "bfloat16", "auto")),
            ("balance", BALANCES),
        ):
            check_choice(f"train.{name}", getattr(self, name), known)
        check_class_weights(self.class_weights)
        if not 0 <= self.ema < 1:
            raise MistakeError(f"train.ema {self.ema}; expected at least 0 and below 1")
        _at_least(
            1, "train", self, "iterations", "batch_size", "accumulate", "log_every", "dwa_window", "keep_checkpoints"
        )
        at_least_0 = (
            "warmup",
            "checkpoint_every",
            "evaluate_every",
            "evaluate_images",
            "final_images",
            "gradients_every",
            "skip_not_finite",
            "patience",
        )
        _at_least(0, "train", self, *at_least_0)
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise MistakeError(f"train.{name} {getattr(self, name)}; expected a number above 0")
        if self.patience and self.best_by is None:
            raise MistakeError(
                f"train.patience {self.patience} without train.best_by; say which score is to get better"
            )
        if self.best_by is not None and not self.evaluate_every:
            raise MistakeError(
                f"train.best_by {self.best_by} and train.evaluate_every 0; give the number of steps between evaluations"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything needed to repeat a training run."""

    preset: str = "tiny"
    """The network's sizes, by name."""
    model: dict[str, Any] = field(default_factory=dict)
    """Sizes that differ from the preset's, by field of ModelConfig."""
    backbone_weights: str | None = None
    """none (random), pretrained (timm's, downloaded), a .safetensors file of the backbone, or a model to take it from: a
    packaged name, a run or model folder."""
    init: str | None = None
    """A trained model to start from, its sizes included: a packaged name, a run or model folder. Tasks and classes of the
    same names keep their weights, the rest is new."""
    seed: int = 0
    """Seeds the weights, the order of images and every random draw."""
    plugins: Names = ()
    """Modules of your own that are imported before the run starts: FILE.py or dotted names. Importing runs their code."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", split_names(self.plugins) if self.plugins else ())

    def with_plugins(self, names: Iterable[str]) -> RunConfig:
        """This run with ``names`` among its plugins."""
        return replace(self, plugins=tuple(dict.fromkeys((*self.plugins, *names))))

    def model_config(self) -> ModelConfig:
        """The preset with this run's changes; ``MistakeError`` for an unknown preset or size."""
        return sizes_of(self.preset, self.model)

    def check(self) -> None:
        """Raises a one-line ``MistakeError`` for the first setting that cannot be trained with."""
        self.train.check()
        self.data.check()
        self._check_names()
        if self.init is not None and self.backbone_weights is not None:
            raise MistakeError(
                "give one of init, the whole of a trained model, and backbone_weights, its backbone alone"
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise MistakeError(f"seed {shortened(self.seed)}; expected 0 to {LARGEST_SEED}")
        stride = self.model_config().decoder_stride
        if stride not in (4, 8, 16):
            raise MistakeError(f"model.decoder_stride {stride}; expected 4, 8 or 16")
        if any(side % stride or side < 64 for side in self.data.size_hw):
            raise MistakeError(
                f"data.size_hw {list(self.data.size_hw)}; expected multiples of the decoder's stride {stride}, 64 or more"
            )
        for part, where in ((self, ""), (self.data, "data."), (self.train, "train.")):
            check_types(type(part), vars(part), where)  # as its folder is read back, where numbers are finite

    def _check_names(self) -> None:
        named = {"data.root": self.data.root, "init": self.init, "backbone_weights": self.backbone_weights}
        for setting, name in named.items():
            try:
                (name or "").encode()
            except UnicodeEncodeError as error:
                raise MistakeError(f"{setting} {name}: not UTF-8, and config.yaml is to hold it; rename it") from error


def check_size(given: str, size_hw: Sequence[int]) -> None:
    """Raises ``MistakeError`` for a height and a width at which no network sees images; ``given``: how it was asked for."""
    height, width = size_hw
    if min(size_hw) < 2:
        raise MistakeError(f"{given}; expected a height and a width of 2 pixels or more, such as 448 and 576")
    if max(size_hw) > MOST_SIDE or height * width > MOST_PIXELS:
        raise MistakeError(f"{given}; expected at most {MOST_SIDE} a side and {MOST_PIXELS} pixels in all")


def check_class_weights(given: Any) -> None:
    """Raises ``MistakeError`` where ``train.class_weights`` is not of its form; the names are not looked at."""
    if given == FROM_SHARES:
        return
    if not isinstance(given, Mapping):
        raise MistakeError(f"train.class_weights {given!r}; expected {FROM_SHARES} or weights by task and class name")
    for task, weights in given.items():
        if isinstance(weights, str | int | float) or not isinstance(weights, Mapping):
            if weights != FROM_SHARES:
                raise MistakeError(
                    f"train.class_weights.{task} {weights!r}; expected {FROM_SHARES} or weights by class name, such as "
                    "{chair: 2.5}"
                )
            continue
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise MistakeError(f"train.class_weights.{task}.{name} {weight!r}; expected a number of at least 0")


def _at_least(least: int, part: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value < least:
            raise MistakeError(f"{part}.{name} {value}; expected at least {least}")
