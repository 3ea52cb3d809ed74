"""The parts of a run that was divided by hand (``shard=2/8``): whether the records given are all of them, once each, and of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, shard, spread
from blink_exp.benchmarks.parts import part_of
from blink_exp.documents.records import Record, Skipped
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, flat, printable
from blink_exp.evaluation import results
from blink_exp.evaluation.identity import canonical
from blink_exp.files import brief, read_object
from blink_exp.settings.check import format_value
from blink_exp.settings.values import by_full_name, read_settings

CURE = "give the records of one run only"
ONE_RUN = ("method", "benchmark", "part", "limit", "seed")  # settings that the parts of a run agree on; folders may differ by machine


@dataclass(frozen=True)
class Part:
    """A file of records and its place in the run. ``skipped``: samples that it could not read."""

    file: Path
    number: int
    count: int
    settings: PlainSettings
    skipped: list[Skipped]


def parts_of(files: Iterable[Path]) -> list[Part]:
    """The parts that ``files`` are, by the config.yaml beside them; empty for records of whole runs, or of nobody knows what.

    Raises UserError where a part is missing, given twice or of another run."""
    beside = {file: file.with_name(results.CONFIG) for file in files}
    settings = {file: read_settings(path, f"copy the whole folder of {file}") for file, path in beside.items() if path.is_file()}
    divided = {file: values for file, values in settings.items() if values.get("shard") is not None}
    if not divided:
        return []
    for file in beside:
        if file not in settings:
            raise UserError(f"{file} has no {results.CONFIG} beside it, which says what part of the run it is; copy its whole folder")
        if file not in divided:
            raise UserError(f"{file} is no part of a run, but the whole of one (shard=null); {CURE}")
    parts = [_part(file, values) for file, values in divided.items()]
    first = parts[0]
    for part in parts[1:]:
        for key in ONE_RUN:
            ours, theirs = ({key: _comparable(settings, key)} for settings in (part.settings, first.settings))
            if ours != theirs:
                raise UserError(f"{part.file} is of another run than {first.file}: {_difference(ours, theirs)}; {CURE}")
        if part.count != first.count:
            raise UserError(f"{part.file} is shard={part.number}/{part.count}, {first.file} shard={first.number}/{first.count}; {CURE}")
    return sorted(parts, key=lambda part: part.number)


def _part(file: Path, settings: PlainSettings) -> Part:
    number, _, count = str(settings["shard"]).partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(
            f"{file.with_name(results.CONFIG)} has shard={brief(settings['shard'])}, which is no part k/n; copy its folder again"
        )
    metrics = file.with_name("metrics.json")
    skipped = read_object(metrics, {"skipped": list}, "copy its folder again")["skipped"] if metrics.is_file() else []
    return Part(file, int(number), int(count), settings, skipped)


def _comparable(settings: PlainSettings, key: str) -> Any:
    """A setting without paths, which differ between machines."""
    return _without_paths(canonical(settings.get(key)) if key == "method" else settings.get(key))


def _difference(ours: PlainSettings, theirs: PlainSettings) -> str:
    """The first setting that differs, with both values."""
    here, there = by_full_name(ours), by_full_name(theirs)
    changed = (name for name in here | there if name not in here or name not in there or here[name] != there[name])
    name = next(changed, None)
    if name is None:  # an empty group against none
        return f"{brief(ours)}, there {brief(theirs)}"
    mine, other = (flat(format_value(values[name]), 80) if name in values else "not set" for values in (here, there))
    return f"{name}={mine}, there {other}"


def _without_paths(value: Any) -> Any:
    return {k: _without_paths(v) for k, v in value.items() if k != "path"} if isinstance(value, dict) else value


def check_whole(parts: list[Part], alone: str | None) -> None:
    """Raises UserError unless ``parts`` are all parts of a run, once each. ``alone``: the one that may stand for itself."""
    by_number: dict[int, Part] = {}
    for part in parts:
        if part.number in by_number:
            raise UserError(
                f"shard={part.number}/{part.count} is given twice, {by_number[part.number].file} and {part.file}; leave one away"
            )
        by_number[part.number] = part
    if not parts or (len(parts) == 1 and str(alone) == f"{parts[0].number}/{parts[0].count}"):
        return
    missing = [f"{k}/{parts[0].count}" for k in range(1, parts[0].count + 1) if k not in by_number]
    if missing:
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        alone_cure = f", or score this part alone with shard={parts[0].number}/{parts[0].count}" if len(parts) == 1 else ""
        raise UserError(
            f"shard={named} missing: {len(parts)} of {parts[0].count} parts of the run are given; give the others too{alone_cure}"
        )


def check_records(parts: list[Part], benchmark: Benchmark, records: Mapping[Path, Mapping[str, Record]]) -> list[Skipped]:
    """Raises UserError where a part's records are not those of its samples. Returns the samples that the parts skipped, in their order.

    ``records``: {file: {id: record}}."""
    if not parts:
        return []
    settings = parts[0].settings
    samples = spread(part_of(benchmark.samples(), settings.get("part", "all")), settings.get("limit"))
    skipped: dict[str, Skipped] = {}
    for part in parts:
        name = f"shard={part.number}/{part.count}"
        wanted = [sample.id for sample in shard(samples, f"{part.number}/{part.count}")]
        mine = {entry["id"]: entry for entry in part.skipped}
        foreign = [key for key in records[part.file] if key not in set(wanted)]
        if foreign:
            raise UserError(f"{len(foreign)} records of {part.file} are not of its {name}, first {_name(foreign[0])}; {CURE}")
        lost = [key for key in wanted if key not in records[part.file] and key not in mine]
        if lost:
            raise UserError(f"{len(lost)} samples of {name} have no record in {part.file}, first {_name(lost[0])}; copy its folder again")
        skipped |= {key: mine[key] for key in wanted if key in mine and key not in records[part.file]}
    return [skipped[sample.id] for sample in samples if sample.id in skipped]


def _name(key: str) -> str:
    return flat(printable(key), 80)
