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


def nearest(label: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """``label`` (... H W) at another size, larger or smaller: the pixel nearest to each position, same type."""
    resizable = label.is_floating_point() or label.dtype == torch.uint8  # to torch
    exact = label if resizable else label.double()
    maps = exact.reshape(1, -1, *label.shape[-2:])
    resized = torch.nn.functional.interpolate(maps, size_hw, mode="nearest-exact")
    return resized.to(label.dtype).view(*label.shape[:-2], *size_hw)


def largest_in_cells(label: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The largest valid value of each cell; (... H W) to (... h w), 0 to 255, of which 255 is invalid, same type.

    A cell without a valid one is 255. Where the ratio is not whole, neighbouring cells share pixels.
    """
    values = label.to(torch.uint8) + 1  # 255 becomes 0, less than all others
    for axis, num_cells in zip((-2, -1), size_hw, strict=True):
        values = _largest_along(values, axis, num_cells)
    return (values - 1).to(label.dtype)


def _largest_along(values: Tensor, axis: int, num_cells: int) -> Tensor:
    """The largest value of each of ``num_cells`` cells along one axis."""
    length = values.shape[axis]
    cells = torch.arange(num_cells, device=values.device)
    first, last = cells * length // num_cells, ((cells + 1) * length - 1) // num_cells
    largest = values.index_select(axis, first)
    for step in range(1, -(-length // num_cells) + (length % num_cells > 0)):  # no cell has more pixels than that
        largest = torch.maximum(largest, values.index_select(axis, torch.minimum(first + step, last)))
    return largest
