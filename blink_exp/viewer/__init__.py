"""The viewer: one page about one question. What the model saw, decided and attended to layer by layer, and what several methods answer.

python evaluate.py view=<sample id>                      a sample of the benchmark
python evaluate.py image=photo.jpg question="..."        any picture and question
"""

from __future__ import annotations

from typing import Any

KEYS = ("view", "image", "question")


def wanted(cfg: Any) -> bool:
    """Whether a configuration of evaluate.py asks for a page instead of an evaluation."""
    return any(cfg.get(key) is not None for key in KEYS)
