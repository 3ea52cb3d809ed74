"""The judge, against a local server that also fails, stalls and talks nonsense."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from PIL import Image
from support.scripts import ROOT

from blink_exp.errors import UserError
from blink_exp.judge import UNPARSED, Judge, message

pytest.importorskip("openai")
KEY = "sk-test-5f1c0ffee"
CONF = ROOT / "conf" / "judge"
QUICK = {"retry-after-ms": "1"}  # what spares the tests the backoff


class Server(ThreadingHTTPServer):
    """Replies by ``rule``, a function of (request number, its JSON) that gives (status, headers, body); a text is a good reply."""

    daemon_threads = True

    def __init__(self, rule):
        self.rule, self.seen, self.headers_seen, self.lock = rule, [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(asked)
            self.server.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
            number = len(self.server.seen) - 1
        reply = self.server.rule(number, asked)
        status, headers, body = (200, {}, completion(reply)) if isinstance(reply, str) else reply
        try:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body.encode()))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())
        except OSError:
            pass  # the client hung up

    def log_message(self, *_):
        pass


def completion(text):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "judge-1", "choices": [choice]})


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(rule, **settings): a server and a judge that asks it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    servers = []

    def start(rule, **settings):
        servers.append(Server(rule))
        defaults = {"model": "judge-1", "base_url": servers[-1].url, "cache": str(tmp_path / "cache"), "threads": 1, "timeout": 20}
        return servers[-1], Judge(**(defaults | settings))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def digit(text):
    return int(text) if text.strip().isdigit() else None


def ask(judge, *texts, **settings):
    return judge.verdicts([lambda text=text: message(text) for text in texts], digit, **settings)


def test_values_come_in_order_from_many_threads(serve):
    def slow_first(number, asked):
        word = asked["messages"][0]["content"]
        time.sleep(0.05 * (word == "1"))
        return word

    server, judge = serve(slow_first, threads=4)
    moved = []
    assert [v.value for v in ask(judge, *"12345678", advance=moved.append)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(moved) == 8
    assert all((a["model"], a["temperature"], a["max_tokens"]) == ("judge-1", 0.0, 1024) for a in server.seen)


def test_settings_that_a_model_refuses_can_be_left_out(serve):
    server, judge = serve(lambda number, asked: "1", temperature=None, max_tokens=None)
    ask(judge, "a")
    assert server.seen[0].keys() == {"model", "messages"}


def test_server_errors_and_rate_limits_are_tried_again(serve):
    fails = [(500, QUICK, "{}"), (429, {"Retry-After": "0", **QUICK}, "{}"), (503, QUICK, "not json")]
    server, judge = serve(lambda number, asked: fails[number] if number < 3 else "7")
    (verdict,) = ask(judge, "a")
    assert (verdict.value, verdict.why, len(server.seen)) == (7, "", 4)


def test_a_request_that_keeps_failing_is_reported_not_scored_and_not_kept(serve, tmp_path):
    server, judge = serve(lambda number, asked: (500, QUICK, "{}") if asked["messages"][0]["content"] == "a" else "7", max_retries=1)
    first, second = ask(judge, "a", "b")
    assert (first.value, second.value) == (None, 7)
    assert first.why.startswith("status 500") and not first.unparsed
    assert len(server.seen) == 3
    ask(judge, "a")  # this run knows
    assert len(server.seen) == 3
    later = Judge("judge-1", server.url, cache=str(tmp_path / "cache"), max_retries=0)
    ask(later, "a", "b")  # a later run tries again what failed, and only that
    assert len(server.seen) == 4


def test_a_server_that_stalls_is_a_failure(serve):
    def stall(number, asked):
        time.sleep(1)
        return "7"

    _, judge = serve(stall, timeout=0.2, max_retries=0)
    (verdict,) = ask(judge, "a")
    assert verdict.value is None
    assert verdict.why == "no reply within 0.2 s, tried 1 times"


def test_nonsense_is_asked_anew_once_and_then_counted(serve):
    server, judge = serve(lambda number, asked: "no idea")
    (verdict,) = ask(judge, "a")
    assert (verdict.value, verdict.text, verdict.why, len(server.seen)) == (None, "no idea", UNPARSED, 2)
    assert verdict.plain("judge-1") == {"model": "judge-1", "value": None, "text": "no idea", "why": "unparsed"}
    ask(judge, "a")
    assert len(server.seen) == 2  # both replies are kept
    ask(judge, "a", tries=3)
    assert len(server.seen) == 3


def test_a_second_reply_that_makes_sense_counts(serve):
    _, judge = serve(lambda number, asked: ["hm", "4"][number])
    assert ask(judge, "a")[0].value == 4


@pytest.mark.slow
@pytest.mark.parametrize("body", ["not json", "[]", "{}", '{"choices": []}', '"text"', completion(None)])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_body_that_is_no_completion_is_nonsense_and_not_kept(serve, body, kind):
    server, judge = serve(lambda number, asked: (200, {"Content-Type": kind}, body))
    (verdict,) = ask(judge, "a")
    assert (verdict.value, verdict.why, len(server.seen)) == (None, UNPARSED, 2)


def test_a_stopped_run_asks_only_for_what_is_missing(serve, tmp_path):
    """Stopped by a key that is refused after three replies; then one file is damaged."""
    refuse = (401, {}, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}))
    _, judge = serve(lambda number, asked: "1" if number < 3 else refuse)
    with pytest.raises(UserError) as error:
        ask(judge, *"abcde")
    assert "OPENAI_API_KEY" in str(error.value) and KEY not in str(error.value) and "\n" not in str(error.value)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3 and {f.suffix for f in files} == {".json"}
    files[0].write_text('{"text": ', encoding="utf-8")
    again, judge = serve(lambda number, asked: "2")
    assert sorted(v.value for v in ask(judge, *"abcde")) == [1, 1, 2, 2, 2]
    assert len(again.seen) == 3


def test_another_model_or_image_is_another_request(serve):
    server, judge = serve(lambda number, asked: "1")
    one, other = (Image.new("RGB", (2, 2), color) for color in ("red", "blue"))
    for image in (one, other, one):
        judge.verdict(lambda image=image: message("a", image), digit)
    assert len(server.seen) == 2
    parts = server.seen[0]["messages"][0]["content"]
    assert parts[0] == {"type": "text", "text": "a"}
    head, _, data = parts[1]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == one.tobytes()
    assert Judge("judge-2", server.url, cache=str(judge.cache)).verdict(lambda: message("a", one), digit).value == 1
    assert len(server.seen) == 3


def test_an_image_that_does_not_open_is_a_verdict(serve):
    server, judge = serve(lambda number, asked: "1")

    def broken():
        raise OSError("cannot identify\nimage file")

    assert judge.verdict(broken, digit).why == "image: cannot identify image file"
    assert not server.seen


def test_a_run_of_failures_ends_the_run(serve):
    server, judge = serve(lambda number, asked: (500, QUICK, '{"error": {"message": "out of memory"}}'), max_retries=0, give_up=3)
    with pytest.raises(UserError, match=r"3 requests in a row had no answer \(status 500.*run it again"):
        ask(judge, *"abcdefgh")
    assert len(server.seen) == 3


def test_failures_apart_do_not_end_the_run(serve):
    _, judge = serve(lambda number, asked: (500, QUICK, "{}") if number % 2 else "1", max_retries=0, give_up=2)
    assert [v.value for v in ask(judge, *"abcdefgh")] == [1, None] * 4


def test_an_endpoint_that_is_not_there_is_one_line(serve):
    server, judge = serve(lambda number, asked: "1", max_retries=0)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be reached, tried 1 times; check judge.base_url"):
        ask(judge, "a")


def test_an_unknown_model_is_one_line(serve):
    server, judge = serve(lambda number, asked: (404, {}, '{"error": {"message": "no such model"}}'))
    with pytest.raises(UserError, match="judge.model=judge-1 is not known at http"):
        ask(judge, "a")
    assert len(server.seen) == 1


def test_the_key_is_sent_and_written_nowhere(serve, tmp_path):
    """Not even where a server echoes it, in a reply, an error or as the name of its model."""
    echo = json.loads(completion(f"3 {KEY}")) | {"model": f"m {KEY}"}
    replies = [(200, {}, json.dumps(echo)), (400, {}, json.dumps({"error": {"message": f"bad\n{KEY}"}}))]
    server, judge = serve(lambda number, asked: replies[min(number, 1)])
    verdicts = judge.verdicts([lambda: message("a"), lambda: message("b")], str)
    assert server.headers_seen[0]["authorization"] == f"Bearer {KEY}"
    assert verdicts[0].value == "3 [OPENAI_API_KEY]"
    assert verdicts[1].why.startswith("status 400")
    written = "".join(f.read_text(encoding="utf-8") for f in tmp_path.rglob("*") if f.is_file())
    assert "[OPENAI_API_KEY]" in written
    shown = [written, repr(verdicts), repr(judge), repr(vars(judge)), str(list(tmp_path.rglob("*")))]
    assert not any(KEY in text for text in shown)


def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set; export the key"):
        Judge("judge-1")
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with pytest.raises(UserError, match="is not set"):
        Judge("judge-1")
    monkeypatch.setenv("OTHER", KEY)
    Judge("judge-1", key_variable="OTHER")


def test_an_endpoint_of_one_s_own_needs_no_key(serve, monkeypatch, tmp_path):
    server, _ = serve(lambda number, asked: "1")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(Judge("judge-1", server.url, cache=str(tmp_path / "other")), "a")[0].value == 1


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install"):
        Judge("judge-1")


def test_configs_make_a_judge_or_none(monkeypatch):
    from hydra.utils import instantiate

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judges = {f.stem: instantiate(yaml.safe_load(f.read_text(encoding="utf-8"))) for f in CONF.glob("*.yaml")}
    assert judges.keys() == {"none", "openai"}
    assert judges["none"] is None
    assert isinstance(judges["openai"], Judge)
    assert KEY not in (CONF / "openai.yaml").read_text(encoding="utf-8")


def test_benchmarks_are_marked_through_a_real_endpoint(serve, tmp_path):
    """MM-Vet and captions from fixture to scores: marks, one nonsense, one failure; the key is in no file that a run leaves."""
    from support.hub import build
    from support.hub_choices import MAKERS

    def rule(number, asked):
        content = asked["messages"][0]["content"]
        if isinstance(content, list):
            rows = ("object_coverage", "object_correctness", "global_coverage", "global_correctness")
            return "\n".join(f"| {row} | 4 | 2 | - |" for row in rows)
        return "0.5" if "What is x?" in content else "who knows" if "Who" in content else (500, QUICK, "{}")

    server, judge = serve(rule, max_retries=0)

    def answered(benchmark):
        records = [{"id": s.id, "image_id": s.image_id, "category": s.category, "answer": s.answer} for s in benchmark.samples()]
        return [r | {"prediction": "x", "correct": None, "fields": s.fields} for r, s in zip(records, benchmark.samples(), strict=True)]

    mmvet = build("mmvet", MAKERS["mmvet"](tmp_path / "mmvet"), judge=judge)
    marked = mmvet.judged(answered(mmvet))
    assert [r["judge"].get("why", "")[:10] for r in marked] == ["", "unparsed", "status 500"]
    asked = len(server.seen)
    assert mmvet.score(marked)["total"].value == 50
    assert mmvet.score(marked)["unjudged"].value == 2
    assert len(server.seen) == asked == 4  # scoring again costs nothing
    captions = build("captions", MAKERS["captions"](tmp_path / "captions"), judge=judge)
    compared = captions.compare(answered(captions), answered(captions))
    scores = captions.score(compared)
    first = sum(r["A"] == "ours" for r in compared)
    assert scores["ours_object_average"].value == (4 * first + 2 * (4 - first)) / 4
    mmvet.submit(marked, tmp_path)
    (tmp_path / "records.jsonl").write_text(json.dumps([marked, compared]), encoding="utf-8")
    assert not any(KEY.encode() in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
