"""The model card's numbers, measured on what ships, and the card itself."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from blink_exp import markdown
from blink_exp.backbone.clip_text import load_clip
from blink_exp.backbone.load import load
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.benchmarks.base import Sample, spread
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.core.saliency import PatchGrid
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.figures.blink_layers import by_layer, scan_records
from blink_exp.methods.none import none
from blink_exp.scale_model import measure_next
from blink_exp.scale_model.train_clip import zero_shot
from blink_exp.scale_model.train_llava import held_out
from blink_exp.scenes import questions
from blink_exp.scenes.scenes import random_scene
from blink_exp.training.quality import WAYS

TOKENSR_COLUMNS = (
    "layer",
    *("KL: interpolation", "KL: TokenSR"),
    *("cosine: interpolation", "cosine: TokenSR"),
    *("relative error: interpolation", "relative error: TokenSR"),
)
UNTAUGHT = "measured_no_look_loss.json"  # what ``measure_llava`` says of that variant
SCENES = 128  # held-out scenes of each size, ten questions each


class SaliencyProfile(TypedDict):
    """``rho``, ``hit``: by layer; ``samples``: questions about one patch; ``accuracy``: of the untouched model, in per cent."""

    rho: list[Any]
    hit: list[Any]
    samples: int
    accuracy: float
    benchmark: str


class MeasuredModel(TypedDict, total=False):
    """measured.json of the shipped models; all accuracies in per cent. ``mosaics``: by scene ("2x2", "2x2 blank") and kind of question."""

    backbone: str
    scenes: int
    easyvqa_test: dict[str, float]
    easyvqa_test_blank: float
    mosaics: dict[str, dict[str, float]]
    saliency: SaliencyProfile
    clip_zero_shot: dict[str, float]
    guess: dict[str, float]
    next: measure_next.MeasuredNext
    seed: int
    seconds_of_this_run: int


def measure(assets: Path = SHIPPED, limit: int | None = None) -> MeasuredModel:
    """What ``measure_llava`` says of the default model, zero-shot CLIP, and what guessing gives. ``limit``: of about so many questions or
    scenes each; None: as the card has them."""
    backbone = load(str(assets / "llava"), "scale-llava-1.5")
    clip = zero_shot(load_clip(assets), backbone.processor.tokenizer, 96, limit=limit)
    zero_shot_accuracies = {k: round(100 * v, 1) for k, v in clip.items()}
    return {**measure_llava(backbone, limit), "clip_zero_shot": zero_shot_accuracies, "guess": _guess()}


@torch.no_grad()
def measure_llava(backbone: Backbone, limit: int | None = None) -> MeasuredModel:
    """Accuracy by question kind with and without the image, and the saliency profile, of a LLaVA-1.5 on held-out images. ``limit`` as in
    ``measure``."""
    scenes = min(SCENES, limit or SCENES)
    tokenizer = backbone.processor.tokenizer
    easy = EasyVQA()
    records, _ = evaluate(backbone, none(), easy, batch_size=64, limit=limit, progress=True)
    scores = {k: round(v.value, 2) for k, v in easy.score(records).items()}
    mosaics = {}
    for n in (2, 3, 4):
        for blank in (False, True):
            accuracies = held_out(backbone.model, tokenizer, n, scenes, blank)
            mosaics[f"{n}x{n}{' blank' if blank else ''}"] = {k: round(100 * v, 1) for k, v in accuracies.items()}
    return {
        "backbone": backbone.identity,
        "scenes": scenes,
        "easyvqa_test": scores,
        "easyvqa_test_blank": round(100 * held_out(backbone.model, tokenizer, 1, scenes, True)["all"], 1),
        "mosaics": mosaics,
        "saliency": saliency_profile(backbone, limit),
    }


def saliency_profile(backbone: Backbone, limit: int | None = None) -> SaliencyProfile:
    """Fig. 3 of the Blink paper on 2 x 2 scenes: ``rho`` and ``hit`` by layer, ``samples`` about one patch, and the untouched model's
    ``accuracy`` in per cent."""
    benchmark = TwoByTwo(MosaicOpen())
    records = scan_records(backbone, benchmark, spread(benchmark.samples(), limit), batch_size=32)
    curves = by_layer(records, PatchGrid(2, *backbone.grid), backbone.depth)
    return {
        "rho": curves["rho"],
        "hit": curves["hit"],
        "samples": curves["annotated"],
        "accuracy": 100 * sum(r["correct"] for r in records) / len(records),
        "benchmark": benchmark.name,
    }


class TwoByTwo:
    """A benchmark's questions on 2 x 2 scenes only, where the four patches are the four objects."""

    def __init__(self, whole: Any):
        self.whole, self.name, self.max_new_tokens = whole, f"{whole.name} 2x2", whole.max_new_tokens

    def samples(self) -> list[Sample]:
        return [s for s in self.whole.samples() if s.category.endswith("2x2")]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def _guess() -> dict[str, float]:
    """Share of the commonest answer of each kind on 2 x 2 scenes: the least that a model blind to the image can reach."""
    rng = np.random.default_rng(0)
    answers: dict[str, list[str]] = defaultdict(list)
    for _ in range(SCENES):
        for question in questions.draw(rng, random_scene(rng, "test", 2), questions.KINDS, 10):
            answers[question.kind].append(question.answer)
    return {k: round(100 * max(v.count(a) for a in set(v)) / len(v), 1) for k, v in sorted(answers.items())}


