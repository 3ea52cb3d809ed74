"""Paths of the scale models that ship with the package. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parent.parent / "scale_model" / "assets"
SCALE = {
    "scale": ("llava", "tokensr", "scale-llava-1.5"),
    "scale_next": ("llava_next", "tokensr_next", "scale-llava-next"),
    "scale_no_look_loss": ("llava_no_look_loss", "tokensr_no_look_loss", "scale-llava-1.5-no-look-loss"),
    "scale_reader": ("llava_reader", "tokensr_reader", "scale-llava-1.5-reader"),
}


def shipped(path: str) -> tuple[Path, Path] | None:
    """(model, TokenSR modules): the folders of the scale model that ``path`` names, or None if it names none."""
    return (SHIPPED / SCALE[path][0], SHIPPED / SCALE[path][1]) if path in SCALE else None
