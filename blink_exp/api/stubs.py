"""Writes methods.pyi: the constructors with the names, types and defaults of their settings: ``python -m blink_exp.api.stubs``."""

from __future__ import annotations

from pathlib import Path

from blink_exp.api.choice import PRESETS, described, settings_of
from blink_exp.files import write_text

HEAD = '''"""Written by `python -m blink_exp.api.stubs` from conf/method and the schemas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blink_exp.api.choice import MethodChoice
'''


def stub() -> str:
    return "\n".join([HEAD, *(_class(name, preset) for name, preset in PRESETS.items())])


def _class(name: str, preset: str) -> str:
    settings = settings_of(preset)
    lines = [f"        {key}: {kind} = {'...' if isinstance(value, dict) else repr(value)}," for key, (kind, value) in settings.items()]
    head = (
        ["    def __init__(", "        self,", "        *,", *lines, "    ) -> None: ..."]
        if lines
        else ["    def __init__(self) -> None: ..."]
    )
    return "\n".join([f"class {name}(MethodChoice):", f'    """{described(preset)}"""', "", *head, ""])


if __name__ == "__main__":
    write_text(Path(__file__).with_name("methods.pyi"), stub())
