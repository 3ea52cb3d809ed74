"""CDPruner: Beyond Attention or Similarity, Maximizing Conditional Diversity for Token Pruning in MLLMs (NeurIPS 2025, arXiv 2506.10967).

Tokens that attention likes are alike, and tokens that differ may not matter to the question. A determinantal point process (DPP) trades one
for the other: a set of tokens is as good as the determinant of its part of the kernel

    L_ij = r_i S_ij r_j

is large, with S the cosine similarity of the projected tokens of a view and r their relevance to the question. A determinant is a squared
volume: it grows with the relevance of each token and shrinks as tokens point the same way. The largest one for k tokens is searched
greedily: the next token is the one that adds most volume to those before it.

  1. relevance: the cosine of each patch with the question in CLIP's joint space, times ``relevance_sign``, scaled to 0 to 1 over all views
     of the image. The sign is -1, on purpose: of CLIP the authors take the patches that are least like the question. A question over
     CLIP's 77 tokens is read in pieces whose cosines are averaged;
  2. kernel: L above. With ``theta`` relevance is sharpened first, r <- exp(theta / (2 (1 - theta)) r): larger heeds the question more;
  3. choice: each view keeps its k = N * R tokens, chosen greedily, in raster order.

The question is read without the line that asks for a short answer, which is the same for every image.

    paper       the backbone's own views; padding is never kept and has no part in the scaling of r; rows end with a newline. Every piece of
                a long question has its own begin and end token.
    reference   as the authors' code has it: every image of LLaVA-NeXT is fitted into 2 x 2 tiles, whatever its shape, and published numbers
                are for that. Padding competes, and there are no newlines. A long question's tokens are simply cut, so its first piece is
                read at the begin token, which says nothing of it.

The authors' code fails where k is above the rank of the kernel: it takes roots of negative numbers, then the same tokens again. Here one
that adds no volume (``SPANNED``) is not chosen for volume, and what is left of the budget goes to the most relevant of the other tokens.
Where all patches are equally relevant, their code divides by 0; here r is 1. They scale r over all images of a batch, here over one image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection
from blink_exp.errors import UserError
from blink_exp.methods.budgets import (
    NOMINAL_TILES,
    check_ratio,
    keeps_everything,
    resolve_newline_policy,
    token_share,
    top,
    view_budget,
)

NEWLINES = {"paper": "valid_rows", "reference": "none"}  # newline policy of each mode
PIECES = {"paper": "ends", "reference": "cut"}  # how a long question is cut, see ``ClipText.embed_pieces``
SPANNED = 1e-6  # share of a token's squared length outside the span of those chosen, below which float32 cannot tell it from none
INSTRUCTIONS = (
    "Answer the question using a single word or phrase",
    "Answer the question with a single word",
    "Answer with the option's letter from the given choices directly",
    "Please answer directly with a single word or number",
    "Please answer directly with only the letter of the correct option and nothing else",
    "请直接回答选项字母",
    "请直接使用所提供的选项字母作为答案回答",
)
_INSTRUCTION = re.compile(rf"\s*(?:{'|'.join(map(re.escape, INSTRUCTIONS))})[.。]?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class CDPruner:
    """The k patches of every view that a conditional DPP chooses.

    Args:
        ratio: share of each view's tokens to keep (R); k = floor(N * R). The authors give k itself: 128, 64, 32.
        relevance_sign: -1, the patches that CLIP finds least like the question count as relevant (the authors'); 1: the most like it.
        theta: from 0 to 1, both excluded: how much relevance counts against diversity; None: as it is (the authors' code).
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; empty: the mode's own.
    """

    name: ClassVar[str] = "cdpruner"

    ratio: float
    relevance_sign: int = -1
    theta: float | None = None
    mode: str = "paper"
    newline_policy: str = ""

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        if self.relevance_sign not in (-1, 1):
            raise UserError(f"cdpruner.relevance_sign={self.relevance_sign} is no sign; use -1 (the authors') or 1")
        if self.theta is not None and not 0 < self.theta < 1:
            raise UserError(f"cdpruner.theta={self.theta} is outside (0, 1); use a value inside, e.g. 0.5, or null")
        object.__setattr__(self, "newline_policy", resolve_newline_policy("cdpruner", self.mode, self.newline_policy, NEWLINES))

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(joint_patches=True, llm_features=True, tile_grid=NOMINAL_TILES if self.mode == "reference" else None)

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept patches of each view, ascending; None where R = 1 leaves the model untouched."""
        views = encoding.views
        pads = self.mode == "reference"
        if keeps_everything(self.ratio, views, self.newline_policy, pads):
            return None
        assert encoding.joint_patches is not None and encoding.llm_features is not None and encoding.embed_pieces is not None
        patches = encoding.joint_patches
        pieces = encoding.embed_pieces(question_text(question), PIECES[self.mode]).to(patches)
        allowed = views.candidates(pads)
        relevance = scaled_relevance(patches, pieces, self.relevance_sign, allowed)
        if self.theta is not None:
            relevance = sharpened(relevance, self.theta)
        chosen = most_volume(kernel(encoding.llm_features, relevance).cpu(), view_budget(self.ratio, views.tokens), allowed)
        kept = (filled(c, r, view_budget(self.ratio, views.tokens), a) for c, r, a in zip(chosen, relevance.cpu(), allowed, strict=True))
        return TokenSelection(tuple(kept), padding=pads)


def question_text(prompt: str) -> str:
    """A prompt without the lines that ask for a short answer; all of it if it consists of nothing else."""
    return _INSTRUCTION.sub("", prompt).strip() or prompt


def scaled_relevance(patches: torch.Tensor, pieces: torch.Tensor, sign: int, allowed: torch.Tensor) -> torch.Tensor:
    """(views, N) relevance r, scaled to 0 to 1 over the ``allowed`` patches of all views; 1 where these are all equally relevant.

    Args:
        patches: (views, N, C) and pieces: (pieces, C) of the question, in one space; the mean of a patch's cosines counts.
        sign: -1 or 1, which the cosines are multiplied by.
        allowed: (views, N) bool.
    """
    cosines = F.normalize(patches, dim=-1) @ F.normalize(pieces, dim=-1).T
    relevance = (sign * cosines).mean(-1)
    counted = relevance[allowed.to(relevance.device)]
    low, high = counted.min(), counted.max()
    return (relevance - low + 1e-6) / (high - low) if bool(high > low) else torch.ones_like(relevance)


def sharpened(relevance: torch.Tensor, theta: float) -> torch.Tensor:
    """exp(alpha r) with alpha = theta / (2 (1 - theta)), over its largest value: no choice changes, and nothing overflows."""
    return (theta / (2 * (1 - theta)) * (relevance - relevance.max())).exp()


def kernel(features: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """(views, N, N) float32 L = r S r. ``features``: (views, N, hidden), normalised in their own dtype as in the authors' code."""
    unit = F.normalize(features, dim=-1).float()
    relevance = relevance.to(unit)  # a model may be spread over devices
    return relevance[:, :, None] * (unit @ unit.transpose(1, 2)) * relevance[:, None, :]


def most_volume(kernels: torch.Tensor, count: int, allowed: torch.Tensor) -> list[torch.Tensor]:
    """For each of (views, N, N) ``kernels`` the indices that greedily maximise the determinant, in the order in which they are chosen
    (ties: lower index): ``count`` of them, or as many as the kernel's rank over the ``allowed`` (views, N) ones.

    A Cholesky factorisation with the largest rest as the next pivot: ``rest`` of a token is what it would multiply the determinant by.
    """
    views, tokens, _ = kernels.shape
    rest = kernels.diagonal(dim1=1, dim2=2).clone()
    spanned = SPANNED * rest
    rest[~allowed] = -torch.inf
    factors = kernels.new_zeros(count, views, tokens)
    rows = torch.arange(views)
    chosen = torch.full((views, count), -1)
    for step in range(min(count, tokens)):
        free = rest > spanned  # false for those chosen, and for what is no number
        best = rest.where(free, -torch.inf).argmax(-1)
        adds = free[rows, best]
        if not bool(adds.any()):
            break
        before = torch.einsum("tv,tvn->vn", factors[:step, rows, best], factors[:step])
        factor = (kernels[rows, best] - before) / rest[rows, best].sqrt()[:, None]
        factors[step] = factor.where(adds[:, None], 0.0)
        rest = rest - factors[step].square()
        rest[rows[adds], best[adds]] = -torch.inf
        chosen[:, step] = best.where(adds, -1)
    return [row[row >= 0] for row in chosen]


def filled(chosen: torch.Tensor, relevance: torch.Tensor, count: int, allowed: torch.Tensor) -> torch.Tensor:
    """(count,) ascending indices: those ``chosen``, and the most relevant of the other ``allowed`` ones (ties: lower index). Fewer where
    fewer are allowed."""
    others = allowed.clone()
    others[chosen] = False
    return torch.cat([chosen, top(relevance, count - len(chosen), others)]).sort().values


def configure(
    backbone: Any,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    relevance_sign: int = -1,
    theta: float | None = None,
    mode: str = "paper",
    newline_policy: str | None = None,
) -> Method:
    """CDPruner on ``backbone``. ``tokens``: instead of the ratio, see ``token_share``; ``newline_policy``: None takes the mode's own."""
    pruner = CDPruner(token_share(backbone, retention_ratio, tokens), relevance_sign, theta, mode, newline_policy or "")
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
