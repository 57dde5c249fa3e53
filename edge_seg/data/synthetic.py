"""Synthetic panoptic scenes with exact truth: no download, no licence, as many as one likes.

`easy` has four stuff textures and four shapes, each with a hue of its own. `hard` has six and seven, colours
that say nothing about the class, up to 25 objects, small ones among them, uneven light, blur, noise and
unlabelled patches.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_seg.contract import ClassInfo
from edge_seg.data.coco_json import palette_rgb
from edge_seg.data.sample import Sample, Segment
from edge_seg.data.synthetic_draw import (
    TEXTURES,
    Surface,
    largest_field,
    shape_distance_px,
    soften,
    wavy_field,
)
from edge_seg.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.data.synthetic_draw import Field

VERSION = 1
_SPLITS = {"train": 1, "val": 2}
_LENGTHS = {"train": 4000, "val": 200}
_VOID = -1


@dataclass(frozen=True)
class Level:
    """What the scenes of a level are made of; sizes in pixels of a 256 px scene.

    Attributes:
        code: Number of the level, part of the seed.
        shapes: Thing classes.
        textures: Stuff classes.
        objects: Fewest and most objects.
        radius_px: Smallest and largest radius; drawn uniformly in the logarithm.
        regions: Fewest and most stuff regions.
        unlabelled: Most unlabelled patches.
        class_colors: Whether each class has a hue of its own.
        margin: How far from the border, as a share of the side, centres stay; negative lets them leave.
        noise_std: Largest standard deviation of the noise, in grey levels.
        blur: Largest weight of a neighbouring pixel in the blur, 0..1/3.
    """

    code: int
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    objects: tuple[int, int]
    radius_px: tuple[float, float]
    regions: tuple[int, int]
    unlabelled: int
    class_colors: bool
    margin: float
    noise_std: float
    blur: float


LEVELS = {
    "easy": Level(
        code=1,
        shapes=("disc", "box", "triangle", "star"),
        textures=("plain", "stripes", "bricks", "speckle"),
        objects=(3, 8),
        radius_px=(12.0, 45.0),
        regions=(2, 3),
        unlabelled=0,
        class_colors=True,
        margin=0.06,
        noise_std=4.0,
        blur=0.0,
    ),
    "hard": Level(
        code=2,
        shapes=("disc", "box", "triangle", "star", "ring", "cross", "crescent"),
        textures=("plain", "stripes", "bricks", "speckle", "dots", "ripples"),
        objects=(5, 25),
        radius_px=(9.5, 44.0),
        regions=(3, 5),
        unlabelled=2,
        class_colors=False,
        margin=-0.01,
        noise_std=10.0,
        blur=0.28,
    ),
}


class SyntheticScenes:
    """A data set of drawn scenes. Scene i depends on level, split, seed, size and i alone.

    Args:
        level: "easy" or "hard".
        split: "train" or "val"; they share no scene.
        seed: Another seed gives other scenes.
        size_px: Side of the square scene, at least 32.
        length: Number of scenes; 4000 for train and 200 for val when not given.

    Raises:
        DataError: A value is out of range.
    """

    def __init__(
        self,
        level: str,
        *,
        split: Literal["train", "val"],
        seed: int = 0,
        size_px: int = 256,
        length: int | None = None,
    ) -> None:
        if level not in LEVELS or split not in _SPLITS:
            raise DataError(
                "There is no such synthetic set.",
                expected=f"{' or '.join(LEVELS)}; {' or '.join(_SPLITS)}",
                got=f"{level}, {split}",
            )
        count = _LENGTHS[split] if length is None else length
        if seed < 0 or not 32 <= size_px <= 4096 or count < 1:
            raise DataError(
                "A number of the synthetic set is out of range.",
                expected="seed >= 0, 32 <= size_px <= 4096, length >= 1",
                got=f"seed {seed}, size_px {size_px}, length {count}",
            )
        self.level, self.split, self.seed, self.size_px = LEVELS[level], split, seed, size_px
        self._length = count
        self.name = f"synthetic:{level}" + (f":{seed}" if seed else "")
        self.classes = _classes(self.level)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Draws a scene; raises IndexError past the end."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, self.level.code, _SPLITS[self.split], index])
        image, id_map, segments = _Scene(self.level, self.size_px, rng).draw()
        return Sample(index, f"{self.split}_{index:06d}.png", image, id_map, segments)

    def fingerprint(self) -> str:
        """Returns a SHA-256 over everything a scene depends on, the generator's version included."""
        parts = (VERSION, self.name, self.split, self.seed, self.size_px, self._length)
        return hashlib.sha256(f"edge_seg.synthetic {parts}".encode()).hexdigest()


