"""A constructor for every method: ``HERO(tokens=128)``. Their settings and defaults are those of conf/method.

methods.pyi, which type checkers and editors read, is written by ``python -m blink_exp.api.stubs``.
"""

from __future__ import annotations

from blink_exp.api.choice import PRESETS, MethodChoice, described

for _name, _preset in PRESETS.items():
    globals()[_name] = type(MethodChoice)(
        _name, (MethodChoice,), {"preset": _preset, "__doc__": described(_preset), "__module__": __name__}
    )
