"""Labels on other grids: which pixel stands for which cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlsi.later import Later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


def cell_centres(length: int, num_cells: int, device: torch.device) -> Tensor:
    """Index of the pixel at the centre of each cell, in integers: exact at any ratio."""
    return (2 * torch.arange(num_cells, device=device) + 1) * length // (2 * num_cells)


def nearest_pixels(length: int, target: int) -> Tensor:
    """Index of the pixel nearest to each of ``target`` positions spread over ``length``, which may be fewer or more."""
    return ((torch.arange(target) + 0.5) * (length / target)).long().clamp_max(length - 1)


def largest_in_cells(label: Tensor, valid: Tensor, size_hw: tuple[int, int], fill: float) -> Tensor:
    """The largest valid value of each cell, ``fill`` in a cell without one; (... H W) to (... h w), same type.

    Where the ratio is not whole, neighbouring cells share pixels.
    """
    values = torch.where(valid, label.float(), -torch.inf)
    pooled = torch.nn.functional.adaptive_max_pool2d(values.reshape(-1, *label.shape[-2:]), size_hw)
    return torch.where(pooled == -torch.inf, fill, pooled).to(label.dtype).view(*label.shape[:-2], *size_hw)
