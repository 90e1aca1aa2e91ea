"""Builds a random room: size, surfaces, camera, lights, and furniture in plausible places."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mtlsi.data.scenes import furniture, people, props, walls
from mtlsi.data.scenes.shapes import Dice, Item, Material, Vector, cross, fabric, shade, timber, tint, turn, unit

SURFACES = ("wall", "wall", "floor", "ceiling", "wall", "wall")
"""Kinds of the room's six planes, in the order x = 0, x = width, y = 0, y = height, z = 0, z = length."""
Rectangle = tuple[float, float, float, float]


FOCAL_RANGE = (0.75, 1.1)
"""Focal lengths of the cameras, as multiples of the image's longer side."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position and unit axes in the room, focal length as a multiple of the image's longer side."""

    position: Vector
    right: Vector
    up: Vector
    back: Vector
    focal: float


@dataclass(frozen=True)
class Light:
    """A lamp with a radius in metres; ``power`` is its RGB intensity at one metre."""

    position: Vector
    power: Vector
    radius: float


@dataclass(frozen=True)
class Mood:
    """How the photo is taken: mean brightness, white balance, vignetting at the corners, noise in grey levels."""

    exposure: float
    balance: Vector
    vignette: float
    noise: float


@dataclass(frozen=True)
class Scene:
    """A room (width x, height y, length z; a corner at the origin) and its contents. The first light casts shadows."""

    size: Vector
    surfaces: tuple[Material, ...]
    camera: Camera
    items: list[Item]
    lights: list[Light]
    ambient: Vector
    mood: Mood


class Floor:
    """The floor plan: which rectangles are occupied, and what the camera sees."""

    def __init__(self, dice: Dice, size: Vector, camera: Camera) -> None:
        self.dice, self.size, self.camera = dice, size, camera
        self.items: list[Item] = []
        self._walls: dict[int, list[tuple[float, float]]] = {wall: [] for wall in range(4)}
        x, _, z = camera.position
        ahead_x, ahead_z = x - 0.7 * camera.back[0], z - 0.7 * camera.back[2]
        self._taken: list[Rectangle] = [(x - 0.35, z - 0.35, x + 0.35, z + 0.35)]
        self._taken.append((ahead_x - 0.35, ahead_z - 0.35, ahead_x + 0.35, ahead_z + 0.35))

    def _in_view(self, x: float, z: float) -> bool:
        """True in front of the camera, at most 41 degrees to the left or right."""
        across = (x - self.camera.position[0], z - self.camera.position[2])
        ahead = -(across[0] * self.camera.back[0] + across[1] * self.camera.back[2])
        return ahead > 0.75 * math.hypot(*across)

    def _take(self, rectangle: Rectangle) -> bool:
        """Claims the rectangle if it is free and inside the room."""
        left, near, right, far = rectangle
        if left < 0 or near < 0 or right > self.size[0] or far > self.size[2]:
            return False
        for other in self._taken:
            if left < other[2] and right > other[0] and near < other[3] and far > other[1]:
                return False
        self._taken.append(rectangle)
        return True

    def _wall_spot(self, wall: int, along: float, away: float) -> tuple[float, float]:
        """The point ``along`` a wall (0 to 1) and ``away`` metres from it. Walls: z = 0, x = 0, z = length, x = width."""
        width, _, length = self.size
        if wall % 2 == 0:
            return along * width, away if wall == 0 else length - away
        return away if wall == 1 else width - away, along * length

    def hang(self, item: Item) -> None:
        """Hangs a thing on a wall, usually one in view; gives up when the walls are full."""
        for attempt in range(12):
            wall, along = self.dice.whole(0, 3), self.dice.between(0.1, 0.9)
            x, z = self._wall_spot(wall, along, 0.0)
            if attempt < 9 and not self._in_view(x, z):
                continue
            span = self.size[0] if wall % 2 == 0 else self.size[2]
            low, high = along * span - item.footprint[0] / 2 - 0.05, along * span + item.footprint[0] / 2 + 0.05
            if low < 0.1 or high > span - 0.1 or any(low < b and high > a for a, b in self._walls[wall]):
                continue
            if item.front_space and not self._take(self._before_wall(wall, along, item.footprint[0], item.front_space)):
                continue
            self._walls[wall].append((low, high))
            self.items += item.placed((x, 0.0, z), wall * math.pi / 2)
            return

    def _before_wall(self, wall: int, along: float, width: float, depth: float) -> Rectangle:
        """A rectangle of floor against a wall."""
        x, z = self._wall_spot(wall, along, depth / 2)
        half_x, half_z = (width / 2, depth / 2) if wall % 2 == 0 else (depth / 2, width / 2)
        # Slightly smaller, so that rounding does not put its wall side outside the room.
        half_x, half_z = half_x - 1e-6, half_z - 1e-6
        return x - half_x, z - half_z, x + half_x, z + half_z

    def stand_by_wall(self, item: Item) -> None:
        """Puts furniture with its back to a wall, usually one in view; gives up when there is no space left."""
        gap = 0.2  # room for what hangs on the wall
        for attempt in range(14):
            wall, along = self.dice.whole(0, 3), self.dice.between(0.05, 0.95)
            if attempt < 11 and not self._in_view(*self._wall_spot(wall, along, item.footprint[1] / 2)):
                continue
            depth = gap + item.footprint[1] + item.front_space
            if self._take(self._before_wall(wall, along, item.footprint[0], depth)):
                x, z = self._wall_spot(wall, along, gap + item.footprint[1] / 2)
                self.items += item.placed((x, 0.0, z), wall * math.pi / 2)
                return

    def stand_free(self, item: Item, distance: float = 1.2) -> None:
        """Puts something anywhere on the floor at a random angle, at least ``distance`` metres from the camera."""
        for attempt in range(14):
            x, z = self.dice.between(0.3, self.size[0] - 0.3), self.dice.between(0.3, self.size[2] - 0.3)
            yaw = self.dice.between(0.0, 2 * math.pi)
            if math.hypot(x - self.camera.position[0], z - self.camera.position[2]) < distance:
                continue
            if attempt < 11 and not self._in_view(x, z):
                continue
            cosine, sine = turn(yaw)
            width, length = item.footprint
            half_x = (abs(cosine) * width + abs(sine) * length) / 2
            half_z = (abs(sine) * width + abs(cosine) * length) / 2
            if self._take((x - half_x, z - half_z, x + half_x, z + half_z)):
                self.items += item.placed((x, 0.0, z), yaw)
                return


