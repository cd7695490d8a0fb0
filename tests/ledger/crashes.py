"""A small run that can be killed anywhere, and a process that starts, kills and limits such runs on request.

``python crashes.py`` reads one JSON command a line and answers with one JSON line. It imports once and forks for each
run, so that hundreds of real kills of real processes fit into a test suite. ``python crashes.py once DIR`` makes one
undisturbed run and writes each point it passes to standard output.
"""

import json
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from spannerlm.errors import SpannerError
from spannerlm.ledger import Ledger
from spannerlm.records import Drawn, DrawRequest, Draws, LabelItem, Labelled, LabelRequest, StopRequest

PROMPTS = ["one", "two", "three"]
REFEREE = "charged.txt"


def decide(k, rng):
    """Return the k-th request and its purpose."""
    info = {"theta": rng.normal(size=2).tolist()}
    if k in (0, 1, 3):
        return DrawRequest((0, 1), 400 if k == 1 else 4, info=info), "explore"
    if k in (2, 4, 5):
        items = [LabelItem(int(rng.integers(2)), f"r{rng.integers(3)}", bool(rng.integers(2))) for _ in range(8)]
        if k == 4:  # every other one a comparison
            items[::2] = [replace(item, opponent=f"r{(int(item.response[1:]) + 1) % 3}") for item in items[::2]]
        return LabelRequest(tuple(items), info), "evaluate" if k == 5 else "explore"
    return StopRequest("done", info), "explore"


def draw(request, rng):
    def one(prompt):
        texts = tuple(f"r{i}" for i in range(request.n))
        return Draws(prompt, texts, rng.integers(1, 3, size=request.n), rng.normal(size=(request.n, 16)))

    return Drawn(tuple(one(prompt) for prompt in request.prompts), request.n * len(request.prompts))


def reward(claim, directory):
    """Charge for one label, durably, in the referee's own file; return a value that the claim alone decides."""
    with open(directory / REFEREE, "a") as file:
        file.write(claim.key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return int(claim.key[:8], 16) / 2**32


def drive(directory, trace, how="pure"):
    """Run, or resume, to the end. ``how``: what becomes of claims in doubt (``pure``: the reward is run again)."""
    directory.mkdir(exist_ok=True)
    notes = {"pid": os.getpid()}
    with Ledger.open(directory, meta={"seed": 5}, prompts=PROMPTS, notes=notes, trace=trace) as ledger:
        if how != "pure":
            ledger.settle_in_doubt(how)
        while ledger.stopped is None:
            step(ledger, directory, trace)


def step(ledger, directory, trace):
    k, request = ledger.unfinished() or (ledger.next_request, None)
    rng = np.random.default_rng([5, k])
    decided, purpose = decide(k, rng)
    if request is None:
        request = ledger.request(k, decided, purpose=purpose)
    if isinstance(request, DrawRequest):
        ledger.drawn(k, draw(request, rng))
    elif isinstance(request, LabelRequest):
        todo = [claim for claim in ledger.claim(k) if claim.to_buy]
        for part in (todo[:2], todo[2:]):
            values = [reward(claim, directory) for claim in part]
            trace("after-send")
            ledger.reply(part, values)
        ledger.labelled(k, Labelled(ledger.labels(k), rng.normal(size=(len(request.items), 16))))


# --- the process that starts runs -----------------------------------------------------------------------------------


class Killer:
    """A trace that kills its own process when it passes ``point`` for the ``nth`` time."""

    def __init__(self, point, nth):
        self.point, self.left = point, nth

    def __call__(self, point):
        self.left -= point == self.point
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(act):
    """Run ``act`` in a forked process; return its id, and the end of a pipe that carries what it returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        answer = act(writing)
    except SpannerError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:
        answer = {"error": "crash", "message": repr(error)}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


def ended(child, reading):
    with open(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"killed": killed, "pid": child, **(json.loads(text) if text and not killed else {})}


def run(dir, point=None, nth=1, how="pure", limit=None, after=None):
    """Make a run: killed at a point or after some seconds, with files of at most ``limit`` bytes, or undisturbed."""

    def act(pipe):
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        points = []
        drive(Path(dir), Killer(point, nth) if point else points.append, how)
        return {"points": points}

    child, reading = in_child(act)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return ended(child, reading)


def hold(dir, worker=False):
    """Open a ledger in a process that then sleeps, with a forked worker of its own if asked for."""

    def act(pipe):
        ledger = Ledger.open(dir, meta={"seed": 5}, prompts=PROMPTS)
        forked = os.fork() if worker else -1
        if forked:
            os.write(pipe, f"{forked}\n".encode())
        time.sleep(60)
        ledger.close()
        return {}

    child, reading = in_child(act)
    forked = int(os.read(reading, 32))
    os.close(reading)
    return {"pid": child, "worker": forked}


def kill(pid, child=True):
    os.kill(pid, signal.SIGKILL)
    if child:
        os.waitpid(pid, 0)
    return {}


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]:
        drive(Path(sys.argv[2]), lambda point: os.write(1, f"{point}\n".encode()))
    else:
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps({"run": run, "hold": hold, "kill": kill}[command.pop("do")](**command)), flush=True)
