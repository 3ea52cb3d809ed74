"""Published benchmarks: rows of a Hugging Face dataset (hub id or local folder), prompted and scored by a public protocol."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, UnidentifiedImageError

from blink_exp.benchmarks.base import OpenImage, Sample, mark_skipped, placeholder_sample, skip_duplicate_ids, usable_samples
from blink_exp.benchmarks.cells import Cell, Row, read_cells
from blink_exp.benchmarks.folders import local_files
from blink_exp.errors import UserError, flat, reason
from blink_exp.images import ImageOptions, open_image
from blink_exp.settings.doors import install

BLOCK = 1000  # rows read at once
READER = logging.getLogger("datasets.packaged_modules.parquet.parquet")  # only this logger names the unreadable file


class Published:
    """Base class of the published benchmarks.

    Args:
        path: hub id, or a folder with ``<split>*.parquet`` in it, in ``data/``, in ``<config>/`` or where its README.md says.
        config: configuration of the dataset, where it has several.
        revision: of a hub id.
        protocol: whose prompt, parsing and metric: ``llava`` or ``lmms_eval``.
        exif: photographs are turned upright, as `datasets` and lmms-eval do; the original LLaVA scripts do not.
            None: as ``image_loading`` has it.
        image_loading: how images are opened, see ``images.ImageOptions``; without an ``alpha`` the protocol ``llava`` drops transparency.
    """

    name: str
    headline: str  # name of the score that tables show
    columns: ClassVar[Mapping[str, Cell]]  # required columns and their cell types
    optional: ClassVar[Mapping[str, Cell]] = {}  # columns that only some copies have
    image_column = "image"
    protocols: tuple[str, ...] = ("llava", "lmms_eval")
    tokens: ClassVar[dict[str, int]]  # max_new_tokens by protocol
    answered_elsewhere = False  # whether a split without answers is useful: a server or a judge scores it

    def __init__(
        self,
        path: str,
        split: str,
        config: str | None = None,
        revision: str | None = None,
        protocol: str = "llava",
        exif: bool | None = None,
        image_loading: Any = None,
    ):
        if protocol not in self.protocols:
            raise UserError(f"benchmark.protocol={protocol} does not exist for {self.name}; use {' or '.join(self.protocols)}")
        self.path, self.split, self.config, self.revision, self.protocol = path, split, config, revision, protocol
        self.image_loading = ImageOptions.of(image_loading, protocol, exif)

    @property
    def max_new_tokens(self) -> int:
        return self.tokens[self.protocol]

    def samples(self) -> list[Sample]:
        """The rows as samples; images are opened lazily."""
        samples = list(skip_duplicate_ids(self.read()))
        valid = usable_samples(samples, f"{self.name}: split {self.split} of {self.path}")
        if not self.answered_elsewhere and all(s.answer is None for s in valid):
            raise UserError(f"{self.name}: split {self.split} of {self.path} has no answers; choose one that has, with benchmark.split=...")
        return samples

    def rows(self) -> Any:
        return load_rows(self.path, self.split, self.config, self.revision, (*self.columns, self.image_column), self.name)

    def read(self) -> Iterator[Sample]:
        """Yields the samples. ``row`` holds every column except the image, which is opened on demand."""
        rows = self.rows()
        yield from self.sampled(rows.remove_columns(self.image_column), lambda i, row: functools.partial(self.image, rows, i))

    def sampled(self, rows: Any, image: Callable[[int, Row], OpenImage]) -> Iterator[Sample]:
        """One sample per row; an invalid row becomes a skipped sample, under its own id if the id can be built. ``image``: maps the row
        number and cells to a function that opens the image."""
        for i, cells in enumerate(iter_rows(rows)):
            row_id = self.id(f"row {i:05d}")
            if isinstance(cells, str):
                yield placeholder_sample(row_id, cells)
                continue
            row, wrong, identified = read_cells(cells, {**self.columns, **self.optional})
            try:
                sample = self.sample(i, row, image(i, row)) if identified else placeholder_sample(row_id, str(wrong))
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # errors of the benchmark's own checks
                sample = placeholder_sample(row_id, wrong or reason(error))
            yield sample if wrong is None else mark_skipped(sample, wrong)

    def column(self, name: str) -> list[Any]:
        """The valid cells of one column of the split."""
        return [value for _, value in valid_cells(self.rows(), name, self.columns[name])]

    def image(self, rows: Any, i: int) -> Image.Image:
        return open_image(rows[i][self.image_column], self.image_loading, root_of(self.path))

    def id(self, row_id: object) -> str:
        return f"{self.name}/{self.split}/{row_id}"

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        """Row ``i`` as a sample; ``image`` opens its image. Implemented by each benchmark."""
        raise TypeError(f"{type(self).__name__} has no sample()")


@functools.lru_cache(maxsize=4)
def load_rows(path: str, split: str, config: str | None, revision: str | None, columns: tuple[str, ...], name: str) -> Any:
    """A memory-mapped `datasets.Dataset`: rows are read from disk on access, and images stay encoded.

    Raises UserError if the folder, the split, a column or the package is missing.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"benchmark={name} reads its data with the package datasets; {install('benchmarks')}") from None
    datasets.disable_progress_bars()
    folder = Path(path)
    if folder.is_dir():
        source: dict[str, Any] = {"path": "parquet", "data_files": {split: local_files(folder, split, config)}}
    elif path.count("/") != 1:
        raise UserError(f"benchmark.path={path} is neither a folder nor a hub id like lmms-lab-encoder/MME; give one of them")
    else:
        source = {"path": path, "name": config, "revision": revision}
    unreadable: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        unreadable.extend(re.findall(r"'(.+?)' with error", record.getMessage()))
        return False

    READER.addFilter(listen)
    try:
        rows = datasets.load_dataset(**source, split=split)
    except UnidentifiedImageError:  # its message holds a memory address, which differs from run to run
        raise OSError("the row's image is in no known format") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        broken = isinstance(error, datasets.exceptions.DatasetGenerationError)
        raise UserError(load_error(path, folder.is_dir(), unreadable, broken, error)) from None
    finally:
        READER.removeFilter(listen)
    missing = [c for c in columns if c not in rows.column_names]
    if missing:
        names = ", ".join(rows.column_names)
        raise UserError(f"{path} lacks the column {missing[0]}, which {name} reads; it has {names}: take a copy with the published columns")
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))  # decoded one at a time by open_image
    return rows


