"""The page of one question: it must say what an evaluation says of the same question, and nothing else."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CONTRAST, OVERFLOW, WIDTHS, chromium, opened
from conftest import prompts, random_llava
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict
from PIL import Image

from blink_exp.backbone.decode import Record
from blink_exp.backbone.views import EXTRA, NEWLINE, Views
from blink_exp.benchmarks.base import Sample
from blink_exp.errors import UserError
from blink_exp.experiments.evaluate import evaluate, prepare
from blink_exp.experiments.pictures import presence
from blink_exp.methods.base import Scan
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.saliency import PatchGrid
from blink_exp.sequence import Drop, Expand, Keep, Origin, Retain
from blink_exp.viewer import drawing, subject, wanted
from blink_exp.viewer import page as pages
from blink_exp.viewer import run as viewer
from blink_exp.viewer.attention import recorded
from blink_exp.viewer.quoting import quoted
from blink_exp.viewer.trace import Stage, replay, trace

CONF = Path(__file__).resolve().parent.parent / "conf"


@functools.cache
def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


def config(*overrides, **keys):
    cfg = composed(*overrides).copy()
    with open_dict(cfg):
        for key in ("view", "image", "question", "compare"):
            cfg[key] = keys.get(key)
    return cfg


class Tables(HTMLParser):
    """The cells of every table with an id, and all text of the page."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.text, self.tags, self._table = {}, "", set(), None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "table":
            self._table = self.rows.setdefault(dict(attrs).get("id"), [])
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag):
        self._table = None if tag == "table" else self._table

    def handle_data(self, data):
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] = (self._table[-1][-1] + data).strip()


def pixels(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Twice as wide as high: grey, a red square in the middle, blue at the sides."""
    image = Image.new("RGB", (192, 96), (0, 0, 255))
    image.paste((128, 128, 128), (48, 0, 144, 96))
    image.paste((255, 0, 0), (72, 24, 120, 72))
    path = tmp_path_factory.mktemp("photo") / "a <b>, 'photo'.png"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def scale():
    """The scale model as a configuration loads it, so that it is loaded once for this file."""
    return viewer.prepare_model(config("method=none"))[0]


@pytest.fixture(scope="module")
def measured():
    """Blink's records of some samples, as an evaluation batches them, and one that expands, keeps or drops, in this order of need."""
    cfg = config("benchmark.images=1")
    backbone, method, benchmark = prepare(cfg)
    records, _ = evaluate(backbone, method, benchmark, batch_size=16)
    kinds = {r["id"]: {s["decision"] for s in r["layers"] if s["effective"]} for r in records}
    record = max(records, key=lambda r: (len(kinds[r["id"]]), "drop" in kinds[r["id"]]))
    assert {"expand", "drop"} <= kinds[record["id"]], "no sample shows what the tests below need"
    return cfg, record


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    """(what the page says, its HTML, the sample's record)."""
    cfg, record = measured
    with open_dict(cfg):
        cfg.view, cfg.compare = record["id"], ["none", "blink", "hero"]
    path = viewer.view(cfg, tmp_path_factory.mktemp("view"))
    return json.loads((path.parent / "view.json").read_text()), path, record


# --- attention ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_recorded_attention_is_eager_s_last_row_padded_rows_included(kv_heads):
    model = random_llava(kv_heads=kv_heads, attn="eager")
    batch = prompts(model, [[8, 9, 10, 11], [12, 13]])
    full = model(**batch, output_attentions=True).attentions
    for attn in ("eager", "sdpa"):
        other = random_llava(kv_heads=kv_heads, attn=attn)
        for use_cache in (True, False):
            with recorded(other.model.language_model) as rows, torch.no_grad():
                other(**batch, use_cache=use_cache)
            assert sorted(rows) == [0, 1, 2, 3]
            for layer, row in rows.items():
                torch.testing.assert_close(row, full[layer][:, :, -1].mean(1), atol=2e-6, rtol=0)


def test_recorded_attention_is_the_layer_s_own_while_blink_expands_and_drops():
    """The eager kernel gives the weights of the text segment over everything in front of it: system, visual, expanded."""
    model = random_llava(attn="eager")
    llm = model.model.language_model
    policy = BlinkPolicy((1, 2, 3), tau_expand=0.0, resolution="cycle", on_reexpand="append")
    weights = {}
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, _, out: weights.__setitem__(m.layer_idx, out[1][:, :, -1].mean(1)))
        for layer in llm.layers
    ]
    batch = prompts(model, [[8, 9, 10, 11]])
    with blink(policy).attach(model), recorded(llm) as rows, torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    assert [rows[i].shape[1] for i in range(4)] == [42, 42 + 36, 42, 42 + 36]
    for layer in range(4):
        torch.testing.assert_close(rows[layer], weights[layer], atol=2e-6, rtol=0)


