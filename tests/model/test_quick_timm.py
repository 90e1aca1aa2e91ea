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


@pytest.mark.slow
def test_a_network_is_built_without_the_compiler_and_torchvision_finds_it_later():
    assert said(PROGRAM) == ["1.0", "True True"]


@pytest.mark.slow
def test_the_stand_in_steps_aside_for_what_it_does_not_know():
    assert said(OTHER) == ["8 12 True", "torch._dynamo.config False", "False 8 12"]
