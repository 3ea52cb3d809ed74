"""Methods at equal tokens: at which value of a setting a method really keeps the share of visual tokens that it is asked for.

A nominal ratio means something else to every method: of all tokens or of those that show the image, before or after rounding, of a tile
or of the image, behind two layers or behind three. What counts is what the LLM works on, so the setting is searched, by bisection, at
which the tokens of a layer, averaged over layers and over the benchmark's images, are the share that was asked for. No answer is looked
at. Newlines count where a method chooses among them (inside the LLM) and not where they stand outside its budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import by_image
from blink_exp.core.method import LayerPolicy, Method
from blink_exp.core.views import NEWLINE, ViewGeometry, everything, pack
from blink_exp.errors import UserError
from blink_exp.evaluation import evaluator, identity, locks, store
from blink_exp.evaluation.answering import prompt_of
from blink_exp.files import read_object, write_json
from blink_exp.settings.build import build
from blink_exp.settings.roots import EvaluateSettings, PointSettings

RANGES = {"iqr_factor": (50.0, 0.0)}  # of a setting, from the value that keeps least to the one that keeps most
RATIO = (0.005, 1.0)  # of every other setting, all shares
STEPS = 16  # halvings: the value is known to 2 ** -16 of its range


def matched(settings: EvaluateSettings, key: str) -> list[str]:
    """The override that makes a method work on ``retention_ratio`` of the visual tokens by its setting ``key`` ("method.iqr_factor").
    Kept in the store. Raises UserError where no value of the setting does."""
    settings = replace(settings, shard=None)  # the shards of a run must not differ in a setting
    path = match_file(settings, key)
    result = None if settings.force else stored_match(path)
    if result is None:
        with locks.waited(path):
            result = None if settings.force else stored_match(path)  # another run may have found it meanwhile
            if result is None:
                value, share = search(
                    share_by(settings, key), settings.retention_ratio, *RANGES.get(key.rpartition(".")[2], RATIO), name=key
                )
                result = {"key": key, "value": value, "wanted": settings.retention_ratio, "share": share}
                write_json(path, result)
    print(f"matched: {key}={result['value']:.6g} keeps {100 * result['share']:.2f} % of the visual tokens", flush=True)
    return [f"{key}={result['value']:.6g}"]


def stored_match(path: Path) -> dict[str, Any] | None:
    """What a file of the store holds of an earlier search; None where there is none, or a damaged one, which is named."""
    if not path.is_file():
        return None
    try:
        return read_object(path, {"value": store.NUMBER, "share": store.NUMBER}, "the setting is searched again")
    except UserError as error:
        store.name_once(str(error))
        return None


def match_file(settings: EvaluateSettings, key: str) -> Path:
    """The file of the store that holds what was found."""
    query = {"match": key, "wanted": str(settings.retention_ratio)}
    return Path(settings.store) / "matched" / f"{identity.config_hash(settings, identity.digests(settings) | query)}.json"


def search(share_of: Callable[[float], float], wanted: float, least: float, most: float, name: str = "it") -> tuple[float, float]:
    """(value, share): where between ``least`` and ``most``, the values that keep fewest and most, ``share_of`` is nearest to
    ``wanted``. It must not fall on the way; it may jump, as tokens are whole. Raises UserError where ``wanted`` lies outside."""
    ends = (least, share_of(least)), (most, share_of(most))
    if not ends[0][1] <= wanted <= ends[1][1]:
        raise UserError(f"retention_ratio={wanted} cannot be met: {name} gives {ends[0][1]:.3f} to {ends[1][1]:.3f}; use a value inside")
    below, above = ends
    for _ in range(STEPS):
        middle = (below[0] + above[0]) / 2
        share = share_of(middle)
        if share < wanted:
            below = middle, share
        else:
            above = middle, share
    return min(below, above, key=lambda end: abs(end[1] - wanted))


def share_by(settings: PointSettings, key: str) -> Callable[[float], float]:
    """The share of visual tokens that a method works on, as a function of its setting ``key``; 0 where it refuses the value
    because nothing would stay. Errors of the other settings are raised here."""
    backbone, _, benchmark = evaluator.prepare(settings)
    prompts: list[tuple[Any, str]] = []
    for first, *_ in by_image(evaluator.chosen(benchmark, settings)):
        with contextlib.suppress(OSError, UserError):  # an evaluation skips and names it
            prompts.append((first.image(), prompt_of(backbone, benchmark, first)))
    if not prompts:
        raise UserError(f"{key} cannot be matched: nothing of {benchmark.name} can be asked; evaluate the method alone to see why")
    encodings: dict[int, Any] = {}

    def views(k: int) -> ViewGeometry:
        image = prompts[k][0]
        return ViewGeometry.of(backbone.model.config, (image.height, image.width))

    def share_of(value: float) -> float:
        try:
            method: Method = build(settings.method | {key.removeprefix("method."): value}, backbone)
            if method.policy is not None:
                sizes = [len(pack(views(k), everything(views(k)))) for k in range(len(prompts))]
                return sum(policy_tokens(method.policy, n, backbone.depth) for n in sizes) / sum(sizes)
            assert method.pruner is not None
            selected = total = 0
            for k, (image, question) in enumerate(prompts):
                if k not in encodings:
                    encodings[k] = backbone.encodings({f"matching:{k}": image}, method.pruner.needs)[f"matching:{k}"]
                chosen = method.pruner.select(encodings[k], question) or everything(encodings[k].views)
                selected += int((pack(encodings[k].views, chosen, method.pruner.newline_policy) != NEWLINE).sum())
                total += int(encodings[k].views.valid.sum())
            return selected / total
        except UserError:
            return 0.0

    return share_of


def policy_tokens(policy: LayerPolicy, visual: int, depth: int) -> float:
    """Visual tokens that a layer works on, averaged over ``depth`` layers, for a prompt of ``visual``. Raises UserError for a policy that
    keeps no set share of them."""
    counts = policy.layer_tokens(visual, depth)
    if counts is None:
        raise UserError(f"{type(policy).__name__} keeps no set share of the visual tokens, so it cannot be matched; leave match away")
    return sum(counts) / depth
