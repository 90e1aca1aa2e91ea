"""Images for people: every task in colours, with the names and the numbers that the colours stand for.

Arrays everywhere in this file, at any size ``H W``, are predictions as ``Predictor`` gives them or labels as
``mtlsi.tasks`` defines them: maps ``(H W)``, several channels ``(H W c)`` or ``(c H W)``. Colours come from
``mtlsi.kinds``; this file lays out the drawings. Invalid pixels are one flat grey.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtlsi import kinds
from mtlsi.drawing.fonts import font_for
from mtlsi.drawing.thinning import Box, thin_out
from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import Colour, Limits, Scale, Swatches
from mtlsi.tasks import TASKS

PAPER, INK, FAINT = (255, 255, 255), (32, 33, 36), (110, 113, 118)
FRAME = (208, 210, 214)
LONGEST = 1600
"""The longer side of a task's own drawing, at most."""
TILE_WIDTH, TILE_HEIGHT, NARROWEST = 480, 640, 300
"""An image in a panel fits in the first two; no cell is narrower than the third, so that its legend can be read."""
MARGIN, GAP, TEXT, TITLE, LEGEND_LINES = 20, 8, 15, 19, 6

Classes = Mapping[str, Sequence[str]]
Colours = Mapping[str, Sequence[Colour]]
"""By task with classes, the colours in which a data set draws them; a task that is not there has our own."""


def draw_task(
    task: str,
    array: np.ndarray,
    classes: Sequence[str] | None = None,
    longest: int = LONGEST,
    colours: Sequence[Colour] | None = None,
    size_hw: tuple[int, int] | None = None,
) -> np.ndarray:
    """One task for a person to look at, ``(H' W' 3) uint8``: the map in colours with its legend or scale below.

    ``classes`` and ``colours``: the names and the RGB colours of a task with classes.

    The map's longer side is brought to at most ``longest`` pixels, and a small map is upsampled to a legible size.
    ``size_hw``: its own size, where ``array`` is what ``thin_out`` left of it for ``task_box``.
    """
    height, width = size_hw or kinds.of(task).channels_last(array).shape[:2]
    box = task_box((height, width), longest)
    return np.asarray(_grid([[_cell(task, array, classes, box, None, colours=colours)]]))


def task_box(size_hw: tuple[int, int], longest: int = LONGEST) -> Box:
    """At which height and width ``draw_task`` draws a map of ``size_hw``."""
    return _fit(size_hw, (longest, longest), smallest=TILE_WIDTH)


def panel(
    image: np.ndarray,
    prediction: Mapping[str, np.ndarray],
    classes: Classes | None = None,
    titles: Mapping[str, str] | None = None,
    colours: Colours | None = None,
) -> np.ndarray:
    """The image and every task of ``prediction`` side by side on one sheet, ``(H' W' 3) uint8``.

    ``image (H W 3) uint8``; ``classes`` and ``colours`` the names and colours of each task that has classes; ``titles``
    replaces the headings by task name (``"image"`` for the image's own).
    """
    drawing = Panel(image, classes, titles, colours)
    for task, array in prediction.items():
        drawing.add(task, array)
    return drawing.draw()


class Panel:
    """``panel``, drawn task by task: of the image and of each map nothing is kept but its drawing."""

    def __init__(
        self,
        image: np.ndarray,
        classes: Classes | None = None,
        titles: Mapping[str, str] | None = None,
        colours: Colours | None = None,
    ):
        self.box, self.classes = _fit(image.shape[:2], (TILE_HEIGHT, TILE_WIDTH)), classes or {}
        self.titles, self.colours = titles or {}, colours or {}
        self.cells = [_photo_cell(image, self.box, self.titles.get("image", "image"))]

    def add(self, task: str, array: np.ndarray) -> None:
        """Draw the map of a task, or what ``thin_out`` left of it for ``box``."""
        title = self.titles.get(task, TASKS[task].title)
        self.cells.append(_cell(task, array, self.classes.get(task), self.box, title, colours=self.colours.get(task)))

    def draw(self) -> np.ndarray:
        """The sheet ``(H' W' 3) uint8``."""
        columns = _columns(len(self.cells), self.cells[0].width / self.cells[0].height)
        return np.asarray(_grid([self.cells[i : i + columns] for i in range(0, len(self.cells), columns)]))


