"""The command line: parses and wires, nothing else. Whatever is heavy is imported within the command that needs it.

Exit status: 0 done, 1 it failed and the message says why, 2 the command or the configuration is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import difflib
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from spannerlm import ask_command, export_command
from spannerlm.bench import command
from spannerlm.errors import ConfigError, InputError
from spannerlm.foundation import command as coverage_command
from spannerlm.live import LiveView, show_report, stripped
from spannerlm.options import Json, Quiet, examples, next_free
from spannerlm.progress import Progress
from spannerlm.terminal import Interrupts, boundary, kept, print_json, print_lines, reserved_stdout
from spannerlm.web import command as label_command
from spannerlm.web import serve_command

if TYPE_CHECKING:
    from spannerlm.config import RunConfig
    from spannerlm.inputs import Prompts


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "spannerlm run                              the bundled model and task, about a minute",
        "spannerlm run my.yaml --labels 200         your own model, prompts and reward",
        "spannerlm sample runs/helpdesk-1 --prompt 'my parcel has not arrived'",
    ),
)


class InDoubt(StrEnum):
    """What becomes of labels that were asked for and never answered."""

    rebuy = "rebuy"
    drop = "drop"
    ask = "ask"


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run.", show_default=False)]


def main() -> None:
    """Run the command line; the entry point of the ``spannerlm`` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no ν shows ?, and the run goes on
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"spannerlm {version('spannerlm')}")
        raise typer.Exit


