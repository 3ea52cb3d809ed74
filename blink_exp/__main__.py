"""The commands beside evaluate.py, sweep.py and train.py: ``python -m blink_exp view|rescore|compare|parity WORDS...``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import hydra

from blink_exp.cli import entry
from blink_exp.settings.doors import COMMANDS
from blink_exp.settings.presets import CONF


def usage() -> str:
    return "\n".join(["python -m blink_exp COMMAND [key=value] ...", "", *(f"  {name}: {text}" for name, text in COMMANDS.items())])


def start(name: str) -> None:
    """Runs ``blink_exp.commands.<name>.run`` with the settings of conf/<name>.yaml."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def main(cfg: Any) -> object:
        from blink_exp.studies.jobs import job

        return job(importlib.import_module(f"blink_exp.commands.{name}").run, cfg)

    entry(main, name)


def main() -> None:
    name = next(iter(sys.argv[1:]), "")
    if name in COMMANDS:
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]
        start(name)
    elif name in ("", "-h", "--help"):
        print(usage())
    else:
        print(f"error: {name} is not a command; use one of: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
