"""Furniture of generated scenes, with the things on it. Each function draws its own sizes and materials."""

from __future__ import annotations

from collections.abc import Callable

from mtlsi.data.scenes.people import person
from mtlsi.data.scenes.props import bag, books, bottle, carton, potted_plant, table_lamp, television, vase
from mtlsi.data.scenes.shapes import Dice, Item, Material, fabric, metal, plain, shade, timber, tint

Maker = Callable[[Dice], Item]
SMALL: tuple[Maker, ...] = (bottle, bottle, potted_plant, carton, books, table_lamp, vase, bag)


def _four_legs(item: Item, width: float, length: float, height: float, thick: float, material: Material) -> None:
    for x in (-width / 2 + thick, width / 2 - thick):
        for z in (-length / 2 + thick, length / 2 - thick):
            item.box((x, height / 2, z), (thick, height, thick), material)


def chair(dice: Dice) -> Item:
    """Seat, back and four legs; a sitter's knees point to the front."""
    width, length, seat = dice.between(0.4, 0.52), dice.between(0.4, 0.5), dice.between(0.43, 0.48)
    frame, cushion = timber(dice), fabric(dice)
    back = dice.between(0.4, 0.6)
    item = Item("chair", (width + 0.1, length + 0.2))
    _four_legs(item, width, length, seat - 0.04, 0.045, frame)
    item.box((0, seat - 0.03, 0), (width, 0.06, length), cushion)
    if dice.chance(0.5):
        item.box((0, seat + back / 2, -length / 2), (width, back, 0.04), cushion)
    else:
        for x in (-width / 2 + 0.02, width / 2 - 0.02):
            item.box((x, seat + back / 2, -length / 2), (0.04, back, 0.035), frame)
        for part in (0.35, 0.75):
            item.box((0, seat + back * part, -length / 2), (width, 0.12, 0.025), frame)
    if dice.chance(0.2):
        item.carry(person(dice, "sitting"), (0.0, seat, -length / 2 + 0.17))
    return item


def sofa(dice: Dice) -> Item:
    """Base, seat cushions, back, two arms; sometimes pillows or a person."""
    seats = dice.whole(1, 3)
    width, length, seat = 0.35 + 0.65 * seats, dice.between(0.85, 1.0), dice.between(0.4, 0.46)
    cloth = fabric(dice)
    item = Item("sofa", (width + 0.1, length + 0.1))
    item.box((0, seat / 2 - 0.03, 0), (width - 0.02, seat - 0.1, length - 0.02), cloth)  # just inside the arms
    for seat_index in range(seats):
        x = (seat_index - (seats - 1) / 2) * 0.65
        item.box((x, seat - 0.05, 0.08), (0.63, 0.12, length - 0.2), cloth)
    back = dice.between(0.32, 0.5)
    item.box((0, seat + back / 2, -length / 2 + 0.11), (width - 0.3, back, 0.22), cloth)
    for x in (-width / 2 + 0.09, width / 2 - 0.09):
        item.box((x, 0.32, 0), (0.18, 0.64, length), cloth)
    for seat_index in range(seats):
        x = (seat_index - (seats - 1) / 2) * 0.65
        if dice.chance(0.25):
            item.carry(person(dice, "sitting"), (x, seat, -length / 2 + 0.42))
        elif dice.chance(0.4):
            pillow = Item("pillow")
            size = dice.between(0.17, 0.22)
            pillow.ellipsoid((0, size, 0), (size, size, 0.08), fabric(dice))
            item.carry(pillow, (x, seat, -length / 2 + 0.34), dice.between(-0.4, 0.4))
    return item


def bed(dice: Dice) -> Item:
    """Frame, mattress, blanket and headboard, with pillows."""
    width, length = dice.pick((0.95, 1.45, 1.7)), dice.between(1.95, 2.1)
    wood, sheet = timber(dice), plain(tint(dice, (0.0, 1.0), (0.0, 0.25), (0.7, 0.95)))
    item = Item("bed", (width + 0.1, length + 0.15))
    item.box((0, 0.17, 0), (width, 0.22, length), wood)
    item.box((0, 0.37, 0), (width - 0.04, 0.2, length - 0.06), sheet)
    item.box((0, 0.4, length * 0.16), (width, 0.2, length * 0.66), fabric(dice))
    head = dice.between(0.8, 1.2)
    item.box((0, head / 2, -length / 2 - 0.03), (width + 0.06, head, 0.06), wood)
    for x in (-0.25 * width, 0.25 * width) if width > 1.2 else (0.0,):
        pillow = Item("pillow")
        pillow.ellipsoid((0, 0.07, 0), (0.27, 0.09, 0.19), fabric(dice) if dice.chance(0.4) else sheet)
        item.carry(pillow, (x, 0.46, -length / 2 + 0.3), dice.between(-0.2, 0.2))
    return item


