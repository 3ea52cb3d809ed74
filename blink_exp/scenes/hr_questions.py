"""Questions about scenes of many objects, where details decide: the five kinds of ``mosaic_hr``.

An object is named by colour and shape together ("the red circle"), so that even a scene of 16 has objects to ask about. As in
``questions``, a kind is a function ``(rng, scene, wanted) -> Question | None``; kinds that are no yes/no questions ignore ``wanted``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from blink_exp.scenes.questions import Kind, SceneQuestion, _pick, _pick_absent, _pick_any, _unique
from blink_exp.scenes.scenes import COLORS, SHAPES, Scene, Tile

MOST = 3  # the largest number that is asked for


def name_of(tile: Tile) -> str:
    return f"{tile.color} {tile.shape}"


def alone(scene: Scene) -> list[int]:
    """Tiles whose object is the only one of its colour and shape."""
    counts = Counter(map(name_of, scene.tiles))
    return [i for i, tile in enumerate(scene.tiles) if counts[name_of(tile)] == 1]


def small_object(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    if answer == "yes":
        i = _pick_any(rng, alone(scene))
        return None if i is None else SceneQuestion("small_object", f"is there a {name_of(scene.tiles[i])}?", "yes", (i,))
    pair = _pick_absent(rng, scene)
    return pair and SceneQuestion("small_object", f"is there a {pair[0]} {pair[1]}?", "no")


def count(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    counts = Counter(map(name_of, scene.tiles))
    names = [f"{c} {s}" for c in COLORS for s in SHAPES]
    number = _pick(rng, sorted({counts[name] for name in names if counts[name] <= MOST}))
    name = _pick(rng, [name for name in names if counts[name] == number])
    objects = tuple(i for i, tile in enumerate(scene.tiles) if name_of(tile) == name)
    return SceneQuestion("count", f"how many {name}s are there?", str(number), objects)


def position(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    """In which half an object is; objects in the middle are excluded."""
    options = []
    for i in alone(scene):
        for axis, sides in enumerate((("top", "bottom"), ("left", "right"))):
            offset = 2 * scene.cell(i)[axis] - (scene.grid[axis] - 1)
            if offset:
                options.append((i, sides, sides[offset > 0]))
    option = _pick_any(rng, options)
    if option is None:
        return None
    i, sides, answer = option
    text = f"is the {name_of(scene.tiles[i])} {sides[0]} or {sides[1]}?"
    return SceneQuestion("position", text, answer, (i,), ((f"is the {name_of(scene.tiles[i])}", i),))


def attribute(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    options = [("what is the {0} shape?", color, "shape", i) for color, i in _unique(scene, "color")]
    options += [("what color is the {0}?", shape, "color", i) for shape, i in _unique(scene, "shape")]
    option = _pick_any(rng, options)
    if option is None:
        return None
    text, value, attribute_name, i = option
    return SceneQuestion("attribute", text.format(value), getattr(scene.tiles[i], attribute_name), (i,))


def relation(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    """Which of two objects is further left, or further up; never two in one column or row."""
    single = alone(scene)
    options = []
    for a in single:
        for b in single:
            for axis, word in enumerate(("above", "left of")):
                step = scene.cell(a)[axis] - scene.cell(b)[axis]
                if step and (step < 0) == (answer == "yes"):
                    options.append((a, b, word))
    option = _pick_any(rng, options)
    if option is None:
        return None
    a, b, word = option
    first = f"is the {name_of(scene.tiles[a])}"
    text = f"{first} {word} the {name_of(scene.tiles[b])}"
    return SceneQuestion("relation", f"{text}?", answer, (a, b), ((first, a), (text, b)))


KINDS: dict[str, Kind] = {k.__name__: k for k in (small_object, count, position, attribute, relation)}
ABOUT_ONE = ("small_object", "position", "attribute")  # kinds whose question names one object


def draw(rng: np.random.Generator, scene: Scene, how_many: int, shares: dict[str, float] | None = None) -> list[SceneQuestion]:
    """``how_many`` questions of kinds drawn at random, all alike or by ``shares``, which sum to 1; yes and no equally likely. ``count``
    suits any scene, so this ends."""
    shares = shares or dict.fromkeys(KINDS, 1 / len(KINDS))
    questions: list[SceneQuestion] = []
    while len(questions) < how_many:
        kind = rng.choice(list(shares), p=list(shares.values()))
        question = KINDS[kind](rng, scene, _pick(rng, ("yes", "no")))
        if question is not None:
            questions.append(question)
    return questions
