"""Any timm backbone as four maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlsi.errors import MistakeError, message_of
from mtlsi.kernels.recompute import batch_norms, recompute
from mtlsi.model.foreign_weights import advice, advice_on_prefix
from mtlsi.model.quick_timm import resample_abs_pos_embed, timm
from mtlsi.tensor_files import check_tensor_file

STRIDES = (4, 8, 16, 32)
PATCHES = (14, 16)
"""Sides of a plain ViT's patches, in pixels."""


class Backbone(nn.Module):
    """ImageNet-normalised images (b 3 H W), H and W multiples of 32 -> four maps, ``channels[i]`` at stride 4 * 2**i.

    Convolutional and windowed networks give their own four stages; HRNet its four plain branches (Choice: as the field
    uses HRNet-18, not timm's widened ones). A plain ViT has one stride only: four of its depths become a pyramid. One with
    patches of 14 sees the image at 14/16 of its size, so that its maps lie at stride 16 (Choice: every weight stays as
    it was trained; the other way, larger patches, would resample the first layer's).
    """

    def __init__(self, name: str, *, drop_path: float = 0.0):
        super().__init__()
        if not timm.is_model(name):
            raise MistakeError(f"unknown backbone {name!r}; expected a timm model name, such as mobilenetv2_100")
        self.name = name
        self.options = _timm_options(name, drop_path)
        self.body = timm.create_model(name, features_only=True, **self.options)
        info: Any = self.body.feature_info
        strides, channels = info.reduction(), info.channels()
        self.pyramid, self.patch = None, 0
        if len(set(strides)) == 1 and strides[0] in PATCHES:
            self.pyramid, self.patch = ViTPyramid(channels[0]), strides[0]
            channels, strides = self.pyramid.channels, STRIDES
        if not set(STRIDES) <= set(strides):
            raise MistakeError(
                f"backbone {name!r} has maps at strides {strides}; expected 4, 8, 16, 32, or a plain ViT"
            )
        self.picked = tuple(strides.index(stride) for stride in STRIDES)
        self.channels = tuple(channels[i] for i in self.picked)
        self.gives_channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"  # timm's Swin, say
        self.norm_is_frozen = self.body_is_frozen = False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.own_maps(images)
        return maps if self.pyramid is None else self.pyramid(maps)

    def own_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """timm's four maps (b c h w): of a plain ViT its four depths, all at stride 16; of others those at 4, 8, 16, 32."""
        if self.patch == 14:
            size_hw = [side // 16 * self.patch for side in images.shape[-2:]]
            exact = images.to(torch.promote_types(images.dtype, torch.float32))  # a CPU knows no half-precision form
            images = F.interpolate(exact, size_hw, mode="bilinear", antialias=True).to(images.dtype)
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        if self.pyramid is not None:
            return tuple(maps)
        maps = [maps[i] for i in self.picked]
        if self.gives_channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return tuple(maps)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, except that a frozen body stays in evaluation and frozen batch norms on their statistics."""
        super().train(mode)
        if self.body_is_frozen:
            self.body.eval()
        elif self.norm_is_frozen:
            for norm in self.batch_norms():
                norm.eval()
        return self

    def batch_norms(self) -> list[nn.Module]:
        """Every batch norm that timm's network has."""
        return batch_norms(self.body)

    def recompute(self, on: bool) -> None:
        """Keep few activations while training: of every block its input where timm can, else of the whole its input.

        timm counts the batch statistics of a recomputed block twice: networks that have any are recomputed as a whole.
        """
        has_statistics = bool(self.batch_norms())
        recompute(self.body, on and has_statistics)
        if not has_statistics:
            cast(Any, getattr(self.body, "model", self.body)).set_grad_checkpointing(on)  # timm wraps plain ViTs

    def freeze(self, stride: int, *, norm: bool) -> None:
        """Keep timm's weights that make the maps up to ``stride`` (0: none); ``norm``: also all batch statistics.

        A plain ViT has a depth in place of each stride: 4 keeps a quarter of its blocks, 8 half of them. Its pyramid, which
        no weights come with, is always trained. 32 keeps all of timm's network, which then runs as in evaluation even
        while the decoder trains: without drop path, on stored statistics.
        """
        if stride not in (0, *STRIDES):
            raise MistakeError(f"freeze_stride {stride}; expected 0, 4, 8, 16 or 32")
        self.norm_is_frozen, self.body_is_frozen = norm, stride == STRIDES[-1]
        self.train(self.training)
        if not stride:
            return
        was_training = self.training
        self.eval()  # a probe must not move the statistics
        parameters = list(self.body.parameters())
        maps = self.own_maps(parameters[0].new_zeros(1, 3, 64, 64))[: STRIDES.index(stride) + 1]
        probe = torch.stack([x.float().sum() for x in maps])
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(probe.sum(), parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is None)
        self.train(was_training)

    def download(self) -> None:
        """timm's pretrained weights, from its hub or from the local cache. Raises ``MistakeError`` where there are none."""
        try:
            pretrained = timm.create_model(self.name, features_only=True, pretrained=True, **self.options)
        except (OSError, RuntimeError) as error:  # no network, or a network that timm has no weights for
            reason = message_of(error, 200)
            raise MistakeError(
                f"no pretrained weights for {self.name} ({reason}); connect to the network or give a .safetensors file"
            ) from error
        self.body.load_state_dict(pretrained.state_dict())

    def take_from(self, other: Backbone) -> None:
        """The weights of another network's backbone, pyramid included; ``MistakeError`` where it is another backbone."""
        if other.name != self.name:
            raise MistakeError(
                f"backbone weights of {other.name}; expected those of {self.name}: give a model that has it"
            )
        self.load_state_dict(other.state_dict())

    def load(self, path: str | Path) -> None:
        """Weights from a .safetensors file under timm's names; weights that do not fit are refused by name.

        Classifier weights in the file are passed over; any other stranger and any weight that the file lacks is an error.
        A ViT's position embeddings made for square images of another size are resampled to its own, as timm does.
        """
        try:
            check_tensor_file(Path(path))
            state = {name: tensor.float() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError, MistakeError) as error:
            raise MistakeError(
                f"backbone weights {path}: {message_of(error)}; expected a .safetensors file{advice(path)}"
            ) from error
        own = self.body.state_dict()
        # timm's list of features names "blocks.0" as "blocks_0"
        state = {_own_name(name, own): tensor for name, tensor in state.items()}
        if "model.pos_embed" in state and "model.pos_embed" in own:
            state["model.pos_embed"] = _positions_for(self.body.model, state["model.pos_embed"])
        with torch.device("meta"):
            whole = timm.create_model(self.name).state_dict()  # with its classifier
        strangers = [n for n in state if n not in own and n not in whole]
        missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
        wrong = [n for n in own if n in state and state[n].shape != own[n].shape]
        if missing or wrong or strangers:
            first = (missing or wrong or strangers)[0]
            raise MistakeError(
                f"backbone weights {path} do not fit {self.name}: {len(missing)} missing, {len(wrong)} of another shape, "
                f"{len(strangers)} unknown, the first is {first}; expected a file of {self.name} under timm's names"
                + advice_on_prefix(state, own)
            )
        self.body.load_state_dict({n: state.get(n, own[n]) for n in own})


class ViTPyramid(nn.Module):
    """Four maps (b c h w) of stride 16 -> strides 4, 8, 16, 32: narrowed, then upsampled by transposed convolutions."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.channels = (128, 256, 512, 512)
        self.narrow = nn.ModuleList(nn.Conv2d(in_channels, c, 1) for c in (256, 256, 512, 512))
        self.to_4 = nn.Sequential(nn.ConvTranspose2d(256, 128, 2, 2), nn.GELU(), nn.ConvTranspose2d(128, 128, 2, 2))
        self.to_8 = nn.ConvTranspose2d(256, 256, 2, 2)
        self.to_32 = nn.MaxPool2d(2)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        a, b, c, d = (narrow(x) for narrow, x in zip(self.narrow, maps, strict=True))
        return self.to_4(a), self.to_8(b), c, self.to_32(d)


def _timm_options(name: str, drop_path: float) -> dict[str, Any]:
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if name.startswith("hrnet"):
        options |= {"feature_location": "", "out_indices": (1, 2, 3, 4)}
    elif name.startswith("swin"):
        options |= {"strict_img_size": False}
    elif name.startswith(("vit", "deit", "eva")):
        with torch.device("meta"):
            info: Any = timm.create_model(name, features_only=True, out_indices=(-1,)).feature_info
        depth = info.get_dicts()[-1]["index"] + 1
        options |= {"dynamic_img_size": True, "out_indices": tuple(depth * i // 4 - 1 for i in range(1, 5))}
    return options


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    for candidate in (name, "model." + name, name.replace(".", "_", 1)):
        if candidate in own:
            return candidate
    return name


def _positions_for(vit: Any, positions: Tensor) -> Tensor:
    """Position embeddings (1 n c) of a square grid, for the grid of ``vit``; others as they are, to be refused."""
    first = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = math.isqrt(max(positions.shape[1] - first, 0))
    if side < 1 or side**2 + first != positions.shape[1] or positions.shape[2] != vit.pos_embed.shape[2]:
        return positions
    return resample_abs_pos_embed(positions, list(vit.patch_embed.grid_size), [side, side], first)
