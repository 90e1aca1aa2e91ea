import pytest
import torch

from mtlsi.nn.layout import join_windows, pool_maps, split_windows

SIZES = [(4, 4), (8, 12), (7, 10), (3, 2), (5, 8)]
WINDOW = 4


def numbered(size_hw, batch=2, tasks=3, channels=2):
    """A map (b t c h w) in which every number occurs once; 0 does not occur."""
    count = batch * tasks * channels * size_hw[0] * size_hw[1]
    return torch.arange(1.0, count + 1).view(batch, tasks, channels, *size_hw)


@pytest.mark.parametrize("size_hw", SIZES)
def test_windows_hold_what_a_loop_over_the_map_puts_there(size_hw):
    h, w = size_hw
    x = numbered(size_hw)
    positions, mask = split_windows(x, WINDOW)
    rows, columns = -(-h // WINDOW), -(-w // WINDOW)
    assert positions.shape == (2, 3, rows * columns * WINDOW * WINDOW, 2)
    assert (mask is None) == (h % WINDOW == 0 and w % WINDOW == 0)
    place = 0
    for top in range(0, rows * WINDOW, WINDOW):
        for left in range(0, columns * WINDOW, WINDOW):
            for i in range(WINDOW * WINDOW):
                y, across = top + i // WINDOW, left + i % WINDOW
                inside = y < h and across < w
                expected = x[..., y, across] if inside else torch.zeros(2, 3, 2)
                assert torch.equal(positions[:, :, place], expected)
                if mask is not None:
                    window = place // WINDOW**2
                    assert mask[window, 0, 0, i] == mask[rows * columns + window, 0, 0, i] == inside
                place += 1


@pytest.mark.parametrize("size_hw", SIZES)
def test_join_undoes_split(size_hw):
    x = numbered(size_hw)
    positions, _ = split_windows(x, WINDOW)
    assert torch.equal(join_windows(positions, size_hw, WINDOW), x)


@pytest.mark.parametrize("size_hw", SIZES)
def test_pooled_maps_are_means_of_squares(size_hw):
    x = numbered(size_hw).double()
    pooled = pool_maps(x, 3)
    assert pooled.shape == (*x.shape[:3], -(-size_hw[0] // 3), -(-size_hw[1] // 3))
    for i in range(pooled.shape[-2]):
        for j in range(pooled.shape[-1]):
            square = x[..., 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            torch.testing.assert_close(pooled[..., i, j], square.mean((-1, -2)))
    assert torch.equal(pool_maps(x, 1), x)
    assert torch.equal(pool_maps(x[:, 0], 3), pooled[:, 0])


def test_mask_broadcasts_over_heads_and_queries():
    _, mask = split_windows(numbered((5, 6)), WINDOW)
    assert mask is not None
    assert mask.shape == (2 * 2 * 2, 1, 1, WINDOW * WINDOW)
    assert mask.sum() == 2 * 5 * 6
