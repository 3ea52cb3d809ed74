"""A table as files: Markdown to read, CSV of everything unrounded, LaTeX (booktabs) to paste into a paper."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from blink_exp import markdown as md
from blink_exp.documents.runs import Measure
from blink_exp.documents.tables import TableDocument, TableRow
from blink_exp.files import write_text
from blink_exp.reports import cells, effects, legend
from blink_exp.reports.cells import DERIVED, PUBLISHED, SIGNIFICANT, Cell

TIGHT = 8  # columns of numbers; above, a LaTeX table spans the page and is scaled to its width
LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "τ": r"$\tau$",
    "ρ": r"$\rho$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
}


def write(document: TableDocument, folder: Path) -> list[Path]:
    """Writes table.md, table.csv and table.tex to ``folder`` and returns them."""
    contents = {"table.md": markdown(document), "table.csv": csv(document), "table.tex": latex(document)}
    for name, content in contents.items():
        write_text(folder / name, content)
    return [folder / name for name in contents]


def markdown(document: TableDocument) -> str:
    """The table with its legend above, footnotes and command below. Best values bold, differences in brackets behind the value."""
    note = document.get("note")
    heads = [f"{md.escaped(c.heading)} ({cells.tag(document, c)})" for c in cells.columns(document)]
    footnotes = [md.escaped(f"{footnote['kind']}: {footnote['text']}") for footnote in document.get("footnotes") or []]
    lines = [
        f"**{md.escaped(document['title'])}**",
        "",
        *(f"- {md.escaped(line)}" for line in legend.lines(document)),
        *(["", md.escaped(note)] if note else []),
        "",
        md.table(["", *heads], ([md.escaped(label), *map(_marked_down, row_cells)] for label, row_cells in cells.rows(document))),
        "",
        *_effects(document),
        *(f"- {md.escaped(line)}" for line in legend.gaps(document)),
        *(f"- {line}" for line in footnotes),
        *([""] if legend.gaps(document) or footnotes else []),
        md.code(document["command"]),
    ]
    return "\n".join(lines) + "\n"


def _effects(document: TableDocument) -> list[str]:
    """The table of region effects, and what they allow to say; nothing without any."""
    rows = effects.lines(document)
    if not rows:
        return []
    table = md.table(["", *effects.HEADINGS], ([md.escaped(label), *map(md.escaped, row)] for label, row in rows))
    return [effects.MEANING, "", table, "", *map(md.escaped, document.get("conclusion", [])), ""]


def _marked_down(cell: Cell) -> str:
    text = f"**{md.escaped(cell.text)}**" if cell.best else md.escaped(cell.text)
    return text + r"\*" * (DERIVED in cell.mark) + (f" ({cell.delta}{_dagger(cell)})" if cell.delta else "")


def _dagger(cell: Cell) -> str:
    return SIGNIFICANT * (SIGNIFICANT in cell.mark)


def csv(document: TableDocument) -> str:
    """One line for each point, group and column, unrounded and in the column's unit.

    ``published`` and ``measured`` are columns of their own. A line of a benchmark also has the published value that its column belongs
    beside; lines of the group "published" have nothing else. Conjectures are not there.
    """
    import pandas

    lines = [line for row in document["rows"] for line in [*_published_lines(document, row), *_measured_lines(document, row)]]
    frame = pandas.DataFrame(lines, columns=CSV).astype({"samples": "Int64", "skipped": "Int64", "n": "Int64"})
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


MEASURES: tuple[Measure, ...] = ("delta", "low", "high", "detectable")
CSV = [
    *("table", "point", "group", "measured_on", "column"),
    *("published", "published_delta", "derived", "missing"),
    *("measured", "stderr", "samples", "skipped", "baseline", "delta", "p", "test", "n", "low", "high", "detectable"),
    *("status", "error", "command"),
]


def _published_lines(document: TableDocument, row: TableRow) -> list[dict[str, object]]:
    return [
        {"table": document["name"], "point": row["point"], "group": PUBLISHED, "column": heading, "baseline": row.get("baseline")}
        | _published_fields(row, heading)
        for heading in document["published_columns"]
    ]


def _published_fields(row: TableRow, heading: str | None) -> dict[str, object]:
    if heading is None:
        return {}
    return {
        "published": (row.get("published") or {}).get(heading),
        "published_delta": (row.get("published_deltas") or {}).get(heading),
        "derived": heading in (row.get("derived") or []),
        "missing": (row.get("missing") or {}).get(heading),
    }


def _measured_lines(document: TableDocument, row: TableRow) -> list[dict[str, object]]:
    out = []
    for group in document["groups"]:
        run = (row.get("runs") or {}).get(group["benchmark"])
        if run is None:
            continue
        for heading, column in group["columns"].items():
            per, number = column.get("per", 1), cells.value(run, column["value"])
            stderr = None if number is None else cells.error(run, column["value"])
            test = cells.paired_test(row, group["benchmark"], heading)
            out.append(
                {"table": document["name"], "point": row["point"], "group": group["benchmark"], "column": heading}
                | _published_fields(row, column.get("published"))
                | {"measured_on": group["label"], "baseline": row.get("baseline")}
                | {k: None if v is None else v / per for k, v in (("measured", number), ("stderr", stderr))}
                | {k: cells.in_unit(test, k, per) for k in MEASURES}
                | {k: test.get(k) for k in ("p", "test", "n")}
                | {k: run.get(k) for k in ("samples", "status", "error", "command")}
                | {"skipped": run.get("skipped_samples")}
            )
    return out


def latex(document: TableDocument) -> str:
    """A table environment for booktabs: groups of columns under rules of their own, best in bold, differences small, notes below.

    It needs booktabs, and graphicx where the table is wide; its first line says so.
    """
    heads = cells.columns(document)
    groups = [(tag, len(list(members))) for tag, members in groupby(cells.tag(document, c) for c in heads)]
    wide = len(heads) > TIGHT
    tabular = [
        r"\begin{tabular}{l" + "r" * len(heads) + "}",
        r"\toprule",
        " & " + " & ".join(rf"\multicolumn{{{n}}}{{c}}{{{escaped(tag)}}}" for tag, n in groups) + r" \\",
        " ".join(_rules([n for _, n in groups])),
        " & " + " & ".join(escaped(c.heading) for c in heads) + r" \\",
        r"\midrule",
        *(" & ".join([_first(label), *map(_latex_cell, members)]) + r" \\" for label, members in cells.rows(document)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    note = document.get("note")
    notes = [*legend.lines(document), *([note] if note else []), *legend.gaps(document)]
    notes += [f"{footnote['kind']}: {footnote['text']}" for footnote in document.get("footnotes") or []]
    kind = "table*" if wide else "table"
    lines = [
        f"% {' '.join(document['command'].split())}",
        r"% needs \usepackage{booktabs}" + (r" and \usepackage{graphicx}" if wide else ""),
        rf"\begin{{{kind}}}[t]",
        r"\centering",
        rf"\caption{{{escaped(document['title'])}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', document['name'])}}}",
        *([r"\resizebox{\textwidth}{!}{%", *tabular[:-1], tabular[-1] + "}"] if wide else tabular),
        r"\par\smallskip",
        r"\begin{minipage}{\linewidth}\scriptsize\raggedright",
        "\\\\\n".join(_first(note) for note in notes),
        r"\end{minipage}",
        rf"\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Text that LaTeX prints as it stands: w/o 5 % \& L={6-10} included."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _first(text: str) -> str:
    r"""Text behind a line's end: \\ would take a bracket or a star there for its own."""
    return ("{}" if text.startswith(("[", "*")) else "") + escaped(text)


def _rules(widths: list[int]) -> list[str]:
    starts = [2 + sum(widths[:k]) for k in range(len(widths))]
    return [rf"\cmidrule(lr){{{start}-{start + n - 1}}}" for start, n in zip(starts, widths, strict=True)]


def _latex_cell(cell: Cell) -> str:
    """A cell: the value (bold where it is best), its error and its difference small."""
    number, _, error = cell.text.partition(" ± ")
    value = escaped(re.sub(r"^-(?=[\d.])", "−", number))
    return (
        (rf"\textbf{{{value}}}" if cell.best else value)
        + r"$^{*}$" * (DERIVED in cell.mark)
        + (rf" {{\scriptsize $\pm$ {escaped(error)}}}" if error else "")
        + (rf" {{\scriptsize ({escaped(cell.delta.replace('-', '−'))}" + r"$^{\dagger}$" * bool(_dagger(cell)) + ")}" if cell.delta else "")
    )
