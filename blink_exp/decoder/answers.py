"""Answers of many points to many questions, with everything that they have in common run once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import Pictures
from blink_exp.core.method import Method, Record
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.views import VisualTokens
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.branches import FinalBranches, QuestionInputs, decoded_layers, read_layers
from blink_exp.decoder.generated import greedy
from blink_exp.decoder.layers import NEAR
from blink_exp.decoder.prefixes import Prefix, PrefixInputs, run_prefixes

USUAL = 64  # tokens that an answer is expected to take, whatever it may


@dataclass(frozen=True)
class PointQuestion:
    """One question to some methods. ``image``: its key among the images; ``sample``: see ``Scan``; ``points``: which methods."""

    image: str
    question: str
    sample: str
    points: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """``tokens``: that were generated, the one that ends it included; ``visual``: what entered the LLM; ``decisions``: what the policy
    decided, by layer."""

    text: str
    tokens: int
    visual: VisualTokens
    decisions: list[Record]


def shareable(backbone: Backbone) -> bool:
    """Whether questions and points can be answered together. A model spread over devices is run by its own hooks."""
    return len(set(getattr(backbone.model, "hf_device_map", {}).values())) <= 1


@dataclass
class _Unit:
    """A question with the prefix that some points see."""

    asking: int
    inputs: PrefixInputs
    key: str
    text: torch.Tensor
    points: list[int]

    @property
    def ahead(self) -> int:
        """Tokens of the prefix."""
        return len(self.inputs.ids) + len(self.inputs.features)


@torch.no_grad()
def answer(
    backbone: Backbone, methods: Rows[Method], images: Pictures, asked: Rows[PointQuestion], max_new_tokens: int, batch_size: int
) -> dict[tuple[int, int], Answer]:
    """{(number of the question, number of the method): its answer}. What is held stays within ``backbone.shared_bytes``, down to one text
    behind one prefix; ``batch_size``: texts that start together, and are parted where they come to need more."""
    visual = _visual(backbone, methods, images, asked)
    units = _units(backbone, methods, asked, visual)
    layers = frozenset(layer for method in methods for layer in read_layers(method))
    grids = [PatchGrid(m.policy.p, *backbone.grid) if m.policy is not None else None for m in methods]
    depths = {key: max(decoded_layers(methods[p], backbone.depth) for u in same for p in u.points) for key, same in _by_key(units).items()}
    out: dict[tuple[int, int], Answer] = {}
    budget = MemoryBudget.of(backbone, units, layers, batch_size, max_new_tokens)
    for part in _parts(units, budget):
        prefixes = stored_prefixes(backbone, part, layers, depths, budget)
        held = {id(p): p.nbytes for p in (*prefixes.values(), *backbone.prefixes.values())}
        questions = [
            QuestionInputs((prefixes[u.key],), u.text, asked[u.asking].sample, tuple(u.points), (u.inputs.shown,), u.inputs.features)
            for u in part
        ]
        decoder = BranchDecoder(backbone.llm, questions, methods, grids, budget.left(sum(held.values())))
        tokens: dict[tuple[int, int], list[int]] = {}

        def finish(final: FinalBranches, tokens=tokens) -> None:
            found = greedy(backbone.model, final, max_new_tokens, backbone.ends, budget.decoding)
            for branch, own in zip(final.branches, found, strict=True):
                tokens.update({(branch.question, p): own for p in branch.points})

        del prefixes  # the questions hold them
        decoder.run(finish)
        texts = backbone.processor.batch_decode(list(tokens.values()), skip_special_tokens=True)
        for (q, p), text in zip(tokens, texts, strict=True):
            asking = part[q].asking
            out[asking, p] = Answer(text.strip(), len(tokens[q, p]), visual[asking, p], decoder.records[q, p])
    return out


def _by_key(units: Rows[_Unit]) -> dict[str, list[_Unit]]:
    out: dict[str, list[_Unit]] = {}
    for unit in units:
        out.setdefault(unit.key, []).append(unit)
    return out


def _visual(backbone: Backbone, methods: Rows[Method], images: Pictures, asked: Rows[PointQuestion]) -> dict[tuple[int, int], VisualTokens]:
    """What each method lets into the LLM for each question; methods with one pruner share it."""
    alike: dict[Any, list[int]] = {}
    for p, method in enumerate(methods):
        alike.setdefault((method.pruner, method.recall), []).append(p)
    needs = [m.pruner.needs for m in methods if m.pruner is not None]
    if needs:
        backbone.encodings(images, needs[0].union(*needs[1:]))  # the tower once, for all that any of them looks at
    out: dict[tuple[int, int], VisualTokens] = {}
    for (pruner, recall), points in alike.items():
        numbers = [n for n, a in enumerate(asked) if set(points) & set(a.points)]
        if numbers:
            seen = {asked[n].image: images[asked[n].image] for n in numbers}
            found = backbone.visual(seen, [(asked[n].image, asked[n].question) for n in numbers], pruner, recall)
            out |= {(n, p): v for n, v in zip(numbers, found, strict=True) for p in points if p in asked[n].points}
    return out


def _units(
    backbone: Backbone, methods: Rows[Method], asked: Rows[PointQuestion], visual: dict[tuple[int, int], VisualTokens]
) -> list[_Unit]:
    embed = backbone.model.get_input_embeddings()
    cells = backbone.grid[0] * backbone.grid[1]
    digests: dict[tuple, str] = {}
    out: dict[tuple, _Unit] = {}
    for n, (a, (ahead, behind)) in enumerate(zip(asked, backbone.around([a.question for a in asked]), strict=True)):
        text = embed(behind)
        for p in a.points:
            seen = visual[n, p]
            shown = None if seen.aside is None and seen.shown.whole(cells) else seen.shown
            inputs = PrefixInputs(ahead, seen.features, shown)
            same = (id(seen.features), tuple(ahead.tolist()), shown is None)  # of one call: the tensors live as long as ``visual``
            if same not in digests:
                digests[same] = inputs.digest()
            recalls = shown is not None and shown.dropped_embeddings is not None
            out.setdefault((n, digests[same], recalls), _Unit(n, inputs, digests[same], text, [])).points.append(p)
    return list(out.values())


@dataclass(frozen=True)
class MemoryBudget:
    """How ``backbone.shared_bytes`` is divided, less what images seen before hold of it: half is the prefixes', half the texts'.

    ``prefix``: bytes of a visual token's keys and values in all layers, and of its states where they are kept; ``texts``: questions that
    start together; ``room``: see ``BranchDecoder``; ``decoding``: branches that are decoded together; ``prefixes``, ``budget``: bytes of
    all prefixes, and of all; ``one``: bytes of a token's keys and values in a layer; ``work``: of what it takes inside a layer, in ``one``.
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
        work = math.ceil((3 * config.intermediate_size + 4 * config.hidden_size) * size / one)  # an MLP's widest moment
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

    def left(self, held: int) -> int:
        """``room`` beside prefixes of ``held`` bytes: less than half where one of them is larger than that."""
        return min(self.room, max(0, self.budget - held) // self.one)

    def at_once(self, tokens: int) -> int:
        """Prefixes of so many tokens that run as a batch: beside what they leave, what runs may take an eighth."""
        return max(1, min(self.texts, self.budget // (8 * self.one * self.work * tokens)))


def _parts(units: list[_Unit], budget: MemoryBudget) -> Iterator[list[_Unit]]:
    """Units that run at once: of like lengths, as many as fit."""
    bucket = lambda n: math.ceil(math.log(n, NEAR))  # noqa: E731
    size = lambda u: (bucket(len(u.inputs.features)), bucket(len(u.text)))  # noqa: E731
    for _, alike in itertools.groupby(sorted(units, key=lambda u: (*size(u), u.key)), key=size):
        part: list[_Unit] = []
        held: dict[str, int] = {}
        for unit in alike:
            own = {unit.key: budget.prefix * unit.ahead}
            if part and (len(part) >= budget.texts or sum((held | own).values()) > budget.prefixes):
                yield part
                part, held = [], {}
            part.append(unit)
            held |= own
        yield part


def stored_prefixes(
    backbone: Backbone, units: Rows[_Unit], layers: frozenset[int], depths: dict[str, int], budget: MemoryBudget
) -> dict[str, Prefix]:
    """{key: prefix} of units, those run that the backbone does not hold with all layers and states that are wanted."""
    store, embed = backbone.prefixes, backbone.model.get_input_embeddings()
    wanted = {u.key: u.inputs for u in units}

    def there(key: str) -> bool:
        held: Prefix | None = store.get(key)
        return held is not None and held.reached >= depths[key] and {n for n in layers if n <= depths[key]} <= held.inputs.keys()

    new = {key: inputs for key, inputs in wanted.items() if not there(key)}
    out = {key: store[key] for key in wanted if key not in new}
    if new:
        embeds = [torch.cat([embed(inputs.ids), inputs.features]) for inputs in new.values()]
        for key in new:
            store.pop(key, None)  # one without the states that are wanted
        coming = sum(budget.prefix * len(e) for e in embeds)
        backbone.shrink(store, budget.prefixes - coming, wanted)  # before they are made: the old and the new are never there together
        at_once = budget.at_once(max(map(len, embeds)))
        visual = [len(inputs.features) for inputs in new.values()]
        out |= zip(new, run_prefixes(backbone.llm, embeds, visual, layers, [depths[key] for key in new], at_once), strict=True)
    store.update(out)
    return backbone.recall(store, list(wanted), budget.prefixes)
