"""``spannerlm label``: the labelling page of a run."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from spannerlm.ask_command import opened
from spannerlm.errors import InputError
from spannerlm.options import examples
from spannerlm.terminal import boundary, print_lines, reserved_stdout

HELP = "Open the labelling page of a run: people rate, the run goes on."
EXAMPLES = examples(
    "spannerlm label runs/mine                                   the page of a run of `spannerlm ask`",
    "spannerlm label runs/new my.yaml --set labels=200 --overlap 2   a new run, each response rated by two",
    "SPANNERLM_TOKEN=$(openssl rand -hex 16) spannerlm label runs/mine --host 0.0.0.0",
)


def label(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the run.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="For a new run: its YAML file; none: the bundled model."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For a new run: set one key, such as feedback=comparison."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="For a new run: how many people rate each response.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8765,
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text that raters can look at.", show_default=False)
    ] = None,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", help="After which an unanswered item goes to others.")
    ] = 600.0,
) -> None:
    """Open the labelling page of a run: people rate in their browsers, and the next questions depend on their answers.

    Every answer is on disk before the page says "saved". Ctrl-C ends the page; the same command goes on. Where the
    environment variable SPANNERLM_TOKEN is set, whoever rates needs it, and the owner's panel has a token of its own.
    """
    with boundary(False):
        from spannerlm.web.security import check_bind

        token = os.environ.get("SPANNERLM_TOKEN") or None
        check_bind(host, token)
        text = _text(guidelines)
        try:
            import uvicorn

            from spannerlm.web.label import label_app
        except ImportError as error:
            raise InputError(f"label: expected {error.name}, found none: pip install 'spannerlm[serve]'") from None
        from spannerlm.web.desk import Desk

        owner = os.environ.get("SPANNERLM_OWNER_TOKEN") or secrets.token_hex(16)
        tokens = {} if token is None else {token: "rater", owner: "owner"}
        names = {host, "localhost", "127.0.0.1", "[::1]"} | set(os.environ.get("SPANNERLM_HOSTS", "").split())
        hosts = frozenset(name for known in names for name in (known.lower(), f"{known.lower()}:{port}"))
        with opened(directory, config, settings or (), overlap) as run:
            desk = Desk(run, lease_s=lease)
            try:
                app = label_app(desk, hosts=hosts, tokens=tokens, guidelines=text)
                shown = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{port}"
                lines = [f"rate     {shown}/" + ("" if token is None else "?token= and the token")]
                lines.append(f"owner    {shown}/owner" + ("" if token is None else f"?token={owner}"))
                with reserved_stdout(False) as console:
                    print_lines(console, [*lines, "Ctrl-C ends the page; what was rated is kept."])
                uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)
            finally:
                desk.close()
                run.save()


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file in UTF-8 ({error})") from None
