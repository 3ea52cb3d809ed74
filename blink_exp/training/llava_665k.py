"""The images of LLaVA-1.5's instruction data (llava_v1_5_mix665k.json), each once.

The file is a list of rows {"id", "image" (absent where a row is text only), "conversations"}; images lie below one folder in
coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images, vg/VG_100K and vg/VG_100K_2, as LLaVA's README lays them out. TokenSR's
training features depend on the image alone, so an image in several conversations is run once.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from blink_exp.errors import UserError, flat
from blink_exp.files import brief, encodable, is_special
from blink_exp.images import URL, is_inside, why_refused

LONGEST_ROW = 2**26  # characters; longer rows count as damage
KEYS = 12  # most keys in a message
Counts = dict[str, int | dict[str, int]]  # numbers of rows and images, or such numbers by folder
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageListing:
    """The images of a copy of the data.

    Args:
        names: the distinct images found, in the order of their first row; paths relative to the image folder.
        rows, with_image: number of rows, and of rows with an image.
        distinct: number of distinct images in the rows.
        renamed: images found under another suffix (OCR-VQA's .gif and .png).
        missing: {folder: number of missing images}.
        refused: URLs, and names that lead out of the image folder, also by a link.
        other_key: rows with their image under another key ("images"), which are skipped.
        wrong: what is wrong with the first of the rows that are no object or whose image is no path, which are skipped; ``wrong_rows``: how
            many they are.
    """

    names: list[str]
    rows: int
    with_image: int
    distinct: int
    renamed: int
    missing: dict[str, int]
    refused: list[str]
    other_key: int
    wrong: str
    wrong_rows: int

    @property
    def summary(self) -> Counts:
        return {
            "rows": self.rows,
            "with_image": self.with_image,
            "distinct_images": self.distinct,
            "runs_saved": self.with_image - self.distinct,
            "renamed": self.renamed,
            "missing": self.missing,
            **({"refused": len(self.refused)} if self.refused else {}),
            **({"other_key": self.other_key} if self.other_key else {}),
            **({"wrong_rows": self.wrong_rows} if self.wrong_rows else {}),
        }

    def __str__(self) -> str:
        lost = sum(self.missing.values())
        where = ", ".join(f"{folder} {n:,}" for folder, n in sorted(self.missing.items()))
        return (
            f"{self.rows:,} rows, {self.with_image:,} name an image, {self.distinct:,} distinct images: each is run once, which saves"
            f" {self.with_image - self.distinct:,} runs; {lost:,} images are missing"
            + (f" ({where})" if lost else "")
            + (f"; {_refused_note(self.refused)}" if self.refused else "")
            + (f"; {self.other_key:,} rows name theirs under another key than image and are passed over" if self.other_key else "")
            + (f"; {self.wrong_rows:,} rows are passed over, first {self.wrong}" if self.wrong_rows else "")
        )


def rows(path: Path, chunk: int = 2**22) -> Iterator[Any]:
    """The elements of a JSON list, parsed incrementally to save memory. ``chunk``: characters read at a time.

    Not by ijson, whose C parser is as fast but takes all memory (over 20 GB) for lists nested 100,000 deep.

    Raises UserError where the file is missing or not a JSON list.
    """
    decoder = json.JSONDecoder()
    if is_special(path):
        raise UserError(f"data.json={path} is no ordinary file; give LLaVA's llava_v1_5_mix665k.json")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text, position, ended = "", 1, False
            while not text and (more := file.read(chunk)):
                text = more.lstrip()
            if not text.startswith("["):
                raise UserError(f"data.json={path} is no JSON list; give LLaVA's llava_v1_5_mix665k.json")
            while True:
                while position < len(text) and text[position] in " \t\r\n,":
                    position += 1
                if text[position : position + 1] == "]":
                    return
                try:
                    row, position = decoder.raw_decode(text, position)
                except (ValueError, RecursionError) as error:  # also a number or a nesting without end
                    cut = isinstance(error, json.JSONDecodeError) and not ended and len(text) - position < LONGEST_ROW
                    if not cut:
                        raise UserError(f"data.json={path} is damaged or cut off; copy it again") from None
                    more = file.read(chunk)
                    text, position, ended = text[position:] + more, 0, not more
                    continue
                yield row
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"data.json={path} is not there or no file; give LLaVA's llava_v1_5_mix665k.json") from None
    except UnicodeDecodeError:
        raise UserError(f"data.json={path} is not UTF-8 text; give LLaVA's llava_v1_5_mix665k.json") from None


def _refused_note(refused: list[str]) -> str:
    return f"{len(refused):,} images are URLs or lead out of data.images and are left out, first {why_refused(refused[0])}"


def find(path: Path, images: Path, outside: bool = False) -> ImageListing:
    """Reads the file and looks up its images. Each folder is listed once, as 400 thousand single look-ups take minutes on a network disk.
    ``outside``: whether names may lead out of the folder. Raises UserError where no image is found."""
    if not images.is_dir():
        raise UserError(f"data.images={images} is not a folder; give the one that holds coco, gqa, ocr_vqa, textvqa and vg")
    named: dict[str, None] = {}
    keys: dict[str, None] = {}
    total = with_image = other_key = wrong_rows = 0
    wrong = ""
    for row in rows(path):
        total += 1
        if why := _wrong(row):
            wrong, wrong_rows = wrong or f"row {total} of {path} {why}", wrong_rows + 1
            continue
        name = row.get("image")
        if name is None:
            if len(keys) < KEYS:
                keys.update(dict.fromkeys(map(encodable, list(row)[:KEYS])))
            other_key += any(map(_names_an_image, row))
            continue
        with_image += 1
        named[name.replace("\\", "/")] = None
    if not named:
        raise UserError(f"{wrong}; give LLaVA's llava_v1_5_mix665k.json" if wrong else _imageless(path, total, list(keys)))
    refused = [name for name in named if URL.match(name) or (not outside and _leaves(name))]
    for name in refused:
        del named[name]
    names, renamed, missing, linked = _present(named, images, outside)
    refused += linked
    if not names:
        note = f" ({_refused_note(refused)})" if refused else ""
        count = len(named) + len(refused) - len(linked)
        raise UserError(f"data.images={images} holds none of the {count} images that {path.name} names{note}; give the folder above coco")
    return ImageListing(
        names, total, with_image, len(named) + len(refused) - len(linked), renamed, dict(missing), refused, other_key, wrong, wrong_rows
    )


def _imageless(path: Path, total: int, keys: list[str]) -> str:
    """The error message for a file without the key "image" in any of ``total`` rows. ``keys``: the keys found."""
    if not total:
        return f"data.json={path} is an empty list; give LLaVA's llava_v1_5_mix665k.json"
    other = next(filter(_names_an_image, keys), None)
    cure = f'rename "{flat(other, 40)}" to "image", one path a row' if other else "give LLaVA's llava_v1_5_mix665k.json"
    present = ", ".join(flat(key, 40) for key in keys[:KEYS]) or "none"
    return f'none of the {total:,} rows of data.json={path} has the key "image" (keys: {present}); {cure}'


def _names_an_image(key: str) -> bool:
    return key != "image" and key.lower().startswith(("image", "img", "picture"))


def _leaves(name: str) -> bool:
    """Whether a name leads out of its folder, by the name alone."""
    parts = PurePosixPath(name)
    return parts.is_absolute() or ".." in parts.parts or bool(PureWindowsPath(name).drive)


def _wrong(row: Any) -> str | None:
    """Why a row is none; None for one, also without an image."""
    if not isinstance(row, dict):
        return f"is no {{...}} but {brief(row)}"
    name = row.get("image")
    if name is not None and not (isinstance(name, str) and name.strip()):
        return f"has image={brief(name)}; it must be a path below data.images"
    return None


def _present(named: dict[str, None], images: Path, outside: bool) -> tuple[list[str], int, Counter[str], list[str]]:
    """(names on disk, number of them with another suffix, missing by folder, names that a link leads out of ``images``)."""
    listings: dict[str, tuple[set[str], dict[str, str], set[str]]] = {}
    names, renamed, missing, linked = [], 0, Counter[str](), []
    root = os.path.realpath(images)
    for name in named:
        folder, _, file = name.rpartition("/")
        if not _nameable(name):
            missing[folder.encode(errors="replace").decode()[:80] or "."] += 1
            continue
        if folder not in listings:
            listings[folder] = _listing(images / folder, None if outside else root)
        files, by_stem, away = listings[folder]
        other = by_stem.get(file.rpartition(".")[0])
        if (file if file in files else other) in away:
            linked.append(name)
        elif file in files:
            names.append(name)
        elif other is not None:
            names.append(f"{folder}/{other}" if folder else other)
            renamed += 1
        else:
            missing[folder or "."] += 1
    return list(dict.fromkeys(names)), renamed, missing, linked


def _nameable(name: str) -> bool:
    """Whether a name is valid on the file system: encodable, without null characters."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _listing(folder: Path, root: str | None) -> tuple[set[str], dict[str, str], set[str]]:
    """(files of a folder, {stem: first image with it}, files outside ``root``: all if the folder is outside, else links out of it); empty
    if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            links = {entry.name: entry.is_symlink() for entry in entries}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return set(), {}, set()
    images = sorted((f for f in links if f.lower().endswith(SUFFIXES)), reverse=True)
    all_inside = root is None or is_inside(os.path.join(os.path.realpath(folder), ""), root)
    away = {f for f, link in links.items() if not all_inside or (root and link and not is_inside(os.path.realpath(folder / f), root))}
    return set(links), {f.rpartition(".")[0]: f for f in images}, away
