"""Finds the parquet files of a split in a local folder: from the dataset card (README.md) if it lists them, else by hub file names.

`datasets.load_dataset(folder)` finds them too, but takes half a set, or two copies of it, for the whole, and refuses a folder that holds
the files of one configuration alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import yaml

from blink_exp.errors import UserError, flat, nearest

# <split>.parquet, <split>-00000-of-00004.parquet, and the hub's older <split>-00000-of-00004-a25dbe3b44c4fda6.parquet
NAME = re.compile(r"(?P<split>[^/]+?)(-(?P<shard>\d+)-of-(?P<shards>\d+)(-[0-9a-f]{16})?)?\.parquet")
POINTER = b"version https://git-lfs"
Files = dict[str, list[Path]]  # by split


class CardConfig(TypedDict, total=False):
    """An entry of ``configs:`` in a dataset card, which nobody has checked but for its ``config_name``."""

    config_name: Required[Any]
    data_files: Any
    data_dir: Any
    default: Any


def local_files(folder: Path, split: str, config: str | None) -> list[str]:
    """The parquet files of a split of a configuration, in shard order, checked to be readable.

    Raises UserError if the configuration or the split is not there (naming those that are), if a file is missing, cut off or a pointer.
    """
    files = config_files(folder, config)
    if split not in files:
        raise UserError(f"benchmark.split={split} is not in {folder}{f' ({config})' if config else ''}; {nearest(split, files)}")
    check_complete(folder, split, files[split])
    filled = [file for file in files[split] if readable(file)]  # the reader takes a file without rows for a broken one
    if not filled:
        raise UserError(f"benchmark.split={split} of {folder} holds no row in {len(files[split])} files; download them again")
    return [str(file) for file in filled]


def config_files(folder: Path, config: str | None) -> Files:
    """The files of ``config`` by split. A folder without configurations serves any ``config``; otherwise the name must exist."""
    entries = readme_configs(folder)
    declared = {str(e["config_name"]): files for e in entries if (files := readme_files(folder, e))}
    configs = files_by_name(folder)
    if declared:
        configs.pop("default", None)  # the card lists these files under a config name
    configs |= declared
    if not configs:
        raise UserError(f"benchmark.path={folder} holds no *.parquet, neither itself nor in data/; give a data set's folder")
    if config is None:
        defaults = [str(e["config_name"]) for e in entries if e.get("default") is True]
        config = next((c for c in (*defaults, "default", *(declared if len(declared) == 1 else ())) if c in configs), None)
        if config is None:
            raise UserError(f"benchmark.config=null names none of several in {folder}; use one of: {', '.join(sorted(configs))}")
    foreign = bool(declared) and config in {str(e["config_name"]) for e in entries}  # the card knows it, and its files are not here
    if config not in configs and set(configs) == {"default"} and not foreign:
        config = "default"
    if config not in configs:
        raise UserError(
            f"benchmark.config={config} is not in {folder}, which holds: {', '.join(sorted(configs))}; copy it too, or use those"
        )
    return configs[config]


def readme_configs(folder: Path) -> list[CardConfig]:
    """``configs:`` of the README.md front matter; [] if it is missing or unreadable."""
    file = folder / "README.md"
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\n---", file.read_text("utf-8", "replace"), re.DOTALL) if file.is_file() else None
    try:
        front = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date
        front = None
    entries = front.get("configs") if isinstance(front, dict) else None
    named = [e for e in entries if isinstance(e, dict) and "config_name" in e] if isinstance(entries, list) else []
    return cast("list[CardConfig]", named)


def readme_files(folder: Path, entry: CardConfig) -> Files:
    """The parquet files of a configuration's ``data_files``: a path or glob, a list of them, or a mapping from split to either."""
    items = entry.get("data_files") or []
    if isinstance(items, dict):
        items = [{"split": split, "path": paths} for split, paths in items.items()]
    by_split: dict[str, set[Path]] = {}
    for item in items if isinstance(items, list) else [items]:
        item = item if isinstance(item, dict) else {"split": "train", "path": item}  # no split given: train, as in `datasets`
        paths = item.get("path") or []
        for path in paths if isinstance(paths, list) else [paths]:
            pattern = f"{entry.get('data_dir') or '.'}/{path}"
            inside = "://" not in pattern and not pattern.startswith("/") and ".." not in pattern.split("/")
            matches = {p for p in folder.glob(pattern) if p.suffix == ".parquet" and p.is_file()} if inside else set()
            if matches:
                by_split.setdefault(str(item.get("split")), set()).update(matches)
    return {split: sorted(files) for split, files in by_split.items()}


def files_by_name(folder: Path) -> dict[str, Files]:
    """Files by configuration: ``default`` for data/ and the folder itself, else the subfolder's name."""
    directories = [("default", folder / "data"), ("default", folder)]
    for parent in (folder, folder / "data"):
        subfolders = sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        directories += [(p.name, p) for p in subfolders if p != folder / "data" and not p.name.startswith(".")]
    configs: dict[str, Files] = {}
    for config, directory in directories:
        files: Files = {}
        for file in sorted(directory.glob("*.parquet")):
            name = NAME.fullmatch(file.name)
            files.setdefault(name["split"] if name else file.stem, []).append(file)
        if files:
            configs.setdefault(config, files)
    return configs


def check_complete(folder: Path, split: str, files: list[Path]) -> None:
    """Raises UserError unless each "k of n" series of shards is complete and unique. A card may join several series in a split."""
    series: dict[Path, list[tuple[int, int]]] = {}
    for file in files:
        if name := NAME.fullmatch(file.name):
            series.setdefault(file.parent / name["split"], []).append((int(name["shard"] or 0), int(name["shards"] or 1)))
    for start, parts in series.items():
        numbers, shards = {k for k, _ in parts}, {n for _, n in parts}
        if len(shards) > 1 or len(numbers) < len(parts):
            raise UserError(f"{folder} holds two copies of files of split {split}, {start.name}*.parquet; keep those of one")
        absent = sorted(set(range(*shards)) - numbers)
        if absent:
            count = f"{len(absent)} of {max(shards)} files {start.name}-*.parquet of split {split} are missing"
            raise UserError(f"{folder}: {count}, first number {absent[0]:05d}; download them again")


def readable(file: Path) -> int:
    """Row count of a parquet file, from its footer. Raises UserError if the file is truncated or not parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise UserError(f"{file} is a git-lfs pointer, not data; run git lfs pull in its folder, or download it")
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} could not be read ({flat(error, 200)}); download it again") from None
