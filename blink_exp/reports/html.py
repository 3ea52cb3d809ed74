"""Pages: one of each table or figure, and report.html, which gathers all. Static, self-contained, no script, no network.

Published numbers, numbers measured on the scale model and numbers measured on another, named backbone stand in columns of their own, told
apart by heading, colour and words; a table that was measured on two models stands twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blink_exp import reference
from blink_exp.documents.tables import Document, FigureDocument
from blink_exp.errors import UserError, flat
from blink_exp.files import read_object, write_text
from blink_exp.reports.entries import PAPERS, Embedded, anchor, citation, entry
from blink_exp.reports.entry_types import Entry
from blink_exp.settings.doors import command_name

ABOUT = {
    "blink": "Blink looks, before each of a few middle layers, at which patch of the image the last text token attends to. Where the focus "
    "is sharp it expands that patch into more tokens; where the focus is gone it drops them again.",
    "hero": "HERO drops visual tokens before the language model. Tiles that resemble the thumbnail, or fit the question, share out the "
    "budget; inside a view those tokens stay that CLIP's CLS token attends to, at low-to-middle layers in tiles, at a higher one in the "
    "thumbnail.",
}


def page(document: Document, folder: Path, embedded: Iterable[tuple[FigureDocument, Path]] = ()) -> Path:
    """Writes page.html of one table or figure to its folder and returns its path.

    ``embedded``: (document, folder) of figures that are shown below a table; one that could not be drawn says why under "error".
    """
    content = entry(document, folder, folder, list(embedded))
    about = ABOUT.get(document.get("paper") or "", "")
    return _write(folder / "page.html", _render("page.html", entry=content, about=about, title=document["title"]))


def gather(root: Path) -> Path:
    """Writes root/report.html from every root/ID/MODEL/table.json and figure.json, and returns its path.

    What cannot be read is named on the page and left out: a file of another version must not cost the rest. Raises UserError where
    nothing is left.
    """
    documents: list[tuple[Document, Path]] = []
    errors: list[str] = []
    for path in sorted(root.glob("*/*/table.json")) + sorted(root.glob("*/*/figure.json")):
        try:
            documents.append((_read(path), path.parent))
        except UserError as error:
            errors.append(str(error))
    if not documents:
        nothing = f"{root} holds no table and no figure; measure one first: {command_name('sweep')} table=blink_table2"
        raise UserError(errors[0] if errors else nothing)
    documents.sort(key=lambda pair: _order(*pair))
    titles = {anchor(document["name"], folder): document["title"] for document, folder in documents}
    entries = []
    for document, folder in documents:
        try:
            entries.append(entry(document, folder, root, _inside(document, folder), titles))
        except UserError as error:
            errors.append(str(error))
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # the right keys, and something else behind them
            path = folder / f"{document['kind']}.json"
            reason = f"{type(error).__name__}: {flat(error, 80)}"
            errors.append(f"{path} is of another shape ({reason}); remove it, or measure it again with the same command")
    if not entries:
        raise UserError(errors[0])
    title = "Blink and HERO: tables and figures"
    text = _render("report.html", papers=_papers(entries), models=_models(entries), lost=errors, title=title)
    return _write(root / "report.html", text)


def _read(path: Path) -> Any:
    """The document in a file, with the keys that a page needs checked."""
    required: dict[str, type | tuple[type, ...]] = {"name": str, "title": str}
    required |= {"published_columns": dict, "groups": list, "rows": list} if path.stem == "table" else {}
    try:
        return {"kind": path.stem} | read_object(path, required, "")
    except UserError:
        raise UserError(f"{path} is no {path.stem} of this version; remove it, or measure it again with the same command") from None


def _inside(document: Document, folder: Path) -> Embedded:
    """Figures that were drawn from a table's own points: they lie in the table's folder."""
    paths = [folder / figure / "figure.json" for figure in document.get("figures") or []]
    return [(_read(path), path.parent) for path in paths if path.is_file()]


def _order(document: Document, folder: Path) -> tuple[Any, ...]:
    """By paper, tables before figures, by number, the scale model before other backbones."""
    papers, paper = list(PAPERS), document.get("paper") or ""
    rank = papers.index(paper) if paper in papers else len(papers)
    counted = [(int(w), "") if w.isdigit() else (-1, w) for w in re.split(r"(\d+)", document["name"])]
    return rank, paper, document["kind"] != "table", counted, not document.get("scale"), document.get("model") or "", str(folder)


def _papers(entries: list[Entry]) -> list[dict[str, object]]:
    """Entries by paper and by name, and the paper's tables and figures that are absent."""
    out: list[dict[str, object]] = []
    for paper in dict.fromkeys(e["paper"] for e in entries):
        of_paper = [e for e in entries if e["paper"] == paper]
        names = list(dict.fromkeys(e["name"] for e in of_paper))
        out.append(
            {
                "id": f"paper-{paper or 'other'}",
                "title": PAPERS.get(paper, "Beside the papers"),
                "about": ABOUT.get(paper, ""),
                "names": [[e for e in of_paper if e["name"] == name] for name in names],
                "absent": _absent(paper, {e["source"] for e in of_paper}),
            }
        )
    return out


def _absent(paper: str, sources: set[str]) -> list[str]:
    """A paper's tables and plotted figures without an entry."""
    if paper not in PAPERS:
        return []
    published = reference.published(paper)
    expected = [t["id"] for t in published["tables"]] + [f["id"] for f in published["figures"] if f["experiment"].get("points")]
    return [citation(source).partition(", ")[2] for source in expected if source not in sources]


def _models(entries: list[Entry]) -> list[dict[str, str]]:
    """The models behind the entries, scale models first."""
    sides = {e["label"]: e["side"] for e in entries if e["label"]}
    return [{"label": label, "side": side} for label, side in sorted(sides.items(), key=lambda item: (item[1] != "scale", item[0]))]


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(**values) + "\n"
