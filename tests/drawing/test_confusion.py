from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mtlsi.drawing.confusion import plot_confusion
from mtlsi.tasks import NYUD40


def darkness(path):
    with Image.open(path) as image:
        return 255 - np.asarray(image.convert("L")).astype(int)


def edges_of_the_matrix(names, folder):
    """Top, bottom, left and right: what differs where all is taken for the first class or for the last."""
    pixels = np.zeros((2, len(names), len(names)), int)
    pixels[0, :, 0] = pixels[1, :, -1] = 1
    one, other = (darkness(plot_confusion(x.tolist(), names, folder / "edges.png")) for x in pixels)
    rows, columns = np.nonzero(np.abs(one - other) > 100)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize("names", [NYUD40, ("one", "two", "three"), tuple(map(str, range(55)))])
def test_each_label_is_dark_where_it_is_predicted_whatever_its_number_of_pixels(tmp_path, names):
    numbers = np.random.default_rng(0)
    pixels = np.zeros((len(names), len(names)), int)
    pixels[np.arange(len(names)), numbers.permutation(len(names))] = numbers.integers(1, 10**6, len(names))
    seen = darkness(plot_confusion(pixels.tolist(), names, tmp_path / "a.png"))
    top, bottom, left, right = edges_of_the_matrix(names, tmp_path)
    places = (np.arange(len(names)) + 0.2) / len(names)  # beside the number in the cell's middle
    cells = seen[np.ix_((top + (bottom - top) * places).astype(int), (left + (right - left) * places).astype(int))]
    np.testing.assert_array_equal(cells > 120, pixels > 0)
    assert (bottom - top) / len(names) > (
        40 if len(names) <= 40 else 20
    )  # dots to read a number in, or to see a colour


def test_shares_are_said_in_the_cells_and_an_unlabelled_class_has_none(tmp_path):
    names = ("one", "two", "three")
    top, bottom, left, right = edges_of_the_matrix(names, tmp_path)
    half, empty = [[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    cells = []
    for pixels in (half, empty):
        seen = darkness(plot_confusion(pixels, names, tmp_path / "a.png"))
        height, width = (bottom - top) // 3, (right - left) // 3
        inner = seen[top + height // 4 : top + 3 * height // 4, left + width // 4 : left + width // 4 + width // 2]
        cells.append(inner)
    assert np.ptp(cells[0]) > 50  # a number on a middle blue
    assert np.ptp(cells[1]) == 0


@pytest.mark.slow
def test_names_are_left_out_where_nobody_could_read_them(tmp_path):
    for number, read in ((60, True), (700, False)):
        one, other = (
            darkness(
                plot_confusion(
                    np.eye(number, dtype=int).tolist(), [f"{word} {i}" for i in range(number)], tmp_path / "a.png"
                )
            )
            for word in ("lamp", "chair")
        )
        assert (one.shape != other.shape or (one != other).any()) == read


def test_a_vector_picture_where_the_name_says_so(tmp_path):
    assert plot_confusion([[1, 2], [3, 4]], ("a", "b"), tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")


def test_classes_may_have_any_name(tmp_path):
    names = ("price $_$", "$\\bad{$", "x" * 200)
    assert plot_confusion([[1, 2, 3]] * 3, names, tmp_path / "a.png", title="$_$").is_file()
