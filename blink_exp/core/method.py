"""A method: a pruner, a policy, or both, or a second view.

- a ViewPruner (``blink_exp.core.pruner``) chooses the visual tokens that enter the LLM;
- a LayerPolicy takes a decision from a scan of one layer: before the layer, for each image, or, as a TokenPolicy, behind it, for each
  row. It declares what the scan reads. Decisions do not touch hidden states, so they can be tested by hand, recorded, replayed and
  compared;
- a RegionChooser (``blink_exp.core.second_view``) chooses a part of the image that is shown as a second one.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import nn

from blink_exp.core.pruner import ViewPruner
from blink_exp.core.saliency import Scorer
from blink_exp.core.second_view import RegionChooser
from blink_exp.core.sequence import Decision, Retain
from blink_exp.core.views import TileGrid

# What is read behind a layer, for a TokenPolicy:
# - attention: the attention that the layer paid to each visual token, from the policy's raters (its softmax over all keys, mean over heads)
# - next_attention: the same of the next layer, if nothing were dropped: this layer's output through that layer's norm, q and k
#   projections and RoPE at the current positions
# - keys: the layer's keys and the likeness of its outputs; no attention
TokenReading = Literal["attention", "next_attention", "keys"]


@dataclass(frozen=True)
class KeyScan:
    """Keys of a layer and the likeness of its outputs. Tokens are counted through the remaining visual tokens of all images, then the text
    behind the last image.

    ``norms``: the L1 norm of each token's key behind RoPE, its heads concatenated; ``places``: each token's index in the row's sequence;
    ``similarities``: maps (n,) tokens to (n, visual) cosine similarities with the visual tokens, of the layer's output behind the LLM's
    final norm.
    """

    norms: tuple[float, ...]
    places: tuple[int, ...]
    similarities: Callable[[torch.Tensor], torch.Tensor]


ORIGINAL = "original"  # position numbers of kept tokens: gaps stay; "contiguous": numbered anew


@dataclass(frozen=True)
class Scan:
    """Inputs of ``decide``: one image of one sample at one layer.

    ``rho`` and ``region`` are None where the policy has no scorer; ``expanded``: whether there is an expanded segment;
    ``sample``: an id that does not depend on batch size or order; ``image``: index of the image within the prompt.

    For a TokenPolicy, over all images of a row: ``visual``: visual tokens of the prompt; ``image_tokens``: remaining ones of each image;
    ``token_scores``: attention on each remaining one, where its ``reads`` is an attention; ``keys``: where it is ``keys``; ``distances``:
    maps (n,) indices of remaining tokens to their (n, n) pairwise L2 distances at the layer's output over sqrt(hidden).
    """

    layer: int
    sample: str
    image: int
    expanded: bool
    rho: float | None = None
    region: int | None = None
    patch_scores: tuple[float, ...] = ()
    visual: int = 0
    image_tokens: tuple[int, ...] = ()
    token_scores: tuple[float, ...] = ()
    distances: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, compare=False, repr=False)
    keys: KeyScan | None = field(default=None, compare=False, repr=False)

    def recorded(self) -> Scan:
        """Without the functions, which keep states of the layer alive."""
        return replace(self, distances=None, keys=None)


class LayerPolicy(Protocol):
    """Decides before each of its ``layers`` (0-based, indices of the Hugging Face layer list)."""

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def p(self) -> int:
        """Patches a side of the grid that is scanned."""
        ...

    @property
    def scorer(self) -> Scorer | None:
        """None: patches are not scored."""
        ...

    @property
    def scan_expanded(self) -> bool:
        """Whether expanded tokens count towards their patch."""
        ...

    @property
    def interpolate(self) -> bool:
        """Whether a patch is upsampled to the full grid before it is inserted."""
        ...

    @property
    def inherit_positions(self) -> bool: ...

    @property
    def drops(self) -> bool:
        """Whether it drops visual tokens behind its layers, as a ``TokenPolicy`` does."""
        ...

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of its decisions by setting; may be empty."""
        ...

    def decide(self, layer: int, scan: Scan) -> Decision: ...

    def layer_tokens(self, visual: int, depth: int) -> list[int] | None:
        """Visual tokens in each of ``depth`` layers for a prompt of ``visual``; None where that depends on the prompt."""
        ...


