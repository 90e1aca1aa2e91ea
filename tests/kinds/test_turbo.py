from __future__ import annotations

import numpy as np

from mtlsi.kinds.turbo import turbo


def test_the_colours_are_those_of_matplotlib():
    import matplotlib

    colours = matplotlib.colormaps["turbo"](np.arange(256))[:, :3]
    np.testing.assert_array_equal(turbo(), np.round(255 * colours))
    assert turbo().dtype == np.uint8
