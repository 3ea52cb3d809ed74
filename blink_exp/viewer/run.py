"""The page of one question."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from blink_exp.backbone.model import Backbone
from blink_exp.cli import CONF, one_line
from blink_exp.core.method import Method, TokenPolicy
from blink_exp.core.saliency import PatchGrid
from blink_exp.errors import UserError, nearest
from blink_exp.evaluation import results
from blink_exp.evaluation.evaluator import prepare_model
from blink_exp.files import write_json, write_text
from blink_exp.settings.compose import composed
from blink_exp.settings.doors import usual
from blink_exp.settings.words import LETTER_BY_LETTER
from blink_exp.viewer import page as pages
from blink_exp.viewer.subject import Subject, subject
from blink_exp.viewer.trace import Trace, trace


def view(cfg: DictConfig, out: Path) -> Path:
    """Writes the page of the question that ``cfg`` names (``sample``, or ``image`` and ``question``) to ``out`` and returns its path.

    The page is about ``cfg.method``; ``cfg.compare`` names presets of methods whose answers stand beside its own. Raises UserError
    where the question, the picture or a preset is not there, or ``cfg.method`` cannot run; a compared method that cannot says why.
    """
    names = compared(cfg)
    about = subject(cfg)
    backbone, method = prepare_model(cfg)
    blinks = method.policy is not None and not isinstance(method.policy, TokenPolicy)
    grid = PatchGrid(method.policy.p if blinks else cfg.grid.p, *backbone.grid)  # type: ignore[union-attr]
    followed = trace(backbone, method, about.benchmark, about.sample, about.image)
    lines = answers(cfg, names, backbone, about, followed)
    page = pages.contents(backbone, about, followed, grid, lines, command(cfg))
    path = out / "view.html"
    write_text(path, pages.render(backbone, about, followed, grid, page))
    write_json(out / "view.json", page)
    return path


def compared(cfg: DictConfig) -> list[str]:
    """The presets of ``cfg.compare``, each once. Raises UserError for one that is not there."""
    given = cfg.get("compare") or []
    names = list(dict.fromkeys([given] if isinstance(given, str) else given))
    known = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))
    for name in names:
        if name not in known:
            raise UserError(f"compare={name} is no preset of method; {nearest(str(name), known)}")
    return names


def answers(cfg: DictConfig, names: list[str], backbone: Backbone, about: Subject, followed: Trace) -> list[dict[str, Any]]:
    """A line a method: the presets ``names`` and, first if it is none of them, the one that the page is about."""
    chosen = results.plain(cfg)["method"]
    configs = {name: preset(cfg, name) for name in names}
    same = next((name for name, other in configs.items() if results.plain(other)["method"] == chosen), None)
    lines = [] if same else [pages.answer(followed.method.name, followed, True)]
    for name, other in configs.items():
        if name == same:
            lines.append(pages.answer(name, followed, True))
            continue
        try:
            found = trace(backbone, made(other, backbone), about.benchmark, about.sample, about.image)
            lines.append(pages.answer(name, found, False))
        except Exception as error:
            if not _users(error):
                raise
            lines.append(pages.unable(name, one_line(error)))
    return lines


def preset(cfg: DictConfig, name: str) -> DictConfig:
    """``cfg`` with a preset of its method; the values that the preset takes from other groups stay the user's."""
    method = composed("evaluate", [f"method={name}"]).method
    other = cfg.copy()
    with open_dict(other):
        other.method = method
    return other


def made(cfg: DictConfig, backbone: Backbone) -> Method:
    """``cfg.method`` for a backbone that is there."""
    return instantiate(cfg.method, _partial_=True, _convert_="all")(backbone)


def _users(error: BaseException | None) -> bool:
    """Whether an error is one that the user can cure; instantiate() wraps what a constructor raised."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error is not None


def command(cfg: DictConfig) -> str | None:
    """The command that makes the page again; None where it was made without a command line."""
    if not HydraConfig.initialized():
        return None
    words = HydraConfig.get().overrides.task
    own = [word.partition("=")[0] for word in words]  # the page's own keys as the user wrote them, not as ``settings.words`` quoted them
    return f"{usual('view')} " + shlex.join(f"{k}={cfg[k]}" if k in LETTER_BY_LETTER else w for k, w in zip(own, words, strict=True))
