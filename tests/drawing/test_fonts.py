"""Letters that DejaVu Sans lacks, in a font that the test makes: each is a full square of its own size."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from mtlsi.drawing import fonts
from mtlsi.drawing.errors import plot_class_scores
from mtlsi.drawing.panels import draw_task

CHAIR, DOOR = "椅", "門"


def make_font(path: Path, letters: str) -> Path:
    """A font in which every one of ``letters`` is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [f"u{ord(letter):04X}" for letter in letters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names, strict=True)})
    builder.setupGlyf(dict.fromkeys([".notdef", *names], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The fonts of this machine: one that is broken, one of a single letter, and one of two."""
    (tmp_path / "a.ttf").write_bytes(b"no font")
    paths = [
        make_font(tmp_path / "One.ttf", "椅ab"),
        make_font(tmp_path / "Two.ttf", "椅門abcdefghijklmnopqrstuvwxyz "),
    ]
    every = [str(path) for path in (tmp_path / "a.ttf", *paths)]
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: every)
    fonts._font_with.cache_clear()
    yield paths
    fonts._font_with.cache_clear()
    manager = matplotlib.font_manager.fontManager
    manager.ttflist = [entry for entry in manager.ttflist if entry.fname not in every]


def test_the_first_font_with_all_letters_is_taken_and_usual_ones_are_not_looked_for(installed):
    assert fonts.font_for(f"{CHAIR} door") == installed[1]
    assert fonts.font_for(CHAIR + "a") == installed[0]
    for text in ("chaise Stühle", "στρώμα стол", ""):
        assert fonts.lacking(text) == frozenset()
        assert fonts.font_for(text) == fonts.plain_font()
        assert fonts.families_for(text) == []
    assert fonts.families_for(DOOR + "Ж") == ["DejaVu Sans", "Two"]  # matplotlib looks in both


@pytest.mark.usefixtures("installed")
def test_legends_and_plots_are_written_in_it(tmp_path):
    array = np.zeros((40, 400), np.uint8)
    dark = [(draw_task("semseg", array, [name]).max(-1) < 60).sum() for name in (DOOR * 20, "x" * 20)]
    assert dark[0] > 3 * dark[1] > 0  # squares, and not outlines
    dark = []
    for name in (DOOR * 10, "x" * 10):
        plot_class_scores([50.0, 60.0], [5, 5], [name, "b"], tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            dark.append((np.asarray(image.convert("L")) < 60).sum())
    assert dark[0] > 1.2 * dark[1]


@pytest.mark.usefixtures("installed")
def test_without_a_font_it_says_so_once():
    with pytest.warns(UserWarning, match="no font here has the letters 窓: they are drawn as boxes; install one"):
        assert fonts.font_for("窓") == fonts.plain_font()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fonts.font_for("窓") == fonts.plain_font()
        assert fonts.families_for("窓") == []
