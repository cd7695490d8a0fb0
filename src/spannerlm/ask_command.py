"""``spannerlm ask``, ``tell`` and ``add``: labels that come later, from wherever. They parse and wire, nothing else."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spannerlm.errors import InputError
from spannerlm.options import Json, examples
from spannerlm.terminal import boundary, print_json, print_lines, reserved_stdout

if TYPE_CHECKING:
    from spannerlm.asking import Run
    from spannerlm.labelfiles import Format, GivenRow

ASK_HELP = "Ask for labels that will come later: write the next questions to a file."
ASK_EXAMPLES = examples(
    "spannerlm ask runs/mine my.yaml -n 20 --out queries.jsonl    a new run, its first questions",
    "spannerlm ask runs/mine -n 20 --out queries.csv              the next ones, for a spreadsheet",
    "spannerlm ask runs/mine --worker ann                         one question, shown here",
)
TELL_HELP = "Tell the labels that were asked for."
TELL_EXAMPLES = examples(
    "spannerlm tell runs/mine queries.csv                         the file of `ask`, its value column filled in",
    "spannerlm tell runs/mine corrected.jsonl --revise",
)
ADD_HELP = "Add labels that you have already."
ADD_EXAMPLES = examples("spannerlm add runs/mine known.jsonl")

Place = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the run.", show_default=False)]
File = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSON lines (.jsonl) or .csv; - for JSON lines from standard input.")
]


def ask(
    directory: Place,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="For a new run: its YAML file; none: the bundled model."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For a new run: set one key, such as labels=60; repeatable."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many questions, open ones included.")] = 1,
    worker: Annotated[str | None, typer.Option(metavar="NAME", help="Who will answer.")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="For a new run: how many workers rate each response.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new .jsonl or .csv file; otherwise they are printed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask for labels: the questions that are open, then new ones, chosen knowing which are.

    `spannerlm tell` takes the answers. A new run has as its budget the configuration's labels; its reward, if any, is
    not used. Asking again before an answer came gives the same questions.
    """
    with boundary(as_json), reserved_stdout(as_json) as console:
        from spannerlm.files import durable_write
        from spannerlm.labelfiles import format_of, written

        form = None if out is None else format_of(out.name)
        if out is not None:
            _check_new(out)
        with opened(directory, config, settings or (), overlap) as run:
            rows = [
                {
                    "id": query.id,
                    "prompt": query.prompt,
                    "response": query.response,
                    **({} if query.opponent is None else {"opponent": query.opponent}),
                    "worker": query.worker,
                    **({"columns": dict(query.columns)} if query.columns else {}),
                    "value": None,
                }
                for query in run.ask(n, worker=worker)
            ]
            reason, counts = run.reason, run.counts
            left = run.spec.labels - counts.charged
        asked = f"{len(rows)} question{'' if len(rows) == 1 else 's'}"
        if out is not None and form is not None and rows:
            durable_write(out, written(rows, form))
        if as_json:
            print_json(console, {"directory": str(directory), "queries": rows, "left": left, "reason": reason})
        elif out is None:
            print_lines(console, [line for row in rows for line in _shown(row)])
            print_lines(console, [f"{asked}; {_left(left, reason)}"])
        else:
            place = f" in {out}" if rows else ""
            print_lines(console, [f"{asked}{place}; {_left(left, reason)}"])
            if rows:
                again = shlex.join(["spannerlm", "tell", str(directory), str(out)])
                print_lines(console, [f"`{again}` takes the answers, once each value is filled in"])


def tell(
    directory: Place,
    file: File,
    revise: Annotated[bool, typer.Option("--revise", help="Replace answers that were given before.")] = False,
    as_json: Json = False,
) -> None:
    """Tell labels: a file with the id and the value of each question that was answered. All of it is taken, or nothing.

    What became of a question that has no value: skip: true, or failed: a reason. The policy is learned again at once:
    `spannerlm sample` draws from it. The same file again changes nothing.
    """
    with boundary(as_json), reserved_stdout(as_json) as console:
        from spannerlm.asking import Run
        from spannerlm.labelfiles import answers, raise_problems
        from spannerlm.records import Failed

        _check_begun(directory)
        data, form = _read(file)
        rows = answers(data, form, str(file))
        with Run.open(directory) as run:
            told = {row.id: row.value if row.failed is None else Failed(row.failed) for row in rows}
            problems = run.check(told, revise=revise)
            raise_problems(str(file), [f"line {row.line}: {problems[row.id]}" for row in rows if row.id in problems])
            run.tell_all(told, revise=revise)
            run.save()
            counts, reason, left = run.counts, run.reason, run.spec.labels - run.counts.charged
        found = {"told": len(rows), "labels": counts.labels, "waiting": counts.waiting, "left": left}
        if as_json:
            print_json(console, {"directory": str(directory), **found, "reason": reason})
        else:
            lines = [f"{len(rows)} told; labels so far: {counts.labels}; open questions: {counts.waiting}"]
            print_lines(console, [*lines, _left(left, reason)])


