"""MTLSI-Net, the whole network on one page.

Paper: arXiv 2604.01995, "A Linear Semantic Interaction Network for Parameter-Efficient Multi-Task Dense Prediction".

Axes everywhere in the project: b batch, t task, c channel, h w map at the decoder's stride, n = h*w positions,
k semantic tokens, d width of an attention head. No n x n matrix is ever formed: every part is linear in n.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from mtlsi.config import sizes_of
from mtlsi.device import keep_freed_memory
from mtlsi.errors import MistakeError
from mtlsi.kernels.recompute import recomputed
from mtlsi.kinds import decode
from mtlsi.model.backbone import STRIDES, Backbone
from mtlsi.model.cross_window import CrossWindowBlock
from mtlsi.model.distiller import PooledTokens, SemanticTokenDistiller
from mtlsi.model.fusion import MultiQueryLinearFusion
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import PreliminaryDecoder
from mtlsi.nn.layers import Index, pick_tasks, resize_maps, to_map, to_positions
from mtlsi.nn.layout import join_windows, split_windows
from mtlsi.tasks import TASK_SETS, check_tasks, num_channels

__all__ = ["MTLSINet", "Output", "create_model", "decode"]

PACKAGED = Path(__file__).parent.parent / "models"


@dataclass
class Output:
    """Raw predictions (b channels H W) by task; ``decode`` says what the channels mean."""

    final: dict[str, Tensor]
    padded_coarse: dict[str, Tensor]
    """The coarse predictions as the network makes them, at the decoder's stride on the padded image."""
    size_hw: tuple[int, int] | None = None
    """The size of the image to which they are still to be fitted; None: they fit."""
    full_size: bool = True

    @cached_property
    def coarse(self) -> dict[str, Tensor]:
        """The coarse predictions. They are upsampled when somebody first asks for them, which prediction does not."""
        if self.size_hw is None:
            return self.padded_coarse
        return fit_to_image(self.padded_coarse, self.size_hw, full_size=self.full_size)


