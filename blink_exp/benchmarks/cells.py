"""Validation of data set cells. A row with an invalid cell is skipped, named and counted; it never ends a run.

Each ``Cell`` converts a raw value to the type that a benchmark uses, or raises ValueError. pyarrow turns integers in a column with nulls
into floats, so 3.0 is read as 3 for numbers and ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blink_exp.errors import reason
from blink_exp.files import brief, encodable, kind

TEN = 10  # people who answer a question of VQAv2, TextVQA or VizWiz
LONGEST_LABEL = 300

Row = dict[str, Any]  # a row of a published file by column; its cells are of any type until ``read_cells`` has converted them


def blank(value: Any) -> bool:
    """Whether a free-form answer is missing: null, NaN or whitespace only. "none" is a valid answer ("how many?")."""
    return value is None or value != value or not str(value).strip()


@dataclass(frozen=True)
class Cell:
    """A cell type.

    ``read``: converts a raw value, or raises ValueError with the reason ("is a list, not text"); ``stand_in``: default of the right type
    for an invalid value, so that the sample can still be built; ``identifies``: the sample id depends on this cell.
    """

    read: Callable[[Any], Any]
    stand_in: Any = None
    identifies: bool = False


def _text(value: Any) -> str:
    if blank(value):
        raise ValueError("is not there")
    if not isinstance(value, str):
        raise ValueError(f"is {kind(value)} ({brief(value)}), not text")
    return encodable(value)


def _label(value: Any) -> str:
    """A category name, used as a key in scores and tables."""
    text = _text(value)
    if len(text) > LONGEST_LABEL:
        raise ValueError(f"has {len(text):,} characters, more than the {LONGEST_LABEL} of a name")
    return text


def _optional_label(value: Any) -> str | None:
    return None if blank(value) else _label(value)


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) and blank(value) else None if blank(value) else _text(value)


def _answer(value: Any) -> str | None:
    """A free-form answer; numbers are converted to text, as in the official code."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    return _optional_text(value)


def _spreadsheet_text(value: Any) -> Any:
    """Text from a spreadsheet, where the option "3" may be a number; null stays null."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return _optional_text(value)


def _integer(value: Any) -> int:
    text = isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) < 20
    number = isinstance(value, int) and not isinstance(value, bool)
    if not (text or number or (isinstance(value, float) and value.is_integer())):
        raise ValueError("is not there" if blank(value) else f"is {kind(value)} ({brief(value)}), not a whole number")
    return int(value)


def _key(value: Any) -> str | int:
    """Text or an integer, used to build ids."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _integer(value)
    return _label(value)


def _optional_number(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else _integer(value)


def _texts(value: Any) -> list[str]:
    """A list of strings; null is an empty list."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"is {kind(value)} ({brief(value)}), not a list")
    return [_item(item) for item in value]


def _item(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"holds {kind(value)} ({brief(value)}), not text")
    return encodable(value)


def _answer_or_answers(value: Any) -> Any:
    return [_item(_answer(item)) for item in value] if isinstance(value, list) else _answer(value)


def _text_or_texts(value: Any) -> Any:
    return _texts(value) if isinstance(value, list) else _optional_text(value)


def _answers(value: Any) -> list[str]:
    """Ten annotators' answers, as strings or {"answer": string, ...}; [] for a split without public answers."""
    people = [a.get("answer") if isinstance(a, dict) else a for a in value] if isinstance(value, list) else value
    out = [] if people is None else _texts(["" if a is None else _answer(a) or "" for a in people] if isinstance(people, list) else people)
    if len(out) not in (0, TEN):
        raise ValueError(f"are {len(out)}, not {TEN}: VQA accuracy is defined over that many")
    return out


def _object(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"is {kind(value)} ({brief(value)}), not an object")
    return value or {}


TEXT = Cell(_text, "")  # required for the prompt or the score
LABEL = Cell(_label, "")
OPTIONAL_LABEL = Cell(_optional_label)
OPTIONAL_TEXT = Cell(_optional_text)  # an answer, null in test splits; blank strings are kept, benchmarks differ in what they mean
ANSWER = Cell(_answer)
ANSWER_OR_ANSWERS = Cell(_answer_or_answers)
SPREADSHEET_TEXT = Cell(_spreadsheet_text)
KEY = Cell(_key, identifies=True)
INTEGER = Cell(_integer, identifies=True)
OPTIONAL_NUMBER = Cell(_optional_number)
TEXTS = Cell(_texts, [])
TEXT_OR_TEXTS = Cell(_text_or_texts)
ANSWERS = Cell(_answers, [])
OBJECT = Cell(_object, {})


def read_cells(row: Row, cells: Mapping[str, Cell]) -> tuple[Row, str | None, bool]:
    """(the converted row with stand-ins for invalid cells, the error of the first invalid cell, whether an id can be built).

    Columns of ``cells`` that the data set lacks are ignored.
    """
    out, wrong, identified = dict(row), None, True
    for column, cell in cells.items():
        if column not in row:
            continue
        try:
            out[column] = cell.read(row[column])
        except ValueError as error:
            out[column] = cell.stand_in
            wrong = wrong or (f"the row has no {column}" if str(error) == "is not there" else reason(f"{column} {error}"))
            identified = identified and not cell.identifies
    return out, wrong, identified