class MovingPanel:
    """``panel`` for the pictures of a clip: one layout, one scale and one legend for all, which are drawn once.

    ``samples``: predictions of some of the clip's pictures of ``size_hw``. ``limits``: by task, the values at the ends of
    its colour scale. The legend of classes names the largest of the samples first, then the rest in their order.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        samples: Sequence[Mapping[str, np.ndarray]],
        classes: Classes | None = None,
        colours: Colours | None = None,
        limits: Mapping[str, Limits | None] | None = None,
    ):
        self.box, self.colours, self.limits = _fit(size_hw, (TILE_HEIGHT, TILE_WIDTH)), colours or {}, limits or {}
        self.tasks = tuple(samples[0])
        blank, width = Image.new("RGB", (self.box[1], self.box[0]), PAPER), max(self.box[1], NARROWEST)
        cells = [_stack("image", blank, None)]
        for task in self.tasks:
            array, names = samples[0][task], (classes or {}).get(task)
            if names:
                maps = [sample[task].ravel() for sample in samples]
                array = np.concatenate([*maps, np.arange(len(names), dtype=maps[0].dtype)])
            kind = kinds.of(task)
            limits_ = self.limits.get(task) or kind.limits(array)
            meaning = kind.legend(array, names, limits_, 5 if width >= TILE_WIDTH else 3, self.colours.get(task))
            key = _legend(meaning, width) if isinstance(meaning, Swatches) else _scale(meaning, width)
            cells.append(_stack(TASKS[task].title, blank, key))
        columns = _columns(len(cells), cells[0].width / cells[0].height)
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        self.sheet, inset = np.array(_grid(rows)), ((width - self.box[1]) // 2, TITLE + 2 * GAP)
        self.corners = [(left + inset[0], top + inset[1]) for row in _corners(rows) for left, top in row]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of every sheet."""
        return self.sheet.shape[0], self.sheet.shape[1]

    def draw(self, image: np.ndarray, prediction: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sheet ``(H' W' 3) uint8`` of one picture ``(H W 3) uint8``."""
        sheet, tiles = self.sheet.copy(), [_resize(thin_out(image, self.box), self.box)]
        for task in self.tasks:
            kind = kinds.of(task)
            array = thin_out(kind.channels_last(prediction[task]), self.box)
            shades = kind.colours(array, self.limits.get(task), self.colours.get(task))
            tiles.append(_resize(shades, self.box, hard_edges=kind.hard_edges))
        for (left, top), tile in zip(self.corners, tiles, strict=True):
            sheet[top : top + tile.height, left : left + tile.width] = np.asarray(tile)
        return sheet


def compare_panel(
    image: np.ndarray,
    prediction: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    classes: Classes | None = None,
    titles: tuple[str, str] = ("prediction", "truth"),
    colours: Colours | None = None,
) -> np.ndarray:
    """Predictions above the labels they should equal, the image at the left, ``(H' W' 3) uint8``.

    One column for each task that both hold; both rows share one colour scale, the truth's.
    """
    tasks = [task for task in prediction if task in truth]
    if not tasks:
        raise MistakeError(f"nothing to compare: predictions of {list(prediction)}, labels of {list(truth)}")
    rows = {word: {t: maps[t] for t in tasks} for word, maps in zip(titles, (prediction, truth), strict=True)}
    return rows_panel(image, rows, classes, scale_of=titles[1], colours=colours)


def triple(
    image: np.ndarray,
    task: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    titles: tuple[str, str, str],
    classes: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """The image, its label and the prediction of one task in a row below ``titles``, ``(H' W' 3) uint8``.

    Label and prediction share one colour scale, the label's.
    """
    box = _fit(image.shape[:2], (NARROWEST, NARROWEST))
    limits = kinds.of(task).limits(truth)
    maps = zip((truth, prediction), titles[1:], strict=True)
    drawn = [_cell(task, array, classes, box, title, limits, colours) for array, title in maps]
    return np.asarray(_grid([[_photo_cell(image, box, titles[0]), *drawn]]))


def sheet(parts: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Drawings (H W 3) one below the other under the headings that ``parts`` gives them, ``(H' W' 3) uint8``."""
    tiles = []
    for heading, drawings in parts.items():
        images = [Image.fromarray(drawing) for drawing in drawings]
        width = max(image.width for image in images) - 2 * MARGIN
        line = Image.new("RGB", (width, TITLE + 2 * GAP), PAPER)
        draw = ImageDraw.Draw(line)
        draw.text((0, GAP), _shorten(heading, TITLE, width), INK, _font(TITLE, heading))
        draw.line((0, line.height - 1, width, line.height - 1), FRAME)
        framed = Image.new("RGB", (width + 2 * MARGIN, line.height + MARGIN), PAPER)
        framed.paste(line, (MARGIN, MARGIN))
        tiles += [framed, *images]
    whole = Image.new("RGB", (max(tile.width for tile in tiles), sum(tile.height for tile in tiles)), PAPER)
    top = 0
    for tile in tiles:
        whole.paste(tile, (0, top))
        top += tile.height
    return np.asarray(whole)


def rows_panel(
    image: np.ndarray,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    classes: Classes | None = None,
    *,
    scale_of: str,
    colours: Colours | None = None,
) -> np.ndarray:
    """A row for each entry of ``rows``, a column for each task, the image at the left of the first, ``(H' W' 3) uint8``.

    ``rows``: maps by task, by what the row is called; a task that a row lacks stays blank there. The columns are the tasks
    of the row ``scale_of``, whose colour scales all rows share.
    """
    classes, box = classes or {}, _fit(image.shape[:2], (TILE_HEIGHT, TILE_WIDTH))
    blank = Image.new("RGB", (max(box[1], NARROWEST), 1), PAPER)
    cells = []
    for word, maps in rows.items():
        cells.append([blank if cells else _photo_cell(image, box, "image")])
        for task, reference in rows[scale_of].items():
            title, limits = f"{TASKS[task].title}: {word}", kinds.of(task).limits(reference)
            named, chosen = classes.get(task), (colours or {}).get(task)
            drawn = _cell(task, maps[task], named, box, title, limits, chosen) if task in maps else blank
            cells[-1].append(drawn)
    return np.asarray(_grid(cells))


def _cell(
    task: str,
    array: np.ndarray,
    classes: Sequence[str] | None,
    box: tuple[int, int],
    title: str | None,
    limits: Limits | None = None,
    colours: Sequence[Colour] | None = None,
) -> Image.Image:
    """A title, the map brought to ``box`` (height, width), and below it what its colours mean."""
    kind, width = kinds.of(task), max(box[1], NARROWEST)
    array = thin_out(kind.channels_last(array), box)
    limits = limits or kind.limits(array)
    tile = _resize(kind.colours(array, limits, colours), box, hard_edges=kind.hard_edges)
    meaning = kind.legend(array, classes, limits, 5 if width >= TILE_WIDTH else 3, colours)
    key = _legend(meaning, width) if isinstance(meaning, Swatches) else _scale(meaning, width)
    return _stack(title, tile, key)


def _photo_cell(image: np.ndarray, box: tuple[int, int], title: str) -> Image.Image:
    tile = _resize(thin_out(image, box), box)
    ImageDraw.Draw(tile).rectangle((0, 0, tile.width - 1, tile.height - 1), outline=FRAME)
    return _stack(title, tile, None)


def _stack(title: str | None, tile: Image.Image, key: Image.Image | None) -> Image.Image:
    """The parts of a cell from top to bottom, the tile centred where the cell is wider."""
    width = max(tile.width, NARROWEST)
    top = TITLE + 2 * GAP if title else 0
    cell = Image.new("RGB", (width, top + tile.height + (key.height + GAP if key else 0)), PAPER)
    if title:
        ImageDraw.Draw(cell).text((0, GAP // 2), _shorten(title, TITLE, width), INK, _font(TITLE, title))
    cell.paste(tile, ((width - tile.width) // 2, top))
    if key:
        cell.paste(key, (0, top + tile.height + GAP))
    return cell


def _legend(swatches: Swatches, width: int) -> Image.Image:
    """Colour chips with names, in as many lines as needed; what does not fit in ``LEGEND_LINES`` is counted."""
    entries = swatches.entries
    font, chip, line_height, gap = _font(TEXT, "".join(name for _, name in entries)), TEXT, TEXT + 8, 16
    lines: list[list[tuple[int, Colour, str]]] = [[]]
    x, rest = 0, ""
    for number, (colour, name) in enumerate(entries):
        name = _shorten(name, TEXT, width - chip - 6)
        length = chip + 6 + math.ceil(font.getlength(name))
        last, left = len(lines) == LEGEND_LINES, len(entries) - number
        if last and x + length + (gap + font.getlength(f"and {left} more") if left > 1 else 0) > width:
            rest = f"and {left} more"
            break
        if x + length > width:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, name))
        x += length + gap
    strip = Image.new("RGB", (width, len(lines) * line_height), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        top = number * line_height + 3
        for left, colour, name in line:
            draw.rounded_rectangle((left, top, left + chip - 1, top + chip - 1), 3, colour, FAINT)
            draw.text((left + chip + 6, top + chip / 2), name, INK, font, anchor="lm")
    draw.text((x, (len(lines) - 1) * line_height + 3 + chip / 2), rest, FAINT, font, anchor="lm")
    return strip


def _scale(scale: Scale, width: int) -> Image.Image:
    """A bar of colours with the marks spread evenly below it."""
    bar, font = 12, _font(TEXT)
    strip = Image.new("RGB", (width, bar + TEXT + 12), PAPER)
    strip.paste(Image.fromarray(scale.table[None]).resize((width, bar), Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(strip)
    for number, mark in enumerate(scale.marks):
        share = number / (len(scale.marks) - 1)
        x, anchor = share * (width - 1), "lt" if share == 0 else "rt" if share == 1 else "mt"
        draw.line((x, bar, x, bar + 4), FAINT)
        draw.text((x, bar + 7), mark, INK, font, anchor=anchor)
    return strip


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cells in rows, each column as wide as its widest cell, each row as high as its highest."""
    widths, heights = _sides(rows)
    sheet = Image.new("RGB", (sum(widths) + MARGIN * (len(widths) + 1), sum(heights) + MARGIN * (len(rows) + 1)), PAPER)
    for row, corners in zip(rows, _corners(rows), strict=True):
        for cell, corner in zip(row, corners, strict=True):
            sheet.paste(cell, corner)
    return sheet


def _sides(rows: Sequence[Sequence[Image.Image]]) -> tuple[list[int], list[int]]:
    """The widths of the columns and the heights of the rows."""
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(max(map(len, rows)))]
    return widths, [max(cell.height for cell in row) for row in rows]


def _corners(rows: Sequence[Sequence[Image.Image]]) -> list[list[tuple[int, int]]]:
    """Where every cell begins on the sheet: left and top."""
    widths, heights = _sides(rows)
    lefts = [sum(widths[:c]) + MARGIN * (c + 1) for c in range(len(widths))]
    tops = [sum(heights[:r]) + MARGIN * (r + 1) for r in range(len(rows))]
    return [[(lefts[c], top) for c in range(len(row))] for top, row in zip(tops, rows, strict=True)]


def _columns(num_cells: int, aspect: float) -> int:
    """How many cells in a row bring the sheet nearest to a screen's shape (3:2), with the fewest holes."""

    def cost(columns: int) -> float:
        rows = math.ceil(num_cells / columns)
        return abs(math.log(columns * aspect / rows / 1.5)) + 0.25 * (rows * columns - num_cells)

    return min(range(1, num_cells + 1), key=cost)


def _fit(size_hw: tuple[int, int], most_hw: tuple[int, int], smallest: int = 0) -> tuple[int, int]:
    """The height and width at which a map is drawn: its own shape inside ``most_hw``, no side below 8 pixels.

    With ``smallest``, only a map whose longer side is below that is upsampled, to that longer side.
    """
    scale = min(most / own for most, own in zip(most_hw, size_hw, strict=True))
    if smallest:
        scale = min(scale, max(1.0, smallest / max(size_hw)))
    height, width = (max(8, round(own * scale)) for own in size_hw)
    return height, width


def _resize(pixels: np.ndarray, box: tuple[int, int], *, hard_edges: bool = False) -> Image.Image:
    """``pixels`` at ``box``; with ``hard_edges`` upsampling makes no new colours."""
    upsampled = pixels.shape[0] <= box[0]
    how = Image.Resampling.NEAREST if hard_edges and upsampled else Image.Resampling.BILINEAR
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((box[1], box[0]), how)


def _shorten(text: str, size: int, width: int) -> str:
    """``text``, cut with an ellipsis where it is longer than ``width`` pixels."""
    font = _font(size, text)
    if font.getlength(text) <= width:
        return text
    letters = bisect_right(range(len(text)), width, key=lambda count: font.getlength(text[:count] + "…")) - 1
    return text[: max(letters, 0)] + "…"


def _font(size: int, text: str = "") -> Any:
    """What ``text`` is written with."""
    return _opened(font_for(text), size)


@cache
def _opened(font: Path, size: int) -> Any:
    return ImageFont.truetype(str(font), size)
