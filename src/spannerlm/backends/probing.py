"""What a server honours, found by asking it: draws that vary, ``n``, log-probabilities, and going on from a beginning.

Some servers ignore what they do not know, some refuse it, and one without ``do_sample`` answers greedily whatever the
temperature: each would change the law of the draws in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from spannerlm.backends.endpoint import Endpoint, Refused
from spannerlm.backends.wire import Choice, Plan, Reply, Request
from spannerlm.errors import ModelError

DRAWS = 4
"""Of each of two probes."""
TOKENS = 16
"""Of a probe's draw at most."""
HOT = 2.0
"""The highest temperature of the protocol: no sampler repeats itself there, however peaked its law at 1."""
IMPATIENT = 2
"""Retries while it is open which of both interfaces a server has."""
AWAY = (0, 408, 429, 502, 503, 504)
"""What says nothing about the interface: the server is not there, or busy."""
DROPPED = ("logprobs", "n", "top_k", "seed")
"""What is left out where a server refuses it, in this order unless it names one."""

Ask = Callable[..., Request]
"""(plan, *, n, seed, limit, temperature, exact, behind, stops) -> a request for the prompt that is probed."""


def probed(endpoint: Endpoint, apis: Sequence[str], ask: Ask, limit: int, many: bool, stops: bool) -> Plan:
    """How the server is asked. Cost: about 8 draws of at most `TOKENS` tokens, 16 where they are all alike.

    `ModelError` where draws do not vary with the seed even at temperature `HOT`: the server decodes greedily, or hands
    out one reply again and again. Draws that are all alike at temperature 1 alone are a peaked law's right: a warning.
    """
    limit = min(limit, TOKENS)
    plan, first = _understood(endpoint, apis, ask, limit, many)
    notes = list(plan.warnings)
    if plan.many and len(first.choices) != DRAWS:
        notes.append(f"the server ignores n: asked for {DRAWS} choices it gave {len(first.choices)}; one per request")
        plan = replace(plan, many=False)
    if plan.logprobs and any(choice.logprobs is None for choice in first.choices):
        notes.append("the server shows no log-probabilities: features and lengths that need them are not to be had")
        plan = replace(plan, logprobs=False)
    second = _drawn(endpoint, plan, ask, limit, DRAWS + 1, 1.0)
    texts = [[choice.text for choice in part] for part in (first.choices, second)]
    if plan.many and all(len(set(part)) == 1 for part in texts) and texts[0][0] != texts[1][0]:
        notes.append("the server's n choices of one request are copies of each other: one per request")
        plan = replace(plan, many=False)
    if len({text for part in texts for text in part}) == 1:
        notes.append(_alike(endpoint, plan, ask, limit, texts[0][0]))
    if stops:
        request = ask(plan, n=1, seed=DRAWS + 2, limit=limit, temperature=1.0, exact=True, stops=True)
        try:
            endpoint.send([request], IMPATIENT)
        except Refused as error:
            notes.append(f"the server does not take stop strings: responses are drawn on and cut here ({error})")
            plan = replace(plan, stop=False)
    return replace(plan, warnings=tuple(notes))


def _understood(endpoint: Endpoint, apis: Sequence[str], ask: Ask, limit: int, many: bool) -> tuple[Plan, Reply]:
    """A plan that the server does not refuse, of the first interface that it has, and the first probe's reply."""
    unlimited = endpoint.owner() in ("vllm", "sglang")
    refused: Refused | None = None
    for api in apis:
        plan = Plan(api, many=many, unlimited=unlimited)
        notes = () if refused is None else (f"uses {api}, since the other interface was refused ({refused})",)
        while True:
            request = ask(plan, n=DRAWS if plan.many else 1, seed=1, limit=limit, temperature=1.0, exact=False)
            try:
                reply = _first(endpoint, request, len(apis) > 1)
            except Refused as error:
                simpler = _simpler(plan, error.said) if error.status in (400, 422) else None
                if simpler is None:
                    refused = error
                    break
                plan = simpler
            else:
                return replace(plan, warnings=notes), reply
    assert refused is not None  # there is at least one interface
    raise refused


def _first(endpoint: Endpoint, request: Request, choice: bool) -> Reply:
    """The first reply; where another interface may be chosen, one that fails by itself is given up sooner."""
    if choice:
        try:
            return endpoint.send([request], IMPATIENT)[0]
        except Refused as error:
            if error.status not in AWAY:
                raise
    return endpoint.send([request])[0]


