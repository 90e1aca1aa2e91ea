import copy

import pytest
import timm
import torch
from torch import nn

from mtlsi.kernels.fold_norms import fold_norms


def trained(name):
    """A backbone whose norms have statistics, gains and offsets that matter."""
    torch.manual_seed(0)
    body = timm.create_model(name, features_only=True)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return body.eval()


def norms_of(body):
    return [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["mobilenetv2_035", "hrnet_w18_small", "resnet18", "efficientnet_lite0"])
def test_a_folded_backbone_gives_the_maps_of_float64_and_has_no_norm_left(name):
    body = trained(name)
    exact, folded = copy.deepcopy(body).double(), copy.deepcopy(body)
    assert fold_norms(folded, torch.randn(1, 3, 64, 64))
    assert len(norms_of(body)) > 10
    assert norms_of(folded) == []
    assert not any(module.training for module in folded.modules())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(folded(images), exact(images.double()), strict=True):
            assert (ours - expected).norm() < 1e-5 * expected.norm()


def test_a_norm_that_takes_no_convolutions_result_stays():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return [self.norm(self.convolution(x) + 1)]

    body = Apart().eval()
    assert fold_norms(body, torch.randn(1, 3, 8, 8))
    assert isinstance(body.norm, nn.BatchNorm2d)


def test_a_result_that_feeds_others_too_is_noticed():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.convolution(x)
            return [self.norm(x) + x]

    body = Shared()
    nn.init.constant_(body.norm.weight, 3.0)
    assert not fold_norms(body.eval(), torch.randn(1, 3, 8, 8))
