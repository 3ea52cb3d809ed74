"""The pictures of a table's page. A maker takes the table's document and the folder for PNG files, and gives (title, caption, file) of
each picture; none where no measured point has what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from blink_exp.backbone.encode import Needs
from blink_exp.backbone.load import Backbone
from blink_exp.backbone.views import EXTRA, Views
from blink_exp.benchmarks.base import Benchmark
from blink_exp.experiments import figures
from blink_exp.experiments.evaluate import prepare
from blink_exp.methods.base import Method, TokenPolicy
from blink_exp.sequence import Retain

Made = list[tuple[str, str, Path | None]]
EXAMPLES = 3
PROFILED = 64  # samples of the saliency profile, images to choose from


def opened(row: dict[str, Any]) -> tuple[Backbone, Method, Benchmark]:
    """What a measured point was measured with."""
    return prepare(OmegaConf.load(Path(row["folder"]) / "config.yaml"))  # type: ignore[arg-type]


def records_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(row["folder"]) / "records.jsonl").read_text().splitlines()]


def done(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["status"] == "done"]


def decisions(document: dict[str, Any], out: Path) -> Made:
    """Blink: the saliency ratio by layer and, layer by layer, what the first Blink point does to three images."""
    from blink_exp.experiments.profile import profile
    from blink_exp.saliency import PatchGrid

    row = next((r for r in done(document) if r["method"] == "blink"), None)
    if row is None:
        return []
    backbone, method, benchmark = opened(row)
    assert method.policy is not None
    found = profile(backbone, benchmark, limit=PROFILED)
    text = (
        "Attention of the last text token, untouched model. Line: mean share of the most salient patch. Dots: how often it is the patch "
        f"that holds the answer ({found['samples']} questions with an answer in one patch). Shaded: the layers where Blink acts."
    )
    made: Made = [("Saliency ratio by layer", text, figures.rho_by_layer(found, list(method.policy.layers), out / "rho_by_layer.png"))]
    grid = PatchGrid(method.policy.p, *backbone.grid)
    samples = {s.id: s for s in benchmark.samples()}
    pictures = []
    for k, record in enumerate(examples(records_of(row), worked_on)):
        path = figures.decisions(samples[record["id"]].image(), record, grid, out / f"example_{k + 1}.png")
        pictures.append(path)
        made.append(
            (f"Example {k + 1}", "Scan, expansion and drop by layer; tokens: visual and expanded ones that the layer works on.", path)
        )
    if pictures:
        figures.stack(pictures, out / "blink.png")  # the README's picture
    return made


def examples(records: list[dict[str, Any]], interest: Callable[[dict[str, Any]], tuple]) -> list[dict[str, Any]]:
    """``EXAMPLES`` records of different images, the most interesting first and, as far as they go, of different kinds of question."""
    ordered = sorted(records, key=interest, reverse=True)
    chosen: list[dict[str, Any]] = []
    for r in ordered:
        if r["category"] not in {c["category"] for c in chosen} and r["image_id"] not in {c["image_id"] for c in chosen}:
            chosen.append(r)
    return chosen[:EXAMPLES]


def worked_on(r: dict[str, Any]) -> tuple:
    """Right answers in whose course an expansion was made and taken back."""
    kinds = [s["decision"] for s in r["layers"] if s["effective"]]
    return ("expand" in kinds and "drop" in kinds, "expand" in kinds, r["correct"])


def kept_tokens(document: dict[str, Any], out: Path) -> Made:
    """HERO, Fig. 6: which tokens of an image stay, a panel a method, each at the last of its points."""
    rows = {row["method"]: row for row in done(document)}
    found = [(row["point"], *opened(row), row) for row in rows.values()]
    found = [f for f in found if f[2].pruner is not None or isinstance(f[2].policy, TokenPolicy)]
    if not found:
        return []
    shown = rows.get("hero", found[-1][-1])
    made: Made = []
    for k, record in enumerate(examples(records_of(shown), lambda r: (len(r["regions"]) == 1, r["correct"]))):
        panels = []
        for label, backbone, method, benchmark, _ in found:
            sample = next(s for s in benchmark.samples() if s.id == record["id"])
            image = sample.image()
            share, views = presence(backbone, method, image, benchmark.prompt(sample))
            panels.append((label, *as_maps(share, views)))
        path = figures.kept(image, record, panels, out / f"kept_tokens_{k + 1}.png")
        text = (
            "What stays is shown clear, what goes is dark: tiles above, thumbnail below. Methods inside the LLM: the longer a token stays, "
            "the clearer; tokens that are means of several have no place and are not shown. Dashed: what the question is about."
        )
        made.append((f"Kept tokens, example {k + 1}", text, path))
    return made


@torch.no_grad()
def presence(backbone: Backbone, method: Method, image: Any, question: str) -> tuple[torch.Tensor, Views]:
    """((views, N) share of the LLM's layers in which each visual token of an image is there, the image's geometry)."""
    visual = backbone.visual({"picture": image}, [("picture", question)], method.pruner)[0]
    views = visual.views
    share = torch.zeros(views.count * views.tokens)
    present, since = visual.source.cpu(), 0
    with method.attach(backbone.model) as attached:
        inside = attached is not None and isinstance(method.policy, TokenPolicy)  # Blink drops none of them
        if inside:
            backbone.generate([visual.features], [question], 1)
        for record in attached.records if inside else []:
            if isinstance(record.decision, Retain):
                share[present[present >= 0]] += record.scan.layer + 1 - since
                since = record.scan.layer + 1
                merged = torch.full((len(record.decision.clusters),), EXTRA)
                present = torch.cat([present[list(record.decision.indices)], merged])
    share[present[present >= 0]] += backbone.depth - since
    return (share / backbone.depth).view(views.count, views.tokens), views


def as_maps(share: torch.Tensor, views: Views) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(tiles, thumbnail): (views, N) values as maps that both show the whole image, (rows, columns) or None without tiles, (side, side)."""
    tiles = share.flatten()[views.unpadded] if views.tiles else None
    return tiles, share[0].view(views.side, views.side)


def cls_attention(document: dict[str, Any], out: Path) -> Made:
    """HERO, Figs. 8 and 9: what CLIP's CLS token attends to on the thumbnail, layer by layer, for the smallest and the largest of the
    first ``PROFILED`` images."""
    row = next(iter(done(document)), None)
    if row is None:
        return []
    backbone, _, benchmark = opened(row)
    depth = backbone.model.config.vision_config.num_hidden_layers
    needs = Needs(attention=frozenset(range(1, depth + 1)))
    backbone.check(needs)
    known = {s.id: s for s in benchmark.samples()}
    first = {r["image_id"]: known[r["id"]] for r in reversed(records_of(row))}
    ordered = sorted((s.image() for s in list(first.values())[-PROFILED:]), key=lambda image: image.width * image.height)
    made: Made = []
    for k, (word, image) in enumerate((("smallest", ordered[0]), ("largest", ordered[-1]))):
        encoding = backbone.encodings({f"picture:{word}": image}, needs)[f"picture:{word}"]
        side = encoding.views.side
        maps = [encoding.cls_attention((layer,))[0].view(side, side).cpu() for layer in range(1, depth + 1)]
        text = f"The {word} image. Mean over heads, softmax over all keys; each map from 0 (dark) to its own largest value."
        made.append((f"CLS attention by CLIP layer, example {k + 1}", text, figures.maps(image, maps, out / f"cls_attention_{k + 1}.png")))
    return made


MAKERS: dict[str, Callable[[dict[str, Any], Path], Made]] = {f.__name__: f for f in (decisions, kept_tokens, cls_attention)}
