"""What README.md and docs/ name is there: files, links, modules, presets; and settings answer as docs/settings.md says they do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import scripts
from support.scripts import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "blink_exp" / "scale_model" / "assets" / "README.md"]
GROUPS = {p.relative_to(ROOT / "conf").as_posix(): {f.stem for f in p.glob("*.yaml")} for p in (ROOT / "conf").rglob("*") if p.is_dir()}
MINE = ("saliency", "tokensr", "method", "benchmark", "table")
EXAMPLES = {
    *(f"{group}=mine" for group in MINE),
    "thresholds=mild",
    "figure=NAME",
    "hydra/launcher=NAME",
    "tokensr=FOLDER",
    "method=blonk",
}  # of a reader's own, or wrong
OTHER_PACKAGES = {"hydra/launcher=basic"}
ANSWERS = re.findall(r"^\$ python evaluate\.py (.+)\n(error: .+)$", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), flags=re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = {path.rstrip(".") for path in re.findall(r"(?<![\w/])(?:blink_exp|tests|docs|conf|bench)/[\w./-]+", text)}
    assert sorted(path for path in named if not path.endswith("mine.yaml") and not (ROOT / path).exists()) == []
    modules = {name.rstrip(".") for name in re.findall(r"\b(?:python -m|import) ((?:blink_exp|bench)[\w.]*)", text)}
    files = {name: ROOT.joinpath(*name.split(".")) for name in modules}
    assert sorted(name for name, file in files.items() if not file.with_suffix(".py").exists() and not file.is_dir()) == []


def test_presets_that_the_pages_name_exist():
    missing = set()
    for page in PAGES:
        for group, names in re.findall(r"(?<![\w./])([a-z_/]+)=((?:[\w-]+,)*[\w-]+)(?!\.?[\w=(-])", page.read_text(encoding="utf-8")):
            if group in GROUPS:
                missing |= {f"{group}={name}" for name in names.split(",") if name not in GROUPS[group] | {"null"}}
    assert missing - EXAMPLES - OTHER_PACKAGES == set()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "answer"), ANSWERS)
def test_settings_answer_as_the_page_says(words, answer):
    done = scripts.run(["evaluate.py", *words.split()])
    assert (done.returncode, done.stderr.strip()) == (2, answer)


def test_the_page_of_settings_has_answers():
    assert len(ANSWERS) >= 4


def test_sections_that_the_readme_links_to_are_there():
    """Inside docs/ the strict build of the site looks after this."""
    links = re.findall(r"\]\((docs/\w+\.md)#([\w-]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 10
    for page, section in links:
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
        assert section in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page}#{section}"