def write(assets: Path = SHIPPED) -> Path:
    """README.md of the assets: the fixed text of card.md with the measured tables in their places."""
    measured = json.loads((assets / "measured.json").read_text(encoding="utf-8"))
    text = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    study = json.loads((SHIPPED / UNTAUGHT).read_text(encoding="utf-8"))
    for name, table in (tables(measured, assets) | {"no_look_loss": taught_and_not(measured, study)}).items():
        text = text.replace(f"<!-- {name} -->", table)
    path = assets / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def taught_and_not(with_loss: MeasuredModel, without: MeasuredModel) -> str:
    """What the look loss changes: accuracies, and where the models look, of the default model and of the one trained without it."""
    rows = []
    for title, m in (("with it (`scale_llava`)", with_loss), ("without (`scale_llava_no_look_loss`)", without)):
        hits = m["saliency"]["hit"]
        best = max(hits)
        cells = [m["easyvqa_test"]["accuracy"], m["easyvqa_test_blank"]]
        cells += [m["mosaics"][size]["all"] for size in ("2x2", "2x2 blank", "3x3", "4x4")]
        rows.append((title, *cells, f"{100 * best:.1f}, layer {hits.index(best)}"))
    heads = (
        "look loss",
        "easy-VQA test",
        "blank",
        "2x2",
        "2x2, blank",
        "3x3",
        "4x4",
        "most salient patch is the annotated one, best layer",
    )
    return markdown.table(heads, rows)


def module_rows(folder: Path) -> dict[int, dict[str, float]]:
    """{layer: held-out measures of its module (``training.quality``)} of a folder of modules."""
    metadata = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {m["layer"]: m["training"]["held_out"] for m in metadata}


def claim(rows: dict[int, dict[str, float]]) -> str:
    """What the measures of modules trained on KL say, in a sentence each."""

    def span(key: str, scale: float = 1, digits: int = 2) -> str:
        values = [scale * row[key] for row in rows.values()]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    def against(measure: str) -> str:
        return f"{span(f'{measure}_tokensr')} against {span(f'{measure}_interpolation')}"

    cosine = sum(row["cosine_tokensr"] < row["cosine_interpolation"] for row in rows.values())
    error = sum(row["relative_error_tokensr"] > row["relative_error_interpolation"] for row in rows.values())
    return (
        f"KL is {span('gain', scale=100, digits=0)} % lower than plain interpolation's; cosine is worse at {cosine} of {len(rows)} layers"
        f" ({against('cosine')}), the relative squared error at {error} ({against('relative_error')})."
    )


def tables(measured: MeasuredModel, assets: Path) -> dict[str, str]:
    mosaics = measured["mosaics"]
    kinds = list(mosaics["2x2"])
    columns = ["2x2", "2x2 blank", "3x3", "3x3 blank", "4x4", "4x4 blank"]
    rows = [(k, *(mosaics[c].get(k, "") for c in columns)) for k in kinds]
    easy = [*measured["easyvqa_test"].items(), ("blank image", measured["easyvqa_test_blank"])]
    saliency = measured["saliency"]
    layers = [(i, f"{r:.3f}", f"{100 * h:.1f} %") for i, (r, h) in enumerate(zip(saliency["rho"], saliency["hit"], strict=True))]
    gains = []
    held_out_rows = module_rows(assets / "tokensr")
    for layer, h in held_out_rows.items():
        others = [f"{h[f'{measure}_{way}']:.3f}" for measure in ("cosine", "relative_error") for way in WAYS]
        gains.append((layer, f"{h['interpolation']:.4f}", f"{h['tokensr']:.4f}", *others))
    best = max(range(len(saliency["hit"])), key=lambda i: saliency["hit"][i])
    part = "all" if measured["scenes"] == SCENES else "some"
    return {
        "counts": f"{part} questions of easy-VQA's test set; {measured['scenes']} held-out scenes of each size, ten questions each",
        "easyvqa": markdown.table(("easy-VQA test", "accuracy"), easy),
        "mosaics": markdown.table(("question kind", *(c.replace(" ", ", ") for c in columns)), rows),
        "clip": ", ".join(f"{k} {v} %" for k, v in measured["clip_zero_shot"].items()),
        "saliency": markdown.table(("layer", "mean rho", "most salient patch is the annotated one"), layers, left=()),
        "best": f"layer {best}, {100 * saliency['hit'][best]:.1f} % of {saliency['samples']} questions",
        "tokensr_claim": claim(held_out_rows),
        "tokensr": markdown.table(TOKENSR_COLUMNS, gains, left=()),
        "seed": str(measured["seed"]),
        **measure_next.tables(measured["next"]),
    }
