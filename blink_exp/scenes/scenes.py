"""Scenes composed of easy-VQA images, with objects, positions and masks.

easy-VQA (PyPI package ``easy-vqa``) holds 64 x 64 images with one coloured shape each. A scene is a canvas of rows x columns
of them. Train scenes use train images only and test scenes test images only, so held-out means unseen pixels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from blink_exp.images import open_image

TILE = 64  # pixels on a side of an easy-VQA image
SMALL = 0.06  # of its image: an object below has about 5 pixels a side in the thumbnail of a 4 x 4 scene, 10 in a tile
SHAPES = ("circle", "rectangle", "triangle")
# {(rows, columns): probability} of scenes with many small objects
SIZES = {(4, 4): 0.3, (2, 4): 0.14, (4, 2): 0.14, (3, 4): 0.1, (4, 3): 0.1, (2, 3): 0.06, (3, 2): 0.06, (1, 3): 0.05, (3, 1): 0.05}
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the canvas


@dataclass(frozen=True, eq=False)
class Tile:
    """One easy-VQA image with the attributes that its own questions and answers state."""

    image_id: int
    pixels: np.ndarray  # (64, 64, 3) uint8
    shape: str
    color: str

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(64, 64) bool, true on the shape. The background is one flat colour, read at a corner that the shape leaves free."""
        corners = [tuple(self.pixels[r, c]) for r in (0, -1) for c in (0, -1)]
        background = np.array(max(set(corners), key=corners.count), dtype=int)
        shape: np.ndarray = np.abs(self.pixels.astype(int) - background).max(axis=-1) > 20
        return shape


@dataclass(frozen=True)
class Scene:
    """Tiles in raster order on one canvas of rows x columns. ``columns``: objects a row; 0 makes as many rows as columns."""

    tiles: tuple[Tile, ...]
    columns: int = 0

    @property
    def n(self) -> int:
        """Rows and columns of a square scene."""
        return round(math.sqrt(len(self.tiles)))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns)."""
        columns = self.columns or self.n
        return len(self.tiles) // columns, columns

    def cell(self, index: int) -> tuple[int, int]:
        """(row, column) of tile ``index``."""
        return divmod(index, self.grid[1])

    @property
    def canvas(self) -> Image.Image:
        """Not cached: a benchmark keeps its scenes, and their images would add up in memory."""
        rows, columns = self.grid
        lines = [np.concatenate([t.pixels for t in self.tiles[r * columns : (r + 1) * columns]], axis=1) for r in range(rows)]
        return Image.fromarray(np.concatenate(lines, axis=0))

    def masks(self) -> np.ndarray:
        """(objects, height, width) bool, one mask a tile, in canvas pixels."""
        rows, columns = self.grid
        out = np.zeros((len(self.tiles), rows * TILE, columns * TILE), dtype=bool)
        for i, tile in enumerate(self.tiles):
            r, c = self.cell(i)
            out[i, r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] = tile.mask
        return out

    def mask(self, objects: tuple[int, ...]) -> np.ndarray:
        """(height, width) bool: the union of some tiles' masks; nothing without any."""
        union: np.ndarray = np.any(self.masks()[list(objects)], axis=0)
        return union

    def box(self, index: int) -> Box:
        """The cell of tile ``index`` as fractions of the canvas."""
        (rows, columns), (r, c) = self.grid, self.cell(index)
        return (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows)

    def place(self, index: int) -> str:
        """How a question names the cell of tile ``index``: "the top left" in 2 x 2, "row 3 column 1" in larger scenes."""
        r, c = self.cell(index)
        if self.grid == (2, 2):
            return f"the {('top', 'bottom')[r]} {('left', 'right')[c]}"
        return f"row {r + 1} column {c + 1}"


@functools.lru_cache(maxsize=2)
def load_tiles(split: str) -> tuple[Tile, ...]:
    """All images of easy-VQA's ``train`` or ``test`` split, in the order of their ids.

    Shape and colour are read off the positive answers, as the images carry no other annotation: "what color is ..." and
    "what shape ..." questions where there are any, else the one shape or colour whose "is there ..." is answered yes.
    """
    facts: dict[int, dict[str, str]] = {}
    for question, answer, image_id in official_questions(split):
        fact = facts.setdefault(image_id, {})
        if answer in SHAPES:
            fact["shape"] = answer
        elif answer in COLORS:
            fact["color"] = answer
        else:
            said_yes = (answer == "yes") != (" not " in question or question.startswith("is no "))
            for word in question.rstrip("?").split():
                if said_yes and word in SHAPES:
                    fact["shape"] = word
                elif said_yes and word in COLORS:
                    fact["color"] = word
        for word in question.rstrip("?").split() if question.startswith("what") else ():
            if word in SHAPES:  # "what color is the circle?" and "what is the blue shape?" presuppose what they name
                fact["shape"] = word
            elif word in COLORS:
                fact["color"] = word
    paths = _easy_vqa(split)[1]
    tiles = []
    for image_id in sorted(paths):
        fact = facts.get(image_id, {})
        if len(fact) == 2:  # an image whose questions do not settle both attributes cannot be asked about in a scene
            tiles.append(Tile(image_id, np.asarray(open_image(paths[image_id])), fact["shape"], fact["color"]))
    return tuple(tiles)


def official_questions(split: str) -> list[tuple[str, str, int]]:
    """easy-VQA's own (question, answer, image id) rows, unchanged and in their published order."""
    return list(zip(*_easy_vqa(split)[0], strict=True))


@functools.lru_cache(maxsize=2)
def _easy_vqa(split: str) -> tuple[tuple[list[str], list[str], list[int]], dict[int, str]]:
    import easy_vqa

    if split == "train":
        return easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    if split == "test":
        return easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    raise ValueError(f"split={split!r} is not part of easy-VQA; use 'train' or 'test'")


@functools.lru_cache(maxsize=2)
def small_tiles(split: str) -> tuple[Tile, ...]:
    """The images whose object covers less than ``SMALL`` of them: about a third."""
    return tuple(tile for tile in load_tiles(split) if tile.mask.mean() < SMALL)


def random_scene(rng: np.random.Generator, split: str, rows: int, columns: int | None = None, small: bool = False) -> Scene:
    """A scene of rows x columns tiles (rows x rows by default) drawn without replacement from ``split``, or from its ``small_tiles``."""
    tiles = small_tiles(split) if small else load_tiles(split)
    columns = columns or rows
    return Scene(tuple(tiles[i] for i in rng.choice(len(tiles), size=rows * columns, replace=False)), columns)


def many_objects(rng: np.random.Generator) -> tuple[int, int]:
    """(rows, columns) of a high-resolution scene."""
    return list(SIZES)[int(rng.choice(len(SIZES), p=list(SIZES.values())))]
