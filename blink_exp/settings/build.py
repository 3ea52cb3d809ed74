"""Objects from nodes with a ``_target_``: models, methods, benchmarks, judges, what draws a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blink_exp.errors import UserError


def build(node: Mapping[str, Any], *arguments: Any) -> Any:
    """What the ``_target_`` of ``node`` gives for its other values, behind ``arguments``. Raises its constructor's UserError as it is."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        factory = instantiate(node, _convert_="all", **({"_partial_": True} if arguments else {}))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    return factory(*arguments) if arguments else factory  # not through Hydra, which would make configs of them