class TokenPolicy(ABC):
    """A LayerPolicy without patches: behind each of its ``layers`` it decides which visual tokens of a row remain, from what it ``reads``
    there. Works for any number of visual tokens, so also for LLaVA-NeXT."""

    p = 1
    scorer: Scorer | None = None
    scan_expanded = interpolate = False
    drops = True
    reads: TokenReading = "attention"
    inherit_positions = False  # True: tokens keep their position numbers, with gaps; False: renumbered without gaps

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]: ...

    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(text,) bool: the tokens whose attention is read, chosen once from the LLM's input embeddings of a row: ``visual``
        (visual, hidden) and ``text`` (text, hidden), the prompt behind the last image. By default its last token."""
        return torch.arange(len(text), device=text.device) == len(text) - 1

    @abstractmethod
    def decide(self, layer: int, scan: Scan) -> Retain: ...

    @abstractmethod
    def kept(self, visual: int) -> list[int]:
        """How many of a prompt's ``visual`` tokens remain behind each of its layers."""

    @property
    def thresholds(self) -> dict[str, float]:
        return {}

    def layer_tokens(self, visual: int, depth: int) -> list[int]:
        edges = [0, *(layer + 1 for layer in self.layers), depth]  # tokens are dropped behind the layer
        return [n for n, (a, b) in zip([visual, *self.kept(visual)], itertools.pairwise(edges), strict=True) for _ in range(a, b)]


@dataclass(frozen=True)
class Record:
    """One decision: its scan, the decision, and the number of visual tokens behind it (Blink: in this layer; a TokenPolicy, which
    decides behind a layer: in the next one). ``row``: of the batch."""

    row: int
    scan: Scan
    decision: Decision
    visual_tokens: int


@dataclass
class Method:
    """A pruner, a policy with its TokenSR modules, and a second view; each may be absent. ``Method()`` is the untouched model.

    ``amplifiers``: TokenSR module of each layer, keyed by layer index; ``entering``: visual tokens of an image of nominal size that the
    pruner of a pair with a budget lets in; None: all, or not stated; ``positions``: position numbers of the tokens that are kept, see
    ``original_positions``; None: what the authors of its parts chose.
    """

    policy: LayerPolicy | None = None
    amplifiers: nn.ModuleDict | None = None
    name: str = "none"
    pruner: ViewPruner | None = None
    closeup: bool = False  # whether expanded tokens are made from the image's pixels (``blink_exp.decoder.closeups``), not from its tokens
    restore_dropped: bool = False  # whether an expansion restores tokens of the base view that the pruner dropped
    second_view: RegionChooser | None = None
    entering: int | None = None
    positions: str | None = None

    @property
    def needs_canvas(self) -> bool:
        """Whether it looks at parts of an image at the image's own resolution."""
        return self.closeup or self.second_view is not None

    @property
    def tile_grid(self) -> TileGrid | None:
        """(rows, columns) of tiles that every image is made into; None: the backbone's own choice."""
        return self.pruner.needs.tile_grid if self.pruner is not None else None

    @property
    def drops(self) -> bool:
        """Whether visual tokens are dropped, before the LLM or inside it."""
        return self.pruner is not None or self.drops_inside

    @property
    def original_positions(self) -> bool:
        """Whether the tokens that its pruner lets in keep the position numbers that they have in the unpruned sequence, with gaps, instead
        of being numbered anew."""
        return self.pruner is not None and self.positions == ORIGINAL

    @property
    def inherits_positions(self) -> bool:
        """Whether the tokens that its policy leaves keep their position numbers; see ``original_positions``."""
        if self.policy is None:
            return False
        return self.policy.inherit_positions if self.positions is None else self.positions == ORIGINAL

    @property
    def drops_inside(self) -> bool:
        return self.policy is not None and self.policy.drops
