"""The fewest FLOPs for a set of points, counted by hand; and that what runs is within a tenth of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.groups import divided, rows
from bench.least import Answered, course, least
from bench.sharing import ended
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method, Record, Scan
from blink_exp.core.sequence import Drop, Expand, Keep
from blink_exp.evaluation.tokens import layer_flops
from blink_exp.flops import CPU_ATTENTION
from blink_exp.methods.blink import BlinkPolicy, blink

CONFIG = SimpleNamespace(num_hidden_layers=4, hidden_size=8, intermediate_size=16, vocab_size=10)
EXPAND, AGAIN, APPEND = Expand(1), Expand(2), Expand(2, on_reexpand="append")


def step(layer: int, decision, tokens: int) -> Record:
    return Record(0, Scan(layer, "s", 0, False), decision, tokens)


def answered(method: Method, *decisions: Record, question: int = 0, image: str = "a", generated: int = 1) -> Answered:
    return Answered(image, question, method, text=3, ahead=6, visual=4, generated=generated, decisions=decisions)


def interpolated(**words) -> Method:
    return blink(BlinkPolicy(layers=(1, 2), **words))


def layers(*sizes: tuple[int, int]) -> int:
    return sum(layer_flops(q, k, 8, 16) for q, k in sizes)


PREFIX, HEAD = layers(*[(6, 6)] * 4), 2 * 8 * 10


def test_one_point_that_expands_and_drops():
    one = answered(interpolated(), step(1, EXPAND, 8), step(2, Drop(), 4))
    assert [sum(n for _, n in chain) for chain in course(one, 4)] == [0, 4, 0, 0]
    texts = layers((3, 9), (3, 13), (3, 9), (3, 9))
    assert least([one], CONFIG, tower=100) == 100 + PREFIX + layers((4, 10)) + texts + HEAD


def test_points_that_decide_alike_share_all_and_others_share_what_they_can():
    stays = answered(interpolated(), step(1, EXPAND, 8), step(2, Keep(), 8))
    drops = answered(interpolated(tau_drop=0.3), step(1, EXPAND, 8), step(2, Drop(), 4))
    plain = answered(Method())
    alike = least([stays], CONFIG, 100)
    assert least([stays, answered(interpolated(tau_expand=0.3), *stays.decisions)], CONFIG, 100) == alike
    segments = layers((4, 10), (4, 10), (4, 10))  # as far as one point holds it
    texts = layers((3, 9), (3, 9), (3, 13)) + layers((3, 13), (3, 13)) + layers((3, 9), (3, 9)) + layers((3, 9), (3, 9))
    assert least([stays, drops, plain], CONFIG, 100) == 100 + PREFIX + segments + texts + 3 * HEAD


def test_questions_share_the_image_and_its_segments_but_no_text():
    first = answered(interpolated(), step(1, EXPAND, 8), step(2, Keep(), 8))
    second = answered(first.method, *first.decisions, question=1)
    text = layers((3, 9), (3, 13), (3, 13), (3, 13)) + HEAD
    assert least([first, second], CONFIG, 0) - least([first], CONFIG, 0) == text
    elsewhere = answered(first.method, *first.decisions, question=1, image="b")
    assert least([first, elsewhere], CONFIG, 100) == 2 * least([first], CONFIG, 100)


def test_what_is_appended_stands_behind_what_was_there_and_a_replaced_segment_stops():
    both = answered(interpolated(on_reexpand="append"), step(1, EXPAND, 8), step(2, APPEND, 12))
    swapped = answered(interpolated(), step(1, EXPAND, 8), step(2, AGAIN, 8))
    assert [sum(n for _, n in chain) for chain in course(both, 4)] == [0, 4, 8, 8]
    tail = layers((3, 9), (3, 13)) + HEAD + PREFIX
    assert least([both], CONFIG, 0) == tail + layers((4, 10), (4, 10), (4, 10), (4, 14), (4, 14), (3, 17), (3, 17))
    assert least([swapped], CONFIG, 0) == tail + layers((4, 10), (4, 10), (4, 10), (3, 13), (3, 13))


def test_generated_tokens_count_behind_the_first():
    one, three = (answered(Method(), generated=n) for n in (1, 3))
    assert least([three], CONFIG, 0) - least([one], CONFIG, 0) == layers(*[(2, 8)] * 4) + 2 * HEAD


def test_padding_behind_the_end_is_no_answer():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    assert ended([5, 2, 0, 0], model) == [5, 2] and ended([5, 4], model) == [5, 4]


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.3, 0.2)])
def test_shared_points_run_on_little_more_than_the_least(thresholds):
    from blink_exp.backbone.load import load
    from blink_exp.benchmarks.mosaic_mme import MosaicMME
    from blink_exp.decoder.answers import PointQuestion, answer

    backbone, benchmark = load("scale"), MosaicMME()
    samples = benchmark.samples()[:3]
    images = {s.image_id: s.image() for s in samples}
    methods = [
        Method(),
        *(
            blink(BlinkPolicy(layers=tuple(range(a, a + 3)), tau_expand=e, tau_drop=d))
            for a in (12, 13)
            for e, d in (thresholds, (0.4, 0.3))
        ),
    ]
    asked = [PointQuestion(s.image_id, benchmark.prompt(s), s.id, tuple(range(len(methods)))) for s in samples]
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as tower, torch.no_grad():
        backbone.forget()
        backbone.features({"one": images[samples[0].image_id]})
    backbone.forget()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        answers = answer(backbone, methods, images, asked, benchmark.max_new_tokens, 32)
    lengths = [(len(behind), len(ahead) + 144) for ahead, behind in backbone.around([a.question for a in asked])]
    rows = [Answered(asked[n].image, n, methods[p], *lengths[n], 144, one.tokens, one.decisions) for (n, p), one in answers.items()]
    ratio = counter.get_total_flops() / least(rows, backbone.llm.config, tower.get_total_flops())
    assert 0.99 < ratio < 1.1  # below 1 the least would not be the least


def test_points_are_divided_as_evenly_as_they_can_be():
    assert divided(10, 4) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert divided(3, 1) == [[0, 1, 2]] and divided(2, 2) == [[0], [1]]


def test_groups_run_what_they_share_once_each(scale):
    """Four points that do nothing, on one image: whatever is run, is run once for each group."""
    every = MosaicMME(images=1).samples()
    samples = [s for s in every if s.image_id == every[0].image_id]
    table = rows("four", scale, [Method()] * 4, MosaicMME(images=1), samples, (2,))
    assert [row["what"] for row in table] == ["four, in 4 groups", "four, in 2 groups", "four, in one group"]
    assert [row["tokens / alone"] for row in table] == [1, 0.5, 0.25]
    assert [row["saving kept"] for row in table] == pytest.approx([0, 2 / 3, 1])
    assert [row["layer passes"] for row in table] == [4 * table[2]["layer passes"], 2 * table[2]["layer passes"], table[2]["layer passes"]]
    assert all(row["other answers"] == 0 for row in table)