def _classes(level: Level) -> tuple[ClassInfo, ...]:
    named = [(name, True) for name in level.shapes] + [(name, False) for name in level.textures]
    return tuple(ClassInfo(i + 1, name, thing, palette_rgb(i)) for i, (name, thing) in enumerate(named))


class _Scene:
    """One scene in the making: planar float picture, id map, and the class of every id."""

    def __init__(self, level: Level, size_px: int, rng: np.random.Generator) -> None:
        self.level, self.size_px, self.rng = level, size_px, rng
        self.unit_px = size_px / 256.0
        self.image_chw: Field = np.zeros((3, size_px, size_px), np.float32)
        self.id_map = np.zeros((size_px, size_px), np.int32)
        self.class_of: dict[int, int] = {}
        self.areas_px: dict[int, int] = {}

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.int32], tuple[Segment, ...]]:
        """Returns the picture [H, W, 3], the id map and the segments that are visible."""
        self._stuff()
        self._objects()
        segments = self._drop_slivers()
        return self._photograph(), self.id_map, segments

    def _stuff(self) -> None:
        """Regions are where one of several smooth random fields is the largest; one class each.

        Colours come from a table of 256 shades per region: one look-up per channel.
        """
        level, rng = self.level, self.rng
        count = int(rng.integers(level.regions[0], level.regions[1] + 1))
        chosen = rng.permutation(len(level.textures))[:count].tolist()
        label = largest_field([wavy_field(rng, 4, self.size_px) for _ in chosen])
        shade = np.empty(self.size_px * self.size_px, np.int32)
        shades = np.linspace(0.0, 1.0, 256, dtype=np.float32)
        table = np.empty((3, count, 256), np.float32)
        for position, texture in enumerate(chosen):
            class_index = len(level.shapes) + texture
            surface = Surface(rng, label == position, rng.uniform(9.0, 20.0) * self.unit_px)
            field = TEXTURES[level.textures[texture]](surface)
            shade[surface.flat] = np.clip(field, 0.0, 1.0) * np.float32(255.0) + np.float32(256 * position)
            dark, bright = self._two_colors(class_index)
            table[:, position] = dark[:, None] + (bright - dark)[:, None] * shades
            self.class_of[position + 1] = class_index
        self.image_chw = table.reshape(3, -1)[:, shade].reshape(self.image_chw.shape)
        self.id_map = label.astype(np.int32) + 1

    def _two_colors(self, class_index: int) -> tuple[Field, Field]:
        """A darker and a brighter shade of one hue, 0..255; in easy scenes the hue is the class's own."""
        draws = self.rng.random(4).tolist()
        n_classes = len(self.level.shapes) + len(self.level.textures)
        hue = class_index / n_classes + 0.05 * (draws[0] - 0.5) if self.level.class_colors else draws[0]
        saturation, value, spread = 0.25 + 0.5 * draws[1], 0.55 + 0.4 * draws[2], 0.25 + 0.2 * draws[3]
        pair = [colorsys.hsv_to_rgb(hue % 1.0, saturation, max(0.1, value - d)) for d in (spread, 0.0)]
        dark, bright = np.array(pair, np.float32) * np.float32(255.0)
        return dark, bright

    def _objects(self) -> None:
        """Larger objects first, by and large, so that small ones are seen; unlabelled patches among them."""
        level, rng = self.level, self.rng
        count = int(rng.integers(level.objects[0], level.objects[1] + 1))
        kinds = rng.integers(0, len(level.shapes), count).tolist()
        kinds += [_VOID] * int(rng.integers(0, level.unlabelled + 1))
        low, high = (math.log(r) for r in level.radius_px)
        radii_px = np.exp(rng.uniform(low, high, len(kinds))) * self.unit_px
        order = np.argsort(-radii_px * rng.uniform(0.6, 1.4, len(kinds)))
        for position in order.tolist():
            self._object(kinds[position], float(radii_px[position]))

    def _object(self, class_index: int, radius_px: float) -> None:
        """Draws one object over what is there. `class_index` of -1 is an unlabelled patch."""
        level, size = self.level, self.size_px
        draws = self.rng.random(4).tolist()
        center_x, center_y = (size * (level.margin + (1.0 - 2.0 * level.margin) * d) for d in draws[:2])
        reach = 1.25 * radius_px + 2.0
        y0, y1 = max(0, int(center_y - reach)), min(size, int(center_y + reach) + 1)
        x0, x1 = max(0, int(center_x - reach)), min(size, int(center_x + reach) + 1)
        rows = (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - center_y))[:, None]
        columns = (np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - center_x))[None, :]
        name = "disc" if class_index == _VOID else level.shapes[class_index]
        angle, aspect = 2.0 * math.pi * draws[2], 0.7 + 0.3 * draws[3]
        distance = shape_distance_px(name, rows, columns, radius_px=radius_px, angle=angle, aspect=aspect)
        under = self.image_chw[:, y0:y1, x0:x1]
        paint = self._paint(class_index, distance, (rows, columns), under)
        under += np.clip(np.float32(0.5) - distance, 0.0, 1.0) * (paint - under)
        self._name(self.id_map[y0:y1, x0:x1], distance < 0.0, class_index)

    def _name(self, ids: NDArray[np.int32], inside: NDArray[np.bool_], class_index: int) -> None:
        new_id = 0
        if class_index != _VOID:
            new_id = max(self.class_of) + 1
            self.class_of[new_id] = class_index
            self.areas_px[new_id] = int(np.count_nonzero(inside))
        ids[inside] = new_id

    def _paint(
        self,
        class_index: int,
        distance: Field,
        offsets_px: tuple[Field, Field],
        under_chw: Field,
    ) -> Field:
        """Colours of an object: two shades mixed by a slope and a pattern, with a dark rim; [3, h, w]."""
        rng = self.rng
        under_rgb = under_chw.mean((1, 2))
        for _ in range(6):
            dark, bright = self._two_colors(max(0, class_index))
            if float(np.abs(dark + bright - 2.0 * under_rgb).sum()) > 160.0:
                break
        rows, columns = offsets_px
        turn, period, phase, patterned = rng.random(4).tolist()
        cos, sin = (np.float32(f(2.0 * math.pi * turn)) for f in (math.cos, math.sin))
        along = columns * cos + rows * sin
        mix = np.float32(0.6) + along * np.float32(0.35 / max(distance.shape))
        if class_index == _VOID:
            mix = rng.random(distance.shape, np.float32)
        elif not self.level.class_colors and patterned < 0.5:
            wave = np.float32(2.0 * math.pi / ((5.0 + 6.0 * period) * self.unit_px))
            mix += np.float32(0.35) * np.sin(along * wave + np.float32(2.0 * math.pi * phase))
        rim = 1.0 - 0.45 * np.clip(1.0 + distance * np.float32(1.0 / 2.5), 0.0, 1.0)
        paint: Field = (dark[:, None, None] + mix * (bright - dark)[:, None, None]) * rim
        return paint

    def _drop_slivers(self) -> tuple[Segment, ...]:
        """What is hidden but for a sliver, or tiny, becomes void: nobody could name it."""
        visible_px = np.bincount(self.id_map.ravel(), minlength=max(self.class_of) + 1).tolist()
        least_px = 20.0 * self.unit_px**2
        table = np.zeros(len(visible_px), np.int32)
        for id_ in self.class_of:
            if visible_px[id_] >= max(least_px, 0.15 * self.areas_px.get(id_, 0)):
                table[id_] = id_
        self.id_map = table[self.id_map]
        return tuple(Segment(id_, class_index) for id_, class_index in self.class_of.items() if table[id_])

    def _photograph(self) -> NDArray[np.uint8]:
        """Light, blur, noise, rounding."""
        level, rng, size = self.level, self.rng, self.size_px
        noise_std, blur = (rng.random(2) * (level.noise_std, level.blur)).tolist()
        image = self.image_chw
        if not level.class_colors:
            image *= self._light()
        if blur > 0.0:
            image = soften(image, blur)
        image += rng.standard_normal((size, size), np.float32) * np.float32(noise_std) + np.float32(0.5)
        np.clip(image, 0.0, 255.0, out=image)
        return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))

    def _light(self) -> Field:
        """A smooth gain, about 0.6..1.2, brighter on one side."""
        turn, strength = self.rng.random(2).tolist()
        angle, strength = 2.0 * math.pi * turn, 0.05 + 0.25 * strength
        axis = np.linspace(-1.0, 1.0, self.size_px, dtype=np.float32)
        slope = axis[None, :] * np.float32(math.cos(angle)) + axis[:, None] * np.float32(math.sin(angle))
        gain: Field = np.float32(0.92) + np.float32(strength) * slope
        return gain
