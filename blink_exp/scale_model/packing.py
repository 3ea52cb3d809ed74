"""Many questions behind one visual prefix: how both LLaVA trainings ask a dozen questions at the price of one.

The questions do not see each other, so that no answer can be had from another question's text; each is what the first turn of a
conversation is at test time.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.scale_model.recipe import Movable
from blink_exp.scenes.questions import SceneQuestion

LOOK_LAYERS = (3, 4)  # of the 8-layer model: 12 and 16 once it is deepened


@dataclass
class Pack(Movable):
    """Questions of a batch as token rows behind their scenes' prefixes. All tensors are (batch, text)."""

    ids: torch.Tensor
    owner: torch.Tensor  # index of the question a token belongs to, -1 on padding
    offset: torch.Tensor  # position behind the prefix
    labels: torch.Tensor  # the token to be predicted here, -100 where none is
    first: torch.Tensor  # (questions, 2): row and column of the first token of each question
    last: torch.Tensor  # (questions, 2): row and column of the last prompt token of each question


def asked_of(questions: list[list[SceneQuestion]]) -> list[list[tuple[str, str]]]:
    return [[(q.text, q.answer) for q in row] for row in questions]


def pack(tokenizer: Any, rows: list[list[tuple[str, str]]], rng: np.random.Generator, shift: int) -> Pack:
    """Packs (question, answer) pairs, one list a scene; half of the questions start up to ``shift`` positions behind the prefix."""
    ids: list[list[int]] = []
    owner: list[list[int]] = []
    offset: list[list[int]] = []
    labels: list[list[int]] = []
    first: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []
    for b, row in enumerate(rows):
        line: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        for j, (question, answer) in enumerate(row):
            prompt = ids_of(tokenizer, f"\n{question} ASSISTANT:")
            answer_ids = ids_of(tokenizer, f" {answer}</s>")
            start = 0 if shift == 0 or rng.random() < 0.5 else int(rng.integers(shift))
            first.append((b, len(line[0])))
            last.append((b, len(line[0]) + len(prompt) - 1))
            line[0].extend(prompt + answer_ids)
            line[1].extend([j] * (len(prompt) + len(answer_ids)))
            line[2].extend(range(start, start + len(prompt) + len(answer_ids)))
            line[3].extend([-100] * (len(prompt) - 1) + answer_ids + [-100])
        for store, part in zip((ids, owner, offset, labels), line, strict=True):
            store.append(part)
    width = -(-max(len(r) for r in ids) // 16) * 16

    def padded(store: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([r + [value] * (width - len(r)) for r in store])

    return Pack(padded(ids, 0), padded(owner, -1), padded(offset, 0), padded(labels, -100), torch.tensor(first), torch.tensor(last))


_IDS: weakref.WeakKeyDictionary[Any, dict[str, list[int]]] = weakref.WeakKeyDictionary()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text``. Questions repeat, so each tokenizer's are kept."""
    known = _IDS.setdefault(tokenizer, {})
    if text not in known:
        known[text] = tokenizer(text, add_special_tokens=False).input_ids
    return known[text]


def view_features(llava: Any, views: torch.Tensor) -> list[torch.Tensor]:
    """(batch, tokens, hidden) projected features of each of (batch, images, 3, size, size) views of a LLaVA-1.5."""
    with torch.no_grad():
        features = llava.model.vision_tower(views.flatten(0, 1), output_hidden_states=True).hidden_states[-2][:, 1:]
    return list(llava.model.multi_modal_projector(features).unflatten(0, views.shape[:2]).unbind(1))


def hidden_of(
    llava: Any, tokenizer: Any, visual: list[torch.Tensor], packed: Pack, at: torch.Tensor | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(batch, text, hidden) final states of the packed questions, and where some tokens look.

    Args:
        visual: (batch, tokens, hidden) projected features of each image.
        at: (n, 2) row and column of packed tokens; for each of LOOK_LAYERS their (n, tokens) attention on the first image comes back,
            softmax over its tokens, mean over heads. None: nothing does.
    """
    b, device = len(visual[0]), visual[0].device
    embed = llava.get_input_embeddings()
    opening = embed(torch.tensor(ids_of(tokenizer, "<s>USER: "), device=device))
    newline = embed(torch.tensor(ids_of(tokenizer, "\n"), device=device))
    parts = [opening.expand(b, -1, -1)]
    for i, features in enumerate(visual):
        parts += ([newline.expand(b, -1, -1)] if i else []) + [features]
    prefix = torch.cat(parts, dim=1)
    p, t = prefix.shape[1], packed.ids.shape[1]
    causal = torch.ones(p + t, p + t, dtype=torch.bool, device=device).tril()
    owner = F.pad(packed.owner, (p, 0), value=-2)
    same = owner[:, :, None] == owner[:, None, :]
    mask = (causal & (same | (torch.arange(p + t, device=device) < p)))[:, None]
    positions = torch.cat([torch.arange(p, device=device).expand(b, -1), p + packed.offset], dim=1)
    llm = llava.model.language_model
    states: list[torch.Tensor] = []
    watched = [] if at is None else [llm.layers[i].self_attn for i in LOOK_LAYERS]
    hooks = [m.register_forward_hook(lambda *a: states.append(a[2])) for attn in watched for m in (attn.q_proj, attn.k_proj)]
    out = llm(inputs_embeds=torch.cat([prefix, embed(packed.ids)], dim=1), attention_mask=mask, position_ids=positions, use_cache=False)
    for hook in hooks:
        hook.remove()
    looks = []
    if at is not None:
        cos, sin = llm.rotary_emb(prefix, position_ids=positions)
        row, column = at[:, 0], at[:, 1] + p
        columns = slice(len(opening), len(opening) + visual[0].shape[1])
        for queries, projected in zip(states[::2], states[1::2], strict=True):
            width = llm.layers[0].self_attn.head_dim
            query = queries[row, column].unflatten(-1, (-1, 1, width))  # (n, heads, 1, head_dim)
            query = apply_rotary_pos_emb(query, query, cos[row, column][:, None], sin[row, column][:, None])[0]
            keys = projected[:, columns].unflatten(-1, (-1, width)).transpose(1, 2)
            keys = apply_rotary_pos_emb(keys, keys, cos[:, columns], sin[:, columns])[0]
            looks.append((query @ keys[row].mT * width**-0.5)[:, :, 0].softmax(-1).mean(1))
    return out.last_hidden_state[:, p:], looks


def answer_loss(llava: Any, hidden: torch.Tensor, packed: Pack) -> torch.Tensor:
    """Cross-entropy of the answers' tokens. ``hidden``: as ``hidden_of`` returns it."""
    labelled = packed.labels >= 0
    return F.cross_entropy(llava.lm_head(hidden[labelled]), packed.labels[labelled])


def exact_match(llava: Any, tokenizer: Any, batches: Iterable[tuple[list[list[SceneQuestion]], list[torch.Tensor]]]) -> dict[str, float]:
    """Share of questions of whose answer the model would say every token: of ``all`` and by kind.

    ``batches``: the questions of each scene, and the scenes' visual tokens as ``hidden_of`` takes them.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for asked, visual in batches:
        packed = pack(tokenizer, asked_of(asked), np.random.default_rng(0), 0)
        hidden, _ = hidden_of(llava, tokenizer, visual, packed.to(visual[0].device))
        wrong = (llava.lm_head(hidden).argmax(-1).cpu() != packed.labels) & (packed.labels >= 0)
        for b, row in enumerate(asked):
            for j, question in enumerate(row):
                right[question.kind].append(not wrong[b][packed.owner[b] == j].any())
    answers = [v for kind in right.values() for v in kind]
    return {"all": float(np.mean(answers)), **{k: float(np.mean(v)) for k, v in sorted(right.items())}}


def show(what: str, scores: dict[str, float]) -> None:
    print(f"  {what}: " + " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()), flush=True)


def look_loss(looks: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """-log of the attention that falls on the objects a question is about, mean over questions that have some and over LOOK_LAYERS.

    ``targets``: (looks, visual) 0/1. Without it answers come as soon, and a look at what is asked about in half as many steps again
    (``NO_LOOK_LOSS``). It is used in the middle of the curriculum only; what the shipped model looks at is what its answers go on needing.
    """
    asked = targets.sum(1) > 0
    return torch.stack([-(look * targets).sum(1)[asked].clamp(min=1e-6).log().mean() for look in looks]).mean()