def _lay(dice: Dice, item: Item, width: float, length: float, height: float) -> None:
    """Puts small things on a table top, in slots so that they never overlap."""
    slots = max(1, int(width / 0.4))
    for slot in range(slots):
        if dice.chance(0.45):
            x = (slot + 0.5) / slots * (width - 0.1) - (width - 0.1) / 2
            z = dice.between(-0.5, 0.5) * max(length - 0.4, 0.0)
            item.carry(dice.pick(SMALL)(dice), (x, height, z), dice.between(-0.6, 0.6))


def _table(dice: Dice, kind: str, width: float, length: float, height: float) -> Item:
    wood = timber(dice)
    item = Item(kind, (width, length))
    item.box((0, height - 0.02, 0), (width, 0.04, length), wood)
    if dice.chance(0.75):
        _four_legs(item, width, length, height - 0.04, 0.06, wood if dice.chance(0.7) else metal(dice))
    else:
        item.cylinder((0, 0, 0), 0.05, height - 0.04, wood)
        item.cylinder((0, 0, 0), min(width, length) * 0.35, 0.04, wood)
    _lay(dice, item, width, length, height)
    return item


def coffee_table(dice: Dice) -> Item:
    """A low table."""
    return _table(dice, "coffee table", dice.between(0.7, 1.2), dice.between(0.5, 0.7), dice.between(0.35, 0.5))


def dining_table(dice: Dice) -> Item:
    """A table with chairs around it, some occupied."""
    width, length = dice.between(1.0, 1.9), dice.between(0.8, 1.0)
    item = _table(dice, "dining table", width, length, dice.between(0.72, 0.78))
    item.footprint = (width + 0.2, length + 1.2)
    model = chair if dice.chance(0.8) else stool
    per_side = max(1, int(width / 0.7))
    for side in (-1, 1):
        for place in range(per_side):
            if dice.chance(0.75):
                x = ((place + 0.5) / per_side - 0.5) * width
                z = side * (length / 2 + dice.between(0.1, 0.3))
                item.carry(model(dice), (x, 0, z), (3.1416 if side > 0 else 0.0) + dice.between(-0.2, 0.2))
    return item


def desk(dice: Dice) -> Item:
    """A desk with drawers on one side and a chair in front, often with a screen on top."""
    width, length, height = dice.between(1.1, 1.6), dice.between(0.6, 0.75), dice.between(0.72, 0.77)
    wood = timber(dice)
    item = Item("desk", (width + 0.1, length + 0.1))
    side = dice.pick((-1, 1))
    item.box((0, height - 0.02, 0), (width, 0.04, length), wood)
    item.box((side * (width / 2 - 0.22), (height - 0.04) / 2, 0), (0.4, height - 0.04, length - 0.04), wood)
    item.box((-side * (width / 2 - 0.03), (height - 0.04) / 2, 0), (0.04, height - 0.04, length - 0.06), wood)
    if dice.chance(0.6):
        item.carry(television(dice), (-side * 0.2, height, -0.12), dice.between(-0.2, 0.2))
    else:
        _lay(dice, item, width, length, height)
    if dice.chance(0.7):
        item.carry(chair(dice), (-side * 0.2, 0, length / 2 + 0.3), 3.1416 + dice.between(-0.5, 0.5))
        item.front_space = 0.75
    return item


def stool(dice: Dice) -> Item:
    """A round seat on four legs."""
    height = dice.between(0.43, 0.5)
    item = Item("chair", (0.4, 0.4))
    _four_legs(item, 0.3, 0.3, height - 0.04, 0.03, metal(dice))
    item.cylinder((0, height - 0.05, 0), 0.18, 0.05, fabric(dice))
    return item


