"""The tokens that each method keeps (HERO, Fig. 6), and their recall of the annotated regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Sample, group_by_image, spread
from blink_exp.core.method import Method
from blink_exp.core.views import ViewGeometry
from blink_exp.decoder.attach import attach
from blink_exp.decoder.attention import replay
from blink_exp.documents.records import Record
from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import prompt_of, prompts_of
from blink_exp.evaluation.evaluator import chosen, prepare
from blink_exp.evaluation.results import settings_of
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLUMN, PAGE, Claim, Drawing, Study, records_of
from blink_exp.figures.hero_measures import annotation_mask, objects, token_cover
from blink_exp.figures.verdicts import RULES, differences, mean
from blink_exp.methods.controls import RandomTokens

REGION, SALIENT, ALL = "what is asked about", "all annotated objects", "all tokens"


@dataclass(frozen=True)
class LabelledMethod:
    """A method and the title of its panels."""

    label: str
    method: Method


def methods_to_draw(study: Study) -> tuple[Backbone, Benchmark, list[LabelledMethod], list[Record]]:
    """Backbone, benchmark, the methods whose tokens are drawn, and records of the first: on a table's page each method of the table that
    drops tokens, at the last of its points; alone the figure's own method."""
    rows = {row["method"]: row for row in study.done}
    candidates = []
    for row in rows.values():
        method: Method = _prepared(row)[1]
        if method.drops:
            candidates.append((row, LabelledMethod(row["point"], method)))
    if not candidates:
        backbone, method, benchmark = study.load()
        if not method.drops:
            raise UserError(f"{study.name} shows which tokens stay, and method={method.name} drops none; use method=hero")
        return backbone, benchmark, [LabelledMethod(f"{method.name.upper()} ({100 * study.settings.retention_ratio:g} %)", method)], []
    first = next((f for f in candidates if f[0]["method"] == "hero"), candidates[-1])
    backbone, _, benchmark = _prepared(first[0])
    return backbone, benchmark, [one for _, one in candidates], records_of(first[0])


def _prepared(row: PointRun) -> tuple[Backbone, Method, Benchmark]:
    return prepare(settings_of(row["folder"]))


def select_examples(samples: Sequence[Sample], records: Sequence[Record], count: int) -> list[Sample]:
    """``count`` samples of different images and, as far as they go, categories: first those about one region, then those answered right."""
    right = {r["id"]: float(r["correct"] or 0) for r in records}
    pool = [s for s in samples if s.id in right] if right else list(samples)
    ordered = sorted(pool, key=lambda s: (len(s.regions) != 1, -right.get(s.id, 0.0)))
    selected: list[Sample] = []
    for fresh in (True, False):
        for s in ordered:
            repeated = s.image_id in {f.image_id for f in selected} or (fresh and s.category in {f.category for f in selected})
            if len(selected) < count and not repeated:
                selected.append(s)
    return selected


@torch.no_grad()
def presence(backbone: Backbone, method: Method, key: str, image: Image.Image, question: str) -> tuple[torch.Tensor, ViewGeometry]:
    """((views, N) share of the LLM's layers in which each visual token is present, the image's geometry). ``key``: the backbone's cache
    key of the image."""
    visual = backbone.visual({key: image}, [(key, question)], method.pruner)[0]
    decisions = []
    if method.drops_inside:  # Blink drops none of them
        with attach(backbone.model, method) as attached:
            if attached is not None:
                attached.see([visual])
            backbone.generate([visual.features], [question], 1)
            decisions = list(attached.records) if attached is not None else []
    stages = replay(decisions, visual.source.cpu(), backbone.depth)
    return lasting([source for source, _ in stages], visual.views), visual.views


def lasting(sources: Sequence[torch.Tensor], views: ViewGeometry) -> torch.Tensor:
    """(views, N) share of the layers in which each visual token is present. ``sources``: for each layer, (tokens,) source indices."""
    share = torch.zeros(views.count * views.tokens)
    for source in sources:
        share[source[(source >= 0) & (source < len(share))]] += 1  # a second view's tokens stand behind those of all views
    return (share / len(sources)).view(views.count, views.tokens)


