"""sweep.py: many configurations, each measured once, and one table of all."""

from __future__ import annotations

import logging
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from blink_exp import tracking
from blink_exp.cli import one_line
from blink_exp.errors import UserError
from blink_exp.experiments import results, store
from blink_exp.experiments.records import read
from blink_exp.experiments.together import place

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Any:
    """One job of a multirun, which returns what a search raises; without -m, all points of ``table`` and ``figure``, or a dashboard."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from blink_exp.experiments.tuning import prepared, returned

    results.encode_anything()
    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
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
    return returned(row, cfg)


def guarded(cfg: DictConfig, label: str, experiment: str | None = None, x: float | None = None) -> dict[str, Any]:
    """``point``, logged, with a failure as a row of the table (its traceback logged) instead of the end of the sweep. ``experiment``: id of
    the table or figure, ``x``: where the point stands on the figure's axis."""
    from blink_exp.experiments.evaluate import prepare_benchmark

    try:
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
    from blink_exp.experiments.evaluate import measure

    folder, stored = place(cfg)
    whole = store.point_of(folder) if stored is not None else None
    stored, records = whole or (None, [])
    if stored is not None and (stored.get("cost") or {}).get("prompts", 0) < min(cfg.cost, stored["samples"]):
        stored = None  # the cost is no part of a point's hash, so a point may be there without it
    finished = stored or measure(without_sweep_settings(cfg), folder)
    print(f"{'already done' if stored else 'measured'}: {folder}", flush=True)
    records = records if stored else read(folder)
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
        "seconds": finished["seconds"],
        "together": finished.get("together"),
        "backbone": finished["backbone"],
        "scale": shipped(model.path) is not None,
        "commit": finished["commit"],
        "blink": finished["blink"],
        "folder": str(folder),
        "reused": stored is not None,
    }


def without_sweep_settings(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in ("store", "force", "table", "figure", "report", "dashboard", "train", "objective", "token_price", "share"):
            cfg.pop(key, None)
    return cfg


class Summary(Callback):
    """Hydra callback: the table at the end of a multirun, on the terminal and as summary.csv and summary.md."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from blink_exp.experiments.tuning import searches

        if searches(config.hydra):
            return  # Search has the last word
        folder = Path(config.hydra.sweep.dir)
        rows = store.jobs_of(folder)
        if not rows:
            return
        common = set(rows[0]["overrides"]).intersection(*(row["overrides"] for row in rows)) if len(rows) > 1 else set()
        for row in rows:
            row["point"] = " ".join(word for word in row["overrides"] if word not in common)
        write_summary(rows, folder)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # Hydra's lacks the number of a job
        tracking.log_summary(rows, folder, results.plain(own))
        if common:
            print("at every point: " + " ".join(sorted(common)))
        failed = [row for row in rows if row["status"] == "failed"]
        if failed:
            print(f"error: {len(failed)} of {len(rows)} points failed, first {failed[0]['point']}: {failed[0]['error']}", file=sys.stderr)
            sys.exit(2)


def write_summary(rows: list[dict[str, Any]], folder: Path) -> None:
    """One line a point: what is its own among its overrides, status, scores, samples, seconds and folder."""
    import pandas as pd
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    frame = pd.DataFrame(
        [
            {"point": r["point"], "status": r["status"]}
            | {name: r.get("scores", {}).get(name) for name in names}
            | {k: r.get(k) for k in ("samples", "skipped_samples", "seconds", "reused", "folder", "error")}
            for r in rows
        ]
    )
    results.write(folder / "summary.csv", frame.to_csv(index=False))
    head = [n for n in ("perception", "cognition", "total", "accuracy") if n in names] or names[:4]
    lines = ["| point | status | " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(head)]
    table = Table(title="measured here")
    for column in ("point", "status", *head):
        table.add_column(column, overflow="fold")
    for row in rows:
        values = ["" if row.get("scores", {}).get(n) is None else f"{row['scores'][n]:.2f}" for n in head]
        table.add_row(row["point"], row["status"], *values)
        lines.append(f"| {row['point']} | {row['status']} | " + " | ".join(values) + " |")
    results.write(folder / "summary.md", "\n".join(lines) + "\n")
    results.console().print(table)
    print(f"written to {folder}/summary.csv and summary.md")
