"""The table of a multirun's points: on the terminal, as summary.csv and as summary.md."""

from __future__ import annotations

from pathlib import Path

from blink_exp import markdown
from blink_exp.documents.runs import PointRun
from blink_exp.files import write_text
from blink_exp.reports.console import show_table

SPENT = {"visual tokens in": ("entering", 0), "visual tokens a layer": ("layer", 0), "GFLOPs": ("gflops", 2)}  # where a method drops tokens


def write_summary(rows: list[PointRun], folder: Path) -> None:
    """One row per point: its label (overrides not shared by all), status, scores, samples, seconds and folder."""
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    spent = SPENT if any(row.get("budget") for row in rows) else {}
    frame = pd.DataFrame(
        [
            {"point": r["point"], "status": r["status"]}
            | {name: r.get("scores", {}).get(name) for name in names}
            | {heading: (r.get("tokens") or {}).get(key) for heading, (key, _) in spent.items()}
            | {k: r.get(k) for k in ("samples", "skipped_samples", "first_skipped", "seconds", "reused", "folder", "error")}
            for r in rows
        ]
    )
    write_text(folder / "summary.csv", frame.to_csv(index=False))
    head = [n for n in ("perception", "cognition", "total", "accuracy") if n in names] or names[:4]
    numbers = [*head, *spent, "samples", "skipped"]
    lines = []
    for row in rows:
        values = ["" if row.get("scores", {}).get(n) is None else f"{row['scores'][n]:.2f}" for n in head]
        counts = [((row.get("tokens") or {}).get(key), digits) for key, digits in spent.values()]
        values += ["" if count is None else f"{count:.{digits}f}" for count, digits in counts]
        values += ["" if row.get(n) is None else str(row[n]) for n in ("samples", "skipped_samples")]
        lines.append((row["point"], row["status"], *values))
    headings = ("point", "status", *numbers)
    table = markdown.table([*map(markdown.escaped, headings)], (map(markdown.escaped, line) for line in lines), left=(0, 1))
    write_text(folder / "summary.md", table + "\n")
    show_table(headings, lines, "measured here")
    print(f"written to {folder}/summary.csv and summary.md")
