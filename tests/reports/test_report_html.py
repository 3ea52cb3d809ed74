"""The pages of tables and figures, from made-up documents: what stands where, and what must not be mixed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.made_up import everything, figure, put, run, table

from blink_exp.errors import UserError
from blink_exp.reports import entries, html


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = everything(tmp_path_factory.mktemp("report"))
    html.gather(root)
    return root


class Seen(HTMLParser):
    """Ids, addresses, headings and the text of a page; texts of one section by ``within``."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.headings, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.loads += [v for k, v in values.items() if k in ("src", "srcset", "data", "poster") or (k.endswith("href") and tag != "a")]
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []


@pytest.fixture(scope="module")
def text(root):
    return (root / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(text):
    return Seen(text)


def section(text, name):
    """The part of a page from a section's start to the next."""
    start = text.index(f'id="{name}"')
    return text[start : text.find('<section class="entry" id="', start)]


def body(part):
    """Cells of the results of a section, by row, tags taken out."""
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", part[part.index('class="results"') : part.index("</table>")], re.S)
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in re.split(r"</t[hd]>", row)][:-1] for row in rows]


# what stands in a page


def test_cells_hold_numbers_with_their_errors_differences_and_marks_and_nothing_where_nothing_was_measured(text):
    assert body(section(text, "blink_table2--scale-llava-1.5")) == [
        ["Vanilla", "1863.58*", "3", "1143.75 ± 22"],
        ["Blink &lt;full&gt; &amp; τ", "1881.53 (+17.95)", "", "1200.00 ± 22 (+56.25)†"],
        ["w/o Drop", "1884.03", "5", ""],
    ]


def test_groups_are_told_apart_by_words_and_by_class_in_heading_and_cell(text):
    part = section(text, "blink_table2--scale-llava-1.5")
    assert re.search(r'colspan="2" class="group first published"><span>published: LLaVA-1.5-7B, MME<', part)
    assert re.search(r'colspan="1" class="group first scale"><span>measured: scale-llava-1.5 \(scale model\) on mosaic', part)
    assert re.findall(r'<td class="(\w+)[ "]', part[: part.index("</table>")])[1:] == ["published", "published", "scale"] * 3
    assert re.findall(r'<td class="(\w+) first"', part) == ["published", "scale"] * 3  # a line stands between groups
    other = section(text, "blink_table2--llava_1_5_7b")
    assert 'class="group first backbone"' in other and "scale" not in re.findall(r'<td class="(\w+)[ "]', other)


def test_a_table_measured_on_two_models_stands_twice_each_with_its_own_label_and_no_column_of_the_other(text):
    one, two = (section(text, f"blink_table2--{model}") for model in ("scale-llava-1.5", "llava_1_5_7b"))
    assert "measured on scale-llava-1.5 (scale model)" in one and "measured on llava_1_5_7b (named backbone)" in two
    assert "llava_1_5_7b" not in one and "measured: scale" not in two and "(scale model)" not in two


def test_a_shortened_run_stands_apart_from_the_whole_one_and_says_what_was_set(text):
    part = section(text, "blink_table2--scale-llava-1.5-limit-24")
    assert "· limit=24</h3>" in part and "limit=24" not in section(text, "blink_table2--scale-llava-1.5")


def test_a_table_of_which_nothing_was_measured_claims_no_model():
    """Its published numbers stand alone, although the document names the model that would have been used."""
    rows = [row | {"runs": {}} for row in table()["rows"]]
    shown = entries.entry(table(rows=rows, groups=[]), Path("x/m"), Path("x"), [])
    assert (shown["label"], shown["side"]) == ("", "none") and {kind for _, kind, _ in shown["columns"]} == {"published"}


def test_a_figure_below_a_table_takes_its_model_and_lists_only_points_of_its_own():
    drawn = figure(model=None, pictures={}, rows=[run(1.0) | {"point": "the table's"}, run(2.0) | {"point": "its own", "x": 4}])
    drawn.pop("model")
    (shown,) = entries.entry(table(), Path("x/m"), Path("x"), [(drawn, Path("x/m/blink_fig7"))])["figures"]
    assert shown["label"] == "scale-llava-1.5 (scale model)" and [line["point"] for line in shown["runs"]] == ["its own"]


def test_a_figure_that_is_shown_below_its_table_is_not_linked_as_well():
    here = {"blink_fig7--m": "Seven", "blink_fig3--m": "Three"}
    shown = entries.entry(table(), Path("x/m"), Path("x"), [(figure("blink_fig3", pictures={}), Path("x/m/blink_fig3"))], here)
    assert shown["links"] == [("blink_fig7--m", "Seven")]


