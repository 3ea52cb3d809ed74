"""Tables as LaTeX: the made-up one row by row, and every published one, whose labels and footnotes bring all that needs escaping."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from support import made_up_table
from support.made_up_table import row

from blink_exp import reference
from blink_exp.reports import text


@pytest.fixture
def document() -> dict:
    return made_up_table.document()


def check_latex(source, columns):
    """Braces closed, every row with all its columns, nothing special left bare."""
    body = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\&%$#_{}]", "", body)  # without what is escaped and without line ends
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    assert not set("#~") & set(bare)
    assert not set("^_") & set(re.sub(r"\$[^$]*\$", "", bare))
    assert not re.search(r"(?<!\{!\}\{)%", bare)  # but for the one that ends the line of \resizebox
    assert body.isascii() or not set(body) & set(text.LATEX) - set("\\&%$#_{}~^<>|")
    rows = re.search(r"\\midrule\n(.*)\\bottomrule", body, re.S)[1].splitlines()
    for line in rows:
        assert line.endswith(r" \\") and not line.startswith(("[", "*"))
        assert len(re.findall(r"(?<!\\)&", line)) == columns, line
    spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", body)]
    rules = [(int(a), int(b)) for a, b in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body)]
    assert sum(spans) == columns and [b - a + 1 for a, b in rules] == spans
    assert rules[0][0] == 2 and rules[-1][1] == columns + 1
    for kind in ("table", "tabular", "minipage"):
        assert len(re.findall(rf"\\begin\{{{kind}\*?\}}", body)) == len(re.findall(rf"\\end\{{{kind}\*?\}}", body)) == 1
    return rows


def test_latex_row_by_row(document):
    rows = check_latex(text.latex(document), 5)
    assert rows[0] == r"none & 1505.70 & 1863.58$^{*}$ & 100.00 {\scriptsize $\pm$ 20} & 50.0 &  \\"
    assert rows[1].split(" & ")[3] == r"\textbf{102.50} {\scriptsize (+2.50$^{\dagger}$)}"
    assert rows[2].split(" & ")[:3] == [r"L=\{6-10\}", "", r"1849.74 {\scriptsize ($-$13.84)}"]
    assert rows[3].startswith("{}[broken] &")  # \\[...] would be a space of that height
    made = text.latex(document)
    assert r"modules \& thresholds" in made and r"discrepancy: tau\_exp \textbar{} 5 \%" in made
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-6}" in made and "resizebox" not in made
    assert "\n{}*: not printed" in made


def test_everything_special_is_escaped():
    assert text.escaped(r"a&b%c_d#e^f~g\h{i}$<|>") == (
        r"a\&b\%c\_d\#e\textasciicircum{}f\textasciitilde{}g\textbackslash{}h\{i\}\$\textless{}\textbar{}\textgreater{}"
    )
    assert text.escaped("w/o SGS ± τ ≥") == r"w/o SGS $\pm$ $\tau$ $\geq$"


def published_document(paper, table):
    """A document of published numbers alone: every label and footnote that a table can bring."""
    columns = {c: {"column": c, "digits": None} for c in table["columns"]}
    rows = [row(r["label"], published={c: r["values"].get(c) for c in columns}, missing=r.get("missing") or {}) for r in table["rows"]]
    return {
        "name": table["id"],
        "title": table["caption"],
        "published_on": table.get("backbone"),
        "note": "tau_exp > 0.5 & 50 %",
        "command": "python sweep.py",
        "scale": True,
        "footnotes": table.get("notes") or [],
        "published_columns": columns,
        "groups": [],
        "rows": rows,
    }


PUBLISHED = [(paper, table) for paper in ("blink", "hero") for table in reference.published(paper)["tables"]]


@pytest.mark.parametrize(("paper", "table"), PUBLISHED, ids=[table["id"] for _, table in PUBLISHED])
def test_every_published_table_becomes_latex(paper, table):
    document = published_document(paper, table)
    source = text.latex(document)
    assert len(check_latex(source, len(table["columns"]))) == len(table["rows"])
    assert ("resizebox" in source) == (len(table["columns"]) > text.TIGHT)


def test_latex_compiles(document, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine")
    tables = [text.latex(document), *(text.latex(published_document(*known)) for known in PUBLISHED)]
    head = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n\\begin{document}\n"
    (tmp_path / "all.tex").write_text(head + "\n\\clearpage\n".join(tables) + "\n\\end{document}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
