"""Requests and replies of the OpenAI protocol: what is understood, what is refused and why, what is sent back.

The law of a response is the policy's. Whatever would change it (temperature, top_p, penalties, ...) is refused by name,
never ignored; so is what this server cannot do.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spannerlm.dialogue import Form, written

CHOICES_LIMIT = 128
"""Largest ``n``, unless the owner says otherwise, and most prompts of one request."""
STOPS_LIMIT = 4
SEED_LIMIT = 2**63
TEXT_LIMIT = 2**20
"""Characters of one prompt at most."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Field -> values that ask for nothing; any other is refused."""
UNUSED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""Fields that do not touch the response."""
COMMON = {"model", "n", "stop", "seed", "stream", "stream_options", "max_tokens"}


class ApiError(Exception):
    """A refusal in the OpenAI form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        after: int | None = None,
        again: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.after = status, param, code, after
        self.again = again
        """Whether a client may send the request again by itself."""

    def body(self) -> dict[str, Any]:
        """``{"error": {...}}``."""
        return error_body(self.status, str(self), self.param, self.code)


TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error reply."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Asked:
    """One request, understood."""

    prompts: tuple[str, ...]
    n: int
    stop: tuple[str, ...]
    max_tokens: int | None
    seed: int | None
    stream: bool
    told_usage: bool
    """Whether a stream ends with a chunk of usage."""
    chat: bool


@dataclass(frozen=True)
class Chosen:
    """One response as it is sent."""

    text: str
    finish: str
    """``stop`` or ``length``."""


def understood(body: Any, *, chat: bool, models: Sequence[str], form: Form, limit: int) -> Asked:
    """The request of a body. Raises `ApiError`: 404 for another model, 400 with the field for all else."""
    if not isinstance(body, dict):
        raise ApiError(400, f"expected a JSON object, got {_kind(body)}")
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, f"model: expected a name, got {_kind(model)}", param="model")
    if model not in models:
        message = f"The model {model!r:.120} does not exist; expected one of {', '.join(models)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    own = COMMON | ({"messages", "max_completion_tokens"} if chat else {"prompt"})
    for name, value in body.items():
        if name in own or name in UNUSED or value is None:
            continue
        if name not in NEUTRAL:
            raise ApiError(400, f"{name!r:.80}: this server does not know it; leave it out", param=str(name)[:80])
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]
        ):
            raise ApiError(
                400,
                f"{name}: expected {json.dumps(NEUTRAL[name][0])} or nothing, because the law of a response is the "
                f"learned policy's, got {_shown(value)}",
                param=name,
                code="unsupported_value",
            )
    prompts = (_prompt(body.get("messages"), form),) if chat else _prompts(body.get("prompt"))
    if form.dialogues and not chat:
        prompts = tuple(written([{"role": "user", "content": text}]) for text in prompts)
    n = _whole(body, "n", 1, limit)
    if len(prompts) * (n or 1) > limit:
        raise ApiError(
            400, f"prompt: expected at most {limit} responses in all, got {len(prompts)} x {n}", param="prompt"
        )
    most = _whole(body, "max_completion_tokens", 1, None) if chat else None
    stream = _flag(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, f"stream_options: expected an object, got {_kind(options)}", param="stream_options")
    return Asked(
        prompts,
        1 if n is None else n,
        _stops(body.get("stop")),
        _whole(body, "max_tokens", 1, None) if most is None else most,
        _whole(body, "seed", 0, SEED_LIMIT),
        stream,
        bool(options.get("include_usage")),
        chat,
    )


