from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mtlsi import kinds
from mtlsi.data import transforms
from mtlsi.data.scenes.dataset import Scenes
from mtlsi.data.transforms import (
    EvaluationTransform,
    TrainTransform,
    cut,
    distort_colours,
    flip,
    pad_centred,
    resize,
    shown_hw,
)

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def room():
    """A generated room with a label for every task, some of its pixels unlabelled."""
    sample = Scenes(1, seed=4, size_hw=(48, 64), label_set="all")[0]
    for name, label in sample.items():
        if name != "image":
            label[..., 5:9, 10:21] = kinds.of(name).fill_value(label.dtype)
    return sample


@pytest.fixture
def marked():
    """An image that tells where each of its pixels comes from: depth numbers them, grey rises with the column."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    return {
        "image": (60 + 2 * columns).to(torch.uint8).expand(3, -1, -1).contiguous(),
        "depth": (64 * rows + columns + 1).float(),
        "semseg": rows.to(torch.uint8),
        "normals": torch.stack([0.6 * torch.ones(48, 64), torch.zeros(48, 64), 0.8 * torch.ones(48, 64)]),
        "boundary": ((rows + columns) % 2).to(torch.uint8),
    }


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def as_arrays(sample):
    return {name: x.numpy() for name, x in sample.items()}


# ---- flip and cut


def test_flip_mirrors_everything_and_negates_the_normals_x(room):
    expected = {name: x[..., ::-1].copy() for name, x in as_arrays(room).items()}
    expected["normals"][0] *= -1
    flipped = flip(room)
    assert flipped.keys() == room.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(flipped[name].numpy(), array, err_msg=name)


def test_flipping_twice_gives_the_sample_back(room):
    for name, x in flip(flip(room)).items():
        assert torch.equal(x, room[name]), name


def test_cut_takes_the_same_pixels_of_everything(room):
    for name, x in cut(room, (7, 11, 20, 30)).items():
        np.testing.assert_array_equal(x.numpy(), room[name].numpy()[..., 7:27, 11:41], err_msg=name)


# ---- resize


@pytest.mark.parametrize("size", [(96, 128), (31, 50), (24, 32), (48, 64), (67, 40)])
def test_labels_are_read_at_the_cells_centres(room, size):
    resized = resize(room, size)
    for name in ("semseg", "parsing", "saliency", "depth", "normals"):
        for row in range(size[0]):
            for column in range(size[1]):  # whole numbers: (2 i + 1) / 2 cells of 48 / size pixels each
                pixel = room[name][..., (2 * row + 1) * 48 // (2 * size[0]), (2 * column + 1) * 64 // (2 * size[1])]
                assert torch.equal(resized[name][..., row, column], pixel), (name, row, column)


@pytest.mark.parametrize("size", [(24, 32), (31, 50), (13, 9), (48, 31), (60, 20), (20, 70)])
def test_a_boundary_survives_shrinking_wherever_its_cell_holds_one(room, size):
    label, resized = room["boundary"].numpy(), resize(room, size)["boundary"].numpy()
    assert 0 < (resized == 1).sum() < resized.size
    for row in range(size[0]):
        top, bottom = row * 48 // size[0], -(-(row + 1) * 48 // size[0])
        for column in range(size[1]):
            left, right = column * 64 // size[1], -(-(column + 1) * 64 // size[1])
            cell = label[top:bottom, left:right]
            known = cell[cell != 255]
            assert resized[row, column] == (known.max() if known.size else 255), (row, column)


def test_a_boundary_cell_is_invalid_only_where_nothing_is_known():
    label = torch.tensor([[255, 255, 255, 1, 0, 255], [255, 255, 255, 255, 255, 0]], dtype=torch.uint8)
    sample = {"image": torch.zeros(3, 2, 6, dtype=torch.uint8), "boundary": label}
    assert resize(sample, (1, 3))["boundary"].tolist() == [[255, 1, 0]]


def test_zoom_divides_metres_and_nothing_else(room):
    plain, zoomed = resize(room, (96, 128)), resize(room, (96, 128), zoom=1.6)
    torch.testing.assert_close(zoomed["depth"], plain["depth"] / 1.6, rtol=1e-6, atol=0)
    assert torch.equal(kinds.of("depth").valid(zoomed["depth"]), kinds.of("depth").valid(plain["depth"]))
    for name in room.keys() - {"depth"}:
        assert torch.equal(zoomed[name], plain[name]), name


def test_shrinking_an_image_by_a_whole_factor_is_close_to_the_mean_of_its_squares():
    smooth = {"image": torch.linspace(0, 255, 64).to(torch.uint8).expand(3, 48, 64)}
    small = resize(smooth, (24, 32))["image"].float()
    squares = smooth["image"].float().unflatten(1, (24, 2)).unflatten(3, (32, 2)).mean((2, 4))
    assert (small - squares)[..., 1:-1].abs().max() <= 1  # the edges see no neighbour beyond


# ---- padding


def test_padding_surrounds_the_image_with_pixels_that_no_task_knows(room):
    padded = pad_centred(room, (60, 81))
    inside = (slice(6, 54), slice(8, 72))
    outside = torch.ones(60, 81, dtype=torch.bool)
    outside[inside] = False
    for name, x in padded.items():
        assert torch.equal(x[..., inside[0], inside[1]], room[name]), name
        assert x.dtype == room[name].dtype
        if name == "image":
            assert not x[:, outside].any()
        else:
            assert not kinds.of(name).valid(x)[outside].any(), name


# ---- colours


def test_colours_stay_between_0_and_1():
    images = torch.rand(40, 3, 8, 8, generator=seeded(0))
    images[:, :, 0], images[:, :, 1] = 0, 1
    for seed, image in enumerate(images):
        distorted = distort_colours(image, seeded(seed))
        assert distorted.min() >= 0, seed
        assert distorted.max() <= 1, seed


def test_each_of_four_distortions_is_left_out_half_of_the_time():
    image = torch.tensor([0.6, 0.4, 0.3]).view(3, 1, 1)
    untouched = sum(torch.equal(distort_colours(image, seeded(seed)), image) for seed in range(800))
    assert 25 <= untouched <= 75  # 800 / 2**4 = 50, deviation 6.8


def test_brightness_and_contrast_keep_within_their_range_on_grey():
    grey = torch.full((3, 1, 1), 0.5)  # saturation and hue do nothing to grey
    values = torch.stack([distort_colours(grey, seeded(seed)).mean() for seed in range(800)])
    low, high = (0.5 - 32 / 255) * 0.5, (0.5 + 32 / 255) * 1.5
    assert low <= values.min() < low + 0.05
    assert high - 0.05 < values.max() <= high


# ---- the whole of it


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0])
def test_one_geometry_for_image_and_labels(marked, zoom):
    transform = TrainTransform((32, 32), zoom=(zoom, zoom), class_limit=1)
    seen_flips, seen_corners = set(), set()
    for seed in range(12):
        sample = transform(marked, seeded(seed))
        assert {tuple(x.shape[-2:]) for x in sample.values()} == {(32, 32)}
        assert {name: x.dtype for name, x in sample.items() if name != "image"} == {
            name: x.dtype for name, x in marked.items() if name != "image"
        }
        known = kinds.of("depth").valid(sample["depth"])
        height = min(32, round(48 * zoom))
        assert known.sum() == height * 32
        number = (sample["depth"] * zoom).long() - 1  # powers of two: exact
        rows, columns = (x[known].view(height, 32) for x in (number // 64, number % 64))
        assert torch.equal(sample["semseg"][known].view(height, 32).long(), rows)
        flipped = bool(columns[0, 0] > columns[0, -1])
        assert torch.equal(sample["normals"][0][known], torch.full((height * 32,), -0.6 if flipped else 0.6))
        left_to_right = columns.flip(1) if flipped else columns
        # every pixel `zoom` times, in order, from one rectangle
        steps_right = (torch.arange(32) / zoom).long()
        steps_down = (torch.arange(height) / zoom).long()
        assert (left_to_right - left_to_right[:, :1] - steps_right).abs().max() == 0
        assert (rows - rows[:1] - steps_down[:, None]).abs().max() == 0
        grey = sample["image"].mean(0)[known].view(height, 32)
        order = grey.flip(1) if flipped else grey
        assert (order.diff(dim=1) >= -1e-5).all()
        assert order[0, -1] > order[0, 0]
        seen_flips.add(flipped)
        seen_corners.add((int(rows[0, 0]), int(left_to_right[0, 0])))
    assert seen_flips == {False, True}
    assert len(seen_corners) > 3 or zoom == 0.5  # at half size the whole image is shown


def test_image_hw_is_the_size_at_zoom_1_and_leaves_metres_alone(marked):
    sample = TrainTransform((24, 32), image_hw=(24, 32), zoom=(1, 1))(marked, seeded(0))
    numbers = sample["depth"].long() - 1
    assert torch.equal(numbers // 64, torch.arange(24)[:, None].expand(24, 32) * 2 + 1)


def test_a_transformed_room_keeps_to_the_label_conventions(room):
    for seed in range(8):
        sample = TrainTransform((40, 56), zoom=(0.5, 2.0))(room, seeded(seed))
        image = sample["image"].numpy() * STD[:, None, None] + MEAN[:, None, None]
        known = kinds.of("semseg").valid(sample["semseg"])
        assert image[:, known].min() >= -1e-6
        assert image[:, known].max() <= 1 + 1e-6
        normals = sample["normals"][:, kinds.of("normals").valid(sample["normals"])]
        torch.testing.assert_close(normals.norm(dim=0), torch.ones(normals.shape[1]), rtol=0, atol=1e-5)
        assert set(sample["boundary"].unique().tolist()) <= {0, 1, 255}
        for name in ("semseg", "parsing", "saliency"):
            assert set(sample[name].unique().tolist()) <= {*room[name].unique().tolist(), 255}


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(room):
    transform = TrainTransform((32, 32))
    first, again, other = (transform(room, seeded(seed)) for seed in (3, 3, 4))
    for name, x in first.items():
        assert torch.equal(x, again[name]), name
    assert not torch.equal(first["image"], other["image"])


def test_the_stored_sample_is_left_as_it_is(room):
    before = {name: x.clone() for name, x in room.items()}
    for seed in range(4):
        TrainTransform((32, 32), zoom=(1, 1))(room, seeded(seed))
        EvaluationTransform()(room)
    for name, x in room.items():
        assert torch.equal(x, before[name]), name


# ---- the class limit


def half_striped():
    """Left half one class, right half stripes of two: a crop of the right half alone is well mixed."""
    columns = torch.arange(256).expand(32, 256)
    label = torch.where(columns < 128, 0, 1 + columns // 8 % 2).to(torch.uint8)
    return {"image": torch.zeros(3, 32, 256, dtype=torch.uint8), "semseg": label}


def fullest(sample):
    return torch.bincount(sample["semseg"].flatten().long()).max() / sample["semseg"].numel()


def test_crops_full_of_one_class_are_drawn_anew():
    shares = {
        limit: [fullest(TrainTransform((32, 32), zoom=(1, 1), class_limit=limit)(half_striped(), seeded(seed)))
                for seed in range(40)]
        for limit in (0.75, 1.0)
    }  # fmt: skip
    assert max(shares[0.75]) <= 0.75
    assert sum(share > 0.75 for share in shares[1.0]) > 10


def test_an_image_of_one_class_is_taken_after_ten_tries(monkeypatch):
    draws = []
    integer = transforms._integer
    monkeypatch.setattr(transforms, "_integer", lambda generator, high: draws.append(high) or integer(generator, high))
    sample = half_striped()
    sample["semseg"].zero_()
    assert fullest(TrainTransform((32, 32), zoom=(1, 1))(sample, seeded(0))) == 1
    assert len(draws) == 2 * 10  # a row and a column each


def test_unlabelled_pixels_count_for_no_class():
    sample = half_striped()
    sample["semseg"][:, :] = 255
    sample["semseg"][0:2, ::2], sample["semseg"][0:2, 1::2] = 0, 0
    sample["semseg"][4:6] = 1  # of the few labelled pixels half are 0, half are 1: nothing to draw again
    generators = [seeded(5), seeded(5)]
    for limit, generator in zip((0.75, 1.0), generators, strict=True):
        TrainTransform((32, 32), zoom=(1, 1), class_limit=limit)(sample, generator)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


# ---- testing


def test_for_testing_the_image_is_resized_and_normalised_and_the_labels_are_not_touched(room):
    sample = EvaluationTransform((24, 32))(room)
    assert sample["image"].shape == (3, 24, 32)
    for name in room.keys() - {"image"}:
        assert sample[name] is room[name]
    as_stored = EvaluationTransform()(room)["image"].numpy()
    expected = (room["image"].numpy() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(as_stored, expected, atol=1e-5)


# ---- one factor for both sides


@pytest.mark.parametrize("stored", [(48, 64), (64, 48), (30, 90), (7, 640), (500, 3), (96, 128)])
@pytest.mark.parametrize("image_hw", [(96, 128), (33, 20), (64, 64)])
def test_a_kept_ratio_fills_the_size_by_one_side_and_stays_inside(stored, image_hw):
    found = shown_hw(stored, image_hw, "keep_ratio")
    factor = min(image_hw[0] / stored[0], image_hw[1] / stored[1])
    for side, most, own in zip(found, image_hw, stored, strict=True):
        assert 1 <= side <= most
        assert abs(side - own * factor) <= 0.5 or (side == 1 and own * factor < 1)
    assert any(side == most for side, most in zip(found, image_hw, strict=True))
    assert shown_hw(stored, image_hw, "stretch") == image_hw
    assert shown_hw(stored, None, "keep_ratio") == shown_hw(stored, None, "stretch") == stored


@pytest.mark.parametrize("stored", [(48, 64), (64, 48), (30, 90), (20, 12)])
def test_training_at_one_factor_is_a_naive_resize_in_the_middle_of_unlabelled_padding(stored, monkeypatch):
    monkeypatch.setattr(transforms, "distort_colours", lambda image, _: image)
    rows, columns = np.indices(stored)
    grey = (40 + 100 * rows / stored[0] + 60 * columns / stored[1]).astype(np.uint8)
    stored_sample = {
        "image": torch.from_numpy(np.stack([grey, grey // 2, 255 - grey])),
        "depth": torch.from_numpy((1 + 100 * rows + columns).astype(np.float32)),
        "semseg": torch.from_numpy((rows % 7).astype(np.uint8)),
    }
    sample = TrainTransform((40, 48), image_hw=(40, 48), zoom=(1, 1), class_limit=1, resize="keep_ratio")(
        stored_sample, seeded(3)
    )
    factor = min(40 / stored[0], 48 / stored[1])
    height, width = round(stored[0] * factor), round(stored[1] * factor)
    top, left = (40 - height) // 2, (48 - width) // 2
    depth, semseg = np.zeros((40, 48)), np.full((40, 48), 255)
    for i in range(height):
        for j in range(width):
            row, column = int((i + 0.5) * stored[0] / height), int((j + 0.5) * stored[1] / width)
            depth[top + i, left + j] = 1 + 100 * row + column  # metres stay: only a zoom divides them
            semseg[top + i, left + j] = row % 7
    inside = (slice(top, top + height), slice(left, left + width))
    image = np.zeros((3, 40, 48))
    resized = Image.fromarray(stored_sample["image"].permute(1, 2, 0).numpy()).resize((width, height), Image.BILINEAR)
    image[(slice(None), *inside)] = (np.asarray(resized).transpose(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[
        :, None, None
    ]
    found = as_arrays(sample)
    mirrored = found["depth"][inside][0, 0] > found["depth"][inside][0, -1]
    if mirrored:  # within its frame
        found = {name: x.copy() for name, x in found.items()}
        for x in found.values():
            x[(..., *inside)] = x[(..., *inside)][..., ::-1].copy()
    np.testing.assert_array_equal(found["depth"], depth)
    np.testing.assert_array_equal(found["semseg"], semseg)
    np.testing.assert_allclose(found["image"], image, atol=1.6 / 255 / STD.min())


def test_zoomed_crops_of_a_kept_ratio_are_as_dense_down_as_across():
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(96), indexing="ij")
    wide = {"image": torch.zeros(3, 48, 96, dtype=torch.uint8), "depth": (1 + 100 * rows + columns).float()}

    def steps(resize):
        transform = TrainTransform((24, 24), image_hw=(48, 48), zoom=(2, 2), class_limit=1, resize=resize)
        number = (2 * transform(wide, seeded(1))["depth"]).long() - 1
        return (number // 100).diff(dim=0).unique().tolist(), (number % 100).diff(dim=1).abs().unique().tolist()

    assert steps("keep_ratio") == ([1], [1])  # 48 of 96 columns, twice as large: every stored pixel once
    assert steps("stretch") == ([0, 1], [1])


def test_for_testing_a_kept_ratio_is_what_another_library_makes_of_the_whole_image(room):
    sample = EvaluationTransform((24, 24), "keep_ratio")(room)
    assert sample["image"].shape == (3, 18, 24)  # padded by who shows it
    whole = Image.fromarray(room["image"].permute(1, 2, 0).numpy()).resize((24, 18), Image.BILINEAR)
    expected = (np.asarray(whole).transpose(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(sample["image"].numpy(), expected, atol=1.6 / 255 / STD.min())
    for name in room.keys() - {"image"}:
        assert sample[name] is room[name]
