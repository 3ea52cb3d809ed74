"""Licences and known vulnerabilities of what this project depends on: ``make audit``.

The licences are those of the installed packages that blink_exp and its extras require, from their metadata. Vulnerabilities are looked up
by pip-audit, where it is installed and its service answers; both are said where they are not, and fail nothing. What was looked at and
accepted is in audit.yaml.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ACCEPTED = Path(__file__).with_name("audit.yaml")
PROJECT = "blink_exp"
CLASSIFIER = "License :: OSI Approved :: "


def required(root: str) -> list[metadata.Distribution]:
    """The installed distributions that ``root`` and its extras require, directly or not, by name."""
    seen: dict[str, metadata.Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(metadata.distribution(root).metadata.get_all("Provides-Extra") or ()))]
    done = set()
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), extras) in done:
            continue
        done.add((canonicalize_name(name), extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        seen[canonicalize_name(name)] = distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if wanted(requirement, extras):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    seen.pop(canonicalize_name(root))
    return [seen[name] for name in sorted(seen)]


def wanted(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker, environment = requirement.marker, dict(default_environment())
    return marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in (*extras, ""))


def licence(distribution: metadata.Distribution) -> str:
    """The licence as the metadata has it: an expression, else the classifiers, else the first line of the text."""
    about = distribution.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith(CLASSIFIER)]
    text = (about.get("License") or "").strip().splitlines()
    return ", ".join(classifiers) or (text[0][:80] if text else "unknown")


def unaccepted(distributions: Iterable[metadata.Distribution], accepted: dict[str, Any]) -> list[str]:
    """A line for each distribution whose licence is neither on the list nor accepted for itself."""
    out = []
    for distribution in distributions:
        name, expression = canonicalize_name(distribution.name), licence(distribution)
        listed = all(re.search(accepted["licences"], part, re.IGNORECASE) for part in re.split(r"\s+AND\s+|, ", expression))
        if not listed and accepted["packages"].get(name, {}).get("licence") != expression:
            out.append(f"{distribution.name} {distribution.version}: {expression}")
    return out


def vulnerabilities(accepted: dict[str, Any]) -> list[str] | None:
    """A line for each known vulnerability that is not accepted; None where they cannot be looked up."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: pip-audit is not installed, so vulnerabilities are not looked up (pip install pip-audit)")
        return None
    words = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("audit: the service that pip-audit asks does not answer, so vulnerabilities are not looked up")
        return None
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        print("audit: pip-audit could look up no package, so vulnerabilities are not known")
        return None
    if skipped:
        print(f"audit: pip-audit could not look up {len(skipped)} of {len(packages)} packages, first {skipped[0]}")
    known = accepted["vulnerabilities"]
    return [
        f"{package['name']} {package.get('version')}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in packages
        for flaw in package.get("vulns", ())
        if flaw["id"] not in known
    ]


def main() -> int:
    accepted = yaml.safe_load(ACCEPTED.read_text(encoding="utf-8"))
    distributions = required(PROJECT)
    if "--list" in sys.argv[1:]:
        for distribution in distributions:
            print(f"{distribution.name} {distribution.version}: {licence(distribution)}")
    lines = [*unaccepted(distributions, accepted), *(vulnerabilities(accepted) or ())]
    for line in lines:
        print(f"error: {line}; replace it, or accept it in {ACCEPTED.name} with the reason", file=sys.stderr)
    print(f"audit: {len(distributions)} packages, {len(lines)} findings")
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
