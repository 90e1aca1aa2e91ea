import itertools

import numpy as np

from mtlsi.kinds.palette import palette


def test_palette_has_a_colour_of_its_own_for_every_class():
    colours = palette(255)
    assert len(set(colours)) == len(colours) == 255
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    assert palette(40) == colours[:40]


def test_neighbouring_classes_look_different():
    """The 40 classes of NYUDv2: no two colours closer than what an eye tells apart side by side."""
    colours = np.array(palette(40), float)
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2))
    assert nearest > 10
