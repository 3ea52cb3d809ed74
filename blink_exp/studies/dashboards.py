"""A W&B workspace for ablations: a section for every table and figure, built from conf/ and the stable names of ``tracking.names``."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blink_exp import tracking
from blink_exp.documents.experiments import Experiment
from blink_exp.errors import UserError, flat, nearest
from blink_exp.files import write_text
from blink_exp.settings.doors import command_name
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies import experiments

NAME = "Blink and HERO ablations"
KINDS = ("wandb",)
WIDTH, HEIGHT, COLUMNS = 8, 6, 3  # of a panel in W&B's grid of 24, and panels a row
RUNS = 100  # maximum number of runs in a panel: the largest experiment has 63 points
PICTURES = 4  # shown per figure
CURVES = ("rho", "expand", "drop", "tokens")  # blink/NAME_by_layer


def run(settings: SweepSettings, out: Path) -> Path:
    """Writes the workspace to ``out``/workspace.json and, with ``mode=online``, saves it to W&B. Returns the file.

    Args:
        settings: ``dashboard``: wandb. ``logger``, if it is W&B's, gives project, entity and mode; other modes than online use no network.

    Raises:
        UserError: for an unknown dashboard, or without wandb-workspaces.
    """
    if settings.dashboard not in KINDS:
        raise UserError(f"dashboard={settings.dashboard} is not known; {nearest(str(settings.dashboard), KINDS)}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("dashboard=wandb needs wandb-workspaces; pip install wandb-workspaces")
    logger = settings.logger if tracking.logger_of(settings.logger).name == "wandb" else {}
    by_kind = {kind: list(experiments.experiments(kind)) for kind in experiments.KINDS}
    board = workspace(by_kind, logger.get("project") or "blink-exp", logger.get("entity"))
    path = out / "workspace.json"
    write_text(path, as_json(board))
    print(f"workspace: {path}")
    if logger.get("mode") == "online":
        save(board)
    else:
        print(f"not sent anywhere; with a W&B key: {command_name('sweep')} dashboard=wandb logger=wandb")
    return path


def save(board: Any) -> None:
    """Saves a workspace to W&B, by default under the account of the API key. Raises UserError on any failure."""
    import wandb

    try:
        if wandb.login(prompt=False, verify=False) is False:
            raise UserError("no API key; set WANDB_API_KEY or run `wandb login`")
        board.entity = board.entity or wandb.Api(timeout=30).default_entity
        board.save()
        print(f"saved: {board.url}")
    except Exception as error:
        raise UserError(f"the workspace could not be saved to W&B ({flat(error, 200)}); the file above holds it") from error


def workspace(by_kind: dict[str, list[Experiment]], project: str, entity: str | None) -> Any:
    """The workspace as an object, built without network access. ``by_kind``: the experiments of ``studies.experiments.KINDS``."""
    import wandb_workspaces.workspaces as ws

    sections = [
        section("All runs", list(common()), is_open=True),
        *(section(e["title"], list(table(e))) for e in by_kind["table"]),
        *(section(e["title"], list(figure(e))) for e in by_kind["figure"]),
        section("TokenSR training", list(training())),
    ]
    return ws.Workspace(
        name=NAME,
        entity=entity or "",
        project=project,
        sections=[s for s in sections if s.panels],
        settings=ws.WorkspaceSettings(max_runs=RUNS),
    )


def section(name: str, panels: list[Any], is_open: bool = False) -> Any:
    """A section with ``COLUMNS`` panels per row."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    for k, panel in enumerate(panels):
        panel.layout = wr.Layout(x=k % COLUMNS * WIDTH, y=k // COLUMNS * HEIGHT, w=WIDTH, h=HEIGHT)
    rows = max(1, -(-len(panels) // COLUMNS))
    return ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=rows))


def common() -> Iterator[Any]:
    """Panels for every run: Blink by layer, scores against tokens and against the first layer, examples and records."""
    import wandb_workspaces.reports.v2 as wr

    for name in CURVES:
        yield line(f"Blink: {name} by layer", "layer", f"blink/{name}_by_layer")
    for score in ("accuracy", "total"):
        yield scatter(f"{score} against visual tokens a layer", "tokens/layer", f"scores/{score}")
    yield scatter("total against the first layer that scans", "layers/first", "scores/total")
    yield wr.MediaBrowser(title="examples", media_keys=["examples/1", "examples/2"])
    yield wr.WeavePanelSummaryTable(table_name="records")


def table(experiment: Experiment) -> Iterator[Any]:
    """Panels of a table: per benchmark, headline score by point and against tokens; for Blink's tables the saliency ratio by layer; the
    table beside the published numbers; its embedded figures."""
    import wandb_workspaces.reports.v2 as wr

    name = experiment["name"]
    for benchmark in benchmarks(experiment):
        yield bars(f"{benchmark} by point", f"{name}/{benchmark}")
        yield scatter(f"{benchmark} against visual tokens a layer", "tokens/layer", f"{name}/{benchmark}")
    if experiment.get("paper") == "blink" and benchmarks(experiment):
        yield line("saliency ratio by layer", "layer", f"{name}/rho_by_layer")
    yield wr.WeavePanelSummaryTable(table_name=f"table/{name}")
    for embedded in experiment.get("figures") or []:
        yield pictures(embedded)


def figure(experiment: Experiment) -> Iterator[Any]:
    """Panels of a figure: points over its axis if it has one, curves, pictures, claims."""
    import wandb_workspaces.reports.v2 as wr

    name = experiment["name"]
    if series(experiment):
        for benchmark in benchmarks(experiment):
            yield scatter(f"{benchmark} by point", f"{name}/x", f"{name}/{benchmark}")
        yield wr.LinePlot(title="curves", x=f"{name}/x", metric_regex=f"^{name}/.+/.+$", max_runs_to_show=RUNS)
    yield pictures(name)
    yield wr.WeavePanelSummaryTable(table_name=f"claims/{name}")


def training() -> Iterator[Any]:
    """Panels of a training: loss by step; on held-out pairs loss, cosine and relative error by layer beside interpolation's."""
    import wandb_workspaces.reports.v2 as wr

    step = "trainer/global_step"
    yield line("loss by step", step, "loss/train")
    yield wr.LinePlot(title="loss by step and layer", x=step, metric_regex="^loss/train/layer_.*", max_runs_to_show=RUNS)
    for title, name in (("loss", "loss"), ("cosine behind the norm", "cosine"), ("relative squared error", "relative_error")):
        regex = f"^{name}/(held_out|interpolation)/layer_.*"
        yield wr.LinePlot(title=f"held-out {title} by layer, beside interpolation's", x=step, metric_regex=regex, max_runs_to_show=RUNS)
    yield wr.LinePlot(title="gain over interpolation by layer", x=step, metric_regex="^gain/layer_.*", max_runs_to_show=RUNS)


def benchmarks(experiment: Experiment) -> list[str]:
    """The benchmarks of an experiment with points, those for scale models first."""
    if not (experiment.get("points") or experiment.get("sweeps")):
        return []
    presets = [experiment.get("benchmarks", {}).get(kind) or [] for kind in ("scale", "published")]
    return list(dict.fromkeys(name for names in presets for name in ([names] if isinstance(names, str) else names)))


def series(experiment: Experiment) -> list[str]:
    """Names of the curves of a figure whose points have an x value."""
    named = [s["series"] for s in experiment.get("sweeps") or []]
    return list(dict.fromkeys([*named, *(p["series"] for p in experiment.get("points") or [] if p.get("x") is not None)]))


def bars(title: str, metric: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(title=title, metrics=[metric], orientation="h", max_runs_to_show=RUNS, max_bars_to_show=RUNS)


def scatter(title: str, x: str, y: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))


def line(title: str, x: str, y: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x=x, y=[y], max_runs_to_show=RUNS)


def pictures(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.MediaBrowser(title=name, media_keys=[f"figures/{name}/{k + 1}" for k in range(PICTURES)])


def as_json(board: Any) -> str:
    """A workspace in the JSON format of the W&B app."""
    return json.dumps(json.loads(board._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=1) + "\n"
