"""A method with its settings, of no model yet."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blink_exp.errors import UserError, flat, nearest
from blink_exp.settings import groups
from blink_exp.settings.budgets import check_budget
from blink_exp.settings.check import check_values, fields, format_value, refusal, unknown
from blink_exp.settings.compose import composed_plain
from blink_exp.settings.folders import CONF
from blink_exp.settings.presets import presets
from blink_exp.settings.targets import BY_TARGET

Node = dict[str, Any]  # of the composed settings: plain Python by setting, of the types that the schema says

PRESETS = {  # {name in Python: preset of conf/method}
    **{"Untouched": "none", "Blink": "blink", "BlinkInterp": "blink_interp", "HERO": "hero", "FasterVLM": "fastervlm", "HiRED": "hired"},
    **{"GlobalCom2": "globalcom2", "PruMergePlus": "prumerge_plus", "VisionZip": "visionzip", "DivPrune": "divprune"},
    **{"CDPruner": "cdpruner", "VisPruner": "vispruner", "Thumbnail": "thumbnail", "ThumbnailPlusTile": "thumbnail_plus_tile"},
    **{"FastV": "fastv", "SparseVLM": "sparsevlm", "PyramidDrop": "pyramiddrop", "DART": "dart"},
    **{"Random": "random", "Uniform": "uniform", "Downsample": "downsample"},
    **{"TwoViews": "two_views", "Crop": "crop", "ViCrop": "vicrop", "Pair": "pair", "BlinkHERO": "blink_hero"},
}
GROUPS = {"layers": groups.Layers, "resolution": groups.Resolution, "tokensr": groups.TokenSR, "options": groups.HeroOptions}
HALVES = {  # of a pair
    "pruner": "the method that chooses the tokens which enter the LLM, or its preset's name",
    "policy": "the method that works on them inside the LLM, or its preset's name",
}
TYPES = {  # of settings whose schema allows several types
    "tokens": "int | str | None",
    "layers": "str | int | Sequence[int] | Mapping[str, Any]",
    "resolution": "str | Mapping[str, Any]",
    "tokensr": "str | Path | Mapping[str, Any]",
    "options": "Mapping[str, Any]",
    "schedule": "int | Sequence[int] | None",
    "pruner": "MethodChoice | str",
    "policy": "MethodChoice | str",
}


class _Documented(type):
    """Gives ``inspect.signature`` and ``help`` the settings of a method, with the values of conf/ as defaults and its comments."""

    @property
    def __doc__(cls) -> str | None:  # type: ignore[override]
        preset = cls.__dict__.get("preset")
        return cls.__dict__.get("__doc__") if preset is None else documented(preset)

    @property
    def __signature__(cls) -> inspect.Signature:
        if "preset" not in cls.__dict__:
            raise AttributeError("__signature__")
        return inspect.Signature(
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
                for name, (kind, value) in settings_of(cls.__dict__["preset"]).items()
            ]
        )


class MethodChoice(metaclass=_Documented):
    """A method with its settings, of no model yet: what ``VLM.answer``, ``VLM.view`` and ``attach`` take.

    The keyword arguments are the settings of conf/method/``preset``.yaml, whose values are the defaults. A group of settings takes a
    mapping of those that differ, and what names one: ``layers=range(12, 19)`` or ``"12-18"``, ``resolution="cycle"`` (a preset),
    ``tokensr="interp"`` or a folder of modules; ``pruner`` and ``policy`` of a ``Pair`` take methods or presets' names.

    Raises UserError for an unknown setting, a wrong value, or a budget that is set twice.
    """

    preset: ClassVar[str]

    def __init__(self, *wrong: Any, **settings: Any):
        if wrong:
            name, first = type(self).__name__, next(iter(settings_of(self.preset)), "")
            raise UserError(f"{name}({flat(wrong[0], 40)}) has no name for its setting; write {name}({first}=...), see help({name})")
        self.settings = settings
        self.node = self._node()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.settings.items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.node == other.node

    __hash__ = None  # type: ignore[assignment]

    def _node(self) -> Node:
        """The method's node of the composed settings, as Hydra would have it for the same values."""
        name, node = type(self).__name__, defaults(self.preset)
        schema = BY_TARGET[node["_target_"]]
        for key, given in self.settings.items():
            if key not in fields(schema):
                raise UserError(unknown(f"{name}.{key}", fields(schema)))
            if key in HALVES:
                node[key] = _half(f"{name}.{key}", given)
            elif isinstance(node[key], dict):
                node[key] = _group(name, key, node[key], given)
            else:
                node |= _checked(schema, f"{name}.", {key: given})
        check_budget([f"method.{key}={format_value(node[key])}" for key in self.settings if key not in HALVES])
        return node


