"""Trains TokenSR on answers: the cross-entropy of an answer through the frozen LLM, with the module's tokens where Blink would put them.

The paper trains a module to resemble a close-up's features. What a module is for, though, is the answer; so here its tokens are inserted at
the attended region, by the functions that do so at inference (``decoder.forced``), and the gradient runs from the answer through the LLM's
layers into the module, and nowhere else. This is ours, not the paper's.
"""

from __future__ import annotations

import math
from typing import Any, Required, TypedDict

import torch
from torch import nn
from torch.nn import functional as F

from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method
from blink_exp.core.views import ViewGeometry, all_tokens, base_view, pack
from blink_exp.decoder.forced import ForcedAnswer, ForcedQuestion, forced_answers
from blink_exp.decoder.layers import PrefixInputs
from blink_exp.errors import UserError
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.tracking.names import answer_metrics
from blink_exp.training.dialogues import Dialogue
from blink_exp.training.losses import WeightedLoss
from blink_exp.training.module import TokenSRTraining
from blink_exp.training.pairs import PairBatch
from blink_exp.training.quality import INTERPOLATION, TOKENSR

NONE = "none"
WAYS = (NONE, INTERPOLATION, TOKENSR)
MOST_TEXT = 1024  # tokens of a prompt's text and its answer; longer answers are cut off (Blink, Table 4: sequence length 1024)


class AnswerBatch(TypedDict, total=False):
    """A batch of a training on answers. ``pairs``: where there is a loss of features too."""

    answers: Required[list[Dialogue]]
    pairs: PairBatch


class InStates(nn.Module):
    """A module that takes and returns states in their own dtype, whatever the dtype of its weights is."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.module(x.to(next(self.module.parameters()).dtype))
        return out.to(x.dtype)


class AnswerTraining(TokenSRTraining):
    """Trains the modules of ``policy``'s layers on answers, ``weight`` times their cross-entropy, beside ``loss``, a loss of features.

    The cross-entropy is the mean over the tokens of an answer, its end token included, and over questions. Validation measures it, and
    the share of answers of which every token would be generated, beside the untouched model's and interpolation's.
    """

    def __init__(self, backbone: Backbone, policy: BlinkPolicy, *, weight: float = 1.0, loss: WeightedLoss | None = None, **options: Any):
        super().__init__(backbone, list(policy.layers), loss=loss, **options)
        backbone.model.requires_grad_(False)
        self.policy, self.weight, self.features = policy, weight, loss
        self._answers: torch.Tensor

    @property
    def methods(self) -> dict[str, Method]:
        """The untouched model, Blink-interp and Blink with the modules as they are."""
        wrapped = nn.ModuleDict({layer: InStates(module) for layer, module in self.amplifiers.items()})
        return {NONE: Method(), INTERPOLATION: blink(self.policy), TOKENSR: blink(self.policy, wrapped)}

    @torch.no_grad()
    def questions(self, dialogues: list[Dialogue]) -> list[ForcedQuestion]:
        """The questions of a batch, with the visual tokens of its images."""
        backbone = self.backbone
        images = {dialogue.key: dialogue.image for dialogue in dialogues}
        features = backbone.features(images)
        cells = self.grid.height * self.grid.width
        out = []
        for dialogue in dialogues:
            views = ViewGeometry.of(backbone.model.config, (dialogue.image.height, dialogue.image.width))
            base_map = base_view(pack(views, all_tokens(views)), views)
            for n, turns in enumerate(dialogue.asked):
                ahead, text, answer = backbone.around_answered(turns)
                inputs = PrefixInputs(ahead, features[dialogue.key], None if base_map.whole(cells) else base_map)
                answer = answer[: max(1, MOST_TEXT - len(text))]
                out.append(ForcedQuestion(inputs, dialogue.key, text, answer, f"{dialogue.key}/{n}"))
        return out

    def answers(self, questions: list[ForcedQuestion], *ways: str) -> dict[str, list[ForcedAnswer]]:
        """{way: the answers of all questions}, of the named ways, which share what they can."""
        methods = self.methods
        forced = forced_answers(self.backbone.model, questions, [methods[way] for way in ways])
        return {way: [forced[q, p] for q in range(len(questions))] for p, way in enumerate(ways)}

    def answer_loss(self, dialogues: list[Dialogue]) -> torch.Tensor:
        """The mean cross-entropy of the answers under Blink with the modules as they are."""
        questions = self.questions(dialogues)
        forced = self.answers(questions, TOKENSR)[TOKENSR]
        losses = [F.cross_entropy(answer.logits, question.answer) for answer, question in zip(forced, questions, strict=True)]
        return torch.stack(losses).mean()

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> torch.Tensor:
        answers = self.answer_loss(batch["answers"])
        total = self.weight * answers
        if self.features is not None:
            total = total + self.losses(batch["pairs"]).sum()
        self._step_losses.append(total.detach().expand(len(self.layers)))
        unused = sum(parameter.sum() for parameter in self.amplifiers.parameters())
        return total + 0 * unused  # a layer that expanded nowhere in this batch has a gradient too, as DDP needs

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._answers = torch.zeros(len(WAYS), 4, dtype=torch.float64)  # questions, cross-entropy, right answers, expanded

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not isinstance(batch, list):
            super().validation_step(batch, batch_idx)
            return
        questions = self.questions(batch)
        for row, forced in enumerate(self.answers(questions, *WAYS).values()):
            for answer, question in zip(forced, questions, strict=True):
                loss = F.cross_entropy(answer.logits, question.answer).item()
                right = bool((answer.logits.argmax(-1) == question.answer).all())
                self._answers[row] += torch.tensor([1.0, loss, right, answer.expanded], dtype=torch.float64)

    def loss_of(self, layer: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return student.new_zeros(()) if self.features is None else super().loss_of(layer, student, teacher)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()  # cosine and relative error
        sums = torch.tensor(self._over_devices(self._answers.flatten().tolist())).view(len(WAYS), 4)
        row = answer_row({way: sums[k].tolist() for k, way in enumerate(WAYS)})
        for way in WAYS:
            if not math.isfinite(row[way]):
                raise UserError(self._diverged(f"the held-out cross-entropy of {way} is {row[way]}"))
        for name, value in answer_metrics(row).items():
            self.log(name, value, sync_dist=self.trainer.world_size > 1)
        self.result = {layer: measured | row for layer, measured in self.result.items()}

    def pairs(self, batch: Any) -> Any:
        assert isinstance(batch, PairBatch), "features are not cached for a training on answers"
        return super().pairs(batch)


def answer_row(sums: dict[str, list[float]]) -> dict[str, float]:
    """The answers' measures from {way: sums of questions, cross-entropy, right answers, expanded}.

    ``none``, ``interpolation``, ``tokensr``: cross-entropy; ``accuracy_WAY``: share of right answers; ``gain``: by how much TokenSR's
    cross-entropy is below interpolation's; ``expanded``: share of questions at which a layer expanded."""
    questions = sums[NONE][0]
    out = {way: loss / questions for way, (_, loss, _, _) in sums.items()}
    out["gain"] = 1 - out[TOKENSR] / out[INTERPOLATION] if out[INTERPOLATION] else -math.inf if out[TOKENSR] else 0.0
    out |= {f"accuracy_{way}": right / questions for way, (_, _, right, _) in sums.items()}
    return out | {"expanded": sums[TOKENSR][3] / questions, "questions": int(questions)}
