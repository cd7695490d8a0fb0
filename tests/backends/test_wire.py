"""Replies as real servers gave them (vLLM 0.32.0, transformers serve 5.23), and how they are read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from spannerlm.backends.wire import NEUTRAL, Plan, Reply, Request, paid, parsed, request
from spannerlm.dialogue import Form

TOKENS = ["hello", "there", "please", "charge", "the", "battery", "good", "luck", "</s>"]
LOGPROBS = [
    -1.0131685733795166,
    -3.2782016205601394e-05,
    -0.054640114307403564,
    -2.7821507453918457,
    -2.7417760065873154e-05,
    -3.731181277544238e-05,
    -2.6129579544067383,
    -8.106198947643861e-06,
    -1.5497195136049413e-06,
]
VLLM: dict[str, Any] = {
    "id": "cmpl-ab7b8f556470f053",
    "object": "text_completion",
    "created": 1795435542,
    "model": "helpdesk",
    "choices": [
        {
            "index": 0,
            "text": " hello there please charge the battery good luck",
            "logprobs": {
                "text_offset": [0, 5, 10, 16, 22, 25, 32, 36, 40],
                "token_logprobs": LOGPROBS,
                "tokens": TOKENS,
                "top_logprobs": [{token: value} for token, value in zip(TOKENS, LOGPROBS, strict=True)],
            },
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        },
        {
            "index": 1,
            "text": " hello there please let",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
        },
    ],
    "service_tier": None,
    "system_fingerprint": "vllm-0.32.0-e5d44173",
    "usage": {"prompt_tokens": 5, "total_tokens": 18, "completion_tokens": 13, "prompt_tokens_details": None},
    "kv_transfer_params": None,
}
TRANSFORMERS: dict[str, Any] = {
    "id": "ed5f4e1d-c2c8-4185-93ae-1cbaebb6f196",
    "choices": [{"finish_reason": "stop", "index": 0, "text": "okay please charge the battery many thanks"}],
    "created": 1795434725,
    "model": "model@main",
    "object": "text_completion",
    "usage": {"completion_tokens": 8, "prompt_tokens": 5, "total_tokens": 13},
}


def asked(n: int, *, exact: bool = True) -> Request:
    return Request("/completions", {}, n, exact)


def test_what_vllm_says_is_read() -> None:
    """Tokens and log-probabilities with those of the end, which the text does not show; the space in front stays."""
    found = parsed(json.dumps(VLLM).encode(), asked(2))
    assert isinstance(found, Reply)
    first, second = found.choices
    assert first.text == " hello there please charge the battery good luck"
    assert (first.tokens, first.finished) == (tuple(TOKENS), True)
    assert first.logprobs is not None
    assert math.fsum(first.logprobs) == pytest.approx(sum(LOGPROBS))
    assert (second.tokens, second.logprobs, second.finished) == (None, None, False)
    assert (found.prompt_tokens, found.completion_tokens) == (5, 13)
    assert sum(found.lengths()) == 13  # told together, shared by characters
    assert Reply.of(json.loads(json.dumps(found.row()))) == found


@pytest.mark.parametrize("usage", [3, [], {"prompt_tokens": 1e400}, {"prompt_tokens": -5}, {"prompt_tokens": "7"},
                                   {"prompt_tokens": True}, {"prompt_tokens": 10**30}])  # fmt: skip
def test_counts_that_cannot_be_are_none(usage: Any) -> None:
    raw = json.dumps({**VLLM, "usage": usage}).encode()
    found = parsed(raw, asked(2))
    assert isinstance(found, Reply)
    assert (found.prompt_tokens, found.completion_tokens) == (None, None)
    assert paid(raw) == (0, 0)


@pytest.mark.parametrize("value", ["-1" + "0" * 400, "true", "5.0", '"x"', "null", "NaN", "-Infinity"])
def test_log_probabilities_that_cannot_be_are_none(value: str) -> None:
    shown = '{"content": [{"token": "a", "logprob": %s}]}' % value  # noqa: UP031 - braces of JSON
    raw = f'{{"choices": [{{"text": "a", "finish_reason": "stop", "logprobs": {shown}}}]}}'
    found = parsed(raw.encode(), asked(1))
    if isinstance(found, str):
        assert found == "is no completion in the OpenAI form"
    else:
        assert found.choices[0].logprobs is None


def test_a_reply_that_is_of_no_use_was_charged() -> None:
    assert paid(json.dumps({**VLLM, "choices": 3}).encode()) == (5, 13)
    assert [paid(raw) for raw in (b"", b"[]", b"3", b"{", b"[" * 10**5, b'{"usage": []}')] == [(0, 0)] * 6


def test_what_transformers_serve_says_is_read() -> None:
    found = parsed(json.dumps(TRANSFORMERS).encode(), asked(1))
    assert isinstance(found, Reply)
    assert found.choices[0].text == "okay please charge the battery many thanks"
    assert found.lengths() == (8,)
    said = parsed(json.dumps(TRANSFORMERS).encode(), asked(4))
    assert isinstance(said, str)
    assert "1 choices where 4 were asked for" in said


def test_a_request_has_what_the_documented_protocol_names() -> None:
    """vLLM's documentation: sampling fields beside OpenAI's, and going on from the last message."""
    plan = Plan("completions", unlimited=True)
    body = request(plan, "m", "Hi", n=3, limit=7, seed=5, stop=["x"]).body
    assert body == {
        "model": "m",
        "prompt": "Hi",
        "max_tokens": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "n": 3,
        "stop": ["x"],
        "seed": 5,
        **NEUTRAL,
        "logprobs": 1,
    }
    chat = request(Plan("chat"), "m", "Hi", n=1, limit=7, seed=5, behind="Well,", form=Form("Be kind.")).body
    assert chat["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well,"},
    ]
    assert (chat["continue_final_message"], chat["add_generation_prompt"], chat["logprobs"]) == (True, False, True)
    assert "n" not in chat
