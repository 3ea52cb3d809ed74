"""CLIP's encoding of one image: patch features, and what else pruners read of the encoder.

CLIP layers are 1-based, as the papers count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from blink_exp.core.views import TileGrid, ViewGeometry
from blink_exp.errors import UserError


@dataclass(frozen=True)
class EncoderRequirements:
    """What a pruner requires of the encoder.

    Args:
        attention: CLIP layers (1-based) whose CLS row it reads.
        keys: layers whose CLS query and keys it reads.
        cls: whether it reads CLS embeddings.
        text: whether it reads the text tower's embedding of the question, and tiles in the same space; without tiles it reads neither.
        joint_patches: whether it reads patches in CLIP's joint space and embeddings of the question's pieces, with or without tiles.
        llm_features: whether it reads patches as the projector hands them to the LLM.
        tile_grid: (rows, columns) of tiles that every image is made into; None: the backbone's own choice for the image.
    """

    attention: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    cls: bool = False
    text: bool = False
    joint_patches: bool = False
    llm_features: bool = False
    tile_grid: TileGrid | None = None

    def union(self, *others: EncoderRequirements) -> EncoderRequirements:
        """The union of requirements on the same views."""
        requirements = (self, *others)
        assert len({n.tile_grid for n in requirements}) == 1, "one image is made into several grids of tiles; see unions"

        def layers(name: str) -> frozenset[int]:
            return frozenset().union(*(getattr(n, name) for n in requirements))

        def read(name: str) -> bool:
            return any(getattr(n, name) for n in requirements)

        flags = (read("cls"), read("text"), read("joint_patches"), read("llm_features"))
        return EncoderRequirements(layers("attention"), layers("keys"), *flags, tile_grid=self.tile_grid)

    def covers(self, other: EncoderRequirements) -> bool:
        return self.tile_grid == other.tile_grid and self.union(other) == self


def unions(requirements: Iterable[EncoderRequirements]) -> list[EncoderRequirements]:
    """The union of the requirements on each grid of tiles: the fewest passes of the encoder that serve them all."""
    by_grid: dict[TileGrid | None, list[EncoderRequirements]] = {}
    for needs in requirements:
        by_grid.setdefault(needs.tile_grid, []).append(needs)
    return [first.union(*others) for first, *others in by_grid.values()]


@dataclass
class Encoding:
    """CLIP's outputs for one image.

    Args:
        views: its geometry. In the shapes below views is K + 1, N patches of a view, C the tower's width.
        hidden: (views, N, C) patch features of the layer that the backbone reads, before the projector; ``hidden_cls``: (views, C) CLS
            token of that layer, None if not required.
        logits: {layer: (views, heads, N + 1)} float32 CLS-to-all products q k / sqrt(head width), the CLS key first.
        queries, keys: {layer: (views, C)} of the CLS token and {layer: (views, N + 1, C)}, float32.
        last_hidden: (views, C) CLS token after the last layer, before its norm; ``pooled``: after it; None if not required.
        projected: (views, projection) image embeddings in CLIP's joint space, if there is a text tower.
        embed_text: maps a question to (projection,) by the text tower; None if there is none.
        joint_patches: (views, N, projection) float32 patches of the last but one layer in CLIP's joint space; None if not required.
        embed_pieces: maps a question to the (pieces, projection) embeddings of its pieces (``ClipText.embed_pieces``), by a pooling rule.
        llm_features: (views, N, width) ``hidden`` behind the projector, as the LLM reads it; None if not required.
        newline: (width,) newline token of a backbone with tiles, with ``llm_features``.
    """

    views: ViewGeometry
    hidden: torch.Tensor
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    last_hidden: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    projected: torch.Tensor | None = None
    embed_text: Callable[[str], torch.Tensor] | None = None
    joint_patches: torch.Tensor | None = None
    embed_pieces: Callable[[str, str], torch.Tensor] | None = None
    hidden_cls: torch.Tensor | None = None
    llm_features: torch.Tensor | None = None
    newline: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = [self.hidden, *self.logits.values(), *self.queries.values(), *self.keys.values()]
        optional = (self.last_hidden, self.pooled, self.projected, self.joint_patches, self.hidden_cls, self.llm_features)
        return sum(t.nbytes for t in (*tensors, *optional) if t is not None)

    def attention(self, layer: int) -> torch.Tensor:
        """(views, heads, N) CLS-to-patch probabilities of a layer, softmax over all N + 1 keys, so a row sums to 1 - a(CLS -> CLS)."""
        return self.logits[layer].softmax(-1)[..., 1:]

    def cls_attention(self, layers: frozenset[int] | tuple[int, ...]) -> torch.Tensor:
        """(views, N): the mean over heads and over ``layers`` of ``attention``."""
        return torch.stack([self.attention(layer).mean(1) for layer in sorted(layers)]).mean(0)


def check_layers(name: str, layers: Iterable[int], depth: int) -> frozenset[int]:
    """CLIP layers (1-based) as a set. Raises UserError if it is empty or has layers outside the encoder."""
    numbers = frozenset(int(layer) for layer in layers)
    if not numbers:
        raise UserError(f"{name}=[] names no layer; use layers from 1 to {depth}")
    for layer in sorted(numbers):
        if not 1 <= layer <= depth:
            raise UserError(f"{name} holds layer {layer}, outside the encoder's 1 to {depth}; use layers inside")
    return numbers
