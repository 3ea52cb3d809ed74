"""Keys of services (OPENAI_API_KEY, WANDB_API_KEY, HF_TOKEN): told by their variables and by their form, and masked in what is printed.

A key comes from the environment and is read by whoever needs it; nothing here keeps one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)  # names of variables that hold a key
SHORTEST = 8  # characters; a shorter value is a word such as "none", which texts contain anyway
FORMS = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{20,}"  # OpenAI and those that follow it
    r"|hf_[A-Za-z0-9]{20,}|wandb_v1_\w{20,}|local-[0-9a-f]{40}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})"
)
LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # user:password of an address
MASK = "[key]"


def of_environment() -> dict[str, str]:
    """{value: variable} of the keys in the environment. A path to a file of credentials is no key."""
    named = {value: name for name, value in os.environ.items() if VARIABLE.search(name) and len(value.strip()) >= SHORTEST}
    return {value.strip(): name for value, name in named.items() if not os.path.exists(value)}


def masked(text: str) -> str:
    """``text`` with the name of its variable for every key of the environment, and ``MASK`` for what has the form of one."""
    for value, name in sorted(of_environment().items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"[{name}]")
    return LOGIN.sub(MASK, FORMS.sub(MASK, text))


def holds_key(text: str, known: Iterable[str] = ()) -> bool:
    """Whether a text holds one of the ``known`` keys, or what has the form of one."""
    return bool(FORMS.search(text) or LOGIN.search(text)) or any(value in text for value in known)
