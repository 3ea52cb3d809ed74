"""A cluster of Ray, where Ray leaves something to do: whether its address answers, whether its head node is still there."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from blink_exp.errors import UserError, flat

PATIENCE = 5.0  # seconds that a node has to take a connection, and between two looks at it
GONE = 35.0  # seconds after which a node that takes none is gone


def check_address(address: object) -> None:
    """Raises UserError if nothing listens at HOST:PORT, the address of a Ray cluster: Ray itself tries for minutes."""
    _, colon, port = str(address).rpartition(":")
    if not isinstance(address, str) or not colon or not port.isdecimal():
        return  # null, auto, or for Ray to judge
    if (problem := unreachable(address)) is not None:
        raise UserError(
            f"hydra.launcher.ray.init.address={address}: nothing answers there ({problem}); give the address that ray start"
            " printed (its --port, 6379 if none was given), auto on the head node, or null for a cluster of this machine"
        )


def cure(settings: Mapping[str, object]) -> str:
    """What to do where ``ray.init`` failed. It sends a cluster's token to an address only if it is told to."""
    if settings.get("address") in (None, "auto"):
        return "see ray status, or use another launcher"
    return (
        "if that is the address that ray start printed, the cluster wants its token: set RAY_AUTH_MODE=token, with the head node's"
        " ~/.ray/auth_token on this machine too"
    )


def unreachable(address: str) -> str | None:
    """Why no connection to HOST:PORT is made; None if one is."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError, ValueError) as error:
        return flat(error, 120)
    return None


class HeadNode:
    """The head node of the Ray cluster at ``address``, while tasks of it are waited for. Ray ends a process whose head node has been gone
    for 60 seconds, without an exception."""

    def __init__(self, address: str) -> None:
        self.address, self.answered = address, time.monotonic()

    def check(self) -> None:
        """Raises ConnectionError if the node has not answered for ``GONE`` seconds."""
        if (problem := unreachable(self.address)) is None:
            self.answered = time.monotonic()
        elif time.monotonic() - self.answered > GONE:
            raise ConnectionError(f"the head node of the Ray cluster, {self.address}, is gone ({problem})")