def _camera(dice: Dice, size: Vector) -> Camera:
    """A camera at eye height that looks across the middle of the room."""
    width, _, length = size
    middle = (width * dice.between(0.35, 0.65), length * dice.between(0.35, 0.65))
    x, z = dice.between(0.45, width - 0.45), dice.between(0.45, length - 0.45)
    while math.hypot(middle[0] - x, middle[1] - z) < 0.3 * min(width, length):
        x, z = dice.between(0.45, width - 0.45), dice.between(0.45, length - 0.45)
    height = dice.between(0.95, 1.9)
    level = unit((middle[0] - x, 0.0, middle[1] - z))
    cosine, sine = turn(dice.between(-0.42, 0.0) if height > 1.3 else dice.between(-0.25, 0.06))
    back = (-level[0] * cosine, -sine, -level[2] * cosine)
    right = unit(cross((0.0, 1.0, 0.0), back))
    up = cross(back, right)
    cosine, sine = turn(dice.between(-0.06, 0.06))
    rolled_x, rolled_y, rolled_z = (cosine * a + sine * b for a, b in zip(right, up, strict=True))
    rolled = (rolled_x, rolled_y, rolled_z)
    return Camera((x, height, z), rolled, cross(back, rolled), back, dice.between(*FOCAL_RANGE))


def _surfaces(dice: Dice) -> tuple[Material, ...]:
    """Paint or wallpaper; boards, tiles or carpet; a pale ceiling."""
    paint = tint(dice, (0.0, 1.0), (0.02, 0.4), (0.5, 0.95))
    pattern = dice.pick(("plain", "plain", "plain", "stripes", "tiles", "speckle"))
    paper = Material(paint, shade(paint, dice.between(0.6, 0.92)), pattern, dice.between(0.1, 0.4))
    other = Material(tint(dice, (0.0, 1.0), (0.1, 0.5), (0.4, 0.9)), paint, "plain", 0.4) if dice.chance(0.3) else paper
    if dice.chance(0.45):
        floor = timber(dice)
    else:
        colour = tint(dice, (0.0, 1.0), (0.0, 0.4), (0.25, 0.9))
        laid = dice.pick(("checker", "tiles", "speckle", "blotches"))
        floor = Material(colour, shade(colour, 0.5), laid, dice.between(0.2, 0.6))
    white = tint(dice, (0.05, 0.2), (0.0, 0.12), (0.8, 0.97))
    ceiling = Material(white, shade(white, 0.85), dice.pick(("plain", "plain", "tiles")), 0.6)
    return paper, paper, floor, ceiling, other, paper


