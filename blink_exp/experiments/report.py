"""The static page of a table: numbers, the saliency ratio by layer, and three images shown layer by layer. No script, no network."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from blink_exp.experiments import results

EXAMPLES = 3


def write_page(document: dict[str, Any], out: Path) -> Path:
    """Writes page.html and its pictures to ``out``. Pictures need the scale model's scenes; other backbones get the table alone."""
    from jinja2 import Environment, FileSystemLoader

    from blink_exp.experiments import tables

    figures = _figures(document, out)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    page = environment.get_template("table.html").render(
        document=document,
        names=list(document["columns"]),
        cells=tables.cells(document),
        measured_on=tables.measured_on(document),
        figures=[(title, text, base64.b64encode(path.read_bytes()).decode()) for title, text, path in figures],
        commits=sorted({str(row.get("commit")) for row in document["rows"] if row.get("commit")}),
    )
    results.write(out / "page.html", page)
    return out / "page.html"


def _figures(document: dict[str, Any], out: Path) -> list[tuple[str, str, Path]]:
    from omegaconf import OmegaConf

    from blink_exp.experiments import figures
    from blink_exp.experiments.evaluate import prepare
    from blink_exp.experiments.profile import profile
    from blink_exp.saliency import PatchGrid

    row = next((r for r in document["rows"] if r["status"] == "done" and r["point"] == "Blink / full"), None)
    if row is None:
        return []
    folder = Path(row["folder"])
    backbone, method, benchmark = prepare(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    assert method.policy is not None
    selected = list(method.policy.layers)
    found = profile(backbone, benchmark, limit=64)
    text = (
        "Attention of the last text token, untouched model. Line: mean share of the most salient patch. Dots: how often it is the patch "
        f"that holds the answer ({found['samples']} questions with an answer in one patch). Shaded: the layers where Blink acts."
    )
    made = [("Saliency ratio by layer", text, figures.rho_by_layer(found, selected, out / "rho_by_layer.png"))]
    grid = PatchGrid(method.policy.p, *backbone.grid)
    samples = {s.id: s for s in benchmark.samples()}
    pictures = []
    for k, record in enumerate(examples(folder / "records.jsonl")):
        path = figures.decisions(samples[record["id"]].image(), record, grid, out / f"example_{k + 1}.png")
        pictures.append(path)
        made.append(
            (f"Example {k + 1}", "Scan, expansion and drop by layer; tokens: visual and expanded ones that the layer works on.", path)
        )
    if pictures:
        figures.stack(pictures, out / "blink.png")  # the README's picture
    return made


def examples(records: Path) -> list[dict[str, Any]]:
    """Right answers in whose course an expansion was made and taken back, on different kinds of question; the nearest to that
    where there are too few."""
    rows = [json.loads(line) for line in records.read_text().splitlines()]

    def interest(r: dict[str, Any]) -> tuple[bool, bool, bool]:
        kinds = [s["decision"] for s in r["layers"] if s["effective"]]
        return ("expand" in kinds and "drop" in kinds, "expand" in kinds, r["correct"])

    chosen: list[dict[str, Any]] = []
    for r in sorted(rows, key=interest, reverse=True):
        if r["category"] not in {c["category"] for c in chosen}:
            chosen.append(r)
    return chosen[:EXAMPLES]
