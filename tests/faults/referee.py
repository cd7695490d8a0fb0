"""The referee: a paid server in a process of its own, which fsyncs one line per request that it charged.

``python referee.py CHARGES PLAN`` prints its port. PLAN is a file of JSON: a list of what becomes of the requests, in
order of arrival, read anew for each request; beyond its end all is well. It charges whoever asks, also for a key that
it knows: only the library's own care keeps a key from being charged twice.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHARGES, PLAN = Path(sys.argv[1]), Path(sys.argv[2])
LOCK = threading.Lock()
arrived = 0


def charge(key):
    with LOCK, open(CHARGES, "a") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())


def fate():
    """What becomes of the request that has just arrived."""
    global arrived
    with LOCK:
        arrived += 1
        plan = json.loads(PLAN.read_text())
        return plan[arrived - 1] if arrived <= len(plan) else "fine"


def answer(key, body):
    """A label that the key alone decides; by what the last message asks for."""
    value = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32
    text = body["messages"][-1]["content"] if body.get("messages") else ""
    if '"winner"' in text:
        a, b = (text.split(f"<response_{name}>\n")[1].split("\n</response")[0] for name in "AB")
        return json.dumps({"winner": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"})
    return json.dumps({"score": value})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        what, _, after = fate().partition(":")
        if what.isdigit() and what in ("401", "429", "503"):
            self.reply(int(what), b"no " + self.headers.get("Authorization", "").encode(), after)
            return
        charge(key)
        if what == "hang":
            time.sleep(60)
        elif what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
        elif what == "500":
            self.reply(500, b"out of luck " + self.headers.get("Authorization", "").encode())
        elif what == "garbage":
            self.reply(200, b"<html>\xff\x00")
        else:
            says = {"prose": "I like it: 7", "nan": '{"score": NaN}'}.get(what) or answer(key, body)
            message = {"choices": [{"message": {"content": says}}]}
            message["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
            data = json.dumps(message).encode()
            if what == "half":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.reply(200, data)

    def reply(self, status, data, after=""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if after:
            self.send_header("Retry-After", after)
        self.end_headers()
        self.wfile.write(data)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # whoever asked has gone


if __name__ == "__main__":
    server = Quiet(("127.0.0.1", int(sys.argv[3]) if len(sys.argv) > 3 else 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
