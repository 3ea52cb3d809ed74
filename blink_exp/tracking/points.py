"""Logs a measured point, or the summary of a table, figure or sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from blink_exp.benchmarks.base import Benchmark, Box
from blink_exp.documents.records import Record
from blink_exp.documents.runs import Metrics, PointRun
from blink_exp.documents.settings import PlainSettings
from blink_exp.documents.tables import Document, FigureDocument
from blink_exp.evaluation import tokens
from blink_exp.files import read_object
from blink_exp.settings.roots import EvaluateSettings
from blink_exp.tracking.base import logger_of, tracker
from blink_exp.tracking.interface import Run, warned
from blink_exp.tracking.loggers import Csv
from blink_exp.tracking.names import COLUMNS, LAYER, by_layer, config_of, evenly, key, metrics_of, numbers, record_row, tags_of
from blink_exp.tracking.summaries import figure_tables, pictures_of, sweep_table, table_rows

LONGEST_SIDE = 768  # pixels of a logged example


def output_and_group() -> tuple[Path, str]:
    """(folder, sweep name) of the running Hydra command: where the runs of all its points are logged, and their group."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else hydra.runtime.output_dir)
    return folder, folder.name


def log_point(
    settings: EvaluateSettings,
    folder: Path,
    out: Path,
    name: str,
    group: str | None = None,
    experiment: str | None = None,
    x: float | None = None,
    benchmark: Callable[[], Benchmark] | None = None,
) -> None:
    """Logs the finished point in ``folder`` as one run of ``settings.logger``. Does nothing for `logger=csv`.

    Args:
        settings: the point's.
        folder: holds metrics.json and records.jsonl.
        out: folder of the run's files: the output folder of the command, shared by the runs of a sweep.
        name, group: of the run; the group is the sweep, the name labels the point.
        experiment: id of the table or figure, for its tag and its own metric (see ``names.metrics_of``).
        x: value of the point on the figure's axis.
        benchmark: builds the benchmark, for example images; None: no images.
    """
    logger = logger_of(settings.logger)
    if isinstance(logger, Csv):
        return
    with warned(logger.name):
        from blink_exp.evaluation.records import read  # imports torch: an invalid logger is reported first

        document: Any = read_object(folder / "metrics.json", {}, "measure the point again")
        finished: Metrics = document
        records = read(folder)
        model = settings.model
        decided = any(r.get("layers") for r in records)
        depth = tokens.llm_depth(model["path"], model.get("revision")) if decided else None
        complete = all("layers" in r for r in records)
        metrics = metrics_of(finished, tokens.realised(records, depth) if complete else {}, experiment)
        metrics |= {} if x is None or experiment is None else {f"{experiment}/x": float(x)}
        tags = tags_of(model.get("name") or finished["backbone"], finished, experiment)
        with tracker(logger, out, Run(name, group, tags, config=config_of(asdict(settings)))) as track:
            track.metrics(metrics)
            if curve := by_layer(finished, experiment):
                track.curve(LAYER, curve)
            if logger.rows and records:
                track.table("records", list(COLUMNS), [record_row(r) for r in evenly(records, logger.rows)])
            if logger.images and benchmark is not None:
                for picture, image, caption, boxes in examples(benchmark, records, logger.images):
                    track.image(picture, image, caption, boxes)


def examples(
    benchmark: Callable[[], Benchmark], records: list[Record], count: int
) -> Iterator[tuple[str, Image.Image, str, tuple[Box, ...]]]:
    """("examples/1", image, caption, annotated regions) of ``count`` records of different images, those with regions first. Unreadable
    images are skipped; yields nothing if the benchmark's data is missing."""
    try:
        samples = {s.id: s for s in benchmark().samples()}
    except (OSError, ValueError):
        return
    shown_ids: set[str] = set()
    for record in sorted(records, key=lambda r: not r.get("regions")):
        sample = samples.get(record["id"])
        if len(shown_ids) == count:
            return
        if sample is None or record["image_id"] in shown_ids:
            continue
        try:
            image = sample.image()
        except OSError:
            continue
        shown_ids.add(record["image_id"])
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        caption = f"{record.get('question', '')} | answer: {record.get('answer')} | predicted: {record.get('prediction')}"
        yield f"examples/{len(shown_ids)}", image, " ".join(caption.split()), tuple(sample.regions)


def log_summary(
    document: Document | list[PointRun],
    folder: Path,
    settings: PlainSettings,
    group: str | None = None,
    out: Path | None = None,
) -> None:
    """Logs a table, figure or multirun as one summary run. Does nothing for `logger=csv`.

    A table: ``table/ID``, with separate published and measured columns. A figure: ``claims/ID``, its points as
    curves by series. A multirun (its rows): ``table/sweep``. And the PNG files of ``folder``, as ``figures/ID/1``, ``/2``, ...

    Args:
        document: table.json or figure.json, or a multirun's rows.
        settings: must hold ``logger``; the rest is the run's configuration.
        group: that of the points; None: the folder's name.
        out: folder of the run's files; None: ``folder``.
    """
    logger = logger_of(settings["logger"])
    if isinstance(logger, Csv):
        return
    with warned(logger.name):
        head: dict[str, Any] = {} if isinstance(document, list) else {**document}
        name = head.get("name") or "sweep"
        tags = (f"experiment:{name}", *([f"model:{head['model']}"] if head.get("model") else []))
        description = {k: head[k] for k in ("title", "paper", "published_on", "command", "model", "scale") if head.get(k) is not None}
        run = Run(f"{name} summary", group or folder.name, tags, "summary", config_of(settings | {"summary": description}))
        with tracker(logger, out or folder, run) as track:
            if isinstance(document, list):
                track.table("table/sweep", *sweep_table(document))
            elif document["kind"] == "table":
                track.table(f"table/{name}", *table_rows(document))
            else:
                for claims, columns, rows in figure_tables(document):
                    track.table(claims, columns, rows)
                for axis, rows_ in curves(document):
                    track.curve(axis, rows_)
            for picture, path in pictures_of(folder, name, head.get("figures") or []):
                track.image(picture, path, path.stem)


def curves(document: FigureDocument) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """(axis, rows) of each series of a figure: ``ID/x``, and every score as ``ID/SERIES/SCORE``."""
    axis = f"{document['name']}/x"
    series: dict[str, list[dict[str, float]]] = {}
    for row in document["rows"]:
        if row.get("status") == "done" and isinstance(row.get("x"), int | float):
            scores = numbers(row["scores"])
            point = {f"{document['name']}/{key(row['series'])}/{key(k)}": v for k, v in scores.items()}
            series.setdefault(row["series"], []).append({axis: row["x"]} | point)
    for rows in series.values():
        yield axis, sorted(rows, key=lambda row: row[axis])
