from __future__ import annotations

import pytest
from torch import nn

from mtlsi.model.build import create_model
from mtlsi.nn.recording import not_ours


class Own(nn.Module):
    """A module that is not the project's."""


def test_networks_of_ours_may_be_recorded():
    assert not_ours(create_model("tiny", tasks=("depth",))) == ""


def hooked() -> nn.Module:
    module = nn.Identity()
    module.register_forward_pre_hook(lambda *_: None)
    return module


def keeping() -> nn.Module:
    """As timm's TinyViT keeps biases while it predicts, and drops them when it is trained."""
    module = nn.Identity()
    vars(module)["attention_bias_cache"] = {}
    return module


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Own(), "Own is a module of your own"),
        (hooked(), "a module has hooks"),
        (keeping(), "Identity keeps tensors from one pass to the next"),
    ],
    ids=str,
)
def test_what_may_do_another_thing_each_time_may_not(module, why):
    assert not_ours(nn.Sequential(nn.Identity(), module)) == why
