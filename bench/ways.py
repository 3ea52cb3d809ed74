"""The pieces of work that ``bench.methods`` sets side by side, as functions without arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from bench.shapes import Prompt, Shape, packed, pixels, prefill, random_model, square
from bench.usual import embeddings
from blink_exp.backbone.cache_name import CACHE
from blink_exp.backbone.encode import encode, tower_layers
from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.pruner import ViewPruner
from blink_exp.core.views import ViewGeometry, all_tokens, base_view, pack
from blink_exp.decoder.attach import attach
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.fastervlm import FasterVLM
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.globalcom2 import GlobalCom2
from blink_exp.methods.hero import Hero
from blink_exp.methods.hired import HiRED
from blink_exp.methods.sparsevlm import SparseVLMPolicy, scaled_schedule
from blink_exp.tokensr.modules import build

BLINK_LAYERS = range(12, 19)  # of 32, as the papers write layers; so are FastV's 2 and SparseVLM's
SPARSE_LAYERS = (2, 6, 15)
LOW, HIGH = frozenset(range(6, 11)), frozenset({22})


class Given(nn.Module):
    """Stands in for a projection: gives back what the real one gave."""

    def __init__(self, out: torch.Tensor):
        super().__init__()
        self.out = out

    def forward(self) -> torch.Tensor:
        return self.out


class Replay(nn.Module):
    """A tower that has run already: a pass takes no time, so what is timed around it is what a method adds to the tower."""

    def __init__(self, tower: Any, output: Any, projections: dict[tuple[int, str], torch.Tensor]):
        super().__init__()
        self.embeddings = tower.embeddings  # only asked whether there is a CLS token
        self.output = output
        depth = len(tower_layers(tower))
        parts = [{name: Given(projections[i, name]) for name in ("q_proj", "k_proj") if (i, name) in projections} for i in range(depth)]
        self.layers = [SimpleNamespace(self_attn=SimpleNamespace(**part)) for part in parts]
        self.encoder = SimpleNamespace(layers=self.layers)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, images: torch.Tensor, layers: frozenset[int]) -> Replay:
        """``layers``: CLIP layers (1-based) whose projections may be asked for."""
        tower = model.model.vision_tower
        seen: dict[tuple[int, str], torch.Tensor] = {}
        hooks = []
        for i in sorted(layers):
            for name in ("q_proj", "k_proj"):
                projection = getattr(tower_layers(tower)[i - 1].self_attn, name)
                hooks.append(projection.register_forward_hook(lambda m, a, out, key=(i - 1, name): seen.update({key: out})))
        try:
            return cls(tower, tower(images, output_hidden_states=True), seen)
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, *_: Any, **__: Any) -> Any:
        for layer in self.layers:
            for projection in vars(layer.self_attn).values():
                projection()  # its hooks see what they would have seen
        return self.output


@torch.no_grad()
def fed(model: Any, counts: list[int], prompt: Prompt) -> torch.Tensor:
    """The stock layers simply fed the last ``counts[i]`` tokens of a prompt at layer i: the limit of every method that works on as many.
    Returns the next token's logits."""
    llm = model.model.language_model
    states = embeddings(model, prompt)
    cache, rope = DynamicCache(config=llm.config), None
    for layer, count in zip(llm.layers, counts, strict=True):
        if rope is None or count != states.shape[1]:
            states = states[:, -count:]
            rope = llm.rotary_emb(states, position_ids=torch.arange(count, device=states.device)[None])
        states = layer(states, attention_mask=None, position_embeddings=rope, use_cache=True, **{CACHE: cache})
    return model.lm_head(llm.norm(states)[:, -1:])


def scaled(layer: int, depth: int) -> int:
    """A layer written for 32, for a decoder of ``depth`` layers."""
    return round(layer * depth / 32)


