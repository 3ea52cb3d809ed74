"""sweep.py: many configurations, each measured once, and one table of all."""

from __future__ import annotations

import contextlib
import logging
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp import tracking
from blink_exp.cli import guard, one_line
from blink_exp.errors import UserError
from blink_exp.experiments import locks, results, store
from blink_exp.experiments.jobs import Jobs, end, name_points, note, noted
from blink_exp.experiments.records import read
from blink_exp.experiments.together import NOTE, parts_of, place
from blink_exp.settings.check import check

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Any:
    """One job of a multirun, which returns what a search raises; without -m, all points of ``table`` and ``figure``, or a dashboard."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from blink_exp.experiments.tuning import prepared, returned

    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
        check_settings(cfg)
        if cfg.dashboard is not None:
            from blink_exp import dashboards

            dashboards.run(cfg, out)
            return None
        if OmegaConf.select(cfg, "table.name") == "parity":
            raise UserError("table=parity has rules of its own; python evaluate.py table=parity model=llava_1_5_7b")
        if all(OmegaConf.select(cfg, kind) is None for kind in ("table", "figure")):
            raise UserError(
                "nothing to sweep; add -m and comma lists (thresholds=high_exp,low_drop), a table (table=blink_table2, table=list for all)"
                " or a figure (figure=blink_fig3, figure=list)"
            )
        from blink_exp.experiments.catalog import run_experiments

        return run_experiments(cfg, out)
    chosen = next((kind for kind in ("table", "figure") if OmegaConf.select(cfg, kind) is not None), None)
    if chosen is not None:
        raise UserError(f"{chosen}={cfg[chosen].name} brings its own points; leave -m away")
    cfg = prepared(cfg)
    words = list(hydra.overrides.task)
    row = guarded(cfg, " ".join(words)) | {"overrides": words}
    results.write_json(out / "job.json", row)
    note(row)
    return returned(row, cfg)


def check_settings(cfg: DictConfig) -> None:
    """Raises UserError for what would fail every point: settings outside their limits, and what a logger refuses."""
    check(cfg, whole=False)
    tracking.check({"logger": OmegaConf.to_container(cfg.logger, resolve=True)})


def guarded(cfg: DictConfig, label: str, experiment: str | None = None, x: float | None = None) -> dict[str, Any]:
    """``point``, logged, with a failure as a row of the table (its traceback logged) instead of the end of the sweep. ``experiment``: id of
    the table or figure, ``x``: where the point stands on the figure's axis."""
    from blink_exp.experiments.evaluate import prepare_benchmark

    try:
        check(cfg)
        row = {"point": label, "status": "done"} | point(cfg)
    except (UserError, OSError) as error:
        log.error("%s failed: %s", label, one_line(error))
        return {"point": label, "status": "failed", "error": one_line(error)}
    except Exception as error:
        log.error("%s failed:\n%s", label, traceback.format_exc())
        return {"point": label, "status": "failed", "error": one_line(error)}
    out, group = tracking.place()
    tracking.log_point(
        results.plain(cfg),
        Path(row["folder"]),
        out,
        name=f"{label}, {row['benchmark']}",
        group=f"{experiment} {group}" if experiment else group,
        experiment=experiment,
        x=x,
        benchmark=partial(prepare_benchmark, cfg.copy()),
    )
    return row


def point(cfg: DictConfig) -> dict[str, Any]:
    """Measures a configuration, unless its folder in the store says that this has been done, its cost included where that is wanted."""
    from blink_exp.backbone.load import shipped
    from blink_exp.experiments import tokens

    folder, stored = in_store(cfg)
    finished = stored
    parts = parts_of(cfg)
    if finished is None:
        with locks.waited(parts):
            folder, stored, finished = measured(cfg, parts)
    else:
        tidy(parts)
    print(f"{'already done' if stored else 'measured'}: {folder}", flush=True)
    records = read(folder)
    model = cfg.model
    decided = any(r["layers"] for r in records)
    return {
        "method": finished["method"],
        "scores": {k: v["value"] for k, v in finished["scores"].items()},
        "stderr": {k: v["stderr"] for k, v in finished["scores"].items()},
        "tokens": tokens.realised(records, tokens.llm_depth(model.path, model.get("revision")) if decided else None),
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
        "scale": shipped(model.path) is not None,
        "commit": finished["commit"],
        "blink": finished["blink"],
        "folder": str(folder),
        "reused": stored is not None,
    }


