"""Scores the records of earlier runs again without a model, or against those of another run: by a judge that compares two answers where
the benchmark has one, else by paired tests on the same questions."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from blink_exp.benchmarks.base import Benchmark, Compares, Count, Sample
from blink_exp.documents.records import Record
from blink_exp.documents.runs import Metrics, PairedTest, PredictionOrigin, PredictionSettings
from blink_exp.errors import UserError, flat, printable
from blink_exp.evaluation import results
from blink_exp.evaluation.evaluator import prepare_benchmark, scored
from blink_exp.evaluation.records import RECORDS, graded, numbered, summary, wrong_prediction
from blink_exp.files import brief, json_ready, read_object, write_json, write_text
from blink_exp.reports import statistics
from blink_exp.settings.roots import CompareSettings, RescoreSettings
from blink_exp.settings.values import to_yaml
from blink_exp.studies.parts import check_records, check_whole, parts_of
from blink_exp.studies.sweep_folder import ROW, point_folder

WITHOUT = "remove it, and what the predictions were made with is left out"  # cure of a damaged metrics.json
MADE_WITH = tuple(PredictionSettings.__annotations__)  # keys of metrics.json


def score_again(settings: RescoreSettings, out: Path) -> Metrics:
    """Scores ``predictions`` (records of an earlier run or of its shards) with the benchmark, without a model."""
    started = time.time()
    benchmark = prepare_benchmark(settings)
    for setting in ("predictions", "against") if isinstance(settings, CompareSettings) else ("predictions",):
        check_benchmark(getattr(settings, setting), benchmark.name, setting)
    samples = benchmark.samples()
    parts = parts_of(files_of(settings.predictions, "predictions"))
    check_whole(parts, settings.shard)
    origin = made_with(settings.predictions)
    by_file = predicted_by_file(settings.predictions)
    records = scored_again(benchmark, samples, united(by_file))
    skipped = check_records(parts, benchmark, by_file)
    visual = origin.pop("visual_tokens_of_the_image", None)
    blink = {} if visual is None else {"blink": summary(records, visual)}
    against, others = None, None
    if isinstance(settings, CompareSettings):
        against = settings.against
        check_whole(parts_of(files_of(against, "against")), settings.shard)
        others = scored_again(benchmark, samples, predicted(against, "against"))
        check_shared(records, others)
        if isinstance(benchmark, Compares):
            records, others = benchmark.compare(records, others), None
    write_text(out / results.CONFIG, to_yaml(settings))
    finished = {
        "backbone": "predictions of an earlier run",
        "method": "as predicted",
        "predictions": settings.predictions,
        "against": against,
        "layers": [],
        **(scores := scored(benchmark, records, out)),
        "cost": None,
        "skipped": skipped,
        **results.provenance(settings.seed, time.time() - started),
        **origin,
        **blink,
    }
    if others is not None:
        finished["differences"] = differences(benchmark, records, others, scores["scores"], settings.seed)
    metrics: Metrics = json_ready(finished)
    write_json(out / "metrics.json", metrics)
    return metrics


def predicted(paths: str | list[str], setting: str = "predictions") -> dict[str, Record]:
    """{id: record} of earlier runs: records.jsonl files or the folders that hold them; a glob pattern names several (the shards
    of a run).

    Raises UserError if there is no such file, none holds a record, a line is damaged or holds no prediction, or a question is answered
    twice, in one file or in two. ``setting``: name of the setting, for messages.
    """
    return united(predicted_by_file(paths, setting))


def united(by_file: dict[Path, dict[str, Record]]) -> dict[str, Record]:
    """{id: record} of several files. Raises UserError if two answer the same question."""
    out: dict[str, Record] = {}
    origin: dict[str, Path] = {}
    for file, records in by_file.items():
        double = next((key for key in records if key in out), None)
        if double is not None:
            shared = sum(key in out for key in records)
            raise UserError(
                f"{flat(printable(double), 80)} is answered twice, in {origin[double]} and in {file} (samples in both: {shared});"
                " give the files of one run, each once"
            )
        out |= records
        origin |= dict.fromkeys(records, file)
    return out


def predicted_by_file(paths: str | list[str], setting: str = "predictions") -> dict[Path, dict[str, Record]]:
    """{file: {id: record}}; see ``predicted``."""
    files = files_of(paths, setting)
    out: dict[Path, dict[str, Record]] = {}
    for file in files:
        if file in out:
            raise UserError(f"{setting} names {file} twice; leave one away")
        records: dict[str, Record] = {}
        lines: dict[str, int] = {}
        for number, prediction in numbered(file, wrong_prediction, f"give {setting}=<the records.jsonl of a finished run>"):
            name = flat(printable(prediction["id"]), 80)
            if prediction["id"] in lines:
                earlier = lines[prediction["id"]]
                raise UserError(f"{name} is answered twice in {file}, lines {earlier} and {number}; remove one of them")
            lines[prediction["id"]] = number
            records[prediction["id"]] = prediction
        out[file] = records
    if not any(out.values()):
        raise UserError(f"{setting}={files[0] if files else '[]'} holds no record; give the records.jsonl of a finished run")
    return out


def files_of(paths: str | list[str], setting: str = "predictions") -> list[Path]:
    """The files that ``predicted`` reads. Raises UserError if one is missing."""
    named = [Path(p) for path in ([paths] if isinstance(paths, str) else paths) for p in (sorted(glob.glob(path)) or [path])]
    files = [_records(path, setting) if path.is_dir() else path for path in named]
    for file in files:
        if not file.is_file():
            problem = "is no ordinary file" if file.exists() else "is not there"
            raise UserError(f"{setting}={file} {problem}; give the records.jsonl of a finished run, or its folder")
    return files


def _records(folder: Path, setting: str) -> Path:
    """The records.jsonl of a run's folder, or of the point in the store that a sweep's job in this folder measured."""
    if not (folder / RECORDS).is_file() and (folder / ROW).is_file():
        row = read_object(folder / ROW, {}, f"give {setting}=<the {RECORDS} of a finished run>")
        if row.get("status") == "failed":
            raise UserError(f"{setting}={folder} is a job that failed ({flat(str(row.get('error')), 200)}); run it again")
        if isinstance(row.get("folder"), str):
            return point_folder(folder, row["folder"]) / RECORDS
    return folder / RECORDS


def made_with(paths: str | list[str]) -> PredictionOrigin:
    """The settings that produced predictions, from the metrics.json beside each records.jsonl. Empty if a file has no metrics.json.

    Raises UserError if the settings of two files differ, or a metrics.json is damaged.
    """
    files = files_of(paths)
    beside = {f: f.with_name("metrics.json") for f in files if f.name == RECORDS}
    origins = [(file, _made_with(metrics)) for file, metrics in beside.items() if metrics.is_file()]
    for file, origin in origins[1:]:
        first, before = origins[0]
        for key in PredictionOrigin.__annotations__:
            if origin.get(key) != before.get(key):
                here, there = f"{file} was made with {key}={origin.get(key)}", f"{first} with {before.get(key)}"
                raise UserError(f"{here}, {there}; give the files of one run only")
    return origins[0][1] if origins and len(origins) == len(set(files)) else {}


def check_shared(records: list[Record], others: list[Record]) -> None:
    """Raises UserError unless two runs answered the same questions."""
    ours, theirs = ({record["id"] for record in run} for run in (records, others))
    if ours != theirs:
        raise UserError(
            f"predictions has {len(ours)} questions, against {len(theirs)}, both {len(ours & theirs)}; give two runs on the same questions"
            " (benchmark, limit, part)"
        )


def differences(
    benchmark: Benchmark, records: list[Record], others: list[Record], scores: Iterable[str], seed: int
) -> dict[str, PairedTest]:
    """How far a run is from another by each score, with a paired test; counts are left out. Raises UserError if no score is left."""
    ours, theirs = ({record["id"]: record for record in run} for run in (records, others))
    counts = {name for name, score in benchmark.score(records).items() if isinstance(score, Count)}
    tests = statistics.compare(benchmark, ours, theirs, [name for name in scores if name not in counts], seed=seed)
    if not tests:
        raise UserError(f"{benchmark.name} has no score to compare; choose a judge with judge=, if it has one")
    return tests


def check_benchmark(paths: str | list[str], name: str, setting: str = "predictions") -> None:
    """Raises UserError where the metrics.json beside predictions names another benchmark than ``name``."""
    for file in files_of(paths, setting):
        metrics = file.with_name("metrics.json")
        if file.name == RECORDS and metrics.is_file():
            made = flat(printable(str(read_object(metrics, {}, WITHOUT).get("benchmark", name))), 80)
            if made != name:
                raise UserError(
                    f"{setting}={file} has answers to {made}, not to {name}; use benchmark={made}, or the records of another run"
                )


def _made_with(metrics: Path) -> PredictionOrigin:
    document = read_object(metrics, {}, WITHOUT)
    try:
        origin = {key: document[key] for key in MADE_WITH if key in document}
        tokens = (document.get("blink") or {}).get("visual_tokens_of_the_image")
    except AttributeError:
        raise UserError(f"{metrics} is damaged (blink={brief(document['blink'])}); {WITHOUT}") from None
    return cast(PredictionOrigin, origin if tokens is None else origin | {"visual_tokens_of_the_image": tokens})


def scored_again(benchmark: Benchmark, samples: list[Sample], earlier: dict[str, Record]) -> list[Record]:
    """Earlier predictions as records graded by the current benchmark. Raises UserError if they belong to other samples, or their
    prompts differ."""
    sample_ids = {sample.id for sample in samples}
    foreign = [key for key in earlier if key not in sample_ids]
    if foreign:
        split_name = f"{benchmark.name}{'/' + benchmark.split if hasattr(benchmark, 'split') else ''}"
        cure = "choose the benchmark and split that they were made on"
        raise UserError(
            f"{len(foreign)} of {len(earlier)} predictions are not of {split_name}, first {flat(printable(foreign[0]), 80)}; {cure}"
        )
    for sample in (s for s in samples if "question" in earlier.get(s.id, {})):
        if earlier[sample.id]["question"] != benchmark.prompt(sample):
            now = f"{benchmark.name} asks now (protocol {benchmark.protocol})"
            cure = "choose the protocol and the copy of the data that the predictions were made with"
            raise UserError(f"{sample.id} was asked in other words than {now}; {cure}")
    return [_regraded(benchmark, s, earlier[s.id]) for s in samples if s.id in earlier]


def _regraded(benchmark: Benchmark, sample: Sample, earlier: Record) -> Record:
    """``earlier`` with today's grade, its keys in their order, so that what is scored again unchanged is the same to the byte."""
    full: Any = {**earlier, **graded(benchmark, sample, earlier["prediction"])}
    return full if "layers" in full else full | {"layers": []}  # type: ignore[no-any-return]