def _lights(dice: Dice, floor: Floor) -> list[Light]:
    """A main light below the ceiling, with or without a visible lamp, and one or two weaker ones."""
    width, height, length = floor.size
    x, z = width * dice.between(0.25, 0.75), length * dice.between(0.25, 0.75)
    while math.hypot(x - floor.camera.position[0], z - floor.camera.position[2]) < 0.6:
        x, z = width * dice.between(0.2, 0.8), length * dice.between(0.2, 0.8)
    drop = 0.1
    if dice.chance(0.6):
        drop = dice.between(0.15, 0.6)
        pendant, glow = Item("lamp", casts_shadow=False), Material((0.9, 0.85, 0.7), (0.8, 0.7, 0.5), "plain", 0.3, 1.5)
        radius = dice.between(0.1, 0.2)
        pendant.ellipsoid((0, height - drop, 0), (radius, radius * dice.between(0.5, 1.0), radius), glow)
        if drop > radius:
            pendant.cylinder((0, height - drop, 0), 0.012, drop, Material((0.1, 0.1, 0.1), (0.1, 0.1, 0.1)))
        floor.items += pendant.placed((x, 0.0, z), 0.0)
    warm = tint(dice, (0.05, 0.16), (0.0, 0.35), (0.95, 1.0))
    lights = [Light((x, height - drop - 0.05, z), warm, dice.between(0.08, 0.3))]
    for _ in range(dice.whole(1, 2)):
        spot = (width * dice.between(0.05, 0.95), height * dice.between(0.5, 0.95), length * dice.between(0.05, 0.95))
        cool = tint(dice, (0.08, 0.62), (0.0, 0.3), (0.9, 1.0))
        lights.append(Light(spot, shade(cool, dice.between(0.1, 0.35)), 0.3))
    return lights


BIG = (furniture.sofa, furniture.bed, furniture.desk, furniture.bookshelf, furniture.cabinet, furniture.dresser)
SIDE = (
    furniture.night_stand,
    furniture.refrigerator,
    furniture.chair,
    furniture.bookshelf,
    furniture.cabinet,
    furniture.sofa,
)
LOOSE = (
    furniture.chair, props.big_carton, props.bag, props.big_plant, props.floor_lamp, furniture.stool,
    lambda dice: people.animal(dice, "dog"), lambda dice: people.animal(dice, "cat"),
)  # fmt: skip
ON_WALLS = (walls.picture, walls.picture, walls.window, walls.mirror, walls.whiteboard, walls.picture)


def _rug(dice: Dice, floor: Floor) -> None:
    """A thin rug near the middle of the room, under whatever stands there."""
    width, length = dice.between(1.0, 2.2), dice.between(0.8, 1.6)
    item = Item("rug", casts_shadow=False)
    item.box((0, 0.006, 0), (width, 0.012, length), fabric(dice))
    x, z = (floor.size[axis] * dice.between(0.35, 0.65) for axis in (0, 2))
    reach = math.hypot(width, length) / 2
    if reach < min(x, z, floor.size[0] - x, floor.size[2] - z):
        floor.items += item.placed((x, 0.0, z), dice.between(0.0, math.pi))


def build(dice: Dice) -> Scene:
    """Draws a scene."""
    size = (dice.between(3.0, 6.5), dice.between(2.3, 3.1), dice.between(3.4, 7.5))
    camera = _camera(dice, size)
    floor = Floor(dice, size, camera)
    lights = _lights(dice, floor)
    for maker in (walls.door, walls.window):
        if dice.chance(0.85):
            floor.hang(maker(dice))
    for _ in range(dice.whole(1, 4)):
        floor.hang(dice.pick(ON_WALLS)(dice))
    if dice.chance(0.5):
        floor.stand_free(furniture.dining_table(dice), 1.8)
    for _ in range(dice.whole(2, 3)):
        floor.stand_by_wall(dice.pick(BIG)(dice))
    for _ in range(dice.whole(0, 2)):
        floor.stand_by_wall(dice.pick(SIDE)(dice))
    if dice.chance(0.5):
        floor.stand_free(furniture.coffee_table(dice), 1.4)
    for _ in range(dice.pick((0, 1, 1, 1, 2, 2, 3))):
        floor.stand_free(people.person(dice, dice.pick(("standing", "walking"))), 1.5)
    for _ in range(dice.whole(1, 4)):
        floor.stand_free(dice.pick(LOOSE)(dice))
    if dice.chance(0.5):
        _rug(dice, floor)
    level = dice.between(0.05, 0.12)
    tone = tint(dice, (0.05, 0.65), (0.0, 0.2), (1.0, 1.0))
    ambient = (level * tone[0], level * tone[1], level * tone[2])
    balance = (dice.between(0.88, 1.12), 1.0, dice.between(0.88, 1.12))
    mood = Mood(dice.between(0.16, 0.34), balance, dice.between(0.0, 0.35), dice.between(0.5, 4.0))
    return Scene(size, _surfaces(dice), camera, floor.items, lights, ambient, mood)
