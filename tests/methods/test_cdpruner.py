"""CDPruner: relevance, kernel and greedy choice by hand and against determinants; the rank guard, text, budgets, modes."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from support.models import random_encoding
from support.scripts import ROOT

from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods.budgets import view_budget
from blink_exp.methods.cdpruner import CDPruner, configure, filled, kernel, most_volume, question_text, scaled_relevance, sharpened

WIDE = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4 of both tiles


def everywhere(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def random_kernel(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return kernel(torch.randn(1, tokens, width, generator=g), torch.rand(1, tokens, generator=g) + 0.1)


def encoding_of(views: ViewGeometry):
    g = torch.Generator().manual_seed(0)
    encoding = random_encoding(views)
    encoding.joint_patches = torch.randn(views.count, views.tokens, 8, generator=g)
    encoding.llm_features = torch.randn(views.count, views.tokens, 32, generator=g)
    encoding.asked = []

    def pieces(text: str, rule: str) -> torch.Tensor:
        encoding.asked.append((text, rule))
        return torch.ones(1, 8)

    encoding.embed_pieces = pieces
    return encoding


def test_the_greedy_choice_by_hand():
    """Directions (1, 0), (0.8, 0.6), (0, 1) with relevance 0.9, 1, 0.5: L has 0.81, 1, 0.25 on its diagonal, so token 1 is first. Beside it
    token 0 adds 0.81 - (0.9 * 0.8)^2 = 0.2916 and token 2 adds 0.25 - (0.5 * 0.6)^2 = 0.16. Without relevance token 2 would be second."""
    directions = torch.tensor([[[2.0, 0.0], [0.8, 0.6], [0.0, 3.0]]])  # lengths do not matter
    weighed, plain = (kernel(directions, torch.tensor([r])) for r in ([0.9, 1.0, 0.5], [1.0, 1.0, 1.0]))
    assert weighed[0, 0].tolist() == pytest.approx([0.81, 0.72, 0.0])
    assert most_volume(weighed, 2, everywhere(1, 3))[0].tolist() == [1, 0]
    assert most_volume(plain, 2, everywhere(1, 3))[0].tolist() == [0, 2]  # equal ones: the first


def test_every_step_adds_the_token_with_the_largest_determinant():
    matrix = random_kernel(12, 16)[0].double()
    chosen: list[int] = []
    for _ in range(8):
        others = [i for i in range(12) if i not in chosen]
        chosen.append(max(others, key=lambda i: float(torch.det(matrix[[*chosen, i]][:, [*chosen, i]]))))
    assert most_volume(matrix[None].float(), 8, everywhere(1, 12))[0].tolist() == chosen


def test_views_are_chosen_from_one_by_one():
    kernels = torch.cat([random_kernel(12, 16, seed) for seed in range(3)])
    together = most_volume(kernels, 6, everywhere(3, 12))
    assert [t.tolist() for t in together] == [most_volume(one[None], 6, everywhere(1, 12))[0].tolist() for one in kernels]


@pytest.mark.parametrize("width", [1, 3, 7])
def test_above_the_rank_the_most_relevant_are_filled_in(width):
    """The authors' loop takes the root of a negative number here and keeps fewer than asked."""
    matrix, relevance = random_kernel(20, width), torch.rand(20, generator=torch.Generator().manual_seed(1))
    (chosen,) = most_volume(matrix, 10, everywhere(1, 20))
    assert len(chosen) == width and len(set(chosen.tolist())) == width
    kept = filled(chosen, relevance, 10, everywhere(20)).tolist()
    rest = sorted(set(range(20)) - set(chosen.tolist()), key=lambda i: -float(relevance[i]))
    assert kept == sorted([*chosen.tolist(), *rest[: 10 - width]])


def test_a_copy_of_a_chosen_token_is_not_chosen_for_volume():
    directions = torch.eye(3)[[0, 0, 1, 1, 2]]
    (chosen,) = most_volume(kernel(directions[None], torch.ones(1, 5)), 5, everywhere(1, 5))
    assert chosen.tolist() == [0, 2, 4]


