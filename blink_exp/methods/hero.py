"""HERO: visual tokens are dropped before the LLM, by what a high-resolution image's views are worth and by what CLIP looks at.

LLaVA-NeXT turns an image into a thumbnail and K tiles of N tokens each, mostly redundant. HERO keeps a share R of them in two steps:

  1. budget (Sec. IV-B-1): the thumbnail keeps floor(N R) tokens, the tiles share the rest. A tile's share s mixes how much its CLS
     token resembles the thumbnail's (visual saliency) with how well it fits the question by CLIP's text tower:

         s = alpha softmax(CLSsim) + (1 - alpha) softmax(CLIPscore)

  2. selection (Sec. IV-B-2): within a view the tokens with most CLS attention stay. Tiles are read at low-to-middle CLIP layers (the set
     L), whose attention is on primary tokens: the main content, in detail. The thumbnail is read at middle-to-high layers (H), whose
     attention is on shortcut tokens, often in the background: the global context. The two complement each other (Sec. III-C).

The LLM then sees an ordinary, shorter sequence. Where the authors' code departs from the paper, the departure is an option here and the
paper the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, all_tokens, check_newline_policy
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import at_least_one, cap_and_redistribute, check_ratio, floor_tolerant, keeps_everything, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

OPTIONS = {
    "allocation": ("scores", "uniform"),
    "cls_source": ("pooled", "last_hidden", "projected"),
    "text": ("question", "prompt"),
    "remainder": ("paper", "largest_remainder"),
    "overflow": ("redistribute", "truncate"),
    "score": ("mean", "double_softmax"),
    "tile_budget": ("rest", "own"),
}


@dataclass(frozen=True)
class Hero:
    """HERO's choice of tokens.

    Args:
        ratio: R, the share of all (K + 1) N tokens that is kept; 1 leaves the model untouched.
        low, high: CLIP layers (1-based) at which tiles (L) and the thumbnail (H) are read.
        alpha: weight of CLSsim against CLIPscore; 1.0 needs no text tower (Table V, setting 1).
        allocation: ``uniform`` gives every tile the same (Table V, setting 2).
        temperature_cls, temperature_clip: of the two softmaxes. At the paper's 1.0 both are nearly flat.
        density_weight: weight of a third share, each tile's fraction of unpadded tokens (authors' code: 0.2, paper: none).
        cls_source: CLS of the last layer after its norm, before it (authors' code), or projected to CLIP's joint space.
        text: whether the text tower reads the question or the ``template`` filled with it. Cut to the tower's 77 tokens.
        remainder: ``paper`` loses what floors lose, ``largest_remainder`` spends the tiles' budget exactly.
        overflow: a tile cannot keep more tokens than show the image: ``redistribute`` the excess in proportion to s, or ``truncate``.
        score: ``mean`` of attention probabilities, or ``double_softmax`` (authors' code: the probabilities go through another softmax).
        tile_budget: ``rest`` is floor((K + 1) N R) - floor(N R), the paper's; ``own`` is floor(K N R), the authors' code's.
        newline_policy: see ``core.views.pack``.
        template: how a prompt is made of a question, for ``text=prompt``.
    """

    ratio: float
    low: frozenset[int] = frozenset({6, 7, 8, 9, 10})
    high: frozenset[int] = frozenset({22})
    alpha: float = 0.5
    allocation: str = "scores"
    temperature_cls: float = 1.0
    temperature_clip: float = 1.0
    density_weight: float = 0.0
    cls_source: str = "pooled"
    text: str = "question"
    remainder: str = "paper"
    overflow: str = "redistribute"
    score: str = "mean"
    tile_budget: str = "rest"
    newline_policy: str = "valid_rows"
    template: Callable[[str], str] | None = None
    name: str = "hero"

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        for name in ("alpha", "density_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"hero.{name}={getattr(self, name)} is outside [0, 1]; it weighs one share against another")
        for name in ("temperature_cls", "temperature_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"hero.{name}={getattr(self, name)} divides scores; use a value above 0, e.g. 1.0")
        for name, choices in OPTIONS.items():
            if getattr(self, name) not in choices:
                raise UserError(f"hero.{name}={getattr(self, name)} is not known; {nearest(str(getattr(self, name)), choices)}")
        check_newline_policy(self.newline_policy)

    @property
    def needs(self) -> EncoderRequirements:
        shares = self.allocation == "scores"
        return EncoderRequirements(
            attention=self.low | self.high,
            cls=shares and self.alpha > 0,
            text=shares and (self.alpha < 1 or self.cls_source == "projected"),
        )

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        views = encoding.views
        if self.ratio == 1:
            return None if keeps_everything(self.ratio, views, self.newline_policy) else all_tokens(views)
        thumbnail, tiles = self.budgets(encoding, question)
        at_least_one(f"retention_ratio={self.ratio}", thumbnail + sum(tiles), views.count * views.tokens)
        high = self.importance(encoding, self.high)
        low = self.importance(encoding, self.low) if views.tiles else high
        indices = [top(high[0], thumbnail)]
        indices += [top(low[i + 1], k, views.valid[i + 1]) for i, k in enumerate(tiles)]
        return TokenSelection(tuple(indices))

    def importance(self, encoding: Encoding, layers: frozenset[int]) -> torch.Tensor:
        """(views, N): CLS-to-patch attention, mean over heads, mean over ``layers``."""
        if self.score == "mean":
            return encoding.cls_attention(layers)
        return torch.stack([encoding.attention(layer).softmax(-1).mean(1) for layer in sorted(layers)]).mean(0)

    def budgets(self, encoding: Encoding, question: str) -> tuple[int, list[int]]:
        """(tokens of the thumbnail, tokens of each tile); Sec. IV-B-1."""
        views = encoding.views
        n, k = views.tokens, views.tiles
        thumbnail = floor_tolerant(n * self.ratio)
        if not k:
            return thumbnail, []
        total = floor_tolerant((k + 1) * n * self.ratio) - thumbnail if self.tile_budget == "rest" else floor_tolerant(k * n * self.ratio)
        shares = self.shares(encoding, question)
        exact = [total * s for s in shares]
        rounded = [floor_tolerant(w) for w in exact]
        if self.remainder == "largest_remainder":
            order = sorted(range(k), key=lambda i: (-(exact[i] - rounded[i]), i))
            for i in order[: total - sum(rounded)]:
                rounded[i] += 1
        limits = [int(valid.sum()) for valid in views.valid[1:]]
        return thumbnail, cap_and_redistribute(rounded, limits, shares, self.overflow == "redistribute")

    def shares(self, encoding: Encoding, question: str) -> list[float]:
        """s_i of each tile; they sum to 1."""
        k = encoding.views.tiles
        if self.allocation == "uniform":
            return [1 / k] * k
        s = torch.zeros(k, dtype=torch.float64)
        if self.alpha > 0:
            s += self.alpha * (cls_similarity(encoding, self.cls_source) / self.temperature_cls).softmax(0).to(s)
        if self.alpha < 1:
            text = self.template(question) if self.text == "prompt" and self.template else question
            s += (1 - self.alpha) * (clip_score(encoding, text) / self.temperature_clip).softmax(0).to(s)
        if self.density_weight:
            valid = encoding.views.valid[1:].double().sum(1)
            s = (1 - self.density_weight) * s + self.density_weight * valid / valid.sum()
        return s.tolist()


def cls_similarity(encoding: Encoding, source: str = "pooled") -> torch.Tensor:
    """(tiles,) CLSsim: cosine of each tile's CLS embedding with the thumbnail's. ``source``: see ``Hero.cls_source``."""
    cls = getattr(encoding, source).double()
    return F.cosine_similarity(cls[1:], cls[:1], dim=-1)


def clip_score(encoding: Encoding, text: str) -> torch.Tensor:
    """(tiles,) CLIPscore: cosine of each tile with ``text`` in CLIP's joint space."""
    assert encoding.embed_text is not None and encoding.projected is not None
    return F.cosine_similarity(encoding.projected[1:].double(), encoding.embed_text(text).double()[None], dim=-1)


def relative_layers(name: str, layers: Iterable[int], depth: int, relative: bool = True) -> frozenset[int]:
    """CLIP layers written for a 24-layer encoder, for one of ``depth`` layers: round(l * depth / 24), at least 1."""
    if relative and depth != 24:
        layers = [max(1, math.floor(layer * depth / 24 + 0.5)) for layer in check_layers(name, layers, 24)]
    return check_layers(name, layers, depth)


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    tokens_per_view: int | None,
    alpha: float,
    low: list[int],
    high: list[int],
    relative: bool,
    newline_policy: str,
    options: PlainSettings,
) -> Method:
    """HERO on ``backbone`` from the values of the config groups (see conf/method/hero.yaml)."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    of_view = backbone.grid[0] * backbone.grid[1]
    if tokens_per_view is not None:
        if tokens is not None:
            raise UserError(f"tokens={tokens} and hero.tokens_per_view={tokens_per_view} both set the budget; give one of them")
        if not 1 <= tokens_per_view <= of_view:
            raise UserError(f"hero.tokens_per_view={tokens_per_view} is outside 1 to {of_view}, the tokens of a view; use a value inside")
        retention_ratio = tokens_per_view / of_view
    low_set = relative_layers("hero_low.layers", low, depth, relative)
    high_set = relative_layers("hero_high.layers", high, depth, relative)
    if relative and depth != 24:
        print(f"CLIP layers scaled to {depth}: L = {sorted(low_set)}, H = {sorted(high_set)}")
    template = lambda question: backbone.prompt(question).replace(backbone.processor.image_token, "").strip()  # noqa: E731
    ratio = token_share(backbone, retention_ratio, tokens)
    pruner = Hero(ratio, low_set, high_set, alpha, newline_policy=newline_policy, template=template, **options)
    backbone.check(pruner.needs)
    return Method(name="hero", pruner=pruner)
