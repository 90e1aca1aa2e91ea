"""Fonts of drawings: DejaVu Sans, and for letters that it lacks a font of this machine that has them."""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

PLAIN = "DejaVu Sans"
FILE = Path("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
CERTAIN = 0x250
"""Letters below this, of Latin scripts, are in DejaVu Sans: no font is looked through for them."""


@cache
def plain_font() -> Path:
    """The file of DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    found = find_spec("matplotlib")  # its folder alone: to import it takes longer than to draw
    font = Path((found and found.origin) or "").parent / FILE
    if not font.is_file():  # some systems keep its data elsewhere
        import matplotlib

        font = Path(matplotlib.get_data_path()).parent / FILE
    return font


def font_for(text: str) -> Path:
    """The font to write ``text`` with: DejaVu Sans, or the first on this machine that has all letters of it.

    Where there is none, a warning says so, and the letters are drawn as boxes.
    """
    wanted = lacking(text)
    return (_font_with(wanted, frozenset(text)) if wanted else None) or plain_font()


def lacking(text: str) -> frozenset[str]:
    """The letters of ``text`` that DejaVu Sans does not have."""
    doubtful = frozenset(letter for letter in text if ord(letter) >= CERTAIN)
    return frozenset(letter for letter in doubtful if ord(letter) not in _letters_of(plain_font()))


def families_for(text: str) -> list[str]:
    """The names of fonts which together have the letters of ``text``, for matplotlib, which looks for each in turn.

    Empty where DejaVu Sans, its own default, has them all, or no font of this machine has the rest.
    """
    wanted = lacking(text)
    font = _font_with(wanted, wanted) if wanted else None
    if font is None:
        return []
    from matplotlib.font_manager import FontProperties, fontManager

    if all(entry.fname != str(font) for entry in fontManager.ttflist):
        fontManager.addfont(str(font))
    return [PLAIN, FontProperties(fname=str(font)).get_name()]


@lru_cache(maxsize=256)  # titles may be the names of a million images
def _font_with(wanted: frozenset[str], also: frozenset[str]) -> Path | None:
    """The first installed font with the letters ``wanted`` and ``also``; None where none has them."""
    from matplotlib.font_manager import findSystemFonts

    codes = {ord(letter) for letter in wanted | also}
    for path in sorted(findSystemFonts()):
        if codes <= _letters_of(Path(path)):
            return Path(path)
    shown = "".join(sorted(wanted)[:8])
    warnings.warn(
        f"no font here has the letters {shown}: they are drawn as boxes; install one, such as Noto", stacklevel=2
    )
    return None


@cache
def _letters_of(font: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(font)).get_charmap())
    except (RuntimeError, OSError, ValueError):  # no font that this matplotlib can read
        return frozenset()
