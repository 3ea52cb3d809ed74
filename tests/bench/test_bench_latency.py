"""The latency of an answer is the sum of its stages, beside that of the untouched model."""

from __future__ import annotations

import pytest

from bench import latency
from blink_exp.errors import UserError

SECONDS = {"tower": 1.0, "selection": 2.0, "first": 3.0, "answer": 7.0}


@pytest.fixture
def rounds(monkeypatch):
    """The untouched model takes the seconds above, a method a second less to choose and twice as long for all else."""

    def stand_in(works, repeats, clock):
        for work in works.values():
            work()  # every stage of every method runs
        stages = {key: key.split()[0] for key in works}
        slow = {key: latency.UNTOUCHED not in key for key in works}
        return {key: [1.0 if slow[key] and s == "selection" else SECONDS[s] * (1 + slow[key])] for key, s in stages.items()}

    monkeypatch.setattr(latency, "rounds", stand_in)


def test_first_token_and_answer_are_sums_of_stages(rounds):
    result = latency.measure("small", repeats="1", method="visionzip,dart", tokens="40", decode="4")
    whole, *rows = result["rows"]
    assert (whole["method"], whole["tokens a layer"], whole["first token ms"], whole["answer ms"]) == ("none, SDPA", 192, 6000, 10000)
    for row in rows:
        assert (row["first token ms"], row["answer ms"], row["decode ms/token"]) == (9000, 17000, 2000)
        assert row["first token / none"] == pytest.approx(1.5) and row["answer / none"] == pytest.approx(1.7)
    assert rows[0]["tokens a layer"] == 52 and rows[1]["tokens a layer"] < 45  # twelve newlines stay beside VisionZip's 40
    assert result["notes"][-1].endswith("first token: visionzip, dart.")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"method": "visionzap"}, "method=visionzap is not timed here"),
        ({"tokens": "many"}, "tokens=many is no number"),
        ({"tokens": "1", "method": "fastv"}, "tokens=1 is outside 5 to 180"),
        ({"decode": "0"}, "decode=0 is no number of tokens"),
    ],
)
def test_bad_settings_are_one_line(rounds, words, line):
    with pytest.raises(UserError, match=line):
        latency.measure("small", **words)
