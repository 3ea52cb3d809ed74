"""A small copy of easy-VQA on disk, an image of it missing."""

from __future__ import annotations

import json
from pathlib import Path


def easy_vqa(folder: Path, images: int = 8, each: int = 2) -> Path:
    """``each`` questions on each of ``images`` images; the first image is missing. Returns ``folder``."""
    import easy_vqa as package

    source = Path(package.__file__).parent / "data" / "test"
    asked: dict[int, list] = {}
    for row in json.loads((source / "questions.json").read_text(encoding="utf-8")):
        asked.setdefault(row[2], []).append(row)
    chosen = dict(list(asked.items())[:images])
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps([row for rows in chosen.values() for row in rows[:each]]), encoding="utf-8")
    for name in list(chosen)[1:]:
        (folder / "images" / f"{name}.png").write_bytes((source / "images" / f"{name}.png").read_bytes())
    return folder
