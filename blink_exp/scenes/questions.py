"""Generates questions about scenes, with answers and the objects concerned.

A kind is a function ``(rng, scene, answer) -> Question | None``: open kinds ignore ``answer``; yes/no kinds build a question whose
true answer is ``answer`` ("yes" or "no"), so that guessing from the text alone gives one half. None means that this scene has no
such question (no unique circle, for example); callers draw another kind or another scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from blink_exp.scenes.scenes import COLORS, SHAPES, Scene, official_questions, random_scene


@dataclass(frozen=True)
class SceneQuestion:
    kind: str
    text: str
    answer: str
    objects: tuple[int, ...] = ()  # indices of the tiles that determine the answer; empty: all
    mentions: tuple[tuple[str, int], ...] = ()  # (the question up to and including the name of an object, that object's tile)


T = TypeVar("T")
Kind = Callable[[np.random.Generator, Scene, str], SceneQuestion | None]


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of ``options``. Not rng.choice, which would turn strings into numpy's."""
    return options[int(rng.integers(len(options)))]


def _pick_any(rng: np.random.Generator, options: Sequence[T]) -> T | None:
    """One of ``options``, or None if there is none; then nothing is drawn."""
    return _pick(rng, options) if options else None


def _unique(scene: Scene, attribute: str) -> list[tuple[str, int]]:
    """(value, tile index) for every shape or colour that exactly one tile has."""
    values = [getattr(tile, attribute) for tile in scene.tiles]
    counts = Counter(values)
    return [(value, i) for i, value in enumerate(values) if counts[value] == 1]


