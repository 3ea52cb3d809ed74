"""What the cells of a data set's rows must hold. A row with another cell is skipped, named and counted; it never ends a run.

A kind of cell takes what a column holds and returns what a benchmark works with, or raises ValueError. pyarrow turns whole numbers beside
a null into floats, so 3.0 is 3 where a number or an id is wanted.
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


def blank(value: Any) -> bool:
    """Whether a free answer is not there: null, NaN or nothing but spaces. "none" is an answer to "how many?"."""
    return value is None or value != value or not str(value).strip()


@dataclass(frozen=True)
class Cell:
    """A kind of cell.

    ``read``: gives its value, or raises ValueError that says what is wrong ("is a list, not text"); ``stand_in``: a value of the right type
    in place of a bad one, with which the sample's id can still be made; ``identifies``: no id can be made without it.
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
    """A name that scores and tables are sorted by."""
    text = _text(value)
    if len(text) > LONGEST_LABEL:
        raise ValueError(f"has {len(text):,} characters, more than the {LONGEST_LABEL} of a name")
    return text


def _optional_label(value: Any) -> str | None:
    return None if blank(value) else _label(value)


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) and blank(value) else None if blank(value) else _text(value)


def _answer(value: Any) -> str | None:
    """A free answer; a number is one too, and text, as the official code makes of it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    return _optional_text(value)


def _spreadsheet_text(value: Any) -> Any:
    """Text as a spreadsheet has it, where an option "3" is a number; null stays null."""
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
    """A text or a whole number, from which ids are made."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _integer(value)
    return _label(value)


def _optional_number(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else _integer(value)


def _texts(value: Any) -> list[str]:
    """A list of texts, null for none of them."""
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
    """Ten people's answers, as texts or as {"answer": text, ...}; [] where a split keeps them secret."""
    people = [a.get("answer") if isinstance(a, dict) else a for a in value] if isinstance(value, list) else value
    out = [] if people is None else _texts(["" if a is None else _answer(a) or "" for a in people] if isinstance(people, list) else people)
    if len(out) not in (0, TEN):
        raise ValueError(f"are {len(out)}, not {TEN}: VQA accuracy is defined over that many")
    return out


def _object(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"is {kind(value)} ({brief(value)}), not an object")
    return value or {}


TEXT = Cell(_text, "")  # what a row cannot be asked or scored without
LABEL = Cell(_label, "")
OPTIONAL_LABEL = Cell(_optional_label)
OPTIONAL_TEXT = Cell(_optional_text)  # an answer, which a split may keep secret; blank texts stay, as benchmarks differ in what they mean
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


def read_cells(row: Mapping[str, Any], cells: Mapping[str, Cell]) -> tuple[dict[str, Any], str | None, bool]:
    """(the row with its cells read and stand-ins for bad ones, what is wrong with the first bad cell, whether an id can be made).

    A column of ``cells`` that the data set does not have is passed over.
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
