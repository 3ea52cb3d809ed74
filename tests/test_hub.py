"""A hub that cannot be reached: one line at once, from the cache where something is there; and one that can be is asked as ever."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants
from support.refusals import refusal

from blink_exp import hub
from blink_exp.backbone import weights
from blink_exp.evaluation.tokens import llm_depth

NOBODY = "http://127.0.0.1:9"  # the port of discard: nothing listens


@pytest.fixture
def online(monkeypatch, tmp_path):
    """As without HF_HUB_OFFLINE=1, which the tests set; with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.check_connection.cache_clear()
    yield
    hub.check_connection.cache_clear()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that the hub's library sleeps between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", seconds.append)
    return seconds


def test_a_hub_that_nobody_answers_for_is_one_line_without_a_second_attempt(online, waits, monkeypatch, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    line = refusal(lambda: weights.find_config("llava-hf/llava-1.5-7b-hf", "main"))
    assert line.startswith("model.path=llava-hf/llava-1.5-7b-hf (model.revision=main) is not in the cache, and the hub is offline")
    assert constants.HF_HUB_OFFLINE and not waits and not caplog.records
    assert llm_depth("llava-hf/llava-1.5-7b-hf") is None
    assert not waits


def test_a_hub_that_answers_stays_in_use_and_is_asked_once(online, monkeypatch):
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(503)  # busy, but there
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub.check_connection()
        hub.check_connection()
    finally:
        server.shutdown()
        server.server_close()
    assert len(asked) == 1 and not constants.HF_HUB_OFFLINE
