"""``python -m blink_exp compare``: two runs on the same questions, by paired tests or by a judge that compares answers."""

from __future__ import annotations

from blink_exp.commands.rescore import run

__all__ = ["run"]
