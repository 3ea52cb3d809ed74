"""Control methods: baselines at the same budget for methods that drop tokens.

Three ways to keep a share of the visual tokens regardless of content: at random, on a regular grid, and by shrinking the
image until it has that many. Each view keeps its share of the tokens that show the image; padding is never kept.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, ViewGeometry, check_newline_policy
from blink_exp.methods.budgets import at_least_one, check_ratio, floor_tolerant, keeps_everything, token_share

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone


@dataclass(frozen=True)
class _Control(ABC):
    """Base class. ``ratio``: share of each view's unpadded tokens that is kept, rounded down; 1 leaves the model untouched.
    ``newline_policy``: see ``core.views.pack``."""

    ratio: float
    newline_policy: str = field(default="valid_rows", kw_only=True)

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        check_newline_policy(self.newline_policy)

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements()

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        views = encoding.views
        if keeps_everything(self.ratio, views, self.newline_policy):
            return None
        return TokenSelection(tuple(self.choose(views, v, budget, question) for v, budget in enumerate(budgets(views, self.ratio))))

    @abstractmethod
    def choose(self, views: ViewGeometry, view: int, budget: int, question: str) -> torch.Tensor:
        """(budget or fewer,) ascending indices of the kept tokens of view ``view``."""


@dataclass(frozen=True)
class RandomTokens(_Control):
    """A random subset of each view. It is drawn from (seed, question, view, geometry), so a result depends neither on batch size nor on
    the order of samples."""

    seed: int = 0
    name: str = "random"

    def choose(self, views: ViewGeometry, view: int, budget: int, question: str) -> torch.Tensor:
        valid = views.valid[view].nonzero()[:, 0]
        word = f"{self.seed}|{question}|{view}|{views.size}"
        draw = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1  # a generator's seed has 63 bits
        order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(draw))
        return valid[order[:budget].sort().values]


@dataclass(frozen=True)
class UniformGrid(_Control):
    """A regular grid on each view: the rows x columns of ``cells``, and where the budget is no such product, the rest evenly spread, in
    raster order, over the tokens that the grid leaves out."""

    name: str = "uniform"

    def choose(self, views: ViewGeometry, view: int, budget: int, question: str) -> torch.Tensor:
        index = centres(views, view, budget)
        free = views.valid[view].clone()
        free[index] = False
        others = free.nonzero()[:, 0]
        return torch.cat([index, others[spread(len(others), budget - len(index))]]).sort().values


@dataclass(frozen=True)
class Downsample(_Control):
    """Each view shrunk to the rows x columns of ``cells``, which may be a few tokens less than the budget.

    Shrinking is done on the encoder's features, by average pooling: a stand-in for an image of fewer pixels, which CLIP with its fixed
    number of positions cannot take. A cell's feature stands at the token that holds the cell's centre.
    """

    name: str = "downsample"
    merges = True

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        selection = super().select(encoding, question)
        if selection is None:
            return None
        views, width = encoding.views, encoding.hidden.shape[-1]
        merged = []
        for v, budget in enumerate(budgets(views, self.ratio)):
            if not budget:
                merged.append(encoding.hidden[v, :0])
                continue
            top, left, height, columns = rectangle(views, v)
            image = encoding.hidden[v].view(views.side, views.side, width)[top : top + height, left : left + columns]
            pooled = F.adaptive_avg_pool2d(image.permute(2, 0, 1).float(), cells(height, columns, budget))
            merged.append(pooled.flatten(1).T.to(encoding.hidden.dtype))
        return replace(selection, merged=tuple(merged))

    def choose(self, views: ViewGeometry, view: int, budget: int, question: str) -> torch.Tensor:
        return centres(views, view, budget)


def budgets(views: ViewGeometry, ratio: float) -> list[int]:
    """Tokens that each view keeps: floor(ratio * its unpadded tokens). Raises UserError if that is none at all."""
    valid = views.valid.sum(1).tolist()
    out = [floor_tolerant(n * ratio) for n in valid]
    at_least_one(f"retention_ratio={ratio}", sum(out), max(valid))
    return out


def rectangle(views: ViewGeometry, view: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in tokens of the unpadded part of a view; zeros where there is none."""
    valid = views.valid[view].view(views.side, views.side)
    rows, columns = valid.any(1).nonzero()[:, 0], valid.any(0).nonzero()[:, 0]
    return (int(rows[0]), int(columns[0]), len(rows), len(columns)) if len(rows) else (0, 0, 0, 0)


def cells(height: int, width: int, budget: int) -> tuple[int, int]:
    """(rows, columns) that cut height x width tokens into at most ``budget`` cells, each as square as the budget allows: the longer side
    of a cell is as short as possible; among those, most cells; among those, fewest rows. A budget of 5 on a square is 2 x 2, not 1 x 5."""
    options = [(r, min(width, budget // r)) for r in range(1, min(height, budget) + 1)]
    return min(options, key=lambda rc: (max(height / rc[0], width / rc[1]), -rc[0] * rc[1], rc[0]))


def spread(length: int, count: int) -> torch.Tensor:
    """(count,) positions evenly spread over ``length``, ascending: the one that holds the centre of each of ``count`` equal parts."""
    return (2 * torch.arange(count) + 1) * length // (2 * max(1, count))


def centres(views: ViewGeometry, view: int, budget: int) -> torch.Tensor:
    """(rows * columns,) ascending indices of the tokens at the centres of a view's ``cells``."""
    if not budget:
        return torch.zeros(0, dtype=torch.long)
    top, left, height, width = rectangle(views, view)
    rows, columns = cells(height, width, budget)
    return ((top + spread(height, rows))[:, None] * views.side + left + spread(width, columns)).flatten()


def random(backbone: Backbone, *, ratio: float, tokens: int | None = None, **settings: Any) -> Method:
    """Random tokens; settings are those of ``RandomTokens``. ``tokens``: see ``token_share``."""
    return Method(name="random", pruner=RandomTokens(token_share(backbone, ratio, tokens), **settings))


def uniform(backbone: Backbone, *, ratio: float, tokens: int | None = None, **settings: Any) -> Method:
    """A uniform grid of tokens; settings are those of ``UniformGrid``. ``tokens``: see ``token_share``."""
    return Method(name="uniform", pruner=UniformGrid(token_share(backbone, ratio, tokens), **settings))


def downsample(backbone: Backbone, *, ratio: float, tokens: int | None = None, **settings: Any) -> Method:
    """A smaller image; settings are those of ``Downsample``. ``tokens``: see ``token_share``; whole rows and columns may be a few less."""
    return Method(name="downsample", pruner=Downsample(token_share(backbone, ratio, tokens), **settings))