def _pick_absent(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    """A colour and a shape that no object has together; both occur in the scene if possible."""
    present = {(tile.color, tile.shape) for tile in scene.tiles}
    mixed = {(c, s) for c, _ in present for _, s in present} - present
    return _pick_any(rng, sorted(mixed or {(c, s) for c in COLORS for s in SHAPES} - present))


def _other(rng: np.random.Generator, vocabulary: tuple[str, ...], truth: str) -> str:
    return _pick(rng, [word for word in vocabulary if word != truth])


def _plural(value: str) -> str:
    return f"{value}s" if value in SHAPES else f"{value} shapes"


def _matches(scene: Scene, value: str) -> tuple[int, ...]:
    return tuple(i for i, tile in enumerate(scene.tiles) if value in (tile.shape, tile.color))


# About tile i, named by what it alone has.


def color_of(scene: Scene, i: int) -> SceneQuestion:
    return SceneQuestion("color", f"what color is the {scene.tiles[i].shape}?", scene.tiles[i].color, (i,))


def shape_of(scene: Scene, i: int) -> SceneQuestion:
    return SceneQuestion("shape", f"what is the {scene.tiles[i].color} shape?", scene.tiles[i].shape, (i,))


def color_check_of(rng: np.random.Generator, scene: Scene, i: int, answer: str) -> SceneQuestion:
    tile = scene.tiles[i]
    claim = tile.color if answer == "yes" else _other(rng, COLORS, tile.color)
    return SceneQuestion("color_check", f"is the {tile.shape} {claim}?", answer, (i,))


def shape_check_of(rng: np.random.Generator, scene: Scene, i: int, answer: str) -> SceneQuestion:
    tile = scene.tiles[i]
    claim = tile.shape if answer == "yes" else _other(rng, SHAPES, tile.shape)
    return SceneQuestion("shape_check", f"is the {tile.color} shape a {claim}?", answer, (i,))


# Open questions: the answer is one word.


def color(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    unique = _pick_any(rng, _unique(scene, "shape"))
    return unique and color_of(scene, unique[1])


def shape(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    unique = _pick_any(rng, _unique(scene, "color"))
    return unique and shape_of(scene, unique[1])


def color_at(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    i = int(rng.integers(len(scene.tiles)))
    return SceneQuestion("color_at", f"what color is at {scene.place(i)}?", scene.tiles[i].color, (i,))


def shape_at(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    i = int(rng.integers(len(scene.tiles)))
    return SceneQuestion("shape_at", f"what shape is at {scene.place(i)}?", scene.tiles[i].shape, (i,))


def count(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    value = _pick(rng, SHAPES if scene.n == 2 or rng.random() < 0.3 else COLORS)
    return SceneQuestion("count", f"how many {_plural(value)} are there?", str(len(_matches(scene, value))))


# Yes/no questions.


def existence(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    vocabulary = SHAPES if rng.random() < 0.5 else COLORS
    value = _pick_any(rng, [v for v in vocabulary if bool(_matches(scene, v)) == (answer == "yes")])
    if value is None:
        return None
    return SceneQuestion("existence", f"is there a {value}{'' if value in SHAPES else ' shape'}?", answer, _matches(scene, value))


def conjunction(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    pair = _pick_any(rng, sorted({(t.color, t.shape) for t in scene.tiles})) if answer == "yes" else _pick_absent(rng, scene)
    if pair is None:
        return None
    objects = tuple(i for i, tile in enumerate(scene.tiles) if (tile.color, tile.shape) == pair)
    return SceneQuestion("conjunction", f"is there a {pair[0]} {pair[1]}?", answer, objects)


def position(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    unique = _pick_any(rng, _unique(scene, "shape") + _unique(scene, "color"))
    if unique is None:
        return None
    value, i = unique
    at = i if answer == "yes" else _pick_any(rng, [j for j in range(len(scene.tiles)) if j != i])
    if at is None:
        return None
    return SceneQuestion("position", f"is the {value}{'' if value in SHAPES else ' shape'} at {scene.place(at)}?", answer, (i,))


def color_check(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    unique = _pick_any(rng, _unique(scene, "shape"))
    return unique and color_check_of(rng, scene, unique[1], answer)


def shape_check(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    unique = _pick_any(rng, _unique(scene, "color"))
    return unique and shape_check_of(rng, scene, unique[1], answer)


def count_check(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    value = _pick(rng, SHAPES if scene.n == 2 or rng.random() < 0.3 else COLORS)
    truth = len(_matches(scene, value))
    near = [k for k in (truth - 1, truth + 1) if 0 <= k <= len(scene.tiles)]
    claim = truth if answer == "yes" else _pick(rng, near)
    return SceneQuestion("count_check", f"are there {claim} {_plural(value)}?", answer)


def comparison(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    """Compares the counts of two shapes; without ties, so that "no" means fewer."""
    counts = {s: len(_matches(scene, s)) for s in SHAPES}
    pairs = [(a, b) for a in SHAPES for b in SHAPES if (counts[a] > counts[b] if answer == "yes" else counts[a] < counts[b])]
    pair = _pick_any(rng, pairs)
    return pair and SceneQuestion("comparison", f"are there more {pair[0]}s than {pair[1]}s?", answer)


def arithmetic(rng: np.random.Generator, scene: Scene, answer: str) -> SceneQuestion | None:
    left_out = _pick(rng, SHAPES)
    a, b = (s for s in SHAPES if s != left_out)
    truth = len(scene.tiles) - len(_matches(scene, left_out))
    near = [k for k in (truth - 1, truth + 1) if 0 <= k <= len(scene.tiles)]
    claim = truth if answer == "yes" else _pick(rng, near)
    return SceneQuestion("arithmetic", f"is the number of {a}s plus {b}s {claim}?", answer)


OPEN: dict[str, Kind] = {k.__name__: k for k in (color, shape, color_at, shape_at, count)}
YES_NO: dict[str, Kind] = {
    k.__name__: k for k in (existence, conjunction, position, color_check, shape_check, count_check, comparison, arithmetic)
}
KINDS: dict[str, Kind] = {**OPEN, **YES_NO}


def draw(rng: np.random.Generator, scene: Scene, kinds: dict[str, Kind], how_many: int) -> list[SceneQuestion]:
    """``how_many`` questions about ``scene`` of kinds drawn at random, yes and no equally likely. ``count`` and ``color_at`` suit
    any scene, so with one of the four kinds that always apply among ``kinds`` this ends."""
    names = list(kinds)
    questions: list[SceneQuestion] = []
    while len(questions) < how_many:
        question = kinds[_pick(rng, names)](rng, scene, _pick(rng, ("yes", "no")))
        if question is not None:
            questions.append(question)
    return questions


def caption(scene: Scene) -> str:
    """All objects in raster order: "a red circle at the top left, a blue triangle at the top right, ..."."""
    named = [f"a {tile.color} {tile.shape}" for tile in scene.tiles]
    if scene.n > 1:
        named = [f"{name} at {scene.place(i)}" for i, name in enumerate(named)]
    return ", ".join(named)


def vocabulary_corpus() -> list[str]:
    """Sentences with every word of prompts, captions and answers, to train the tokenizer on."""
    rng = np.random.default_rng(0)

    lines = [f"{q} ASSISTANT: {a}" for q, a, _ in official_questions("train")[:5000]]
    for n in (2, 3, 4):
        for _ in range(300):
            scene = random_scene(rng, "train", n)
            lines += [f"USER: \n{q.text} ASSISTANT: {q.answer}" for q in draw(rng, scene, KINDS, 8)]
            lines.append("describe the image. ASSISTANT: " + caption(scene))
    lines += [f" {k}" for k in range(17) for _ in range(50)]
    return lines
