"""Prompts of a backbone, as the checkpoint's chat template has them, and as token ids: what stands before an image, between two, behind the
last, and what ends an answer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from blink_exp.errors import UserError
from blink_exp.files import encodable

# LLaVA's published scores were measured with ``vicuna_v1``; the checkpoints' own chat template has no system text by default.
SYSTEM_PROMPTS = {
    "none": None,
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
}


def without_placeholder(text: str, placeholder: str, of: str = "the question") -> str:
    """A prompt without the image's ``placeholder``, as the chat template puts the image first.

    Raises UserError for several placeholders, which mean several images. ``of``: name of the prompt in the message."""
    text = encodable(text)  # a tokenizer takes no lone surrogate
    count = text.count(placeholder)
    if count > 1:
        raise UserError(f"{of} names {count} images ({placeholder}), and this model answers about one")
    return text.replace(placeholder, "", 1).strip() if count else text


def conversation(question: str, system_prompt: str = "none") -> list[dict[str, Any]]:
    """The messages of one question about one image, in the format of chat templates."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    system = SYSTEM_PROMPTS[system_prompt]
    before = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*before, {"role": "user", "content": content}]


def chat_prompt(processor: Any, question: str, system_prompt: str = "none") -> str:
    """The text of one question about one image, as the checkpoint's chat template has it."""
    text: str = processor.apply_chat_template(conversation(question, system_prompt), add_generation_prompt=True)
    return text


def answered_prompt(processor: Any, turns: Sequence[tuple[str, str]], system_prompt: str = "none") -> tuple[str, str]:
    """(prompt of the last question of a conversation about one image, its answer as the chat template writes it, with the end token).

    ``turns``: (question, answer), at least one; those before the last are part of the prompt."""
    messages = conversation(turns[0][0], system_prompt)
    for (_, answer), (question, _) in itertools.pairwise(turns):
        messages += [_text_message("assistant", answer), _text_message("user", question)]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    end = processor.tokenizer.eos_token
    whole = processor.apply_chat_template([*messages, _text_message("assistant", turns[-1][1])], add_generation_prompt=False)
    answer = whole[len(prompt) :] if whole.startswith(prompt) else f" {turns[-1][1]}"
    return prompt, answer.rstrip().removesuffix(end).rstrip() + end


def _text_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class Prompts:
    """``system_prompt``: a key of ``SYSTEM_PROMPTS``."""

    model: Any
    processor: Any
    system_prompt: str

    def prompt(self, question: str) -> str:
        return chat_prompt(self.processor, question, self.system_prompt)

    def batch(self, features: list[torch.Tensor], questions: list[str]) -> dict[str, torch.Tensor]:
        """Token ids and mask of one question an image, with as many placeholders as the image has ``features``; left-padded."""
        token = self.processor.image_token
        texts = [self.prompt(q).replace(token, token * len(f)) for q, f in zip(questions, features, strict=True)]
        encoded = self.processor.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        batch: dict[str, torch.Tensor] = encoded.to(self.model.device)
        return batch

    def around(self, questions: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Token ids before and behind the image of each question's prompt, as ``batch`` has them.

        Raises UserError for a question that contains the image placeholder."""
        return [self._cut(ids) for ids in self._tokens([self.prompt(q) for q in questions])]

    def around_answered(self, turns: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids before the image, behind it up to the end of the prompt, and of the answer with its end token, of the last of ``turns``
        (see ``answered_prompt``). Raises UserError as ``around``."""
        prompt, answer = answered_prompt(self.processor, turns, self.system_prompt)
        alone, whole = self._tokens([prompt, prompt + answer])
        before, behind = self._cut(alone)
        if whole[: len(alone)] == alone:
            ids = whole[len(alone) :]
        else:  # the tokenizer joins the end of the prompt with the answer
            ids = self.processor.tokenizer(answer, add_special_tokens=False, return_token_type_ids=False)["input_ids"]
        return before, behind, torch.tensor(ids, dtype=torch.long, device=self.model.device)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # the tokenizer raises
            return []
        ids: list[list[int]] = self.processor.tokenizer(texts, return_token_type_ids=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids before and behind the image of a prompt."""
        image, token = self.model.config.image_token_id, self.processor.image_token
        if ids.count(image) != 1:
            raise UserError(f"a prompt has {ids.count(image)} placeholders {token} where it shows one image; reword the question")
        position = ids.index(image)
        before, behind = (torch.tensor(part, dtype=torch.long, device=self.model.device) for part in (ids[:position], ids[position + 1 :]))
        return before, behind

    @functools.cached_property
    def between_images(self) -> torch.Tensor:
        """(tokens, width) embeddings of what stands between two images of a prompt: a newline."""
        image, token = self.model.config.image_token_id, self.processor.image_token
        text = self.prompt("?").replace(token, f"{token}\n{token}")
        ids = self.processor.tokenizer(text, return_token_type_ids=False)["input_ids"]
        first = ids.index(image)
        between = ids[first + 1 : ids.index(image, first + 1)]
        embeddings: torch.Tensor = self.model.get_input_embeddings()(torch.tensor(between, device=self.model.device))
        return embeddings.detach()

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
