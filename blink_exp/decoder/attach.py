"""Attaches a method to a Hugging Face LLaVA model.

The ``with`` block sets the decoder's ``forward``, the outer model's ``generate`` (which knows the prompt's length), and a pre-hook that
reads the token ids. They are instance attributes and hooks, removed at exit.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from blink_exp.backbone.cache_name import CACHE
from blink_exp.core.method import Method, Record
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Layout
from blink_exp.core.views import BaseViewMap, OriginalPositions, ViewGeometry, VisualTokens, all_tokens, base_view, pack
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.branches import FinalBranches, QuestionInputs
from blink_exp.decoder.generated import SegmentedLayer, extend, segmented
from blink_exp.decoder.segments import Front, Segment, numbered, starts, visual_at
from blink_exp.decoder.shared_attention import SharedKVCache
from blink_exp.errors import UserError
from blink_exp.settings.doors import command_name

if TYPE_CHECKING:  # for type checkers only: this file is read where there is no image library (bench gpu)
    from blink_exp.backbone.canvas import ImageRegions


class Attachment:
    """A method attached to a model.

    ``samples``: ids of the rows of the next prompt, for seeded choices and records; None: a digest of the row's tokens, independent of the
    batch. ``images``: base-view maps of the visual tokens of the next prompt, by row and image; None: those of the stock model.
    ``regions``: of the images of the next prompt, by row and image (``Backbone.regions``), for close-ups.
    ``positions``: of the visual tokens of the next prompt, by row and image, for methods with ``original_positions``.
    ``records``: decisions for the last prompt.
    """

    def __init__(self, model: Any, method: Method):
        self.model, self.method = model, method
        self.samples: list[str] | None = None
        self.images: list[list[BaseViewMap]] | None = None
        self.regions: list[list[ImageRegions]] | None = None
        self.positions: list[list[OriginalPositions | None]] | None = None
        self.records: list[Record] = []
        self._ids: torch.Tensor | None = None
        self._sizes: torch.Tensor | None = None  # (images, 2) height and width in pixels, of a tiled backbone's images
        self._prompt: int | None = None  # tokens of the prompt while generate() runs
        config = model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        policy = method.policy
        layers = () if policy is None else policy.layers
        places = set(getattr(model, "hf_device_map", {}).values())
        if len(places) > 1:
            raise UserError(
                f"method={method.name} works between layers, which model.device_map has put on {len(places)} devices;"
                " use model.device_map=null, with model.quantization if one device is too small"
            )
        self.grid = PatchGrid(1 if policy is None else policy.p, side, side)
        depth = config.text_config.num_hidden_layers
        last = depth - 1 - (policy is not None and policy.drops and getattr(policy, "reads", "") == "next_attention")  # the next layer's
        for layer in layers:
            if not 0 <= layer <= last:
                raise UserError(f"layer={layer} is outside the backbone's {depth} layers; use 0 to {last}")
        missing = [i for i in layers if method.amplifiers is not None and str(i) not in method.amplifiers]
        if missing:
            raise UserError(
                f"layer={missing[0]} has no TokenSR module among those loaded; train it: {command_name('train')} layer={missing[0]}"
            )

    def see(self, visual: Rows[VisualTokens]) -> None:
        """Sets ``images`` and ``positions`` of the next prompt, whose rows have one image each."""
        self.images = [[v.base_map] for v in visual]
        self.positions = [[v.original_positions] for v in visual]

    def note_ids(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ids = kwargs.get("input_ids", args[0] if args else None)
        if self._prompt is None:  # generate() encodes images beforehand and does not pass their sizes on
            self._sizes = kwargs.get("image_sizes")
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            raise UserError("output_hidden_states / output_attentions have no one shape while a method is attached; read .records instead")

    def forward(
        self,
        inputs_embeds: Any = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Replaces LlamaModel.forward. position_ids are ignored, as the method sets positions."""
        llm = self.model.model.language_model
        cache: Any = others.get(CACHE)
        going_on = cache is not None and cache.get_seq_length() > 0
        if going_on and isinstance(cache.layers[0], SegmentedLayer):
            hidden = extend(llm, inputs_embeds, cache.layers, self._weights)
            return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})
        if self._ids is None:
            raise UserError("a method needs input_ids to see where the images stand; pass input_ids, not inputs_embeds")
        images = self._ids == self.model.config.image_token_id
        if going_on or not bool(images.any()):  # no image: stock forward
            return type(llm).forward(llm, inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache, **{CACHE: cache})
        tokens = inputs_embeds.shape[1]
        prompt = self._prompt or tokens
        keep = use_cache if use_cache is not None else llm.config.use_cache
        layout = self._layout(images, attention_mask)
        cache = segmented(DynamicCache(config=llm.config) if cache is None else cache, len(llm.layers)) if keep else None
        hidden = self._prompt_states(layout, inputs_embeds, self._names(attention_mask, prompt), cache, answer=tokens - prompt)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})

    @property
    def _weights(self) -> bool:
        """Whether attention modules return their weights."""
        return bool(self.model.config._attn_implementation == "eager")

    def _prompt_states(self, layout: Layout, embeds: torch.Tensor, names: list[str], cache: Any, answer: int) -> torch.Tensor:
        """Runs a prompt, each row as a question without shared segments. Returns (batch, tokens, hidden) final states, 0 on padding and on
        tokens that were dropped, and fills ``records`` and ``cache``.

        ``answer``: generated tokens at the end of the prompt, where all is recomputed without a cache.
        """
        llm = self.model.model.language_model
        regions = self._regions(layout) if self.method.closeup else [[None] * len(row) for row in layout.visual]
        positions = self._positions(layout)
        questions = [_question(layout, embeds, b, name, regions[b], positions[b]) for b, name in enumerate(names)]

        same: dict[tuple[Front, ...], tuple[torch.Tensor, torch.Tensor]] = {}  # layers with the same sequence share mask and positions

        def fill(i: int, fronts: list[Front], ran: SharedKVCache, valid: torch.Tensor) -> None:
            keys, values, real = ran.dense()
            key = tuple(fronts)
            if key not in same:
                ahead = torch.tensor([starts(front)[-1] for front in fronts], device=keys.device)
                same[key] = real, ahead + valid.sum(1)
            cache.layers[i].hold(keys, values, *same[key], embeds.shape[1])

        out = torch.zeros_like(embeds)

        def finish(final: FinalBranches) -> None:
            for branch, states, valid in zip(final.branches, final.text.states, final.text.valid, strict=True):
                for block in branch.blocks:
                    assert block.index is not None
                    in_prompt = block.index >= 0
                    out[branch.question, block.index[in_prompt]] = block.states[in_prompt]
                out[branch.question, layout.index[branch.question][-1]] = states[valid]

        decoder = BranchDecoder(
            llm,
            questions,
            [self.method],
            [self.grid],
            alone=True,
            answer=answer,
            weights=self._weights,
            ran=fill if cache is not None else _forget,
        )
        decoder.run(finish)
        self.records = sorted(
            (record for records in decoder.records.values() for record in records),
            key=lambda record: (record.scan.layer, record.scan.image, record.row),
        )
        normed: torch.Tensor = llm.norm(out)
        return normed

    def _layout(self, images: torch.Tensor, attention_mask: torch.Tensor | None) -> Layout:
        """The layout of ``images`` (batch, tokens) bool: by the base view, or of any size for policies that drop tokens."""
        visual = self.grid.height * self.grid.width
        if self.method.policy is None or self.method.drops_inside:
            return self._with_text(Layout.of(images, attention_mask, None))
        if self.images is None and self._sizes is None:
            if bool((images.sum(1) % visual).any()):
                raise UserError(
                    f"method={self.method.name} needs to know which of the {self.grid.height} x {self.grid.width} cells "
                    f"{int(images.sum(1).max())} visual tokens show; set .images, or run it through {command_name('evaluate')}"
                )
            return self._with_text(Layout.of(images, attention_mask, visual))
        layout = self._with_text(Layout.of(images, attention_mask, None))
        rows = self._shown(layout)
        for counts, row in zip(layout.visual, rows, strict=True):
            for count, base_map in zip(counts, row, strict=False):
                self._check(count, base_map)
        if not all(base_map.whole(visual) for row in rows for base_map in row):
            layout.base_maps = rows  # None where all are whole grids, which are scanned as one batch
        return layout

    def _with_text(self, layout: Layout) -> Layout:
        if any(row and not len(index[-1]) for row, index in zip(layout.visual, layout.index, strict=True)):
            raise UserError(f"method={self.method.name} reads the attention of the text behind the image; end the prompt with text")
        return layout

    def _shown(self, layout: Layout) -> list[list[BaseViewMap]]:
        """Base-view maps of each row, image by image."""
        if self.images is not None:
            return _by_row("images", self.images, len(layout.visual))
        assert self._sizes is not None
        sizes = iter(self._sizes.tolist())
        beams = sum(map(len, layout.visual)) // len(self._sizes)
        out: list[list[BaseViewMap]] = []
        for b, counts in enumerate(layout.visual):
            if b % max(1, beams):
                out.append(out[-1])
                continue
            geometry = [ViewGeometry.of(self.model.config, next(sizes)) for _ in counts]
            out.append([base_view(pack(views, all_tokens(views)), views) for views in geometry])
        return out

    def _regions(self, layout: Layout) -> list[list[ImageRegions]]:
        """The regions of each row's images. Raises UserError where they are not set."""
        if self.regions is None:
            raise UserError(
                f"method={self.method.name} cuts close-ups from the image's pixels, which a prompt does not hold;"
                f" set .regions (Backbone.regions) for every prompt, or run it through {command_name('evaluate')}"
            )
        rows = _by_row("regions", self.regions, len(layout.visual))
        for counts, row in zip(layout.visual, rows, strict=True):
            if len(counts) != len(row):
                raise ValueError(f".regions speaks of {len(row)} images where the prompt has {len(counts)}; set it anew for every prompt")
        return rows

    def _positions(self, layout: Layout) -> list[list[OriginalPositions | None]]:
        """The positions of each row's images. Raises UserError where the method needs them and they are not set."""
        if not self.method.original_positions:
            return [[None] * len(row) for row in layout.visual]
        if self.positions is None:
            raise UserError(
                f"positions=original needs the places of the tokens that method={self.method.name} keeps, which a prompt does not hold;"
                f" call .see(...) with its visual tokens for every prompt, or run it through {command_name('evaluate')}"
            )
        rows = _by_row("positions", self.positions, len(layout.visual))
        for counts, row in zip(layout.visual, rows, strict=True):
            if len(counts) != len(row) or any(p is not None and len(p.numbers) != n for n, p in zip(counts, row, strict=True)):
                raise ValueError(
                    f".positions are not those of the {sum(counts)} visual tokens of the prompt; set them anew for every prompt"
                )
        return rows

    def _check(self, tokens: int, base_map: BaseViewMap) -> None:
        cells = base_map.cells
        whole = self.grid.height * self.grid.width
        if tokens != len(cells):
            raise ValueError(f".images speaks of {len(cells)} visual tokens where the prompt has {tokens}; set it anew for every prompt")
        left = int((cells >= 0).sum())
        if not left:
            raise UserError(
                f"method={self.method.name} keeps none of the {whole} tokens of the base view, which Blink looks at; keep more"
                f" (retention_ratio of at least {1 / whole:.4f})"
            )
        policy = self.method.policy
        renumbered = policy is not None and policy.inherit_positions and not self.method.original_positions
        if renumbered and not torch.equal(cells[:whole].cpu(), torch.arange(whole)):
            raise UserError(
                f"resolution.positions=inherit needs all {whole} tokens of the base view, but {left} are left; use contiguous positions"
            )

    def _names(self, attention_mask: torch.Tensor | None, prompt: int) -> list[str]:
        assert self._ids is not None
        rows = len(self._ids)
        if self.samples is not None:
            return _by_row("samples", self.samples, rows)
        real = torch.ones_like(self._ids) if attention_mask is None else attention_mask
        prompts = [ids[:prompt][mask[:prompt].bool()].tolist() for ids, mask in zip(self._ids, real, strict=True)]
        return [hashlib.sha256(repr(row).encode()).hexdigest()[:16] for row in prompts]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        caches = (kwargs.get("cache"), kwargs.get("past_key_values"))  # transformers takes both names
        if kwargs.get("cache_implementation") is not None or not all(isinstance(cache, DynamicCache | None) for cache in caches):
            raise UserError(
                "a method changes the length of the sequence, so a static cache cannot hold it; leave cache_implementation unset"
            )
        config = kwargs.get("generation_config", self.model.generation_config)
        if kwargs.get("prefill_chunk_size") or getattr(config, "prefill_chunk_size", None):
            raise UserError("prefill_chunk_size would cut the prompt that a method decides on; leave it unset")
        if getattr(config, "cache_implementation", None) not in (None, "dynamic"):
            raise UserError(f"cache_implementation={config.cache_implementation} cannot hold a sequence that changes length; use dynamic")
        if kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens"):
            raise UserError("assisted decoding crops the cache, which has no one length here; use greedy, sampling or beams")
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._prompt, self._sizes = None if ids is None else ids.shape[1], kwargs.get("image_sizes")
        try:
            return type(self.model).generate(self.model, *args, **kwargs)
        finally:
            self._prompt = None


