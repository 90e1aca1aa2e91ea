from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from mtlsi.model.network import MTLSINet
assert "timm" in sys.modules and "torch._dynamo" not in sys.modules
import torchvision
from timm.models import naflexvit
from torchvision.ops import roi_align
boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
print(float(roi_align(torch.ones(1, 1, 8, 8), boxes, 2).mean()))

from torchvision.ops.roi_align import is_compile_supported
import torch._dynamo
print(is_compile_supported("cpu") is torch._dynamo.utils.is_compile_supported("cpu"), torch._dynamo.__file__ is not None)
"""
OTHER = """
import sys

import pytest
from mtlsi.model import quick_timm
with quick_timm.without_compiler():
    stand_in = sys.modules["torch._dynamo"]
    @stand_in.disable
    def double(x): return 2 * x
    @stand_in.disable(recursive=False)
    def triple(x): return 3 * x
    print(double(4), triple(4), "torch._dynamo" in sys.modules)
    print(stand_in.config.__name__, sys.modules["torch._dynamo"] is stand_in)
import torch
print(torch.compiler.is_compiling(), double(4), triple(4))
"""


def said(program: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_network_is_built_without_the_compiler_and_torchvision_finds_it_later():
    assert said(PROGRAM) == ["1.0", "True True"]


def test_the_stand_in_steps_aside_for_what_it_does_not_know():
    assert said(OTHER) == ["8 12 True", "torch._dynamo.config False", "False 8 12"]


FILLED = """
import sys

import pytest
from mtlsi.model.quick_timm import timm
assert not {"torchvision", "torchvision.models", "torchvision.ops", "torch.onnx"} & {*sys.modules}
norm, extractor = timm.layers.norm_act.FrozenBatchNorm2d, timm.layers._fx._create_feature_extractor
first = eval(sys.argv[1])  # what is asked of torchvision before anything else
import torch
import torchvision
from torchvision.models import feature_extraction, resnet18
import torchvision.ops.misc
print(torchvision.ops.misc.FrozenBatchNorm2d is norm, feature_extraction.create_feature_extractor is extractor)
print(feature_extraction.torchvision is torchvision, type(torchvision).__name__, type(torchvision.ops).__name__)
print(torchvision.__spec__.loader is torchvision.__loader__, torchvision.__spec__.loader.__class__.__name__)
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [8.0, 8.0, 9.0, 9.0]])
print(torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist())
print([*extractor(resnet18(weights=None), ["layer1"])(torch.zeros(1, 3, 32, 32))])
"""


@pytest.mark.parametrize(
    "first",
    [
        "None",
        "__import__('torchvision.transforms.v2')",
        "__import__('torchvision.models')",
        "timm.layers.get_graph_node_names(timm.create_model('resnet18'))[0][0]",
    ],
)
def test_torchvision_is_whole_when_it_is_asked_for(first):
    done = subprocess.run([sys.executable, "-c", FILLED, first], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "True True",
        "True module module",
        "True SourceFileLoader",
        "[0, 2]",
        "['layer1']",
    ]


def test_torchvision_that_is_there_before_stays_as_it_is():
    program = "import torchvision; ops = torchvision.ops; from mtlsi.model.quick_timm import timm; import torchvision\n"
    assert said(program + "print(torchvision.ops is ops, timm.layers.norm_act.FrozenBatchNorm2d.__module__)") == [
        "True torchvision.ops.misc"
    ]
