"""Small things of generated scenes: screens, lamps, plants, bottles, boxes. Each draws its own sizes and materials."""

from __future__ import annotations

from mtlsi.data.scenes.shapes import Dice, Item, Material, fabric, metal, plain, shade, tint


def television(dice: Dice) -> Item:
    """A screen on a stand."""
    width = dice.between(0.55, 1.2)
    height = width * 0.58
    black = plain((0.015, 0.015, 0.017))
    light = tint(dice, (0, 1), (0.2, 0.8), (0.2, 0.9))
    lit = Material(light, light, "cells", 0.15, 1.2)
    item = Item("television", (width, 0.2))
    item.box((0, 0.01, 0), (width * 0.4, 0.02, 0.18), black)
    item.box((0, 0.05, 0), (0.06, 0.08, 0.03), black)
    item.box((0, 0.08 + height / 2, 0), (width, height, 0.04), black)
    screen = lit if dice.chance(0.5) else plain((0.03, 0.035, 0.04))
    item.box((0, 0.085 + height / 2, 0.02), (width - 0.04, height - 0.05, 0.01), screen)
    return item


def _lamp(dice: Dice, base: float, pole: float, shade_radius: float, shade_height: float) -> Item:
    item = Item("lamp", (2 * shade_radius, 2 * shade_radius), casts_shadow=False)
    stand = metal(dice)
    item.cylinder((0, 0, 0), base, 0.03, stand)
    item.cylinder((0, 0.03, 0), 0.02, pole, stand)
    warm = tint(dice, (0.05, 0.16), (0.1, 0.5), (0.8, 1.0))
    item.cylinder((0, pole, 0), shade_radius, shade_height, plain(warm, 1.2))
    return item


def table_lamp(dice: Dice) -> Item:
    """A table lamp; it glows and casts no shadow."""
    return _lamp(dice, 0.07, dice.between(0.2, 0.35), dice.between(0.1, 0.16), dice.between(0.14, 0.22))


def floor_lamp(dice: Dice) -> Item:
    """A floor lamp; it glows and casts no shadow."""
    return _lamp(dice, 0.15, dice.between(1.1, 1.5), dice.between(0.15, 0.24), dice.between(0.2, 0.3))


def bottle(dice: Dice) -> Item:
    """Body, neck and cap."""
    radius, height = dice.between(0.03, 0.055), dice.between(0.16, 0.26)
    glass = plain(tint(dice, (0.0, 1.0), (0.3, 0.9), (0.2, 0.9)))
    item = Item("bottle")
    item.cylinder((0, 0, 0), radius, height * 0.65, glass)
    item.ellipsoid((0, height * 0.65, 0), (radius, radius, radius), glass)
    item.cylinder((0, height * 0.65, 0), radius * 0.4, height * 0.45, glass)
    return item


def potted_plant(dice: Dice, size: float = 1.0) -> Item:
    """A pot with leaves on stems; ``size`` 1 fits a table, 3 stands on the floor."""
    pot = plain(tint(dice, (0.0, 0.1), (0.1, 0.7), (0.3, 0.9)))
    colour = tint(dice, (0.22, 0.42), (0.4, 0.9), (0.25, 0.7))
    leaf = Material(colour, shade(colour, 0.5), "blotches", 0.05 * size)
    radius = dice.between(0.07, 0.1) * size
    item = Item("potted plant", (4 * radius, 4 * radius))
    item.cylinder((0, 0, 0), radius, 0.13 * size, pot)
    for _ in range(dice.whole(4, 7)):
        x, z = dice.between(-0.1, 0.1) * size, dice.between(-0.1, 0.1) * size
        tip = (x, dice.between(0.2, 0.42) * size, z)
        item.limb((x * 0.2, 0.1 * size, z * 0.2), tip, 0.008 * size, leaf)
        wide, high, long = (dice.between(0.04, 0.09) * size for _ in range(3))
        item.ellipsoid(tip, (wide, high, long), leaf)
    return item


def big_plant(dice: Dice) -> Item:
    """A plant that stands on the floor."""
    return potted_plant(dice, dice.between(2.0, 3.4))


def carton(dice: Dice, size: float = 1.0) -> Item:
    """A taped or wrapped box; ``size`` 1 fits a table."""
    width, height, length = (dice.between(0.12, 0.3) * size for _ in range(3))
    cover = plain(tint(dice, (0.07, 0.1), (0.3, 0.5), (0.5, 0.8))) if dice.chance(0.6) else fabric(dice)
    item = Item("box", (width, length))
    item.box((0, height / 2, 0), (width, height, length), cover)
    item.box((0, height / 2, 0), (0.05 * size, height + 0.004, length + 0.004), plain(shade(cover.colour, 0.7)))
    return item


def big_carton(dice: Dice) -> Item:
    """A box on the floor, sometimes with another on top."""
    item = carton(dice, dice.between(1.5, 2.6))
    if dice.chance(0.4):
        item.carry(carton(dice), (0, 2 * item.solids[0].half[1] + 0.003, 0), dice.between(0, 1.5))
    return item


def books(dice: Dice) -> Item:
    """A stack of books."""
    item, y = Item("books"), 0.0
    for _ in range(dice.whole(1, 4)):
        thick = dice.between(0.02, 0.05)
        cover = plain(tint(dice, (0.0, 1.0), (0.2, 0.8), (0.2, 0.9)))
        size = (dice.between(0.15, 0.2), thick, dice.between(0.2, 0.27))
        item.box((dice.between(-0.02, 0.02), y + thick / 2, 0), size, cover)
        y += thick
    return item


def bag(dice: Dice) -> Item:
    """A soft bag with two handles."""
    cloth, width = fabric(dice), dice.between(0.3, 0.5)
    item = Item("bag", (width, 0.3))
    item.ellipsoid((0, 0.16, 0), (width / 2, 0.17, 0.13), cloth)
    for z in (-0.04, 0.04):
        item.limb((-0.08, 0.3, z), (0.0, 0.42, z), 0.012, cloth)
        item.limb((0.0, 0.42, z), (0.08, 0.3, z), 0.012, cloth)
    return item


def vase(dice: Dice) -> Item:
    """A round vase or ball."""
    radius = dice.between(0.06, 0.12)
    item = Item("vase")
    item.ellipsoid((0, radius, 0), (radius, radius, radius), fabric(dice))
    return item
