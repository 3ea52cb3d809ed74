"""Files that a user can have edited, cut off or copied wrongly: read as UTF-8 with or without a byte order mark, and checked.

Text from outside can hold lone surrogates (JSON's "\\ud800", file names), which no file, page or terminal can encode. They become U+FFFD
where text is read, here and in the readers of data sets, so that ids and texts agree in everything that is written later.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, overload

from blink_exp.disk import writing
from blink_exp.errors import UserError, flat

SURROGATE = re.compile("[\ud800-\udfff]")
DAMAGE = (ValueError, RecursionError)  # of the json module: no JSON, no UTF-8, a number or a nesting without end


@overload
def encodable(value: str) -> str: ...


@overload
def encodable(value: Any) -> Any: ...


def encodable(value: Any) -> Any:
    """``value`` with U+FFFD for every lone surrogate in its texts, whatever lists and dicts they are in."""
    if isinstance(value, str):
        return value if value.isascii() else SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [encodable(v) for v in value]
    if isinstance(value, dict):
        return {encodable(k): encodable(v) for k, v in value.items()}
    return value


def parse_json(text: str) -> Any:
    """Parses JSON text. Raises ValueError with a short reason if it is invalid."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON at line {error.lineno}, column {error.colno}") from None
    except DAMAGE as error:
        raise ValueError(f"no JSON: {flat(error, 80)}") from None
    return encodable(value) if "\\u" in text or SURROGATE.search(text) else value


def is_special(path: Path) -> bool:
    """Whether a path is a FIFO, which blocks who reads it until somebody writes, or a device or socket, which may have no end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, or no name that a file can have: for who opens it to say
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_text(path: Path) -> str:
    """A text file. Raises ValueError where its bytes are no UTF-8 or it is no ordinary file, OSError where it cannot be read."""
    if is_special(path):
        raise ValueError("no ordinary file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("no UTF-8 text") from None


def read_json(path: Path, cure: str) -> Any:
    """The value in a JSON file. Raises UserError with ``cure`` where the file is damaged, OSError where it is not there."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged or cut off ({error}); {cure}") from None


def read_object(path: Path, required: dict[str, type | tuple[type, ...]], cure: str) -> dict[str, Any]:
    """A JSON file that holds an object with the keys ``required``, whose values are of these types. Raises UserError where it does not."""
    document = read_json(path, cure)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds {kind(document)} where an object is needed; {cure}")
    for key, types in required.items():
        if key not in document:
            raise UserError(f"{path} lacks {key}; {cure}")
        if not isinstance(document[key], types):
            raise UserError(f"{path} has {key}={brief(document[key])}, {kind(document[key])}; {cure}")
    return document


def kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def brief(value: Any) -> str:
    """The first 40 characters of a value's repr, on one line."""
    return "null" if value is None else flat(repr(value[:40] if isinstance(value, str | bytes) else value), 40)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomic write: the whole file or nothing."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except BaseException:  # of a signal too
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """Atomic write as UTF-8."""
    write_bytes(path, encodable(text).encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(json_ready(value), indent=2, sort_keys=False, allow_nan=False) + "\n")


def json_ready(value: Any) -> Any:
    """``value`` with None for every NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
