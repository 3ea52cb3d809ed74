"""``python -m blink_exp parity``: the untouched model on every benchmark beside what others print for it, with one verdict per row.

Run it first on a published backbone: a method's gain of one point means nothing if the untouched model is two points off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blink_exp import markdown as md
from blink_exp import reference
from blink_exp.backbone.load import check_there
from blink_exp.documents.parity import ParityDocument, ParityPoint, ParityRow, ParityVerdict
from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError, nearest
from blink_exp.files import write_json, write_text
from blink_exp.reports.console import show_table
from blink_exp.settings.doors import command_line
from blink_exp.settings.roots import ParitySettings
from blink_exp.studies.plan import command_line_overrides, measured_run

CHECK = "system prompt, pad or crop, OCR tokens, dtype, token ids around the image, image processor"  # in this order
Printed = Mapping[str, float]  # by source, and the ``band`` that a measured number has to lie in, and its ``center``


def run_parity(settings: ParitySettings, out: Path) -> ParityDocument:
    """Measures all ``points`` and writes parity.md and parity.json to ``out``. Finished rows are taken from the store."""
    from hydra.core.hydra_config import HydraConfig

    model = HydraConfig.get().runtime.choices["model"]
    vanilla = reference.vanilla()
    if model not in vanilla["models"]:
        raise UserError(f"nobody prints numbers for model={model}; {nearest(model, vanilla['models'])} (a folder: add model.path=...)")
    check_there(**settings.model)  # before fifteen rows say the same
    user_overrides = command_line_overrides()
    rows: list[ParityRow] = []
    for point in settings.points:
        printed = vanilla["models"][model].get(point["id"], {})
        print(f"[{len(rows) + 1}/{len(settings.points)}] {point['label']}", flush=True)
        words = [*settings.overrides, *point["overrides"], *point.get("only", {}).get(model, [])]
        run: Any = measured_run(settings, words, user_overrides, point["label"])
        published = {s: printed[s] for s in vanilla["sources"] if s in printed}
        row: ParityRow = {"id": point["id"], "published": published} | run | judged(run, point, printed)
        rows.append(row)
    document: ParityDocument = {
        "title": settings.title,
        "model": model,
        "backbone": next((r["backbone"] for r in rows if "backbone" in r), None),
        "command": command_line("parity", user_overrides),
        "rows": rows,
    }
    write_json(out / "parity.json", document)
    write_text(out / "parity.md", markdown(document))
    show(document)
    print(f"written to {out}/parity.md and parity.json")
    if all(row["status"] == "failed" for row in rows):
        raise UserError(f"no row could be measured, first {rows[0]['point']}: {rows[0]['error']}")
    return document


def judged(row: PointRun, point: ParityPoint, printed: Printed) -> ParityVerdict:
    """What a run says beside the numbers ``printed`` for its ``point``."""
    if row["status"] == "failed":
        return {"measured": None, "verdict": f"not measured: {row['error']}"}
    value, error = row["scores"].get(point["score"]), row["stderr"].get(point["score"])
    if value is None:
        why = f"no score: none of {row['samples']} samples counts for {point['score']}; see {row['folder']}"
        return {"measured": None, "verdict": f"scored elsewhere: hand in {row['folder']}" if row.get("files") else why}
    center = printed.get("center", next((printed[s] for s in reference.vanilla()["sources"] if s in printed), None))
    difference = None if center is None else value - center
    return {"measured": value, "stderr": error, "difference": difference, "verdict": verdict(row["samples"], point, printed, value, center)}


def verdict(samples: int, point: ParityPoint, printed: Printed, value: float, center: float | None) -> str:
    if samples < point["rows"]:
        return f"only {samples} of {point['rows']} rows: no verdict"
    if point.get("compares") is False:
        return point["why"]
    if center is None or "band" not in printed:
        return "no band" if center is not None else "nobody prints it"
    inside = abs(value - center) <= printed["band"]
    return f"within {center:g} ± {printed['band']:g}" if inside else f"OUTSIDE {center:g} ± {printed['band']:g}; check {CHECK}"


def cells(document: ParityDocument) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text; unmeasured and unpublished cells are empty."""
    sources = reference.vanilla()["sources"]
    head = ["", *[f"{name} (published)" for name in sources.values()], "measured here", "difference", "rows", "skipped", "verdict"]
    body = []
    for row in document["rows"]:
        measured, error = row["measured"], row.get("stderr")
        body.append(
            [
                row["point"],
                *(f"{row['published'][s]:g}" if s in row["published"] else "" for s in sources),
                "" if measured is None else f"{measured:.2f}" + (f" ± {error:.2f}" if isinstance(error, float) else ""),
                "" if row.get("difference") is None else f"{row['difference']:+.2f}",
                str(row.get("samples", "")),
                str(row.get("skipped_samples", "")),
                row["verdict"],
            ]
        )
    return head, body


def markdown(document: ParityDocument) -> str:
    """The text of parity.md: the table, labelled published and measured, and the command."""
    head, body = cells(document)
    return "\n".join(
        [
            f"**{document['title']}**",
            "",
            f"published for {document['model']}; measured here on {document['backbone'] or 'nothing'} (value ± standard error).",
            "",
            md.table(head, body, left=(0, len(head) - 1)),
            "",
            f"`{document['command']}`",
            "",
        ]
    )


def show(document: ParityDocument) -> None:
    """Prints the table on the terminal."""
    head, body = cells(document)
    show_table(head, body, f"{document['title']}: {document['model']}", right=head[1:-1])
