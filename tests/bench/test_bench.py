"""The frame of the benchmarks: ratios from what was measured, bars that can be missed, and one line for what a user can cure."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch

from bench import __main__ as command
from bench import meters, report, timing
from blink_exp.errors import UserError


class Clock:
    """Time that passes only where a piece of work says so."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, takes: list[float]):
        left = iter(takes)

        def run():
            self.order.append(name)
            self.now += next(left)

        return run


def test_a_ratio_is_the_median_of_pairs_and_not_the_ratio_of_medians():
    clock = Clock()
    # after one round of warming up (100 s, 1 s), the pairs are 2/1, 30/10, 8/2: the machine was slow in the second
    comparison = timing.interleaved(clock.work("a", [100, 2, 30, 8]), clock.work("b", [1, 1, 10, 2]), 3, warm=1, clock=clock)
    assert comparison.first == 8 and comparison.second == 2
    assert comparison.ratio == 3  # of 2, 3, 4; the medians' ratio would be 4
    assert comparison.spread == pytest.approx(0.5 / 3)  # the middle half is 2.5 to 3.5


def test_ways_take_turns_and_every_other_round_runs_backwards():
    clock = Clock()
    timing.rounds({name: clock.work(name, [1] * 4) for name in "abc"}, 3, warm=1, clock=clock)
    assert "".join(clock.order) == "cba" + "abc" + "cba" + "abc"


def test_warming_up_does_not_count_and_nothing_to_time_is_refused():
    clock = Clock()
    assert timing.median_seconds(clock.work("a", [50, 3]), 1, warm=1, clock=clock) == 3
    with pytest.raises(ValueError, match="repeats=0"):
        timing.rounds({}, 0)


@pytest.mark.parametrize(
    "value, at_most, met, verdict",
    [(1.02, True, True, "met"), (1.03, True, False, "MISSED"), (1.03, False, True, "met"), (None, True, None, "not measured")],
)
def test_a_bar_is_judged_by_what_was_measured_and_a_missed_one_says_so(value, at_most, met, verdict, capsys):
    line = report.bar("scan / untouched", value, 1.02, at_most)
    assert line["met"] is met
    report.show(report.result("t", [{"a": 1}], [line]))
    printed = capsys.readouterr().out
    assert f"{verdict}: scan / untouched" in printed
    assert ("MISSED" in printed) == (met is False)


def test_a_cell_that_was_not_measured_stays_empty_and_columns_keep_their_order():
    result = report.result("t", [{"b": 1, "a": 0.12345}, {"c": 12345.6, "a": None}])
    assert result["columns"] == ["b", "a", "c"]
    assert report.markdown(result).splitlines()[2:] == ["| 1 | 0.123 |  |", "|  |  | 12,345.6 |"]


def test_a_result_is_written_whole_with_where_it_was_measured(tmp_path, monkeypatch, capsys):
    made = type("Bench", (), {"measure": staticmethod(lambda size="default", turns=1: report.result("t", [{"a": size, "b": turns}]))})
    monkeypatch.setattr(importlib, "import_module", lambda name: made)
    assert command.main(["startup", "size=small", "turns=3", f"out={tmp_path}"]) == 0
    document = json.loads((tmp_path / "startup.json").read_text(encoding="utf-8"))
    assert document["rows"] == [{"a": "small", "b": "3"}]
    assert document["settings"] == {"size": "small", "turns": "3"}
    assert document["where"]["versions"]["torch"] == torch.__version__ and document["where"]["date"].endswith("UTC")
    page = (tmp_path / "startup.md").read_text(encoding="utf-8")
    assert page.startswith("| a | b |\n|---|---:|\n| small | 3 |") and document["where"]["date"] in page
    assert "toy" in document["notes"][-1]  # bars of a toy must not be taken for bars
    assert "startup.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["method"], "bench method is not there; did you mean methods"),
        (["startup", "size=huge"], "size=huge is not known; use one of: default, small"),
        (["startup", "device=cpu"], "device=cpu is no setting of bench startup; it has: size, repeats, out"),
        (["methods", "repeats=none"], "repeats=none times nothing"),
        (["methods", "clock=sun"], "clock=sun is not known"),
        (["methods", "clock=cpu", "device=cuda"], "clock=cpu would not see the work of device=cuda"),
        (["gpu", "device=cpu"], "device=cpu cannot hold the true shapes"),
        (["gpu", "size=small", "device=cpu", "dtype=int8"], "dtype=int8 is not known"),
        (["gpu", "size=small", "device=cpu", "compiled=some"], "compiled=some is not known"),
        (["gpu", "size=small", "device=cpu", "models=7b,70b"], "models=7b,70b is not known"),
    ],
)
def test_what_a_user_can_cure_is_one_line_and_exit_code_2(words, message, capsys):
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("words", [["gpu"], ["methods", "device=cuda"]])
def test_without_cuda_a_gpu_benchmark_ends_with_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: device=cuda is not there") and captured.err.count("\n") == 1 and not captured.out


def test_all_benchmarks_but_the_gpu_one_run_by_default_and_each_has_a_title():
    assert command.parse([])[0] == [name for name in command.BENCHES if name != "gpu"]
    assert command.parse(["gpu", "a=b=c"]) == (["gpu"], {"a": "b=c"})
    with pytest.raises(UserError):
        command.parse(["all"])
    for name in command.BENCHES:
        module = importlib.import_module(f"bench.{name}")
        assert isinstance(module.TITLE, str) and callable(module.measure)


def test_peak_memory_is_that_of_the_work_alone():
    held = torch.ones(5_000_000)  # there before: not counted

    def work():
        a = torch.ones(500_000)  # 2 MB
        b = a + 1  # 4 MB
        del a
        c = b + held[:500_000]  # 4 MB: a's place is free again
        return torch.cat([b, c])  # 8 MB

    assert meters.peak_bytes(work) == 8_000_000


def test_flops_of_a_layer_by_hand_and_however_the_prompt_is_cut():
    # 2 queries behind 3 keys, width 1, mlp 1: 8*2 projections + 4*(4+5) attention + 6*2 mlp
    assert meters.layer_flops(2, 3, 1, 1) == 16 + 36 + 12
    assert meters.layer_flops(70, 0, 8, 16) == meters.layer_flops(50, 0, 8, 16) + meters.layer_flops(20, 50, 8, 16)


def test_reads_are_counted_where_the_host_needs_numbers():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with meters.HostReads() as reads:
        x.sum().item()
        x.tolist()
        if x[0] == 0:
            x = x + 1
        x[mask]
        assert reads.count == 4
        (x * 2)[1:].mean()  # stays where it is
        x[torch.tensor([0, 1])]
        assert reads.count == 4
    with meters.HostReads("cuda") as elsewhere:
        x.tolist()
    assert elsewhere.count == 0


def test_a_profile_names_the_operators_with_the_most_time():
    a = torch.randn(300, 300)
    operators = meters.summary(lambda: [a @ a for _ in range(20)], most=2)
    assert operators[0]["operator"] == "aten::mm" and operators[0]["calls"] == 20 and len(operators) == 2
    assert 0.5 < operators[0]["share"] <= 1


def test_provenance_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.provenance()["commit"] is None
    assert report.provenance()["versions"]["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]


def test_the_help_says_what_each_benchmark_measures(capsys):
    assert command.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*command.BENCHES, *command.ALONE):
        assert any(line.startswith(f"{name} ") and line.endswith(".") for line in lines), name