def load_error(path: str, local: bool, unreadable: list[str], broken: bool, error: Exception) -> str:
    """One-line message for a failed `datasets` load. ``unreadable``: files that its reader rejected; ``broken``: the files were located."""
    message = flat((error.__cause__ or error) if broken else error, 200)
    if unreadable:
        cure = "download it again" if local else f"run: hf download {path} --repo-type dataset --force-download"
        return f"benchmark.path={path}: {unreadable[0]} could not be read ({message}); {cure}"
    if local or broken:  # the files are there, and their copy in the cache could not be made
        return (
            f"benchmark.path={path} could not be prepared ({message}); look at the space left in HF_DATASETS_CACHE, or copy the data again"
        )
    # offline and not in the cache, no such id, configuration or split
    return f"benchmark.path={path} could not be had ({message}); download it, and give its folder as benchmark.path"


def iter_rows(rows: Any) -> Iterator[Row | str]:
    """The rows of a `datasets.Dataset`; for an unreadable row (invalid UTF-8) the reason. In blocks, ten times as fast as row by row."""
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        try:
            block = rows[start:stop]
            yield from (dict(zip(block, cells, strict=True)) for cells in zip(*block.values(), strict=True))
        except (ValueError, OSError):
            yield from (read_row(rows, i) for i in range(start, stop))


def valid_cells(rows: Any, column: str, cell: Cell) -> Iterator[tuple[int, Any]]:
    """(row number, value) of the valid cells of a column."""
    for i, row in enumerate(iter_rows(rows.select_columns(column))):
        if not isinstance(row, str):
            read, wrong, _ = read_cells(row, {column: cell})
            if wrong is None:
                yield i, read[column]


def read_row(rows: Any, i: int) -> Row | str:
    try:
        row: Row = rows[i]
        return row
    except (ValueError, OSError) as error:
        return reason(f"the row cannot be read ({reason(error)})")


def root_of(path: str) -> Path:
    """The folder that image paths must stay in: the data set's folder, or the Hugging Face cache for a hub id."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    import datasets

    return Path(datasets.config.HF_CACHE_HOME)


def missing(value: Any) -> bool:
    """Whether a cell is empty: null, an empty string, or "nan" or "none" from a spreadsheet export."""
    return value is None or value != value or str(value).strip().lower() in ("", "nan", "none")
