"""Schemas of judges."""

from __future__ import annotations

from dataclasses import dataclass

from blink_exp.settings import limits


@dataclass
class NoJudge:
    """judge=none has no settings."""


@dataclass
class OpenAIJudge:
    model: str = limits.text("the name of a model")
    base_url: str | None = limits.text("the address of an endpoint")
    key_variable: str = limits.text("the name of an environment variable")
    cache: str = limits.path()
    temperature: float | None = limits.number(0, 2)  # as OpenAI's API
    max_tokens: int | None = limits.whole(1, most=limits.TOKENS)
    max_retries: int = limits.whole(0, most=100)
    timeout: float = limits.number(0, most=86_400, above=True)  # a day
    threads: int = limits.whole(1, most=limits.PROCESSES)
    give_up: int = limits.whole(1)


TARGETS: dict[str, type] = {
    "blink_exp.judge.no_judge": NoJudge,
    "blink_exp.judge.Judge": OpenAIJudge,
}
