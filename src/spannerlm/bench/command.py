"""``spannerlm bench``: parses, runs a suite, prints its table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spannerlm.errors import ConfigError, InputError
from spannerlm.options import Json, Quiet, examples
from spannerlm.terminal import boundary, print_json, reserved_stdout

HELP = "Compare explorers on exact environments."
EXAMPLES = examples(
    "spannerlm bench quick",
    "spannerlm bench quick --explorers passive,spanner-sampling --environments tie --seeds 2",
    "spannerlm bench rivals --jobs 16 --json > rivals.json",
    "spannerlm bench rivals --engine ray --jobs 64",
    "spannerlm bench multi-turn",
    "spannerlm bench paper --rivals runs/bench-rivals",
)


class Workers(StrEnum):
    """Where jobs are run."""

    local = "local"
    ray = "ray"


def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="quick, rivals, multi-turn or paper.", show_default=False)
    ],
    explorers: Annotated[
        str | None, typer.Option(metavar="A,B", help="Explorers, by name; otherwise the suite's.")
    ] = None,
    environments: Annotated[
        str | None, typer.Option(metavar="A,B", help="Environments or tasks, by name; otherwise the suite's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many seeds; otherwise the suite's.", show_default=False)
    ] = None,
    first_seed: Annotated[
        int | None, typer.Option(metavar="K", min=0, help="The first seed; otherwise the suite's.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Jobs that run at once, one core each.")] = 2,
    engine: Annotated[
        Workers, typer.Option(help="Processes here, or a Ray cluster (RAY_ADDRESS; otherwise a Ray of its own).")
    ] = Workers.local,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where rows are kept; otherwise runs/bench-SUITE.")
    ] = None,
    rivals: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For paper: rows of the suite rivals, for its table.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run explorers on exact environments, seed by seed, under common random numbers; print what they needed.

    The suite paper also writes one page with a figure for each claim: paper.html in its directory. The same command
    goes on where it was stopped: finished jobs are not run again. Exit status 1 if one failed.
    """
    with boundary(as_json):
        from spannerlm.bench.rows import Finished, run_suite
        from spannerlm.bench.show import document, progress_line, show_suite
        from spannerlm.bench.suites import suite_by_name

        try:
            chosen = suite_by_name(suite, _names(explorers), _names(environments), seeds, first_seed)
        except InputError as error:
            raise ConfigError(str(error)) from error
        if rivals is not None and suite != "paper":
            raise ConfigError(f"--rivals: expected the suite paper, got {suite!r}: leave it out")
        directory = Path("runs", f"bench-{suite}") if out is None else out

        def observe(finished: Finished) -> None:
            if not quiet or finished.error:
                typer.echo(progress_line(finished), err=True)

        with reserved_stdout(as_json) as console:
            try:
                rows = run_suite(chosen, directory, engine=engine.value, jobs=jobs, observe=observe)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("stopped; finished jobs are kept, the same command goes on") from None
            shown = document(chosen, rows, directory)
            if suite == "paper":
                from spannerlm.bench.paper import load_rivals, write_paper

                *_, page = write_paper(directory, chosen, rows, None if rivals is None else load_rivals(rivals))
                shown["page"] = str(page)
            if as_json:
                print_json(console, shown)
            elif not quiet:
                show_suite(console, shown)
        if shown["failed"]:
            raise typer.Exit(1)


def _names(text: str | None) -> list[str] | None:
    """The names in a list with commas; None where it was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
