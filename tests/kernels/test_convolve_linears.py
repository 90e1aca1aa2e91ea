import copy

import pytest
import timm
import torch
from torch import nn

from mtlsi.kernels.convolve_linears import ConvolvedLinear, convolve_linears, has_linears


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 4, 5)])
def test_a_convolved_layer_is_the_linear_layer_of_float64_with_the_same_weights(bias, shape):
    layer, x = nn.Linear(5, 6, bias=bias), torch.randn(shape)
    convolved = ConvolvedLinear.of(layer)
    assert convolved.weight is layer.weight
    assert convolved.bias is layer.bias
    expected = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(convolved(x).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 4}),
    ],
)
def test_a_backbone_gives_the_same_maps_with_no_other_linear_layer_left(name, options):
    body = timm.create_model(name, features_only=True, **options)
    body.eval()
    convolved, images = copy.deepcopy(body), torch.randn(1, 3, 64, 96)
    convolve_linears(convolved)
    assert not [m for m in convolved.modules() if type(m) is nn.Linear]
    assert has_linears(body)
    assert not has_linears(convolved)
    with torch.no_grad():
        for ours, expected in zip(convolved(images), body(images), strict=True):
            assert (ours - expected).norm() < 1e-5 * expected.norm()
