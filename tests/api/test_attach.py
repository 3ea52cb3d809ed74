"""A method on a stock model answers as the project does; the model is left as it was; what is not supported is refused in one line."""

from __future__ import annotations

import pytest
import torch
from support.models import random_llava
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPConfig, CLIPModel

import blink_exp
from blink_exp import HERO, Blink, BlinkHERO, BlinkInterp, CDPruner, FastV, Pair, UserError, VisionZip, attach, load
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.benchmarks.base import spread
from blink_exp.benchmarks.mosaic_mme import MosaicMME

MODELS = {"scale_llava": "llava", "scale_llava_next": "llava_next"}
NEW = 4


class Stock:
    """A model and its processor as transformers loads them, and questions."""

    def __init__(self, preset: str):
        folder = str(SHIPPED / MODELS[preset])
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.processor.tokenizer.padding_side = "left"
        self.vlm = load(preset)
        benchmark = MosaicMME()
        chosen = spread(benchmark.samples(), 3)[:3]
        self.images = [sample.image().resize((96 + 40 * n, 96)) for n, sample in enumerate(chosen)]
        self.questions = [benchmark.prompt(sample) for sample in chosen]

    def inputs(self, rows: slice = slice(None)):
        prompts = [self.vlm.backbone.prompt(question) for question in self.questions[rows]]
        return self.processor(images=self.images[rows], text=prompts, padding=True, return_tensors="pt")

    def generated(self, inputs, **settings) -> list[str]:
        tokens = self.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)
        assert torch.equal(
            tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(len(tokens) // len(inputs["input_ids"]), 0)
        )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]


@pytest.fixture(scope="module", params=MODELS)
def stock(request):
    return Stock(request.param)


BOTH = [Blink(), HERO(retention_ratio=0.3), CDPruner(retention_ratio=0.3), Pair(pruner=HERO(), policy=FastV(), tokens=48)]
METHODS = [*BOTH, BlinkInterp(tau_exp=0.3), FastV(retention_ratio=0.5), VisionZip(retention_ratio=0.3)]
CASES = [("scale_llava", method) for method in [*METHODS, BlinkHERO(pruner=HERO(retention_ratio=0.5))]]
CASES += [("scale_llava_next", method) for method in BOTH]


@pytest.mark.slow
@pytest.mark.parametrize(("stock", "method"), CASES, indirect=["stock"], ids=repr)
def test_a_stock_model_answers_as_the_project_does(stock, method):
    before = dict(stock.model.__dict__)
    wanted = stock.vlm.answer(stock.images, stock.questions, method=method, max_new_tokens=NEW)
    with attach(stock.model, method, processor=stock.processor) as run:
        together = stock.generated(stock.inputs())
        entering = run.visual_tokens
        alone = stock.generated(stock.inputs(slice(0, 1)))
        decisions = [(record.scan.layer, record.visual_tokens) for record in run.records]
    assert together == [answer.text for answer in wanted] and alone == together[:1]
    assert decisions == [(step["layer"], step["visual_tokens"]) for step in wanted[0].trace.decisions]
    if entering is not None:
        assert entering == [answer.trace.visual_tokens + answer.trace.newline_tokens for answer in wanted]
    assert dict(stock.model.__dict__) == before


@pytest.mark.slow
def test_behind_the_block_the_stock_model_answers(stock):
    with attach(stock.model, FastV(retention_ratio=0.1)):
        stock.generated(stock.inputs())
    assert stock.generated(stock.inputs()) == [a.text for a in stock.vlm.answer(stock.images, stock.questions, max_new_tokens=NEW)]