@dataclass
class Ground:
    """A model, one image of 2 x 2 tiles and the prompt about it; what all ways share."""

    shape: Shape
    model: Any
    views: ViewGeometry = field(init=False)
    pixels: torch.Tensor = field(init=False)
    replay: Replay = field(init=False)
    replayed: Any = field(init=False)

    @classmethod
    def of(cls, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Ground:
        return cls(shape, random_model(shape, device, dtype))

    def __post_init__(self):
        depth = self.shape.vision_layers
        self.views = square(self.shape)
        self.pixels = pixels(self.model, self.views)
        read = LOW | HIGH | {1, depth - 1, depth}
        self.replay = Replay.of(self.model, self.pixels, frozenset(read))
        inner = self.model.model
        parts = SimpleNamespace(
            vision_tower=self.replay, multi_modal_projector=inner.multi_modal_projector, image_newline=inner.image_newline
        )
        self.replayed = SimpleNamespace(model=parts, config=self.model.config, device=self.model.device, dtype=self.model.dtype)

    @property
    def depth(self) -> int:
        return self.shape.layers

    def encoding(self, needs: EncoderRequirements, real: bool = False) -> Encoding:
        """Of the image, by the tower itself (``real``) or by what it gave before."""
        return encode(self.model if real else self.replayed, self.pixels, [self.views], needs)[0]

    def whole(self, real: bool = False) -> Prompt:
        """All visual tokens, projected now. ``real``: the tower runs as well."""
        with torch.no_grad():
            features, _ = packed(self.model, self.encoding(EncoderRequirements(), real), all_tokens(self.views))
        return Prompt.around(self.model, features)

    @property
    def _hidden(self) -> torch.Tensor:
        return self.replay.output.hidden_states[self.model.config.vision_feature_layer][:, 1:]

    def vanilla(self) -> Any:
        return prefill(self.model, self.whole())

    def pruned(self, pruner: ViewPruner) -> Prompt:
        """What ``pruner`` keeps, chosen and projected now: everything that the method adds behind the tower."""
        return self.projected(self.encoding(pruner.needs), pruner)

    def projected(self, encoding: Encoding, pruner: ViewPruner) -> Prompt:
        with torch.no_grad():
            kept = pruner.select(encoding, "")
            assert kept is not None
            features, _ = packed(self.model, encoding, kept, pruner.newline_policy)
        return Prompt.around(self.model, features)

    def fewer(self, tokens: int) -> Prompt:
        """A prompt of ``tokens`` in all whose visual tokens are the first ones, projected now."""
        with torch.no_grad():
            rows = self._hidden.flatten(0, 1)
            count = tokens - (Prompt.random(self.model, 1).tokens - 1)
            return Prompt.around(self.model, self.model.model.multi_modal_projector(rows[:count]))

    def under(self, method: Method, prompt: Prompt | None = None) -> Any:
        """Prefill of the whole prompt under a method that works in the LLM."""
        prompt = self.whole() if prompt is None else prompt
        with self.attach(method, prompt):
            return prefill(self.model, prompt)

    @contextlib.contextmanager
    def attach(self, method: Method, prompt: Prompt) -> Iterator[Any]:
        """``method`` on the model, which is told what the whole image's first visual tokens show."""
        with attach(self.model, method) as run:
            source = pack(self.views, all_tokens(self.views))
            run.images = [[base_view(source[: len(prompt.features)], self.views)]]
            yield run

    def blink(self, expands: bool) -> Method:
        """Blink whose thresholds are never met, or that expands at each of its layers, TokenSR included."""
        layers = tuple(sorted({scaled(i, self.depth) for i in BLINK_LAYERS}))
        if not expands:
            return blink(BlinkPolicy(layers, 1.0, 0.0))
        torch.manual_seed(0)
        with torch.device(self.model.device):  # at the widths of published models a CPU takes long to draw them
            modules = nn.ModuleDict({str(i): build("conv", self.shape.width) for i in layers})
        return blink(BlinkPolicy(layers, 0.0, 0.0), modules.to(self.model.dtype).requires_grad_(False))

    def policies(self, ratio: float) -> dict[str, Method]:
        """The two baselines that work in the LLM, each with ``ratio`` of the visual tokens in its own sense."""
        layers = tuple(scaled(i, self.depth) for i in SPARSE_LAYERS)
        sparse = SparseVLMPolicy(layers, None, scaled_schedule(ratio, layers, self.depth))
        return {
            "FastV": Method(FastVPolicy(max(1, scaled(2, self.depth)), ratio), name="fastv"),
            "SparseVLM": Method(sparse, name="sparsevlm"),
        }

    def pruners(self, ratio: float) -> dict[str, ViewPruner]:
        """The baselines that choose before the LLM."""
        depth = self.shape.vision_layers
        return {
            "HiRED": HiRED(ratio, selection_layer=depth - 1),
            "GlobalCom2": GlobalCom2(ratio, layer=depth),
            "FasterVLM": FasterVLM(ratio, layer=depth - 1),
        }

    @staticmethod
    def hero(ratio: float) -> Hero:
        """HERO without the text tower (alpha = 1), which no random model has."""
        return Hero(ratio, LOW, HIGH, 1.0)


def lengths(out: Any) -> list[int]:
    """Tokens that each layer's cache holds after a prefill."""
    return [layer.keys.shape[2] for layer in out[CACHE].layers]


def kv_bytes(out: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in out[CACHE].layers)
