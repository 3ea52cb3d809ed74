"""A cluster of Ray by its address, without Ray: an address where nothing listens, a head node that is gone, a token that is missing."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from support.refusals import refusal

from blink_exp.studies import ray_cluster


def test_an_address_of_ray_where_nothing_listens_is_refused_at_once():
    """Ray itself tries for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for good in (None, "auto", address, f"ray://{address}"):
            ray_cluster.check_address(good)
    message = refusal(lambda: ray_cluster.check_address(address))
    assert message.startswith(f"hydra.launcher.ray.init.address={address}: nothing answers there") and "ray start" in message
    assert "nothing answers" in refusal(lambda: ray_cluster.check_address("127.0.0.1:70000"))


def test_a_head_node_of_ray_that_is_gone_is_an_error_before_ray_ends_the_process(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ray_cluster, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = ray_cluster.HeadNode(f"127.0.0.1:{server.getsockname()[1]}")
        now[0] = 100.0
        node.check()
    now[0] = 130.0
    node.check()  # it may come back
    now[0] = 140.0
    with pytest.raises(ConnectionError, match="is gone"):
        node.check()
    assert ray_cluster.GONE + 2 * ray_cluster.PATIENCE < 60


def test_where_a_token_of_ray_may_be_missing_the_cure_says_so():
    assert "RAY_AUTH_MODE=token" in ray_cluster.cure({"address": "10.0.0.1:6379"})
    assert "ray status" in ray_cluster.cure({"address": "auto"})
