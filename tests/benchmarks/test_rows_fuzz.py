"""Rows of every benchmark with one cell that is none: the row is skipped, named by its id, with a reason of one line; the others stay."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from support.hub import build
from support.hub_choices import MAKERS
from support.refusals import refusal

import blink_exp.benchmarks.gqa
import blink_exp.benchmarks.rows
from blink_exp.benchmarks.base import Submits, UnusableImage
from blink_exp.evaluation.records import graded, write_lines

ODD: dict[str, Any] = {
    "null": None,
    "number": 7,
    "nan": float("nan"),
    "infinity": float("inf"),
    "list": [1, [2]],
    "empty list": [],
    "object": {"a": 1},
    "bytes": b"\xff",
    "empty": "",
    "spaces": " \n",
    "surrogate": "a\ud800b",
    "long": "x" * 2**20,
    "markup": "[/bold] </script> <b>",
    "placeholder": "<image>",
    "control": "a\x00\x1b[31m\u2028b",
    "true": True,
}


class Rows(list):
    """What benchmarks use of a `datasets.Dataset`, with cells of any type in one column."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def __getitem__(self, key):
        if isinstance(key, str):
            return [row[key] for row in self]
        if isinstance(key, slice):
            return {name: [row[name] for row in list(self)[key]] for name in self.column_names}
        return super().__getitem__(key)

    def select_columns(self, name: str) -> Rows:
        return Rows({name: row[name]} for row in self)

    def remove_columns(self, name: str) -> Rows:
        return Rows({k: v for k, v in row.items() if k != name} for row in self)


@functools.cache
def stored(name: str, folder: str) -> tuple[Any, Any, dict[tuple, Rows]]:
    """A benchmark, its settings' own samples, and all rows that it loads, by what it asks for."""
    benchmark = build(name, MAKERS[name](Path(folder)))
    load, loaded = blink_exp.benchmarks.rows.load_rows, {}
    with pytest.MonkeyPatch.context() as patch:

        def load_once(*words):
            return loaded.setdefault(words, Rows(load(*words)))

        for module in (blink_exp.benchmarks.rows, blink_exp.benchmarks.gqa):
            patch.setattr(module, "load_rows", load_once)
        return benchmark, benchmark.samples(), loaded


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: str(tmp_path_factory.mktemp(name)) for name in MAKERS}


def with_cell(monkeypatch, loaded: dict[tuple, Rows], column: str, value: Any, where: slice) -> None:
    """The benchmark's rows with another cell in one column of one table."""

    def load(*words):
        rows = Rows(dict(row) for row in loaded[words])
        if column in rows.column_names and words == next(w for w, r in loaded.items() if column in r.column_names):
            for row in list(rows)[where]:
                row[column] = value
        return rows

    for module in (blink_exp.benchmarks.rows, blink_exp.benchmarks.gqa):
        monkeypatch.setattr(module, "load_rows", load)


def columns_of(name: str, folders) -> list[str]:
    benchmark, _, loaded = stored(name, folders[name])
    return [c for c in next(iter(loaded.values())).column_names if c != benchmark.image_column]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_one_odd_cell_skips_its_row_at_most(name, folders, monkeypatch, tmp_path):
    benchmark, whole, loaded = stored(name, folders[name])
    skipped: dict[str, int] = {}
    for column in columns_of(name, folders):
        for what, value in ODD.items():
            with_cell(monkeypatch, loaded, column, value, slice(-1, None))
            samples = benchmark.samples()
            label = f"{name}.{column} = {what}"
            assert [s.id for s in samples[:-1]] == [s.id for s in whole[:-1]], label
            assert len({s.id for s in samples}) == len(whole), label
            for sample in samples:
                if isinstance(sample.image, UnusableImage):
                    assert sample is samples[-1], label
                    assert sample.image.why.isprintable() and 0 < len(sample.image.why) <= 200 and " at 0x" not in sample.image.why, label
                    continue
                assert sample.question.strip() and isinstance(benchmark.prompt(sample), str), label
                assert isinstance(sample.category, str) and len(sample.category) <= 300, label
                write_lines([graded(benchmark, sample, "yes")]).encode()
            asked = [s for s in samples if not isinstance(s.image, UnusableImage)]
            records = json.loads(json.dumps([graded(benchmark, s, "yes") for s in asked]))
            json.dumps({k: v.value for k, v in benchmark.score(records).items()})
            if isinstance(benchmark, Submits):
                benchmark.submit(records, tmp_path)
            skipped[column] = skipped.get(column, 0) + len(samples) - len(asked)
    first = next(iter(benchmark.columns))
    assert skipped["question" if "question" in benchmark.columns else first] >= 10, skipped  # the cells did get there


@pytest.mark.parametrize("value", [None, 7, [1], b"x", ""], ids=str)
@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"captions", "refcoco"}))  # which read no question
def test_a_column_without_a_question_is_one_line(name, value, folders, monkeypatch):
    benchmark, whole, loaded = stored(name, folders[name])
    with_cell(monkeypatch, loaded, "question", value, slice(None))
    message = refusal(benchmark.samples)
    assert f"none of its {len(whole)} rows can be asked, first {whole[0].id}" in message and "question" in message
