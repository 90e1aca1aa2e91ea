"""People and animals of generated scenes, made of capsules and ellipsoids."""

from __future__ import annotations

from typing import Literal

from mtlsi.data.scenes.shapes import Dice, Item, Material, Vector, fabric, plain, shade, tint, turn
from mtlsi.tasks import PARTS7

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = (
    PARTS7.index(name) for name in ("head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
)
Posture = Literal["standing", "walking", "sitting"]


def _reach(start: Vector, length: float, swing: float, spread: float = 0.0) -> Vector:
    """The end of a limb hanging from ``start``, swung forward and spread sideways (radians)."""
    forward_cosine, forward_sine = turn(swing)
    side_cosine, side_sine = turn(spread)
    down = length * side_cosine
    return start[0] + length * side_sine, start[1] - down * forward_cosine, start[2] + down * forward_sine


def person(dice: Dice, posture: Posture) -> Item:
    """A person facing z: feet on y = 0, or sitting with the seat at y = 0 under the hips."""
    sitting = posture == "sitting"
    height = dice.between(1.5, 1.92) if sitting or dice.chance(0.85) else dice.between(1.0, 1.4)
    girth = dice.between(0.9, 1.2)
    skin = plain(tint(dice, (0.04, 0.08), (0.3, 0.6), (0.35, 0.95)))
    shirt, trousers = fabric(dice), fabric(dice)
    item = Item("person", (0.55 * height / 1.7, 0.55 * height / 1.7))
    hip = 0.05 * height * girth if sitting else 0.0
    lowest = _legs(item, dice, posture, height, girth, hip, (trousers, skin if dice.chance(0.2) else trousers))
    _torso(item, height, girth, hip, shirt)
    _arms(item, dice, posture, height, girth, hip, (shirt, shirt if dice.chance(0.5) else skin, skin))
    _head(item, dice, height, hip, skin)
    if sitting:
        return item
    lifted = Item("person", item.footprint)
    lifted.solids = item.placed((0.0, -lowest, 0.0), 0.0)[0].solids
    return lifted


def _legs(
    item: Item, dice: Dice, posture: Posture, height: float, girth: float, hip: float, cloth: tuple[Material, Material]
) -> float:
    """Adds legs and feet; returns the height of the lowest sole."""
    thigh, shin, lowest = 0.245 * height, 0.245 * height, 0.0
    stride = dice.between(0.3, 0.55)
    shoe = plain(tint(dice, (0.0, 1.0), (0.0, 0.6), (0.08, 0.9)))
    for side in (-1, 1):
        if posture == "sitting":
            swing, bend = dice.between(1.4, 1.55), dice.between(1.4, 1.7)
        elif posture == "walking":
            swing, bend = side * stride, dice.between(0.05, 0.2) if side > 0 else dice.between(0.3, 0.7)
        else:
            swing, bend = dice.between(-0.06, 0.12), dice.between(0.0, 0.1)
        spread = side * dice.between(0.0, 0.12)
        top = (side * 0.052 * height * girth, hip, 0.0)
        knee = _reach(top, thigh, swing, spread)
        ankle = _reach(knee, shin, swing - bend, spread * 0.5)
        item.limb(top, knee, 0.043 * height * girth, cloth[0], UPPER_LEG)
        item.limb(knee, ankle, 0.031 * height, cloth[1], LOWER_LEG)
        foot = (ankle[0], ankle[1] - 0.012 * height, ankle[2] + 0.035 * height)
        item.ellipsoid(foot, (0.028 * height, 0.026 * height, 0.075 * height), shoe, LOWER_LEG)
        lowest = min(lowest, foot[1] - 0.026 * height, ankle[1] - 0.031 * height)
    return lowest


def _torso(item: Item, height: float, girth: float, hip: float, shirt: Material) -> None:
    wide = height * girth
    item.ellipsoid((0, hip + 0.03 * height, 0), (0.1 * wide, 0.075 * height, 0.07 * wide), shirt, TORSO)
    item.ellipsoid((0, hip + 0.18 * height, 0), (0.098 * wide, 0.155 * height, 0.066 * wide), shirt, TORSO)
    shoulder = 0.085 * height
    y = hip + 0.285 * height
    item.limb((-shoulder, y, 0), (shoulder, y, 0), 0.038 * height, shirt, TORSO)


def _arms(
    item: Item,
    dice: Dice,
    posture: Posture,
    height: float,
    girth: float,
    hip: float,
    cover: tuple[Material, Material, Material],
) -> None:
    stride = dice.between(0.2, 0.5)
    for side in (-1, 1):
        raised = dice.chance(0.15)
        if raised:
            swing, bend, spread = dice.between(0.8, 2.6), dice.between(0.1, 0.9), side * dice.between(0.1, 0.6)
        elif posture == "sitting":
            swing, bend, spread = dice.between(0.2, 0.6), dice.between(0.6, 1.2), side * dice.between(0.05, 0.25)
        elif posture == "walking":
            swing, bend, spread = -side * stride, dice.between(0.2, 0.6), side * dice.between(0.05, 0.15)
        else:
            swing, bend, spread = dice.between(-0.1, 0.2), dice.between(0.05, 0.9), side * dice.between(0.08, 0.3)
        shoulder = (side * 0.108 * height * girth, hip + 0.285 * height, 0.0)
        elbow = _reach(shoulder, 0.165 * height, swing, spread)
        wrist = _reach(elbow, 0.14 * height, swing + bend, spread * 0.3)
        item.limb(shoulder, elbow, 0.028 * height * girth, cover[0], UPPER_ARM)
        item.limb(elbow, wrist, 0.021 * height, cover[1], LOWER_ARM)
        palm = _reach(wrist, 0.035 * height, swing + bend, 0.0)
        item.ellipsoid(palm, (0.02 * height, 0.035 * height, 0.025 * height), cover[2], LOWER_ARM)


def _head(item: Item, dice: Dice, height: float, hip: float, skin: Material) -> None:
    hair = plain(tint(dice, (0.02, 0.12), (0.2, 0.7), (0.05, 0.7)))
    y = hip + 0.405 * height
    item.limb((0, hip + 0.3 * height, 0), (0, y, 0), 0.03 * height, skin, HEAD)
    item.ellipsoid((0, y, 0.008 * height), (0.045 * height, 0.065 * height, 0.055 * height), skin, HEAD)
    if dice.chance(0.9):
        fall = dice.pick((0.0, 0.0, 0.03)) * height
        crown = (0, y + 0.018 * height - fall, -0.012 * height)
        item.ellipsoid(crown, (0.05 * height, 0.058 * height + fall, 0.052 * height), hair, HEAD)
    nose = (0, y - 0.005 * height, 0.062 * height)
    item.ellipsoid(nose, (0.008 * height, 0.013 * height, 0.012 * height), skin, HEAD)


def animal(dice: Dice, kind: Literal["dog", "cat"]) -> Item:
    """A dog or a cat facing z."""
    size = dice.between(0.45, 0.8) if kind == "dog" else dice.between(0.3, 0.4)
    colour = tint(dice, (0.03, 0.12), (0.05, 0.6), (0.15, 0.95))
    fur = Material(colour, shade(colour, dice.between(0.3, 0.9)), "blotches", dice.between(0.06, 0.2))
    item = Item(kind, (0.5 * size, 1.3 * size))
    leg, body = 0.42 * size, 0.16 * size
    for x in (-0.1 * size, 0.1 * size):
        for z in (-0.32 * size, 0.32 * size):
            step = dice.between(-0.06, 0.06)
            item.limb((x, leg, z), (x, 0.035 * size, z + step * size), 0.035 * size, fur)
    item.limb((0, leg + 0.06 * size, -0.32 * size), (0, leg + 0.08 * size, 0.3 * size), body, fur)
    head = (0.0, leg + 0.34 * size, 0.55 * size)
    item.limb((0, leg + 0.12 * size, 0.34 * size), head, 0.08 * size, fur)
    item.ellipsoid(head, (0.11 * size, 0.11 * size, 0.13 * size), fur)
    if kind == "dog":
        item.ellipsoid((0, head[1] - 0.03 * size, head[2] + 0.13 * size), (0.05 * size, 0.05 * size, 0.09 * size), fur)
    for x in (-0.07 * size, 0.07 * size):
        item.ellipsoid((x, head[1] + 0.11 * size, head[2] - 0.02 * size), (0.03 * size, 0.06 * size, 0.02 * size), fur)
    tail = dice.between(0.1, 0.35) * size
    item.limb((0, leg + 0.12 * size, -0.4 * size), (0, leg + 0.12 * size + tail, -0.65 * size), 0.03 * size, fur)
    return item
