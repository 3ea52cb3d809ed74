"""Answers and traces from Python are those of evaluate.py; lists are answered as their parts; bad input is one line."""

from __future__ import annotations

import html
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support import scripts
from support.refusals import refusal

import blink_exp
from blink_exp import DART, HERO, Blink, BlinkInterp, FastV, Pair, UserError, load
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method, TokenPolicy
from blink_exp.core.sequence import Retain

METHODS = {
    "none": (["method=none"], None),
    "blink": (["method=blink"], Blink()),
    "hero": (["method=hero", "tokens=48"], HERO(tokens=48)),
    "fastv": (["method=fastv", "retention_ratio=0.5"], FastV(retention_ratio=0.5)),
}
LIMIT = 6


@pytest.fixture(scope="module")
def vlm():
    return load("scale_llava")


@pytest.fixture(scope="module")
def samples():
    """The samples of `limit=6`: (image, prompt) by id."""
    from blink_exp.benchmarks.base import spread

    benchmark = MosaicMME()
    return {sample.id: (sample.image(), benchmark.prompt(sample)) for sample in spread(benchmark.samples(), LIMIT)}


@pytest.fixture(scope="module", params=METHODS)
def evaluated(request, tmp_path_factory):
    """(records of evaluate.py by id, the method as a Python object)."""
    words, method = METHODS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    done = scripts.run(["evaluate.py", *words, f"limit={LIMIT}", "cost=0", f"hydra.run.dir={out}"])
    assert done.returncode == 0, done.stderr
    lines = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}, method


def facts(text, trace, rho: bool) -> str:
    """An answer as JSON. ``rho``: whether with saliency ratios, whose fifth place depends on which rows a kernel runs together."""
    steps = [{key: value for key, value in step.items() if rho or key != "rho"} for step in trace["layers"]]
    return json.dumps([text, steps, *(trace[key] for key in ("visual_tokens", "newline_tokens", "layer_tokens", "prefill_flops"))])


def of(answer, rho: bool = True) -> str:
    return facts(answer.text, asdict(answer.trace) | {"layers": answer.trace.decisions}, rho)


def alike(answers, others) -> bool:
    """Whether answers are equal, their saliency ratios within a unit of the last place."""
    ratios = [[step["rho"] for answer in some for step in answer.trace.decisions if step["rho"] is not None] for some in (answers, others)]
    return [of(answer, False) for answer in answers] == [of(answer, False) for answer in others] and ratios[0] == pytest.approx(
        ratios[1], abs=1.1e-5
    )


@pytest.mark.slow
def test_answers_of_a_list_are_those_of_evaluate(vlm, samples, evaluated):
    records, method = evaluated
    assert records.keys() == samples.keys()
    images, questions = zip(*samples.values(), strict=True)
    answers = vlm.answer(list(images), list(questions), method=method, max_new_tokens=MosaicMME.max_new_tokens)
    assert [of(answer) for answer in answers] == [facts(records[name]["prediction"], records[name], True) for name in samples]
    for answer in answers:
        assert len(answer.trace.tokens_by_layer) == 32
        assert sum(answer.trace.tokens_by_layer) / 32 == pytest.approx(answer.trace.layer_tokens, abs=0.01)
        assert answer.trace.cost is None and str(answer) == answer.text


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, Blink(), HERO(tokens=48), FastV(retention_ratio=0.5)], ids=repr)
def test_one_at_a_time_and_small_batches_answer_as_a_list_does(vlm, samples, method):
    images, questions = zip(*samples.values(), strict=True)
    together = vlm.answer(images, questions, method=method, max_new_tokens=8)
    alone = [vlm.answer(image, question, method=method, max_new_tokens=8) for image, question in samples.values()]
    assert alike(alone, together) and alike(vlm.answer(images, questions, method=method, max_new_tokens=8, batch_size=4), together)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [None, Blink(), BlinkInterp(layers=[12, 14]), HERO(tokens=36), DART(tokens=96), Pair(tokens=48)], ids=repr
)
def test_one_image_with_many_questions_and_one_question_about_many_images(vlm, samples, method):
    (first, question), *_, (second, other) = samples.values()
    single = {
        (image is first, text): vlm.answer(image, text, method=method, max_new_tokens=8)
        for image in (first, second)
        for text in (question, other)
    }
    about_one = vlm.answer(first, [question, other, question], method=method, max_new_tokens=8)
    assert alike(about_one, [single[True, question], single[True, other], single[True, question]])
    about_many = vlm.answer([second, first], other, method=method, max_new_tokens=8)
    assert alike(about_many, [single[False, other], single[True, other]])
    assert vlm.answer([first], [question], method=method, max_new_tokens=8) == [single[True, question]]
    assert vlm.answer([], []) == []


