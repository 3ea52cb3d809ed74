"""Whether two runs on the same questions differ by more than chance: exact McNemar for accuracies, a paired bootstrap over images.

McNemar (1947) looks only at the questions that one run answers right and the other wrong, and takes each for an observation of its own.
Questions on one image are not: what drops a region loses all that ask about it. So an accuracy of images with several questions must also
hold against a bootstrap over images.

Scores that are no plain accuracy (MME's accuracy + accuracy-plus, averages of categories, F1) are recomputed by the benchmark's own rule on
images drawn with replacement, the same images for both runs; p and interval are read off the differences (Efron and Tibshirani, 1993,
chapters 13 and 15).

How small a difference these questions could have told from none is ``detectable`` of every comparison.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import binomtest, norm

from blink_exp.benchmarks.base import Benchmark, Judged, Subsets
from blink_exp.documents.records import Record
from blink_exp.documents.runs import PairedTest
from blink_exp.reports.resampling import PairedImages, Records, draws, resampled

Select = Callable[[Record], bool]  # which records an accuracy counts
BOTH = "McNemar and image bootstrap"  # the larger p of the two
RESAMPLES = 1000
CONFIDENCE = 0.95
POWER = 0.8  # of ``detectable``: how often a true difference of that size would be found at 1 - CONFIDENCE, two-sided
SAME = 1e-6  # points of a score; below, two ways to compute it agree
ASIDE = ("id", "image_id", "question", "regions", "layers", "visual_tokens", "newline_tokens")  # of a record: no score reads them


def compare(
    benchmark: Benchmark,
    records: dict[str, Record],
    baseline: dict[str, Record],
    names: Iterable[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedTest]:
    """How far a run is from its baseline, by score, on the samples that both have.

    ``records``, ``baseline``: {sample id: record}. ``names``: scores of the benchmark; one that is not in both runs is left out. Returns
    {name: {delta (in the score's points, run - baseline), p (two-sided), test ("McNemar", "bootstrap" or ``BOTH``), n (samples compared),
    low, high (95 % interval of delta), detectable (the smallest difference found with a power of 80 %; None: none)}}.
    The same ``seed`` gives the same numbers, in whichever order the records come.
    """
    shared = sorted(records.keys() & baseline.keys())
    if not shared:
        return {}
    ours, theirs = (_final(benchmark, [runs[k] for k in shared]) for runs in (records, baseline))
    benchmark = _quiet(benchmark, ours)
    results: dict[str, PairedTest] = {}
    bootstrapped: list[str] = []
    clustered: dict[str, Select] = {}  # scores whose images have several questions
    scores = _scores(benchmark, ours), _scores(benchmark, theirs)
    mixed = _mixtures(ours, theirs, seed)
    mixed_scores = [_scores(benchmark, m) for m in mixed]
    for name in (n for n in dict.fromkeys(names) if all(n in s for s in scores)):
        runs = [(ours, scores[0]), (theirs, scores[1]), *zip(mixed, mixed_scores, strict=True)]
        select = _counted(benchmark, runs, name)
        if select is None:
            bootstrapped.append(name)
        else:
            results[name] = mcnemar(_hits(ours, select), _hits(theirs, select))
            images = {r["image_id"] for r in _answered(ours, select)}
            clustered |= {name: select} if len(images) < results[name]["n"] else {}
    if clustered:
        pairs = PairedImages.of(ours, theirs)
        weights = draws(pairs.strata, resamples, np.random.default_rng(seed))
        results |= {name: over_images(results[name], pairs, select, weights) for name, select in clustered.items()}
    if bootstrapped:
        results |= bootstrap(benchmark, ours, theirs, bootstrapped, resamples, seed)
    return results


def mcnemar(ours: list[bool], theirs: list[bool]) -> PairedTest:
    """Exact McNemar test of two lists of right and wrong, question by question: a two-sided binomial test of the questions that only one of
    them gets right. ``delta`` in per cent of all questions; its interval is Clopper and Pearson's for those questions, so it holds 0
    exactly where p is above 0.05."""
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n, discordant = len(ours), gained + lost
    smallest = detectable(n, discordant)
    result: PairedTest = {
        "delta": 100 * (gained - lost) / n,
        "p": 1.0,
        "test": "McNemar",
        "n": n,
        "low": 0.0,
        "high": 0.0,
        "detectable": smallest,
    }
    if not discordant:
        return result
    test = binomtest(gained, discordant, 0.5)
    interval = test.proportion_ci(CONFIDENCE, method="exact")
    low, high = (float(100 * (2 * share - 1) * discordant / n) for share in (interval.low, interval.high))
    return {**result, "p": float(test.pvalue), "low": low, "high": high}


def detectable(n: int, discordant: int) -> float | None:
    """The smallest true difference of two accuracies, in per cent of ``n`` paired answers, that McNemar's test finds with a power of 80 %
    at p < 0.05, two-sided; None where not even answers that all differ one way would do.

    ``discordant``: pairs that one run gets right and the other wrong, as seen; their share psi is taken for the true one. With z the
    quantiles of the normal distribution, the difference d solves (Miettinen, Biometrics 24, 1968, 339-352; Connor, Biometrics 43, 1987,
    207-211)

        d sqrt(n) = z(0.975) sqrt(psi) + z(0.8) sqrt(psi - d^2).

    No difference exceeds psi. Where so few pairs differ that d would, psi itself has to be larger, and d = psi: all of them one way. The
    exact test needs a little more than this approximation.
    """
    a, b = float(norm.ppf((1 + CONFIDENCE) / 2)), float(norm.ppf(POWER))
    if 2 * 0.5**n >= 1 - CONFIDENCE:
        return None
    root = (a * n**0.5 + b * (n + b**2 - a**2) ** 0.5) / (n + b**2)  # d = root sqrt(psi), by squaring
    return float(100 * root * max(root, (discordant / n) ** 0.5))


def over_images(alone: PairedTest, pairs: PairedImages, select: Select, weights: np.ndarray) -> PairedTest:
    """McNemar's answer ``alone``, corrected for images that have several questions. ``weights``: (draws, images), of ``draws``.

    p is the larger of McNemar's and that of the share of right answers in ``weights``; the interval is that of the draws. Where k images
    differ, p is at least 2 / 2^k: so often all of them go one way by chance, which draws of a handful of images do not see. What is
    detectable is the larger of both too."""
    runs = [[_hits(image, select) for image in run] for run in (pairs.ours, pairs.theirs)]
    ours, theirs = (np.array([sum(hits) for hits in run]) for run in runs)
    counts = weights @ np.array([len(hits) for hits in runs[0]])
    column = 100 * (weights @ (ours - theirs))[counts > 0] / counts[counts > 0]
    interval = _interval(column, alone["delta"])
    one_way = min(1.0, 2 * 0.5 ** int(np.count_nonzero(ours - theirs)))
    smallest = alone["detectable"]
    if smallest is not None:
        smallest = None if interval["p"] is None else max(smallest, interval["detectable"] or 0.0)
    p = max(alone["p"] or 0.0, interval["p"] or 0.0, one_way)
    return {**alone, **interval, "p": p, "test": BOTH, "detectable": smallest}


def bootstrap(
    benchmark: Benchmark, ours: Records, theirs: Records, names: list[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, PairedTest]:
    """Paired bootstrap over images. ``ours`` and ``theirs`` hold the same samples in the same order. Where every image belongs to one
    category, each category keeps its count of images, as a benchmark that adds up categories has it. p: twice the smaller share of draws at
    or beyond 0 on either side, itself counted in (so never 0, and at most 1); low and high: percentiles. All three None where there are too
    few images for draws to differ."""
    pairs = PairedImages.of(ours, theirs)
    weights = draws(pairs.strata, resamples, np.random.default_rng(seed))
    first, second = _scores(benchmark, ours), _scores(benchmark, theirs)
    deltas = _linear(benchmark, pairs, names, weights)
    if deltas is None:
        deltas = np.array([_difference(benchmark, pairs, names, w) for w in weights])
    results: dict[str, PairedTest] = {}
    for k, name in enumerate(names):
        column = deltas[:, k][~np.isnan(deltas[:, k])]  # a draw may miss what a score needs
        if len(column):
            delta = first[name] - second[name]
            results[name] = {"delta": delta, "test": "bootstrap", "n": len(ours), **_interval(column, delta)}
    return results


def _interval(column: np.ndarray, delta: float) -> PairedTest:
    """p, low, high and what is detectable of (draws,) bootstrap differences.

    A normal difference is found with a power of 80 % where it is z(0.975) + z(0.8) standard errors, those being the draws' standard
    deviation. None where the draws do not differ, and so have none."""
    if not len(column) or np.ptp(column) <= SAME < abs(delta):  # one image a category: draws cannot differ, so they tell nothing
        return {"p": None, "low": None, "high": None, "detectable": None}
    sides = [(1 + np.count_nonzero(side)) / (1 + len(column)) for side in (column <= SAME, column >= -SAME)]
    low, high = np.quantile(column, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    errors = float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER))
    smallest = errors * float(np.std(column)) if np.ptp(column) > SAME else None
    return {"p": float(min(1.0, 2 * min(sides))), "low": float(low), "high": float(high), "detectable": smallest}


def _linear(benchmark: Benchmark, pairs: PairedImages, names: list[str], weights: np.ndarray) -> np.ndarray | None:
    """The differences of all draws, (draws, names), where a score is a sum of what every image adds; None where it is not or where that
    would take longer.

    What an image adds, less what the first image of its stratum adds, is the change of the score when it stands in that one's place. Images
    on which the same was answered add the same. A few draws are recomputed in full to see that the sum is right."""
    images = len(pairs.ours)
    gains = np.zeros((images, len(names)))
    for sign, run in ((1, pairs.ours), (-1, pairs.theirs)):
        kinds = [(stratum, _kind(image)) for stratum, image in zip(pairs.strata.tolist(), run, strict=True)]
        if len(set(kinds)) > len(weights) // 2:
            return None
        full, added = _values(benchmark, [r for image in run for r in image], names), {}
        for i, kind in enumerate(kinds):
            if kind not in added:
                first = int(np.argmax(pairs.strata == pairs.strata[i]))
                weight = np.ones(images, dtype=int)
                weight[first] -= 1
                weight[i] += 1
                added[kind] = _values(benchmark, resampled(run, weight), names) - full
            gains[i] += sign * added[kind]
    base = _difference(benchmark, pairs, names, np.ones(images, dtype=int))
    differences = base + (weights - 1) @ gains
    checked = np.array([_difference(benchmark, pairs, names, w) for w in weights[:5]])
    return differences if np.allclose(differences[:5], checked, atol=SAME, rtol=0) else None


def _kind(image: Records) -> str:
    """A key that is equal for images whose records agree in everything that scores read."""
    return "\n".join(sorted(json.dumps({k: v for k, v in r.items() if k not in ASIDE}, sort_keys=True, default=str) for r in image))


def _difference(benchmark: Benchmark, pairs: PairedImages, names: list[str], weight: np.ndarray) -> np.ndarray:
    ours, theirs = (_values(benchmark, resampled(run, weight), names) for run in (pairs.ours, pairs.theirs))
    difference: np.ndarray = ours - theirs
    return difference


def _values(benchmark: Benchmark, records: Records, names: list[str]) -> np.ndarray:
    scores = _scores(benchmark, records)
    return np.array([scores.get(name, np.nan) for name in names])


def _scores(benchmark: Benchmark, records: Records) -> dict[str, float]:
    """{score: value}, those that have one."""
    return {name: s.value for name, s in benchmark.score(records).items() if s.value == s.value}


def _final(benchmark: Benchmark, records: Records) -> Records:
    """Records with the final ``correct``, after any judge."""
    return benchmark.judged(records) if isinstance(benchmark, Judged) else records


def _quiet(benchmark: Benchmark, records: Records) -> Benchmark:
    """The benchmark without its judge where the marks in the records do, so that a thousand draws do not read every verdict again."""
    if not isinstance(benchmark, Judged) or getattr(benchmark, "judge", None) is None:
        return benchmark
    silent = copy.copy(benchmark)
    silent.judge = None  # type: ignore[attr-defined]
    return silent if silent.score(records) == benchmark.score(records) else benchmark


def _mixtures(ours: Records, theirs: Records, seed: int) -> list[Records]:
    """Three synthetic runs that take each answer at random from one of the two runs."""
    generator = np.random.default_rng(seed)
    lots = generator.integers(0, 2, (3, len(ours))).tolist()
    return [[pair[k] for k, pair in zip(lot, zip(ours, theirs, strict=True), strict=True)] for lot in lots]


def _counted(benchmark: Benchmark, runs: list[tuple[Records, dict[str, float]]], name: str) -> Select | None:
    """The records (all, a category, or a subset that the benchmark names) whose share of right answers the score is, on all of ``runs``;
    None where it is none, where answers are right in part, or where a question stands there more than once (POPE asks the same in three
    categories) and so counts for one only."""
    selections: list[Select] = [lambda record: True, lambda record: record.get("category") == name]
    if isinstance(benchmark, Subsets):
        selections.append(lambda record: benchmark.counts(name, record))
    for select in selections:
        subsets = [(_answered(records, select), scores.get(name)) for records, scores in runs]
        if any([r["id"] for r in records] != [r["id"] for r in subsets[0][0]] for records, _ in subsets):
            continue  # one run has no verdict where the other has
        if all(_is_share(records, score) for records, score in subsets) and _unique_questions(subsets[0][0]):
            return select
    return None


def _is_share(records: Records, score: float | None) -> bool:
    right = [r["correct"] for r in records]
    if not right or score is None or any(r not in (0, 1) for r in right):
        return False
    return bool(abs(score - 100 * sum(right) / len(right)) < SAME)


def _unique_questions(records: Records) -> bool:
    """Whether no question occurs twice on an image."""
    keys = [(r["image_id"], r["question"]) for r in records if r.get("question") is not None]
    return len(set(keys)) == len(keys)


def _answered(records: Records, select: Select) -> Records:
    return [r for r in records if r.get("correct") is not None and select(r)]


def _hits(records: Records, select: Select) -> list[bool]:
    return [bool(r["correct"]) for r in _answered(records, select)]
