"""The parts of a graph around the network, each alone, against Pillow and torch."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from PIL import Image

from mtlsi import decode
from mtlsi.config import RESIZES
from mtlsi.exporting import frame
from mtlsi.exporting.compare import shown_size
from mtlsi.nn.normalise import normalise
from mtlsi.prediction.full_size import MOST_CHANGES
from mtlsi.prediction.shown import Shown
from mtlsi.tasks import TASKS, Task


def run(model, outputs, **inputs):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(outputs, inputs)


def photo(height, width, seed=0):
    """Smooth and full of colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(96, 128), (150, 97), (31, 200), (40, 52)])
def test_an_image_becomes_what_the_predictor_shows_to_its_network(size, resize):
    pixels, shown_as = photo(*size), Shown((64, 96), resize)
    names = [frame.IMAGES, "shown_hw", "image_hw"]
    images, shown, given = run(frame.prepare(shown_as), names, image=pixels[None])
    height, width = shown.tolist()
    assert given.tolist() == list(size)
    assert (height, width) == shown_size(size, shown_as)
    assert all(abs(a - b) <= 2 for a, b in zip((height, width), shown_as.fit(size), strict=True))
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    expected = normalise(torch.from_numpy(np.array(small)).permute(2, 0, 1)).numpy()
    assert images.shape == (1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    levels = np.abs(images[0, :, :height, :width] - expected) * 255 * 0.23
    assert levels.max() < 2.1  # Pillow rounds in fixed point
    assert (levels > 0.1).mean() < 0.05
    assert not images[..., height:, :].any()
    assert not images[..., width:].any()


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (50, 50), (4000, 6000), (333, 517)])
def test_the_sizes_of_photographs_are_the_predictors(size):
    for resize in RESIZES:
        assert shown_size(size, Shown((336, 448), resize)) == Shown((336, 448), resize).fit(size)


@pytest.mark.parametrize("resize", RESIZES)
def test_no_constant_is_divided(resize):
    """OpenVINO 2026.4 turned the division around: the network was shown 172x228 pixels in place of 336x448."""
    graph = frame.prepare(Shown((336, 448), resize)).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert constants
    assert not [node for node in graph.node if node.op_type == "Div" and node.input[0] in constants]


def test_an_image_is_taken_as_it_is_without_resizing():
    pixels = photo(36, 64)
    images, shown = run(frame.prepare(None), [frame.IMAGES, "shown_hw"], image=pixels[None])
    assert shown.tolist() == [36, 64]
    np.testing.assert_allclose(images[0, :, :36], normalise(torch.from_numpy(pixels).permute(2, 0, 1)), atol=1e-5)


