"""Region effects of a table as text; see ``blink_exp.studies.effects``."""

from __future__ import annotations

from collections.abc import Iterable

from blink_exp.documents.tables import EffectRow, TableDocument
from blink_exp.reports.cells import LEVEL, SIGNIFICANT, p_value, signed

HEADINGS = ("region effect", "95 % interval", "p", "detectable", "share recovered", "95 % interval of it")
MEANING = (
    "Region effect: accuracy with the region by attention less accuracy with a random one, in points, on the same questions. Share"
    " recovered: of the close-up's region effect; empty where the close-up's cannot be told from 0."
)


def lines(document: TableDocument) -> list[tuple[str, list[str]]]:
    """(label, a cell for each of ``HEADINGS``) of every effect; with the benchmark where there are several."""
    effects = document.get("effects") or []
    several = len({row["benchmark"] for row in effects}) > 1
    return [(f"{row['label']}, {row['benchmark']}" if several else row["label"], _cells(row)) for row in effects]


def _cells(row: EffectRow) -> list[str]:
    p = row["p"]
    dagger = SIGNIFICANT if p is not None and p < LEVEL else ""
    return [
        signed(row["effect"], 2) + dagger,
        _between(signed(row["low"], 2), signed(row["high"], 2)),
        p_value(p),
        "" if row["detectable"] is None else f"{row['detectable']:.2f}",
        _percent(row["share"]),
        _between(_percent(row["share_low"]), _percent(row["share_high"])),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %".replace("-0 %", "0 %")


def _between(low: str, high: str) -> str:
    return f"{low} to {high}" if low and high else ""


def conclusion(document: TableDocument, reference: str, tokens: Iterable[str]) -> list[str]:
    """What the numbers allow to say, a sentence for each benchmark. ``reference``: label of the close-up's effect; ``tokens``: labels of
    effects of methods that use the image's tokens only."""
    out = []
    for group in document["groups"]:
        effects = {row["label"]: row for row in document.get("effects") or [] if row["benchmark"] == group["benchmark"]}
        bound = effects.get(reference)
        if bound is None:
            continue
        where = f"On {group['benchmark']}"
        if not _above(bound):
            out.append(_untold(where, bound))
            continue
        rows = [effects[label] for label in tokens if label in effects]
        measured = ", ".join(f"{row['label']} {signed(row['effect'], 1)}{_share(row)}" for row in rows)
        gains = [row["label"] for row in rows if _above(row)]
        verdict = f"{' and '.join(gains) if gains else 'none of these'} can be told from a random region"
        worth = signed(bound["effect"], 1)
        out.append(
            f"{where} looking closer at the right place is worth {worth} points to the close-up, which reads the image's own pixels;"
            f" from the tokens: {measured}; {verdict}."
        )
    return out


def _untold(where: str, bound: EffectRow) -> str:
    """The sentence where the close-up's region effect cannot be told from 0."""
    effect, n = signed(bound["effect"], 1), bound["n"]
    least = "" if bound["detectable"] is None else f"; one from {bound['detectable']:.1f} points on would be seen"
    return (
        f"{where} not even the close-up, which reads the image's own pixels, can be told from itself at a random region: region effect"
        f" {effect} points on {n} questions{least}. So no amplifier can be: ask more questions, or some that need detail, before"
        " training one."
    )


def _above(row: EffectRow) -> bool:
    return row["effect"] > 0 and row["p"] is not None and row["p"] < LEVEL


def _share(row: EffectRow) -> str:
    return "" if row["share"] is None else f" ({_percent(row['share'])} of it)"
