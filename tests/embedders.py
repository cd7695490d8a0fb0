"""A server of embeddings for tests: hashed character n-grams through a fixed random matrix, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 40
BUCKETS = 97
MATRIX = np.random.default_rng(5).normal(size=(BUCKETS, WIDTH))


def vector(text: str) -> list[float]:
    """[D] of one text: what the server says, whatever else is in the request."""
    counts = np.zeros(BUCKETS)
    for i in range(max(1, len(text) - 2)):
        counts[int(hashlib.sha256(text[i : i + 3].encode()).hexdigest(), 16) % BUCKETS] += 1.0
    return [round(float(x), 6) for x in counts @ MATRIX]


class Embedder:
    """``fate`` says what becomes of the k-th request, None: all is well. A server in threads of this process.

    ``bodies``: every request; ``paths`` and ``keys`` likewise; ``most``: how many were under way at once.
    """

    def __init__(self, fate: Callable[[int], str | None] = lambda k: None) -> None:
        self.fate, self.lock = fate, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.under_way = self.most = 0
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *args: Any) -> None:
                """Nothing on standard error."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> Embedder:
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    @property
    def texts(self) -> list[str]:
        """All texts that were sent, in order of arrival."""
        return [text for body in self.bodies for text in body["input"]]

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self.lock:
            fate = self.fate(len(self.bodies))
            self.bodies.append(body)
            self.paths.append(http.path)
            self.keys.append(http.headers.get("Authorization"))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            self.answer(http, body["input"], fate)
        except (BrokenPipeError, ConnectionResetError):
            http.close_connection = True  # the client had waited long enough
        finally:
            with self.lock:
                self.under_way -= 1

    def answer(self, http: BaseHTTPRequestHandler, texts: Sequence[str], fate: str | None) -> None:
        if fate == "drop":
            http.close_connection = True
            return
        if fate == "slow":
            self.release.wait(5.0)
        if fate is not None and fate.isdigit():
            said = f"no: {http.headers.get('Authorization')}".encode()
            self.send(http, int(fate), said, {"Retry-After": "0.01"} if fate == "429" else {})
            return
        data = self.send_back(texts, fate)
        self.send(http, 200, data, {}, len(data) // 2 if fate == "half" else None)

    def send_back(self, texts: Sequence[str], fate: str | None) -> bytes:
        items: list[dict[str, Any]] = [
            {"object": "embedding", "index": i, "embedding": vector(t)} for i, t in enumerate(texts)
        ]
        if fate == "reversed":
            items.reverse()
        elif fate == "fewer":
            items.pop()
        elif fate == "twice":
            items[-1]["index"] = 0
        elif fate == "narrow":
            items = [{**item, "embedding": item["embedding"][:-1]} for item in items]
        elif fate == "ragged":
            items[0]["embedding"].pop()
        elif fate == "nan":
            items[0]["embedding"][3] = float("nan")
        elif fate == "huge":
            items[0]["embedding"][3] = 1e300
        elif fate == "base64":
            items = [{**item, "embedding": "AAAAAA=="} for item in items]
        elif fate == "empty":
            items = [{**item, "embedding": []} for item in items]
        tokens = sum(len(text.split()) for text in texts)
        reply = {"object": "list", "data": items, "model": "m", "usage": {"prompt_tokens": tokens}}
        if fate == "words":
            return b"try again later"
        return json.dumps({"message": "hello"} if fate == "chat" else reply).encode()

    @staticmethod
    def send(
        http: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(data)))
        http.end_headers()
        http.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            http.close_connection = True
