"""``spannerlm serve``: the learned policy of a run as an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spannerlm.errors import InputError
from spannerlm.options import examples
from spannerlm.terminal import boundary, print_lines, reserved_stdout

GRACE_S = 5
"""Seconds that a reply under way has once Ctrl-C was pressed."""
HELP = "Serve the learned policy as an OpenAI-compatible endpoint."
EXAMPLES = examples(
    "spannerlm serve runs/helpdesk-1",
    "spannerlm serve runs/helpdesk-1 --kl 1 --max-draws 256 --fallback base",
    "SPANNERLM_TOKEN=$(openssl rand -hex 16) spannerlm serve runs/helpdesk-1 --host 0.0.0.0",
)


class FallbackName(StrEnum):
    """What is answered where the cap on draws is hit first."""

    best = "best"
    base = "base"
    error = "error"


def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished run.", show_default=False)],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What the model is called; otherwise as the directory.", show_default=False)
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="KL from the base model; otherwise the run's.", show_default=False),
    ] = None,
    max_draws: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Base draws of one response, at most.", show_default=False),
    ] = None,
    fallback: Annotated[
        FallbackName, typer.Option(help="At that cap: the best so far, a draw of the base model, or an error.")
    ] = FallbackName.best,
    max_n: Annotated[int, typer.Option(metavar="N", min=1, help="Responses of one request, at most.")] = 128,
) -> None:
    """Serve the learned policy: /v1/completions, /v1/chat/completions and /v1/models, as OpenAI's clients know them.

    Each response is drawn from the base model until one is accepted; what it cost is in usage.spannerlm.draws. Where
    the environment variable SPANNERLM_TOKEN is set it is the API key; without it only this machine may ask.
    """
    with boundary(False):
        from spannerlm.web.security import check_bind, check_packages

        token = os.environ.get("SPANNERLM_TOKEN") or None
        check_bind(host, token)
        check_packages("serve")
        import socket

        import uvicorn

        from spannerlm.dialogue import PLAIN
        from spannerlm.tilted import load_policy
        from spannerlm.web.serve import Served, answering, serve_app

        policy = load_policy(directory, kl=kl)
        known = name or directory.resolve().name
        served = Served(policy, known, (), getattr(policy.model, "form", PLAIN), max_draws, fallback.value, max_n)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                place.bind((host, port))
                place.listen(128)  # before the address is told: who reads it may ask at once
            except OSError as error:
                raise InputError(
                    f"{host}:{port}: could not be listened on ({error.strerror}): choose another"
                ) from None
            bound = place.getsockname()[1]
            names = {host, "localhost", "127.0.0.1", "[::1]"} | set(os.environ.get("SPANNERLM_HOSTS", "").split())
            hosts = frozenset(n for other in names for n in (other.lower(), f"{other.lower()}:{bound}"))
            app = serve_app(served, hosts=hosts if token is None else None, token=token)
            shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
            with reserved_stdout(False) as console:
                print_lines(console, [f"serving  {known} at http://{shown}:{bound}/v1", "Ctrl-C ends it."])
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S
            )
            try:
                uvicorn.Server(config).run(sockets=[place])
            except KeyboardInterrupt:
                if answering():  # the interpreter cannot end in good order while a thread is in a forward pass
                    os.write(2, b"stopped\n")
                    os._exit(130)
                raise
