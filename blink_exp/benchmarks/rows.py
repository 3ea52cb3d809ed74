"""Published benchmarks: rows of a Hugging Face dataset (a hub id or a local folder), asked and scored by one public protocol."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps

from blink_exp.benchmarks.base import Sample
from blink_exp.errors import UserError, nearest

SHARD = re.compile(r"(?P<split>[^/]+?)(-\d+-of-\d+)?\.parquet")


class Published:
    """What the published benchmarks share.

    Args:
        path: hub id, or a folder with ``<split>*.parquet`` in it, in ``data/`` or in ``<config>/``.
        config: configuration of the dataset, where it has several.
        revision: of a hub id.
        protocol: whose prompt, parsing and metric: ``llava`` or ``lmms_eval``.
        exif: photographs are turned upright, as `datasets` and lmms-eval do; the original LLaVA scripts do not.
    """

    name: str
    headline: str  # name of the score that tables show
    columns: tuple[str, ...]  # without them a row cannot be asked
    image_column = "image"
    protocols: tuple[str, ...] = ("llava", "lmms_eval")
    tokens: ClassVar[dict[str, int]]  # max_new_tokens by protocol
    answered_elsewhere = False  # whether a split without answers is of use: a server or a judge scores it

    def __init__(
        self, path: str, split: str, config: str | None = None, revision: str | None = None, protocol: str = "llava", exif: bool = True
    ):
        if protocol not in self.protocols:
            raise UserError(f"benchmark.protocol={protocol} does not exist for {self.name}; use {' or '.join(self.protocols)}")
        self.path, self.split, self.config, self.revision, self.protocol, self.exif = path, split, config, revision, protocol, exif

    @property
    def max_new_tokens(self) -> int:
        return self.tokens[self.protocol]

    def samples(self) -> list[Sample]:
        """The rows as samples, their images still unread."""
        samples = list(self.read())
        if not samples:
            raise UserError(f"{self.name}: split {self.split} of {self.path} holds no row; copy the data set again")
        if not self.answered_elsewhere and all(s.answer is None for s in samples):
            raise UserError(f"{self.name}: split {self.split} of {self.path} has no answers; choose one that has, with benchmark.split=...")
        return samples

    def read(self) -> Iterator[Sample]:
        """Samples one by one. ``row``: every column but the image, which is opened when somebody looks."""
        rows = load_rows(self.path, self.split, self.config, self.revision, (*self.columns, self.image_column), self.name)
        for i, row in enumerate(rows.remove_columns(self.image_column)):
            yield self.sample(i, row, functools.partial(self.image, rows, i))

    def column(self, name: str) -> list[Any]:
        """One column of the split, without its images."""
        return list(load_rows(self.path, self.split, self.config, self.revision, (*self.columns, self.image_column), self.name)[name])

    def image(self, rows: Any, i: int) -> Image.Image:
        return open_image(rows[i][self.image_column], self.exif)

    def id(self, row_id: object) -> str:
        return f"{self.name}/{self.split}/{row_id}"

    def sample(self, i: int, row: dict[str, Any], image: Any) -> Sample:
        """Row ``i`` as a sample; ``image`` opens its image. Each benchmark has its own."""
        raise TypeError(f"{type(self).__name__} has no sample()")


@functools.lru_cache(maxsize=4)
def load_rows(path: str, split: str, config: str | None, revision: str | None, columns: tuple[str, ...], name: str) -> Any:
    """A `datasets.Dataset`, memory-mapped: a row is read from disk when it is asked for, and images come as encoded bytes.

    Raises UserError if the folder, the split, a column or the package is missing.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f'benchmark={name} reads its data with the package datasets; pip install "blink_exp[benchmarks]"') from None
    datasets.disable_progress_bars()
    folder = Path(path)
    if folder.is_dir():
        rows = datasets.load_dataset("parquet", data_files={split: local_files(folder, split, config)}, split=split)
    elif path.count("/") != 1:
        raise UserError(f"benchmark.path={path} is neither a folder nor a hub id like lmms-lab-encoder/MME; give one of them")
    else:
        try:
            rows = datasets.load_dataset(path, config, split=split, revision=revision)
        except (OSError, ValueError) as error:  # offline and not in the cache, no such id, configuration or split
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"benchmark.path={path} could not be had ({said}); download it, and give its folder as benchmark.path"
            ) from None
    missing = [c for c in columns if c not in rows.column_names]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}, which {name} reads; {nearest(missing[0], rows.column_names)}")
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))  # decoded one at a time by open_image
    return rows


def local_files(folder: Path, split: str, config: str | None) -> list[str]:
    """The parquet files of a split, in order of their numbers. Raises UserError, naming the splits that are there."""
    places = [folder / config, folder / "data" / config] if config else []
    place = next((p for p in (*places, folder / "data", folder) if any(p.glob("*.parquet"))), None)
    if place is None:
        raise UserError(f"benchmark.path={folder} holds no *.parquet, neither itself nor in data/; give a data set's folder")
    found: dict[str, list[str]] = {}
    for file in sorted(place.glob("*.parquet")):
        found.setdefault(SHARD.fullmatch(file.name)["split"], []).append(str(file))  # type: ignore[index]
    if split not in found:
        raise UserError(f"benchmark.split={split} is not in {place}; {nearest(split, found)}")
    return found[split]


def open_image(cell: Any, exif: bool = True) -> Image.Image:
    """An RGB image from a cell of an image column: {"bytes", "path"}. Raises OSError if it cannot be decoded or is not there."""
    data, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if data is None and path is None:
        raise OSError("the row has no image")
    try:
        with Image.open(io.BytesIO(data) if data is not None else str(path)) as image:
            return (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL's decoders raise beside OSError
        raise OSError(str(error)) from None


def missing(value: Any) -> bool:
    """Whether a cell says that there is nothing: null, an empty string, or a "nan" or "none" that a spreadsheet left behind."""
    return value is None or value != value or str(value).strip().lower() in ("", "nan", "none")


def blank(value: Any) -> bool:
    """Whether a free answer is not there: null, NaN or nothing but spaces. "none" is an answer to "how many?"."""
    return value is None or value != value or not str(value).strip()
