"""Inputs, outputs and files of a figure.

A figure of conf/figure names its maker under ``draw`` (a Hydra target with its own arguments). The maker takes a ``Study`` and returns a
``Drawing``: pictures, their data, and the paper's claims, each computed as numbers and judged on the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark
from blink_exp.core.method import Method
from blink_exp.documents.records import Record
from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import ClaimEntry
from blink_exp.evaluation.evaluator import prepare
from blink_exp.evaluation.records import read
from blink_exp.files import write_json
from blink_exp.settings.roots import EvaluateSettings

FORMATS = ("png", "svg", "pdf")
COLUMN = 3.4  # inches: the width of one column of a paper
PAGE = 7.0  # inches: of both
# Okabe and Ito's colour-blind-safe palette, in series order
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "blink_exp",
    "svg.fonttype": "path",
    "savefig.bbox": "tight",
    "text.parse_math": False,  # questions and answers hold dollars, and half a formula would end the figure
}
TIP = "tip:"  # prefix of an artist's gid that becomes a tooltip in the SVG
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Study:
    """The inputs of a figure.

    ``settings``: the figure's own (its overrides, then the user's), as evaluate.py takes them. ``rows``: its points, measured, in their
    order: ``point`` (label), ``series`` and ``x`` where the figure gives them, ``status``, and, where that is "done", what a table's rows
    hold (``scores``, ``stderr``, ``tokens``, ``folder`` with records.jsonl, ...).
    """

    name: str
    settings: EvaluateSettings
    rows: list[PointRun] = field(default_factory=list)

    def load(self) -> tuple[Backbone, Method, Benchmark]:
        """The model, method and benchmark of the figure's own settings."""
        return prepare(self.settings)

    @property
    def done(self) -> list[PointRun]:
        """The points that were measured."""
        return [row for row in self.rows if row["status"] == "done"]


def records_of(row: PointRun) -> list[Record]:
    """Per-sample records of a measured point."""
    return read(row["folder"])


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about its figure, and whether it holds here.

    ``said``: the claim, in our words. ``how``: how ``numbers`` are computed, on how many samples. ``holds``: None if undecided.
    """

    said: str
    how: str
    numbers: dict[str, float | None]
    holds: bool | None

    def entry(self) -> ClaimEntry:
        """What a figure's document holds of it."""
        return {"said": self.said, "how": self.how, "numbers": self.numbers, "holds": self.holds}


@dataclass(frozen=True)
class Drawing:
    """``pictures``: {file stem: figure}; ``data``: their numbers, JSON-ready; ``caption``: describes the picture and its axes."""

    pictures: dict[str, Figure]
    data: Mapping[str, object]
    claims: list[Claim]
    caption: str
    measured_on: str  # backbone, benchmark, samples


def write_drawing(drawing: Drawing, out: Path) -> dict[str, list[Path]]:
    """Writes every picture as PNG, SVG (with tooltips) and PDF, and data.json, to ``out``. Returns {stem: files}."""
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    for stem, picture in drawing.pictures.items():
        files[stem] = []
        for kind in FORMATS:
            path = out / f"{stem}.{kind}"
            # without dates and versions a figure of the same numbers is the same file
            metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}[kind]
            with plt.rc_context(STYLE):
                picture.savefig(path, dpi=200, metadata=metadata)
            if kind == "svg":
                add_tooltips(path)
            files[stem].append(path)
        plt.close(picture)
    claims = [claim.entry() for claim in drawing.claims]
    document = {"caption": drawing.caption, "measured_on": drawing.measured_on, "claims": claims, "data": drawing.data}
    write_json(out / "data.json", document)
    return files


def add_tooltips(path: Path) -> None:
    """Turns every SVG id "tip:TEXT" into a title element with that text, which browsers show as a tooltip."""
    ElementTree.register_namespace("", SVG.strip("{}"))
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    tree = ElementTree.parse(path)
    for k, element in enumerate(tree.iter()):
        name = element.get("id") or ""
        if name.startswith(TIP):
            element.set("id", f"tip{k}")
            title = ElementTree.Element(f"{SVG}title")
            title.text = re.sub(r"#\d+$", "", name.removeprefix(TIP))
            element.insert(0, title)
    tree.write(path, encoding="utf-8", xml_declaration=True)
