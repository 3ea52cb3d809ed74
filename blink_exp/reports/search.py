"""The report of a search: the setting that was chosen beside the one it started from, on both parts of the benchmark."""

from __future__ import annotations

import re
from typing import Literal

from blink_exp import markdown
from blink_exp.documents.searches import SearchDocument, SearchPart
from blink_exp.reports.console import wide_console

NAMES = {"default": "without the search", "best": "the best"}
PARTS: tuple[Literal["validation", "test"], ...] = ("validation", "test")
HEAD = ("", "validation", "test", "visual tokens a layer (test)")


def text(document: SearchDocument) -> str:
    """tuning.md."""
    lines = [
        f"**{markdown.escaped(title(document))}**",
        "",
        *remarks(document),
        "",
        markdown.table(HEAD, (map(markdown.escaped, row) for row in cells(document))),
        "",
        *(f"- {NAMES[name]}: {markdown.code(setting['command'])}" for name, setting in document["settings"].items()),
    ]
    return "\n".join(lines) + "\n"


def show(document: SearchDocument) -> None:
    """The same table on the terminal."""
    from rich.table import Table

    table = Table(title=title(document))
    for column in HEAD:
        table.add_column(column, justify="right" if column else "left")
    for row in cells(document):
        table.add_row(*row)
    console = wide_console()
    console.print(table)
    for line in remarks(document):
        print(line)


def title(document: SearchDocument) -> str:
    return f"{document['objective']} on {document['benchmark']}, measured here on {document['backbone']}"


def cells(document: SearchDocument) -> list[list[str]]:
    """Rows of text: the setting, its scores on both parts with their standard errors, its tokens."""
    rows = []
    for name, setting in document["settings"].items():
        tokens = setting["test"]["tokens"]
        short = re.sub(r"\d+\.\d{5,}", lambda match: f"{float(match[0]):.4g}", setting["point"])  # the command has every digit
        point = f" ({short})" if short else ""
        scores = [cell(setting[part], document["token_price"]) for part in PARTS]
        rows.append([NAMES[name] + point, *scores, "" if tokens is None else f"{tokens:.0f}"])
    return rows


def cell(result: SearchPart, price: float) -> str:
    text = f"{result['score']:.2f}" + ("" if not result["stderr"] else f" ± {result['stderr']:.2f}")
    return text + (f", worth {result['worth']:.2f}" if price else "")


def remarks(document: SearchDocument) -> list[str]:
    """How to read the table, and whether the difference is more than chance."""
    best = document["settings"]["best"]
    counts = f"validation: {best['validation']['samples']} questions, test: {best['test']['samples']} on other images."
    out = [
        f"{counts} The best of {document['points']} points was chosen on validation, where its score is therefore too high; test is to be"
        " reported."
    ]
    if best["validation"]["worth"] <= document["settings"]["default"]["validation"]["worth"]:
        out.append("No point was better on validation than the command without its search: more points, or other limits, may find one.")
    if document["token_price"]:
        out.append(f"worth: the score less {document['token_price']} for every visual token that a layer works on.")
    lacking = [
        (NAMES[name], part, s[part]["skipped"]) for name, s in document["settings"].items() for part in PARTS if s[part].get("skipped")
    ]
    if lacking:
        out.append(
            "Skipped, as they could not be read: " + ", ".join(f"{n} questions of {part}, {name}" for name, part, n in lacking) + "."
        )
    if document["failed"]:
        out.append(f"{document['failed']} of {document['points']} points failed (summary.csv).")
    difference = document["difference"]
    if difference is not None:
        interval = "" if difference["low"] is None else f", 95 % interval {difference['low']:.2f} to {difference['high']:.2f}"
        p = "" if difference["p"] is None else f", p = {difference['p']:.3f}"
        out.append(
            f"test, the best less without the search: {difference['delta']:+.2f}{interval}{p} "
            f"({difference['test']}, {difference['n']} questions)."
        )
    return out