@pytest.mark.parametrize("size", [(50, 75), (6, 9)])
@pytest.mark.parametrize(
    ("task", "channels"),
    [
        ("semseg", 4),
        ("semseg", 300),
        ("depth", 1),
        ("normals", 3),
        ("boundary", 1),
        ("saliency", 2),
        ("heat", 1),
        ("flow", 2),
    ],
)
def test_a_raw_map_is_resized_and_decoded_as_under_pytorch(task, channels, size, monkeypatch):
    for own in (Task("heat", kind="value", range=(-0.5, 0.5)), Task("flow", kind="value", channels=2)):
        monkeypatch.setitem(TASKS, own.name, own)
    raw = torch.randn(2, channels, 8, 16, generator=torch.Generator().manual_seed(1))
    inputs = {"shown_hw": np.array([28, 60]), "image_hw": np.array(size), "batch_size": np.array([2])}
    (found,) = run(frame.finish(task, channels), [task], **{frame.raw_name(task): raw.numpy()}, **inputs)
    smaller = size[0] * size[1] <= 7 * 15
    expected = decode(task, F.interpolate(raw[:, :, :7, :15], size, mode="bilinear", antialias=smaller)).numpy()
    expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if TASKS[task].kind == "classes":
        assert (found != expected).mean() < 0.01  # ties, to rounding
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(50, 75), (75, 50), (9, 700)])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("trained_size", [(64, 96), (32, 48), (64, 64), (96, 32)])
def test_metres_are_those_of_the_size_of_training(size, resize, trained_size):
    raw = torch.rand(1, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    inputs = {"shown_hw": np.array([32, 64]), "image_hw": np.array(size), "batch_size": np.array([1])}
    made = [frame.finish("depth", 1, seen=seen) for seen in (None, (Shown((64, 96), resize), trained_size))]
    plain, found = (run(graph, ["depth"], network_depth=raw.numpy(), **inputs)[0] for graph in made)
    by = {
        "keep_ratio": lambda h, w: min(h / size[0], w / size[1]),
        "stretch": lambda h, w: (h * w / math.prod(size)) ** 0.5,
    }
    here, there = (min(by[resize](*hw), 4 * max(hw) / max(size)) for hw in ((64, 96), trained_size))
    np.testing.assert_allclose(found, plain * (here / there), rtol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("coarse", [(2, 2), (17, 31)])
@pytest.mark.parametrize(
    ("shown", "size"),
    [((68, 124), (90, 101)), ((68, 124), (6, 9)), ((68, 124), (300, 14)), ((4, 124), (33, 61)), ((68, 4), (61, 5))],
)
@pytest.mark.parametrize("channels", [4, 300])
def test_the_best_class_is_that_of_all_scores_resized(plain, coarse, shown, size, channels):
    """Of few regions, and of as many as places; images smaller than the map, narrower; maps of one row or one column."""
    height, width = shown[0] // 4, shown[1] // 4
    if plain and size[0] * size[1] <= height * width:
        pytest.skip("plain graphs are for larger images")
    drawn = torch.randn(2, channels, *coarse, generator=torch.Generator().manual_seed(1))
    raw = F.pad(F.interpolate(drawn, (17, 31), mode="bicubic"), (0, 1, 0, 1))
    names = {"shown_hw": np.array(shown), "image_hw": np.array(size), "batch_size": np.array([2])}
    graph = frame.finish("semseg", channels, plain=plain)
    (found,) = run(graph, ["semseg"], **{frame.raw_name("semseg"): raw.numpy()}, **names)
    cut = raw[:, :, :height, :width].double()
    if min(height, width) > 1:
        changes = [(cut.argmax(1).diff(dim=axis) != 0).double().mean() for axis in (1, 2)]
        assert (sum(changes) < MOST_CHANGES) == (coarse == (2, 2))
    expected = (
        F.interpolate(cut, size, mode="bilinear", antialias=size[0] * size[1] <= height * width).argmax(1).numpy()
    )
    assert found.shape == expected.shape
    assert (found != expected).mean() < 0.003  # ties, to rounding


@pytest.mark.parametrize(("task", "channels"), [("semseg", 4), ("depth", 1), ("normals", 3), ("saliency", 2)])
def test_a_plain_graph_has_no_branch_no_antialiasing_and_no_shape_of_data(task, channels):
    plain, whole = (list(nodes_of(frame.finish(task, channels, plain=plain).graph)) for plain in (True, False))
    kinds = {node.op_type for node in plain}
    assert not kinds & {"If", "NonZero", "GatherND", "ScatterND"}
    assert "If" in {node.op_type for node in whole}
    assert not [node for node in plain if any(attribute.name == "antialias" for attribute in node.attribute)]


def test_tasks_whose_names_are_those_of_anothers_inner_results_stand_side_by_side(monkeypatch):
    tasks = ("hand", "hand_left", "hand_cut", "hand_row_low")
    for name in tasks:
        monkeypatch.setitem(TASKS, name, Task(name, kind="classes"))
    parts = [frame.finish(name, 3).graph for name in tasks]
    raw = {frame.raw_name(name): np.random.default_rng(0).random((1, 3, 8, 8), np.float32) for name in tasks}
    inputs = {value.name: value for part in parts for value in part.input}
    graph = helper.make_graph(
        [node for part in parts for node in part.node], "all", list(inputs.values()),
        [value for part in parts for value in part.output], [tensor for part in parts for tensor in part.initializer],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", frame.OPSET)], ir_version=frame.IR_VERSION)
    sizes = {"shown_hw": np.array([32, 32]), "image_hw": np.array([50, 60]), "batch_size": np.array([1])}
    found = run(made, list(tasks), **raw, **sizes)
    for one in found[1:]:
        np.testing.assert_array_equal(one, found[0])


def nodes_of(graph):
    """All of a graph's operations, those of its branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)
