"""What a run can be told: plain data, read from YAML and the command line, written into every run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mtlsi.errors import MistakeError


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a network; a preset is one of these."""

    backbone: str = "mobilenetv2_100"
    """A timm model name."""
    channels: int = 64
    """Channels of every task's features."""
    num_heads: int = 4
    """Attention heads, in the fusion and in the CWIB."""
    scales: tuple[int, ...] = (1, 3, 5)
    """Kernel sizes of the fusion's queries; odd numbers."""
    context_pool: int = 4
    """The fusion's context is built from features pooled over squares of this many positions."""
    num_tokens: int = 128
    """Semantic tokens per task (the paper's K)."""
    window: int = 8
    """Side of the CWIB's attention windows, in positions."""
    num_blocks: int = 1
    """CWIBs per task, one after another."""
    ffn_ratio: int = 2
    """Hidden over outer channels in the feed-forward parts."""
    decoder_stride: int = 4
    """Stride at which tasks interact: 4, 8 or 16. Predictions come at stride 4 all the same."""
    head_channels: int | None = None
    """Channels in which the heads draw at stride 4; None: ``channels``, half of them if ``decoder_stride`` is not 4."""
    dense_convolutions: bool = False
    """Plain 3x3 convolutions in place of separable ones in the preliminary decoder and the heads."""
    queries: str = "separable"
    """The fusion's convolutions. dense: one plain convolution per scale; separable: depthwise, then 1x1 across the tasks;
    shared: one 1x1 across the tasks for all scales, then depthwise."""
    fusion: bool = True
    """MT-MQLFB on; off: a task's fused features are its own preliminary features."""
    distiller: bool = True
    """Semantic Token Distiller on; off: the CWIB attends to as many averages over a regular grid."""
    cross_window: bool = True
    """CWIB on; off: the heads read the fused features directly."""
    drop_path: float = 0.0
    """Stochastic depth rate of the backbone in training."""
    decoder: str = "mtlsi"
    """mtlsi, heads_only (no interaction), or one registered with mtlsi.register_decoder."""
    decoder_options: dict[str, Any] = field(default_factory=dict)
    """What a registered decoder reads besides the sizes above."""

    @classmethod
    def of(cls, sizes: Mapping[str, Any]) -> ModelConfig:
        """The sizes given, those of ``config.json`` say, checked; ``MistakeError`` names an unknown or impossible one."""
        check_sizes(sizes)
        for name in cls.__dataclass_fields__:
            if name not in (*sizes, *LATER_SIZES):
                raise MistakeError(f"model size {name} is missing; expected every field of ModelConfig")
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
        config = cls(**lists)
        if config.channels % config.num_heads:
            raise MistakeError(
                f"channels {config.channels} are not a multiple of num_heads {config.num_heads}; change one of them"
            )
        return config


LATER_SIZES = ("head_channels", "drop_path", "decoder", "decoder_options")
"""What config.json of an older model may lack."""

PRESETS: dict[str, ModelConfig] = {
    "swin_large": ModelConfig(
        "swin_large_patch4_window12_384", 192, 6, num_tokens=512, queries="shared", drop_path=0.15
    ),
    "swin_tiny": ModelConfig("swin_tiny_patch4_window7_224", 64, 2, num_tokens=512, drop_path=0.15),
    "hrnet_w18": ModelConfig(
        "hrnet_w18_small_v2", 48, 1, num_tokens=512, decoder_stride=8, context_pool=2, head_channels=48
    ),
    "vit_large": ModelConfig("vit_large_patch16_384", 128, 4, num_tokens=512, drop_path=0.15),
    "mobilenetv2_100": ModelConfig("mobilenetv2_100", 64, 2, num_tokens=64, decoder_stride=8, context_pool=2),
    "tiny": ModelConfig("mobilenetv2_035", 24, 2, num_tokens=32, decoder_stride=8, context_pool=2),
}


