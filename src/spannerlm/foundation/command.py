"""``spannerlm coverage``: parses, makes the report, prints its verdicts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spannerlm.errors import ConfigError
from spannerlm.live import LiveView, stripped
from spannerlm.options import Json, Quiet, examples, next_free
from spannerlm.terminal import boundary, print_json, reserved_stdout
from spannerlm.wording import count, few, number, short

if TYPE_CHECKING:
    from spannerlm.config import RunConfig

HELP = "Tell whether a model is a good enough foundation."
EXAMPLES = examples(
    "spannerlm coverage                                        the bundled model and task",
    "spannerlm coverage my.yaml --model ckpt-100 --model ckpt-200   which checkpoint is better?",
    "spannerlm coverage my.yaml --labels 60 --success 1",
    "spannerlm coverage --run runs/helpdesk-1                  from what a run has drawn and labelled",
)


def coverage(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="YAML file of a run; none: the bundled model and task."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Hub id or directory; repeat it to compare several."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one key, such as coverage.max_draws=200; repeatable."),
    ] = None,
    draws: Annotated[str | None, typer.Option(metavar="N", help="Base draws of each prompt.")] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="N", help="Random draws of each model to have rewarded; none if it is free.")
    ] = None,
    success: Annotated[str | None, typer.Option(metavar="R", help="Reward from which a reply is a success.")] = None,
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="S", help="Would answering step by step pay? 8 (tokens), line or sentence. Takes more draws."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Look at what a run has drawn and labelled; draws nothing.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of the report; otherwise the next runs/coverage-N.")
    ] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of everything that is random.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell whether a model holds good enough replies for these prompts, and what finding them would cost.

    Draws only, unless a reward is there: one that is free grades every draw, one that costs is asked for --labels N.
    The same command with the same --out goes on where it was stopped: nothing is drawn or bought twice.
    """
    with boundary(as_json):
        options = {"coverage.draws": draws, "coverage.labels": labels, "coverage.success": success, "seed": seed}
        given = [f"{key}={value}" for key, value in options.items() if value is not None]
        if models:
            given.append(f"coverage.models={json.dumps(models)}")
        if run is not None and (config is not None or settings or given or segments is not None):
            raise ConfigError("--run: expected no configuration beside it, because the run has its own: leave it out")
        loaded = None if run is not None else _configuration(config, [*(settings or ()), *given])
        directory = next_free("coverage") if out is None else out
        with reserved_stdout(as_json) as console:
            view = LiveView(console, f"coverage · {directory}", enabled=not (as_json or quiet))
            try:
                with view:
                    found = _made(loaded, run, directory, view, segments)
            except KeyboardInterrupt:
                again = shlex.join(["--out", str(directory)])
                raise KeyboardInterrupt(f"stopped; what was drawn and bought is kept: {again} goes on") from None
            if as_json:
                print_json(console, {"directory": str(directory), **found})
            elif not quiet:
                show(console, found, directory, looked=run is not None)


def _made(
    config: RunConfig | None, run: Path | None, directory: Path, view: LiveView, segments: str | None
) -> Mapping[str, Any]:
    from spannerlm.foundation.job import coverage_job, coverage_of_run

    if config is None:
        assert run is not None  # one of them is there
        return coverage_of_run(run, directory, view).document
    return coverage_job(config, directory, view, segments=segments).document


def _configuration(path: Path | None, overrides: list[str]) -> RunConfig:
    from spannerlm import bundled
    from spannerlm.config import load_config

    return load_config(path, overrides, known={"task": bundled.MODULES}, rewarded=False)


def show(console: Console, document: Mapping[str, Any], directory: Path, *, looked: bool = False) -> None:
    """Print the verdicts, and the models side by side where there are several; ``looked``: at a run, which had paid."""
    models = document["models"]
    if len(models) > 1:
        for line in document["headline"]:
            console.print(Text(stripped(line), style="bold"))
        console.print()
        console.print(side_by_side(document))
        console.print()
    for section in models:
        found = section["verdict"]
        head = found["title"] if len(models) == 1 else f"{section['name']}: {found['title']}"
        console.print(Text(stripped(head), style="bold"))
        for line in found["reasons"]:
            console.print(_indented(line))
        for line in found["advice"]:
            console.print(_indented(f"→ {line}"))
        for line in section["warnings"]:
            console.print(_indented(f"Note: {line}"))
        console.print()
    spent = [f"{count(sum(m['counts'][kind] for m in models))} {kind}" for kind in ("draws", "labels")]
    console.print(Text(f"read     {', '.join(spent)} of the run" if looked else f"spent    {', '.join(spent)}"))
    console.print(Text(f"report   {stripped(str(directory / 'coverage.html'))}"))


def _indented(line: str) -> Padding:
    return Padding(Text(stripped(line)), (0, 0, 0, 2), expand=False)


def side_by_side(document: Mapping[str, Any]) -> Table:
    """One row per model, within 80 columns unless a name is long."""
    kl, most = document["settings"]["kl"], document["settings"]["max_draws"]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold", min_width=12, max_width=26)
    table.add_column("verdict")
    many = sorted({int(row["k"]) for section in document["models"] if (row := _near(section, most))})
    tried = " or ".join(map(count, many)) or count(most)
    columns = ("success\nin 1", f"success\nin {tried}", f"value at\nKL = {few(kl)}", "draws per\nanswer", "labels")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for section in document["models"]:
        table.add_row(Text(stripped(section["name"])), section["verdict"]["kind"], *map(Text, cells(section, most)))
    return table


def cells(section: Mapping[str, Any], most: int) -> tuple[str, ...]:
    """pass@1, pass@max_draws, value, draws per answer and labels of one model, as text."""
    passes = (section.get("success") or {}).get("pass_at") or ()
    first = next((row["value"] for row in passes if row["k"] == 1), None)
    last = _near(section, most).get("value")
    at = (section.get("reach") or {}).get("at") or {}
    told = (section.get("forecast") or {}).get("labels") or {}
    return (
        _rate(first),
        _rate(last),
        short((at.get("value") or {}).get("value")),
        few((at.get("draws_per_answer") or {}).get("value")),
        count(told.get("value")),
    )


def _near(section: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The row of pass@k whose k is nearest to ``most``; empty without any."""
    passes = (section.get("success") or {}).get("pass_at") or ()
    found: Mapping[str, Any] = min(passes, key=lambda row: abs(row["k"] - most)) if passes else {}
    return found


def _rate(value: object) -> str:
    x = number(value)
    return "–" if x != x else f"{x:.2g}"
