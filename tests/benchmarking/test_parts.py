from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mtlsi.benchmarking import parts
from mtlsi.benchmarking.parts import REST, count_bytes, count_flops, part_costs, parts_of, time_parts
from mtlsi.model.build import create_model
from mtlsi.model.decoders import OnlyTasks

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        heads = x.flatten(2).unflatten(1, (2, 4)).transpose(2, 3)  # b 2 n 4
        return F.scaled_dot_product_attention(heads, heads[:, :, :10], heads[:, :, :10])


class StandDecoder(nn.Module):
    """Parts whose operations can be counted by hand; the network's own names."""

    def __init__(self):
        super().__init__()
        self.preliminary = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fusion = Attention()
        self.distiller = nn.Identity()
        self.cross_window = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 5)])
        self.heads = nn.LayerNorm(5)

    def forward(self, x):
        self.fusion(self.preliminary(x))
        y = torch.ones(6, 5)
        for block in self.cross_window:
            y = block(self.distiller(y))
        return self.heads(y) @ torch.ones(5, 4)


class Stand(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = nn.Conv2d(3, 8, 3, padding=1), StandDecoder()

    def forward(self, x):
        return self.decoder(self.backbone(x))


@pytest.fixture
def stand():
    model = Stand().eval()
    return model, lambda: model(torch.ones(2, 3, 4, 6))


def test_operations_are_those_counted_by_hand(stand):
    with torch.no_grad():
        found = count_flops(*stand)
    assert found == {
        "backbone": 2 * (2 * 4 * 6) * 8 * (3 * 9),
        "preliminary": 2 * (2 * 4 * 6) * 8 * 9,
        "MT-MQLFB": 2 * (2 * 2 * 24 * 10 * 4) * 2,  # scores, then their sums of values
        "CWIB": 2 * 6 * 5 * 7 * 2,  # two blocks
        "heads": 0,
        REST: 2 * 6 * 5 * 4,
    }


def test_bytes_are_inputs_outputs_and_weights(stand):
    found = count_bytes(*stand)
    assert found["backbone"] == 4 * (2 * 3 * 24 + 2 * 8 * 24 + 8 * 3 * 9 + 8)
    assert found["CWIB"] == 4 * ((6 * 5 + 6 * 7 + 7 * 5 + 7) + (6 * 7 + 6 * 5 + 5 * 7 + 5))
    assert found["heads"] == 4 * (2 * 6 * 5 + 2 * 5)


def test_time_is_booked_where_it_was_spent(stand, monkeypatch):
    """On a clock that only the attention and what comes after the network move."""
    model, forward = stand
    now = [0.0]
    monkeypatch.setattr(parts.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    monkeypatch.setattr(Attention, "forward", lambda *_: advance(3.0))

    def with_rest():
        forward()
        advance(5.0)

    found = time_parts(model, with_rest, repeats=2, warmup=1, device=CPU)
    expected = {part: [0.0, 0.0] for part in found} | {"MT-MQLFB": [3.0, 3.0], REST: [5.0, 5.0]}
    assert found == expected


def test_no_hook_is_left_behind(stand):
    model, forward = stand
    part_costs(model, forward, repeats=1, device=CPU)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_decoder_that_computes_no_subset_has_the_same_parts_for_some_tasks(stand):
    model, _ = stand
    expected = parts_of(model)
    model.decoder = OnlyTasks(model.decoder, ("depth",))
    assert parts_of(model) == expected


def test_the_parts_of_a_network_make_up_the_whole():
    model, images = create_model("tiny").eval(), torch.randn(1, 3, 64, 96)
    seconds = []

    def forward():
        start = time.perf_counter()
        with torch.inference_mode():
            model(images)
        seconds.append(time.perf_counter() - start)

    costs = part_costs(model, forward, repeats=1, warmup=0, device=CPU)
    of_fusion = ["MT-MQLFB", "distiller", "adding fused", "CWIB"]
    assert [cost.part for cost in costs] == ["backbone", "preliminary", *of_fusion, "heads", REST]
    assert sum(cost.parameters for cost in costs) == sum(p.numel() for p in model.parameters())
    parts = [cost.timing.median_s for cost in costs if cost.part != REST]
    assert min(parts) > 0
    assert sum(parts) <= seconds[-1] <= sum(cost.timing.median_s for cost in costs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert sum(cost.flops for cost in costs) == counter.get_total_flops()


def test_a_container_that_is_never_called_counts_by_its_items(stand):
    model, forward = stand
    model.decoder.cross_window = nn.ModuleDict({"first": nn.Linear(5, 7), "second": nn.Linear(7, 5)})
    model.decoder.cross_window.__class__ = type(
        "Blocks", (nn.ModuleDict,), {"__iter__": lambda self: iter(self.values())}
    )
    with torch.no_grad():
        assert count_flops(model, forward)["CWIB"] == 2 * 6 * 5 * 7 * 2


def test_parts_that_are_switched_off_are_left_out():
    assert list(parts_of(create_model("tiny", fusion=False, cross_window=False))) == [
        "backbone",
        "preliminary",
        "heads",
    ]


def test_the_roofline_is_the_slower_of_arithmetic_and_memory(stand):
    cost = part_costs(*stand, repeats=1, device=CPU)[0]
    assert cost.bytes_moved is not None
    assert cost.allowed_s(cost.flops / 3, cost.bytes_moved / 2) == pytest.approx(3)
    assert cost.allowed_s(cost.flops, cost.bytes_moved / 2) == pytest.approx(2)
