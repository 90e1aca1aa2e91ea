from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from mtlsi import kernels
from mtlsi.exporting.network import pad_by_stride, raw_network
from mtlsi.model.build import create_model
from mtlsi.nn.layout import (
    apart,
    join_windows,
    pool_maps,
    resize_maps,
    side_by_side,
    split_windows,
    to_map,
    to_positions,
)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 1), (7, 4, 1), (3, 2, 2), (1, 2, 1)]
)
def test_padding_by_stride_is_padding_by_size_for_whole_strides(kernel, stride, dilation):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Sequential(Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=2)))
    images = torch.randn(1, 4, 32, 64)
    expected = body(images)
    pad_by_stride(body)
    assert not any(isinstance(module, Conv2dSame) for module in body.modules())
    assert torch.equal(body(images), expected)


@pytest.mark.parametrize("tasks", [("depth", "semseg"), ("semseg", "depth", "normals", "boundary")])
def test_the_network_that_is_traced_gives_the_models_predictions(tasks):
    torch.manual_seed(0)
    model = create_model("tiny", dataset="nyud", input_size=(64, 96)).eval()
    images = torch.randn(2, 3, 64, 96)
    network = raw_network(model, tasks)
    with torch.no_grad():
        expected = model(images, tasks, full_size=False).final
        for form in ("default", "graph"):
            with kernels.use(form):
                for task, found in zip(network.model.tasks, network(images), strict=True):
                    torch.testing.assert_close(found, expected[task], atol=1e-4, rtol=1e-4)


def test_layouts_for_a_graph_are_the_layouts():
    x = torch.randn(2, 3, 4, 6, 10)  # b t c h w

    def all_of():
        positions, mask = split_windows(x, 4)
        return [
            to_positions(x),
            to_map(to_positions(x), (6, 10)),
            side_by_side(x),
            apart(side_by_side(x), 3),
            resize_maps(x, (12, 20)),
            resize_maps(x, (7, 11)),
            pool_maps(x, 2),
            positions,
            mask,
            join_windows(positions, (6, 10), 4),
        ]

    expected = all_of()
    with kernels.use("graph"):
        for found, as_ever in zip(all_of(), expected, strict=True):
            torch.testing.assert_close(found, as_ever)
