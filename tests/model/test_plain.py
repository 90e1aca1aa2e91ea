"""The network against its equations written out plainly: the same numbers, in less time."""

import copy
import time

import pytest
import torch

from mtlsi.model import create_model
from plain_network import plain_forward

FORMS = {
    "stride 8": {},
    "stride 4": {"decoder_stride": 4, "context_pool": 3, "window": 5},
    "many tokens and wide heads": {"channels": 64, "num_tokens": 160},
    "two blocks, dense": {"num_blocks": 2, "dense_convolutions": True, "queries": "dense"},
    "shared queries": {"queries": "shared"},
    "no fusion": {"fusion": False},
    "no windows": {"cross_window": False},
}


def network(**sizes):
    """With statistics as if it had been trained: fresh ones would leave the norms idle."""
    torch.manual_seed(0)
    model = create_model("tiny", **sizes)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def random_images(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(ours, plain, tolerance):
    """Every prediction, its differences over its size."""
    for task, expected in plain.items():
        assert ours[task].shape == expected.shape
        error = (ours[task] - expected).norm() / expected.norm()
        assert error < tolerance, f"{task}: {error:.1e}"


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_those_of_the_plain_network_in_float64(form):
    model, images = network(**FORMS[form]), random_images(2, 70, 101)
    with torch.no_grad():
        output = model(images)
        final, coarse = plain_forward(copy.deepcopy(model).double(), images.double())
    assert_same(output.final, final, 1e-5)
    assert_same(output.coarse, coarse, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_plain_network_in_float64(form):
    """In training, by the batch's own statistics."""
    model, images = network(**FORMS[form]).train(), random_images(2, 64, 96)
    model.backbone.eval()
    exact = copy.deepcopy(model).double()
    output = model(images)
    of_square(output.final, output.coarse).backward()
    of_square(*plain_forward(exact, images.double())).backward()
    expected = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    largest = max(gradient.norm() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        if name in expected and not name.startswith(
            "backbone."
        ):  # which both share, and which amplifies float32's errors
            error, length = (parameter.grad - expected[name]).norm(), expected[name].norm()
            assert error < 1e-4 * length + 1e-6 * largest, f"{name}: {error:.1e} of {length:.1e}"


def of_square(final, coarse):
    return sum((x * x).mean() for x in (*final.values(), *coarse.values()))


def fastest(*calls, repeats=4):
    """The shortest time of each, turn and turn about: what else the machine does can only add to it."""
    taken = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [min(own) for own in taken]


def test_it_is_three_times_as_fast_as_the_plain_network_and_trains_twice_as_fast():
    """On a decoder as large as that of ``hrnet_w18`` at stride 4; ``benchmarks/plain.py`` measures whole presets."""
    sizes = {"decoder_stride": 4, "context_pool": 4, "channels": 48, "num_heads": 1, "num_tokens": 512}
    model, images = create_model("tiny", **sizes).eval(), random_images(1, 288, 352)
    with torch.no_grad():
        ours, plain = fastest(lambda: model(images), lambda: plain_forward(model, images))
    assert plain > 3 * ours
    model.train()
    steps = (
        lambda: of_square(model(images).final, {}).backward(),
        lambda: of_square(plain_forward(model, images)[0], {}).backward(),
    )
    ours, plain = fastest(*steps, repeats=2)
    assert plain > 2 * ours