def _simpler(plan: Plan, said: str) -> Plan | None:
    """The plan without what a server refused; None where nothing is left to leave out."""
    if "max_completion_tokens" in said and plan.limit == "max_tokens":
        return replace(plan, limit="max_completion_tokens")
    has = {"logprobs": plan.logprobs, "n": plan.many, "top_k": plan.unlimited, "seed": plan.seed}
    named = [name for name in DROPPED if has[name] and re.search(rf"['\"`\\]{name}['\"`\\]", said)]
    for name in (*named, *(name for name in DROPPED if has[name])):
        if name == "logprobs":
            return replace(plan, logprobs=False)
        if name == "n":
            return replace(plan, many=False)
        return replace(plan, unlimited=False) if name == "top_k" else replace(plan, seed=False)
    return None


def _drawn(endpoint: Endpoint, plan: Plan, ask: Ask, limit: int, seed: int, temperature: float) -> list[Choice]:
    """`DRAWS` draws from ``seed`` on."""
    each = DRAWS if plan.many else 1
    requests = [
        ask(plan, n=each, seed=seed + k, limit=limit, temperature=temperature, exact=plan.many)
        for k in range(DRAWS // each)
    ]
    return [choice for reply in endpoint.send(requests) for choice in reply.choices]


def _alike(endpoint: Endpoint, plan: Plan, ask: Ask, limit: int, text: str) -> str:
    """A warning for draws that are all ``text``. `ModelError` where they still are at temperature `HOT`."""
    try:
        hot = _drawn(endpoint, plan, ask, limit, 101, HOT) + _drawn(endpoint, plan, ask, limit, 201, HOT)
    except Refused as error:
        return (
            f"all first draws read {text!r}, and the server refused temperature {HOT:g}: see that it samples ({error})"
        )
    if {choice.text for choice in hot} == {text}:
        raise ModelError(
            f"{endpoint.url}: every draw reads {text!r}, whatever the seed and the temperature: the server decodes "
            "greedily or repeats one reply: give the model do_sample: true in its generation_config.json and switch "
            "caching of replies off; where this prompt has but one answer, put another one first"
        )
    return f"all first draws read {text!r}: a peaked law, since at temperature {HOT:g} they vary"


def continued(endpoint: Endpoint, plan: Plan, ask: Ask, limit: int) -> tuple[str, str | None]:
    """How a text goes on (``kept``, ``words`` or ``dropped``), and a warning or None.

    The greedy response, begun for the server, must go on as it did: at one of three places at least, for a text may be
    spelled otherwise in tokens where it is cut. `ModelError` where chat does not: the server answers afresh. Some
    servers drop the space that what follows begins with: where tokens are whole words it can be put back
    (``words``), elsewhere nobody can tell (``dropped``). Cost: up to 4 draws, 12 where spaces are dropped, of at most
    2 * `TOKENS` tokens.
    """
    limit = min(limit, 2 * TOKENS)
    whole = _greedy(endpoint, plan, ask, limit)
    cuts = [i for i, c in enumerate(whole) if c == " " and 0 < i < len(whole) - 1]
    cuts = [i for i in cuts if not whole.startswith(whole[i:].strip()[:SEEN])]
    if not cuts:
        return "kept", f"the greedy response {whole!r} is too short to see whether the server goes on from a beginning"
    for i in sorted({cuts[len(cuts) // 2], cuts[0], cuts[-1]}):
        found, rest = _greedy(endpoint, plan, ask, limit, whole[:i]), whole[i:].strip()
        start = found.strip()
        if start and (start.startswith(rest[:SEEN]) or rest.startswith(start[:SEEN])):
            return ("kept", None) if found[0].isspace() else _dropped(endpoint, plan, ask, whole)
    if plan.api == "chat":
        raise ModelError(
            f"{endpoint.url}: the server answers afresh where continue_final_message asks it to go on from what "
            "there is: use api: completions, or leave out segments"
        )
    return "kept", "greedy responses go on otherwise than they were drawn where their beginning is given as text"


def _dropped(endpoint: Endpoint, plan: Plan, ask: Ask, whole: str) -> tuple[str, str]:
    """``words`` where every beginning of the greedy response, token by token, ends with a word."""
    starts = [_greedy(endpoint, plan, ask, k) for k in range(1, TOKENS // 2 + 1)]
    if all(whole.startswith(start) and not whole[len(start) :][:1].strip() for start in starts):
        return "words", "the server drops the space in front of what it goes on with: tokens are words, it is put back"
    return "dropped", "the server drops the space in front of what it goes on with"


SEEN = 8
"""Characters by which a continuation is known."""


def _greedy(endpoint: Endpoint, plan: Plan, ask: Ask, limit: int, behind: str = "") -> str:
    request = ask(plan, n=1, seed=1, limit=limit, temperature=0.0, exact=True, behind=behind)
    return endpoint.send([request])[0].choices[0].text
