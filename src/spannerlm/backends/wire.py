"""The OpenAI protocol as text: bodies of completions and chat requests, and what their replies say."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spannerlm.dialogue import PLAIN, Form

FINISHED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}
"""What servers call a response that ended by itself; "length" is one that the token limit cut off."""
CHARACTERS = 4
"""Characters of a token, where nobody counts them."""

ROUNDING = 1e-3
"""Nats by which rounding may lift a log-probability above 0; higher ones are none."""
MOST_TOKENS = 2**40
"""A reply that counts more counts wrongly."""

NEUTRAL = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Settings that leave the law alone: where a request is silent, vLLM and SGLang take the model's own."""


@dataclass(frozen=True)
class Plan:
    """How a server is asked: what it was found to honour."""

    api: str
    """``completions`` or ``chat``."""
    many: bool = True
    """Whether ``n`` gives that many independent choices."""
    logprobs: bool = True
    seed: bool = True
    stop: bool = True
    """Whether stop strings are honoured, or at least ignored; else responses are cut when they have come."""
    unlimited: bool = False
    """Whether `NEUTRAL` is understood: some servers take other settings from the model's own."""
    limit: str = "max_tokens"
    """What the token limit is called."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One request of ``n`` draws."""

    path: str
    body: Mapping[str, Any]
    n: int = 1
    exact: bool = True
    """Whether another number of choices than n is a fault."""

    def key(self, url: str) -> str:
        """Hash of all that decides what comes back; the API key is not in it."""
        return hashlib.sha256(json.dumps([url, self.path, self.body], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Choice:
    """One draw as a server gave it."""

    text: str
    finished: bool
    """False where the token limit cut it off."""
    tokens: tuple[str, ...] | None = None
    """Its tokens, where the server shows them."""
    logprobs: tuple[float, ...] | None = None
    """Theirs, in nats."""


@dataclass(frozen=True)
class Reply:
    """What came back for one request."""

    choices: tuple[Choice, ...]
    prompt_tokens: int | None = None
    """None where the server does not count."""
    completion_tokens: int | None = None
    """Of all choices."""

    def row(self) -> dict[str, Any]:
        """JSON object from which :meth:`of` makes this again."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Reply:
        """What :meth:`row` gave."""
        choices = [
            Choice(
                c["text"],
                c["finished"],
                None if c["tokens"] is None else tuple(c["tokens"]),
                None if c["logprobs"] is None else tuple(c["logprobs"]),
            )
            for c in row["choices"]
        ]
        return cls(tuple(choices), row["prompt_tokens"], row["completion_tokens"])

    def lengths(self) -> tuple[int, ...]:
        """[n] tokens of each choice: as shown; else the server's count, shared by characters; else by `CHARACTERS`.

        Shared or estimated numbers are at least 1, and shared ones need not add up to the count.
        """
        if all(c.tokens is not None for c in self.choices):
            return tuple(len(c.tokens or ()) for c in self.choices)
        total = self.completion_tokens
        if total is None:
            return tuple(estimated(c.text) for c in self.choices)
        weights = [len(c.text) + CHARACTERS for c in self.choices]
        return tuple(max(1, round(total * w / sum(weights))) for w in weights)


def estimated(text: str) -> int:
    """Tokens of a text and its end, where nobody counts them."""
    return 1 + math.ceil(len(text) / CHARACTERS)


def request(
    plan: Plan,
    model: str,
    prompt: str,
    *,
    n: int,
    limit: int,
    seed: int,
    behind: str = "",
    form: Form | None = None,
    stop: Sequence[str] = (),
    temperature: float = 1.0,
    exact: bool = True,
) -> Request:
    """``n`` draws after a prompt, and after ``behind``, the beginning of the response."""
    body: dict[str, Any] = {"model": model}
    if plan.api == "completions":
        body["prompt"] = prompt + behind
    else:
        messages = (form or PLAIN).messages(prompt)
        if behind:
            messages.append({"role": "assistant", "content": behind})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        body["messages"] = messages
    body |= {plan.limit: limit, "temperature": temperature, "top_p": 1.0}
    if n > 1:
        body["n"] = n
    if stop and plan.stop:
        body["stop"] = list(stop)
    if plan.seed:
        body["seed"] = seed
    if plan.unlimited:
        body |= NEUTRAL
    if plan.logprobs:
        body["logprobs"] = 1 if plan.api == "completions" else True
    return Request("/completions" if plan.api == "completions" else "/chat/completions", body, n, exact)


def parsed(raw: bytes, asked: Request) -> Reply | str:
    """The reply, or in words what is wrong with it."""
    try:
        found = json.loads(raw)
        choices = found["choices"]
        counts = _counts(found)
        if asked.exact and len(choices) != asked.n:
            return f"holds {len(choices)} choices where {asked.n} were asked for"
        if not choices:
            return "holds no choice"
        read = [_choice(choice) for choice in choices]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return "is no completion in the OpenAI form"
    wrong = [part for part in read if isinstance(part, str)]
    if wrong:
        return wrong[0]
    return Reply(tuple(part for part in read if isinstance(part, Choice)), counts[0], counts[1])


def paid(raw: bytes) -> tuple[int, int]:
    """Tokens of prompt and completion that a reply says it cost, also one that is of no use; 0 where it says none."""
    try:
        prompt, completion = _counts(json.loads(raw))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return 0, 0
    return prompt or 0, completion or 0


def _counts(found: Any) -> tuple[int | None, int | None]:
    """Tokens of prompt and completion; None where they are not told, or are no numbers of tokens."""
    usage = found.get("usage")
    told = [usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count < MOST_TOKENS else None for count in told)
    return prompt, completion


def _choice(choice: Mapping[str, Any]) -> Choice | str:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if not isinstance(text, str):
        return f"has {text!r} for a text"
    reason = choice.get("finish_reason")
    if reason != "length" and reason not in FINISHED:
        return f"ended with finish_reason {reason!r}"
    tokens, logprobs = _logprobs(choice.get("logprobs"))
    return Choice(text, reason in FINISHED, tokens, logprobs)


def _logprobs(shown: Any) -> tuple[tuple[str, ...] | None, tuple[float, ...] | None]:
    """Tokens and their log-probabilities in either form; None where they are missing or not numbers."""
    if not isinstance(shown, Mapping):
        return None, None
    if isinstance(shown.get("content"), Sequence):
        pairs = [(part["token"], part["logprob"]) for part in shown["content"]]
    elif isinstance(shown.get("tokens"), Sequence) and isinstance(shown.get("token_logprobs"), Sequence):
        pairs = list(zip(shown["tokens"], shown["token_logprobs"], strict=True))
    else:
        return None, None
    if not pairs or not all(type(p) in (int, float) and math.isfinite(p) and p <= ROUNDING for _, p in pairs):
        return None, None
    return tuple(str(token) for token, _ in pairs), tuple(float(p) for _, p in pairs)