def test_relevance_is_the_mean_over_pieces_scaled_over_all_views():
    """Cosines with the two pieces: (1, 0), (0, 1), (-1, 0), (0.6, 0.8); means 0.5, 0.5, -0.5, 0.7. Negated they run from -0.7 to 0.5."""
    patches = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [3.0, 4.0]]])
    pieces = torch.tensor([[1.0, 0.0], [0.0, 7.0]])
    negated = scaled_relevance(patches, pieces, -1, everywhere(2, 2))
    assert negated.flatten().tolist() == pytest.approx([0.2 / 1.2, 0.2 / 1.2, 1.0, 0.0], abs=2e-6)
    assert float(negated[1, 1]) == pytest.approx(1e-6 / 1.2)  # above 0, so that a kernel of it is not lost
    assert scaled_relevance(patches, pieces, 1, everywhere(2, 2)).flatten().tolist() == pytest.approx([1 / 1.2, 1 / 1.2, 0, 1], abs=2e-6)
    without = scaled_relevance(patches, pieces, -1, torch.tensor([[True, True], [False, True]]))
    assert without[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)  # what is not allowed does not set the scale
    assert float(without[1, 1]) == pytest.approx(0, abs=1e-5)


def test_where_all_are_equally_relevant_only_diversity_counts():
    assert scaled_relevance(torch.ones(1, 5, 2), torch.ones(1, 2), -1, everywhere(1, 5)).tolist() == [[1.0] * 5]


def test_theta_sharpens_relevance():
    ratio = sharpened(torch.tensor([0.0, 1.0]), 0.5)
    assert float(ratio[1] / ratio[0]) == pytest.approx(math.exp(0.5))
    assert sharpened(torch.tensor([0.5, 1.0]), 0.8).tolist() == pytest.approx([math.exp(-1.0), 1.0])
    encoding = encoding_of(ViewGeometry(4))
    kept = {theta: CDPruner(0.25, theta=theta).select(encoding, "q").indices[0].tolist() for theta in (0.01, 0.999)}
    relevance = scaled_relevance(encoding.joint_patches, torch.ones(1, 8), -1, everywhere(1, 16))[0]
    assert kept[0.999] == relevance.sort(descending=True).indices[:4].sort().values.tolist()  # relevance decides alone
    assert kept[0.01] != kept[0.999]


def test_the_sign_turns_the_choice_round():
    encoding = encoding_of(ViewGeometry(4))
    kept = [CDPruner(0.25, relevance_sign=sign).select(encoding, "q").indices[0].tolist() for sign in (-1, 1)]
    assert kept[0] != kept[1] and CDPruner(0.25).relevance_sign == -1


def test_padding_is_kept_by_the_code_alone():
    encoding = encoding_of(WIDE)
    paper, reference = (CDPruner(0.75, mode=mode).select(encoding, "q") for mode in ("paper", "reference"))
    assert [len(index) for index in paper.indices] == [12, 8, 8]  # fewer than k = 12 show the image
    assert all(bool(WIDE.valid[v][index].all()) for v, index in enumerate(paper.indices))
    assert [len(index) for index in reference.indices] == [12, 12, 12] and reference.padding
    assert len(pack(WIDE, reference, CDPruner(0.75, mode="reference").newline_policy)) == 36


def test_the_scale_of_relevance_leaves_padding_out():
    """A padding patch with an extreme cosine changes nothing in ``paper``."""
    encoding, extreme = encoding_of(WIDE), encoding_of(WIDE)
    extreme.joint_patches[1, 0] = -100 * torch.ones(8)
    kept = [CDPruner(0.25).select(e, "q") for e in (encoding, extreme)]
    assert all(torch.equal(a, b) for a, b in zip(kept[0].indices, kept[1].indices, strict=True))


def test_the_modes_differ_in_text_tiles_and_newlines():
    paper, reference = CDPruner(0.5), CDPruner(0.5, mode="reference")
    assert paper.needs == EncoderRequirements(joint_patches=True, llm_features=True)
    assert reference.needs == EncoderRequirements(joint_patches=True, llm_features=True, tile_grid=(2, 2))
    assert (paper.newline_policy, reference.newline_policy) == ("valid_rows", "none")
    assert CDPruner(0.5, mode="reference", newline_policy="all_rows").newline_policy == "all_rows"
    for pruner, rule in ((paper, "ends"), (reference, "cut")):
        encoding = encoding_of(ViewGeometry(4))
        pruner.select(encoding, "what is it?\nAnswer the question using a single word or phrase.")
        assert encoding.asked == [("what is it?", rule)]


