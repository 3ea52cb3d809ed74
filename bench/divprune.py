"""DivPrune's choice beside what it saves.

It is the one method before the LLM that compares all tokens with each other: a V x V matrix, then a loop of as many steps as tokens are
kept, each of which waits for the one before. Users report published code that is slower with it than without.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from bench import report
from bench.methods import ground_of
from bench.shapes import Prompt, prefill
from bench.timing import clock_of, compared, rounds
from blink_exp.core.views import all_tokens, pack
from blink_exp.methods.divprune import DivPrune, distances, farthest, token_features

TITLE = "DivPrune: its choice beside what it saves"
TOKENS = (640, 320, 192, 160)  # of 2,880; 192 is judged
JUDGED = 192
LOOP, CHOICE = 1.0, 1.0
UNTOUCHED = "untouched"
COLUMNS = ("tokens kept", "matrix s", "loop s", "prefill s", "saved s", "loop / saved", "choice / saved")


def measure(size: str = "default", device: str = "cpu", repeats: str | int | None = None, clock: str = "wall") -> dict[str, Any]:
    """The settings are those of ``bench.methods``."""
    watch = clock_of(clock, device)
    ground, count = ground_of(size, device, repeats)
    encoding = ground.encoding(DivPrune(0.5).needs, real=True)
    candidates = pack(ground.views, all_tokens(ground.views), "none")
    features = token_features(encoding, candidates)
    total = len(candidates)
    counts = {n: n * total // 2880 for n in TOKENS}
    matrix = distances(features.float())

    def fed(n: int) -> Any:
        return prefill(ground.model, Prompt.around(ground.model, features[:n]))

    works = {UNTOUCHED: partial(fed, total), "matrix": lambda: distances(features.float())}
    works |= {f"prefill {n}": partial(fed, k) for n, k in counts.items()}
    works |= {f"loop {n}": partial(farthest, matrix, k) for n, k in counts.items()}
    taken = rounds(works, count, clock=watch)
    rows, bars = [{"tokens kept": total, "prefill s": median(taken[UNTOUCHED])}], []
    for n, k in counts.items():
        loop, fewer = taken[f"loop {n}"], taken[f"prefill {n}"]
        saved = [a - b for a, b in zip(taken[UNTOUCHED], fewer, strict=True)]
        choice = [a + b for a, b in zip(taken["matrix"], loop, strict=True)]
        of_loop, of_choice = compared(loop, saved), compared(choice, saved)
        row = {"tokens kept": k, "matrix s": median(taken["matrix"]), "loop s": median(loop), "prefill s": median(fewer)}
        rows.append(row | {"saved s": median(saved), "loop / saved": of_loop.ratio, "choice / saved": of_choice.ratio})
        if n == JUDGED:
            bars.append(report.bar(f"{n} of 2,880: the loop, as a share of what is saved in prefill", of_loop.ratio, LOOP))
            bars.append(report.bar(f"{n} of 2,880: matrix and loop, as a share of what is saved in prefill", of_choice.ratio, CHOICE))
    dtype = str(ground.model.dtype).removeprefix("torch.")
    notes = [
        f"{ground.shape.layers} layers of width {ground.shape.width}, {total:,} visual tokens without newlines, compared in float32, model"
        f" in {dtype}, random weights, rounds: {count}, by {clock} clock",
        "saved: prefill of all tokens less prefill of as many as are kept. choice: matrix and loop.",
    ]
    return report.result(TITLE, rows, bars, notes, COLUMNS) | {"device": device}