def test_only_the_prompt_is_recorded_and_the_hooks_leave():
    model = random_llava()
    llm = model.model.language_model
    batch = prompts(model, [[8, 9, 10]])
    found = []
    for tokens in (1, 4):
        with recorded(llm) as rows:
            model.generate(**batch, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
        found.append(rows)
    assert all(torch.equal(found[0][i], found[1][i]) for i in range(4))
    with pytest.raises(RuntimeError), recorded(llm):
        raise RuntimeError
    assert not llm._forward_hooks and not any(layer.self_attn._forward_hooks for layer in llm.layers)


# --- following the decisions -------------------------------------------------------------------------------------------------------


def decided(layer, decision, tokens):
    return Record(0, Scan(layer, "s", 0, False), decision, tokens)


def test_replay_follows_blink_by_hand():
    decisions = [
        decided(1, Expand(2), 10 + 4),
        decided(2, Keep(), 10 + 4),
        decided(3, Expand(0), 10 + 6),  # replaces: a module may give another number of tokens
        decided(4, Expand(1, "keep"), 10 + 6),  # something is there: no effect
        decided(5, Expand(3, "append"), 10 + 10),
        decided(6, Drop(), 10),
        decided(7, Drop(), 10),
    ]
    found = replay(decisions, torch.arange(10), 9)
    a, b = Origin(3, 0, 6), Origin(5, 3, 4)
    assert [parts for _, parts in found] == [(), (Origin(1, 2, 4),), (Origin(1, 2, 4),), (a,), (a,), (a, b), (), (), ()]
    assert all(torch.equal(source, torch.arange(10)) for source, _ in found)


def test_replay_follows_methods_that_decide_behind_a_layer():
    decisions = [decided(0, Retain((1, 2, 4), ((0, 3),)), 4), decided(2, Retain((0, 3)), 2)]
    found = [source.tolist() for source, _ in replay(decisions, torch.tensor([7, 5, NEWLINE, 9, 2]), 4)]
    assert found == [[7, 5, NEWLINE, 9, 2], [5, NEWLINE, 2, EXTRA], [5, NEWLINE, 2, EXTRA], [5, EXTRA]]


def test_attention_is_put_where_its_tokens_stand():
    """A 2 x 2 base view without cell 1, a tile token (4 and up), a newline, a merged token; 3 expanded tokens."""
    source = torch.tensor([3, 0, NEWLINE, 2, 6, EXTRA])
    attention = torch.tensor([0.1, *[0.05, 0.15, 0.01, 0.3, 0.02, 0.04], 0.03, 0.05, 0.06, 0.09, 0.1])
    stage = Stage(0, 1, 2, source, (Origin(0, 1, 1), Origin(0, 2, 2)), attention)
    assert stage.counts == {"system": 1, "visual": 6, "expanded": 3, "text": 2}
    assert stage.shares == pytest.approx({"system": 0.1, "visual": 0.57, "expanded": 0.14, "text": 0.19})
    np.testing.assert_allclose(stage.cells(4), [0.15, np.nan, 0.3, 0.05], rtol=1e-6)
    np.testing.assert_allclose(stage.by_source(8)[4:], [np.nan, np.nan, 0.02, np.nan], rtol=1e-6)
    ratio, region = stage.rho(PatchGrid(2, 2, 2))
    assert (ratio, region) == (pytest.approx(0.3 / 0.5), 2)
    assert Stage(0, 1, 2, source[4:], (), attention[:5]).rho(PatchGrid(2, 2, 2)) is None


# --- the page of a sample ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_evaluation_recorded(page):
    said, _, record = page
    steps = {s["layer"]: s for s in record["layers"]}
    assert (said["question"], said["known"], said["said"]) == (record["question"], record["answer"], record["prediction"])
    assert said["verdict"] == ("right" if record["correct"] else "wrong")
    assert [v["layer"] for v in said["layers"]] == list(range(32))
    for line in said["layers"]:
        step = steps.get(line["layer"])
        assert (line["visual"], line["system"] + line["text"] > 5) == (144, True)
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert line["expanded"] == sum(o["tokens"] for o in line["places"])
        if step is None:
            assert (line["scanned"], line["region"], line["decision"]) == (None, None, None)
            continue
        assert line["decision"].split()[0] == step["decision"]
        assert line["decision"].endswith("(nothing was there)") == (not step["effective"])
        assert (line["scanned"], line["region"]) == (pytest.approx(step["rho"], abs=2e-5), step["region"])
        assert line["visual"] + line["expanded"] == step["visual_tokens"]
        if step["decision"] == "expand":
            assert line["places"] == [{"layer": line["layer"], "region": step["region"], "tokens": 144}]
    assert any(line["expanded"] and line["shares"]["expanded"] > 0 for line in said["layers"])
    assert all(line["shares"]["expanded"] == 0 for line in said["layers"] if not line["expanded"])


def test_where_nothing_is_expanded_the_scan_s_rho_is_that_of_the_attention_the_layer_pays(page):
    """Two ways to the same number: the scan in front of a layer, and the row recorded behind it."""
    said, _, _ = page
    lines = said["layers"]
    bare = [v for before, v in itertools.pairwise(lines) if v["decision"] and not v["expanded"] and not before["expanded"]]
    assert bare, "no layer scanned an untouched sequence and left it untouched"
    for line in bare:
        assert (line["rho"], line["patch"]) == (pytest.approx(line["scanned"], abs=2e-5), line["region"])


def test_html_tables_hold_the_same(page):
    said, path, _ = page
    tables = Tables(path.read_text()).rows
    rows = tables["layers-table"][2:]
    assert len(rows) == 32
    for line, row in zip(said["layers"], rows, strict=True):
        assert row[0] == str(line["layer"]) and row[5] == (line["decision"] or "")
        assert row[1:3] == [f"{line['rho']:.3f}", str(line["patch"])]
        assert row[6:10] == [str(line[part]) for part in ("system", "visual", "expanded", "text")]
        assert row[11:] == [f"{100 * line['shares'][part]:.1f}" for part in ("system", "visual", "expanded", "text")]
    answers = [row[:3] for row in tables["answers-table"][1:]]
    names = {"none": "none", "blink": "blink (this page)", "hero": "hero"}
    assert answers == [[names[a["label"]], a["said"], a["verdict"]] for a in said["answers"]]


def test_answers_of_other_methods_are_those_of_their_evaluations(page, measured):
    said, _, record = page
    cfg, _ = measured
    for line in said["answers"]:
        backbone, method, benchmark = prepare(viewer.preset(cfg, line["label"]))
        (found,), _ = evaluate(backbone, method, benchmark, samples=[s for s in benchmark.samples() if s.id == record["id"]])
        assert (line["said"], line["verdict"]) == (found["prediction"], "right" if found["correct"] else "wrong")
        assert line["entering"] == found["visual_tokens"] == (28 if line["label"] == "hero" else 144)
        tokens = {s["layer"]: s["visual_tokens"] for s in found["layers"]}
        last = found["visual_tokens"]  # by hand from the record: a layer without a decision works on what the one before it left
        by_layer = [last := tokens.get(layer, last) for layer in range(32)]
        assert line["tokens"] == pytest.approx(sum(by_layer) / 32)
    assert [line["shown"] for line in said["answers"]] == [False, True, False]


def test_the_page_needs_no_network_and_no_script(page):
    _, path, _ = page
    html = path.read_text()
    assert "script" not in Tables(html).tags and "http://" not in html and "https://" not in html
    assert html.count("data:image/png;base64,") > 32
    assert "@media (prefers-color-scheme: dark)" in html


def test_a_browser_shows_it_without_overflow_or_complaint(page):
    _, path, _ = page
    with chromium() as browser:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                with opened(browser, path, width, scheme) as (tab, complaints):
                    assert tab.evaluate(OVERFLOW) <= 0
                    assert complaints == [] and tab.evaluate(CONTRAST, 4.5) == []


# --- kept tokens -------------------------------------------------------------------------------------------------------------------


def test_kept_tokens_of_a_pruner_are_counted_and_darkened(scale_next, photo):
    cfg = config("model=scale_llava_next", "method=hero")
    about = subject.subject(config(image=str(photo), question="is there a circle?"))
    found = trace(scale_next, viewer.made(cfg, scale_next), about.benchmark, about.sample, about.image)
    kept = pages.kept(found)
    views = found.visual.views
    assert kept["of"] == {"base": 144, "tiles": int(views.valid[1:].sum())}
    assert kept["entering"] == kept["last"] and kept["entering"]["merged"] == 0
    assert kept["entering"]["base"] == 28  # floor(144 * 0.2)
    entering = kept["entering"]["base"] + kept["entering"]["tiles"]
    assert entering == len(found.visual.source) - found.visual.newlines == int(found.presence.sum())
    share, _ = presence(scale_next, found.method, about.image, "is there a circle?")
    assert torch.equal(found.presence, share)
    cells = pixels(drawing.fade(found.presence[0].view(12, 12)))[..., 3]
    assert int((cells == 0).sum()) == 28 and set(cells.flatten().tolist()) == {0, drawing.GONE[3]}
    maps = pages.maps(found.stages[0], found, PatchGrid(2, 12, 12))
    dark = pixels(maps["tiles"])
    assert dark.shape[:2] == views.unpadded.shape
    assert int((dark == drawing.GONE).all(-1).sum()) == kept["of"]["tiles"] - kept["entering"]["tiles"]


@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_kept_tokens_of_a_method_in_the_llm(scale, method):
    """Against the share of layers that the pictures of tables show, which is computed from the decisions in another way."""
    cfg = config(f"method={method}", "benchmark.images=1")
    benchmark = subject.prepare_benchmark(cfg)
    one = benchmark.samples()[3]
    chosen = viewer.made(cfg, scale)
    found = trace(scale, chosen, benchmark, one, one.image())
    share, _ = presence(scale, chosen, one.image(), benchmark.prompt(one))
    torch.testing.assert_close(found.presence, share)
    kept = pages.kept(found)
    assert kept["inside"] and kept["entering"]["base"] == 144 > kept["last"]["base"] > 0
    assert (kept["last"]["merged"] > 0) == (method == "sparsevlm")


def test_methods_that_drop_nothing_have_no_kept_tokens(page):
    assert page[0]["kept"] is None


# --- any picture and question ------------------------------------------------------------------------------------------------------


def test_own_picture_and_question_are_escaped_and_the_page_is_the_same_twice(photo, tmp_path):
    question = "is <script>alert('1')</script> & \"x\" here?"
    cfg = config("method=none", image=str(photo), question=question, compare=[])
    first, second = (viewer.view(cfg, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    parsed = Tables(first.read_text())
    assert f"“{question}”" in parsed.text and "script" not in parsed.tags and photo.name in parsed.text
    said = json.loads((tmp_path / "a" / "view.json").read_text())
    assert (said["known"], said["verdict"], said["answers"][0]["verdict"], said["kept"]) == (None, None, None, None)
    assert all(v["decision"] is None and v["expanded"] == 0 for v in said["layers"])
    assert "right" not in {cell for row in parsed.rows["answers-table"] for cell in row}


def test_pictures_with_one_name_and_size_are_not_taken_for_each_other(scale, tmp_path):
    """Backbones keep features by an id of the image."""
    found = []
    for colour in ("red", "blue"):
        (tmp_path / "photo.png").unlink(missing_ok=True)
        Image.new("RGB", (96, 96), colour).save(tmp_path / "photo.png")
        about = subject.subject(config(image=str(tmp_path / "photo.png"), question="q"))
        found.append(trace(scale, viewer.made(config("method=none"), scale), about.benchmark, about.sample, about.image))
    assert not torch.equal(found[0].visual.features, found[1].visual.features)


def test_a_compared_method_that_cannot_run_says_why_and_a_changed_one_stands_beside_its_preset(photo, tmp_path):
    overrides = ["method=fastv", "method.full_layers=3", "retention_ratio=0.3"]
    cfg = config(*overrides, image=str(photo), question="q", compare=["fastv", "hero"])
    with open_dict(cfg):
        cfg.hero.options.score = "nonsense"
    viewer.view(cfg, tmp_path)
    lines = json.loads((tmp_path / "view.json").read_text())["answers"]
    assert [(a["label"], a["shown"]) for a in lines] == [("fastv", True), ("fastv", False), ("hero", False)]
    assert lines[0]["tokens"] > lines[1]["tokens"]  # three whole layers against two: the user's retention ratio in both
    assert lines[1]["tokens"] < 0.5 * 144
    assert "hero.score=nonsense" in lines[2]["why"] and lines[2]["said"] is None
    assert "hero.score=nonsense" in Tables((tmp_path / "view.html").read_text()).text


def test_presets_keep_the_user_s_values_with_and_without_hydra_running():
    """Under hydra.main Hydra is there already and allows no second."""
    cfg = config("method=none", "retention_ratio=0.3", "thresholds=high_exp")
    outside = viewer.preset(cfg, "blink_hero").method
    with initialize_config_dir(str(CONF), version_base="1.3"):
        inside = viewer.preset(cfg, "blink_hero").method
        assert compose("evaluate").retention_ratio == 0.2  # and it is still there
    assert outside == inside
    assert (inside.pruner.retention_ratio, inside.policy.tau_exp) == (0.3, 0.7)


def test_verdicts():
    assert [pages.verdict(v) for v in (True, False, 1.0, 0.0, 0.3, None)] == ["right", "wrong", "right", "wrong", "30 % right", None]


def test_a_page_is_wanted_only_where_a_key_asks_for_it():
    assert [wanted(config(**keys)) for keys in ({}, {"compare": ["none"]}, {"view": "x"}, {"image": "x"}, {"question": "x"})] == [
        *(False, False),
        *(True, True, True),
    ]


# --- pictures ----------------------------------------------------------------------------------------------------------------------


def test_maps_by_hand():
    nan = float("nan")
    found = pixels(drawing.heat(torch.tensor([[0.0, 0.2], [0.1, nan]])))
    assert found[0, 0].tolist() == [*drawing.HEAT, 0] and found[0, 1].tolist() == [*drawing.HEAT, 235]
    assert found[1, 0].tolist() == [*drawing.HEAT, 118] and found[1, 1].tolist() == list(drawing.GONE)
    assert pixels(drawing.heat(torch.zeros(2, 3)))[..., 3].tolist() == [[0] * 3] * 2
    assert pixels(drawing.fade(torch.tensor([[1.0, 0.0]])))[..., 3].tolist() == [[0, 217]]


def test_the_base_view_is_what_the_tower_sees(scale, scale_next, photo):
    """LLaVA-1.5 crops the sides of a wide picture, LLaVA-NeXT squeezes it."""
    image = Image.open(photo)
    cropped, squeezed = (pixels(drawing.base_view(b, image)).astype(int) for b in (scale, scale_next))
    assert cropped.shape == squeezed.shape == (96, 96, 3)
    assert np.abs(cropped[48, [2, 48]] - [[128] * 3, [255, 0, 0]]).max() <= 2
    assert np.abs(squeezed[48, [2, 48]] - [[0, 0, 255], [255, 0, 0]]).max() <= 2


def test_large_pictures_are_made_smaller():
    assert pixels(drawing.picture(Image.new("L", (3000, 1000)))).shape == (240, 720, 3)


def test_a_piece_shows_its_patch():
    """CSS: position p % puts that point of the enlarged picture on that point of the box."""
    assert drawing.Piece.of(PatchGrid(2, 12, 12), 3) == drawing.Piece("200%", "100% 100%")
    assert drawing.Piece.of(PatchGrid(3, 12, 12), 5) == drawing.Piece("300%", "100% 50%")
    assert drawing.Piece.of(PatchGrid(1, 12, 12), 0) == drawing.Piece("100%", "0% 0%")


def test_tiles_are_drawn_over_the_part_of_the_grid_that_shows_the_image():
    """640 x 360 on 2 x 2 tiles of 12 x 12: 24 columns, and 14 of 24 rows, 5 cut off above."""
    found = drawing.tiles(Views(12, 2, 2, (360, 640), newline=True))
    assert 'viewBox="0 0 24 14"' in found and "M12 0V14" in found and "M0 7H24" in found


# --- what a user can get wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"view": "x", "image": "y.png", "question": "q"}, "view=x and image=y.png are two pictures; give one of them"),
        ({"view": "x", "question": "q"}, "question=q needs image=...; view=x asks the sample's own question"),
        ({"question": "q"}, "question=q has no picture; add image=photo.jpg"),
        ({"image": "y.png"}, 'image=y.png has no question; add question="What is in the picture?"'),
        ({"image": "y.png", "question": "  "}, 'image=y.png has no question; add question="What is in the picture?"'),
        ({"image": "no/y.png", "question": "q"}, "image=no/y.png is not there; give the file of a picture"),
        ({"image": ".", "question": "q"}, "image=. is a folder; give the file of a picture"),
        (
            {"view": "mosaic_mme/v1/color/0007/no", "compare": ["blink", "herro"]},
            "compare=herro is no preset of method; did you mean hero or ",
        ),
    ],
)
def test_bad_input_is_one_line(keys, said, tmp_path):
    with pytest.raises(UserError) as error:
        viewer.view(config(**keys), tmp_path)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_picture_is_one_line(data, tmp_path, photo):
    for name, content in (("bad.png", data), ("cut.png", photo.read_bytes()[:-60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^image=.*{name} is no picture that can be read \(.+\); give a JPEG, PNG or WebP file$"):
            viewer.view(config(image=str(tmp_path / name), question="q"), tmp_path)


def test_an_unknown_sample_names_the_nearest():
    with pytest.raises(UserError) as error:
        subject.subject(config(view="mosaic_mme/v1/colr/0007/no"))
    said = str(error.value)
    assert said.startswith("view=mosaic_mme/v1/colr/0007/no is not among the 640 samples of mosaic_mme; did you mean ")
    assert "mosaic_mme/v1/color/0007/no" in said and "\n" not in said and len(said) < 250
    many = [f"split/{k:06d}" for k in range(30000)]
    assert "split/012345" in subject.nearest_ids("12345", many) and "split/012340" in subject.nearest_ids("split/01234x", many)


def test_benchmarks_without_questions_and_samples_without_image_are_refused(monkeypatch):
    class Probing:
        name = "duts"

        def probe(self, backbone, limit, advance): ...

    def gone():
        raise OSError("cut\noff")

    class Broken:
        name = "x"

        def samples(self):
            return [Sample("7", "7", gone, "q", "a", "")]

    for benchmark, said in (
        (Probing(), "view=7 needs a question, and benchmark=duts asks none; use another, e.g. mosaic_mme"),
        (Broken(), "view=7 has an image that cannot be read (cut off); choose another sample"),
    ):
        monkeypatch.setattr(subject, "prepare_benchmark", lambda cfg, found=benchmark: found)
        with pytest.raises(UserError) as error:
            subject.subject(config(view=7))
        assert str(error.value) == said


@pytest.mark.parametrize(
    "text",
    [
        "Is it red, or blue?",
        'What\'s "this"?',
        "a\\",
        "a\\'b",
        "C:\\x\\y.jpg",
        "cost ${x}, $5",
        "\\${y}",
        "(a) {b} [c]: d=e #1",
        "0123",
        "1_000",
    ],
)
def test_questions_arrive_letter_by_letter(text):
    for key in ("question", "image", "view"):
        (word,) = quoted([f"{key}={text}"])
        parsed = OverridesParser.create().parse_override(word)
        cfg = OmegaConf.create({key: None})
        OmegaConf.update(cfg, parsed.key_or_group, parsed.value())
        assert cfg[key] == text and not parsed.is_sweep_override()


def test_other_words_are_left_alone():
    words = ["method=a,b", "question=null", "image=", "question='as it is'", 'view="x"', "--cfg", "job"]
    assert quoted(words) == words
    assert quoted(["-m", "view=a,b"]) == ["-m", "view=a,b"]