def add(directory: Place, file: File, as_json: Json = False) -> None:
    """Add labels that you have already: a file with prompt, response and value each (opponent for comparisons).

    They are learned from, never asked for, and no part of the budget. All of the file is taken, or nothing.
    """
    with boundary(as_json), reserved_stdout(as_json) as console:
        from spannerlm.asking import Run
        from spannerlm.labelfiles import given

        _check_begun(directory)
        data, form = _read(file)
        rows = given(data, form, str(file))
        with Run.open(directory) as run:
            new = _added(run, rows, str(file))
            run.save()
            total = run.counts.given
        if as_json:
            print_json(console, {"directory": str(directory), "added": new, "given": total})
        else:
            print_lines(console, [f"labels added: {new}, in all {total}; the budget is as it was"])


def _added(run: Run, rows: Sequence[GivenRow], name: str) -> int:
    """How many labels were new; an error names the line of the entry."""
    from spannerlm.labelfiles import raise_problems

    columns = ([row.prompt for row in rows], [row.response for row in rows], [row.value for row in rows])
    try:
        return run.add(*columns, opponents=[row.opponent for row in rows])
    except InputError as error:
        entry = re.match(r"\w+\[([0-9]+)\]: ", str(error))
        place = "" if entry is None else f"line {rows[int(entry[1])].line}: "
        raise_problems(name, [place + str(error)])
        raise


def _check_new(out: Path) -> None:
    """`InputError` unless a new file can be there: before anything is asked."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: expected a file that does not exist yet, found one; give another name")
    if not out.parent.is_dir():
        raise InputError(f"{out}: expected a folder {str(out.parent)!r} for it, found none")


def _check_begun(directory: Path) -> None:
    if not _begun(directory):
        raise InputError(f"{directory}: expected the directory of a run, found none in it: see `spannerlm ask`")


def opened(
    directory: Path, config: Path | None = None, settings: Sequence[str] = (), overlap: int | None = None
) -> Run:
    """The run of a directory; a new one where something says that it is to be made."""
    from spannerlm.asking import Run

    if _begun(directory):
        if config is not None or settings or overlap is not None:
            raise InputError(f"{directory}: expected no configuration for a run that has one: leave it out")
        return Run.open(directory)
    new = not directory.exists() or (directory / "run.db").exists()
    if not new and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: expected a run of `spannerlm ask`, or a new directory, found something else")
    return _made(directory, config, settings, overlap or 1)


def _begun(directory: Path) -> bool:
    """Whether there is a run; False also for one that was killed before its first row was written."""
    from spannerlm.ledger import Ledger

    if not (directory / "run.db").exists():
        return False
    try:
        Ledger.open(directory, read_only=True).close()
    except InputError:
        return False
    return True


def _made(directory: Path, path: Path | None, settings: Sequence[str], overlap: int) -> Run:
    from spannerlm import bundled
    from spannerlm.asking import Run
    from spannerlm.config import dump_config, load_config
    from spannerlm.explorers import EXPLORERS
    from spannerlm.files import durable_write, sync_folder
    from spannerlm.job import DRAWS_PER_PROMPT, build_explorer
    from spannerlm.tasks import load_task, model_options

    config = load_config(path, settings, known={"task": bundled.MODULES, "explorer": EXPLORERS}, rewarded=False)
    task = load_task(config, rewarded=False)
    train = len(task.train)
    run = Run.open(
        directory,
        prompts=task.train,
        model=task.model,
        features=task.features,
        explorer=build_explorer(config),
        budget=config.labels,
        overlap=overlap,
        batch=config.batch,
        seed=config.seed,
        draws=config.draws or DRAWS_PER_PROMPT * min(train, config.max_prompts),
        beta=config.beta,
        kl=None if config.beta is not None else config.kl,
        feedback=config.feedback,
        scale=config.scale,
        target_regret=config.target_regret,
        columns={name: list(values[:train]) for name, values in task.columns.items()},
        generation=model_options(config, task),
    )
    durable_write(directory / "config.yaml", dump_config(config).encode())
    sync_folder(directory)
    return run


def _read(file: Path) -> tuple[bytes, Format]:
    from spannerlm.labelfiles import format_of

    if str(file) == "-":
        return sys.stdin.buffer.read(), "jsonl"
    form = format_of(file.name)
    try:
        return file.read_bytes(), form
    except OSError as error:
        raise InputError(f"{file}: expected a file that can be read ({error.strerror})") from None


def _shown(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['id']}  {row['worker']}", f"  prompt    {row['prompt']}", f"  response  {row['response']}"]
    return lines + ([f"  opponent  {row['opponent']}"] if "opponent" in row else [])


def _left(left: int, reason: str) -> str:
    return f"labels left of the budget: {max(left, 0)}" + (f" ({reason})" if reason else "")
