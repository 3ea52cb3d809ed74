"""The code of docs/python.md runs, block by block."""

from __future__ import annotations

import re

import pytest
from support.scripts import ROOT

from blink_exp import Answer


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    for folder in ("docs", "blink_exp"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(blocks) == 6
    assert isinstance(names["answer"], Answer) and len(names["answers"]) == 2
    assert [step["layer"] for step in names["answer"].trace.decisions] == list(range(12, 19))
    assert (tmp_path / "outputs" / "page.html").is_file() and names["run"].visual_tokens == [48]
