"""The model card's numbers of the scale LLaVA-NeXT, and CLIPscore's, all on held-out scenes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from blink_exp import markdown
from blink_exp.backbone.clip_text import ClipText, load_clip
from blink_exp.backbone.load import load
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.scale_model import train_next
from blink_exp.scenes import hr_questions

SCENES = 128  # ten questions each


class TileRank(TypedDict):
    """``first``: of ``questions``, in how many per cent the tile that shows most of the object has the highest CLIPscore."""

    first: float
    questions: int


class MeasuredNext(TypedDict):
    """What measured.json says of LLaVA-NeXT. ``mosaic_hr``: accuracy in per cent by what it sees and kind of question; ``clipscore``: by
    kind."""

    backbone: str
    scenes: int
    mosaic_hr: dict[str, dict[str, float]]
    clipscore: dict[str, TileRank]


@torch.no_grad()
def measure_next(assets: Path = SHIPPED, scenes: int = SCENES) -> MeasuredNext:
    backbone = load(str(assets / "llava_next"), "scale-llava-next")
    tokenizer = backbone.processor.tokenizer
    backbone.clip = ClipText(load_clip(assets), tokenizer, tokenizer.eos_token)
    seen = {}
    for what in ("all", "thumbnail", "blank"):
        accuracies = train_next.held_out(backbone.model, backbone.processor, scenes, what)
        seen[what] = {k: round(100 * v, 1) for k, v in accuracies.items()}
    ranks: dict[str, TileRank] = {k: {"first": round(100 * v, 1), "questions": n} for k, (v, n) in clipscore(backbone, scenes).items()}
    return {"backbone": backbone.identity, "scenes": scenes, "mosaic_hr": seen, "clipscore": ranks}


@torch.no_grad()
def clipscore(backbone: Backbone, scenes: int) -> dict[str, tuple[float, int]]:
    """By kind of question about one object, and in all: how often the tile that shows most of the object has the highest CLIPscore
    (HERO, Sec. IV-B-1) among its image's tiles, and of how many questions."""
    first: dict[str, list[bool]] = defaultdict(list)
    for k in range(scenes // 8):
        rng = np.random.default_rng((2, 78, k))
        batch = train_next.batch_of(rng, backbone.processor, "test", 8, 10)
        images = {str(i): scene.canvas for i, scene in enumerate(batch.scenes)}
        encodings = backbone.encodings(images, EncoderRequirements(text=True))
        for i, (scene, asked) in enumerate(zip(batch.scenes, batch.asked, strict=True)):
            encoding = encodings[str(i)]
            assert encoding.projected is not None and encoding.embed_text is not None
            shows = train_next.coverage(scene, batch.views)[:, 1:].sum(-1)  # (objects, tiles)
            tiles = torch.nn.functional.normalize(encoding.projected[1:], dim=-1)
            for question in asked:
                if question.kind in hr_questions.ABOUT_ONE and question.objects:
                    text = torch.nn.functional.normalize(encoding.embed_text(question.text), dim=-1)
                    first[question.kind].append(bool((tiles @ text).argmax() == shows[question.objects[0]].argmax()))
        backbone.forget()
    out = {kind: (float(np.mean(hits)), len(hits)) for kind, hits in sorted(first.items())}
    every = [hit for hits in first.values() for hit in hits]
    return {"all": (float(np.mean(every)), len(every)), **out}


def tables(measured: MeasuredNext) -> dict[str, str]:
    """The card's tables of LLaVA-NeXT as Markdown, by the name of their place."""
    seen = measured["mosaic_hr"]
    rows = [(kind, seen["all"][kind], seen["thumbnail"][kind], seen["blank"][kind]) for kind in seen["all"]]
    ranks = [(kind, v["first"], v["questions"]) for kind, v in measured["clipscore"].items()]
    return {
        "next_counts": f"{measured['scenes']} held-out scenes, ten questions each",
        "mosaic_hr": markdown.table(("question kind", "all views", "thumbnail only", "blank"), rows),
        "clipscore": markdown.table(("question about one object", "right tile first", "questions"), ranks),
    }
