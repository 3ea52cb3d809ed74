"""Published numbers, as printed in the papers; kept apart from measured ones.

``blink.yaml`` and ``hero.yaml`` hold every table and figure, ``vanilla.yaml`` what others print for the untouched models, ``rivals.yaml``
what they print for methods at budgets in tokens, and ``vocabulary.yaml`` maps the settings of a published row to this project's overrides.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypedDict

import yaml

from blink_exp.documents.tables import Footnote


@functools.lru_cache
def published(paper: str) -> dict[str, Any]:
    """A reference file ("blink", "hero", "vanilla", "rivals")."""
    return _read(paper)


@functools.lru_cache
def vocabulary() -> dict[str, Any]:
    return _read("vocabulary")


def _read(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
    return read


def table(paper: str, source: str) -> dict[str, Any]:
    """A published table by its id ("blink-table-2"), whole. Raises KeyError where there is none."""
    return _by_id(paper, "tables", source)


def figure(paper: str, source: str) -> dict[str, Any]:
    """A published figure by its id ("hero-fig-4"): plots, axes, series, settings, claim. Raises KeyError where there is none."""
    return _by_id(paper, "figures", source)


def _by_id(paper: str, kind: str, source: str) -> dict[str, Any]:
    entries = {entry["id"]: entry for entry in published(paper)[kind]}
    if source not in entries:
        raise KeyError(f"{paper} has no {source} among its {kind}: {', '.join(entries)}")
    match: dict[str, Any] = entries[source]
    return match


def footnotes(paper: str, source: str) -> list[Footnote]:
    """What is known about a table or figure beside its numbers, in the file's order: [{kind, text}], kind being discrepancy, rounding,
    extraction, ambiguity, missing, info or cross_paper."""
    entry = _by_id(paper, "figures" if "-fig-" in source else "tables", source)
    return [{"kind": note["kind"], "text": note["text"]} for note in entry.get("notes", [])]


class PublishedRow(TypedDict):
    """``params``: the settings that the paper states; ``values``: by column, None where a cell is lost or was not reported; ``derived``:
    columns that follow from printed numbers without being printed; ``missing``: {column without a number: why}; ``conjecture``: {column: a
    guess, basis: its reason}, which is never reference data."""

    label: str
    params: dict[str, Any]
    values: dict[str, Any]
    derived: list[str]
    missing: dict[str, str]
    conjecture: dict[str, Any]


def entry(paper: str, table: str, label: str, **params: Any) -> PublishedRow:
    """One row of a published table.

    ``params``: settings that it must have, for tables that print a label for several models. Raises KeyError where no row or more than
    one fits.
    """
    tables = [t for t in published(paper)["tables"] if t["id"] == table]
    rows = [r for t in tables for r in t["rows"] if r["label"] == label]
    matches = [r for r in rows if all(r["params"].get(k) == v for k, v in params.items())]
    if len(matches) != 1:
        query = f"{label!r}" + "".join(f", {k}={v}" for k, v in params.items())
        raise KeyError(f"{paper}: {table} has {len(matches) or 'no'} row{'s' * (len(matches) > 1)} {query}")
    why = tables[0].get("null_means", "not given")
    missing = {column: why for column, value in matches[0]["values"].items() if value is None} | matches[0].get("missing", {})
    row: PublishedRow = {"derived": [], "conjecture": {}} | matches[0] | {"missing": missing}
    return row


def row(paper: str, table: str, label: str, **params: Any) -> dict[str, Any]:
    """The values of one row (see ``entry``), None where a cell is lost or was not reported; beside them ``derived``, ``missing`` and
    ``conjecture`` as ``entry`` has them."""
    match = entry(paper, table, label, **params)
    return match["values"] | {"derived": match["derived"], "missing": match["missing"], "conjecture": match["conjecture"]}


def rival(backbone: str, tokens: int | None, method: str, column: str) -> dict[str, float]:
    """{source: number} of what is printed for a method at a budget of ``tokens`` (None: for the untouched model); the anchor first."""
    file = published("rivals")
    if tokens is None:
        untouched = file["untouched"].get(backbone, {})
        return {file["untouched_source"]: untouched[column]} if column in untouched else {}
    sources = file["cells"][backbone].get(tokens, {}).get(method, {})
    numbers = {name: values[column] for name, values in sources.items() if column in values}
    return dict(sorted(numbers.items(), key=lambda cell: cell[0] != file["anchor"]))


def overrides(params: dict[str, Any], scale: bool = False) -> list[str]:
    """The params of a published row as overrides of evaluate.py. ``scale``: on the scale model that stands in for the row's backbone.

    Raises KeyError for a param or a value that the vocabulary does not know.
    """
    mapping = vocabulary()["params"]
    unknown = [name for name in params if name not in mapping]
    if unknown:
        raise KeyError(f"the vocabulary has no param {unknown[0]}; it has {', '.join(mapping)}")
    return [word for name in mapping if params.get(name) is not None for word in _param_overrides(name, params[name], mapping[name], scale)]


def _param_overrides(name: str, value: Any, rule: dict[str, Any], scale: bool) -> list[str]:
    overrides_of = rule.get("scale" if scale else "words", rule.get("words", {}))
    if not isinstance(value, list) and value in overrides_of:
        words: list[str] = overrides_of[value]
        return words
    if "as" not in rule:
        raise KeyError(f"the vocabulary has no word for {name}={value}; it has {', '.join(map(str, overrides_of))}")
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return [word.replace("{}", text) for word in rule["as"]]
