"""Teacher forcing: the logits of given answers under methods, by the functions that generate answers, with gradients for TokenSR.

An answer stands behind its prompt as generated tokens do when all is recomputed without a cache: scans read the last prompt token, so that
decisions and expanded segments are those of inference. Prefixes are the frozen model's and run without gradients. From an expanded segment
on, autograd records, if it is enabled and the modules need gradients.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.core.method import Method
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Expand
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.branches import FinalBranches, QuestionInputs, read_layers
from blink_exp.decoder.layers import Prefix, PrefixInputs, run_prefixes


@dataclass(frozen=True)
class ForcedQuestion:
    """A question with its answer.

    Args:
        inputs: what stands in front of the text: opening and visual tokens. ``key``: equal for equal ``inputs``, which then run once.
        text: (text,) token ids behind the image, up to the last prompt token.
        answer: (answer,) token ids, at least one, the end token included.
        sample: see ``Scan``.
    """

    inputs: PrefixInputs
    key: Hashable
    text: torch.Tensor
    answer: torch.Tensor
    sample: str


@dataclass(frozen=True)
class ForcedAnswer:
    """``logits``: (answer, vocabulary), those that predict each token of the answer; ``expanded``: whether any layer expanded."""

    logits: torch.Tensor
    expanded: bool


def forced_answers(model: Any, questions: Rows[ForcedQuestion], methods: Rows[Method]) -> dict[tuple[int, int], ForcedAnswer]:
    """{(question index, method index): logits of its answer} of every question under every method, which share what they can."""
    llm, embed = model.model.language_model, model.get_input_embeddings()
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    grids = [PatchGrid(method.policy.p, side, side) if method.policy is not None else None for method in methods]
    prefixes = _prefixes(llm, embed, questions, {layer for method in methods for layer in read_layers(method)})
    longest = max(len(question.answer) for question in questions)
    points = tuple(range(len(methods)))
    inputs = []
    for question in questions:
        padding = question.answer.new_zeros(longest - len(question.answer))  # behind the answer, which does not see it
        ids = torch.cat([question.text, question.answer, padding])
        base_map = question.inputs.base_map
        inputs.append(QuestionInputs((prefixes[question.key],), embed(ids), question.sample, points, (base_map,), question.inputs.features))
    decoder = BranchDecoder(llm, inputs, methods, grids, answer=longest)
    out: dict[tuple[int, int], ForcedAnswer] = {}

    def finish(final: FinalBranches) -> None:
        logits = model.lm_head(llm.norm(final.text.states[:, -longest - 1 : -1])).float()
        for branch, row in zip(final.branches, logits, strict=True):
            answer_logits = row[: len(questions[branch.question].answer)]
            for point in branch.points:
                expanded = any(isinstance(record.decision, Expand) for record in decoder.records[branch.question, point])
                out[branch.question, point] = ForcedAnswer(answer_logits, expanded)

    decoder.run(finish)
    return out


@torch.no_grad()
def _prefixes(llm: Any, embed: Any, questions: Rows[ForcedQuestion], layers: set[int]) -> dict[Hashable, Prefix]:
    by_key = {question.key: question.inputs for question in questions}
    embeds = [torch.cat([embed(inputs.ids), inputs.features]) for inputs in by_key.values()]
    visual = [len(inputs.features) for inputs in by_key.values()]
    positions = [inputs.positions for inputs in by_key.values()]
    prefixes = run_prefixes(llm, embeds, visual, layers, [len(llm.layers)] * len(embeds), len(embeds), positions)
    return dict(zip(by_key, prefixes, strict=True))
