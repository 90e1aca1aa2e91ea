from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mtlsi.drawing.errors import MOST_CLASSES, plot_angles, plot_class_scores, plot_errors_by_value
from mtlsi.drawing.plots import plot_precision_recall
from mtlsi.tasks import NYUD40

BLUE, GREY = (43, 108, 176), (153, 153, 153)


def pixels_of(path, colour):
    """Where a picture has this colour, nearly."""
    with Image.open(path) as image:
        return np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).max(-1) < 12


def bars_in(path, colour):
    """The lengths in dots of the bars of this colour, from top to bottom."""
    mask = pixels_of(path, colour)
    rows = mask.sum(1)
    edges = np.diff((rows > 60).astype(int))  # letters have edges of any grey, but no long ones
    ends = zip(np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1) + 1, strict=True)
    return [int(np.median(rows[a:b])) for a, b in ends if b - a > 8]


def test_bars_are_as_long_as_the_ious_say_and_the_longest_is_on_top(tmp_path):
    ious = np.random.default_rng(0).permutation(np.linspace(20, 100, 40))
    bars = bars_in(plot_class_scores(ious, [1000] * 40, NYUD40, tmp_path / "a.png"), BLUE)
    assert len(bars) == 40
    np.testing.assert_allclose(np.array(bars) / bars[0], np.sort(ious)[::-1] / 100, atol=0.02)


def test_a_class_that_never_occurs_has_no_bar_and_stands_last(tmp_path):
    names = ("one", "two", "three")
    whole = plot_class_scores([50, 80, 65], [10, 10, 80], names, tmp_path / "a.png")
    without = plot_class_scores([50, 80, float("nan")], [20, 80, 0], names, tmp_path / "b.png")
    assert len(bars_in(whole, BLUE)) == len(bars_in(whole, GREY)) == 3
    assert len(bars_in(without, BLUE)) == len(bars_in(without, GREY)) == 2
    one, other = (np.nonzero(pixels_of(path, BLUE).any(1))[0].max() for path in (whole, without))
    assert other < one - 10  # the last row is empty


def test_of_very_many_classes_the_most_frequent_are_drawn(tmp_path):
    num = MOST_CLASSES + 40
    ious, counts = np.full(num, 50.0), np.arange(num)
    assert len(bars_in(plot_class_scores(ious, counts, list(map(str, range(num))), tmp_path / "a.png"), BLUE)) == 60


def test_steps_are_as_high_as_the_errors(tmp_path):
    edges, error = np.arange(5.0), [1.0, 2.0, 4.0, 3.0]
    path = plot_errors_by_value(
        edges, [("RMSE", error)], [10, 40, 30, 20], tmp_path / "a.png", quantity="metres", title="depth"
    )
    mask = pixels_of(path, GREY)
    columns = np.flatnonzero(mask.any(0))
    left, right = columns.min(), columns.max() + 1
    heights = [mask[:, int(left + (right - left) * (i + 0.5) / 4)].sum() for i in range(4)]
    np.testing.assert_allclose(np.array(heights) / max(heights), [0.25, 1, 0.75, 0.5], atol=0.04)  # the shares
    light = pixels_of(path, (202, 218, 235))
    heights = [light[:, int(left + (right - left) * (i + 0.4) / 4)].sum() for i in range(4)]
    np.testing.assert_allclose(np.array(heights) / max(heights), np.array(error) / 4, atol=0.06)


def test_a_bin_without_a_pixel_leaves_a_gap(tmp_path):
    path = plot_errors_by_value(
        np.arange(4.0), [("RMSE", [1.0, float("nan"), 1.0])], [5, 0, 5], tmp_path / "a.png", quantity="m"
    )
    mask = pixels_of(path, GREY)
    columns = np.flatnonzero(mask.any(0))
    third = (columns.max() - columns.min()) / 3
    assert not mask[:, int(columns.min() + 1.5 * third)].any()


@pytest.mark.parametrize(("largest", "end"), [(20, 45), (100, 100), (179, 180)])
def test_the_histogram_of_angles_ends_where_angles_end(tmp_path, largest, end):
    histogram = np.zeros(180, int)
    histogram[:largest] = 100
    within = [(11.25, 30.0), (22.5, 60.0)]
    path = plot_angles(histogram, tmp_path / "a.png", within=within, mean_deg=10, median_deg=8)
    light = pixels_of(path, (191, 211, 231))
    bottom = np.flatnonzero(light.any(1)).max() - 3
    with Image.open(path) as image:
        axis = np.flatnonzero(np.asarray(image.convert("L"))[bottom + 8 :].min(0) < 60)
    width = (np.flatnonzero(light[bottom]).max() - np.flatnonzero(light[bottom]).min()) / (axis.max() - axis.min())
    assert width == pytest.approx(min(largest, end) / end, abs=0.06)


def test_lines_of_equal_f_pass_through_the_best_point_that_has_it(tmp_path):
    """With beta^2 = 0.3 precision weighs more: F of (recall 0.5, precision 1) is 1.3 / 1.6."""
    pictures = []
    for beta_squared in (1.0, 0.3):
        path = tmp_path / f"{beta_squared}.png"
        plot_precision_recall([0.2, 0.8], [1.0, 0.3], path, ods=(0.5, 1.0), beta_squared=beta_squared)
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    level = np.abs(pictures[0] - (217, 217, 217)).max(-1) < 10, np.abs(pictures[1] - (217, 217, 217)).max(-1) < 10
    assert level[0].sum() > 1000 < level[1].sum()
    assert (level[0] & level[1]).sum() < 0.3 * level[0].sum()  # other lines


def test_classes_and_titles_may_have_any_name(tmp_path):
    names = ("price $_$", "$\\bad{$", "x" * 200)
    assert plot_class_scores([50.0] * 3, [1] * 3, names, tmp_path / "a.png", title="$_$").is_file()
    series = [("RMSE ($_$)", [1.0])]
    assert plot_errors_by_value([0, 1], series, [1], tmp_path / "b.png", quantity="value ($_$)", title="$_$").is_file()
