"""The model that lmms-eval 0.7 loads by the name ``blink_exp`` (entry-point group ``lmms_eval.models``): docs/lmms_eval.md.

The only module that imports lmms-eval. It follows lmms-eval's interface of "simple" models: a task's prompt text, and a function that
opens its images.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from blink_exp.errors import UserError
from blink_exp.evaluation.terminal import bar
from blink_exp.images import ImageOptions
from blink_exp.integrations.requests import DOC, Request, answer, build, configure, ignored, image_of, new_tokens, process_device, stop_at

manifest = ModelManifest(model_id="blink_exp", simple_class_path="blink_exp.integrations.lmms_eval.BlinkExp")


class BlinkExp(lmms):
    """An lmms-eval model: a backbone with a method.

    Args:
        settings: overrides of conf/evaluate.yaml, ``method="blink"``, ``model="llava_1_5_7b"``, ``**{"thresholds.tau_exp": 0.55}``.
        batch_size: questions at once.
        device: instead of ``model.device``.
        max_batch_size: for lmms-eval's batch size "auto", which is refused.

    Raises UserError where a setting does not exist or a model cannot be loaded.
    """

    is_simple = True

    def __init__(self, batch_size: int | str = 1, device: str | None = None, max_batch_size: int | None = None, **settings: Any):
        super().__init__()
        configured = configure(settings, batch_size, device)
        configured = replace(configured, model=configured.model | {"device": process_device(configured.model["device"], os.environ)})
        self.batch_size = configured.batch_size
        self.image_options = ImageOptions.of(asdict(configured.image_loading))
        self.backbone, self.method = build(configured)
        logger.info(f"{self.method.name} on {self.backbone.identity}, {self.backbone.settings}")

    @property
    def device(self) -> torch.device:
        device: torch.device = self.backbone.model.device
        return device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One greedy answer per request, in order. Of a task's generation settings only max_new_tokens and until are used."""
        questions = [self._question(*request.args) for request in requests]
        firsts: dict[str, tuple[Any, Request]] = {}
        for request, question in zip(requests, questions, strict=True):
            firsts.setdefault(request.task_name, (request, question))
        for request, question in firsts.values():
            image_of(question, self.image_options)  # checks the first image of each task before a long run
            if ignored_settings := ignored(request.args[1]):
                logger.warning(f"{request.task_name}: {', '.join(ignored_settings)} ignored, answers are greedy")
        with bar(len(questions), self.method.name, self.rank == 0) as advance:
            responses = answer(self.backbone, self.method, questions, self.batch_size, advance, self.image_options)
        if responses:
            mean = sum(answer.visual_tokens for answer in responses) / len(responses)
            logger.info(f"{self.method.name}: {mean:.1f} visual tokens entered the LLM, averaged over {len(responses)} questions")
        return [answer.text for answer in responses]

    def _question(self, context: str, settings: dict[str, Any], doc_to_visual: Any, doc_id: int, task: str, split: str) -> Request:
        def visuals() -> Any:
            return doc_to_visual(self.task_dict[task][split][doc_id])

        limit, until = new_tokens(settings, task), stop_at(settings.get("until"))
        return Request(f"{task}/{split}/{doc_id}", context, visuals, limit, until)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise self._refusal(requests, "multiple_choice or loglikelihood")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise self._refusal(requests, "generate_until_multi_round")

    def generate_visual_cot(self, requests: list[Any]) -> list[str]:
        raise self._refusal(requests, "generate_visual_cot")

    @staticmethod
    def _refusal(requests: list[Any], kind: str) -> UserError:
        task = requests[0].task_name
        return UserError(f"{task} has output_type {kind}; blink_exp answers output_type generate_until about one image: {DOC}")