def _by_row(name: str, given: list[Any], rows: int) -> list[Any]:
    """What was given for each sample, for each row: beams of a sample are neighbours."""
    if rows % len(given):
        raise ValueError(f".{name} has {len(given)} rows where the prompt has {rows}; give one for each row")
    return [value for value in given for _ in range(rows // len(given))]


def _question(
    layout: Layout, embeds: torch.Tensor, row: int, sample: str, regions: list[Any], positions: list[OriginalPositions | None]
) -> QuestionInputs:
    """A row of a prompt as a question."""
    index, visual = layout.index[row], layout.visual[row]
    blocks: Front = ()
    for tokens, n, of_image in zip(index, visual, positions, strict=False):
        numbers, takes = numbered(len(tokens) - n, of_image, embeds.device, starts(blocks)[-1])
        blocks = (*blocks, Segment(embeds[row, tokens], n, numbers, takes, tokens))
    base_maps = tuple(layout.base_maps[row]) if layout.base_maps is not None else (None,) * len(blocks)
    visual_embeds = visual_at(blocks, 0) if blocks else None
    return QuestionInputs(blocks, embeds[row, index[-1]], sample, (0,), base_maps, visual_embeds, tuple(regions))


def _forget(*_: Any) -> None:
    """``ran`` without a cache: nothing is kept."""


@contextlib.contextmanager
def attach(model: Any, method: Method) -> Iterator[Attachment | None]:
    """Runs ``method`` on ``model`` inside the block. Without a policy or layers, or positions to set, the model is not changed."""
    if "blink_exp_method" in model.__dict__:
        raise RuntimeError(f"method {model.__dict__['blink_exp_method']!r} is attached already; leave its with block first")
    if not method.original_positions and (method.policy is None or not method.policy.layers):
        yield None
        return
    run = Attachment(model, method)
    inner, llm = model.model, model.model.language_model
    object.__setattr__(model, "blink_exp_method", method.name)
    hook = inner.register_forward_pre_hook(run.note_ids, with_kwargs=True)
    object.__setattr__(llm, "forward", run.forward)
    object.__setattr__(model, "generate", run.generate)
    try:
        yield run
    finally:
        hook.remove()
        object.__delattr__(llm, "forward")
        object.__delattr__(model, "generate")
        object.__delattr__(model, "blink_exp_method")
