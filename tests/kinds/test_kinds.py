"""What every kind promises, for the built-in tasks and for tasks of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtlsi
from mtlsi import kinds
from mtlsi.kinds.colouring import UNKNOWN, Scale, Swatches
from mtlsi.tasks import BUILT_IN, TASKS, Task

H, W = 6, 7
RECORDS = {
    **{name: TASKS[name] for name in BUILT_IN},
    "number": Task("number", kind="value"),
    "albedo": Task("albedo", kind="value", channels=3, range=(0, 1)),
    "curvature": Task("curvature", kind="value", channels=2),
    "wetness": Task("wetness", kind="strength"),
}
CLASSES = {"semseg": 5, "parsing": 300}
every_task = pytest.mark.parametrize("task", RECORDS.values(), ids=RECORDS)


def channels_of(task):
    return task.channels or CLASSES[task.name]


def label_with_a_hole(task, batch=2):
    """Random labels (b H W) or (b c H W) without a label in row 1, column 2; and where they are valid."""
    kind = kinds.of(task)
    torch.manual_seed(0)
    label = kind.random(batch, (H, W), channels_of(task))
    label[..., 1, 2] = kind.fill_value(label.dtype)
    valid = torch.ones(batch, H, W, dtype=torch.bool)
    valid[:, 1, 2] = False
    return label, valid


@every_task
def test_a_label_is_valid_except_where_it_holds_the_fill_value(task):
    kind = kinds.of(task)
    label, valid = label_with_a_hole(task)
    assert label.dtype == kind.label_dtype(channels_of(task))
    assert torch.equal(kind.valid(label), valid)
    np.testing.assert_array_equal(kind.valid(label.numpy()), valid)
    empty = kind.empty((H, W), channels_of(task))
    assert (empty.dtype, empty.shape) == (label.dtype, label.shape[1:])
    assert not kind.valid(empty).any()


def test_what_says_nothing_in_a_label():
    depth = torch.tensor([[torch.nan, 0.0], [-1.0, 2.5]])
    assert kinds.of("depth").valid(depth).tolist() == [[False, False], [False, True]]
    dark = torch.full((3, 1, 4), 0.01)
    dark[1, 0, 1], dark[2, 0, 2], dark[:, 0, 3] = torch.nan, torch.inf, 0
    assert kinds.of(RECORDS["albedo"]).valid(dark).tolist() == [[True, False, False, True]]
    wide = torch.tensor([[255, 65535]], dtype=torch.int32)
    assert kinds.of("semseg").valid(wide).tolist() == [[True, False]]
    assert kinds.of("semseg").valid(wide.to(torch.uint8)).tolist() == [[False, False]]


@every_task
def test_a_decoded_prediction_is_laid_out_as_a_label(task):
    label, _ = label_with_a_hole(task)
    decoded = kinds.of(task).decode(3 * torch.randn(2, channels_of(task), H, W, dtype=torch.bfloat16))
    assert decoded.shape == label.shape
    assert decoded.dtype == (label.dtype if task.kind == "classes" else torch.float32)


def test_values_keep_every_channel_and_their_sign():
    raw = torch.tensor([-2.0, 0.5, 3.0]).view(1, 3, 1, 1)
    assert kinds.of(RECORDS["albedo"]).decode(raw).flatten().tolist() == [0, 0.5, 1]
    assert kinds.of(RECORDS["curvature"]).decode(raw[:, :2]).flatten().tolist() == [-2, 0.5]
    assert kinds.of(RECORDS["number"]).decode(raw[:, :1]).tolist() == [[[-2]]]


@every_task
def test_the_raw_constant_decodes_to_the_constant(task):
    kind = kinds.of(task)
    label, valid = label_with_a_hole(task)
    values = torch.cat([one[..., known] for one, known in zip(label, valid, strict=True)], -1)
    constant = kind.constant(values)
    raw = kind.raw_constant(constant, channels_of(task))
    assert raw.shape == (channels_of(task),)
    torch.testing.assert_close(kind.decode(raw.view(1, -1, 1, 1))[0, ..., 0, 0].float(), constant.float())


@every_task
def test_mirroring_twice_gives_the_label_back(task):
    kind = kinds.of(task)
    label, _ = label_with_a_hole(task)
    before = label.clone()
    for axis in (-1, -2):
        mirrored = kind.flip(kind.flip(label, axis), axis)
        torch.testing.assert_close(mirrored, before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(label, before, rtol=0, atol=0, equal_nan=True)


@every_task
def test_only_distances_change_when_the_camera_comes_closer(task):
    label, _ = label_with_a_hole(task)
    expected = label / 2 if task.kind == "distance" else label
    torch.testing.assert_close(kinds.of(task).zoom(label, 2.0), expected, equal_nan=True)


@every_task
def test_packed_labels_come_back(task):
    kind = kinds.of(task)
    label = label_with_a_hole(task)[0][0]
    arrays = kind.pack(label)
    assert all(name.split(".")[0] == task.name for name in arrays)
    back = kind.unpack(arrays | {"other": np.zeros(1)}, (H, W))
    assert back.dtype == label.dtype
    tolerance = {"distance": 2 / 65535, "direction": 0.01}.get(task.kind, 0)
    torch.testing.assert_close(back, label, rtol=0, atol=tolerance, equal_nan=True)


def test_packed_distances_are_0_where_they_are_unknown():
    label = torch.tensor([[1.0, float("nan"), 0.0, 2.0]])
    kind = kinds.of("depth")
    torch.testing.assert_close(
        kind.unpack(kind.pack(label), (1, 4)), torch.tensor([[1.0, 0.0, 0.0, 2.0]]), rtol=0, atol=1e-4
    )


@every_task
def test_colours_are_grey_where_a_label_says_nothing_and_the_legend_explains_the_rest(task):
    kind = kinds.of(task)
    label, valid = label_with_a_hole(task)
    array = label[0].numpy()
    shown = kind.colours(array)
    assert (shown.dtype, shown.shape) == (np.uint8, (H, W, 3))
    np.testing.assert_array_equal((shown == UNKNOWN).all(-1), ~valid[0].numpy())
    np.testing.assert_array_equal(kind.colours(kind.channels_last(array)), shown)
    legend = kind.legend(kind.channels_last(array), None, kind.limits(array), num_marks=5)
    if isinstance(legend, Scale):
        assert legend.table.shape == (256, 3)
        assert len(legend.marks) == (3 if task.kind == "strength" else 5)
    else:
        assert isinstance(legend, Swatches)
        names = [name for _, name in legend.entries]
        if task.kind == "classes":
            assert {f"class {i}" for i in np.unique(array[valid[0].numpy()])} | {"not labelled"} == set(names)
        else:
            assert len(names) == channels_of(task)


def test_a_values_range_is_its_colour_scale():
    albedo = kinds.of(RECORDS["albedo"])
    assert albedo.limits(np.full((2, 2, 3), 0.5)) == (0, 1)
    np.testing.assert_array_equal(albedo.colours(np.array([[[0, 0.5, 1]]])), [[[0, 127, 255]]])
    number = kinds.of(RECORDS["number"])
    low, high = number.limits(np.linspace(-3, 5, 1001), np.array([np.nan]))
    assert (low, high) == pytest.approx((-2.96, 4.96))


@every_task
def test_files_of_the_field_keep_the_prediction(task):
    kind = kinds.of(task)
    prediction = kind.decode(torch.randn(1, channels_of(task), H, W))[0].numpy()
    suffix, content = kind.field_file(prediction)
    assert suffix == (".npy" if task.kind in ("value", "distance") else ".png")
    shown = kind.channels_last(prediction)
    restored = {
        "classes": lambda: content.astype(int),
        "strength": lambda: content / 255,
        "direction": lambda: content / 127.5 - 1,
    }.get(task.kind, lambda: content)()
    np.testing.assert_allclose(restored, shown, atol=0 if suffix == ".npy" or task.kind == "classes" else 0.004)
    assert content.dtype == (np.float32 if suffix == ".npy" else np.uint16 if channels_of(task) > 255 else np.uint8)


def test_decode_is_a_public_function():
    raw = torch.randn(1, 5, H, W)
    assert torch.equal(mtlsi.decode("semseg", raw), raw.argmax(1).to(torch.uint8))


def test_marks_of_values_that_hardly_differ_differ(monkeypatch):
    monkeypatch.setitem(TASKS, "heat", Task("heat", kind="value", unit="K"))
    legend = kinds.of("heat").legend(np.zeros((2, 2)), None, (310.02, 310.06), 5)
    assert legend.marks == ["310.02 K", "310.03 K", "310.04 K", "310.05 K", "310.06 K"]
    assert kinds.of("heat").legend(np.zeros((2, 2)), None, (290, 310), 3).marks == ["290 K", "300 K", "310 K"]
