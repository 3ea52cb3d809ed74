"""The untouched model, as a method: baselines go through the same code as everything else."""

from __future__ import annotations

from blink_exp.core.method import Method


def none(backbone: object = None) -> Method:
    return Method(name="none")
