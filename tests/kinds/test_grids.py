from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mtlsi.kinds.grids import largest_in_cells, nearest


def labels(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 255, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "size_hw"), [((30, 41), (13, 60)), ((3, 30, 41), (61, 7)), ((2, 3, 5, 4), (5, 4))])
def test_the_nearest_pixel_is_the_one_at_the_exact_place(dtype, shape, size_hw):
    label = labels(dtype, *shape)
    found = nearest(label, size_hw)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-2], *size_hw)
    (height, width), (rows, columns) = shape[-2:], size_hw
    for row in range(rows):
        for column in range(columns):  # in whole numbers: (i + 1/2) pixels of height / rows each
            pixel = label[..., (2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns)]
            assert torch.equal(found[..., row, column], pixel)


def test_many_classes_keep_their_numbers():
    label = torch.tensor([[2**31 - 1, -(2**31)], [16_777_217, 300]], dtype=torch.int32)
    assert torch.equal(nearest(label, (4, 4))[::2, ::2], label)


@pytest.mark.parametrize("shape", [(1, 1), (17, 23), (2, 40, 33), (2, 1, 12, 60)])
@pytest.mark.parametrize("size_hw", [(1, 1), (5, 7), (12, 20), (17, 23)])
def test_the_largest_of_a_cell_is_that_of_adaptive_pooling(shape, size_hw):
    label = labels(torch.uint8, *shape)
    label[labels(torch.uint8, *shape[::-1]).reshape(shape) < 150] = 255
    values = torch.where(label == 255, -torch.inf, label.float()).reshape(-1, 1, *shape[-2:])
    pooled = F.adaptive_max_pool2d(values, size_hw).reshape(*shape[:-2], *size_hw)
    assert torch.equal(largest_in_cells(label, size_hw).float(), torch.where(pooled == -torch.inf, 255.0, pooled))


def test_labels_of_other_types_have_the_largest_of_their_valid_values_too():
    label = torch.tensor([[0, 1], [255, 0]])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert largest_in_cells(label.to(dtype), (1, 1)).tolist() == [[1]]
        assert largest_in_cells(label.to(dtype), (1, 1)).dtype == dtype
