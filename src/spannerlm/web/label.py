"""The labelling page as a FastAPI app."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from spannerlm.errors import InputError, SpannerError
from spannerlm.labelfiles import written
from spannerlm.web import export
from spannerlm.web.desk import Desk
from spannerlm.web.security import Guard

FILES = {
    "/": ("label.html", "text/html; charset=utf-8"),
    "/owner": ("owner.html", "text/html; charset=utf-8"),
    "/static/label.js": ("label.js", "text/javascript; charset=utf-8"),
    "/static/owner.js": ("owner.js", "text/javascript; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
}
"""All that is served from files: no name of a file ever comes from a client."""


def label_app(
    desk: Desk, *, hosts: frozenset[str], tokens: Mapping[str, str] | None = None, guidelines: str = ""
) -> Any:
    """The page of a desk. ``hosts``: names and ports under which it answers; ``tokens``: role by token (`Guard`)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    comparing = desk.run.spec.feedback == "comparison"

    def serve(name: str, kind: str) -> Any:
        text = resources.files("spannerlm.web").joinpath("static", name).read_bytes()

        def page() -> Response:
            return Response(text, media_type=kind)

        return page

    for path, (name, kind) in FILES.items():
        app.get(path)(serve(name, kind))

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"state": "up"}

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {"guidelines": guidelines, "comparing": comparing}

    @app.post("/api/next")
    async def following(request: Request) -> Response:
        body = await _json(request)
        return _answer(await run_in_threadpool(desk.next, body.get("rater", "")))

    @app.post("/api/previous")
    async def previous(request: Request) -> Response:
        body = await _json(request)
        return _answer(await run_in_threadpool(desk.previous, body.get("rater", ""), body.get("before")))

    @app.post("/api/answer")
    async def answer(request: Request) -> Response:
        body = await _json(request)
        given = {name: body.get(name) for name in ("choice", "value", "skip")}
        return _answer(await run_in_threadpool(desk.answer, body.get("rater", ""), body.get("id", ""), given))

    @app.get("/owner/panel")
    def panel() -> Response:
        return _answer(desk.panel())

    @app.get("/owner/export/{name}")
    def exported(name: str) -> Response:
        return _file(desk, name)

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> Response:
        return _answer({"state": "error", "why": str(error)}, 400)

    @app.exception_handler(SpannerError)
    async def broken(_: Request, error: SpannerError) -> Response:
        return _answer({"state": "error", "why": str(error)}, 503)

    return Guard(app, hosts=hosts, tokens=tokens or {})


def _file(desk: Desk, name: str) -> Response:
    answers = desk.run.answers()
    made = {
        "labels.jsonl": lambda: written(export.rows(answers), "jsonl"),
        "labels.csv": lambda: written(export.rows(answers), "csv"),
        "pairs.jsonl": lambda: written(export.pairs(answers), "jsonl"),
        "skips.jsonl": lambda: written(export.skips(answers), "jsonl"),
    }
    if name not in made:
        raise InputError(f"expected one of {', '.join(made)}, got {name!r:.40}")
    head = {"content-disposition": f'attachment; filename="{name}"'}
    kind = "text/csv; charset=utf-8" if name.endswith(".csv") else "application/jsonl"
    return Response(made[name](), media_type=kind, headers=head)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InputError("expected a JSON object")
    return body


def _answer(body: Mapping[str, Any], status: int = 200) -> Response:
    """JSON in ASCII: every text survives, lone surrogates included."""
    text = json.dumps(body, ensure_ascii=True, allow_nan=False)
    return Response(text.encode("ascii"), status, media_type="application/json")
