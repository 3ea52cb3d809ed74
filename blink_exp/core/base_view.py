"""Maps visual tokens to cells of an image's base view."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