@pytest.mark.slow
def test_beams_samples_and_dictionaries_come_back_as_generate_has_them(stock):
    inputs = stock.inputs(slice(0, 2))
    prompt = inputs["input_ids"].shape[1]
    with attach(stock.model, HERO(retention_ratio=0.3), processor=stock.processor):
        greedy = stock.generated(inputs)
        assert stock.generated(inputs, num_beams=2, num_return_sequences=2) and stock.generated(inputs, num_beams=1) == greedy
        whole = stock.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_scores=True)
        assert torch.equal(whole.sequences[:, :prompt], inputs["input_ids"]) and len(whole.scores) <= NEW
        limited = stock.model.generate(**inputs, max_length=prompt + 2, do_sample=False)
        assert limited.shape[1] <= prompt + 2
        by_place = stock.model.generate(inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}, max_new_tokens=2)
        assert torch.equal(by_place[:, :prompt], inputs["input_ids"])
        text = stock.processor.tokenizer(["USER: Hello. ASSISTANT:"], return_tensors="pt", return_token_type_ids=False)
        assert stock.model.generate(**text, max_new_tokens=2).shape[0] == 1


@pytest.mark.slow
def test_questions_may_be_given_and_a_processor_is_asked_for_where_the_text_is_read(stock):
    inputs = stock.inputs()
    with attach(stock.model, CDPruner(retention_ratio=0.3), processor=stock.processor) as run:
        read = stock.generated(inputs)
        run.questions = stock.questions
        assert stock.generated(inputs) == read
        run.questions = ["?"]
        with pytest.raises(UserError, match="has 1 rows where the prompt has 3"):
            stock.generated(inputs)
    with pytest.raises(UserError, match="processor="):
        with attach(stock.model, CDPruner(retention_ratio=0.3)):
            stock.generated(inputs)
    if not stock.vlm.backbone.tiled:  # without tiles HERO reads no text
        with attach(stock.model, HERO(tokens=48)) as run:
            stock.generated(inputs)
            assert run.visual_tokens == [48] * 3


@pytest.mark.slow
def test_the_model_is_left_as_it_was_after_an_error(stock):
    before = dict(stock.model.__dict__)
    with pytest.raises(RuntimeError, match="stop"):
        with attach(stock.model, Pair(pruner=HERO(), policy=FastV()), processor=stock.processor):
            raise RuntimeError("stop")
    assert dict(stock.model.__dict__) == before and not stock.model._forward_pre_hooks


@pytest.mark.slow
def test_what_is_not_supported_is_one_line(stock):
    def refused(method, model=stock.model, **settings) -> str:
        with pytest.raises(UserError) as error:
            with attach(model, method, **{"processor": stock.processor, **settings}):
                pass
        assert "\n" not in str(error.value)
        return str(error.value)

    clip = CLIPModel(CLIPConfig.from_pretrained(str(SHIPPED / "clip")))
    assert "a CLIPModel is not supported; attach takes a LlavaForConditionalGeneration" in refused(HERO(), clip)
    assert "cuts parts from the image itself" in refused(Blink(tokensr="closeup"))
    assert "cuts parts from the image itself" in refused(blink_exp.ViCrop())
    assert "layer=40 is outside the backbone's 32 layers" in refused(BlinkInterp(layers=[40]))
    assert "is no method" in refused(HERO)
    assert "processor=x is no processor; give what AutoProcessor" in refused(HERO(), processor="x")
    assert "clip=3 is of type int" in refused(HERO(), clip=3) and "clip=/no/clip is not there" in refused(HERO(), clip="/no/clip")
    if stock.vlm.backbone.tiled:
        assert "has tiles in a grid of its own" in refused(CDPruner(mode="reference"))
    with attach(stock.model, HERO(), processor=stock.processor) as attached:
        assert repr(attached).startswith("Attached('hero' on 'scale-llava")
        assert "another method is attached" in refused(FastV())
        inputs = stock.inputs(slice(0, 1))
        with pytest.raises(UserError, match="which model.generate\\(\\) does"):
            stock.model(**inputs)
        two = {**inputs, "pixel_values": torch.cat([inputs["pixel_values"]] * 2)}
        with pytest.raises(UserError, match="one image each; this batch has 2 images in 1 prompts"):
            stock.model.generate(**two, max_new_tokens=2)


def test_a_model_without_modules_is_told_how_to_get_them():
    model = random_llava()
    with pytest.raises(UserError, match="ships without TokenSR modules; train them"):
        with attach(model, Blink()):
            pass
