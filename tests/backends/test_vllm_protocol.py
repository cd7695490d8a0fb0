"""What `ServerModel` asks of vLLM, and makes of its replies: those that vLLM 0.32.0 gave, served again over HTTP.

Recorded from ``vllm serve`` with the bundled helpdesk model (see docs/SERVERS.md), 8 tokens at most. Trimmed:
the first choice of each interface has every field that vLLM sends, the others those that are not null.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from served import Small

from spannerlm import bundled
from spannerlm.backends import endpoint
from spannerlm.backends.server import ServerModel
from spannerlm.errors import ModelError
from spannerlm.segments import segments

PROMPT = "my printer is hot ;"
BEGUN = " so sorry please"
APIS = ["completions", "chat"]
LENGTH = 64
"""Tokens of the served model at most."""
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
SAMPLING = dict.fromkeys(("temperature", "top_p", "min_p", *PENALTIES), float)
SAMPLING |= {**dict.fromkeys(("n", "seed", "top_k", "max_tokens"), int), "stop": list}
FIELDS = {
    "/completions": {**SAMPLING, "model": str, "prompt": str, "logprobs": int},
    "/chat/completions": {
        **SAMPLING,
        "model": str,
        "messages": list,
        "logprobs": bool,
        "continue_final_message": bool,
        "add_generation_prompt": bool,
    },
}
"""What vLLM documents of what may be sent; it ignores any other field without a word."""
MODELS = {"object": "list", "data": [{"id": "helpdesk", "object": "model", "owned_by": "vllm", "max_model_len": 64}]}
NO_MODEL = "The model `other` does not exist. Valid aliases: helpdesk."
NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
TOO_LONG = "max_tokens=100 cannot be greater than max_model_len=64. Please request fewer output tokens. "
TOO_LONG += "(parameter=max_tokens, value=100)"
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."

# JSON, one after the other: the route, what was asked, the reply.
RECORDED = """
["/completions", {"prompt": "my printer is hot ;", "n": 4, "temperature": 1.0}, {"object": "text_completion", "model":
"helpdesk", "choices": [{"index": 0, "text": " so sorry please let it cool if not", "logprobs": {"text_offset": [0, 2,
7, 13, 16, 18, 22, 24], "token_logprobs": [-2.3032906, -0.0002123, -0.0566904, -0.9022447, -3.64e-05, -3.62e-05,
-1.2039441, -0.0001028], "tokens": ["so", "sorry", "please", "let", "it", "cool", "if", "not"], "top_logprobs": [{"so":
-2.3032906, "hello": -1.0131686}, {"sorry": -0.0002123}, {"please": -0.0566904}, {"let": -0.9022447}, {"it":
-3.64e-05}, {"cool": -3.62e-05}, {"if": -1.2039441, "that": -1.1956452}, {"not": -0.0001028}]}, "finish_reason":
"length", "stop_reason": null, "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null, "routed_experts":
null}, {"index": 1, "text": " not you again please let it cool that", "logprobs": {"token_logprobs": [-2.520777,
-3.56e-05, -2.74e-05, -0.0558247, -0.8854192, -4.29e-05, -3.21e-05, -1.1900342], "tokens": ["not", "you", "again",
"please", "let", "it", "cool", "that"]}, "finish_reason": "length"}, {"index": 2, "text":
" hello there please charge the battery good luck", "logprobs": {"token_logprobs": [-1.0131686, -3.28e-05, -0.0546401,
-2.7821507, -2.74e-05, -3.73e-05, -2.612958, -8.1e-06], "tokens": ["hello", "there", "please", "charge", "the",
"battery", "good", "luck"]}, "finish_reason": "length"}, {"index": 3, "text":
" hello there please let it cool many thanks", "logprobs": {"token_logprobs": [-1.0131686, -3.28e-05, -0.0546401,
-0.8738651, -3.54e-05, -3.45e-05, -2.3357046, -2.6e-06], "tokens": ["hello", "there", "please", "let", "it", "cool",
"many", "thanks"]}, "finish_reason": "length"}], "system_fingerprint": "vllm-0.32.0-f07790f3", "usage":
{"prompt_tokens": 5, "total_tokens": 37, "completion_tokens": 32, "prompt_tokens_details": null,
"completion_tokens_details": null}}]
["/completions", {"prompt": "my printer is hot ;", "n": 4, "temperature": 1.0}, {"choices": [{"index": 0, "text":
" okay please let it cool if not try", "logprobs": {"token_logprobs": [-1.0255368, -0.0544347, -0.9043159, -4.06e-05,
-3.33e-05, -1.2045443, -9.5e-05, -9.7e-06], "tokens": ["okay", "please", "let", "it", "cool", "if", "not", "try"]},
"finish_reason": "length"}, {"index": 1, "text": " okay please let it cool we sell better", "logprobs":
{"token_logprobs": [-1.0255368, -0.0544347, -0.9043159, -4.06e-05, -3.33e-05, -3.3321402, -2.5e-05, -5.5e-06],
"tokens": ["okay", "please", "let", "it", "cool", "we", "sell", "better"]}, "finish_reason": "length"}, {"index": 2,
"text": " okay please free some space many thanks", "logprobs": {"token_logprobs": [-1.0255368, -0.0544347, -2.683465,
-8.2e-06, -2.21e-05, -2.3200703, -3.9e-06, -2.7e-06], "tokens": ["okay", "please", "free", "some", "space", "many",
"thanks", "</s>"]}, "finish_reason": "stop"}, {"index": 3, "text": " hello there please wipe the case that should",
"logprobs": {"token_logprobs": [-1.0131686, -3.28e-05, -0.0546401, -2.6551299, -2.78e-05, -2.19e-05, -1.2093221,
-8.9e-06], "tokens": ["hello", "there", "please", "wipe", "the", "case", "that", "should"]}, "finish_reason":
"length"}], "usage": {"prompt_tokens": 5, "total_tokens": 37, "completion_tokens": 32}}]
["/completions", {"prompt": "my printer is hot ;", "temperature": 0.0}, {"choices": [{"index": 0, "text":
" hello there please let it cool that should", "logprobs": {"token_logprobs": [-1.0131686, -3.28e-05, -0.0546401,
-0.8738651, -3.54e-05, -3.45e-05, -1.1939237, -8.1e-06], "tokens": ["hello", "there", "please", "let", "it", "cool",
"that", "should"]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "total_tokens": 13, "completion_tokens":
8}}]
["/completions", {"prompt": "my printer is hot ; hello", "temperature": 0.0}, {"choices": [{"index": 0, "text":
" there please let it cool that should do", "logprobs": {"token_logprobs": [-3.28e-05, -0.0546401, -0.8738651,
-3.54e-05, -3.45e-05, -1.1939237, -8.1e-06, -4.4e-06], "tokens": ["there", "please", "let", "it", "cool", "that",
"should", "do"]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 6, "total_tokens": 14, "completion_tokens":
8}}]
["/completions", {"prompt": "my printer is hot ; so sorry please", "n": 2, "temperature": 1.0}, {"choices": [{"index":
0, "text": " wipe the case", "logprobs": {"token_logprobs": [-2.639291, -2.15e-05, -2.06e-05], "tokens": ["wipe",
"the", "case"]}, "finish_reason": "length"}, {"index": 1, "text": " clean the fan", "logprobs": {"token_logprobs":
[-2.8614581, -2.29e-05, -4.53e-05], "tokens": ["clean", "the", "fan"]}, "finish_reason": "length"}], "usage":
{"prompt_tokens": 8, "total_tokens": 14, "completion_tokens": 6}}]
["/completions", {"prompt": "my printer is hot ;", "stop": ["please"], "temperature": 1.0}, {"choices": [{"index": 0,
"text": " okay ", "logprobs": {"token_logprobs": [-1.0255368, -0.0544347], "tokens": ["okay", "please"]},
"finish_reason": "stop", "stop_reason": "please"}], "usage": {"prompt_tokens": 5, "total_tokens": 7,
"completion_tokens": 2}}]
["/completions", {"prompt": "my printer is hot ;", "n": 4, "stop": ["please"], "temperature": 1.0}, {"choices":
[{"index": 0, "text": " okay ", "logprobs": {"token_logprobs": [-1.0255368, -0.0544347], "tokens": ["okay", "please"]},
"finish_reason": "stop", "stop_reason": "please"}, {"index": 1, "text": " okay ", "logprobs": {"token_logprobs":
[-1.0255368, -0.0544347], "tokens": ["okay", "please"]}, "finish_reason": "stop", "stop_reason": "please"}, {"index":
2, "text": " okay ", "logprobs": {"token_logprobs": [-1.0255368, -0.0544347], "tokens": ["okay", "please"]},
"finish_reason": "stop", "stop_reason": "please"}, {"index": 3, "text": " hello there ", "logprobs": {"token_logprobs":
[-1.0131686, -3.28e-05, -0.0546401], "tokens": ["hello", "there", "please"]}, "finish_reason": "stop", "stop_reason":
"please"}], "usage": {"prompt_tokens": 5, "total_tokens": 14, "completion_tokens": 9}}]
["/chat/completions", {"messages": [{"role": "user", "content": "my printer is hot ;"}], "n": 4, "temperature": 1.0},
{"object": "chat.completion", "model": "helpdesk", "choices": [{"index": 0, "message": {"role": "assistant", "content":
" so sorry please let it cool if not", "refusal": null, "annotations": null, "audio": null, "function_call": null,
"reasoning": null}, "logprobs": {"content": [{"token": "so", "logprob": -2.3032906, "bytes": [115, 111],
"top_logprobs": []}, {"token": "sorry", "logprob": -0.0002123}, {"token": "please", "logprob": -0.0566904}, {"token":
"let", "logprob": -0.9022447}, {"token": "it", "logprob": -3.64e-05}, {"token": "cool", "logprob": -3.62e-05},
{"token": "if", "logprob": -1.2039441}, {"token": "not", "logprob": -0.0001028}]}, "finish_reason": "length",
"stop_reason": null, "token_ids": null, "routed_experts": null}, {"index": 1, "message": {"role": "assistant",
"content": " not you again please let it cool that"}, "logprobs": {"content": [{"token": "not", "logprob": -2.520777},
{"token": "you", "logprob": -3.56e-05}, {"token": "again", "logprob": -2.74e-05}, {"token": "please", "logprob":
-0.0558247}, {"token": "let", "logprob": -0.8854192}, {"token": "it", "logprob": -4.29e-05}, {"token": "cool",
"logprob": -3.21e-05}, {"token": "that", "logprob": -1.1900342}]}, "finish_reason": "length"}, {"index": 2, "message":
{"role": "assistant", "content": " hello there please charge the battery good luck"}, "logprobs": {"content":
[{"token": "hello", "logprob": -1.0131686}, {"token": "there", "logprob": -3.28e-05}, {"token": "please", "logprob":
-0.0546401}, {"token": "charge", "logprob": -2.7821507}, {"token": "the", "logprob": -2.74e-05}, {"token": "battery",
"logprob": -3.73e-05}, {"token": "good", "logprob": -2.612958}, {"token": "luck", "logprob": -8.1e-06}]},
"finish_reason": "length"}, {"index": 3, "message": {"role": "assistant", "content":
" hello there please let it cool many thanks"}, "logprobs": {"content": [{"token": "hello", "logprob": -1.0131686},
{"token": "there", "logprob": -3.28e-05}, {"token": "please", "logprob": -0.0546401}, {"token": "let", "logprob":
-0.8738651}, {"token": "it", "logprob": -3.54e-05}, {"token": "cool", "logprob": -3.45e-05}, {"token": "many",
"logprob": -2.3357046}, {"token": "thanks", "logprob": -2.6e-06}]}, "finish_reason": "length"}], "system_fingerprint":
"vllm-0.32.0-f07790f3", "usage": {"prompt_tokens": 5, "total_tokens": 37, "completion_tokens": 32,
"prompt_tokens_details": null, "completion_tokens_details": null}}]
["/chat/completions", {"messages": [{"role": "user", "content": "my printer is hot ;"}], "n": 4, "temperature": 1.0},
{"choices": [{"index": 0, "message": {"role": "assistant", "content": " okay please let it cool if not try"},
"logprobs": {"content": [{"token": "okay", "logprob": -1.0255368}, {"token": "please", "logprob": -0.0544347},
{"token": "let", "logprob": -0.9043159}, {"token": "it", "logprob": -4.06e-05}, {"token": "cool", "logprob":
-3.33e-05}, {"token": "if", "logprob": -1.2045443}, {"token": "not", "logprob": -9.5e-05}, {"token": "try", "logprob":
-9.7e-06}]}, "finish_reason": "length"}, {"index": 1, "message": {"role": "assistant", "content":
" okay please let it cool we sell better"}, "logprobs": {"content": [{"token": "okay", "logprob": -1.0255368},
{"token": "please", "logprob": -0.0544347}, {"token": "let", "logprob": -0.9043159}, {"token": "it", "logprob":
-4.06e-05}, {"token": "cool", "logprob": -3.33e-05}, {"token": "we", "logprob": -3.3321402}, {"token": "sell",
"logprob": -2.5e-05}, {"token": "better", "logprob": -5.5e-06}]}, "finish_reason": "length"}, {"index": 2, "message":
{"role": "assistant", "content": " okay please free some space many thanks"}, "logprobs": {"content": [{"token":
"okay", "logprob": -1.0255368}, {"token": "please", "logprob": -0.0544347}, {"token": "free", "logprob": -2.683465},
{"token": "some", "logprob": -8.2e-06}, {"token": "space", "logprob": -2.21e-05}, {"token": "many", "logprob":
-2.3200703}, {"token": "thanks", "logprob": -3.9e-06}, {"token": "</s>", "logprob": -2.7e-06}]}, "finish_reason":
"stop"}, {"index": 3, "message": {"role": "assistant", "content": " hello there please wipe the case that should"},
"logprobs": {"content": [{"token": "hello", "logprob": -1.0131686}, {"token": "there", "logprob": -3.28e-05}, {"token":
"please", "logprob": -0.0546401}, {"token": "wipe", "logprob": -2.6551299}, {"token": "the", "logprob": -2.78e-05},
{"token": "case", "logprob": -2.19e-05}, {"token": "that", "logprob": -1.2093221}, {"token": "should", "logprob":
-8.9e-06}]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "total_tokens": 37, "completion_tokens": 32}}]
["/chat/completions", {"messages": [{"role": "user", "content": "my printer is hot ;"}], "temperature": 0.0},
{"choices": [{"index": 0, "message": {"role": "assistant", "content": " hello there please let it cool that should"},
"logprobs": {"content": [{"token": "hello", "logprob": -1.0131686}, {"token": "there", "logprob": -3.28e-05}, {"token":
"please", "logprob": -0.0546401}, {"token": "let", "logprob": -0.8738651}, {"token": "it", "logprob": -3.54e-05},
{"token": "cool", "logprob": -3.45e-05}, {"token": "that", "logprob": -1.1939237}, {"token": "should", "logprob":
-8.1e-06}]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "total_tokens": 13, "completion_tokens": 8}}]
["/chat/completions", {"messages": [{"role": "user", "content": "my printer is hot ;"}, {"role": "assistant",
"content": " hello"}], "temperature": 0.0, "continue_final_message": true}, {"choices": [{"index": 0, "message":
{"role": "assistant", "content": " there please let it cool that should do"}, "logprobs": {"content": [{"token":
"there", "logprob": -3.28e-05}, {"token": "please", "logprob": -0.0546401}, {"token": "let", "logprob": -0.8738651},
{"token": "it", "logprob": -3.54e-05}, {"token": "cool", "logprob": -3.45e-05}, {"token": "that", "logprob":
-1.1939237}, {"token": "should", "logprob": -8.1e-06}, {"token": "do", "logprob": -4.4e-06}]}, "finish_reason":
"length"}], "usage": {"prompt_tokens": 6, "total_tokens": 14, "completion_tokens": 8}}]
["/chat/completions", {"messages": [{"role": "user", "content": "my printer is hot ;"}, {"role": "assistant",
"content": " so sorry please"}], "n": 2, "temperature": 1.0, "continue_final_message": true}, {"choices": [{"index": 0,
"message": {"role": "assistant", "content": " wipe the case"}, "logprobs": {"content": [{"token": "wipe", "logprob":
-2.639291}, {"token": "the", "logprob": -2.15e-05}, {"token": "case", "logprob": -2.06e-05}]}, "finish_reason":
"length"}, {"index": 1, "message": {"role": "assistant", "content": " clean the fan"}, "logprobs": {"content":
[{"token": "clean", "logprob": -2.8614581}, {"token": "the", "logprob": -2.29e-05}, {"token": "fan", "logprob":
-4.53e-05}]}, "finish_reason": "length"}], "usage": {"prompt_tokens": 8, "total_tokens": 14, "completion_tokens": 6}}]
"""


def recorded():
    """[(route, asked, reply)]."""
    found, at, decoder = [], 0, json.JSONDecoder()
    text = RECORDED.strip()
    while at < len(text):
        entry, at = decoder.raw_decode(text, at)
        found.append(entry)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def key(route, body):
    """What a recorded reply belongs to; several of one key are given in their order."""
    said = body.get("prompt") or [message["content"] for message in body["messages"]]
    return json.dumps([route, said, body.get("n", 1), body.get("stop"), body["temperature"]])


class Vllm:
    """vLLM as it was recorded. ``faults``: what of the requests its protocol does not have."""

    def __init__(self, *, template=True, dead=False):
        self.template, self.dead = template, dead
        self.bodies, self.faults, self.given = [], [], []
        self.replies = defaultdict(list)
        for route, asked, reply in recorded():
            self.replies[key(route, asked)].append(reply)

    def answer(self, route, body):
        self.bodies.append((route, body))
        for name, value in body.items():
            if type(value) is not FIELDS[route].get(name):
                self.faults.append(f"{name}: {value!r}")
        if body.get("continue_final_message") and body.get("add_generation_prompt", True):
            self.faults.append("cannot go on from a message and begin one")
        if body["temperature"] == 0.0 and body.get("n", 1) > 1:
            self.faults.append("n must be 1 when using greedy sampling")
        if not 0 <= body.get("seed", 0) < 2**63 or body.get("top_k", -1) != -1 or body["top_p"] != 1.0:
            self.faults.append("a seed that is out of range, a top_k or top_p that narrows the law")
        if body["model"] != "helpdesk":
            return 404, error(NO_MODEL, "NotFoundError", "model", 404)
        if self.dead:
            return 500, error(DEAD, "InternalServerError", None, 500)
        if route == "/chat/completions" and not self.template:
            return 400, error(NO_TEMPLATE, "BadRequestError", None, 400)
        if body["max_tokens"] > LENGTH:
            return 400, error(TOO_LONG, "BadRequestError", "max_tokens", 400)
        waiting = self.replies[key(route, body)]
        self.given.append(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        return 200, self.given[-1]

    def __enter__(self):
        vllm = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def give(self, status, found):
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.give(200, MODELS)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.give(*vllm.answer(self.path.removeprefix("/v1"), body))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def model(self, name="helpdesk", **options):
        settings = {"max_new_tokens": 8, "per_request": 4, "concurrency": 1, "retries": 1, **options}
        return ServerModel.load(name, base_url=self.url, **settings)


def error(message, kind, param, code):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def read(reply):
    """[(text, tokens, log-probability, finished)], read by hand."""
    out = []
    for choice in reply["choices"]:
        shown = choice["logprobs"]
        told = [t["logprob"] for t in shown["content"]] if "content" in shown else shown["token_logprobs"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        out.append((text, len(told), sum(told), choice["finish_reason"] == "stop"))
    return out


def check(record, reply):
    rows = read(reply)
    assert [(t, int(k)) for t, k in zip(record.responses, record.counts, strict=True)] == [
        (t, sum(t == row[0] for row in rows)) for t in dict.fromkeys(row[0] for row in rows)
    ]
    for i, text in enumerate(record.responses):
        best = max((row for row in rows if row[0] == text), key=lambda row: row[2])
        assert (int(record.lengths[i]), bool(record.finished[i])) == (best[1], best[3])
        assert record.logprobs[i] == pytest.approx(best[2], abs=1e-12)
    assert record.tokens == reply["usage"]["completion_tokens"] == sum(row[1] for row in rows)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("api", APIS)
def test_draws_are_read_as_vllm_gives_them(api):
    with Vllm() as vllm:
        model = vllm.model(api=api)
        (record,) = model.generate([PROMPT], 4, rng=rng())
    body, reply = vllm.bodies[-1][1], vllm.given[-1]
    check(record, reply)
    assert set(record.finished.tolist()) == {True, False}
    assert vllm.faults == []
    assert model.warnings == []
    assert (body["n"], body["top_k"], body["logprobs"]) == (4, -1, 1 if api == "completions" else True)
    spent = [given["usage"] for given in vllm.given]
    assert model.usage.requests == len(spent) == 3  # two probes and the draws
    assert model.usage.prompt_tokens == sum(usage["prompt_tokens"] for usage in spent)
    assert model.usage.completion_tokens == sum(usage["completion_tokens"] for usage in spent)


@pytest.mark.parametrize("api", APIS)
def test_segments_are_read_behind_a_prefix(api):
    with Vllm() as vllm:
        model = vllm.model(api=api)
        (record,) = model.extend([PROMPT], [[BEGUN]], 2, segments=segments(3), rng=rng(1))
    body = vllm.bodies[-1][1]
    check(record, vllm.given[-1])
    assert body["max_tokens"] == 3
    assert vllm.faults == []
    assert model.warnings == []
    assert [model.joined(PROMPT, [BEGUN, segment]) for segment in record.segments] == [
        f"{BEGUN}{text}" for text in record.responses
    ]
    assert not any(model.complete(PROMPT, [BEGUN, segment]) for segment in record.segments)
    if api == "completions":
        assert body["prompt"] == PROMPT + BEGUN
    else:
        assert body["messages"][-1] == {"role": "assistant", "content": BEGUN}


def test_what_is_stopped_is_finished_and_counts_the_stop():
    """vLLM leaves the stop string off the text, and tells its tokens."""
    with Vllm() as vllm:
        model = vllm.model(api="completions", stop=["please"])
        (record,) = model.generate([PROMPT], 4, rng=rng())
    check(record, vllm.given[-1])
    assert vllm.faults == []
    assert model.warnings == []
    assert record.finished.all()
    assert not any("please" in text for text in record.responses)
    np.testing.assert_array_equal(record.lengths, [len(text.split()) + 1 for text in record.responses])


def test_the_log_probabilities_are_those_of_the_model_in_process():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from spannerlm.backends.huggingface import HuggingFaceModel

    here = HuggingFaceModel.load(str(bundled.load("helpdesk").model_path), device="cpu", max_new_tokens=8)
    replies = [reply for _, asked, reply in recorded() if asked.get("prompt") == PROMPT and asked.get("n") == 4]
    rows = read(replies[0]) + read(replies[1])
    exact = here.score(PROMPT, [row[0].removeprefix(" ") for row in rows])
    np.testing.assert_allclose(exact.logprobs, [row[2] for row in rows], atol=2e-5)
    np.testing.assert_array_equal(exact.lengths, [row[1] for row in rows])


def test_a_model_without_a_template_is_asked_for_completions():
    with Vllm(template=False) as vllm:
        model = vllm.model(api="auto")
        (record,) = model.generate([PROMPT], 4, rng=rng())
    route, body = vllm.bodies[-1]
    check(record, vllm.given[-1])
    assert route == "/completions"
    assert {"n", "seed", "top_k", "logprobs"} <= set(body)
    assert len(model.warnings) == 1
    assert "must provide a chat template" in model.warnings[0]


@pytest.mark.parametrize(
    ("options", "said"), [({"name": "other"}, NO_MODEL), ({"max_new_tokens": 100}, "max_model_len=64")]
)
def test_a_refusal_is_shown_in_vllms_words_and_not_sent_again(options, said):
    with Vllm() as vllm, pytest.raises(ModelError) as caught:
        vllm.model(api="completions", **options).generate([PROMPT], 4, rng=rng())
    assert said in str(caught.value)
    sent = [json.dumps(body, sort_keys=True) for _, body in vllm.bodies]
    assert len(set(sent)) == len(sent)


def test_a_dead_engine_is_asked_again_and_then_named(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.0)
    with Vllm(dead=True) as vllm, pytest.raises(ModelError, match=r"500.*EngineCore encountered an issue"):
        vllm.model(api="completions", retries=2).generate([PROMPT], 4, rng=rng())
    assert len(vllm.bodies) == 3


def test_no_two_draws_have_one_seed():
    """vLLM draws choice i of a request with seed + i: seeds of requests are farther apart than their choices."""
    with Small(owner="vllm") as small:
        model = ServerModel.load("m", base_url=small.url, max_new_tokens=3, per_request=8)
        model.generate(["a;", "b;"], 203, rng=rng())
    used = [body["seed"] + i for body in small.bodies for i in range(body.get("n", 1))]
    assert len(used) == len(set(used)) == 2 * 203 + 8
