"""Answers many questions under many methods; shared computation runs once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.backbone.canvas import ImageRegions
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import ImagesById
from blink_exp.core.method import Method, Record
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.second_view import Box
from blink_exp.core.views import VisualTokens
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.branches import FinalBranches, QuestionInputs, decoded_layers, read_layers
from blink_exp.decoder.generated import greedy
from blink_exp.decoder.layers import NEAR, Prefix, PrefixInputs, run_prefixes
from blink_exp.decoder.second_views import Asking, with_second_view

USUAL = 64  # expected tokens of an answer, to plan memory


@dataclass(frozen=True)
class PointQuestion:
    """One question for some methods. ``image``: key of its image; ``sample``: see ``Scan``; ``points``: indices of the methods;
    ``regions``: see ``Asking``."""

    image: str
    question: str
    sample: str
    points: tuple[int, ...]
    regions: tuple[Box, ...] = ()


@dataclass(frozen=True)
class GeneratedAnswer:
    """``tokens``: number of generated tokens, the end token included; ``visual``: the visual tokens that entered the LLM; ``decisions``: of
    the policy, by layer."""

    text: str
    tokens: int
    visual: VisualTokens
    decisions: list[Record]


def shareable(backbone: Backbone) -> bool:
    """Whether questions and points can be answered together. Not for a model spread over devices, which runs by its own
    hooks."""
    return len(set(getattr(backbone.model, "hf_device_map", {}).values())) <= 1


@dataclass
class _Unit:
    """A question with one prefix, and the points that have this prefix."""

    asking: int
    inputs: PrefixInputs
    key: str
    text: torch.Tensor
    points: list[int]
    regions: ImageRegions | None

    @property
    def ahead(self) -> int:
        """Tokens of the prefix."""
        return len(self.inputs.ids) + len(self.inputs.features)


@torch.no_grad()
def answer(
    backbone: Backbone, methods: Rows[Method], images: ImagesById, questions: Rows[PointQuestion], max_new_tokens: int, batch_size: int
) -> dict[tuple[int, int], GeneratedAnswer]:
    """{(question index, method index): answer}. Memory stays within ``backbone.shared_bytes``, but at least one text and its prefix are
    run. ``batch_size``: texts that start together; they are split where memory does not suffice."""
    visual = _visual(backbone, methods, images, questions)
    regions = backbone.regions(images) if any(method.closeup for method in methods) else {}
    units = _units(backbone, methods, questions, visual, regions)
    layers = frozenset(layer for method in methods for layer in read_layers(method))
    grids = [PatchGrid(m.policy.p, *backbone.grid) if m.policy is not None else None for m in methods]
    depths = {key: max(decoded_layers(methods[p], backbone.depth) for u in same for p in u.points) for key, same in _by_key(units).items()}
    out: dict[tuple[int, int], GeneratedAnswer] = {}
    budget = MemoryBudget.of(backbone, units, layers, batch_size, max_new_tokens)
    for part in _parts(units, budget):
        prefixes = stored_prefixes(backbone, part, layers, depths, budget)
        prefix_bytes = {id(p): p.nbytes for p in (*prefixes.values(), *backbone.prefixes.values())}
        inputs = [
            QuestionInputs(
                *((prefixes[u.key],), u.text, questions[u.asking].sample, tuple(u.points)),
                *((u.inputs.base_map,), u.inputs.features, (u.regions,)),
            )
            for u in part
        ]
        decoder = BranchDecoder(backbone.llm, inputs, methods, grids, budget.left(sum(prefix_bytes.values())))
        tokens: dict[tuple[int, int], list[int]] = {}

        def finish(final: FinalBranches, tokens: dict[tuple[int, int], list[int]] = tokens) -> None:
            generated = greedy(backbone.model, final, max_new_tokens, backbone.ends, budget.decoding)
            for branch, ids in zip(final.branches, generated, strict=True):
                tokens.update({(branch.question, p): ids for p in branch.points})

        del prefixes  # the questions hold them
        decoder.run(finish)
        texts = backbone.processor.batch_decode(list(tokens.values()), skip_special_tokens=True)
        for (q, p), text in zip(tokens, texts, strict=True):
            asking = part[q].asking
            out[asking, p] = GeneratedAnswer(text.strip(), len(tokens[q, p]), visual[asking, p], decoder.records[q, p])
    return out


def visual_tokens(backbone: Backbone, method: Method, images: ImagesById, askings: Rows[Asking]) -> list[VisualTokens]:
    """The visual tokens that enter the LLM under ``method``, of each question."""
    if method.second_view is not None:
        return with_second_view(backbone, method, images, askings)
    return backbone.visual(images, [(a.image, a.question) for a in askings], method.pruner, method.restore_dropped)


def _by_key(units: Rows[_Unit]) -> dict[str, list[_Unit]]:
    out: dict[str, list[_Unit]] = {}
    for unit in units:
        out.setdefault(unit.key, []).append(unit)
    return out


def _visual(
    backbone: Backbone, methods: Rows[Method], images: ImagesById, questions: Rows[PointQuestion]
) -> dict[tuple[int, int], VisualTokens]:
    """{(question index, method index): visual tokens that enter the LLM}; methods with one pruner and second view share them."""
    alike: dict[Any, list[int]] = {}
    for p, method in enumerate(methods):
        alike.setdefault((method.pruner, method.restore_dropped, method.second_view), []).append(p)
    if pruners := [method.pruner for method in methods if method.pruner is not None]:
        backbone.encode_together(images, [pruner.needs for pruner in pruners])
    out: dict[tuple[int, int], VisualTokens] = {}
    for points in alike.values():
        numbers = [n for n, a in enumerate(questions) if set(points) & set(a.points)]
        if numbers:
            needed_images = {questions[n].image: images[questions[n].image] for n in numbers}
            askings = [Asking(q.image, q.question, q.sample, q.regions) for q in (questions[n] for n in numbers)]
            selected = visual_tokens(backbone, methods[points[0]], needed_images, askings)
            out |= {(n, p): v for n, v in zip(numbers, selected, strict=True) for p in points if p in questions[n].points}
    return out


def _units(
    backbone: Backbone,
    methods: Rows[Method],
    questions: Rows[PointQuestion],
    visual: dict[tuple[int, int], VisualTokens],
    regions: dict[str, ImageRegions],
) -> list[_Unit]:
    embed = backbone.model.get_input_embeddings()
    cells = backbone.grid[0] * backbone.grid[1]
    digests: dict[tuple[Any, ...], str] = {}
    out: dict[tuple[Any, ...], _Unit] = {}
    for n, (a, (ahead, behind)) in enumerate(zip(questions, backbone.around([a.question for a in questions]), strict=True)):
        text = embed(behind)
        for p in a.points:
            tokens = visual[n, p]
            base_map = None if tokens.dropped_embeddings is None and tokens.base_map.whole(cells) else tokens.base_map
            positions = tokens.original_positions if methods[p].original_positions else None
            inputs = PrefixInputs(ahead, tokens.features, base_map, positions)
            content = (
                id(tokens.features),
                tuple(ahead.tolist()),
                base_map is None,
                positions is None,
            )  # ids are valid while ``visual`` lives
            if content not in digests:
                digests[content] = inputs.digest()
            restore_dropped = base_map is not None and base_map.dropped_embeddings is not None
            unit = _Unit(n, inputs, digests[content], text, [], regions.get(a.image))
            out.setdefault((n, digests[content], restore_dropped), unit).points.append(p)
    return list(out.values())


@dataclass(frozen=True)
class MemoryBudget:
    """The division of ``backbone.shared_bytes``, less the cached images: half for prefixes, half for texts.

    ``prefix``: bytes of a prefix token: keys and values of all layers, and kept states; ``texts``: questions that start together; ``room``:
    see ``BranchDecoder``; ``decoding``: branches that are decoded together; ``prefixes``, ``budget``: bytes of all prefixes, and in total;
    ``one``: bytes of a token's keys and values in a layer; ``work``: a token's activations inside a layer, in units of ``one``.
    """

    prefix: int
    texts: int
    room: int
    decoding: int
    prefixes: int
    budget: int
    one: int
    work: int

    @classmethod
    def of(cls, backbone: Backbone, units: Rows[_Unit], layers: frozenset[int], batch_size: int, new: int) -> MemoryBudget:
        config, size = backbone.llm.config, torch.finfo(backbone.model.dtype).bits // 8
        one = 2 * config.num_key_value_heads * backbone.llm.layers[0].self_attn.head_dim * size
        work = math.ceil((3 * config.intermediate_size + 4 * config.hidden_size) * size / one)  # peak inside the MLP
        text = max(len(u.text) for u in units)
        row = max(u.ahead for u in units) + text
        if layers:
            row += backbone.grid[0] * backbone.grid[1]  # expanded
        depth, budget = config.num_hidden_layers, max(0, backbone.shared_bytes - backbone.images_bytes)
        half = budget // 2
        texts = max(batch_size, half // (one * (row + (depth + work) * text)))
        decoding = max(1, budget // (4 * one * (depth * (text + min(new, USUAL)) + row)))  # their keys and values are copied
        prefix = one * depth + config.hidden_size * size * len(layers)
        return cls(prefix, texts, half // one, decoding, half, budget, one, work)

    def left(self, prefix_bytes: int) -> int:
        """``room`` beside prefixes of ``prefix_bytes``, which may exceed their half."""
        return min(self.room, max(0, self.budget - prefix_bytes) // self.one)

    def at_once(self, tokens: int) -> int:
        """Batch size for prefixes of ``tokens`` tokens, whose activations may take an eighth of the budget."""
        return max(1, min(self.texts, self.budget // (8 * self.one * self.work * tokens)))


def _parts(units: list[_Unit], budget: MemoryBudget) -> Iterator[list[_Unit]]:
    """Batches of units with similar lengths, as many as fit. Those of one prefix stand together, and texts of one length where they can."""
    shortest = {key: min(len(unit.text) for unit in same) for key, same in _by_key(units).items()}

    def size(unit: _Unit) -> tuple[int, int]:
        image, text = (math.ceil(math.log(n, NEAR)) for n in (len(unit.inputs.features), len(unit.text)))
        return image, text

    for _, alike in itertools.groupby(sorted(units, key=lambda u: (*size(u), shortest[u.key], u.key, len(u.text))), key=size):
        part: list[_Unit] = []
        prefix_bytes: dict[str, int] = {}
        for unit in alike:
            prefix = {unit.key: budget.prefix * unit.ahead}
            if part and (len(part) >= budget.texts or sum((prefix_bytes | prefix).values()) > budget.prefixes):
                yield part
                part, prefix_bytes = [], {}
            part.append(unit)
            prefix_bytes |= prefix
        yield part


def stored_prefixes(
    backbone: Backbone, units: Rows[_Unit], layers: frozenset[int], depths: dict[str, int], budget: MemoryBudget
) -> dict[str, Prefix]:
    """{key: prefix} of units, from the backbone's cache or run; a cached one must have all required layers and states."""
    store, embed = backbone.prefixes, backbone.model.get_input_embeddings()
    inputs_by_key = {u.key: u.inputs for u in units}

    def is_stored(key: str) -> bool:
        prefix: Prefix | None = store.get(key)
        return prefix is not None and prefix.reached >= depths[key] and {n for n in layers if n <= depths[key]} <= prefix.inputs.keys()

    new = {key: inputs for key, inputs in inputs_by_key.items() if not is_stored(key)}
    out = {key: store[key] for key in inputs_by_key if key not in new}
    if new:
        embeds = [torch.cat([embed(inputs.ids), inputs.features]) for inputs in new.values()]
        for key in new:
            store.pop(key, None)  # lacks required layers or states
        new_bytes = sum(budget.prefix * len(e) for e in embeds)
        backbone.shrink(store, budget.prefixes - new_bytes, inputs_by_key)  # evict before the new ones are made
        at_once = budget.at_once(max(map(len, embeds)))
        visual = [len(inputs.features) for inputs in new.values()]
        positions = [inputs.positions for inputs in new.values()]
        prefixes = run_prefixes(backbone.llm, embeds, visual, layers, [depths[key] for key in new], at_once, positions)
        out |= zip(new, prefixes, strict=True)
    store.update(out)
    return backbone.recall(store, list(inputs_by_key), budget.prefixes)