def sizes_of(preset: str, changes: Mapping[str, Any]) -> ModelConfig:
    """The preset's sizes with ``changes``; ``MistakeError`` for an unknown preset or size."""
    if preset not in PRESETS:
        raise MistakeError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    check_sizes(changes)
    return replace(PRESETS[preset], **changes)


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises ``MistakeError`` for a name that is no field of ``ModelConfig``."""
    known = [field.name for field in fields(ModelConfig)]
    for name in sizes:
        if name not in known:
            raise MistakeError(f"unknown model size {name!r}; expected some of {', '.join(known)}")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are varied."""

    name: str = "scenes"
    """scenes, nyud, pascal or folder (your own labels)."""
    root: str | None = None
    """The data set's folder; scenes need none."""
    tasks: tuple[str, ...] | None = None
    """The tasks to learn; None: all that the data has."""
    label_set: str = "nyud"
    """For scenes: nyud (four tasks) or pascal (five tasks)."""
    size_hw: tuple[int, int] = (128, 160)
    """Height and width of the crops that train the network; multiples of 32 waste no padding."""
    image_hw: tuple[int, int] | None = None
    """A whole image's size at zoom 1, in training and in testing; None: as stored."""
    zoom: tuple[float, float] = (0.5, 2.0)
    """Range of the random zoom."""
    class_limit: float = 0.75
    """A crop is drawn again while one class fills more than this share of it."""
    num_train: int = 2000
    """Generated scenes to train on."""
    num_val: int = 200
    """Generated scenes to test on; none of them is trained on."""
    num_workers: int = 1
    """Loader processes; 0: load in the training process."""
    in_memory: bool = False
    """Every loader process keeps the decoded training images it has read."""


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    iterations: int = 40000
    """Optimizer steps."""
    batch_size: int = 8
    """Images per process and micro-step."""
    accumulate: int = 1
    """Micro-steps per optimizer step."""
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
    """Steps over which the learning rate rises to its value."""
    clip_norm: float = 10.0
    """The gradient's norm is cut to this."""
    precision: str = "auto"
    """float32, bf16, or auto: whichever multiplies matrices faster on this device."""
    ema: float = 0.999
    """Decay of the weights' moving average, which is what is evaluated and saved; 0: off."""
    coarse_weight: float = 1.0
    """Weight of the coarse predictions' losses."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Loss weight per task, where it is to differ from the field's."""
    boundary_positive: float = 0.95
    """Weight of boundary pixels in the boundary loss; the others weigh one minus this."""
    loss_at: str = "prediction"
    """prediction: labels are brought to the network's stride 4 (cheap); image: predictions are upsampled to the labels."""
    freeze_stride: int = 0
    """Backbone weights up to the map of this stride stay as they are; 0: all are trained."""
    freeze_norm: bool = False
    """The backbone's batch norms use their stored statistics: for small batches."""
    recompute: bool = False
    """Keep few activations and compute the others again in the backward pass: less memory, more time."""
    evaluate_every: int = 2000
    """Steps between evaluations; 0: only at the end."""
    evaluate_images: int = 100
    """Images in an evaluation during training, spread over the validation split; 0: all. The last one takes all."""
    checkpoint_every: int = 1000
    """Steps between saved states."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    tracker: str | None = None
    """Name of an accelerate tracker, such as tensorboard."""


@dataclass(frozen=True)
class RunConfig:
    """Everything needed to run a training again."""

    preset: str = "tiny"
    """The network's sizes, by name."""
    model: dict[str, Any] = field(default_factory=dict)
    """Sizes that differ from the preset's, by field of ModelConfig."""
    backbone_weights: str | None = None
    """none (random), pretrained (timm's, downloaded), a .safetensors file of the backbone, or a model to take it from: a
    packaged name, a run or model folder."""
    seed: int = 0
    """Seeds the weights, the order of images and every random draw."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def model_config(self) -> ModelConfig:
        """The preset with this run's changes."""
        return sizes_of(self.preset, self.model)
