"""Things on the walls of generated scenes: x along the wall, y above the floor, z out. Flat ones cast no shadow."""

from __future__ import annotations

from mtlsi.data.scenes.shapes import Dice, Item, Material, fabric, plain, shade, timber, tint


def picture(dice: Dice) -> Item:
    """A framed picture."""
    width, height, y = dice.between(0.3, 1.1), dice.between(0.3, 0.8), dice.between(1.35, 1.6)
    item = Item("picture", (width, 0.04), casts_shadow=False)
    item.box((0, y, 0.015), (width, height, 0.03), timber(dice))
    pattern = dice.pick(("cells", "blotches", "gradient", "stripes"))
    colours = tint(dice, (0, 1), (0.1, 0.9), (0.2, 0.9)), tint(dice, (0, 1), (0.1, 0.9), (0.2, 1.0))
    item.box((0, y, 0.02), (width - 0.08, height - 0.08, 0.03), Material(*colours, pattern, dice.between(0.08, 0.4)))
    return item


def mirror(dice: Dice) -> Item:
    """A bright pane in a frame (reflections are not traced)."""
    width, height = dice.between(0.4, 0.8), dice.between(0.6, 1.2)
    item = Item("mirror", (width, 0.04), casts_shadow=False)
    item.box((0, 1.5, 0.01), (width, height, 0.02), timber(dice))
    glass = Material((0.45, 0.5, 0.52), (0.25, 0.28, 0.3), "gradient", height)
    item.box((0, 1.5, 0.015), (width - 0.06, height - 0.06, 0.02), glass)
    return item


def whiteboard(dice: Dice) -> Item:
    """A whiteboard with a rim and a tray."""
    width, height = dice.between(1.2, 2.0), dice.between(0.8, 1.1)
    item, rim = Item("whiteboard", (width, 0.06), casts_shadow=False), plain((0.4, 0.4, 0.42))
    item.box((0, 1.45, 0.01), (width, height, 0.02), rim)
    item.box((0, 1.45, 0.015), (width - 0.05, height - 0.05, 0.02), plain((0.85, 0.86, 0.86)))
    item.box((0, 1.45 - height / 2, 0.04), (width * 0.5, 0.02, 0.08), rim)
    return item


def door(dice: Dice) -> Item:
    """A closed door in its frame, with panels and a handle; needs free floor in front."""
    width, height = dice.between(0.8, 0.95), dice.between(1.95, 2.1)
    leaf, frame = timber(dice), timber(dice)
    item = Item("door", (width + 0.16, 0.06), casts_shadow=False)
    item.front_space = 0.7
    for x in (-width / 2 - 0.04, width / 2 + 0.04):
        item.box((x, height / 2, 0.025), (0.08, height, 0.05), frame)
    item.box((0, height + 0.04, 0.025), (width + 0.16, 0.08, 0.05), frame)
    item.box((0, height / 2, 0.01), (width, height, 0.02), leaf)
    for y in (0.28, 0.73) if dice.chance(0.6) else ():
        item.box(
            (0, height * y, 0.02),
            (width * 0.65, height * 0.36, 0.02),
            Material(shade(leaf.colour, 0.85), leaf.accent, leaf.pattern, leaf.scale),
        )
    item.limb((width * 0.4, 1.0, 0.05), (width * 0.3, 1.0, 0.05), 0.015, plain((0.3, 0.28, 0.22)))
    return item


def window(dice: Dice) -> Item:
    """Panes that show the sky, a frame and a sill; often with curtains or half-drawn blinds."""
    width, height = dice.between(0.8, 1.8), dice.between(0.9, 1.3)
    bottom = dice.between(0.8, 1.0)
    y = bottom + height / 2
    frame = plain(tint(dice, (0.05, 0.1), (0.0, 0.4), (0.4, 0.95)))
    item = Item("window", (width + 0.1, 0.1), casts_shadow=False)
    sky = tint(dice, (0.5, 0.62), (0.0, 0.5), (0.8, 1.0))
    ground = tint(dice, (0.1, 0.4), (0.1, 0.6), (0.2, 0.7))
    item.box((0, y, 0.005), (width, height, 0.01), Material(ground, sky, "gradient", height, dice.between(0.3, 1.2)))
    columns = dice.whole(1, 3)
    for column in range(columns + 1):
        item.box(((column / columns - 0.5) * width, y, 0.02), (0.05, height + 0.05, 0.04), frame)
    for part in (-0.5, 0.5) if dice.chance(0.6) else (-0.5, 0.0, 0.5):
        item.box((0, y + part * height, 0.02), (width, 0.05, 0.036), frame)
    item.box((0, bottom - 0.04, 0.05), (width + 0.1, 0.03, 0.1), frame)
    cover = dice.pick(("none", "curtains", "curtains", "blinds"))
    if cover == "curtains":
        _curtains(dice, item, width, bottom + height + 0.12)
    elif cover == "blinds":
        drawn = height * dice.between(0.3, 0.9)
        blinds = Item("blinds")
        slats = Material((0.7, 0.7, 0.66), (0.35, 0.35, 0.33), "slats", 0.06)
        blinds.box((0, bottom + height - drawn / 2, 0.055), (width + 0.06, drawn, 0.02), slats)
        item.carry(blinds, (0, 0, 0))
    return item


def _curtains(dice: Dice, item: Item, width: float, top: float) -> None:
    """Two curtains of hanging folds, each its own instance."""
    cloth, bottom = fabric(dice), dice.pick((0.05, 0.7))
    item.footprint = (width + 0.9, 0.1)
    folds, fold = dice.whole(3, 5), 0.06
    for side in (-1, 1):
        curtain = Item("curtain")
        for number in range(folds):
            x = side * (width / 2 + 0.35 - number * 1.7 * fold)
            curtain.cylinder((x, bottom, 0.12), fold, top - bottom, cloth)
        item.carry(curtain, (0, 0, 0))
