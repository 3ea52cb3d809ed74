"""Points of a sweep in groups, one process each (hydra.launcher.group_size): how much of what all of them share is still shared. By counts,
which are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from blink_exp.decoder.answers import PointQuestion, answer


class Counts:
    """Calls of a decoder's layers, and tokens in them, while it is entered."""

    def __init__(self, backbone: Any):
        self.backbone, self.passes, self.tokens = backbone, 0, 0
        self.hooks = ExitStack()

    def _layer(self, module: Any, args: Any, kwargs: Any) -> None:
        rows, length = (args[0] if args else kwargs["hidden_states"]).shape[:2]
        self.passes += 1
        self.tokens += rows * length

    def __enter__(self) -> Counts:
        for layer in self.backbone.llm.layers:
            self.hooks.callback(layer.register_forward_pre_hook(self._layer, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hooks.close()


def divided(points: int, groups: int) -> list[list[int]]:
    """Point numbers by group: neighbours together, sizes as even as they can be, as a launcher divides them."""
    return [list(range(k * points // groups, (k + 1) * points // groups)) for k in range(groups)]


@torch.no_grad()
def rows(
    what: str, backbone: Any, methods: Sequence[Any], benchmark: Any, samples: Sequence[Any], groups: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each number of groups; the first is every point by itself, the last all of them together. A process starts with nothing
    of an image in memory."""
    images = {s.image_id: s.image() for s in samples}
    totals, texts = [], []
    for count in (len(methods), *(count for count in groups if count < len(methods)), 1):
        total = Counts(backbone)
        replies: dict[tuple[int, int], str] = {}
        for numbers in divided(len(methods), count):
            backbone.forget()
            wanted = [PointQuestion(s.image_id, benchmark.prompt(s), s.id, tuple(range(len(numbers)))) for s in samples]
            with total:
                answers = answer(backbone, [methods[p] for p in numbers], images, wanted, benchmark.max_new_tokens, 32)
            replies |= {(n, numbers[p]): one.text for (n, p), one in answers.items()}
        totals.append((count, total.passes, total.tokens))
        texts.append(replies)
    alone, together = totals[0][2], totals[-1][2]
    return [
        {
            "what": f"{what}, in {count} groups" if count > 1 else f"{what}, in one group",
            "points": len(methods),
            "questions": len(samples),
            "layer passes": passes,
            "tokens in layers": tokens,
            "tokens / alone": tokens / alone,
            "saving kept": (alone - tokens) / (alone - together),
            "other answers": sum(replies[key] != text for key, text in texts[0].items()),
        }
        for (count, passes, tokens), replies in zip(totals, texts, strict=True)
    ]
