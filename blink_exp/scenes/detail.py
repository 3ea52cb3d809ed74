"""Scenes that need detail: many small objects, one of which is the only one of its shape and one the only one of its colour."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from blink_exp.scenes.scenes import COLORS, SHAPES, Scene, Tile, load_tiles, small_tiles

VERSION = 1  # a scene is stable for ever: another draw is another version
SIZES = (4, 5, 6, 8)  # objects a row
ANY_OBJECT = 8  # from this size on objects of all sizes are used, below it small ones
SPLITS = ("test", "train")


class DetailScene(NamedTuple):
    """``scene``; ``shape_alone``: the tile whose shape no other has; ``color_alone``: the tile whose colour no other has. They are one tile
    in a third of the scenes, so that the shape that is seen once says nothing about the shape of the colour that is seen once."""

    scene: Scene
    shape_alone: int
    color_alone: int


def detail_scene(split: str, i: int) -> DetailScene:
    """Scene number ``i`` of ``split``, made of that split's images only.

    Every four scenes have all ``SIZES``. What questions ask for is balanced: of 24 scenes of one size three have the same colour at
    ``shape_alone``, and eight the same shape at ``color_alone``. Both in random order, so that every n-th scene is balanced too."""
    seeds = (400 + VERSION, SPLITS.index(split))
    four, at = divmod(i, len(SIZES))
    n = SIZES[np.random.default_rng((*seeds, 0, four)).permutation(len(SIZES))[at]]
    block, turn = divmod(four, len(COLORS) * len(SHAPES))
    answer = int(np.random.default_rng((*seeds, 1, n, block)).permutation(len(COLORS) * len(SHAPES))[turn])
    color, shape = COLORS[answer % len(COLORS)], SHAPES[answer % len(SHAPES)]
    pool = load_tiles(split) if n >= ANY_OBJECT else small_tiles(split)
    rng = np.random.default_rng((*seeds, 2, i))

    def drawn(tiles: list[Tile]) -> Tile:
        return tiles[rng.integers(len(tiles))]

    first = drawn([tile for tile in pool if tile.color == color])
    together = first.shape == shape
    second = first if together else drawn([tile for tile in pool if tile.shape == shape and tile.color != color])
    rest = [tile for tile in pool if tile.shape != first.shape and tile.color != second.color]
    tiles = [rest[k] for k in rng.choice(len(rest), size=n * n, replace=False)]
    shape_alone, color_alone = (int(k) for k in rng.choice(n * n, size=2, replace=False))
    color_alone = shape_alone if together else color_alone
    tiles[shape_alone], tiles[color_alone] = first, second
    return DetailScene(Scene(tuple(tiles), n), shape_alone, color_alone)
