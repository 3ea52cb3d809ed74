"""Geometries that tests of pruners run through."""

from __future__ import annotations

import pytest

from blink_exp.core.views import ViewGeometry

LETTERBOX = ViewGeometry(6, 2, 2, (40, 60), newline=True)  # the 12 x 12 grid shows 8 rows; 2 are padding above and 2 below
PILLARBOX = ViewGeometry(6, 2, 2, (60, 40), newline=True)  # the same on its side: 8 columns
NARROW = ViewGeometry(6, 1, 3, (50, 50), newline=True)  # of three tiles only the middle one shows the image
LAYOUTS = {
    "one view": ViewGeometry(6),
    "letterbox": LETTERBOX,
    "pillarbox": PILLARBOX,
    "narrow": NARROW,
    "full": ViewGeometry(5, 1, 2, (30, 60), newline=True),
}
layouts = pytest.mark.parametrize("views", LAYOUTS.values(), ids=LAYOUTS.keys())
