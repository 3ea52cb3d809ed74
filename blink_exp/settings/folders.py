"""Where conf/ is: beside the package in a clone, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def conf_folder(package: Path) -> Path:
    """The folder of the config groups of ``package``. A wheel's own comes first: another project may have a conf/ in site-packages."""
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def clone_of(package: Path) -> Path | None:
    """The root of the repository that ``package`` is in, which has the scripts and the history; None for an installed wheel."""
    return None if conf_folder(package).parent == package else package.parent


CONF, CLONE = conf_folder(PACKAGE), clone_of(PACKAGE)