def test_a_file_a_picture_and_its_copy_are_one_image(vlm, samples, tmp_path):
    image, question = next(iter(samples.values()))
    image.save(tmp_path / "a.png")
    given = [image, image.copy(), tmp_path / "a.png", str(tmp_path / "a.png"), image.convert("RGBA")]
    answers = vlm.answer(given, question, method=Blink())
    assert answers == [answers[0]] * len(given)


def test_a_preset_s_name_a_constructor_and_a_method_of_one_s_own(vlm, samples):
    image, question = next(iter(samples.values()))

    class FirstHalf(TokenPolicy):
        layers = (0,)

        def decide(self, layer, scan):
            return Retain(tuple(range(len(scan.token_scores) // 2)))

        def kept(self, visual):
            return [visual // 2]

    assert vlm.answer(image, question, method="fastv") == vlm.answer(image, question, method=FastV())
    assert vlm.answer(image, question) == vlm.answer(image, question, method="none")
    trace = vlm.answer(image, question, method=Method(FirstHalf(), name="half")).trace
    assert (trace.method, trace.tokens_by_layer) == ("half", [144] + [72] * 31)


def test_layers_that_are_named_are_those_that_decide(vlm, samples):
    image, question = next(iter(samples.values()))
    trace = vlm.answer(image, question, method=Blink(layers=range(12, 19))).trace
    assert [step["layer"] for step in trace.decisions] == list(range(12, 19))


def test_tokensr_of_a_folder_is_used(vlm, samples, tmp_path):
    from blink_exp.backbone.shipped import SHIPPED

    image, question = next(iter(samples.values()))
    assert vlm.answer(image, question, method=Blink(), tokensr=SHIPPED / "tokensr") == vlm.answer(image, question, method=Blink())
    with pytest.raises(UserError, match="no TokenSR module for layer 12"):
        vlm.answer(image, question, method=Blink(), tokensr=tmp_path)
    with pytest.raises(UserError, match="is for methods with TokenSR modules"):
        vlm.answer(image, question, method=HERO(), tokensr=tmp_path)


def test_cost_is_measured_where_it_is_asked_for(vlm, samples):
    image, question = next(iter(samples.values()))
    answer = vlm.answer(image, question, method=HERO(tokens=48), cost=True)
    assert answer.trace.cost["prompts"] == 1 and answer.trace.cost["visual_tokens"] == 48
    assert answer.text == vlm.answer(image, question, method=HERO(tokens=48)).text


def test_the_page_of_a_question_is_shown_and_saved(vlm, samples, tmp_path):
    image, question = next(iter(samples.values()))
    page = vlm.view(image, question, method=Blink(), compare=[None, HERO(tokens=48)])
    shown = page._repr_html_()
    assert shown.startswith('<iframe srcdoc="') and html.unescape(shown.split('"')[1]) == page.html
    assert page.save(tmp_path / "a" / "page.html").read_text(encoding="utf-8") == page.html
    assert [line["label"] for line in page.contents["answers"]] == ["blink", "none", "hero"]
    assert page.contents["said"] == vlm.answer(image, question, method=Blink()).text and len(page.contents["layers"]) == 32


BAD = [
    (lambda vlm, image: vlm.answer("What is this?", "Is it a dog?"), "image=What is this? is not there; give the file of a picture"),
    (lambda vlm, image: vlm.answer(np.zeros((4, 4, 3)), "?"), "is of type ndarray; give the file of a picture or a PIL image"),
    (lambda vlm, image: vlm.answer(None, "?"), "image=None is of type NoneType"),
    (lambda vlm, image: vlm.answer(image, ""), "the question is empty; ask something"),
    (lambda vlm, image: vlm.answer(image, None), "question=None is of type NoneType; give text"),
    (lambda vlm, image: vlm.answer(image, [1]), "question=1 is of type int; give text"),
    (lambda vlm, image: vlm.answer([image], ["a", "b"]), "1 images and 2 questions; give one of one, or as many of both"),
    (lambda vlm, image: vlm.answer(image, "<image><image>"), "names 2 images"),
    (lambda vlm, image: vlm.answer(image, "?", max_new_tokens=0), "max_new_tokens=0 must be a whole number of at least 1"),
    (lambda vlm, image: vlm.answer(image, "?", batch_size=1.5), "batch_size=1.5 must be a whole number of at least 1"),
    (lambda vlm, image: vlm.answer(image, "?", method="heroo"), "method=heroo is not a preset; did you mean hero"),
    (lambda vlm, image: vlm.answer(image, "?", method=HERO), "is no method; give one such as HERO(tokens=128)"),
    (lambda vlm, image: vlm.answer(image, "?", method=Blink(layers=[40])), "layer=40 is outside the backbone's 32 layers; use 0 to 31"),
    (lambda vlm, image: vlm.answer(image, "?", method=Blink(layers=[3])), "no TokenSR module for layer 3"),
    (lambda vlm, image: vlm.answer(image, "?", method=HERO(tokens=500)), "tokens=500"),
    (lambda vlm, image: vlm.answer(image, "?", method=blink_exp.TwoViews(region="annotated")), "by the annotation"),
    (lambda vlm, image: vlm.view("nothing.png", "?"), "image=nothing.png is not there"),
    (lambda vlm, image: load("scale_lava"), "model=scale_lava is neither a preset nor a folder nor a hub id; did you mean scale_llava"),
    (lambda vlm, image: load("scale_llava", dtyp="float32"), "model.dtyp is not a setting of model=scale_llava; did you mean dtype"),
    (lambda vlm, image: load("scale_llava", dtype="float31"), "model.dtype must be one of float32, float16, bfloat16, got float31"),
    (lambda vlm, image: load("/nowhere/at/all"), "model=/nowhere/at/all is not there; give a folder in Hugging Face's layout"),
    (lambda vlm, image: load("scale_llava", quantization="4bit"), "model.quantization is not a setting of model=scale_llava; "),
    (lambda vlm, image: vlm.answer(image, "?", cost="x"), "cost=x must be True or False"),
    (lambda vlm, image: vlm.view(image, "?").save("/proc"), "/proc cannot be written"),
    (lambda vlm, image: vlm.view(image, "?").save(""), "cannot be written"),
    (lambda vlm, image: vlm.view(image, "?").save(5), "5 cannot be written"),
    (lambda vlm, image: vlm.answer("x" * 5000, "?"), "is a longer path than the file system takes"),
    (lambda vlm, image: vlm.answer(image, "?", method=Blink(), tokensr="a${b}"), "a setting refers to something that is not there"),
    (lambda vlm, image: load("x" * 5000), "is a longer path than the file system takes"),
    (lambda vlm, image: blink_exp.load_benchmark("easyvqa", path="a${b}"), "benchmark.path refers to something that is not there"),
    (lambda vlm, image: vlm.evaluate(blink_exp.load_benchmark("easyvqa", path="x" * 5000), [None]), "benchmark.path=xxxx"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", [None], limit=0), "limit=0 must be a whole number of at least 1"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", [None], limit=1.5), "limit=1.5 must be a whole number of at least 1"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", [None], limit="x"), "limit=x must be a whole number of at least 1"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", [None], batch_size=0), "batch_size=0 must be a whole number of at least 1"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", HERO()), "methods=HERO() must be a list of methods"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", "hero"), "methods=hero must be a list of methods"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", []), "methods is empty; give at least one"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", [HERO(), HERO()]), "methods holds HERO() twice; give each once"),
    (lambda vlm, image: vlm.evaluate("mosaic_open", {1: None, "1": HERO()}), "methods holds 1 twice; give each row a name of its own"),
    (lambda vlm, image: vlm.evaluate(5, [None]), "benchmark=5 is no benchmark"),
    (lambda vlm, image: vlm.view(image, "q", compare="hero"), "compare=hero must be a list of methods"),
    (lambda vlm, image: load(None), "model=None is of type NoneType"),
    (lambda vlm, image: load(["scale_llava"]), "is of type list; give the name of a preset, a folder or a hub id"),
    (lambda vlm, image: HERO(48), "HERO(48) has no name for its setting; write HERO("),
]


@pytest.mark.parametrize(("call", "line"), BAD, ids=[line for _, line in BAD])
def test_bad_input_is_one_line(vlm, samples, call, line):
    image, _ = next(iter(samples.values()))
    assert line in refusal(lambda: call(vlm, image))


@pytest.mark.slow
def test_a_folder_is_a_model(samples):
    from blink_exp.backbone.shipped import SHIPPED

    image, question = next(iter(samples.values()))
    model = load(SHIPPED / "llava", device="cpu", dtype="float32")
    assert model.answer(image, question).text == load("scale_llava").answer(image, question).text
    assert model.model.dtype == torch.float32 and "llava" in repr(model)


def test_several_methods_have_the_scores_that_each_has_alone(vlm):
    table = vlm.evaluate("mosaic_open", {"untouched": None, "HERO": HERO(tokens=48)}, limit=8)
    alone = vlm.evaluate("mosaic_open", [HERO(tokens=48)], limit=8)
    assert list(table.index) == ["untouched", "HERO"] and table.loc["HERO", "visual tokens in"] == 48
    assert table.loc["HERO"].tolist() == alone.iloc[0].tolist()
