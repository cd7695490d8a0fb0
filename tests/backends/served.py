"""Servers for a `ServerModel`: the bundled model behind ``transformers serve``, and a small one that can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = ("red", "green", "blue", "grey")
"""What the small server's law is made of: uniform words, and an end with probability 1/3 after each."""


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """The address of ``transformers serve`` with this model, up and answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                try:
                    with opened(f"http://127.0.0.1:{port}/health"):
                        break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def opened(url: str) -> Any:
    """A GET that no proxy sees."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20)


def drawn(rng: random.Random, limit: int, greedy: bool, done: int = 0) -> tuple[list[str], bool]:
    """Words after ``done`` others, and whether the response ended; the end is a token."""
    words: list[str] = []
    while len(words) < limit:
        if (done + len(words) >= 4) if greedy else (done + len(words) > 0 and rng.random() < 1 / 3):
            return words, True
        words.append(WORDS[(done + len(words)) % len(WORDS)] if greedy else rng.choice(WORDS))
    return words, False


def law(body: dict[str, Any], choice: int) -> tuple[list[str], bool, str]:
    """Words of one choice: those that seed, prompt and place decide. A last message is gone on with where asked."""
    messages = body.get("messages")
    said = body["prompt"].partition(";")[2] if messages is None else ""
    if messages and messages[-1]["role"] == "assistant" and body.get("continue_final_message"):
        assert body["add_generation_prompt"] is False
        said = messages[-1]["content"]
    key = json.dumps([body.get("prompt"), messages, body.get("seed"), choice])
    rng = random.Random(hashlib.sha256(key.encode()).hexdigest())
    words, ended = drawn(rng, body["max_tokens"], body["temperature"] == 0.0, len(said.split()))
    return words, ended, " " if said else ""


def answer(body: dict[str, Any], n: int, logprobs: bool) -> dict[str, Any]:
    """A right reply of ``n`` choices, in the form of vLLM."""
    choices, spent = [], 0
    for i in range(n):
        words, ended, space = law(body, i)
        tokens = [(" " if k else space) + word for k, word in enumerate(words)] + ["</s>"] * ended
        text = "".join(tokens).removesuffix("</s>")
        told = [-1.5] * len(tokens) if logprobs else None
        spent += len(tokens)
        common = {"index": i, "finish_reason": "stop" if ended else "length"}
        if "messages" in body:
            pairs = [{"token": t, "logprob": p} for t, p in zip(tokens, told or [], strict=False)]
            own = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": pairs} if told else None}
        else:
            own = {"text": text, "logprobs": {"tokens": tokens, "token_logprobs": told} if told else None}
        choices.append({**common, **own})
    return {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": spent}}


class Small:
    """A server in threads of this process. ``fate`` says what becomes of the k-th request, None: all is well.

    ``ignores``: ``n``, ``seed``, ``temperature``, ``logprobs``, ``continue_final_message``. ``refuses``: fields
    that are answered with 400. ``bodies``: every request; ``paid``: those that were answered in full.
    """

    def __init__(
        self,
        fate: Callable[[int], str | None] = lambda k: None,
        *,
        ignores: tuple[str, ...] = (),
        refuses: tuple[str, ...] = (),
        fails: tuple[str, ...] = (),
        chat: bool = True,
        owner: str | None = None,
    ) -> None:
        self.fate, self.ignores, self.refuses, self.chat, self.owner = fate, ignores, refuses, chat, owner
        self.fails = fails
        self.bodies: list[dict[str, Any]] = []
        self.paid: list[str] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Small:
        small = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if small.owner is None:
                    self.give(404, b"{}")
                else:
                    self.give(200, json.dumps({"data": [{"id": "m", "owned_by": small.owner}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with small.lock:
                    number = len(small.bodies)
                    small.bodies.append(body)
                    small.keys.append(self.headers["Authorization"])
                small.serve(self, body, small.fate(number))

            def handle(self) -> None:
                with suppress(ConnectionError):  # a client that was killed, or lost its patience
                    super().handle()

            def give(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler: Any, body: dict[str, Any], fate: str | None) -> None:
        if not self.chat and "messages" in body:
            handler.give(404, b'{"error": "no such route"}')
            return
        for name in self.refuses:
            if name in body:
                handler.give(400, json.dumps({"error": f"unknown field '{name}'"}).encode())
                return
        seen = {name: value for name, value in body.items() if name not in self.ignores}
        seen.setdefault("temperature", 0.0)
        if "stop" in body and "stop" in self.fails:
            handler.give(500, b"oops")
            return
        found = answer(seen, seen.get("n", 1), "logprobs" in seen)
        data = json.dumps(found).encode()
        if fate is None:
            with self.lock:
                self.paid.append(json.dumps(body, sort_keys=True))
            handler.give(200, data)
        elif fate == "drop":
            handler.connection.close()
        elif fate == "half":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.close_connection = True
        elif fate == "slow":
            time.sleep(0.6)
            handler.give(200, data)
        elif fate == "trickle":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            for byte in data[:40]:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif fate.isdigit():
            headers = {"Retry-After": "0"} if fate == "429" else {}
            handler.give(int(fate), f'{{"error": "key {handler.headers["Authorization"]}"}}'.encode(), headers)
        elif fate == "words":
            handler.give(200, b"<html>hello</html>")
        elif fate == "null":
            found["choices"][0]["message" if "message" in found["choices"][0] else "text"] = None
            handler.give(200, json.dumps(found).encode())
        elif fate == "fewer":
            handler.give(200, json.dumps({**found, "choices": found["choices"][1:]}).encode())
        elif fate == "filtered":
            found["choices"][0]["finish_reason"] = "content_filter"
            handler.give(200, json.dumps(found).encode())
        else:
            raise AssertionError(fate)
