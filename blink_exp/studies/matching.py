"""Searches a method's setting so that its mean visual tokens per layer equal the target share.

A nominal ratio differs between methods: of all tokens or of unpadded ones, before or after rounding, per tile or per image, after two
layers or after three. Methods are therefore compared by the tokens that the LLM processes. Bisection finds the value at which the tokens
per layer, averaged over layers and over the benchmark's images, are the target share: ``retention_ratio``, or ``tokens`` over all.
Answers are not used. Newlines count if a method selects among them (inside the LLM), not if they are outside its budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from blink_exp.benchmarks.base import group_by_image
from blink_exp.core.encoding import Encoding
from blink_exp.core.method import LayerPolicy, Method
from blink_exp.core.views import NEWLINE, ViewGeometry, all_tokens, pack
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.evaluation import evaluator, identity, locks, store
from blink_exp.evaluation.answering import prompt_of
from blink_exp.files import read_object, write_json
from blink_exp.methods.budgets import token_share, whole_tokens
from blink_exp.settings.build import build
from blink_exp.settings.roots import EvaluateSettings, PointSettings

RANGES = {"iqr_factor": (50.0, 0.0)}  # {setting: (value that keeps fewest tokens, value that keeps most)}
RATIO = (0.005, 1.0)  # range of all other settings, which are ratios
STEPS = 16  # bisection steps: precision of 2 ** -16 of the range


class Match(TypedDict):
    """A search result in the store: at which ``value`` of the setting ``key`` what ``share`` of the visual tokens is processed; ``wanted``:
    that which was looked for."""

    key: str
    value: float
    wanted: float
    share: float


def matched(settings: EvaluateSettings, key: str) -> list[str]:
    """The overrides at which a method processes ``retention_ratio`` of the visual tokens, or ``tokens`` a layer where that is not null: of
    the setting ``key`` ("method.iqr_factor") and, with ``tokens``, of the method's own budget. Cached in the store. Raises UserError if no
    value meets the budget."""
    settings = replace(settings, shard=None)  # the shards of a run must not differ in a setting
    path = match_file(settings, key)
    result = None if settings.force else stored_match(path)
    if result is None:
        with locks.waited(path):
            result = None if settings.force else stored_match(path)  # another run may have finished the search meanwhile
            if result is None:
                wanted = wanted_share(settings)
                value, share = search(
                    share_by(settings, key), wanted, *RANGES.get(key.rpartition(".")[2], RATIO), name=key, budget=budget(settings)
                )
                result = {"key": key, "value": value, "wanted": wanted, "share": share}
                write_json(path, result)
    print(f"matched: {key}={result['value']:.6g} keeps {100 * result['share']:.2f} % of the visual tokens", flush=True)
    return match_overrides(settings, key, result["value"])


def match_overrides(settings: EvaluateSettings, key: str, value: float) -> list[str]:
    """The overrides of a match: the setting, and null for the method's own budget in tokens, which would go before it."""
    return [f"{key}={value:.6g}", *(f"{name}=null" for name in token_settings(settings.method))]


def budget(settings: EvaluateSettings) -> str:
    """The budget that is matched, as an override."""
    return f"retention_ratio={settings.retention_ratio}" if settings.tokens is None else f"tokens={settings.tokens}"


def stored_match(path: Path) -> Match | None:
    """The cached result of an earlier search; None if the file is missing, or damaged, which is reported."""
    if not path.is_file():
        return None
    try:
        match: Any = read_object(path, {"value": store.NUMBER, "share": store.NUMBER}, "the setting is searched again")
    except UserError as error:
        store.name_once(str(error))
        return None
    result: Match = match
    return result


def match_file(settings: EvaluateSettings, key: str) -> Path:
    """The file of the store that caches the search result."""
    query = {"match": key, "wanted": str(settings.retention_ratio) if settings.tokens is None else budget(settings)}
    return Path(settings.store) / "matched" / f"{identity.config_hash(settings, identity.digests(settings) | query)}.json"


