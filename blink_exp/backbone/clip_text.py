"""CLIP's text tower and the two projections into its joint space, which a LLaVA checkpoint leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaForConditionalGeneration

from blink_exp import hub
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.backbone.weights import check_finite
from blink_exp.errors import UserError, flat

SHARED = "vision_model."  # prefix of the weights that CLIP and LLaVA share
MOST_TEXTS = 4096  # cached embeddings, 3 KB each for CLIP-L


class ClipText:
    """Image and text embeddings in CLIP's joint space, for CLIPscore (HERO, Sec. IV-B-1) and CDPruner's relevance.

    Args:
        clip: a ``CLIPModel`` whose vision tower is the one that LLaVA has.
        tokenizer: its tokenizer; ``embed_text`` cuts longer texts to the tower's length (77 tokens).
        ending: end token to append where the tokenizer does not add the one that the tower pools at.
    """

    def __init__(self, clip: Any, tokenizer: Any, ending: str = ""):
        self.clip, self.tokenizer, self.ending = clip, tokenizer, ending
        self._known: dict[tuple[str, str], torch.Tensor] = {}  # {(text, what): embedding}

    @torch.no_grad()
    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """(..., projection) float32 from (..., width) states behind the tower's last norm; the tower is not run."""
        weight = self.clip.visual_projection.weight
        projected: torch.Tensor = self.clip.visual_projection(pooled.to(weight.device, weight.dtype))
        return projected.float()

    def embed_text(self, text: str) -> torch.Tensor:
        """(projection,) float32."""
        return self._remembered(text, "whole", self._embed_whole)

    def embed_pieces(self, text: str, rule: str) -> torch.Tensor:
        """(pieces, projection) float32: a text of any length in pieces of at most the tower's length. A text that fits is one piece, the
        same under both rules.

        ``rule``: ``ends``, every piece has a begin and an end token and is pooled at its end; ``cut``, as CDPruner's code has it, the
        token sequence is simply cut: a piece without the end token is pooled at its highest id, which for the first of CLIP's is the begin
        token, a constant that says nothing of the text.
        """
        return self._remembered(text, rule, self._embed_cut if rule == "cut" else self._embed_ended)

    def _remembered(self, text: str, what: str, embed: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        if (text, what) not in self._known:
            if len(self._known) >= MOST_TEXTS:
                del self._known[next(iter(self._known))]
            self._known[text, what] = embed(self.tokenizer(text + self.ending).input_ids)
        return self._known[text, what]

    @property
    def _length(self) -> int:
        length: int = self.clip.config.text_config.max_position_embeddings
        return length

    @torch.no_grad()
    def _embed_whole(self, ids: list[int]) -> torch.Tensor:
        if len(ids) > self._length:  # the tower pools at the last token, so it is kept
            ids = [*ids[: self._length - 1], ids[-1]]
        embedded: torch.Tensor = self.clip.get_text_features(input_ids=self._row(ids)).pooler_output[0].float().clone()
        return embedded

    def _embed_ended(self, ids: list[int]) -> torch.Tensor:
        if len(ids) <= self._length:
            return self._embed_whole(ids)[None]
        begin, *words, end = ids
        step = self._length - 2
        return torch.stack([self._embed_whole([begin, *words[i : i + step], end]) for i in range(0, len(words), step)])

    @torch.no_grad()
    def _embed_cut(self, ids: list[int]) -> torch.Tensor:
        if len(ids) <= self._length:
            return self._embed_whole(ids)[None]
        pooled = []
        for i in range(0, len(ids), self._length):
            piece = ids[i : i + self._length]
            position = piece.index(ids[-1]) if ids[-1] in piece else piece.index(max(piece))
            pooled.append(self.clip.text_model(input_ids=self._row(piece)).last_hidden_state[0, position])
        projected: torch.Tensor = self.clip.text_projection(torch.stack(pooled)).float()
        return projected

    def _row(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.clip.device)


def load_clip_text(path: str | None, backbone: Any) -> ClipText:
    """The text tower for ``backbone``: ``scale`` is the one that ships, else a CLIP folder or hub id. Raises UserError where it
    does not match the backbone's vision tower."""
    if path is None:
        raise UserError(
            "model.clip=null, but this method reads CLIP's text tower; give its folder or hub id, or set hero_alpha=no_text (HERO)"
        )
    if path == "scale":
        return ClipText(load_clip().to(backbone.model.device), backbone.processor.tokenizer, backbone.processor.tokenizer.eos_token)
    if not Path(path).is_dir() and path.count("/") != 1:
        raise UserError(f"model.clip={path} is neither a folder nor a hub id like openai/clip-vit-large-patch14-336; give one of them")
    if not Path(path).is_dir():
        hub.check_connection()
    try:
        clip: Any = CLIPModel.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # libraries do not document their exceptions for damaged files
        raise UserError(
            f"model.clip={path} gives no CLIP in safetensors ({flat(error, 240)}); give a folder that holds one, or set hero_alpha=no_text"
        ) from error
    ours = backbone.model.model.vision_tower.state_dict()
    theirs = {k.removeprefix("vision_model."): v for k, v in clip.vision_model.state_dict().items()}
    name = "embeddings.patch_embedding.weight"
    our_weight = next(v for k, v in ours.items() if k.endswith(name))
    their_weight = next(v for k, v in theirs.items() if k.endswith(name))
    if our_weight.shape != their_weight.shape or not torch.allclose(
        our_weight.float().cpu(), their_weight.float(), atol=1e-2 * float(their_weight.abs().max())
    ):
        raise UserError(f"model.clip={path} has another vision tower than {backbone.name}; give the CLIP that it was made from")
    check_finite(clip, path, "model.clip")
    return ClipText(clip.to(backbone.model.device), tokenizer)


def load_clip(folder: Path = SHIPPED) -> CLIPModel:
    """The scale CLIP, its vision tower taken from the scale LLaVA."""
    clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
    state = safetensors.torch.load_file(folder / "clip" / "text_and_projections.safetensors")
    prefix = "model.vision_tower."
    for name, weight in _llava_state(folder).items():
        if name.startswith(prefix):
            state[SHARED + name.removeprefix(prefix).removeprefix(SHARED)] = weight
    missing, unexpected = clip.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and not [k for k in missing if "position_ids" not in k], (missing, unexpected)
    return clip.eval().requires_grad_(False)


def _llava_state(folder: Path) -> dict[str, Any]:
    return dict(LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype="float32").state_dict())