def test_the_pointer_finds_samples_test_and_command_behind_a_cell_and_why_one_is_empty(text):
    titles = re.findall(r'<td [^>]*title="([^"]*)"', section(text, "blink_table2--scale-llava-1.5"))
    assert any(
        "640 samples" in t and "p = 0.012 (bootstrap, 640 shared samples)" in t and "python evaluate.py method=blink" in t for t in titles
    )
    assert any(t == "lost in the print" for t in titles)
    assert any("failed: out of memory &lt;here&gt;" in t and "thresholds=no_drop" in t for t in titles)


def test_failures_footnotes_commands_and_provenance_are_said(text):
    part = section(text, "blink_table2--scale-llava-1.5")
    assert "1 of 3 runs failed" in part and "w/o Drop on mosaic: out of memory &lt;here&gt;" in part
    assert "discrepancy:</span> The text says 3 &amp; the cell &lt; 2." in part
    assert "<code>python sweep.py table=blink_table2</code>" in part and part.count("<code>python evaluate.py") == 3
    assert "Written 2026-11-21 10:00:00 with commit <code>0123456789</code>. Took 1 h 02 min." in part and "torch 2.13.0" in part
    assert "<li>Measured with commit 07272d01fc+changes.</li>" in part and "fewer questions" not in part
    assert 'href="blink_table2/scale-llava-1.5/table.csv"' in part and "table.tex" not in part


def test_runs_on_fewer_questions_and_of_other_commits_are_said_below_the_table(tmp_path):
    document = table()
    document["rows"][1]["runs"]["mosaic"] |= {"samples": 612, "commit": "f" * 40}
    text = html.page(document, tmp_path).read_text(encoding="utf-8")
    assert "<li>Measured with commits 07272d01fc+changes, ffffffffff.</li>" in text
    assert "<li>Measured on fewer questions: Blink &lt;full&gt; &amp; τ (612 of 640).</li>" in text


def test_intervals_share_a_scale_within_a_column():
    """12.5 to 100 around 56.25, no difference at 50 and the farthest end at 96."""
    (line,) = entries.entry(table(), Path("x/m"), Path("x"), [])["differences"]
    assert line["at"] == {"low": 55.75, "delta": 75.88, "high": 96.0}
    assert (line["interval"], line["p"], line["n"], line["significant"]) == (["+12.50", "+100.00"], "0.012", 640, True)


def test_each_claim_has_its_numbers_and_one_plain_verdict(text):
    part = section(text, "blink_fig7--scale-llava-1.5")
    verdicts = re.findall(r'class="verdict (\w+)">([^<]*)</span>\s*<p>([^<]*)', part)
    assert verdicts == [
        ("yes", "✓ holds here", "Single layers 7-26 beat 4-6."),
        ("no", "✗ does not hold here", "Leaving out 4-9 helps."),
        ("open", "? cannot be told here", "14-18 matter."),
    ]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part) == [
        ("7-26 &lt;mean&gt;", "1144"),
        ("4-6", "0.1235"),
        ("change", "-3"),
        ("change", "none"),
    ]
    assert "<strong>The paper says:</strong> Excluding 4-9 helps." in part


def test_a_recipe_shows_the_papers_settings_beside_ours_and_measures_nothing(text):
    part = section(text, "blink_table4--none")
    assert body(part) == [["# GPUs", "2", "2"], ["Data type", "bfloat16", ""]]
    assert "settings of this project" in part and "measured on" not in part


def test_figures_of_a_table_are_shown_below_it_where_drawn_from_its_points_and_linked_where_they_stand_alone(text, seen):
    one, two = (section(text, f"blink_table2--{model}") for model in ("scale-llava-1.5", "llava_1_5_7b"))
    assert "blink_table2--scale-llava-1.5--blink_fig3--blink_fig3" in seen.ids
    assert re.findall(r'<a href="#(blink_fig[^"]*)"', one) == ["blink_fig7--scale-llava-1.5"]
    assert re.findall(r'<a href="#(blink_fig[^"]*)"', two) == ["blink_fig3--llava_1_5_7b"]  # never another model's


# order, navigation, what is absent


def test_sections_stand_by_paper_tables_first_by_number_the_scale_model_first(seen):
    sections = [attributes["id"] for tag, attributes in seen.tags if tag == "section" and "--blink_fig3--" not in attributes["id"]]
    assert sections == [
        "blink_table2--scale-llava-1.5",
        "blink_table2--scale-llava-1.5-limit-24",
        "blink_table2--llava_1_5_7b",
        "blink_table4--none",
        "blink_table10--llava_1_5_7b",
        "blink_fig3--llava_1_5_7b",
        "blink_fig7--scale-llava-1.5",
        "parity--scale-llava-1.5",
    ]