def search(
    share_of: Callable[[float], float], wanted: float, least: float, most: float, name: str = "it", budget: str = ""
) -> tuple[float, float]:
    """(value, share) between ``least`` and ``most``, the values that keep fewest and most, at which ``share_of`` is nearest to
    ``wanted``. ``share_of`` must be monotonic; it may jump, since tokens are whole. Raises UserError if ``wanted``, the share of
    ``budget``, is out of range."""
    ends = (least, share_of(least)), (most, share_of(most))
    if not ends[0][1] <= wanted <= ends[1][1]:
        of_all = f" (the share {wanted:.4g})" if budget.startswith("tokens") else ""
        reached = f"{name} gives {ends[0][1]:.3f} to {ends[1][1]:.3f}"
        raise UserError(f"{budget or f'retention_ratio={wanted}'}{of_all} cannot be met: {reached}; use a value inside")
    below, above = ends
    for _ in range(STEPS):
        middle = (below[0] + above[0]) / 2
        share = share_of(middle)
        if share < wanted:
            below = middle, share
        else:
            above = middle, share
    return min(below, above, key=lambda end: abs(end[1] - wanted))


def wanted_share(settings: PointSettings) -> float:
    """The share of the visual tokens that is matched."""
    if settings.tokens is None:
        return settings.retention_ratio
    backbone, _, _ = evaluator.prepare(replace(settings, method=without_tokens(settings.method)))
    return token_share(backbone, settings.retention_ratio, whole_tokens(backbone, settings.tokens))


def share_by(settings: PointSettings, key: str) -> Callable[[float], float]:
    """The share of visual tokens that a method processes, as a function of its setting ``key``: of a pair, of both halves together; 0 if
    the method rejects the value because no token would remain. Errors of the other settings are raised here."""
    unset = without_tokens(settings.method)  # the setting is searched instead of the method's own budget
    backbone, _, benchmark = evaluator.prepare(replace(settings, method=unset))
    prompts: list[tuple[Image.Image, str]] = []
    for first, *_ in group_by_image(evaluator.chosen(benchmark, settings)):
        with contextlib.suppress(OSError, UserError):  # skipped and reported by an evaluation
            prompts.append((first.image(), prompt_of(backbone, benchmark, first)))
    if not prompts:
        raise UserError(f"{key} cannot be matched: nothing of {benchmark.name} can be asked; evaluate the method alone to see why")
    encodings: dict[int, Encoding] = {}

    def views(k: int) -> ViewGeometry:
        image = prompts[k][0]
        return ViewGeometry.of(backbone.model.config, (image.height, image.width))

    def share_of(value: float) -> float:
        try:
            method: Method = build(with_value(unset, key.removeprefix("method."), value), backbone)
            if method.pruner is None:
                assert method.policy is not None
                sizes = [len(pack(views(k), all_tokens(views(k)))) for k in range(len(prompts))]
                return sum(policy_tokens(method.policy, n, backbone.depth) for n in sizes) / sum(sizes)
            selected = total = 0.0
            for k, (image, question) in enumerate(prompts):
                if k not in encodings:
                    encodings[k] = backbone.encodings({f"matching:{k}": image}, method.pruner.needs)[f"matching:{k}"]
                chosen = method.pruner.select(encodings[k], question) or all_tokens(encodings[k].views)
                entering = int((pack(encodings[k].views, chosen, method.pruner.newline_policy) != NEWLINE).sum())
                selected += (
                    policy_tokens(method.policy, entering, backbone.depth)
                    if method.policy is not None and method.policy.drops
                    else entering
                )
                total += int(encodings[k].views.valid.sum())
            return selected / total
        except UserError:
            return 0.0

    return share_of


def token_settings(method: PlainSettings, prefix: str = "method") -> list[str]:
    """The dotted names of a method's ``tokens``, and of those of the halves of a pair, that are not null."""
    names = [f"{prefix}.tokens"] if method.get("tokens") is not None else []
    return [
        *names,
        *(name for key, value in method.items() if isinstance(value, dict) for name in token_settings(value, f"{prefix}.{key}")),
    ]


def without_tokens(method: PlainSettings) -> PlainSettings:
    """A method's settings with null for each of its ``token_settings``."""
    return {k: None if k == "tokens" else without_tokens(v) if isinstance(v, dict) else v for k, v in method.items()}


def with_value(method: PlainSettings, key: str, value: float) -> PlainSettings:
    """A method's settings with another value at the dotted ``key``."""
    name, dot, rest = key.partition(".")
    return method | {name: with_value(method[name], rest, value) if dot else value}


def policy_tokens(policy: LayerPolicy, visual: int, depth: int) -> float:
    """Visual tokens per layer, averaged over ``depth`` layers, for a prompt with ``visual`` tokens. Raises UserError for a policy without
    a fixed share."""
    counts = policy.layer_tokens(visual, depth)
    if counts is None:
        raise UserError(f"{type(policy).__name__} keeps no set share of the visual tokens, so it cannot be matched; leave match away")
    return sum(counts) / depth
