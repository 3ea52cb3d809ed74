"""What installed packages add by entry points: scorers, losses and TokenSR architectures by name, and folders of presets.

``[project.entry-points."blink_exp.losses"]`` with ``huber = "package.module:function"``; groups: ``blink_exp.scorers``,
``blink_exp.losses``, ``blink_exp.architectures``, and ``blink_exp.conf``, whose values are packages that hold a folder like conf/
(docs/settings.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from blink_exp.errors import UserError, flat

SCORERS, LOSSES, ARCHITECTURES, CONF = "blink_exp.scorers", "blink_exp.losses", "blink_exp.architectures", "blink_exp.conf"
F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name. None is imported."""
    return {point.name: point for point in entry_points(group=group)}


class Registry(Mapping[str, F], Generic[F]):
    """Functions by name: the project's own, and those that installed packages declare as entry points of ``group``. A package's function
    is imported when it is asked for, and cannot replace one of the project's own."""

    def __init__(self, group: str, *functions: F):
        self.group = group
        self.functions: dict[str, F] = {function.__name__: function for function in functions}

    def __getitem__(self, name: str) -> F:
        if name not in self.functions:
            point = installed(self.group)[name]
            try:
                self.functions[name] = point.load()
            except Exception as error:  # whatever a package raises when it is imported
                package = point.dist.name if point.dist is not None else point.value
                raise UserError(
                    f"{name} of the installed package {package} cannot be imported ({flat(error, 200)}); install it again"
                ) from error
        return self.functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.functions, *installed(self.group)]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.functions or name in installed(self.group)
