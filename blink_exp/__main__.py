"""The commands beside evaluate.py, sweep.py and train.py: ``python -m blink_exp view|rescore|compare|parity WORDS...``."""

from __future__ import annotations

import sys

from blink_exp.scripts import start
from blink_exp.settings.doors import COMMANDS, SCRIPTS, command_name


def usage() -> str:
    return "\n".join(["python -m blink_exp COMMAND [key=value] ...", "", *(f"  {name}: {text}" for name, text in COMMANDS.items())])


def main() -> None:
    name = next(iter(sys.argv[1:]), "")
    if name in COMMANDS:
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]
        start(name)
    elif name in ("", "-h", "--help"):
        print(usage())
    else:
        cure = command_name(name) if name in SCRIPTS else f"one of: {', '.join(COMMANDS)}"
        print(f"error: {name} is not a command; use {cure}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
