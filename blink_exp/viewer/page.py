"""The page of one question as plain values (``contents``) and as HTML (``render``). No scripts, no network."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch

from blink_exp.backbone.model import Backbone
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.views import EXTRA
from blink_exp.documents.pages import AnswerLine, LayerLine, ViewDocument, ViewTokens
from blink_exp.documents.records import LayerStep
from blink_exp.figures.hero_kept import as_maps
from blink_exp.viewer import drawing
from blink_exp.viewer.subject import Subject
from blink_exp.viewer.trace import Stage, Trace


class ExpandedMap(TypedDict):
    """``heat``: a PNG as a data URI; ``piece``: the patch of the base view that the segment shows."""

    heat: str
    piece: drawing.Piece
    region: int


class LayerMaps(TypedDict):
    """The attention maps of one layer, PNGs as data URIs. ``tiles``: None without any."""

    layer: int
    shares: dict[str, float]
    base: str
    tiles: str | None
    expanded: list[ExpandedMap]


def verdict(correct: float | bool | None) -> str | None:
    """Correctness of an answer as text; None without a reference answer."""
    if correct is None:
        return None
    return {0.0: "wrong", 1.0: "right"}.get(float(correct), f"{100 * float(correct):.0f} % right")


def answer(label: str, trace: Trace, shown: bool) -> AnswerLine:
    """A row of the table of answers. ``shown``: whether the page is about this method."""
    return {
        "label": label,
        "shown": shown,
        "said": trace.record["prediction"],
        "verdict": verdict(trace.record["correct"]),
        "entering": len(trace.visual.source) - trace.visual.newlines,
        "tokens": trace.tokens,
        "why": None,
    }


def unavailable(label: str, why: str) -> AnswerLine:
    """The row of a method that cannot run on this backbone."""
    return {"label": label, "shown": False, "said": None, "verdict": None, "entering": None, "tokens": None, "why": why}


def layers(trace: Trace, grid: PatchGrid) -> list[LayerLine]:
    """One row per layer: tokens, attention, and the scan and decision if there was one.

    ``rho``, ``patch``: of the layer's attention to the base view; ``scanned``, ``region``, ``decision``: from the record.
    """
    steps = {step["layer"]: step for step in trace.record["layers"]}
    out: list[LayerLine] = []
    for stage in trace.stages:
        counts = stage.counts
        ratio_and_patch, step = stage.rho(grid), steps.get(stage.layer)
        out.append(
            {
                "layer": stage.layer,
                "rho": ratio_and_patch and ratio_and_patch[0],
                "patch": ratio_and_patch and ratio_and_patch[1],
                "scanned": step and step["rho"],
                "region": step and step["region"],
                "decision": step and decision(step),
                "system": counts["system"],
                "visual": counts["visual"],
                "expanded": counts["expanded"],
                "text": counts["text"],
                "shares": stage.shares,
                "places": [{"layer": o.layer, "region": o.region, "tokens": o.tokens} for o in stage.expanded],
            }
        )
    return out


def decision(step: LayerStep) -> str:
    return step["decision"] if step["effective"] else f"{step['decision']} (nothing was there)"


def token_counts(trace: Trace) -> ViewTokens | None:
    """Tokens per kind of view that enter the LLM and that its last layer has; None for a method that drops none."""
    if not trace.drops:
        return None
    n, views = trace.visual.views.tokens, trace.visual.views

    def count(source: torch.Tensor) -> dict[str, int]:
        image_source = source[(source >= 0) & (source < views.count * n)]
        shows = views.valid.flatten()[image_source]
        return {
            "base": int((image_source < n).sum()),
            "tiles": int(((image_source >= n) & shows).sum()),
            "padding": int((~shows).sum()),
            "merged": int((source == EXTRA).sum()),
        }

    return {
        "entering": count(trace.visual.source.cpu()),
        "last": count(trace.stages[-1].source),
        "of": {"base": n, "tiles": int(views.valid[1:].sum())},
        "newlines": trace.visual.newlines,
        "inside": trace.method.drops_inside,
    }


def contents(
    backbone: Backbone, about: Subject, trace: Trace, grid: PatchGrid, answers: list[AnswerLine], command: str | None
) -> ViewDocument:
    """The contents of the page without its pictures."""
    policy = trace.method.policy
    return {
        "id": about.sample.id,
        "benchmark": about.benchmark.name,
        "category": about.sample.category,
        "question": trace.record["question"],
        "known": about.sample.answer,
        "method": trace.method.name,
        "said": trace.record["prediction"],
        "verdict": verdict(trace.record["correct"]),
        "backbone": backbone.identity,
        "settings": {k: v for k, v in backbone.settings.items() if v not in (None, False, "none")},
        "size": about.image.size,
        "grid": {"p": grid.p, "height": grid.height, "width": grid.width},
        "second_view": trace.visual.second.to_json() if trace.visual.second is not None else None,
        "views": {"rows": trace.visual.views.rows, "columns": trace.visual.views.columns},
        "thresholds": policy.thresholds if policy is not None else {},
        "layers": layers(trace, grid),
        "kept": token_counts(trace),
        "answers": answers,
        "command": command,
    }


def render(backbone: Backbone, about: Subject, trace: Trace, grid: PatchGrid, page: ViewDocument) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader

    views = trace.visual.views
    share = as_maps(trace.presence, views)
    lines = page["layers"]
    steps = [drawing.Mark(v["layer"], v["scanned"], v["decision"]) for v in lines if v["decision"]]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("template.html").render(
        page=page,
        picture=drawing.picture(about.image),
        base=drawing.base_view(backbone, about.image),
        regions=drawing.outlines(about.sample.regions) if about.sample.regions else None,
        second=drawing.outlines((trace.visual.second.box,)) if trace.visual.second is not None else None,
        patches=drawing.patches(grid),
        tiles=drawing.tiles(views) if views.shown_tiles else None,
        kept_maps=[None if values is None else drawing.fade(values) for values in share],
        ratios=drawing.ratios([v["rho"] for v in lines], steps, page["thresholds"], 1 / grid.p**2),
        sequences=drawing.sequences(trace.stages),
        maps=[maps(stage, trace, grid) for stage in trace.stages],
        closeups=closeups(backbone, about, trace, grid),
        any_expanded=any(stage.expanded for stage in trace.stages),
    )


def closeups(backbone: Backbone, about: Subject, trace: Trace, grid: PatchGrid) -> dict[int, str]:
    """{region: the picture of its close-up as the tower saw it}, of the regions that the method looked at."""
    if not trace.method.closeup:
        return {}
    regions = backbone.regions({"": about.image})[""]
    shown = sorted({origin.region for stage in trace.stages for origin in stage.expanded})
    return {region: drawing.base_view(backbone, regions.crop(region, grid.p)) for region in shown}


def maps(stage: Stage, trace: Trace, grid: PatchGrid) -> LayerMaps:
    """The attention maps of one layer: on the base view, on the tiles, on each expanded segment."""
    views = trace.visual.views
    every = stage.by_source(views.count * views.tokens)
    parts = stage.paid("expanded").split([o.tokens for o in stage.expanded]) if stage.expanded else ()
    expanded: list[ExpandedMap] = []
    for origin, values in zip(stage.expanded, parts, strict=True):
        h, w = grid.patch if origin.tokens == grid.patch[0] * grid.patch[1] else (grid.height, grid.width)
        # a module with another output size: one row in sequence order
        whole = values.view(h, w) if origin.tokens == h * w else values[None]
        expanded.append({"heat": drawing.heat(whole), "piece": drawing.Piece.of(grid, origin.region), "region": origin.region})
    return {
        "layer": stage.layer,
        "shares": stage.shares,
        "base": drawing.heat(every[: views.tokens].view(views.side, views.side)),
        "tiles": drawing.heat(every[views.unpadded]) if views.shown_tiles else None,
        "expanded": expanded,
    }