def defaults(preset: str) -> Node:
    """The node of a preset of conf/method with the values of the config groups that it refers to."""
    return copy.deepcopy(_composed(f"method={preset}")["method"])


def settings_of(preset: str) -> dict[str, tuple[str, Any]]:
    """{setting of a preset of conf/method: (its type as source text, its value)}."""
    node = defaults(preset)
    out = {}
    for name, field in fields(BY_TARGET[node["_target_"]]).items():
        kind = str(field.type)
        out[name] = (TYPES.get(name, kind) if kind == "Any" else kind.replace("list[", "Sequence["), node[name])
    return out


def described(preset: str) -> str:
    """What the header of conf/method/``preset``.yaml says."""
    lines = (CONF / "method" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    first = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), preset)
    return first.partition(": python ")[0].partition(" Its values come from")[0]


@functools.cache
def documented(preset: str) -> str:
    """The docstring of the constructor of a preset of conf/method."""
    from blink_exp.settings.reference import method_settings  # for help() alone: it reads the comments of all of conf/

    lines = [f"{described(preset)}", "", f"conf/method/{preset}.yaml; docs/methods.md."]
    rows = {name: (HALVES.get(name, text), word) for name, (text, word) in method_settings(preset).items()}
    if rows:
        lines += ["", "Args:"]
        lines += [f"    {name}: {text}{f' (command line: {word})' if word and word != name else ''}" for name, (text, word) in rows.items()]
    return "\n".join(lines)


@functools.cache
def _composed(word: str) -> Node:
    return composed_plain("evaluate", [word])


def _checked(schema: type, prefix: str, values: Mapping[str, Any]) -> Node:
    """``values`` as plain Python of the types of ``schema``. Raises UserError for the first that is wrong."""
    out: Node = {}
    for key, value in values.items():
        try:
            checked = check_values(schema, prefix, {key: _plain(value)})[key]
        except OmegaConfBaseException:
            raise UserError(
                refusal(schema, key, f"{prefix}{key}", flat(value, 80))
                if key in fields(schema)
                else unknown(f"{prefix}{key}", fields(schema))
            ) from None
        out[key] = OmegaConf.to_container(checked) if OmegaConf.is_config(checked) else checked
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, range | tuple | set | frozenset):
        same = len({type(entry) for entry in value}) == 1  # others have no order, and are refused for what they are
        return sorted(value) if same and isinstance(value, set | frozenset) else list(value)
    return str(value) if isinstance(value, Path) else value


def _group(name: str, key: str, values: Node, given: Any) -> Node:
    """A group of settings with what is ``given``: a mapping of some of them, or the name or the one value that stands for it."""
    if key == "layers" and not isinstance(given, Mapping):
        given = {"indices": given}
    elif key == "tokensr" and isinstance(given, str | Path):
        given = _composed(f"{key}={given}")[key] if str(given) in presets(key) else {"path": given}
    elif key == "resolution" and isinstance(given, str):
        given = _composed(f"{key}={given}")[key]
    if not isinstance(given, Mapping):
        raise UserError(f"{name}.{key} must be a mapping of its settings ({', '.join(values)}), got {flat(given, 80)}")
    return values | _checked(GROUPS[key], f"{name}.{key}.", given)


def _half(name: str, given: Any) -> Node:
    if isinstance(given, str) and given not in presets("method"):
        raise UserError(f"{name}={flat(given, 80)} is not a preset; {nearest(given, presets('method'))}")
    if not isinstance(given, MethodChoice | str):
        raise UserError(f"{name} must be a method such as HERO() or FastV(), or the name of a preset, got {flat(given, 80)}")
    return {**(defaults(given) if isinstance(given, str) else given.node), "_partial_": True}
