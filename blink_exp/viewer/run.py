"""Writes the page of one question."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method
from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.pages import AnswerLine
from blink_exp.errors import UserError, nearest
from blink_exp.evaluation.answering import check_annotation
from blink_exp.evaluation.evaluator import build_method, prepare_model
from blink_exp.files import write_json, write_text
from blink_exp.settings.compose import method_preset
from blink_exp.settings.doors import command_line
from blink_exp.settings.presets import presets as presets_of
from blink_exp.settings.roots import ViewSettings
from blink_exp.settings.words import LETTER_BY_LETTER
from blink_exp.viewer import page as pages
from blink_exp.viewer.subject import Subject, load_subject
from blink_exp.viewer.trace import Trace, trace


def view(settings: ViewSettings, out: Path) -> Path:
    """Writes the page of the question that ``settings`` name (``sample``, or ``image`` and ``question``) to ``out`` and returns its path.

    The page is about ``method``; ``compare`` names method presets whose answers are shown beside it. Raises UserError if the
    question, the picture or a preset is missing, or ``method`` cannot run. A compared method that cannot run gets a row with the reason.
    """
    names = compared(settings.compare or [])
    subject = load_subject(settings)
    backbone, method = prepare_model(settings)
    if settings.image is not None:
        check_annotation(method, f"image={settings.image}", ())
    grid = grid_of(backbone, method, settings.grid.p)
    traced = trace(backbone, method, subject.benchmark, subject.sample, subject.image)
    lines = answers(settings, names, backbone, subject, traced)
    page = pages.contents(backbone, subject, traced, grid, lines, command(settings))
    path = out / "view.html"
    write_text(path, pages.render(backbone, subject, traced, grid, page))
    write_json(out / "view.json", page)
    return path


def grid_of(backbone: Backbone, method: Method, p: int) -> PatchGrid:
    """The patches that the page shows: those that ``method`` scans, or else ``p`` a side."""
    scans = method.policy is not None and not method.drops_inside
    return PatchGrid(method.policy.p if scans else p, *backbone.grid)  # type: ignore[union-attr]


def compared(presets: Iterable[str]) -> list[str]:
    """Method presets without duplicates. Raises UserError for an unknown one."""
    names = list(dict.fromkeys(presets))
    available = presets_of("method")
    for name in names:
        if name not in available:
            raise UserError(f"compare={name} is no preset of method; {nearest(str(name), available)}")
    return names


def answers(settings: ViewSettings, names: list[str], backbone: Backbone, subject: Subject, traced: Trace) -> list[AnswerLine]:
    """One row per method: the presets ``names``, preceded by the method of the page if it is not among them."""
    methods = {name: method_preset(name, settings) for name in names}
    same = next((name for name, method in methods.items() if method == settings.method), None)
    lines = [] if same else [pages.answer(traced.method.name, traced, True)]
    for name, method in methods.items():
        if name == same:
            lines.append(pages.answer(name, traced, True))
            continue
        try:
            other = trace(backbone, build_method(settings, backbone, method), subject.benchmark, subject.sample, subject.image)
            lines.append(pages.answer(name, other, False))
        except UserError as error:
            lines.append(pages.unavailable(name, str(error)))
    return lines


def command(settings: ViewSettings) -> str | None:
    """The command that reproduces the page; None without a command line."""
    if not HydraConfig.initialized():
        return None
    words = HydraConfig.get().overrides.task
    keys = [word.partition("=")[0] for word in words]  # text values as the user wrote them, without the quotes of ``settings.words``
    pairs = zip(keys, words, strict=True)
    return command_line("view", [f"{k}={getattr(settings, k)}" if k in LETTER_BY_LETTER else w for k, w in pairs])
