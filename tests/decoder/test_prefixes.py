"""Prefixes and the texts behind them, against the whole prompt in one piece."""

from __future__ import annotations

import pytest
import torch

from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.errors import UserError


@torch.no_grad()
@pytest.mark.parametrize(("independent", "expected"), [(False, [(3, 57), (1, 90)]), (True, [(1, 50), (1, 55), (1, 57), (1, 90)])])
def test_prefixes_of_near_lengths_run_as_one_batch(independent, expected, scale, monkeypatch):
    """Padded on the right, which changes nothing but last digits: against each alone. Where rows are independent they are not padded."""
    from blink_exp.decoder import layers
    from blink_exp.decoder.layers import run_prefixes

    monkeypatch.setattr(layers, "independent", lambda x: independent)
    tolerance = 0 if independent else 1e-4

    def prefix(tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(tokens)
        return scale.model.get_input_embeddings()(torch.randint(5, 100, (tokens,), generator=generator))

    lengths = (50, 55, 57, 90)
    alone = [run_prefixes(scale.llm, [prefix(n)], [n - 2], (3,), [5], 4)[0] for n in lengths]
    calls: list[tuple[int, ...]] = []
    hook = scale.llm.layers[0].register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape[:2])))
    batch = run_prefixes(scale.llm, [prefix(n) for n in lengths], [n - 2 for n in lengths], (3,), [5] * 4, 4)
    hook.remove()
    assert calls == expected
    for one, same, n in zip(alone, batch, lengths, strict=True):
        assert same.tokens == n and same.reached == 5 and same.visual_at(3).shape[0] == n - 2
        for i in range(5):
            assert same.keys[i].shape[1] == n
            torch.testing.assert_close(same.keys[i], one.keys[i], atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(same.values[i], one.values[i], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(same.at(3), one.at(3), atol=tolerance, rtol=tolerance)


def test_logits_are_those_of_the_whole_prompt_in_one_piece(scale):
    """The state that the first token is read from, against the stock forward: within 1e-4."""
    from blink_exp.decoder.branches import QuestionInputs
    from blink_exp.decoder.layers import run_prefixes

    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:3]
    asked = [benchmark.prompt(s) for s in samples]
    visual = scale.visual({s.image_id: s.image() for s in samples}, [(s.image_id, q) for s, q in zip(samples, asked, strict=True)], None)
    embed = scale.model.get_input_embeddings()
    around = scale.around(asked)
    with torch.no_grad():
        openings = [torch.cat([embed(ahead), v.features]) for (ahead, _), v in zip(around, visual, strict=True)]
        prefixes = run_prefixes(scale.llm, openings, [144] * 3, (), [32] * 3, 2)
        questions = [QuestionInputs((p,), embed(behind), s.id, (0,)) for p, (_, behind), s in zip(prefixes, around, samples, strict=True)]
        leaves = []
        BranchDecoder(scale.llm, questions, [Method()], [None]).run(leaves.append)
        (leaf,) = leaves
        for branch, hidden in zip(leaf.branches, scale.llm.norm(leaf.text.states[:, -1]), strict=True):
            batch = scale.batch([visual[branch.question].features], [asked[branch.question]])
            whole = torch.cat([openings[branch.question], questions[branch.question].text])[None]
            stock = scale.llm(inputs_embeds=whole).last_hidden_state[0, -1]
            assert batch["input_ids"].shape[1] == whole.shape[1]
            assert torch.allclose(scale.model.lm_head(hidden), scale.model.lm_head(stock), atol=1e-4)
    assert scale.llm.config._attn_implementation == "sdpa"  # given back


def test_a_question_that_speaks_of_the_placeholder_is_refused(scale):
    with pytest.raises(UserError, match="2 placeholders <image> where it shows one image; reword"):
        scale.around(["What does <image> show?"])


def test_token_ids_around_the_image_are_those_of_the_batch(scale):
    asked = ["Is there a red circle?", "What shape is at the top left of it?"]
    rows = scale.batch([torch.zeros(3, 1)] * 2, asked)
    for (ahead, behind), ids, real in zip(scale.around(asked), rows["input_ids"], rows["attention_mask"], strict=True):
        image = torch.full((3,), scale.model.config.image_token_id)
        assert torch.equal(torch.cat([ahead, image, behind]), ids[real.bool()])
