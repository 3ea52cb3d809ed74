"""Files of conf/ with the comments behind their values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Value:
    """A value of a YAML file as it is written there, and the comment behind it."""

    text: str
    comment: str


@dataclass(frozen=True)
class Preset:
    """A file of conf/. ``values``: by dotted key, groups of values included; ``parents``: presets of its group that it inherits from;
    ``groups``: {group: default preset} of a root file."""

    name: str
    header: str
    values: dict[str, Value]
    parents: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return self.values["_target_"].text if "_target_" in self.values else ""

    def merged(self, group: dict[str, Preset]) -> Preset:
        """With what it inherits. Its own comment on a value wins if it has one."""
        values: dict[str, Value] = {}
        for parent in self.parents:
            values |= group[parent].merged(group).values
        for key, value in self.values.items():
            inherited = values.get(key)
            values[key] = value if value.comment or inherited is None else Value(value.text, inherited.comment)
        return dataclasses.replace(self, values=values)


def read(path: Path) -> Preset:
    """A file of conf/ with its comments."""
    text = path.read_text(encoding="utf-8")
    header = [line.lstrip("# ").strip() for line in _leading_comments(text) if "@package" not in line]
    root = yaml.compose(text)
    values: dict[str, Value] = {}
    if isinstance(root, yaml.MappingNode):
        _collect(root, "", text, text.splitlines(), values)
    content = yaml.safe_load(text) or {}
    entries = [entry for entry in content.get("defaults", []) if entry != "_self_"]
    parents = tuple(entry for entry in entries if isinstance(entry, str) and not entry.startswith("/"))
    groups = {key: str(value) for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    lines = [re.sub(r" {2,}", ": ", line) for line in header if line]
    sentences = [line + "." if "python " in line and line[-1] not in ".,:" else line for line in lines[:-1]] + lines[-1:]
    return Preset(path.stem, " ".join(sentences), values, parents, groups)


def read_all(folder: Path) -> dict[str, Preset]:
    """The files of ``folder`` by name."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.yaml"))}


def _leading_comments(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def _collect(node: yaml.MappingNode, prefix: str, text: str, lines: Sequence[str], values: dict[str, Value]) -> None:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in ("defaults", "hydra"):
            continue
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if block else value.end_mark
        comment = re.search(r"(?:^|\s)#\s?(.*)$", lines[end.line][end.column :]) if end.line < len(lines) else None
        values[name] = Value("" if block else text[value.start_mark.index : value.end_mark.index], comment[1].strip() if comment else "")
        if isinstance(value, yaml.MappingNode):
            _collect(value, f"{name}.", text, lines, values)


@dataclass(frozen=True)
class Conf:
    """All files of a folder like conf/. ``launchers``: the presets of Hydra's own group."""

    roots: dict[str, Preset]
    groups: dict[str, dict[str, Preset]]
    launchers: dict[str, Preset]

    @classmethod
    def of(cls, folder: Path) -> Conf:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "hydra")
        return cls(read_all(folder), {name: read_all(folder / name) for name in names}, read_all(folder / "hydra" / "launcher"))

    def default(self, group: str) -> str:
        """The default preset of a group; "" where no command has one."""
        return next((root.groups[group] for root in self.roots.values() if root.groups.get(group, "null") != "null"), "")
