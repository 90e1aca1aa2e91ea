"""Parts of timm's transformers that tracing holds to one size, in forms that any size can take.

Same weights, same results; only how sizes are worked with differs. A size must stay a symbol while it is traced: made a
number, it is held to; taken through remainder after remainder, it takes minutes to compare with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

APART = -100.0
"""What Swin adds to the score of two positions that the shift brought into one window from two sides of the map."""


def free_shapes(body: nn.Module) -> None:
    """Give the parts of ``body`` that need one a form whose shapes follow the image's."""
    for module in body.modules():
        if type(module) in FREE:
            module.__class__ = FREE[type(module)]


class FreeRotaryEmbedding(RotaryEmbeddingDinoV3):
    """DINOv3's rotary embedding. timm's divides by the map's sides as Python numbers, which a graph then keeps."""

    def _create_embed(self, feat_shape: Sequence[int], no_aug: bool = True) -> Tensor:
        del no_aug  # nothing is drawn in evaluation
        h, w = feat_shape
        norms = {"separate": (h, w), "max": 2 * (torch.sym_max(h, w),), "min": 2 * (torch.sym_min(h, w),)}
        places = [
            2 * (torch.arange(side, device=cast(Tensor, self.periods).device).float() + (0.5 + self.grid_offset)) / norm
            - 1
            for side, norm in zip((h, w), norms[self.normalize_coords], strict=True)
        ]
        if self.grid_indexing == "xy":
            places.reverse()
        grid = torch.stack(torch.meshgrid(places, indexing=self.grid_indexing), -1)  # h w 2
        return torch.cat(self._get_pos_embed_from_coords(grid.flatten(0, 1)), -1)


class FreePatchMerging(PatchMerging):
    """Swin's step to half the size, for maps whose sides are even: those of images of multiples of 32 are."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        squares = x.unflatten(2, (w // 2, 2)).unflatten(1, (h // 2, 2))  # b h/2 2 w/2 2 c
        return self.reduction(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class FreeSwinBlock(SwinTransformerBlock):
    """Swin's block, with windows counted once and images and windows on axes of their own."""

    def _attn(self, x: Tensor) -> Tensor:
        """Attention within windows: a map (b h w c), normed, to one of the same shape."""
        h, w = x.shape[1:3]
        (height, width), (down, right) = self.window_size, self.shift_size
        rows, columns = (h + height - 1) // height, (w + width - 1) // width
        x = F.pad(_rolled(x, down, right), (0, 0, 0, columns * width - w, 0, rows * height - h))
        x = (
            x.unflatten(2, (columns, width)).unflatten(1, (rows, height)).transpose(2, 3)
        )  # b rows columns height width c
        x = self._attended(x.flatten(3, 4).flatten(1, 2), self._scores(rows, columns))  # b windows positions c
        x = x.unflatten(2, (height, width)).unflatten(1, (rows, columns)).transpose(2, 3)
        return _rolled(x.flatten(3, 4).flatten(1, 2)[:, :h, :w], -down, -right)

    def _attended(self, x: Tensor, added: Tensor) -> Tensor:
        """Attention among the positions of each window: (b windows positions c) to the same."""
        attention = self.attn
        queries, keys, values = (
            part.unflatten(3, (attention.num_heads, -1)).transpose(2, 3) for part in attention.qkv(x).chunk(3, -1)
        )  # b windows heads positions channels
        scores = (attention.scale * queries) @ keys.transpose(3, 4) + added
        return attention.proj((scores.softmax(-1) @ values).transpose(2, 3).flatten(3))

    def _scores(self, rows: int, columns: int) -> Tensor:
        """What is added to the scores of each pair of positions: (windows or 1, heads, positions, positions)."""
        bias = self.attn._get_rel_pos_bias()
        if not any(self.shift_size):
            return bias
        parts = [
            _part_of(count, window, shift)
            for count, window, shift in zip((rows, columns), self.window_size, self.shift_size, strict=True)
        ]
        part = 3 * parts[0][:, None, :, None] + parts[1][None, :, None, :]  # rows columns height width
        part = part.flatten(2).flatten(0, 1)
        apart = (part[:, None, :] != part[:, :, None]).to(bias.dtype)
        return bias + APART * apart[:, None]


def _rolled(x: Tensor, down: int, right: int) -> Tensor:
    """A map (b h w c) moved up by ``down`` rows and to the left by ``right`` columns, the rest put in behind."""
    for axis, shift in ((1, down), (2, right)):
        if shift:
            every = (slice(None),) * axis
            x = torch.cat([x[(*every, slice(shift, None))], x[(*every, slice(shift))]], axis)
    return x


def _part_of(count: int, window: int, shift: int) -> Tensor:
    """Along one axis: which of three sides each position of each window comes from (count, window).

    1 from the last window on, 2 in what the shift put behind, 0 before.
    """
    if not shift:
        return torch.zeros(count, window, dtype=torch.int64)
    last = (torch.arange(count) == count - 1).long()
    behind = (torch.arange(window) >= window - shift).long()
    return last[:, None] * (1 + behind)


FREE: dict[type[nn.Module], type[nn.Module]] = {
    PatchMerging: FreePatchMerging,
    RotaryEmbeddingDinoV3: FreeRotaryEmbedding,
    SwinTransformerBlock: FreeSwinBlock,
}
