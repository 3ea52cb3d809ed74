"""Whether the hub of Hugging Face can be reached. Its library tries for half a minute, with a line for every attempt."""

from __future__ import annotations

import functools

TIMEOUT = 5.0  # seconds to connect


@functools.cache
def check_connection() -> None:
    """Asks the hub once per process, before a hub id is looked up, and sets Hugging Face's offline mode where there is no answer: what is
    in the cache is used, and what is not is refused at once."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)  # any status is an answer
    except Exception:  # of the HTTP library below the hub's, which is another one in other versions
        constants.HF_HUB_OFFLINE = True
