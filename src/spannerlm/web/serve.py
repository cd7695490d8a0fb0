"""The learned policy as an OpenAI-compatible endpoint: completions and chat, n, stop, seed, streams of whole responses.

A response costs base draws: how many is told in ``usage.spannerlm`` and in the header ``x-spannerlm-draws``. Where a
cap on draws is hit before the policy's law is reached, the owner's choice applies: the best so far, a plain draw of the
base model, or an error; ``usage.spannerlm.exhausted`` tells of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from spannerlm.dialogue import PLAIN, Form
from spannerlm.errors import InputError, ModelError
from spannerlm.segments import cut_at_stop
from spannerlm.tilted import Answer, SteppedPolicy, TiltedPolicy
from spannerlm.web.forms import ApiError, Asked, Chosen, chunks, error_body, reply, understood
from spannerlm.web.security import Guard

LOG = logging.getLogger(__name__)
Fallback = Literal["best", "base", "error"]
Found = tuple[list[Chosen], dict[str, Any]]
"""[m n] responses and the usage."""
ANSWERING = "spannerlm-serve"
"""Name of the thread that draws."""
QUEUE = 32
"""Requests that may wait for the model; further ones are told to come back."""
BODY_LIMIT = 2 * 2**20


@dataclass(frozen=True)
class Served:
    """What is served, and within which bounds."""

    policy: TiltedPolicy | SteppedPolicy
    name: str
    """What it is called; ``also`` are names that are understood too."""
    also: tuple[str, ...] = ()
    form: Form = PLAIN
    """What the texts of the run's prompts stand for."""
    max_draws: int | None = None
    """Base draws of one response at most (of a step, where the policy goes by steps); None: the policy's own cap."""
    fallback: Fallback = "best"
    limit: int = 128
    """Responses of one request at most."""


class Desk:
    """Answers requests, one at a time: there is one model."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def turn(self, asked: Asked, gone: Callable[[], Awaitable[bool]]) -> Found | None:
        """What `answer` gives once it is this request's turn; None where its client is ``gone`` by then: no draws.

        Raises `ApiError` 429 where the queue is full.
        """
        if self._waiting >= QUEUE:
            raise ApiError(429, f"{QUEUE} requests are waiting already: come back in a second", after=1)
        self._waiting += 1
        try:
            async with self._turn:
                if await gone():
                    return None
                return await _aside(partial(self.answer, asked))
        except asyncio.CancelledError:
            raise ApiError(503, "this server is being ended") from None
        finally:
            self._waiting -= 1

    def answer(self, asked: Asked) -> Found:
        """[m n] responses, those of one prompt side by side, and the usage. Cost: the draws that the usage tells."""
        self._check(asked)
        rng = np.random.default_rng(asked.seed)
        try:
            return self._answered(asked, rng)
        except InputError as error:
            raise ApiError(400, str(error)) from error
        except ModelError as error:
            if getattr(self.served.policy.model, "codec", None) is not None:  # the model is here
                raise ApiError(400 if "prompt" in str(error) else 503, str(error), again=False) from error
            # Whose server it is and what it said is its owner's to know; what was drawn would be paid for again.
            LOG.error("the model's server: %s", error)
            raise ApiError(503, "the model behind this server failed: its owner can see why", again=False) from error

    def _check(self, asked: Asked) -> None:
        """Raise `ApiError`, before anything is drawn, for a token limit where tokens are not known."""
        most = self.served.policy.model.max_new_tokens
        known = getattr(self.served.policy.model, "codec", None) is not None
        if not known and asked.max_tokens is not None and asked.max_tokens < most:
            raise ApiError(
                400,
                f"max_tokens: expected none, or at least {most}: the model is behind a server, and its tokens are not "
                "known here",
                param="max_tokens",
            )

    def _answered(self, asked: Asked, rng: np.random.Generator) -> Found:
        policy, cap = self.served.policy, self.served.max_draws
        if isinstance(policy, SteppedPolicy):
            found = policy.sample(asked.prompts, asked.n, rng=rng, **({} if cap is None else {"draws": cap}))
        else:
            # a request for n responses may spend n times as much: the cap is one response's
            bounds = {} if cap is None else {"max_draws": cap * asked.n}
            found = policy.sample(asked.prompts, asked.n, rng=rng, **bounds)
        draws, exhausted = sum(a.draws for a in found), any(a.exhausted for a in found)
        if exhausted and self.served.fallback == "error":
            raise ApiError(
                422,  # clients send 5xx again by themselves, and would pay the draws again
                f"the cap on draws was hit after {draws} base draws, before the policy's law was reached: serve with a "
                "higher --max-draws, or with --fallback best or base",
                code="draws_exhausted",
            )
        if exhausted and self.served.fallback == "base":
            found, extra = self._base(found, asked, rng)
            draws += extra
        chosen, prompt_tokens, completion_tokens = [], 0, 0
        for answer in found:
            prompt_tokens += self._tokens(answer.prompt, None)
            for text in answer.responses:
                choice = self._finished(answer.prompt, text, asked)
                completion_tokens += self._tokens(answer.prompt, choice.text)
                chosen.append(choice)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "spannerlm": {
                "draws": draws,
                "exhausted": exhausted,
                "fallback": self.served.fallback if exhausted else None,
            },
        }
        return chosen, usage

    def _base(self, found: Sequence[Answer], asked: Asked, rng: np.random.Generator) -> tuple[tuple[Answer, ...], int]:
        """The answers, exhausted ones replaced by plain draws of the base model, and the draws that this cost."""
        out, extra = [], 0
        for answer in found:
            if answer.exhausted:
                [record] = self.served.policy.base([answer.prompt]).draw([0], asked.n, rng=rng)
                rows = rng.permutation(np.repeat(np.arange(len(record.responses)), record.counts))
                texts = tuple(record.responses[i] for i in rows)
                answer = Answer(answer.prompt, texts, answer.draws, True)
                extra += asked.n
            out.append(answer)
        return tuple(out), extra

    def _finished(self, prompt: str, text: str, asked: Asked) -> Chosen:
        """A response cut at a stop string of the request, then at its token limit."""
        cut = cut_at_stop(text, asked.stop, keep=False)
        finish = "length" if self._full(prompt, text) and cut == text else "stop"
        codec = getattr(self.served.policy.model, "codec", None)
        if codec is None or asked.max_tokens is None or asked.max_tokens >= self.served.policy.model.max_new_tokens:
            return Chosen(cut, finish)
        ids = codec.response_ids(prompt, cut)
        if len(ids) <= asked.max_tokens:
            return Chosen(cut, finish)
        return Chosen(codec.decode([ids[: asked.max_tokens]])[0], "length")

    def _full(self, prompt: str, text: str) -> bool:
        """Whether the model's own token limit ended the response."""
        codec = getattr(self.served.policy.model, "codec", None)
        return codec is not None and len(codec.response_ids(prompt, text)) >= self.served.policy.model.max_new_tokens

    def _tokens(self, prompt: str, text: str | None) -> int:
        """Tokens of a prompt, or of a response to it; of a model behind a server four characters to a token."""
        codec = getattr(self.served.policy.model, "codec", None)
        if codec is None:
            return -(-len(prompt if text is None else text) // 4)
        return len(codec.prompt_ids(prompt) if text is None else codec.response_ids(prompt, text))


async def _aside(call: Callable[[], Found]) -> Found:
    """What the call gives, in a thread that nothing waits for when the server ends: draws cannot be stopped half-way.

    See `answering`.
    """
    future: Future[Found] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever awaits it raises it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=ANSWERING).start()
    return await asyncio.wrap_future(future)


