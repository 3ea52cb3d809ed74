"""Submission files for test servers: each question once, completeness in the file name; workbooks (xlsx)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.settings.doors import install

Cell = int | str | None


def by_question(records: Iterable[Record], ids: Iterable[str], of: str) -> tuple[dict[str, Record], str]:
    """({sample id: record} in the order of ``ids``, ``submission`` or ``partial_<n>_missing``). ``ids``: the ids of the split's
    questions; ``of``: name of the split in messages.

    Raises UserError if a record is of another split, a question has two, or a prediction is no text.
    """
    ids = list(ids)
    question_ids, answers = set(ids), dict[str, Record]()
    for r in records:
        key = r["id"]
        if key not in question_ids:
            raise UserError(f"{key} is not a question of {of}; give the records of that split")
        if key in answers:
            raise UserError(f"{key} is answered twice, and the server takes one answer a question; give the records of one run")
        if not isinstance(r["prediction"], str):
            raise UserError(f"{key} has the prediction {r['prediction']!r}, which is no text; run it again")
        answers[key] = r
    missing = len(question_ids) - len(answers)
    return {key: answers[key] for key in ids if key in answers}, f"partial_{missing}_missing" if missing else "submission"


def write_sheet(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Path:
    """Writes one sheet with a header. Text starting with = is not a formula; control characters, which xlsx cannot hold, are removed.
    Raises UserError if the package openpyxl is missing."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise UserError(f"an xlsx file is written by the package openpyxl; {install('benchmarks')}") from None
    book = Workbook()
    sheet = book.active
    for i, row in enumerate([header, *rows], 1):
        for j, value in enumerate(row, 1):
            cell = sheet.cell(i, j, ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value)
            if isinstance(value, str):
                cell.data_type = "s"
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path
