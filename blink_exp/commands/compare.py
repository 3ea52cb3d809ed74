"""``python -m blink_exp compare``: scores the records of one run against those of another."""

from __future__ import annotations

from blink_exp.commands.rescore import run

__all__ = ["run"]
