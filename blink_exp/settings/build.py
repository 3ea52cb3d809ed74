"""Builds objects from nodes with a ``_target_``: models, methods, benchmarks, judges, figures."""

from __future__ import annotations

from typing import Any

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.settings.allowed import check_targets


def build(node: PlainSettings, *arguments: Any) -> Any:
    """Calls the ``_target_`` of ``node`` with ``arguments`` and the values of ``node``, which may come from the config of a stored run.
    Raises UserError for a ``_target_`` that settings may not call, and the target's own unchanged."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_targets(node)
    try:
        factory = instantiate(node, _convert_="all", **({"_partial_": True} if arguments else {}))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    return factory(*arguments) if arguments else factory  # not passed through Hydra, which would convert them to configs
