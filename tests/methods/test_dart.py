"""DART: pivots, who takes which tokens, how many stay, by hand."""

from __future__ import annotations

import pytest
import torch
from support.drop import Depth, Gridded

from blink_exp.core.method import KeyScan, Scan
from blink_exp.core.sequence import Retain
from blink_exp.decoder.branches import Branch
from blink_exp.decoder.segments import Segment
from blink_exp.decoder.token_scans import scan_keys
from blink_exp.errors import UserError
from blink_exp.methods import dart
from blink_exp.methods.dart import DARTPolicy, most_different, shares, strongest, visiting_order


def decided(policy: DARTPolicy, norms, similarities, visual: int, first: int = 35) -> Retain:
    """``similarities``: (tokens, visual). The image stands at ``first``, the text behind it."""
    keys = KeyScan(tuple(norms), tuple(range(first, first + len(norms))), lambda tokens: torch.tensor(similarities)[tokens])
    return policy.decide(1, Scan(1, "", 0, False, visual=visual, image_tokens=(visual,), keys=keys))


def test_a_budget_of_128_keeps_132():
    assert DARTPolicy(truncation=128).kept(576) == [4 + 8 * 16]
    assert DARTPolicy(retention_ratio=0.222).kept(576) == [4 + 8 * 15]  # 127.87 / 8 = 15.98
    assert DARTPolicy(truncation=128, retention_ratio=0.222).kept(576) == [132]  # the scripts pass both: the number wins
    assert DARTPolicy(truncation=320).kept(2880) == [324]
    assert DARTPolicy(truncation=7).kept(576) == [4]
    assert DARTPolicy(retention_ratio=0.7).kept(80) == [60] and DARTPolicy(retention_ratio=0.7, mode="reference").kept(80) == [60]
    assert DARTPolicy(retention_ratio=0.58).kept(800) == [468]  # 800 * .58 is 463.99999999999994
    assert DARTPolicy(retention_ratio=0.58, mode="reference").kept(800) == [460]


@pytest.mark.parametrize(("tokens", "count"), [(201, 180), (366, 356), (501, 500)])
def test_a_layer_average_loses_no_step_to_rounding(tokens, count):
    """201 of 576 over 32 layers, two of them full: 176 behind them, 22 a pivot, though 176 / 576 * 576 / 8 may be below 22."""
    for mode in ("paper", "reference"):
        assert dart.configure(Gridded(), tokens=tokens, mode=mode).policy.kept(576) == [count]


def test_a_budget_of_more_than_the_pool_is_cut_to_it():
    assert DARTPolicy(truncation=128).kept(132) == [132]  # 8 * 16 = 132 - 4
    assert DARTPolicy(truncation=128).kept(131) == [4 + 8 * 15]
    assert DARTPolicy(truncation=128).kept(11) == [4]
    assert [DARTPolicy(truncation=128).kept(n) for n in (4, 3, 1)] == [[4], [3], [1]]


def test_tokens_count_the_full_layers():
    for tokens, count in ((192, 164), (128, 100), (64, 28)):  # 192: (2 * 576 + 30 * 166.4) / 32; 166.4 / 8 = 20.8
        policy = dart.configure(Gridded(), tokens=tokens).policy
        assert policy.kept(576) == [count] and policy.layers == (1,)
        by_layer = policy.layer_tokens(576, 32)
        assert by_layer == [576] * 2 + [count] * 30
        assert abs(sum(by_layer) / 32 - tokens) < 4  # 8 tokens at a time
    assert dart.configure(Gridded(tiled=True), tokens=640).policy.kept(2880) == [4 + 8 * 61]  # 490.67 behind the full layers
    assert dart.configure(Gridded(), tokens=576).policy.layers == ()  # the untouched model
    assert dart.configure(Depth(32), retention_ratio=1).policy.layers == ()


def test_pivots_have_the_largest_keys():
    assert strongest(torch.tensor([1.0, 5.0, 3.0, 5.0, 4.0]), 3) == [1, 3, 4]  # falling; a tie goes to the lower index
    assert strongest(torch.tensor([1.0, 2.0]), 4) == [1, 0]


def test_each_pivot_takes_what_resembles_it_least_of_what_is_left():
    likeness = torch.tensor([[1.0, 0.1, 0.9, 0.2, -0.5, 0.1], [0.3, 1.0, 0.2, 0.2, -0.9, 0.4]])
    # 0 and 1 are pivots. The first takes 4 (-0.5) and 5 (0.1, as 1, which is a pivot). 4 is gone for the second, for which 2 and 3 tie.
    assert most_different(likeness, [0, 1], [2, 1]) == [4, 5, 2]
    assert most_different(likeness, [0, 1], [0, 4]) == [2, 3, 4, 5]


