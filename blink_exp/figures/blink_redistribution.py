"""Blink, Figs. 6 and 8: once a patch has been expanded, how much does the last prompt token look at the new tokens, and how evenly."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from blink_exp.benchmarks.base import spread
from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import prompt_of
from blink_exp.evaluation.evaluator import chosen
from blink_exp.evaluation.terminal import bar
from blink_exp.figures.base import PAGE, Claim, Drawing, Study
from blink_exp.figures.blink_attention import LayerAttention, evenness, last_token_attention
from blink_exp.figures.blink_layers import targets
from blink_exp.figures.blink_maps import TOP, draw_box, draw_image, heat
from blink_exp.figures.shared import measured_on, rounded, square, styled, tip
from blink_exp.figures.verdicts import RULE, combined_verdict, mean
from blink_exp.methods.blink import relative_layers

SAMPLES = 128  # questions behind the claims: each is run alone


@dataclass(frozen=True)
class Case:
    """One question under expansion: attention by layer, and the annotated patches (empty if unknown)."""

    record: Record  # id, image_id, question, regions
    attention: dict[int, LayerAttention]
    right: frozenset[int]


def after_expansion(
    study: Study,
    layers: tuple[int, int] = (13, 20),
    images: int = 2,
    pick: str = "spread",
    samples: int | None = SAMPLES,
    even: bool = False,
) -> Drawing:
    """Figs. 6 and 8: attention on original and on expanded tokens at two later layers, of 32.

    ``images``: cases that are drawn; ``pick``: ``cases`` (one that is right at both layers, one that moves from a wrong patch to the right
    one) or ``spread`` (evenly over the questions, whatever they show); ``samples``: about so many questions behind the claims, at most;
    ``even``: judge Fig. 8's claims instead of Fig. 6's.
    """
    backbone, method, benchmark = study.load()
    questions = {s.id: s for s in spread(chosen(benchmark, study.settings), samples)}
    pair = relative_layers(list(layers), backbone.depth)
    if len(pair) < 2:
        raise UserError(f"figure={study.name} needs two layers, but layers {layers} of 32 are one of {backbone.depth}; set draw.layers")
    if method.policy is None or pair[0] < min(method.policy.layers, default=backbone.depth):
        raise UserError(f"figure={study.name} looks at layer {pair[0]}, before anything is expanded; use a smaller layers.indices")
    grid = PatchGrid(method.policy.p, *backbone.grid)
    cases = []
    with bar(len(questions), f"{study.name} on {benchmark.name}", True) as advance:
        for sample in questions.values():
            advance(1)
            try:
                image, question = sample.image(), prompt_of(backbone, benchmark, sample)
            except (OSError, UserError):  # an evaluation skips and names it
                continue
            record: Record = {"id": sample.id, "image_id": sample.image_id, "question": question, "regions": sample.regions}
            attention, _ = last_token_attention(backbone, method, image, f"{benchmark.name}:{sample.image_id}", question, pair)
            cases.append(Case(record, attention, frozenset(targets(record, grid))))
    cases = [case for case in cases if all(seen.parts for seen in case.attention.values())]
    if not cases:
        raise UserError(f"figure={study.name}: nothing was expanded at these settings; use resolution=expand_once")
    examples = (
        select_cases(cases, images, grid) if pick == "cases" else [cases[k * len(cases) // images] for k in range(min(images, len(cases)))]
    )
    pictures = [square(backbone, questions[case.record["id"]].image()) for case in examples]
    how = (
        "Drawn: one question that is right at both layers, one that moves to the right patch" if pick == "cases" else "Drawn: evenly taken"
    )
    return Drawing(
        {"redistribution": plot(examples, pictures, grid)},
        {
            "layers": list(pair),
            "questions": len(cases),
            "measured": [numbers_of(case) for case in cases],
            "drawn": [c.record["id"] for c in examples],
        },
        (evenness_claims if even else claims)(cases, examples, grid),
        f"A patch is expanded at layer {min(method.policy.layers)} and stays. Attention of the last text token on the original visual "
        f"tokens and on the expanded ones at layers {pair[0]} and {pair[1]}; at one layer both maps have one scale, dark at 0, by square "
        "roots. Box: the patch with most attention; dashed: what the question is about; dotted: what was expanded. Below: share of all "
        "attention, and evenness (entropy over that of equal weights). " + how + ".",
        measured_on(backbone.identity, benchmark.name, len(cases)),
    )


def measures(attention: LayerAttention) -> dict[str, float | None]:
    """Attention mass and evenness of original and expanded tokens at a layer; mass is the share of all attention."""
    return {
        "original": float(attention.visual.sum()),
        "expanded": float(attention.expanded.sum()),
        "even_original": evenness(attention.visual),
        "even_expanded": evenness(attention.expanded),
    }


def numbers_of(case: Case) -> dict[str, str | dict[str, float | None]]:
    """The data.json entry of a question: its id, and its ``measures`` by layer."""
    by_layer = {str(i): measures(attention) for i, attention in case.attention.items()}
    return {"id": case.record["id"], **{i: dict(zip(m, rounded(m.values(), 5), strict=True)) for i, m in by_layer.items()}}


def select_cases(cases: list[Case], images: int, grid: PatchGrid) -> list[Case]:
    """One case that is right at both layers, one that moves from a wrong patch to the right one, then any; on different images."""

    def kind(case: Case) -> tuple[bool, ...]:
        return tuple(attention.region(grid) in case.right for attention in case.attention.values())

    out: list[Case] = []
    for pattern in ((True, True), (False, True), *(None,) * images):
        used = {c.record["image_id"] for c in out}
        out += [c for c in cases if c.record["image_id"] not in used and (pattern is None or (c.right and kind(c) == pattern))][:1]
    return out[:images]


def compare_tokens(statement: str, cases: list[Case], first: str, second: str, measure: str) -> Claim:
    """Whether a measure of the expanded tokens is above that of the original ones, at both layers."""
    numbers: dict[str, float | None] = {}
    verdicts = []
    images = [case.record["image_id"] for case in cases]
    for i in cases[0].attention:
        pairs = [(m[first], m[second], image) for m, image in zip((measures(c.attention[i]) for c in cases), images, strict=True)]
        valid = [(a, b, image) for a, b, image in pairs if a is not None and b is not None]
        gap = mean([a - b for a, b, _ in valid], [image for *_, image in valid])
        numbers |= {
            f"layer {i}, expanded": mean(a for a, _, _ in valid).value,
            f"layer {i}, original": mean(b for _, b, _ in valid).value,
            f"layer {i}, difference": gap.value,
            f"layer {i}, standard error": gap.stderr,
            f"layer {i}, share of questions": mean(float(a > b) for a, b, _ in valid).value,
        }
        verdicts.append(gap.above)
    count = f"mean over {len(cases)} questions; standard error over {len(set(images))} images"
    how = f"{measure}, {count}. {RULE} Holds if it does at both layers."
    return Claim(statement, how, numbers, combined_verdict(verdicts))


def claims(cases: list[Case], drawn_cases: list[Case], grid: PatchGrid) -> list[Claim]:
    """Fig. 6: more attention in total and more evenly; and whether its Case 2, a move to the right patch, is the rule here."""
    first, last = cases[0].attention
    aimed = [c for c in cases if len(c.right) == 1]
    hits = [(c.attention[first].region(grid) in c.right, c.attention[last].region(grid) in c.right) for c in aimed]
    gain = mean([float(b) - float(a) for a, b in hits], [c.record["image_id"] for c in aimed])
    numbers = {
        f"wrong at {first}, right at {last}": mean(not a and b for a, b in hits).value,
        f"right at {first}, wrong at {last}": mean(a and not b for a, b in hits).value,
        f"right at {first}": mean(a for a, _ in hits).value,
        f"right at {last}": mean(b for _, b in hits).value,
        "standard error of the difference": gain.stderr,
        "questions": float(len(aimed)),
    }
    return [
        compare_tokens(
            "The expanded tokens get more attention in total than the original ones.",
            cases,
            "expanded",
            "original",
            "share of all attention",
        ),
        even_claim(cases),
        Claim(
            f"More questions move from a wrong patch at layer {first} to the right one at layer {last} than away from it.",
            "Ours: the paper shows such a move in one of its two cases and gives no rate. Questions about one patch, by the patch of the "
            f"original tokens with most attention at both layers; moves to the right patch less moves away from it. {RULE}",
            numbers,
            gain.above,
        ),
    ]


def evenness_claims(cases: list[Case], drawn_cases: list[Case], grid: PatchGrid) -> list[Claim]:
    """Fig. 8: more even on the expanded tokens, and a top patch that moves between the layers in three cases of six."""
    first, last = cases[0].attention
    moved = mean([c.attention[first].region(grid) != c.attention[last].region(grid) for c in cases], [c.record["image_id"] for c in cases])
    even = even_claim(cases)
    both = [all((m["even_expanded"] or 0) > (m["even_original"] or 0) for m in map(measures, c.attention.values())) for c in drawn_cases]
    numbers = even.numbers | {"drawn cases, more even at both layers": float(sum(both)), "drawn cases": float(len(drawn_cases))}
    return [
        Claim(even.said, even.how, numbers, even.holds),
        Claim(
            f"The most attended patch moves between layers {first} and {last} (in three of the paper's six cases).",
            f"share of {len(cases)} questions whose top patch of the original tokens differs; compared with one half. {RULE}",
            {
                "share that moves": moved.value,
                "standard error": moved.stderr,
                "drawn cases that move": float(sum(c.attention[first].region(grid) != c.attention[last].region(grid) for c in drawn_cases)),
            },
            moved.less(0.5).above,
        ),
    ]


def even_claim(cases: list[Case]) -> Claim:
    statement = "The expanded tokens are attended to more evenly than the original ones."
    return compare_tokens(statement, cases, "even_expanded", "even_original", "evenness: entropy over that of equal weights")


def plot(cases: list[Case], pictures: list[Image.Image], grid: PatchGrid) -> Figure:
    """One row per case: the image, then original and expanded tokens by layer, with one colour scale per layer."""
    with styled():
        figure, axes = plt.subplots(len(cases), 5, figsize=(PAGE, 1.75 * len(cases) + 0.2), squeeze=False, layout="constrained")
        for k, (line, case, image) in enumerate(zip(axes, cases, pictures, strict=True)):
            draw_image(line[0], image, case.record, f"case {k + 1}")
            for j, (layer, attention) in enumerate(case.attention.items()):
                m = measures(attention)
                top = float(max(attention.visual.max(), attention.expanded.max()))
                part = attention.parts[-1]
                side = (grid.height, grid.width) if part.tokens == grid.height * grid.width else grid.patch
                for axis, kind, values, shape in (
                    (line[1 + 2 * j], "original", attention.visual, (grid.height, grid.width)),
                    (line[2 + 2 * j], "expanded", attention.expanded[-part.tokens :], side),
                ):
                    heat(axis, values, shape, top)
                    mass, even = m[kind], m[f"even_{kind}"]
                    if k == 0:
                        axis.set_title(f"layer {layer}, {kind}")
                    axis.set_xlabel(f"share {mass:.2f}, even {'' if even is None else f'{even:.2f}'}", fontsize=7)
                    if kind == "original":
                        draw_box(axis, grid.box(attention.region(grid)), TOP, gid=tip(f"layer {layer}: most attended patch", 10 * k + j))
                left, high, right, low = grid.box(part.region)
                inset = (left + 0.03, high + 0.03, right - 0.03, low - 0.03)  # so that it does not hide the other frame
                draw_box(line[0], inset, "#444444", ":", tip("the patch that was expanded", 10 * k + j))
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    return figure
