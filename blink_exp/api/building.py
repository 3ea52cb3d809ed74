"""What a call from Python may give as a method, built for its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from blink_exp.api.choice import MethodChoice, defaults
from blink_exp.api.errors import in_one_line
from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method
from blink_exp.errors import UserError, flat, nearest
from blink_exp.evaluation.evaluator import build_method
from blink_exp.settings.presets import presets
from blink_exp.settings.roots import EvaluateSettings

AnyMethod = MethodChoice | Method | str | None


@in_one_line()
def built_method(backbone: Backbone, settings: EvaluateSettings, method: Any, tokensr: str | Path | None = None) -> Method:
    """``method`` built for ``backbone``: a ``MethodChoice``, the name of a preset, a ``Method``, or None for the untouched model."""
    if isinstance(method, Method):
        if tokensr is not None:
            raise UserError(f"tokensr={tokensr} is for methods of a constructor; method={method.name} has its modules already")
        return method
    if isinstance(method, str) and method not in presets("method"):
        raise UserError(f"method={flat(method, 80)} is not a preset; {nearest(method, presets('method'))}")
    if not isinstance(method, MethodChoice | str | None):
        raise UserError(f"method={flat(method, 80)} is no method; give one such as HERO(tokens=128), or the name of a preset")
    node = method.node if isinstance(method, MethodChoice) else defaults(method or "none")
    if tokensr is not None:
        if "tokensr" not in node:
            raise UserError(f"tokensr={tokensr} is for methods with TokenSR modules, such as Blink(), not for {method!r}")
        node = {**node, "tokensr": {**node["tokensr"], "path": str(tokensr)}}
    return build_method(replace(settings, method=node), backbone)


def rows_of(methods: Any) -> dict[str, AnyMethod]:
    """{row: method} of what ``VLM.evaluate`` takes."""
    if isinstance(methods, Mapping):
        named = [(str(name), one) for name, one in methods.items()]
        cure = "give each row a name of its own"
    elif isinstance(methods, list | tuple):
        named = [("none" if one is None else one if isinstance(one, str) else repr(one), one) for one in methods]
        cure = "give each once, or a mapping with a name for each row"
    else:
        raise UserError(f"methods={flat(methods, 80)} must be a list of methods, or a mapping of names to them: [None, HERO(tokens=48)]")
    rows = dict(named)
    if len(rows) < len(named):
        name = next(name for k, (name, _) in enumerate(named) if name in dict(named[:k]))
        raise UserError(f"methods holds {flat(name, 80)} twice; {cure}")
    if not rows:
        raise UserError("methods is empty; give at least one, such as [None, HERO(tokens=48)]")
    return rows
