"""Shared execution: points of an ablation, and questions about one image, against the same ones run alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import groups, report, timing
from bench.least import Answered, least
from blink_exp.core.method import Method
from blink_exp.decoder.attach import attach
from blink_exp.flops import CPU_ATTENTION
from blink_exp.studies.experiments import load_experiment

TITLE = "Shared execution"
COLUMNS = [
    "what",
    "points",
    "questions",
    "alone s",
    "shared s",
    "shared / alone",
    "bar",
    "TFLOPs alone",
    "TFLOPs shared",
    "least",
    "shared / least",
    "layer passes",
    "tokens in layers",
    "tokens / alone",
    "saving kept",
    "other answers",
]
BLINK = (
    ("table", "blink_table2"),
    ("table", "blink_table3"),
    ("table", "blink_table6"),
    ("table", "blink_table7"),
    ("figure", "blink_fig7"),
)
HERO = (("table", "hero_table5"), ("table", "hero_table6"), ("table", "hero_table7"), ("figure", "hero_fig5"))
WIDE = {"width": 512, "layers": 32, "heads": 8, "mlp": 1376, "vocabulary": 1024, "vision_width": 32, "vision_layers": 2, "vision_heads": 2}


def measure(size: str = "default", store: str = "outputs/points", questions: str = "16") -> dict[str, Any]:
    """``store``: where trained modules are looked for, and kept; ``questions``: of each benchmark."""
    small = size == "small"
    asked = 2 if small else int(questions)
    blink = [("table", "blink_table2")] if small else list(BLINK)
    hero = [("table", "hero_table6")] if small else list(HERO)
    rows = [
        points(f"Blink's {named(blink)}", blink, asked, store, 1 / 3, deciding=True),
        points(f"HERO's {named(hero)}", hero, asked, store, 1 / 2, deciding=False),
        *one_image("the scale model", 4 if small else 32, None),
    ]
    in_groups = in_processes(f"Blink's {named(blink)}", blink, asked, store, (2,) if small else (8, 64))
    if not small:
        rows += [*one_image("width 512, 576 visual tokens", 32, WIDE), wide_points()]
    bars = []
    for row in rows:
        bars.append(report.bar(f"{row['what']}: time", row["shared / alone"], row["bar"]))
        if row["shared / least"] is not None:
            bars.append(report.bar(f"{row['what']}: FLOPs over the least", row["shared / least"], 1.1))
        bars.append(report.bar(f"{row['what']}: answers that differ", row["other answers"], 0))
    bars += [report.bar(f"{row['what']}: answers that differ", row["other answers"], 0) for row in in_groups]
    rows += in_groups
    notes = [
        "Alone: every point by itself through Hugging Face's generate(), in batches of 32 questions, or as said.",
        "In groups: a process for each, as hydra.launcher.group_size divides a sweep; alone: each point in a group of its own.",
        "The least: each image, expanded segment, text and token once, by the papers' formula from what was decided (bench/least.py).",
    ]
    return report.result(TITLE, rows, bars, notes, COLUMNS)


def named(experiments: list[tuple[str, str]]) -> str:
    return ", ".join(name.partition("_")[2] for _, name in experiments)


def composed(experiments: list[tuple[str, str]], store: str) -> list[Any]:
    """The settings of all points of the papers, one for those that are the same: tables of Blink all on one benchmark."""
    from blink_exp.evaluation.shared_runs import stored_point
    from blink_exp.settings.compose import composed as compose
    from blink_exp.studies import plan

    cfg = compose("sweep", [f"store={store}"])
    configs = []
    for kind, name in experiments:
        experiment = load_experiment(kind, name)
        experiment["points"] = [point for point in experiment.get("points") or [] if not point.get("control")]  # not counted by ``least``
        configs += plan.settings_of(cfg, kind, experiment, ["benchmark=mosaic_mme"] if name.startswith("blink") else [])
    return list({str(stored_point(c)[0]): c for c in configs}.values())


def points(what: str, experiments: list[tuple[str, str]], questions: int, store: str, bar: float, deciding: bool) -> dict[str, Any]:
    """``deciding``: whether FLOPs are set against the least that the decisions allow."""
    from blink_exp.benchmarks.base import spread
    from blink_exp.decoder.answers import PointQuestion, answer
    from blink_exp.evaluation.answering import answers
    from blink_exp.evaluation.evaluator import prepare

    made = [prepare(cfg) for cfg in composed(experiments, store)]
    (backbone, _, benchmark), methods = made[0], [method for _, method, _ in made]
    samples = spread(benchmark.samples(), questions)
    images = {s.image_id: s.image() for s in samples}
    asked = [(s.image_id, benchmark.prompt(s)) for s in samples]
    everybody = tuple(range(len(methods)))
    outputs: dict[str, Any] = {"alone": {}}

    def alone() -> None:
        for p, method in enumerate(methods):
            backbone.forget()
            with attach(backbone.model, method) as attached:
                if attached is not None:
                    attached.samples = [s.id for s in samples]
                texts, visual = answers(backbone, method, attached, images, asked, benchmark.max_new_tokens)
            for n, text in enumerate(texts):
                records = [r for r in attached.records if r.row == n] if attached is not None else []
                outputs["alone"][n, p] = (text, visual[n], records)

    def shared() -> None:
        backbone.forget()
        wanted = [PointQuestion(image, prompt, s.id, everybody) for (image, prompt), s in zip(asked, samples, strict=True)]
        outputs["shared"] = answer(backbone, methods, images, wanted, benchmark.max_new_tokens, 32)

    row = compared(what, alone, shared, bar, len(methods), len(samples))
    other = sum(outputs["shared"][key].text != text for key, (text, _, _) in outputs["alone"].items())
    lowest = None
    if deciding:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            backbone.forget()
            backbone.features({asked[0][0]: images[asked[0][0]]})
        around = backbone.around([prompt for _, prompt in asked])
        lengths = [(len(behind), len(ahead)) for ahead, behind in around]
        answered = [
            Answered(
                asked[n][0],
                n,
                methods[p],
                lengths[n][0],
                lengths[n][1] + len(v.source),
                len(v.source),
                outputs["shared"][n, p].tokens,
                records,
            )
            for (n, p), (_, v, records) in outputs["alone"].items()
        ]
        lowest = least(answered, backbone.llm.config, counter.get_total_flops())
    return row | {
        "least": lowest and lowest / 1e12,
        "shared / least": lowest and row["TFLOPs shared"] * 1e12 / lowest,
        "other answers": other,
    }


def in_processes(what: str, experiments: list[tuple[str, str]], questions: int, store: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The same points in several numbers of groups."""
    from blink_exp.benchmarks.base import spread
    from blink_exp.evaluation.evaluator import prepare

    made = [prepare(cfg) for cfg in composed(experiments, store)]
    (backbone, _, benchmark), methods = made[0], [method for _, method, _ in made]
    return groups.rows(what, backbone, methods, benchmark, spread(benchmark.samples(), questions), counts)


