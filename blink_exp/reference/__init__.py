"""Published numbers, as printed in the papers; kept apart from measured ones.

``blink.yaml`` and ``hero.yaml`` hold every table and figure, ``vanilla.yaml`` what others print for the untouched models, ``rivals.yaml``
what they print for methods at budgets in tokens, and ``vocabulary.yaml`` maps the settings of a published row to this project's overrides.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from blink_exp.documents.references import (
    Param,
    ParamRule,
    PublishedFigure,
    PublishedPaper,
    PublishedRow,
    PublishedTable,
    RivalNumbers,
    VanillaNumbers,
    Vocabulary,
)
from blink_exp.documents.tables import Footnote

Published = TypeVar("Published", PublishedTable, PublishedFigure)


@functools.lru_cache
def _read(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


def published(paper: str) -> PublishedPaper:
    """What a paper ("blink", "hero") prints."""
    document: PublishedPaper = _read(paper)
    return document


def vanilla() -> VanillaNumbers:
    document: VanillaNumbers = _read("vanilla")
    return document


def rivals() -> RivalNumbers:
    document: RivalNumbers = _read("rivals")
    return document


def vocabulary() -> Vocabulary:
    document: Vocabulary = _read("vocabulary")
    return document


def table(paper: str, source: str) -> PublishedTable:
    """A published table by its id ("blink-table-2"), whole. Raises KeyError where there is none."""
    return _by_id(paper, "tables", published(paper)["tables"], source)


def figure(paper: str, source: str) -> PublishedFigure:
    """A published figure by its id ("hero-fig-4"): plots, series, claim. Raises KeyError where there is none."""
    return _by_id(paper, "figures", published(paper)["figures"], source)


def _by_id(paper: str, kind: str, entries: Sequence[Published], source: str) -> Published:
    by_id = {entry["id"]: entry for entry in entries}
    if source not in by_id:
        raise KeyError(f"{paper} has no {source} among its {kind}: {', '.join(by_id)}")
    return by_id[source]


def source_of(paper: str, source: str) -> PublishedTable | PublishedFigure:
    """A published table or figure by its id."""
    return figure(paper, source) if "-fig-" in source else table(paper, source)


def footnotes(paper: str, source: str) -> list[Footnote]:
    """What is known about a table or figure beside its numbers, in the file's order: [{kind, text}], kind being discrepancy, rounding,
    extraction, ambiguity, missing, info or cross_paper."""
    return [{"kind": note["kind"], "text": note["text"]} for note in source_of(paper, source).get("notes", [])]


def entry(paper: str, table: str, label: str, **params: Param) -> PublishedRow:
    """One row of a published table, with ``derived``, ``missing`` and ``conjecture`` also where they are empty.

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
    return {"derived": [], "conjecture": {}, **matches[0], "missing": missing}


def rival(backbone: str, tokens: int | None, method: str, column: str) -> dict[str, float]:
    """{source: number} of what is printed for a method at a budget of ``tokens`` (None: for the untouched model); the anchor first."""
    file = rivals()
    if tokens is None:
        untouched = file["untouched"].get(backbone, {})
        return {file["untouched_source"]: untouched[column]} if column in untouched else {}
    sources = file["cells"][backbone].get(tokens, {}).get(method, {})
    numbers = {name: values[column] for name, values in sources.items() if column in values}
    return dict(sorted(numbers.items(), key=lambda cell: cell[0] != file["anchor"]))


def overrides(params: Mapping[str, Param], scale: bool = False) -> list[str]:
    """The params of a published row as overrides of evaluate.py. ``scale``: on the scale model that stands in for the row's backbone.

    Raises KeyError for a param or a value that the vocabulary does not know.
    """
    mapping = vocabulary()["params"]
    unknown = [name for name in params if name not in mapping]
    if unknown:
        raise KeyError(f"the vocabulary has no param {unknown[0]}; it has {', '.join(mapping)}")
    return [word for name in mapping if params.get(name) is not None for word in _param_overrides(name, params[name], mapping[name], scale)]


def _param_overrides(name: str, value: Param, rule: ParamRule, scale: bool) -> list[str]:
    words = rule.get("words", {})
    overrides_of = rule.get("scale", words) if scale else words
    if not isinstance(value, list) and value in overrides_of:
        return overrides_of[value]
    if "as" not in rule:
        raise KeyError(f"the vocabulary has no word for {name}={value}; it has {', '.join(map(str, overrides_of))}")
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return [word.replace("{}", text) for word in rule["as"]]