def test_at_ratio_1():
    assert CDPruner(1.0).select(random_encoding(ViewGeometry(6)), "q") is None
    assert CDPruner(1.0, mode="reference").select(random_encoding(ViewGeometry(6)), "q") is None
    assert CDPruner(1.0).select(random_encoding(WIDE), "q") is None
    kept = CDPruner(1.0, mode="reference").select(encoding_of(WIDE), "q")
    assert [index.tolist() for index in kept.indices] == [list(range(16))] * 3


def test_the_question_is_read_without_the_line_that_asks_for_a_short_answer():
    short = "Answer the question using a single word or phrase."
    assert question_text(f"What is it?\n{short}") == "What is it?"
    assert question_text(f"What is it?\nReference OCR token: A, B\n{short}") == "What is it?\nReference OCR token: A, B"
    assert question_text(f"What is it? {short}") == "What is it?"
    hinted = "Hint: look.\nWhich?\nA. this\nB. that\nAnswer with the option's letter from the given choices directly."
    assert question_text(hinted) == "Hint: look.\nWhich?\nA. this\nB. that"
    assert question_text("Answer the question: who?") == "Answer the question: who?"
    assert question_text(short) == short  # nothing else was asked


def test_no_benchmark_s_instruction_is_left_in():
    """A new wording that asks for a short answer fails here."""
    prompts = json.loads((ROOT / "tests" / "benchmarks" / "prompts.json").read_text(encoding="utf-8"))
    words = ("single word", "directly", "请直接")
    asks = {name: question_text(prompt) for name, prompt in prompts.items() if any(word in prompt for word in words)}
    assert len(asks) > 15
    assert not {name: text for name, text in asks.items() if any(word in text for word in words) or not text.strip()}


def backbone(tiled=False):
    vision = SimpleNamespace(num_hidden_layers=24)
    config = SimpleNamespace(vision_config=vision, **({"image_grid_pinpoints": [[672, 672]]} if tiled else {}))
    seen: list[EncoderRequirements] = []
    return SimpleNamespace(model=SimpleNamespace(config=config), grid=(24, 24), check=seen.append, seen=seen)


@pytest.mark.parametrize(("tokens", "tiled", "of_a_view"), [(128, False, 128), (64, False, 64), (640, True, 128), (160, True, 32)])
def test_tokens_are_those_of_a_view_exactly(tokens, tiled, of_a_view):
    for mode in ("paper", "reference"):
        on = backbone(tiled=tiled)
        method = configure(on, retention_ratio=0.2, tokens=tokens, mode=mode)
        assert view_budget(method.pruner.ratio, 576) == of_a_view
        assert on.seen == [method.pruner.needs] and method.tile_grid == method.pruner.needs.tile_grid


BAD = [
    ({"relevance_sign": 0}, "cdpruner.relevance_sign=0 is no sign; use -1"),
    ({"theta": 1.0}, r"cdpruner.theta=1.0 is outside \(0, 1\)"),
    ({"theta": 0}, r"cdpruner.theta=0 is outside \(0, 1\)"),
    ({"mode": "referense"}, "cdpruner.mode=referense is not known; did you mean reference"),
    ({"newline_policy": "rows"}, "newline_policy=rows is not known"),
    ({"retention_ratio": 0}, "retention_ratio=0 is outside"),
    ({"tokens": 577}, "tokens=577 is outside 1 to 576"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=itertools.count())
def test_bad_input(settings, message):
    with pytest.raises(UserError, match=message):
        configure(backbone(), **({"retention_ratio": 0.5} | settings))


def test_a_budget_of_nothing_is_one_line():
    with pytest.raises(UserError, match="retention_ratio=0.01 rounds to no token of 16"):
        CDPruner(0.01).select(encoding_of(ViewGeometry(4)), "q")