def _fronts(item: Item, width: float, top: float, front: float, rows: int, columns: int, face: Material) -> None:
    """Doors or drawers with handles on the front of a cupboard."""
    bottom = 0.08
    wide, high = width / columns, (top - bottom) / rows
    handle = plain(shade(face.colour, 0.3))
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.5) * wide - width / 2, bottom + (row + 0.5) * high
            item.box((x, y, front), (wide - 0.02, high - 0.02, 0.02), face)
            item.box((x, y + 0.3 * high, front + 0.02), (0.12, 0.02, 0.02), handle)


def _cupboard(dice: Dice, kind: str, width: float, length: float, height: float, rows: int, columns: int) -> Item:
    wood = timber(dice)
    item = Item(kind, (width, length + 0.1))
    item.box((0, height / 2, 0), (width, height, length), wood)
    face = wood if dice.chance(0.6) else timber(dice)
    _fronts(item, width - 0.04, height - 0.04, length / 2 + 0.005, rows, columns, face)
    return item


def cabinet(dice: Dice) -> Item:
    """A tall cupboard, or a low one with a television or small things on top."""
    if dice.chance(0.45):
        width, height = dice.between(0.8, 1.6), dice.between(1.5, 2.1)
        return _cupboard(dice, "cabinet", width, dice.between(0.4, 0.6), height, 1, dice.whole(2, 3))
    width, height = dice.between(1.0, 1.8), dice.between(0.45, 0.8)
    item = _cupboard(dice, "cabinet", width, 0.45, height, 1, dice.whole(2, 3))
    if dice.chance(0.65):
        item.carry(television(dice), (0, height, 0))
    else:
        _lay(dice, item, width, 0.45, height)
    return item


def dresser(dice: Dice) -> Item:
    """A chest of drawers."""
    width, height = dice.between(0.8, 1.3), dice.between(0.8, 1.1)
    item = _cupboard(dice, "dresser", width, 0.48, height, dice.whole(3, 4), dice.whole(1, 2))
    _lay(dice, item, width, 0.48, height)
    return item


def night_stand(dice: Dice) -> Item:
    """A small chest with two drawers, often with a lamp."""
    height = dice.between(0.45, 0.6)
    item = _cupboard(dice, "night stand", 0.45, 0.4, height, 2, 1)
    if dice.chance(0.7):
        item.carry(table_lamp(dice), (0, height, 0))
    return item


def refrigerator(dice: Dice) -> Item:
    """A tall body with two doors."""
    height = dice.between(1.6, 1.9)
    white = plain(tint(dice, (0.5, 0.7), (0.0, 0.08), (0.6, 0.95)))
    item = Item("refrigerator", (0.7, 0.75))
    item.box((0, height / 2, 0), (0.65, height, 0.62), white)
    item.box((0, height * 0.33, 0.32), (0.64, height * 0.62, 0.04), white)
    item.box((0, height * 0.82, 0.32), (0.64, height * 0.34, 0.04), white)
    handle = plain((0.05, 0.05, 0.05))
    item.box((-0.26, height * 0.52, 0.36), (0.03, 0.3, 0.03), handle)
    item.box((-0.26, height * 0.76, 0.36), (0.03, 0.2, 0.03), handle)
    return item


def bookshelf(dice: Dice) -> Item:
    """Sides, boards and rows of books; without books its kind is ``shelves``."""
    width, length, height = dice.between(0.7, 1.4), dice.between(0.28, 0.36), dice.between(1.1, 2.1)
    wood, full = timber(dice), dice.chance(0.8)
    item = Item("bookshelf" if full else "shelves", (width, length))
    for x in (-width / 2 + 0.015, width / 2 - 0.015):
        item.box((x, height / 2, 0), (0.03, height, length), wood)
    item.box((0, height / 2, -length / 2 + 0.005), (width - 0.06, height, 0.01), wood)
    num_boards = max(3, int(height / 0.36))
    gap = (height - 0.03) / num_boards
    for board in range(num_boards + 1):
        item.box((0, board * gap + 0.015, 0), (width - 0.06, 0.03, length - 0.01), wood)
        if full and board < num_boards and dice.chance(0.9):
            cloth = tint(dice, (0.0, 1.0), (0.2, 0.7), (0.2, 0.8))
            spines = Material(cloth, cloth, "spines", dice.between(0.025, 0.05))
            tall, row = gap * dice.between(0.6, 0.85), (width - 0.08) * dice.between(0.5, 1.0)
            x = dice.pick((-1, 1)) * (width - 0.08 - row) / 2
            item.box((x, board * gap + 0.03 + tall / 2, 0), (row, tall, length - 0.08), spines)
    return item