def test_every_section_is_reached_and_every_link_leads_somewhere(root, seen):
    inner = {link[1:] for link in seen.links if link.startswith("#")}
    assert inner <= set(seen.ids)
    assert {attributes["id"] for tag, attributes in seen.tags if tag == "section"} - inner == {
        "blink_table2--scale-llava-1.5--blink_fig3--blink_fig3"
    }
    assert all((root / link).is_file() for link in seen.links if not link.startswith("#"))


def test_what_a_paper_has_and_the_report_lacks_is_named_and_concepts_are_not(text):
    absent = re.search(r"Blink, not in this report: (.*?)</p>", text)[1]
    assert "Table 3" in absent and "Figure 2" in absent
    assert not {"Table 2", "Table 4", "Figure 7", "Figure 1", "Figure 5"} & set(absent.rstrip(".").split(", "))


def test_the_overview_counts_runs_failures_and_verdicts_by_model(text):
    overview = text[text.index('class="overview') : text.index("</table>")]
    line = re.search(r"Blink, Table 2: key modules.*?</tr>", overview, re.S)[0]
    assert [re.sub(r"<[^>]*>|\s+", " ", cell).split() for cell in line.split("</td>")[:2]][1] == ["2", "runs", ",", "1", "failed"]
    assert "1 holds" in overview and "1 does not hold" in overview and "1 cannot be told" in overview


def test_headings_never_skip_a_level_and_tables_name_their_scopes(seen):
    assert seen.headings[0] == 1 and seen.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert all(attributes.get("scope") in ("row", "col", "colgroup") for tag, attributes in seen.tags if tag == "th")


# self-contained, escaped


def test_nothing_is_loaded_from_anywhere(text, seen):
    assert all(address.startswith(("#", "data:")) for address in seen.loads)
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import|<script|<iframe|onclick", text)
    assert not [link for link in seen.links if "://" in link]


def test_ids_are_unique_although_the_same_picture_stands_there_four_times(text, seen):
    assert len(seen.ids) == len(set(seen.ids))
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
    assert len([name for name in seen.ids if name.endswith("-clip")]) == 4 and set(used) <= set(seen.ids)


def test_words_of_documents_are_text_and_never_markup(text):
    assert "<full>" not in text and "<here>" not in text and "<its>" not in text and "key modules <b>" not in text
    assert "&lt;its&gt; error" in text and 'aria-label="Blink, Table 2: key modules &lt;b&gt;"' in text


# pages of one


def test_a_page_opens_with_the_idea_of_its_paper_and_shows_embedded_figures_and_what_went_wrong(tmp_path):
    folder = put(tmp_path, figure())
    lost = figure("blink_fig3", pictures={"gone": ["gone.svg"]}, error="no region is annotated <there>", claims=[])
    out = html.page(table(), tmp_path / "run", [(figure(), folder), (lost, tmp_path / "elsewhere")])
    text = out.read_text(encoding="utf-8")
    assert out == tmp_path / "run" / "page.html"
    assert text.index("which patch of the image") < text.index("<table")
    assert text.count('role="img"') == 2 and "Left out: no region is annotated &lt;there&gt;" in text and "Not there: gone" in text
    assert 'href="../blink_fig7/scale-llava-1.5/curve.svg"' in text
    assert 'href="page.html"' not in html.page(table(), tmp_path / "run").read_text(encoding="utf-8")  # now that it is there


def test_the_same_document_gives_the_same_bytes(root, text):
    assert html.gather(root).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("broken", ["{", "[]", '{"name": "x", "title": "old", "rows": []}'])
def test_a_document_that_cannot_be_read_is_named_in_one_line(tmp_path, broken):
    (tmp_path / "x" / "m").mkdir(parents=True)
    (tmp_path / "x" / "m" / "table.json").write_text(broken, encoding="utf-8")
    message = "x/m/table.json is no table of this version; remove it"
    with pytest.raises(UserError, match=message):
        html.gather(tmp_path)
    put(tmp_path, figure())
    text = html.gather(tmp_path).read_text(encoding="utf-8")  # the others are there all the same
    assert message in text and 'id="blink_fig7--scale-llava-1.5"' in text


def test_an_empty_folder_is_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"holds no table and no figure; measure one first: python sweep.py table="):
        html.gather(tmp_path)
