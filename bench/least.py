"""The fewest FLOPs that a set of points can be answered with, from what they decided, and not from how anything ran.

By the papers' formula (``blink_exp.evaluation.cost``) for what differs, each thing once: the tower and the prefix for each image; an
expanded segment for each (image, layer, region, module, what stands before it), as far as any point still holds it; a text for each
question and each different course of decisions so far; and as many generated tokens. Scans are not in it: they are overhead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

from blink_exp.core.method import Method, Record
from blink_exp.core.sequence import Expand, State, transition
from blink_exp.evaluation.tokens import layer_flops

Segment = tuple[Any, ...]  # (layer, region, module, grid, interpolated, inherits, what stands before)


@dataclass(frozen=True)
class Answered:
    """One question to one point. ``text``: tokens behind the image; ``ahead``: of the prefix; ``generated``: tokens of the answer."""

    image: str
    question: int
    method: Method
    text: int
    ahead: int
    visual: int
    generated: int
    decisions: Rows[Record]


def course(one: Answered, depth: int) -> list[tuple[tuple[Segment, int], ...]]:
    """The expanded segments in front of the text at every layer, with their tokens."""
    by_layer = {r.scan.layer: r for r in one.decisions}
    state: State[int, tuple[Segment, int]] = State.of(())
    out = []
    for layer in range(depth):
        record = by_layer.get(layer)
        if record is not None:
            state = transition(state, record.decision, expand=functools.partial(_segment, one, record))
        out.append(state.expanded[0])
    return out


def _segment(one: Answered, record: Record, before: tuple[tuple[Segment, int], ...]) -> tuple[Segment, int]:
    """The segment that a recorded expansion made behind those ``before``, and its tokens."""
    decision, modules = record.decision, one.method.amplifiers
    policy: Any = one.method.policy
    assert isinstance(decision, Expand)
    module = id(modules[str(record.scan.layer)]) if decision.amplify and modules is not None else None
    segment = (record.scan.layer, decision.region, module, policy.p, policy.interpolate, policy.inherit_positions, before)
    return segment, record.visual_tokens - one.visual - sum(n for _, n in before)


def least(answered: Rows[Answered], config: Any, tower: int) -> int:
    """FLOPs. ``config``: of the decoder; ``tower``: FLOPs of encoding one image."""
    depth, d, m = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    vocabulary = config.vocab_size
    total = 0
    images = {(one.image, one.ahead) for one in answered}
    total += len({image for image, _ in images}) * tower
    total += sum(depth * layer_flops(n, n, d, m) for _, n in images)
    segments: set[tuple] = set()  # (image, prefix, layer at work, segment, tokens)
    made: dict[tuple, int] = {}  # (image, prefix, segment): FLOPs of its module
    texts: set[tuple] = set()
    spoken: dict[tuple, int] = {}
    for one in answered:
        steps = course(one, depth)
        for layer, chain in enumerate(steps):
            texts.add((one.image, one.ahead, one.question, one.text, layer, tuple(steps[: layer + 1])))
            for segment, tokens in chain:
                segments.add((one.image, one.ahead, layer, segment, tokens))
                made[one.image, one.ahead, segment] = _module_flops(one.method, segment, tokens)
        spoken[one.image, one.ahead, one.question, tuple(steps)] = one.generated
        for layer, chain in enumerate(steps if one.generated > 1 else ()):
            texts.add((one.image, one.ahead, one.question, one.generated - 1, layer, ("said", *steps)))
            del chain
    for _, ahead, _, segment, tokens in segments:
        total += layer_flops(tokens, ahead + sum(n for _, n in segment[-1]) + tokens, d, m)
    total += sum(made.values())
    for _, ahead, _, text, _, steps in texts:
        total += layer_flops(text, ahead + text + sum(n for _, n in (steps[-1] if steps else ())), d, m)
    return total + sum(2 * d * vocabulary * count for count in spoken.values())


def _module_flops(method: Method, segment: Segment, tokens: int) -> int:
    if segment[2] is None or method.amplifiers is None:
        return 0
    module = method.amplifiers[str(segment[0])]
    return sum(2 * weight.numel() * tokens for name, weight in module.named_parameters() if name.endswith("weight"))