def answering() -> bool:
    """Whether a thread of this process still draws."""
    return any(thread.name == ANSWERING for thread in threading.enumerate())


def serve_app(served: Served, *, hosts: frozenset[str] | None, token: str | None = None) -> Any:
    """The endpoint as an ASGI app. ``hosts``: as `Guard` has them; ``token``: the API key."""
    app, desk = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False), Desk(served)
    names = (served.name, *served.also)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"state": "up"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Response:
        if name not in names:
            raise ApiError(404, f"The model {name!r:.120} does not exist", param="model", code="model_not_found")
        return _json(_model(name))

    async def respond(request: Request, chat: bool) -> Response:
        asked = understood(await _body(request), chat=chat, models=names, form=served.form, limit=served.limit)
        found = await desk.turn(asked, request.is_disconnected)
        if found is None:
            return Response(status_code=499)  # nobody reads it
        choices, usage = found
        head = {"x-spannerlm-draws": str(usage["spannerlm"]["draws"])}
        if asked.stream:
            return StreamingResponse(
                chunks(asked, served.name, choices, usage), media_type="text/event-stream", headers=head
            )
        return _json(reply(asked, served.name, choices, usage), headers=head)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond(request, chat=False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await respond(request, chat=True)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        head = {} if error.after is None else {"retry-after": str(error.after)}
        head |= {} if error.again else {"x-should-retry": "false"}
        return _json(error.body(), error.status, head)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _json(error_body(500, f"this server broke on the request: {type(error).__name__}"), 500)

    @app.exception_handler(404)
    async def nowhere(request: Request, _: Exception) -> Response:
        return _json(error_body(404, f"no such route: {request.method} {request.url.path[:200]}"), 404)

    @app.exception_handler(405)
    async def no_method(request: Request, _: Exception) -> Response:
        return _json(error_body(405, f"{request.url.path[:200]} does not take {request.method}"), 405)

    def refusal(status: int, text: str) -> tuple[bytes, bytes]:
        return _encoded(error_body(status, text)), b"application/json"

    tokens = {} if token is None else {token: "owner"}
    return Guard(app, hosts=hosts, tokens=tokens, body_limit=BODY_LIMIT, refusal=refusal, cookies=False)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "spannerlm"}


async def _body(request: Request) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(await request.body(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"expected a body of JSON: {str(error)[:120]}") from error


def _encoded(body: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: every text survives, lone surrogates included."""
    return json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")


def _json(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encoded(body), status, media_type="application/json", headers=dict(headers or {}))
