"""A table on the terminal."""

from __future__ import annotations

from blink_exp.documents.tables import FigureDocument, TableDocument
from blink_exp.reports import cells, effects, legend
from blink_exp.reports.cells import DERIVED, PUBLISHED, SIGNIFICANT, Cell, Column
from blink_exp.reports.console import wide_console
from blink_exp.reports.entries import VERDICTS, number

WIDE = 10  # columns of numbers; above, every group gets tables of its own
FILE_WIDTH = 190  # letters of a line in a file or a pipe, where a table is wide


def show(document: TableDocument) -> None:
    """Prints the table, its legend and what is missing; a wide table as several, none of which holds published and measured numbers."""
    from rich.table import Table
    from rich.text import Text

    heads, body, console = cells.columns(document), cells.rows(document), wide_console()
    tables = parts(heads)
    if len(tables) > 1 and not console.is_terminal:
        console.width = FILE_WIDTH
    for part in tables:
        group = cells.group_label(document, heads[part[0]].group) if len(tables) > 1 and part else ""
        table = Table(title=Text("\n".join(filter(None, [document["title"], group]))))
        table.add_column("", overflow="fold")
        for k in part:
            published = heads[k].group == PUBLISHED
            heading = Text(f"{heads[k].heading}\n{cells.tag(document, heads[k])}")
            table.add_column(heading, justify="right", style="dim" if published else "", overflow="fold")
        for label, row_cells in body:
            table.add_row(Text(label), *(Text(cell_text(row_cells[k]), style="bold" if row_cells[k].best else "") for k in part))
        console.print(table)
    rows = effects.lines(document)
    if rows:
        table = Table(title="Region effects")
        table.add_column("", overflow="fold")
        for name in effects.HEADINGS:
            table.add_column(name, justify="right", overflow="fold")
        for point, values in rows:
            table.add_row(Text(point), *map(Text, values))
        console.print(table)
    for line in [*([effects.MEANING] if rows else []), *document.get("conclusion", []), *legend.lines(document), *legend.gaps(document)]:
        console.print(Text(line))


def show_claims(document: FigureDocument) -> None:
    """Prints what the paper says about a figure, and whether it holds here, a claim a line."""
    for claim in document["claims"]:
        numbers = "; ".join(f"{name} {number(value)}" for name, value in claim["numbers"].items() if value is not None)
        print(f"{VERDICTS[claim['holds']][1]}: {claim['said']}" + (f" ({numbers})" if numbers else ""))


def parts(heads: list[Column]) -> list[list[int]]:
    """Which columns stand in one table: all of them, or, of a wide one, those of one group, shared out evenly where they are too many."""
    if len(heads) <= WIDE:
        return [list(range(len(heads)))]
    out = []
    for group in dict.fromkeys(column.group for column in heads):
        members = [k for k, column in enumerate(heads) if column.group == group]
        tables = -(-len(members) // WIDE)
        out += [members[t * len(members) // tables : (t + 1) * len(members) // tables] for t in range(tables)]
    return out


def cell_text(cell: Cell) -> str:
    """A cell on one line: value ± error, marks, and the difference in brackets."""
    delta = f" ({cell.delta}{SIGNIFICANT * (SIGNIFICANT in cell.mark)})" if cell.delta else ""
    return cell.text + DERIVED * (DERIVED in cell.mark) + delta
