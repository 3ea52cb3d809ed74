"""What a table says of a row beside its own scores: in comparison with other rows, on the same questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blink_exp.benchmarks.base import mean
from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import TableRow
from blink_exp.evaluation.records import read


def split(runs: Iterable[PointRun], label: str) -> None:
    """Adds to the scores of the runs ``right_too`` and ``wrong_there``: their accuracy in per cent among the questions that the point
    ``label`` answers right, and among those it answers wrong. Its own scores would be 100 and 0 and are omitted.

    Questions are matched by id; those skipped by either point do not count. Nothing is added if ``label`` failed.
    """
    runs = list(runs)
    base = next((run for run in runs if run["point"] == label and run["status"] == "done"), None)
    if base is None:
        return
    right = _right(base)
    for run in runs:
        if run is base or run["status"] != "done":
            continue
        hits = _right(run)
        for name, expected in (("right_too", True), ("wrong_there", False)):
            score = mean(hit for sample, hit in hits.items() if sample in right and right[sample] is expected)
            if score.samples:
                run["scores"][name], run["stderr"][name] = score.value, score.stderr


def _right(run: PointRun) -> dict[str, bool]:
    """{sample id: whether the answer is correct} of a measured point."""
    return {r["id"]: bool(r["correct"]) for r in read(run["folder"])}


def add_shares(rows: Sequence[TableRow], benchmark: str, untouched: str) -> None:
    """Gives every run on a benchmark ``share``: its scores in per cent of those of the row ``untouched``."""
    done = {row["point"]: run for row in rows if (run := row["runs"].get(benchmark)) is not None and run["status"] == "done"}
    if untouched not in done:
        return
    whole = {name: score for name, score in done[untouched]["scores"].items() if score}
    for run in done.values():
        run["share"] = {name: 100 * score / whole[name] for name, score in run["scores"].items() if score is not None and name in whole}


def best_control(rows: Sequence[TableRow], row: TableRow, benchmark: str, score: str) -> TableRow | None:
    """The control at the budget of ``row`` with the best score on a benchmark. The choice favours the controls, as it is made on the
    questions of the comparison. None for a control, and where none was measured."""
    if row.get("control") or row.get("budget") is None:
        return None
    rivals = [r for r in rows if r.get("control") and r.get("budget") == row["budget"] and benchmark in r["runs"]]
    scores = {r["point"]: r["runs"][benchmark]["scores"].get(score) for r in rivals if r["runs"][benchmark]["status"] == "done"}
    values = {point: value for point, value in scores.items() if value is not None}
    return next((r for r in rivals if values and r["point"] == max(values, key=values.__getitem__)), None)