def _whole(body: Mapping[str, Any], name: str, least: int, most: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ApiError(400, f"{name}: expected a whole number {bounds}, got {_shown(value)}", param=name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name}: expected true or false, got {_shown(value)}", param=name)
    return bool(value)


def _stops(value: Any) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > STOPS_LIMIT or not all(isinstance(s, str) and s for s in found):
        raise ApiError(400, f"stop: expected up to {STOPS_LIMIT} non-empty texts, got {_shown(value)}", param="stop")
    return tuple(found)


def _prompts(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ApiError(
            400, f"prompt: expected a text, or a list of texts, no token ids, got {_shown(value)}", param="prompt"
        )
    return tuple(_text("prompt", text) for text in found)


def _prompt(messages: Any, form: Form) -> str:
    """The user's one message, or the whole conversation where the policy was learned on such."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ApiError(400, f"messages: expected a list of messages, got {_shown(messages)}", param="messages")
    roles = [message.get("role") for message in messages]
    rest, system = list(messages), form.system
    first = _content(rest.pop(0)) if roles[0] in ("system", "developer") else None
    free = form.dialogues and system is None
    if first is not None and not free and first != (system or ""):
        own = "none" if system is None else f"{system!r:.200}"
        raise ApiError(400, f"messages: expected the run's own system prompt ({own}), got another", param="messages")
    roles = [message.get("role") for message in rest]
    if form.dialogues:
        if roles[-1:] != ["user"] or not all(role in ("user", "assistant") for role in roles):
            raise ApiError(
                400,
                "messages: expected messages of the user and the assistant, perhaps behind one of the system, the "
                f"user's last, got the roles {_shown(roles)}",
                param="messages",
            )
        told = [{"role": "system", "content": _text("messages", first)}] if free and first is not None else []
        told += [{"role": m["role"], "content": _text("messages", _content(m))} for m in rest]
        return written(told)
    if roles != ["user"]:
        raise ApiError(
            400,
            "messages: expected one message, the user's: this policy was learned on single prompts, not on "
            f"conversations; got the roles {_shown(roles)}",
            param="messages",
        )
    return _text("messages", _content(rest[0]))


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise ApiError(400, f"messages: expected content that is text, got {_shown(content)}", param="messages")
    return content


def _text(name: str, text: str) -> str:
    if not text or len(text) > TEXT_LIMIT:
        raise ApiError(400, f"{name}: expected 1 to {TEXT_LIMIT} characters, got {len(text)}", param=name)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ApiError(400, f"{name}: expected valid Unicode, got half of a surrogate pair", param=name)
    return text


def reply(asked: Asked, model: str, choices: Sequence[Chosen], usage: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a whole reply."""
    rows: list[dict[str, Any]] = []
    for i, choice in enumerate(choices):
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        what = {"message": message} if asked.chat else {"text": choice.text}
        rows.append({"index": i, **what, "logprobs": None, "finish_reason": choice.finish})
    return {**_head(asked, model), "choices": rows, "usage": dict(usage)}


def chunks(asked: Asked, model: str, choices: Sequence[Chosen], usage: Mapping[str, Any]) -> Iterator[bytes]:
    """The same as a stream of events. None is sent before all responses are accepted: until then they are not known."""
    head = _head(asked, model, stream=True)

    def event(index: int, text: str, finish: str | None, *, first: bool) -> bytes:
        part: dict[str, Any] = {"text": text}
        if asked.chat:
            part = {"delta": {**({"role": "assistant"} if first else {}), **({"content": text} if text else {})}}
        row = {"index": index, **part, "logprobs": None, "finish_reason": finish}
        return _event({**head, "choices": [row], **({"usage": None} if asked.told_usage else {})})

    for i, choice in enumerate(choices):
        for k, piece in enumerate(re.findall(r"\s*\S+|\s+\Z", choice.text) or [""]):
            yield event(i, piece, None, first=k == 0)
        yield event(i, "", choice.finish, first=False)
    if asked.told_usage:
        yield _event({**head, "choices": [], "usage": dict(usage)})
    yield b"data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=True).encode("ascii") + b"\n\n"


def _head(asked: Asked, model: str, *, stream: bool = False) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if stream else "chat.completion") if asked.chat else "text_completion"
    prefix = "chatcmpl" if asked.chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