class MTLSINet(nn.Module, PyTorchModelHubMixin, library_name="mtlsi", license="mit", tags=["multi-task-learning"]):
    """One RGB image in, every task out; the sizes are those of ``ModelConfig``.

    ``tasks`` fixes the task axis; ``classes`` names the classes of each task that has classes; ``input_size`` (h, w) is
    the size of the images that the weights were trained on.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        classes: Mapping[str, Sequence[str]],
        input_size: Sequence[int],
        *,
        backbone: str,
        channels: int,
        num_heads: int,
        scales: Sequence[int],
        context_pool: int,
        num_tokens: int,
        window: int,
        num_blocks: int,
        ffn_ratio: int,
        decoder_stride: int,
        head_channels: int | None,
        dense_convolutions: bool,
        queries: str,
        fusion: bool,
        distiller: bool,
        cross_window: bool,
        drop_path: float = 0.0,
    ):
        super().__init__()
        keep_freed_memory()  # without it a large image takes twice as long on a CPU, in page faults
        if decoder_stride not in STRIDES[:3]:
            raise MistakeError(f"decoder_stride {decoder_stride}; expected 4, 8 or 16")
        if channels % num_heads:
            raise MistakeError(f"channels {channels} are not a multiple of num_heads {num_heads}; change one of them")
        self.tasks = check_tasks(tasks)
        self.classes = {task: tuple(names) for task, names in classes.items() if task in self.tasks}
        self.input_size = (int(input_size[0]), int(input_size[1]))
        outputs = {task: num_channels(task, self.classes) for task in self.tasks}
        t = len(outputs)

        self.backbone = Backbone(backbone, drop_path=drop_path)
        self.preliminary = PreliminaryDecoder(
            self.backbone.channels,
            channels,
            outputs,
            skip=STRIDES.index(decoder_stride),
            dense=dense_convolutions,
        )
        self.fusion = None
        if fusion:
            self.fusion = MultiQueryLinearFusion(
                channels, outputs, num_heads=num_heads, scales=scales, pool=context_pool, queries=queries
            )
        self.window, self.recomputes = window, False
        self.distiller = None
        if cross_window:  # nothing else reads tokens
            self.distiller = (SemanticTokenDistiller if distiller else PooledTokens)(t, channels, num_tokens)
        self.cross_window = nn.ModuleList(
            CrossWindowBlock(t, channels, num_heads=num_heads, window=window, ffn_ratio=ffn_ratio)
            for _ in range(num_blocks if cross_window else 0)
        )
        self.heads = TaskHeads(
            channels,
            self.backbone.channels[0],
            outputs,
            width=head_channels or (channels if decoder_stride == 4 else max(channels // 2, 8)),
            at_stride_4=decoder_stride == 4,
            dense=dense_convolutions,
        )

    def forward(self, images: Tensor, tasks: Iterable[str] | None = None, *, full_size: bool = True) -> Output:
        """ImageNet-normalised images (b 3 H W), H and W of any size, to the raw predictions of ``tasks`` (None: all).

        Predictions are at the images' size, or as the network makes them with ``full_size=False``: final ones at stride
        4 (b channels ceil(H/4) ceil(W/4)), coarse ones at the decoder's stride.
        What a subset of the tasks does not need is not computed; while training, all tasks are. Raises ``MistakeError``
        for an unknown task.
        """
        index = self._subset(tasks)
        early = None if self.fusion is not None else index  # the fusion reads every task's features
        maps = self.backbone(pad_to_multiple(images, STRIDES[-1]))
        features, coarse = self._part(self.preliminary, maps, early)  # b t c h w, b o h w
        if self.fusion is None:
            fused = to_positions(features)
        else:
            fused = pick_tasks(self._part(self.fusion, features, coarse), index)  # b t n c
            features = to_map(pick_tasks(to_positions(features), index), features.shape[-2:])
        refined = self._refine(features, fused, index)  # b t c h w
        final = self._part(self.heads, refined, maps[0], index)  # b o h w

        size_hw = (images.shape[-2], images.shape[-1])
        of_coarse = self.preliminary.predict.by_task(coarse, early)
        of_final = fit_to_image(self.heads.predict.by_task(final, index), size_hw, full_size=full_size)
        return Output(of_final, {task: of_coarse[task] for task in of_final}, size_hw, full_size)

    def recompute(self, on: bool) -> None:
        """While training keep of every part little more than its inputs, and compute the rest again when it is needed."""
        self.recomputes = on
        self.backbone.recompute(on)

    def _part(self, part: nn.Module, *inputs: Any) -> Any:
        return recomputed(part, *inputs) if self.recomputes else part(*inputs)

    def _refine(self, features: Tensor, fused: Tensor, index: Index) -> Tensor:
        """The semantic decoders: CWIBs on the preliminary features (b t c h w); without them, the fused features."""
        size = (features.shape[-2], features.shape[-1])
        if self.distiller is None:
            return to_map(fused, size)
        tokens = self._part(self.distiller, fused, index)  # b t k c
        x, mask = split_windows(features, self.window)  # b t n c, window by window
        for block in self.cross_window:
            x = self._part(block, x, tokens, mask, index)
        return join_windows(x, size, self.window)

    def _subset(self, tasks: Iterable[str] | None) -> Index:
        """Positions of ``tasks`` in the task axis; None where they are all tasks."""
        if tasks is None:
            return None
        names = check_tasks(tasks, self.tasks)
        if self.training:
            raise MistakeError(
                f"tasks={list(names)} while training; a subset is for inference: call model.eval() first"
            )
        index = tuple(i for i, task in enumerate(self.tasks) if task in names)
        return None if len(index) == len(self.tasks) else index

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """The network from a model or run folder, the name of a packaged model, or a hub id, in evaluation mode.

        Weights that do not fit the folder's own config.json raise ``MistakeError``.
        """
        packaged = PACKAGED / str(pretrained_model_name_or_path)
        source = packaged if packaged.is_dir() else Path(pretrained_model_name_or_path)
        if source.is_dir():
            for part in ("config.json", "model.safetensors"):
                if not (source / part).is_file():
                    raise MistakeError(f"model folder {source} has no {part}; expected a run or model folder with both")
        elif source.exists():
            raise MistakeError(
                f"model {source} is a file; expected the folder that holds config.json and model.safetensors"
            )
        kwargs.setdefault("strict", True)
        try:
            with redirect_stdout(io.StringIO()):  # the mixin prints where it loads from
                model = super().from_pretrained(
                    str(source if source.is_dir() else pretrained_model_name_or_path), **kwargs
                )
        except (RuntimeError, SafetensorError, TypeError, JSONDecodeError) as error:
            if isinstance(error, TypeError) and not source.is_dir():  # the hub has no such model, or no config.json
                raise MistakeError(_nowhere(pretrained_model_name_or_path)) from error
            reason = " ".join(str(error).split())[:200]
            raise MistakeError(f"model {source}: weights and config.json do not fit each other ({reason})") from error
        except (HFValidationError, OSError) as error:
            raise MistakeError(_nowhere(pretrained_model_name_or_path)) from error
        return model.eval()


def _nowhere(name: str | Path) -> str:
    known = ", ".join(packaged_models()) or "none"
    return (
        f"model {str(name)!r} is not a folder, not packaged (packaged: {known}) and not to be had from the hub; "
        "give a run folder or one of the packaged names"
    )


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/model.safetensors"))


def create_model(
    preset: str,
    *,
    dataset: str = "nyud",
    tasks: Sequence[str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    input_size: Sequence[int] | None = None,
    pretrained_backbone: bool = False,
    **sizes: Any,
) -> MTLSINet:
    """A network with the sizes of ``preset`` for the tasks and classes of ``dataset`` (nyud or pascal).

    ``tasks`` and ``classes`` override the data set's; ``sizes`` are fields of ``ModelConfig`` that differ from the
    preset's. ``pretrained_backbone`` downloads timm's weights. Raises ``MistakeError`` for unknown names.
    """
    if dataset not in TASK_SETS:
        raise MistakeError(f"unknown dataset {dataset!r}; expected one of {', '.join(TASK_SETS)}")
    task_set = TASK_SETS[dataset]
    network = MTLSINet(
        list(task_set.tasks if tasks is None else tasks),
        {task: list(names) for task, names in (classes or task_set.classes).items()},
        list(input_size or task_set.size_hw),
        **asdict(sizes_of(preset, sizes)),
    )
    if pretrained_backbone:
        network.backbone.download()
    return network


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images (b 3 H W) padded at the right and the bottom with zeros, the mean colour, to multiples of ``multiple``."""
    h, w = images.shape[-2:]
    return F.pad(images, (0, -w % multiple, 0, -h % multiple)) if h % multiple or w % multiple else images


def fit_to_image(predictions: Mapping[str, Tensor], size_hw: Sequence[int], *, full_size: bool) -> dict[str, Tensor]:
    """Predictions (b c h w) on the padded image, cut to the image of ``size_hw``, at its size or at their own
    stride.

    Upsampled ones are float32: a CPU takes twice as long in bf16.
    """
    height, width = size_hw
    fitted = {}
    for task, x in predictions.items():
        stride = -(-height // STRIDES[-1]) * STRIDES[-1] // x.shape[-2]
        if full_size:
            fitted[task] = resize_maps(x.float(), (stride * x.shape[-2], stride * x.shape[-1]))[..., :height, :width]
        else:
            fitted[task] = x[..., : -(-height // stride), : -(-width // stride)]
    return fitted