@app.callback()
def spannerlm(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Find the best policy that a frozen language model can already express, with as few reward labels as possible."""


@app.command(
    short_help="Explore a language model and report on it.",
    epilog=examples(
        "spannerlm run",
        "spannerlm run --labels 50 --seed 1 --out runs/small",
        "spannerlm run my.yaml --set kl=1.5 --set generation.max_new_tokens=32",
        "spannerlm run --explorer passive --json > report.json",
    ),
)
def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="YAML file; none: the bundled model and task.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one key, such as generation.dtype=bfloat16; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of the run; otherwise the next runs/NAME-N.")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="N", help="Reward labels that may be bought in all.")] = None,
    eval_labels: Annotated[
        str | None, typer.Option(metavar="N", help="How many of them are kept to measure the result.")
    ] = None,
    explorer: Annotated[str | None, typer.Option(metavar="NAME", help="What decides which responses to label.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of everything that is random.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Explore a language model: draw responses, have a few rewarded, learn, and report what it has come to."""
    name = None if explorer is None else json.dumps(explorer)  # text, whatever YAML would make of it
    options = {"labels": labels, "eval_labels": eval_labels, "explorer": name, "seed": seed}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    with boundary(as_json):
        loaded = _configuration(config, [*(settings or ()), *given])
        with _new_directory(out, loaded) as directory:
            from spannerlm.job import run_job

            title = f"{loaded.task or loaded.model} · {loaded.explorer} · {directory}"
            _drive(directory, title, lambda observer: run_job(loaded, directory, observer), as_json, quiet)


@app.command(
    short_help="Go on with a run that was stopped.",
    epilog=examples("spannerlm resume runs/helpdesk-1", "spannerlm resume runs/helpdesk-1 --in-doubt drop"),
)
def resume(
    directory: Directory,
    in_doubt: Annotated[
        InDoubt | None,
        typer.Option(
            help="Labels that were asked for and never answered: ask for them again (perhaps paying twice), go on "
            "without them, or be asked."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped or killed; a finished one is reported again. Nothing is bought twice."""
    with boundary(as_json):
        _check_directory(directory)  # one that was killed before its first row has a configuration only: that will do
        from spannerlm.job import resume_job

        settle = _ask(directory) if in_doubt is InDoubt.ask else in_doubt.value if in_doubt else None
        _drive(directory, str(directory), lambda observer: resume_job(directory, observer, settle), as_json, quiet)


@app.command(
    short_help="Make the report of a finished run again.",
    epilog=examples("spannerlm report runs/helpdesk-1", "spannerlm report runs/helpdesk-1 --json"),
)
def report(directory: Directory, as_json: Json = False) -> None:
    """Make report.html and the figures of a finished run again from its stored rows, and show its table."""
    with boundary(as_json):
        _check_run(directory)
        from spannerlm.job import load_report
        from spannerlm.report import write_report

        found = load_report(directory)
        with reserved_stdout(as_json) as console:
            write_report(directory, found)
            _end(console, found, directory, as_json)


@app.command(
    short_help="Draw responses from the learned policy.",
    epilog=examples(
        "spannerlm sample runs/helpdesk-1 --prompt 'my parcel has not arrived' -n 3",
        "spannerlm sample runs/helpdesk-1 --prompts prompts.jsonl --json > samples.json",
    ),
)
def sample(
    directory: Directory,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Prompts: .jsonl, .json, .csv, .parquet, .txt, or a folder that datasets saved."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Responses to each prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Seed; otherwise others come each time.", show_default=False)
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="KL from the base model; otherwise the run's.", show_default=False),
    ] = None,
    column: Annotated[str, typer.Option(metavar="NAME", help="Column of the file that holds the prompts.")] = "prompt",
    as_json: Json = False,
) -> None:
    """Draw responses from the learned policy: the base model, tilted, its weights untouched."""
    with boundary(as_json):
        _check_run(directory)
        from spannerlm.inputs import Prompts, read_prompts

        asked = [Prompts(tuple(prompt), {})] if prompt else []
        asked += [] if prompts is None else [read_prompts(prompts, column)]
        if not asked:
            raise ConfigError("expected a prompt, got none; give --prompt TEXT or --prompts FILE")
        with reserved_stdout(as_json) as console:
            answers = _sample(directory, asked, n, seed, kl)
            if as_json:
                print_json(console, {"samples": answers})
            else:
                _show_samples(console, answers)


@app.command(short_help="Check that nothing in a run is damaged.", epilog=examples("spannerlm verify runs/helpdesk-1"))
def verify(directory: Directory, as_json: Json = False) -> None:
    """Check that the ledger and the draws of a run are what was written; changes nothing. Exit status 1 if not."""
    with boundary(as_json):
        _check_directory(directory)
        from spannerlm.ledger import Ledger

        found = Ledger.verify(directory)
        with reserved_stdout(as_json) as console:
            if as_json:
                print_json(console, {**asdict(found), "ok": found.ok})
            else:
                lines = [f"problem: {line}" for line in found.problems] + [f"note: {line}" for line in found.notes]
                state = "all as it was written" if found.ok else "not as it was written"
                lines.append(f"{directory}: {found.rows} rows and {found.shards} files of draws, {state}")
                print_lines(console, lines)
        if not found.ok:
            raise typer.Exit(1)


@app.command(
    short_help="Make one file that holds all of a run.",
    epilog=examples("spannerlm backup runs/helpdesk-1 helpdesk-1.backup"),
)
def backup(
    directory: Directory,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to be made.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Make one consistent file of a run's ledger and draws, also while it runs. Copying run.db alone is not enough."""
    with boundary(as_json):
        _check_run(directory)
        if file.exists():
            raise InputError(f"{file}: expected a file that does not exist yet, found one; give another name")
        from spannerlm.ledger import Ledger

        with Ledger.open(directory, read_only=True) as ledger:
            ledger.backup(file)
        with reserved_stdout(as_json) as console:
            size = file.stat().st_size
            if as_json:
                print_json(console, {"file": str(file), "bytes": size})
            else:
                print_lines(console, [f"{file}: {size:,} bytes, the whole of {directory}"])


@app.command(short_help="Unpack a backup.", epilog=examples("spannerlm restore helpdesk-1.backup runs/helpdesk-1"))
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of a backup.", show_default=False)],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory without a run.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Unpack a backup's ledger and draws into a directory without a run, once every byte is found to be as it was."""
    with boundary(as_json):
        from spannerlm.ledger import Ledger

        Ledger.restore(file, directory)
        with reserved_stdout(as_json) as console:
            if as_json:
                print_json(console, {"directory": str(directory), "file": str(file)})
            else:
                print_lines(console, [f"{directory}: the run that {file} holds"])


app.command(short_help=coverage_command.HELP, epilog=coverage_command.EXAMPLES)(coverage_command.coverage)
app.command(short_help=ask_command.ASK_HELP, epilog=ask_command.ASK_EXAMPLES)(ask_command.ask)
app.command(short_help=ask_command.TELL_HELP, epilog=ask_command.TELL_EXAMPLES)(ask_command.tell)
app.command(short_help=ask_command.ADD_HELP, epilog=ask_command.ADD_EXAMPLES)(ask_command.add)
app.command(short_help=label_command.HELP, epilog=label_command.EXAMPLES)(label_command.label)
app.command(short_help=export_command.HELP, epilog=export_command.EXAMPLES)(export_command.export)
app.command(short_help=serve_command.HELP, epilog=serve_command.EXAMPLES)(serve_command.serve)
app.command(short_help=command.HELP, epilog=command.EXAMPLES)(command.bench)


# --- wiring ---------------------------------------------------------------------------------------------------------


def _configuration(path: Path | None, overrides: Sequence[str]) -> RunConfig:
    from spannerlm import bundled
    from spannerlm.config import load_config
    from spannerlm.explorers import EXPLORERS

    if path is not None and not path.exists() and "=" in path.name:
        raise ConfigError(f"expected a configuration file, got {str(path)!r}; put --set before each KEY=VALUE")
    return load_config(path, overrides, known={"task": bundled.MODULES, "explorer": EXPLORERS})


@contextmanager
def _new_directory(out: Path | None, config: RunConfig) -> Iterator[Path]:
    """The directory of a new run, made: ``out``, or the next free ``runs/NAME-N``. Gone again if no run came of it."""
    directory = _given(out) if out is not None else next_free(config.task or Path(config.model or "own").name)
    empty = not any(directory.iterdir())
    try:
        yield directory
    finally:
        if empty and not (directory / "run.db").exists():
            (directory / "config.yaml").unlink(missing_ok=True)
            with suppress(OSError):
                directory.rmdir()


def _given(out: Path) -> Path:
    if (out / "run.db").exists():
        from spannerlm.job import check_rewarded

        check_rewarded(out)
        again = shlex.join(["spannerlm", "resume", str(out)])
        raise InputError(f"{out}: expected a new directory, found a run in it; `{again}` goes on with it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a directory, found a file; give another name")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        others = [str(other) for other in directory.parent.iterdir()] if directory.parent.is_dir() else []
        near = difflib.get_close_matches(str(directory), others, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{directory}: expected the directory of a run, found none{hint}")


def _check_run(directory: Path) -> None:
    """InputError unless a run was begun in the directory."""
    _check_directory(directory)
    if not (directory / "run.db").exists():
        raise InputError(f"{directory}: expected the directory of a run, found no run.db in it")


def _drive(
    directory: Path,
    title: str,
    work: Callable[[Callable[[Progress], None]], Mapping[str, Any]],
    as_json: bool,
    quiet: bool,
) -> None:
    """Do the work under the live view and Ctrl-C's rules, then print its end."""
    with reserved_stdout(as_json) as console:
        view = LiveView(console, title, enabled=not (as_json or quiet))
        with Interrupts(directory, view) as observer, view, kept(directory):
            found = work(observer)
        if not quiet or as_json:
            _end(console, found, directory, as_json)


def _end(console: Console, found: Mapping[str, Any], directory: Path, as_json: bool) -> None:
    if as_json:
        print_json(console, {"directory": str(directory), **found})
    else:
        show_report(console, found, directory)


def _sample(
    directory: Path, asked: Sequence[Prompts], n: int, seed: int | None, kl: float | None
) -> list[dict[str, Any]]:
    import numpy as np

    from spannerlm.dialogue import PLAIN
    from spannerlm.inputs import fitted
    from spannerlm.tilted import load_policy

    policy = load_policy(directory, kl=kl)
    form = getattr(policy.model, "form", PLAIN)
    texts = [text for prompts in asked for text in fitted(prompts, form)]
    answers = policy.sample(texts, n, rng=np.random.default_rng(seed))
    keys = ("prompt", "responses", "draws", "exhausted")
    return [{key: getattr(answer, key) for key in keys} for answer in answers]


def _show_samples(console: Console, answers: Sequence[Mapping[str, Any]]) -> None:
    for answer in answers:
        console.print(Text(stripped(answer["prompt"]), style="bold"))
        for response in answer["responses"]:
            console.print(Padding(Text(stripped(response)), (0, 0, 0, 2)))
        limit = ", the limit: only about the policy's law" if answer["exhausted"] else ""
        console.print(Padding(Text(f"{answer['draws']:,} draws{limit}", style="dim"), (0, 0, 0, 2)))


def _ask(directory: Path) -> str | None:
    """Ask what becomes of labels in doubt; None where there are none."""
    from spannerlm.ledger import Ledger

    with Ledger.open(directory, read_only=True) as ledger:
        claims = ledger.in_doubt()
        shown = [f"  {ledger.prompts[c.prompt][:60]!r} -> {c.response[:60]!r}" for c in claims[:10]]
    if not claims:
        return None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("--in-doubt ask: expected a terminal to ask on; give --in-doubt rebuy or --in-doubt drop")
    typer.echo(f"{len(claims)} labels were asked for and never answered; they may have been charged:", err=True)
    for line in shown:
        typer.echo(stripped(line), err=True)
    answer = ""
    while answer not in ("rebuy", "drop"):
        answer = typer.prompt("rebuy (perhaps paying twice) or drop (go on without them)?", err=True).strip()
    return str(answer)