def in_store(cfg: DictConfig) -> tuple[Path, dict[str, Any] | None]:
    """``place``, where a point that is there without the cost that is wanted counts as not there: the cost is no part of its hash."""
    folder, stored = place(cfg)
    whole = store.point_of(folder) if stored is not None else None
    stored = whole[0] if whole is not None else None
    if stored is not None and (stored.get("cost") or {}).get("prompts", 0) < min(cfg.cost, stored["samples"]):
        stored = None
    return folder, stored


def measured(cfg: DictConfig, parts: Path) -> tuple[Path, dict[str, Any] | None, dict[str, Any]]:
    """(folder, what the store has of the point by now, what it has in the end): another run may have finished it meanwhile."""
    from blink_exp.experiments.evaluate import measure

    folder, stored = in_store(cfg)
    finished = stored or measure(without_sweep_settings(cfg), folder, parts)
    if parts != folder:
        with contextlib.suppress(OSError):
            parts.rmdir()
    return folder, stored, finished


def tidy(parts: Path) -> None:
    """Removes what a run left that was killed between a point's last file and its last step."""
    left = [path for path in (parts / "records.part", parts / NOTE) if path.is_file()]
    if left:
        with contextlib.suppress(OSError), locks.free([parts]) as mine:
            for path in left if mine else []:
                path.unlink(missing_ok=True)


def without_sweep_settings(cfg: DictConfig) -> DictConfig:
    own = ("store", "force", "table", "figure", "report", "dashboard", "train", "objective", "token_price", "share")
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in own])


class Summary(Jobs):
    """Hydra callback: the table at the end of a multirun, on the terminal and as summary.csv and summary.md."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        guard(check_settings, config)
        super().on_multirun_start(config)

    def end(self, config: DictConfig) -> None:
        from blink_exp.experiments.tuning import searches

        if searches(config.hydra):
            return  # Search has the last word
        folder = Path(config.hydra.sweep.dir)
        rows = noted(config)
        common = name_points(rows)
        write_summary(rows, folder)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # Hydra's lacks the number of a job
        tracking.log_summary(rows, folder, results.plain(own))
        if common:
            print("at every point: " + " ".join(common))
        end(rows, "points")


def write_summary(rows: list[dict[str, Any]], folder: Path) -> None:
    """One line a point: what is its own among its overrides, status, scores, samples, seconds and folder."""
    import pandas as pd
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    frame = pd.DataFrame(
        [
            {"point": r["point"], "status": r["status"]}
            | {name: r.get("scores", {}).get(name) for name in names}
            | {k: r.get(k) for k in ("samples", "skipped_samples", "first_skipped", "seconds", "reused", "folder", "error")}
            for r in rows
        ]
    )
    results.write(folder / "summary.csv", frame.to_csv(index=False))
    head = [n for n in ("perception", "cognition", "total", "accuracy") if n in names] or names[:4]
    numbers = [*head, "samples", "skipped"]
    lines = ["| point | status | " + " | ".join(numbers) + " |", "|---|---|" + "---:|" * len(numbers)]
    table = Table(title="measured here")
    for column in ("point", "status", *numbers):
        table.add_column(column, overflow="fold")
    for row in rows:
        values = ["" if row.get("scores", {}).get(n) is None else f"{row['scores'][n]:.2f}" for n in head]
        values += ["" if row.get(n) is None else str(row[n]) for n in ("samples", "skipped_samples")]
        table.add_row(row["point"], row["status"], *values)
        lines.append(f"| {row['point']} | {row['status']} | " + " | ".join(values) + " |")
    results.write(folder / "summary.md", "\n".join(lines) + "\n")
    results.console().print(table)
    print(f"written to {folder}/summary.csv and summary.md")