def compared(what: str, alone: Callable[[], None], shared: Callable[[], None], bar: float, points: int, questions: int) -> dict[str, Any]:
    took = timing.rounds({"alone": alone, "shared": shared}, 1, warm=0)
    flops = {}
    for name, work in (("alone", alone), ("shared", shared)):
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            work()
        flops[name] = counter.get_total_flops() / 1e12
    comparison = timing.compared(took["shared"], took["alone"])
    return {
        "what": what,
        "points": points,
        "questions": questions,
        "alone s": comparison.second,
        "shared s": comparison.first,
        "shared / alone": comparison.ratio,
        "bar": bar,
        "TFLOPs alone": flops["alone"],
        "TFLOPs shared": flops["shared"],
        "least": None,
        "shared / least": None,
    }


def one_image(what: str, questions: int, shape: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Questions about one image: one at a time, in batches of 16, and over one prefix. ``shape``: of a model with random weights; None: the
    scale model."""
    model, features, ahead, texts = shape_and_texts(shape, questions)
    new_tokens, out = 4, {}

    def batches(of: int) -> Callable[[], None]:
        def run() -> None:
            tokens = []
            for start in range(0, questions, of):
                tokens += generated(model, features, ahead, texts[start : start + of], new_tokens)
            out[of] = tokens

        return run

    def shared() -> None:
        out["shared"] = over_one_prefix(model, features, ahead, texts, [Method()], new_tokens)

    bars = {1: 1 / 10, 16: 1 / 8} if shape else {1: 1 / 3, 16: 1 / 3}
    rows = []
    for of, bar in bars.items():
        row = compared(f"{questions} questions on one image, {what}, alone in batches of {of}", batches(of), shared, bar, 1, questions)
        rows.append(row | {"other answers": sum(a != b[0] for a, b in zip(out[of], out["shared"], strict=True))})
    return rows


def shape_and_texts(shape: dict[str, Any] | None, questions: int) -> tuple[Any, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A model, (visual, hidden) features of an image, (tokens,) ids before it, and of each question, of one length."""
    from bench.shapes import Shape, random_model

    generator = torch.Generator().manual_seed(0)
    if shape is not None:
        model = random_model(Shape(**shape))
        features = torch.randn(576, shape["width"], generator=generator)
        words = torch.randint(3, 1000, (questions + 1, 20), generator=generator)
        return model, features, words[-1, :5], list(words[:-1])
    from blink_exp.backbone.load import load
    from blink_exp.benchmarks.mosaic_mme import MosaicMME

    backbone = load("scale")
    sample = MosaicMME().samples()[0]
    features = backbone.features({"image": sample.image()})["image"]
    ahead, behind = backbone.around([sample.fields.get("question", "Is there a red circle?")])[0]
    return backbone.model, features, ahead, [torch.cat([behind[:-1], torch.tensor([3 + n]), behind[-1:]]) for n in range(questions)]


@torch.no_grad()
def generated(
    model: Any, features: torch.Tensor, ahead: torch.Tensor, texts: list[torch.Tensor], new_tokens: int, method: Method | None = None
) -> list:
    """Tokens of Hugging Face's generate()."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    image = torch.full((len(features),), model.config.image_token_id)
    ids = torch.stack([torch.cat([ahead, image, text]) for text in texts])
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features] * len(texts))}  # type: ignore[arg-type]
    with attach(model, method or Method()) as attached:
        if attached is not None:
            attached.samples = [str(n) for n in range(len(texts))]
        sequences = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs=encoded,
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    return [ended(tokens, model) for tokens in sequences[:, ids.shape[1] :].tolist()]


def ended(tokens: list[int], model: Any) -> list[int]:
    """Tokens up to the one that ends the answer; what follows is padding."""
    return next((tokens[: n + 1] for n, token in enumerate(tokens) if token in ends(model)), tokens)


def ends(model: Any) -> list[int]:
    token = model.generation_config.eos_token_id
    return [] if token is None else [token] if isinstance(token, int) else list(token)


@torch.no_grad()
def over_one_prefix(
    model: Any, features: torch.Tensor, ahead: torch.Tensor, texts: list[torch.Tensor], methods: list[Method], new_tokens: int
) -> list:
    """[question][point]: tokens."""
    from blink_exp.core.saliency import PatchGrid
    from blink_exp.decoder.branch_decoder import BranchDecoder
    from blink_exp.decoder.branches import QuestionInputs, decoded_layers, read_layers
    from blink_exp.decoder.generated import greedy
    from blink_exp.decoder.layers import run_prefixes

    embed, llm = model.get_input_embeddings(), model.model.language_model
    layers = {layer for m in methods for layer in read_layers(m)}
    depth = max(decoded_layers(m, len(llm.layers)) for m in methods)
    prefix = run_prefixes(llm, [torch.cat([embed(ahead), features])], [len(features)], layers, [depth], 1)[0]
    side = int(len(features) ** 0.5)
    grids = [PatchGrid(m.policy.p, side, side) if m.policy else None for m in methods]
    points = tuple(range(len(methods)))
    asked = [QuestionInputs((prefix,), embed(text), str(n), points, visual=features) for n, text in enumerate(texts)]
    out: list[list] = [[None] * len(methods) for _ in texts]

    def finish(final: Any) -> None:
        for branch, tokens in zip(final.branches, greedy(model, final, new_tokens, ends(model), 256), strict=True):
            for point in branch.points:
                out[branch.question][point] = tokens

    BranchDecoder(llm, asked, methods, grids).run(finish)
    return out


def wide_points() -> dict[str, Any]:
    """Blink's layer ranges and thresholds at width 512 with 576 visual tokens, random weights and random modules, on one question."""
    from blink_exp.methods.blink import BlinkPolicy, blink, layer_range
    from blink_exp.tokensr.modules import build

    model, features, ahead, texts = shape_and_texts(WIDE, 1)
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({str(layer): build("conv", WIDE["width"]).eval().requires_grad_(False) for layer in range(11, 21)})
    ranges = [layer_range(*ends) for ends in ((11, 17), (12, 18), (13, 19), (14, 20))]
    thresholds = ((0.5, 0.4), (0.3, 0.2), (0.27, 0.26), (0.25, 0.4), (1.0, 0.0))  # random attention is flat: rho is little above 1/4
    methods = [
        blink(BlinkPolicy(layers=chosen, tau_expand=a, tau_drop=b), modules) for chosen, (a, b) in itertools.product(ranges, thresholds)
    ]
    out: dict[str, list] = {}

    def alone() -> None:
        out["alone"] = [generated(model, features, ahead, texts, 4, method)[0] for method in methods]

    def shared() -> None:
        out["shared"] = over_one_prefix(model, features, ahead, texts, methods, 4)[0]

    row = compared("Blink's ranges and thresholds, width 512, 576 visual tokens", alone, shared, 1 / 4, len(methods), len(texts))
    return row | {"other answers": sum(a != b for a, b in zip(out["alone"], out["shared"], strict=True))}