def test_text_pivots_guide_and_do_not_stay():
    policy = DARTPolicy(truncation=4, visual_pivots=1, text_pivots=1)
    norms = [1.0, 2.0, 9.0, 1.0, 1.0, 1.0, 7.0, 8.0]  # visual tokens 0 to 5: pivot 2; text tokens 6 and 7: pivot 7
    likeness = torch.full((8, 6), 0.5)
    likeness[2], likeness[7] = torch.tensor([0.5, 0.1, 1.0, 0.2, 0.9, 0.9]), torch.tensor([0.7, 0.0, 0.0, 0.0, 0.3, 0.4])
    assert decided(policy, norms, likeness.tolist(), 6) == Retain((1, 2, 3, 4, 5))  # 2 stays; it takes 1 and 3; then the text 4 and 5


def test_the_order_of_pivots_decides():
    """Two pivots want the same token. Ascending, the visual one at 35 comes first; in CPython's set of {35, 64} the slot of 64, 0, does."""
    keys = KeyScan((), tuple(range(35, 65)), lambda tokens: torch.empty(0))
    assert visiting_order([0], [29], keys, "paper") == [0, 29] and visiting_order([0], [29], keys, "reference") == [29, 0]
    norms = [9.0, *[1.0] * 28, 9.0]
    likeness = torch.ones(30, 28)
    likeness[0, 5], likeness[0, 6] = -1, -0.5
    likeness[29, 5], likeness[29, 7] = -1, -0.5
    policy = DARTPolicy(truncation=2, visual_pivots=1, text_pivots=1)
    assert decided(policy, norms, likeness.tolist(), 28) == Retain((0, 5, 7))
    reference = DARTPolicy(truncation=2, visual_pivots=1, text_pivots=1, mode="reference")
    assert decided(reference, norms, likeness.tolist(), 28) == Retain((0, 5, 6))


def test_the_authors_order_is_that_of_a_set_filled_visual_first_by_falling_norm():
    places = [97, 35, 610, 131, 640, 611, 675, 650]
    keys = KeyScan((), tuple(range(35, 700)), lambda tokens: torch.empty(0))
    pivots = [position - 35 for position in places]
    order = [35 + token for token in visiting_order(pivots[:4], pivots[4:], keys, "reference")]
    assert order == list(set(places)) != list(set(sorted(places)))  # 35, 131 and 675 fall into one slot of 32: who came first decides
    assert [35 + token for token in visiting_order(pivots[:4], pivots[4:], keys, "paper")] == sorted(places)


def test_fewer_text_tokens_share_the_same_number_of_tokens():
    assert shares(16, 8) == [2] * 8 and shares(16, 5) == [4, 3, 3, 3, 3]
    policy = DARTPolicy(truncation=16)
    norms = [*range(24, 0, -1), 3.0]  # one text token: five pivots
    likeness = torch.arange(24.0).expand(25, 24) / 24
    assert decided(policy, norms, likeness.tolist(), 24) == Retain(tuple(range(20)))


def test_keys_and_likeness_are_those_of_the_description():
    """Two heads of width 2; the image between a system token and two text tokens; features are compared behind the norm."""
    keys = torch.tensor([[[9.0, 9], [1, -2], [0, 3]], [[9, 9], [-1, 1], [2, -2]]])  # (heads, tokens, width)
    block = Segment(torch.zeros(3, 2), 2, reached=2, keys={1: keys}, inputs={})
    block.states = torch.tensor([[7.0, 7], [1, 0], [0, 1]])
    branch = Branch(0, (block,), ((),), (0,))
    llm = type("LLM", (), {"norm": staticmethod(lambda x: x + torch.tensor([0.0, 1.0]))})
    text = torch.tensor([[[1.0, 1], [0, 0]], [[1, 1], [0, -5]]])
    scan = scan_keys(llm, 1, branch, torch.tensor([[0.0, -1], [3, 3]]), text)
    assert scan.norms == (5, 7, 4, 5)  # both heads, signs dropped
    assert scan.places == (1, 2, 3, 4)
    assert scan.similarities(torch.tensor([0, 3])).tolist() == [pytest.approx([1, 0.5**0.5]), pytest.approx([7 / 50**0.5, 0.8])]


def test_layers_and_wrong_settings():
    for depth, layers in ((32, (1,)), (40, (1,)), (64, (3,)), (4, (0,))):
        assert dart.configure(Depth(depth)).policy.layers == layers
    policy = dart.configure(Depth(4), full_layers=3, relative=False).policy
    assert policy.layers == (2,) and policy.reads == "keys" and policy.inherit_positions
    for settings, word in (
        ({"tokens": 36}, "tokens=36 cannot be met: the 2 full layers alone make 36 a layer; use more"),
        ({"tokens": 192, "truncation": 128}, "tokens=192 and truncation=128"),
        ({"full_layers": 32}, "full_layers=32 is 32 layers"),
        ({"full_layers": 0}, "full_layers=0 is below 1"),
        ({"truncation": 0}, "truncation=0 is below 1"),
        ({"visual_pivots": 0}, "visual_pivots=0 is below 1"),
        ({"retention_ratio": 0}, "retention_ratio=0 is outside"),
        ({"mode": "papper"}, "did you mean paper"),
    ):
        with pytest.raises(UserError, match=word):
            dart.configure(Gridded(), **settings)
