"""The static page of a table: what it is about, the numbers, and pictures. No script, no network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from blink_exp.cli import one_line
from blink_exp.errors import UserError, nearest
from blink_exp.experiments import results

ABOUT = {
    "blink": "Blink looks, before each of a few middle layers, at which patch of the image the last text token attends to. Where the focus "
    "is sharp it expands that patch into more tokens; where the focus is gone it drops them again.",
    "hero": "HERO drops visual tokens before the language model. Tiles that resemble the thumbnail, or fit the question, share out the "
    "budget; inside a view those tokens stay that CLIP's CLS token attends to, at early layers in tiles and at a late one in thumbnails.",
}


def write_page(document: dict[str, Any], out: Path) -> Path:
    """Writes page.html and its pictures to ``out``. The table's ``figures`` names them (see ``pictures.MAKERS``)."""
    from jinja2 import Environment, FileSystemLoader

    from blink_exp.experiments import tables

    figures = make_figures(document, out)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    page = environment.get_template("table.html").render(
        document=document,
        about=ABOUT.get(document.get("paper", ""), ""),
        said=list(document["published_columns"]),
        here=list(document["measured_columns"]),
        cells=tables.cells(document),
        measured_on=tables.measured_on(document),
        figures=[(title, text, path and base64.b64encode(path.read_bytes()).decode()) for title, text, path in figures],
        commits=sorted({str(row.get("commit")) for row in document["rows"] if row.get("commit")}),
    )
    results.write(out / "page.html", page)
    return out / "page.html"


def make_figures(document: dict[str, Any], out: Path) -> list[tuple[str, str, Path | None]]:
    """(title, caption, PNG file) of each picture; None in place of a picture that cannot be made, its caption saying why."""
    from blink_exp.experiments.pictures import MAKERS

    names = document.get("figures", [])
    for name in names:
        if name not in MAKERS:
            raise UserError(f"figures holds {name}, which is no picture; {nearest(name, MAKERS)}")
    made: list[tuple[str, str, Path | None]] = []
    for name in names:
        try:
            made += MAKERS[name](document, out)
        except (UserError, OSError) as error:
            made.append((name, f"Left out: {one_line(error)}", None))
    return made
