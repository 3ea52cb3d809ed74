"""How an image becomes views, and how the visual tokens that a pruner keeps become a sequence.

LLaVA-1.5 sees one view. LLaVA-NeXT sees a thumbnail (base view) and rows x columns tiles, which it stitches to one grid, cuts free of
padding and ends each row of with a newline token (LLaVA-NeXT's "anyres", "spatial_unpad").
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from blink_exp.core.second_view import SecondView
from blink_exp.errors import UserError, nearest

NEWLINE_POLICIES = ("valid_rows", "none", "all_rows")
TileGrid = tuple[int, int]  # rows and columns of tiles
NEWLINE, EXTRA = -1, -2  # sources of packed tokens that are not patches: a newline, a token that a method adds (merged ones, CLS)


@dataclass(frozen=True)
class ViewGeometry:
    """The geometry of one image's views. View 0 is the thumbnail, or the image itself where there are no tiles.

    Args:
        side: patches on a side of a view, so a view has side * side tokens.
        rows, columns: the grid of tiles; 0 and 0 without tiles.
        size: (height, width) of the image in pixels, which says how much of the grid is padding; unused without tiles.
        newline: whether the backbone ends rows with a newline token.
    """

    side: int
    rows: int = 0
    columns: int = 0
    size: tuple[int, int] = (1, 1)
    newline: bool = False

    @classmethod
    def of(cls, config: Any, size: tuple[int, int], tile_grid: TileGrid | None = None) -> ViewGeometry:
        """The views of an image of ``size`` (height, width) pixels under a LLaVA-1.5 or LLaVA-NeXT ``config``. ``tile_grid``: the grid of
        tiles under LLaVA-NeXT; None: by the backbone's own rule."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        if not hasattr(config, "image_grid_pinpoints"):
            return cls(side)
        default_grid = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        rows, columns = tile_grid or default_grid
        return cls(side, rows, columns, (int(size[0]), int(size[1])), newline=True)

    @property
    def tokens(self) -> int:
        """Tokens of one view (N)."""
        return self.side**2

    @property
    def tiles(self) -> int:
        """K."""
        return self.rows * self.columns

    @property
    def count(self) -> int:
        """Views: the thumbnail and the tiles (K + 1)."""
        return self.tiles + 1

    @functools.cached_property
    def stitched(self) -> torch.Tensor:
        """(rows * side, columns * side): flat index view * N + patch for each cell of the stitched grid of tiles."""
        flat = torch.arange(self.tokens, self.count * self.tokens).view(self.rows, self.columns, self.side, self.side)
        return flat.permute(0, 2, 1, 3).reshape(self.rows * self.side, self.columns * self.side)

    @functools.cached_property
    def unpadded(self) -> torch.Tensor:
        """The part of ``stitched`` that shows the image, cut as the backbone cuts it."""
        part: torch.Tensor = unpad_image(self.stitched[None], self.size)[0]
        return part

    @property
    def shown_tiles(self) -> bool:
        """Whether the tiles show any of the image; for an image thinner than a row of patches the backbone's rule leaves nothing."""
        return self.tiles > 0 and self.unpadded.numel() > 0

    @functools.cached_property
    def valid(self) -> torch.Tensor:
        """(views, N) bool: false on tile tokens that show padding only. The thumbnail is stretched and has none."""
        out = torch.zeros(self.count * self.tokens, dtype=torch.bool)
        out[: self.tokens] = True
        if self.tiles:
            out[self.unpadded.flatten()] = True
        return out.view(self.count, self.tokens)

    def candidates(self, padding: bool) -> torch.Tensor:
        """(views, N) bool: tokens that a pruner may keep: all with ``padding``, else those that are ``valid``."""
        return torch.ones_like(self.valid) if padding else self.valid

    @functools.cached_property
    def blocks(self) -> torch.Tensor:
        """(N,): the tile whose block each thumbnail patch lies in, when the thumbnail is split evenly into rows x columns blocks.
        The last block takes the remainder. Only with tiles."""
        offsets = torch.arange(self.side)
        r = (offsets // (self.side // self.rows)).clamp(max=self.rows - 1)
        c = (offsets // (self.side // self.columns)).clamp(max=self.columns - 1)
        return (r[:, None] * self.columns + c).flatten()


@dataclass(frozen=True)
class TokenSelection:
    """The tokens of one image that a pruner keeps.

    Args:
        indices: for each view the kept patches, (kept_i,) int64, each at most once. Without ``by_view`` their order does not matter.
        merged: for each view features (kept_i, C) that replace the encoder's, in the order of ``indices``; None: the encoder's.
        extra: for each view additional features (extra_i, C) behind its patches; None: none.
        by_view: tokens enter the LLM view after view in the order of ``indices``, without newlines; else the thumbnail in raster
            order, then the stitched grid of tiles in raster order.
        padding: whether tile tokens that show padding may be kept (the stitched grid is not cut then).
        sequence: (tokens,) sources as ``pack`` gives them, newlines included, for methods with an order of their own: it is packed as it
            stands. ``extra`` is then in the order of its EXTRA. None: by the rules above.
    """

    indices: tuple[torch.Tensor, ...]
    merged: tuple[torch.Tensor, ...] | None = None
    extra: tuple[torch.Tensor, ...] | None = None
    by_view: bool = False
    padding: bool = False
    sequence: torch.Tensor | None = None

    @classmethod
    def of_sequence(cls, views: ViewGeometry, sequence: torch.Tensor, extra: tuple[torch.Tensor, ...] | None = None) -> TokenSelection:
        """The tokens with these sources, in this order."""
        patches = sequence[sequence >= 0]
        indices = tuple(patches[patches // views.tokens == v] % views.tokens for v in range(views.count))
        return cls(indices, extra=extra, sequence=sequence)


def all_tokens(views: ViewGeometry) -> TokenSelection:
    """All tokens that show the image: the untouched model."""
    return TokenSelection(tuple(valid.nonzero()[:, 0] for valid in views.valid))


def check_newline_policy(policy: str) -> str:
    if policy not in NEWLINE_POLICIES:
        raise UserError(f"newline_policy={policy} is not known; {nearest(policy, NEWLINE_POLICIES)}")
    return policy


def pack(views: ViewGeometry, selection: TokenSelection, newline_policy: str = "valid_rows") -> torch.Tensor:
    """(tokens,) sources in the order in which they enter the LLM: view * N + patch, or NEWLINE, or EXTRA (the next of ``selection.extra``).

    ``newline_policy``: ``valid_rows`` ends every unpadded row of tiles with a newline, also where no token of it was
    kept; ``all_rows`` every row of the padded grid; ``none`` no row. Newlines are not part of any budget. Without effect on a selection
    by view or with a sequence of its own.
    """
    check_newline_policy(newline_policy)
    if selection.sequence is not None:
        return selection.sequence
    n = views.tokens
    extra = [torch.full((len(selection.extra[v]) if selection.extra else 0,), EXTRA) for v in range(views.count)]
    if selection.by_view:
        return torch.cat([part for v in range(views.count) for part in (v * n + selection.indices[v].cpu(), extra[v])])
    chosen = torch.zeros(views.count * n, dtype=torch.bool)
    for v, index in enumerate(selection.indices):
        chosen[v * n + index.cpu()] = True
    out = [chosen[:n].nonzero()[:, 0], extra[0]]
    if views.tiles:
        whole = views.stitched if selection.padding or newline_policy == "all_rows" else views.unpadded
        if not selection.padding:
            chosen &= views.valid.flatten()
        newline = torch.tensor([NEWLINE] if views.newline and newline_policy != "none" else [], dtype=torch.long)
        # With padding kept and newlines for valid rows only, a row counts as valid where it shows some of the image.
        shows = views.valid.flatten()
        for row in whole:
            ends = newline if newline_policy == "all_rows" or bool(shows[row].any()) else newline[:0]
            out += [row[chosen[row]], ends]
        out += extra[1:]
    elif views.newline and newline_policy != "none":
        out.append(torch.tensor([NEWLINE]))  # LLaVA-NeXT ends a single view with one newline
    return torch.cat(out)


@dataclass(frozen=True, eq=False)
class OriginalPositions:
    """Position numbers of an image's tokens in the unpruned sequence. ``numbers``: (tokens,) of each token that enters, 0 at the image's
    first; ``length``: tokens of the unpruned image, behind which what follows is numbered."""

    numbers: torch.Tensor
    length: int


def original_positions(source: torch.Tensor, views: ViewGeometry) -> OriginalPositions | None:
    """The positions of packed tokens ``source`` in the unpruned sequence, newlines included; None where nothing was dropped.

    A merged token has the number of the patch in whose place it stands, a newline that of its row. A token without a place in the unpruned
    sequence (added by a merging method, padding, a newline of a padded row) has that of the token in front of it, or 0.
    """
    source = source.cpu()
    full = pack(views, all_tokens(views))
    if torch.equal(source, full):
        return None
    positions = torch.full((views.count * views.tokens,), -1)
    positions[full[full >= 0]] = (full >= 0).nonzero()[:, 0]
    patch = (source >= 0) & (source < len(positions))
    numbers = torch.where(patch, positions[torch.where(patch, source, 0)], -1)
    newlines, places = source == NEWLINE, (full == NEWLINE).nonzero()[:, 0]
    if int(newlines.sum()) == views.rows * views.side != len(places):  # those of all rows of the padded grid
        shown = views.valid.flatten()[views.stitched].any(1)
        places = torch.full((len(shown),), -1).masked_scatter(shown, places)
    if int(newlines.sum()) == len(places):
        numbers[newlines] = places
    known = torch.where(numbers >= 0, torch.arange(len(numbers)), -1).cummax(0).values
    return OriginalPositions(torch.where(known >= 0, numbers[known.clamp(min=0)], 0), len(full))


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image that enter the LLM: (tokens, hidden) projected features and their sources (see ``pack``).

    ``dropped_embeddings``: (N, hidden), the whole projected base view, for methods that restore dropped tokens; ``second``: the part of
    the image that is shown as a second one, its tokens last, with sources behind those of all views; None: there is none.
    """

    features: torch.Tensor
    source: torch.Tensor
    views: ViewGeometry
    dropped_embeddings: torch.Tensor | None = None
    second: SecondView | None = None

    @property
    def newlines(self) -> int:
        return int((self.source == NEWLINE).sum())

    @functools.cached_property
    def original_positions(self) -> OriginalPositions | None:
        return original_positions(self.source, self.views)

    @property
    def base_map(self) -> BaseViewMap:
        return base_view(self.source, self.views, self.dropped_embeddings)


@dataclass(frozen=True)
class BaseViewMap:
    """Maps the visual tokens of one image to cells of its base view.

    ``cells``: (tokens,) raster index on the base view of each token, -1 for a token of a tile, a newline or an added token;
    ``dropped_embeddings``: (H * W, hidden) embeddings of the whole base view, to restore dropped tokens from; None: not restored.
    """

    cells: torch.Tensor
    dropped_embeddings: torch.Tensor | None = None

    def whole(self, cells: int) -> bool:
        """Whether these are the ``cells`` tokens of one view, in raster order."""
        return len(self.cells) == cells and torch.equal(self.cells.cpu(), torch.arange(cells))

    def grid(self, states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(H * W, hidden) base view from the (tokens, hidden) ``states`` of the kept tokens. A missing cell is restored from
        ``dropped_embeddings`` or takes the mean of its nearest kept tokens on the grid."""
        on_base = self.cells >= 0
        cells, values = self.cells[on_base].to(states.device), states[on_base.to(states.device)]
        missing = torch.ones(height * width, dtype=torch.bool, device=states.device)
        missing[cells] = False
        out = states.new_empty(height * width, states.shape[-1])
        out[cells] = values
        if self.dropped_embeddings is not None:
            out[missing] = self.dropped_embeddings.to(out)[missing]
        elif bool(missing.any()):
            raster = torch.arange(height * width, device=states.device)
            coordinates = torch.stack([raster // width, raster % width], dim=1)
            distance = (coordinates[missing][:, None] - coordinates[cells][None]).square().sum(-1)  # squared integers: ties are exact
            nearest = (distance == distance.amin(1, keepdim=True)).to(states.dtype)
            out[missing] = nearest @ values / nearest.sum(1, keepdim=True)
        return out


def base_view(source: torch.Tensor, views: ViewGeometry, dropped_embeddings: torch.Tensor | None = None) -> BaseViewMap:
    """Which cell of the base view each token of a packed image shows."""
    return BaseViewMap(torch.where((source >= 0) & (source < views.tokens), source, -1), dropped_embeddings)
