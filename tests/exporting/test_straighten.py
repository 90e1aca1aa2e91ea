from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from mtlsi.exporting.straighten import straighten


class ByTask(nn.Module):
    """Two tasks of four channels: what can be straightened, then, with ``bent``, what cannot."""

    def __init__(self, *, bent: bool):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.within, self.along = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
        self.bent = bent

    def forward(self, images):
        x = self.first(images)
        h, w = x.shape[-2:]
        x = F.gelu(x.unflatten(1, (2, 4)))  # b t c h w
        line = x.flatten(3).transpose(2, 3).transpose(2, 3).flatten(1, 2).unsqueeze(3)  # b (t c) n 1
        if self.bent:
            line = self.along(line)  # neighbours along the line are none of the map's
        y = self.within(line).squeeze(3).unflatten(1, (2, -1)).unflatten(3, (h, w))
        return self.last((x + y).flatten(1, 2))


def straightened(*, bent):
    torch.manual_seed(0)
    module = ByTask(bent=bent).eval()
    sides = {0: Dim("batch"), 2: 4 * Dim("rows"), 3: 4 * Dim("columns")}
    program = torch.export.export(module, (torch.randn(2, 3, 20, 28),), dynamic_shapes=(sides,), strict=False)
    straighten(program)
    images = torch.randn(3, 3, 16, 40)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), module(images))
    names = [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]
    return [name for name in names if name != "sym_size"]


def test_reshapes_between_convolutions_vanish():
    assert straightened(bent=False) == ["conv2d", "gelu", "conv2d", "add", "conv2d"]


def test_those_that_matter_stay():
    names = straightened(bent=True)
    assert names.count("conv2d") == 4
    assert "flatten" in names
    assert "unflatten" in names
