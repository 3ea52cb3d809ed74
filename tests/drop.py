"""What the tests of methods that drop tokens inside the LLM share."""

from __future__ import annotations

import math


class Depth:
    """As much of a backbone as configure() reads."""

    def __init__(self, depth: int):
        self.depth = depth


def peaks_by_hand(d: list[list[float]], c: int) -> list[tuple[int, ...]]:
    """Density peaks in loops, from the description alone."""
    n = len(d)
    density = [math.exp(-sum(x * x for x in sorted(row)[:c]) / c) for row in d]
    rank = sorted(range(n), key=lambda i: (-density[i], i))  # densest first, lower index first
    separation = [0.0] * n
    for place, i in enumerate(rank):
        separation[i] = min((d[i][j] for j in rank[:place]), default=max(map(max, d)))
    centres = sorted(range(n), key=lambda i: (-density[i] * separation[i], i))[:c]
    groups: dict[int, list[int]] = {i: [] for i in centres}
    for i in range(n):
        groups[i if i in centres else min(centres, key=lambda j: d[i][j])].append(i)
    return [tuple(groups[i]) for i in centres]
