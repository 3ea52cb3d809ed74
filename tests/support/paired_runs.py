"""Records of two runs on the same questions, and a score of pairs, for paired tests."""

from __future__ import annotations

import random

from blink_exp.benchmarks.base import ExactMatch
from blink_exp.benchmarks.mme import score_pairs


class Pairs(ExactMatch):
    """MME's scores of two subtasks."""

    def score(self, records):
        return score_pairs(records, ("a",), ("b",))


def run(correct, category=lambda i: "c", per_image=1, **more):
    """{id: record} of right and wrong answers, ``per_image`` to an image; the first of an image is answered yes."""
    out = {}
    for i, right in enumerate(correct):
        image = i // per_image
        answer = "no" if i % per_image else "yes"
        out[f"s{i:03d}"] = {
            "id": f"s{i:03d}",
            "image_id": f"i{image:03d}",
            "category": category(image),
            "question": f"q{i % per_image}",
            "answer": answer,
            "prediction": answer if right else "other",
            "correct": right,
        } | more
    return out


def noisy(seed, n=48, share=0.7):
    generator = random.Random(seed)
    return [generator.random() < share for _ in range(n)]


def subtasks(image):
    return "a" if image < 8 else "b"
