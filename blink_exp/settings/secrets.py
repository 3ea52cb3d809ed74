"""Refuses keys of services that are given as settings: they would be stored with the config, logged and shown in reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from blink_exp.errors import UserError
from blink_exp.keys import VARIABLE, holds_key, of_environment
from blink_exp.settings.nodes import entries

KEY = re.compile(r"(^|_)(api_?key|key|auth|secret|password|passwd|(access|auth|api|hf|bearer|hub)_?token)$|^token$", re.IGNORECASE)
OF_ENVIRONMENT = re.compile(r"oc\.env:\s*['\"]?(\w+)")
KEY_VARIABLE = "key_variable"  # the setting that names a variable, where a key is pasted by mistake
PASTED = re.compile(r"(sk|hf|pk)[-_].*|(?![A-Z_][A-Z0-9_]*$).{20,}", re.DOTALL)
CURES = {"judge": "OPENAI_API_KEY", "logger": "WANDB_API_KEY", "model": "HF_TOKEN", "benchmark": "HF_TOKEN", "data": "HF_TOKEN"}


def check_words(argv: Sequence[str]) -> None:
    """Raises UserError for an argument of the command line that gives a key."""
    known = of_environment()
    for word in argv:
        name, equals, value = word.partition("=")
        if equals:
            _check(name.lstrip("+~"), name.rpartition(".")[2].lstrip("+~"), value, known)


def check_config(config: Any) -> None:
    """Raises UserError for an entry of a composed config that gives a key, or takes one from the environment."""
    known = of_environment()
    for entry in entries(config):
        for value in (entry.raw, entry.value):
            if isinstance(value, str):
                _check(entry.name, str(entry.key), value, known)


def _check(name: str, key: str, value: str, known: Iterable[str]) -> None:
    taken = any(VARIABLE.search(variable) for variable in OF_ENVIRONMENT.findall(value))
    given = KEY.search(key) and value.strip("'\" ") not in ("", "null", "None")
    if taken or given or holds_key(value, known) or (key == KEY_VARIABLE and PASTED.fullmatch(value.strip("'\""))):
        variable = CURES.get(name.partition(".")[0], "the variable that its library reads")
        if "://" in value and "@" in value:
            variable = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD," if name.startswith("logger") else variable
        raise UserError(
            f"{name} gives a key, which would be stored with the settings; leave it away and export {variable} in the environment instead"
        )