def as_maps(share: torch.Tensor, views: ViewGeometry) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(tiles, thumbnail): (views, N) values as maps that both show the whole image, (rows, columns) or None without tiles, (side, side)."""
    tiles = share.flatten()[views.unpadded] if views.shown_tiles else None
    return tiles, share[0].view(views.side, views.side)


def recall(share: torch.Tensor, weight: torch.Tensor) -> float:
    """The kept share of an area: (views, N) presence, weighted by each token's coverage of the area."""
    return float((share.double() * weight.double()).sum() / weight.double().sum())


def areas(
    backbone: Backbone, views: ViewGeometry, everything: np.ndarray, masks: Mapping[str, np.ndarray | None]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """{sample id: (views, N) share of each token's cell that the asked region, all objects and the image cover}, of those with a mask.
    ``everything``: the mask of all objects."""
    salient, valid = token_cover(backbone, views, everything), views.valid.double()
    return {k: (token_cover(backbone, views, mask), salient, valid) for k, mask in masks.items() if mask is not None}


def recalls(
    backbone: Backbone, benchmark: Benchmark, methods: Sequence[LabelledMethod], samples: Sequence[Sample]
) -> dict[str, dict[str, list[float]]]:
    """{method: {area: [mean over the questions on an image]}} of images that open and have annotated questions."""
    by_method: dict[str, dict[str, list[float]]] = {one.label: {REGION: [], SALIENT: [], ALL: []} for one in methods}
    for group in group_by_image(list(samples)):
        try:
            image = group[0].image()
        except OSError:
            continue
        prompts = prompts_of(backbone, benchmark, group)
        masks = {s.id: annotation_mask(s, image.size) for s in group if s.id in prompts}
        everything = objects(group, image.size)
        if everything is None:
            continue
        grids = {one.method.tile_grid for one in methods}
        views = {grid: ViewGeometry.of(backbone.model.config, (image.height, image.width), grid) for grid in grids}
        by_grid = {grid: areas(backbone, geometry, everything, masks) for grid, geometry in views.items()}
        for one in methods:
            rows = []
            for s in group:
                if (weights := by_grid[one.method.tile_grid].get(s.id)) is not None:
                    share, _ = presence(backbone, one.method, key_of(benchmark, s), image, prompts[s.id])
                    rows.append([recall(share, weight) for weight in weights if bool(weight.any())])
            full = [row for row in rows if len(row) == 3]  # an object outside LLaVA-1.5's crop is no token's
            for area, values in zip((REGION, SALIENT, ALL), zip(*full, strict=True), strict=True) if full else ():
                by_method[one.label][area].append(float(np.mean(values)))
    return by_method


def key_of(benchmark: Benchmark, sample: Sample) -> str:
    return f"figure:{benchmark.name}:{getattr(benchmark, 'path', None)}:{sample.image_id}"


def claims(by_method: dict[str, dict[str, list[float]]], label: str) -> list[Claim]:
    """That ``label`` keeps more of what matters than of the image as a whole; the other methods beside it as numbers."""
    out = []
    for area, description in ((REGION, "the areas that the question is about"), (SALIENT, "salient areas")):
        gap = mean(np.subtract(by_method[label][area], by_method[label][ALL]))
        numbers = {f"{name}, {x}": mean(areas[x]).value for name, areas in by_method.items() for x in (area, ALL)}
        out.append(
            Claim(
                f"{label}: the tokens that stay cover {description}",
                f"Share of the area of {area} whose tokens stay, in all views, less that of all tokens, {gap.n} images. {RULES}",
                numbers | differences({f"{label}, difference": gap}),
                gap.above,
            )
        )
    return out


@draw.styled()
def examples(study: Study, count: int = 3, asked: int = 256) -> Drawing:
    """Fig. 6: ``count`` images with the tokens that stay, and the claim over ``asked`` questions."""
    backbone, benchmark, methods, records = methods_to_draw(study)
    samples = chosen(benchmark, study.settings)
    pictures: dict[str, Figure] = {}
    ids: list[str] = []
    for sample in select_examples(samples, records, count):
        try:
            image = sample.image()
        except OSError:  # drawn alone, the figure is the first to open it
            continue
        panels = []
        for one in methods:
            share, views = presence(backbone, one.method, key_of(benchmark, sample), image, prompt_of(backbone, benchmark, sample))
            panels.append((one.label, *as_maps(share, views)))
        pictures[f"{study.name}_{len(pictures) + 1}"] = draw_panels(image, sample, panels)
        ids.append(sample.id)
    label = next((one.label for one in methods if one.method.name == "hero"), methods[-1].label)
    names = {one.method.name for one in methods}
    control = LabelledMethod("random tokens", Method(name="random", pruner=RandomTokens(study.settings.retention_ratio)))
    by_method = recalls(backbone, benchmark, [*methods, *([] if "random" in names else [control])], spread(samples, asked))
    images = len(by_method[label][ALL])
    picked = f" and, of these, those that {label} answered right; the claims count right and wrong alike" if records else ""
    caption = (
        "What stays is shown clear, what goes is dark, on the tiles and on the thumbnail. Methods inside the LLM: the longer a token "
        "stays, the clearer; tokens that are means of several have no place and are not shown. Dashed: what the question is about. "
        f"Drawn first: questions about one region{picked}."
    )
    data = {"examples": ids, "kept": by_method}
    measured_on = draw.measured_on(backbone.identity, benchmark.name, images, "images with annotated questions")
    return Drawing(pictures, data, claims(by_method, label), caption, measured_on)


def draw_panels(image: Image.Image, sample: Sample, panels: Sequence[tuple[str, Any, Any]]) -> Figure:
    """The image, then what stays of it by each method (label, tiles, thumbnail): maps of values in 0 to 1 over the whole image, where 1
    shows it and 0 darkens it; no tiles: None. A single method stands beside the image, several one above the other: tiles, thumbnail."""
    tiled = any(tiles is not None for _, tiles, _ in panels)
    if len(panels) == 1 and tiled:
        label, tiles, thumbnail = panels[0]
        stacks = [[(f"{label}: tiles", tiles)], [("thumbnail", thumbnail)]]
    else:
        stacks = [[(label, tiles), ("", thumbnail)] if tiled else [(label, thumbnail)] for label, tiles, thumbnail in panels]
    most = 4 if image.width >= image.height else 8  # panels a line
    columns, deep = min(len(stacks) + 1, most), len(stacks[0])
    lines = -(-len(stacks) // (columns - 1))
    width = (COLUMN if columns < 4 else PAGE) / columns
    height = min(width * image.height / image.width, 1.8 * width)
    figure, axes = draw.canvas(width * columns, lines * deep * height + 0.35 * lines + 0.35, lines * deep, columns)
    for axis in axes.flat:
        axis.axis("off")
    draw.picture(axes[0][0], image, sample.regions, "image")
    for k, stack in enumerate(stacks):
        line, column = divmod(k, columns - 1)
        for row, (title, values) in enumerate(stack):
            axis = axes[line * deep + row][column + 1]
            draw.picture(axis, image, title=title.replace(" (", "\n(") if len(panels) > 1 else title)  # a panel is narrower than a name
            if values is not None:
                fade = np.full((*values.shape, 4), 0.25)
                fade[..., 3] = 0.85 * (1 - np.asarray(values))
                axis.imshow(fade, extent=(0, 1, 1, 0), aspect=image.height / image.width, interpolation="nearest")
    answer = f"  answer: {sample.answer}" if sample.answer else ""
    figure.suptitle(f"“{draw.shortened(sample.question, 26 * columns)}”{answer}", fontsize=8)
    return figure
