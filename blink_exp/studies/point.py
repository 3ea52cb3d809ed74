"""One point of a study: read from the store, or measured and stored."""

from __future__ import annotations

import contextlib
import logging
import traceback
from functools import partial
from pathlib import Path

from blink_exp import tracking
from blink_exp.backbone.shipped import shipped
from blink_exp.cli import one_line
from blink_exp.documents.runs import Metrics, PointRun
from blink_exp.errors import is_expected
from blink_exp.evaluation import locks, store, tokens
from blink_exp.evaluation.evaluator import measure, prepare_benchmark
from blink_exp.evaluation.ranks import LostRank
from blink_exp.evaluation.records import RECORD_LOG, files_of, read
from blink_exp.evaluation.shared_runs import parts_of, stored_point
from blink_exp.evaluation.store import SHARED_NOTE
from blink_exp.keys import masked
from blink_exp.settings.roots import EvaluateSettings, PointSettings
from blink_exp.settings.values import as_type

log = logging.getLogger(__name__)


def guarded(settings: EvaluateSettings, label: str, experiment: str | None = None, x: float | None = None) -> PointRun:
    """Measures and logs a point. A failure becomes a row with its error instead of ending the sweep.

    ``experiment``: id of the table or figure, ``x``: where the point stands on the figure's axis."""
    try:
        row = {"point": label, "status": "done"} | measured_point(settings)
    except LostRank:
        raise
    except Exception as error:
        return failed(label, error)
    out, group = tracking.output_and_group()
    tracking.log_point(
        settings,
        Path(row["folder"]),
        out,
        name=f"{label}, {row['benchmark']}",
        group=f"{experiment} {group}" if experiment else group,
        experiment=experiment,
        x=x,
        benchmark=partial(prepare_benchmark, settings),
    )
    return row


def failed(label: str, error: Exception) -> PointRun:
    """The row of a failed point. Logs the error, with a traceback unless the user caused it."""
    log.error("%s failed%s", label, f": {one_line(error)}" if is_expected(error) else f":\n{masked(traceback.format_exc())}")
    return {"point": label, "status": "failed", "error": one_line(error)}


def measured_point(settings: EvaluateSettings) -> PointRun:
    """The run of a point, measured unless the store has it, with its cost if requested."""
    folder, stored = in_store(settings)
    finished = stored
    parts = parts_of(settings)
    if finished is None:
        with locks.waited(parts):
            folder, stored, finished = measured(settings, parts)
    else:
        tidy(parts)
    print(f"{'already done' if stored else 'measured'}: {folder}", flush=True)
    records = read(folder)
    model = settings.model
    decided = any(r["layers"] for r in records)
    return {
        "method": finished["method"],
        "scores": {k: v["value"] for k, v in finished["scores"].items()},
        "stderr": {k: v["stderr"] for k, v in finished["scores"].items()},
        "tokens": tokens.realised(records, tokens.llm_depth(model["path"], model.get("revision")) if decided else None),
        "budget": finished.get("budget"),
        "cost": finished.get("cost"),
        "headline": finished["headline"],
        "benchmark": finished["benchmark"],
        "protocol": finished["protocol"],
        "samples": finished["samples"],
        "files": finished.get("files", []),
        "skipped_samples": len(finished["skipped"]),
        "first_skipped": "{id}: {why}".format(**finished["skipped"][0]) if finished["skipped"] else None,
        "seconds": finished["seconds"],
        "together": finished.get("together"),
        "backbone": finished["backbone"],
        "scale": shipped(model["path"]) is not None,
        "commit": finished["commit"],
        "blink": finished["blink"],
        "folder": str(folder),
        "reused": stored is not None,
    }


def in_store(settings: EvaluateSettings) -> tuple[Path, Metrics | None]:
    """``stored_point``; a stored point without the requested cost counts as missing, since the cost is not part of its hash."""
    folder, stored = stored_point(settings)
    whole = store.point_of(folder) if stored is not None else None
    stored = whole[0] if whole is not None else None
    if stored is not None and (stored.get("cost") or {}).get("prompts", 0) < min(settings.cost, stored["samples"]):
        stored = None
    return folder, stored


def measured(settings: EvaluateSettings, parts: Path) -> tuple[Path, Metrics | None, Metrics]:
    """(folder, metrics already in the store or None, final metrics). Another run may have finished the point meanwhile."""
    folder, stored = in_store(settings)
    before = store.point_of(folder) if stored is None and stored_point(settings)[1] is not None else None  # it lacks its cost
    finished = stored or measure(as_type(PointSettings, settings), folder, parts, settings.devices, before)
    if parts != folder:
        with contextlib.suppress(OSError):
            parts.rmdir()
    return folder, stored, finished


def tidy(parts: Path) -> None:
    """Removes the partial files of a run that was killed after writing a point's metrics."""
    left = [*files_of(parts / RECORD_LOG), *([parts / SHARED_NOTE] if (parts / SHARED_NOTE).is_file() else [])]
    if left:
        with contextlib.suppress(OSError), locks.free([parts]) as mine:
            for path in left if mine else []:
                path.unlink(missing_ok=True)
