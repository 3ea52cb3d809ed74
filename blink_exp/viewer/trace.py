"""Traces one question through the layers: the sequence of each layer, and the attention of the last prompt token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Sample
from blink_exp.core.method import Method
from blink_exp.core.saliency import PatchGrid, saliency_ratio
from blink_exp.core.sequence import Origin
from blink_exp.core.views import VisualTokens
from blink_exp.decoder.attach import attach
from blink_exp.decoder.attention import record_attention, replay
from blink_exp.decoder.second_views import Asking
from blink_exp.documents.records import Record
from blink_exp.evaluation.answering import answers, prompt_of
from blink_exp.evaluation.records import record
from blink_exp.figures.hero_kept import lasting

PARTS = ("system", "visual", "expanded", "text")


@dataclass(frozen=True)
class Stage:
    """The sequence of one layer: system | visual | expanded | text.

    ``source``: origin of each visual token (``core.views.pack``), newlines and merged tokens included; ``expanded``: the expanded
    segments in order; ``attention``: (tokens,) of the last prompt token, over the whole sequence.
    """

    layer: int
    system: int
    text: int
    source: torch.Tensor
    expanded: tuple[Origin, ...]
    attention: torch.Tensor

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each part."""
        return {"system": self.system, "visual": len(self.source), "expanded": sum(o.tokens for o in self.expanded), "text": self.text}

    def paid(self, part: str) -> torch.Tensor:
        """(tokens of the part,) attention of the last prompt token."""
        sizes = [self.counts[name] for name in PARTS]
        piece: torch.Tensor = self.attention.split(sizes)[PARTS.index(part)]
        return piece

    @property
    def shares(self) -> dict[str, float]:
        """Attention on each part; they sum to 1."""
        return {part: float(self.paid(part).sum()) for part in PARTS}

    def cells(self, tokens: int) -> torch.Tensor:
        """(tokens,) attention on the ``tokens`` cells of the base view; NaN for dropped tokens."""
        return self.by_source(tokens)[:tokens]

    def by_source(self, tokens: int) -> torch.Tensor:
        """(tokens,) attention on each of the ``tokens`` of all views, by view * N + patch; NaN for dropped tokens."""
        out = torch.full((tokens,), float("nan"))
        present = (self.source >= 0) & (self.source < tokens)
        out[self.source[present]] = self.paid("visual")[present]
        return out

    def rho(self, grid: PatchGrid) -> tuple[float, int] | None:
        """(saliency ratio, most salient patch) of the attention on the base view; None if all its tokens are dropped."""
        cells = self.cells(grid.height * grid.width)
        present = (~cells.isnan()).nonzero()[:, 0]
        if not len(present):
            return None
        ratio, region = saliency_ratio(grid.sums_at(cells[present], present))
        return float(ratio), int(region)


@dataclass(frozen=True)
class Trace:
    """``record``: the sample's record, as an evaluation writes it; ``visual``: the tokens that enter the LLM; ``stages``: one per layer."""

    method: Method
    record: Record
    visual: VisualTokens
    stages: list[Stage]

    @property
    def tokens(self) -> float:
        """Visual and expanded tokens, averaged over layers."""
        counts = [stage.counts for stage in self.stages]
        return sum(c["visual"] + c["expanded"] for c in counts) / len(counts)

    @property
    def drops(self) -> bool:
        """Whether the method drops visual tokens."""
        return self.method.drops

    @property
    def presence(self) -> torch.Tensor:
        """(views, N) share of the layers in which each visual token is present."""
        return lasting([stage.source for stage in self.stages], self.visual.views)


@torch.no_grad()
def trace(backbone: Backbone, method: Method, benchmark: Any, sample: Sample, image: Image.Image) -> Trace:
    """Runs ``method`` on a sample as an evaluation does (batch of one), and records the sequence and attention of each layer."""
    # cache key of the image features; a file name would not be unique
    key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    question = prompt_of(backbone, benchmark, sample)
    with attach(backbone.model, method) as attached, record_attention(backbone.llm) as rows:
        if attached is not None:
            attached.samples = [sample.id]
        asking = Asking(key, question, sample.id, sample.regions)
        predictions, visuals = answers(backbone, method, attached, {key: image}, [asking], benchmark.max_new_tokens)
        decisions = list(attached.records) if attached is not None else []
    (visual,) = visuals
    ids = backbone.batch([visual.features], [question])["input_ids"][0]
    stands = (ids == backbone.model.config.image_token_id).nonzero()[:, 0]
    system, text = int(stands[0]), len(ids) - int(stands[-1]) - 1
    stages = []
    for layer, (source, expanded) in enumerate(replay(decisions, visual.source.cpu(), backbone.depth)):
        stage = Stage(layer, system, text, source, expanded, rows[layer][0])
        assert sum(stage.counts.values()) == len(stage.attention), "the decisions do not add up to the sequence that the layer ran on"
        stages.append(stage)
    return Trace(method, record(benchmark, sample, predictions[0], decisions), visual, stages)
