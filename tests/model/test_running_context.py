from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.running_context import RunningContext
from random_weights import draw_weights

SIZES = {"tasks": ("semseg", "depth", "normals"), "input_size": (64, 96)}


def network(**options):
    torch.manual_seed(0)
    model = create_model("tiny", **SIZES, **options).eval()
    draw_weights(model.decoder, std=0.3)
    return model


def frames(count, size_hw=(64, 96)):
    """Noise, each frame of another colour."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 3, *size_hw, generator=draw) + 3 * torch.randn(count, 1, 3, 1, 1, generator=draw)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_mean_has_the_weights_of_a_geometric_series(keep):
    draw = torch.Generator().manual_seed(0)
    contexts = torch.randn(7, 2, 3, 4, 4, generator=draw)
    normalisers = torch.rand(7, 2, 3, 4, generator=draw)
    running = RunningContext(keep)
    for t in range(7):
        weights = [keep**t] + [(1 - keep) * keep ** (t - i) for i in range(1, t + 1)]
        assert sum(weights) == pytest.approx(1)
        given = [x.clone() for x in (contexts[t], normalisers[t])]
        found = running(*given)
        for x, seen in zip((contexts, normalisers), found, strict=True):
            expected = sum(weight * frame.double() for weight, frame in zip(weights, x, strict=False))
            torch.testing.assert_close(seen.double(), expected, atol=1e-6, rtol=1e-6)
            given[0].zero_()  # what was given is not what is kept
    running.reset()
    assert torch.equal(running(contexts[3], normalisers[3])[0], contexts[3])


def test_zero_gives_the_frames_own_exactly():
    running = RunningContext(0.0)
    for context in torch.randn(4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e3:
        assert torch.equal(running(context, context[..., 0])[0], context)


def test_low_precision_does_not_wear_the_mean_down():
    running, given = RunningContext(0.99), torch.full((1, 1, 1, 1), 1.0).bfloat16()
    running(torch.zeros_like(given), given[..., 0])
    for _ in range(300):
        context, _ = running(given, given[..., 0])
    assert context.dtype == torch.bfloat16
    assert context.item() == pytest.approx(1 - 0.99**300, abs=0.01)  # in bfloat16 it would stop at 0.8


@pytest.mark.parametrize("keep", [1.0, -0.1, 3.0, float("nan")])
def test_other_shares_are_refused(keep):
    with pytest.raises(MistakeError, match=r"context .*; expected 0 \(none\) or more, below 1"):
        RunningContext(keep)


def test_network_attends_to_the_mean_of_the_contexts(monkeypatch):
    """Against the plain network whose fusion is given, by hand, the mean of the contexts that it computed itself."""
    model, clip = network(), frames(4)
    decoder: Any = model.decoder
    fusion, seen = decoder.fusion, []
    own_context = fusion.context

    with torch.no_grad():
        running = RunningContext(0.7)
        found = [model(frame, context=running, full_size=False).final for frame in clip]
        plain = [model(frame, full_size=False).final for frame in clip]

        def by_hand(joined):
            seen.append(own_context(joined))
            weights = [0.7 ** (len(seen) - 1)] + [0.3 * 0.7 ** (len(seen) - i) for i in range(2, len(seen) + 1)]
            return tuple(sum(w * pair[k] for w, pair in zip(weights, seen, strict=True)) for k in (0, 1))

        monkeypatch.setattr(fusion, "context", by_hand)
        expected = [model(frame, full_size=False).final for frame in clip]
    for t in range(4):
        for task in model.tasks:
            torch.testing.assert_close(found[t][task], expected[t][task], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(found[0][task], plain[0][task]) for task in model.tasks)
    assert all((found[3][task] - plain[3][task]).abs().max() > 5e-3 for task in model.tasks)


def test_a_subset_of_the_tasks_follows_the_same_context():
    model, clip = network(), frames(3)
    with torch.inference_mode():
        whole, part = RunningContext(0.6), RunningContext(0.6)
        for frame in clip:
            expected = model(frame, context=whole).final["depth"]
            seen = model(frame, ["depth"], context=part).final["depth"]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"decoder": "heads_only"}, {"decoder": "invpt"}, {"fusion": False}], ids=str)
def test_a_decoder_without_a_fusion_has_no_context(options):
    model = network(**options)
    with pytest.raises(MistakeError, match="no fusion, whose context is smoothed; smooth the outputs instead"):
        model(frames(1)[0], context=RunningContext(0.5))
    assert model(frames(1)[0]).final.keys() == set(SIZES["tasks"])
