"""What a drawing looks at of a map, whole and in bands."""

from __future__ import annotations

import numpy as np
import pytest

from mtlsi.drawing.thinning import Thinned, thin_out


@pytest.mark.parametrize("side", [1, 39, 40, 41, 79, 80, 119, 120, 333])
def test_bands_of_any_height_give_what_the_whole_map_does_and_thinning_twice_changes_nothing(side):
    array, box = np.arange(side * 57 * 3).reshape(side, 57, 3), (20, 9)
    whole = thin_out(array, box)
    assert len(whole) >= min(side, 2 * box[0])
    np.testing.assert_array_equal(thin_out(whole, box), whole)
    for height in (1, 2, 7, 50, side):
        thinned = Thinned((side, 57), box)
        for top in range(0, side, height):
            thinned.add(array[top : top + height])
        np.testing.assert_array_equal(thinned.array(), whole)
