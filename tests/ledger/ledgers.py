"""What the tests of the ledger share: short ways to ask, answer and draw, and a run with a little of everything."""

import dataclasses
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from spannerlm.ledger import Failed
from spannerlm.records import Drawn, DrawRequest, Draws, LabelItem, Labelled, LabelRequest, StopRequest, Tilt

PROMPTS = ["one", "two", "one", "\ud800"]
META = {"seed": 1, "explorer": {"name": "passive"}}


@contextmanager
def quick_folder(otherwise):
    """A folder in memory where there is one, else ``otherwise``: for tests that sync often and need no disk for it."""
    if not os.access("/dev/shm", os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def ask(ledger, *items, purpose="explore", **how):
    """Open a label request for (prompt, response[, fresh[, opponent]]) items and return its claims."""
    k = ledger.next_request
    ledger.request(k, LabelRequest(tuple(LabelItem(*item) for item in items)), purpose=purpose)
    return ledger.claim(k, **how)


def finish(ledger, claims, value=0.5):
    """Answer what is to be bought and close the request; return its labels."""
    k = ledger.next_request - 1
    todo = [claim for claim in claims if claim.to_buy]
    ledger.reply(todo, [value] * len(todo))
    labels = ledger.labels(k)
    return ledger.labelled(k, Labelled(labels, np.zeros((len(labels), 2)))).labels


def draws_of(prompt, responses, seed=0, d=3):
    rng = np.random.default_rng(seed)
    n = len(responses)
    return Draws(prompt, tuple(responses), rng.integers(1, 5, size=n), rng.normal(size=(n, d)))


def draw(ledger, *draws, spent=7, purpose="explore"):
    k = ledger.next_request
    ledger.request(k, DrawRequest(tuple(record.prompt for record in draws), 3), purpose=purpose)
    return ledger.drawn(k, Drawn(tuple(draws), spent, info={"branch": "a"}))


def tell_all(value):
    """Everything a record holds, as text in which no two different values look alike."""
    if dataclasses.is_dataclass(value):
        return {field.name: tell_all(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, tuple):
        return [tell_all(item) for item in value]
    return repr(value)


def a_little_of_everything(ledger):
    """Return the events as the driver got them back, in order."""
    tilt = Tilt(np.array([0.1, 2.0]), 0.2, np.ones((1, 2)), np.eye(2), 0.3, 4.0, 0.05)
    request = ledger.request(0, DrawRequest((3,), 1, tilt, {"theta": (0.1, float("nan"))}))
    events = [request, ledger.drawn(0, Drawn((draws_of(3, ["\ud800", ""]),), 9, (True,), {"a": None}))]
    many = [draws_of(1, [f"r{i}" for i in range(900)], d=16), draws_of(0, [], d=16)]
    events.append(ledger.request(1, DrawRequest((1, 0), 900)))
    events.append(ledger.drawn(1, Drawn(tuple(many), 1800)))
    items = (LabelItem(3, "\ud800"), LabelItem(3, ""), LabelItem(3, "\ud800"), LabelItem(3, "", True))
    events.append(ledger.request(2, LabelRequest(items, {"phase": "x"})))
    claims = [claim for claim in ledger.claim(2) if claim.to_buy]
    ledger.reply(claims, [0.1, None, Failed("broke")])
    events.append(ledger.labelled(2, Labelled(ledger.labels(2), np.random.default_rng(1).normal(size=(4, 3)))))
    ledger.request(3, LabelRequest((LabelItem(0, "held out"),)), purpose="evaluate")
    finish(ledger, ledger.claim(3))
    pairs = [LabelItem(1, "r0", False, "\ud800"), LabelItem(1, "\ud800", False, "r0"), LabelItem(1, "r0")]
    pairs += [LabelItem(1, "r0", True, "\ud800"), LabelItem(1, "", False, "r0")]
    events.append(ledger.request(4, LabelRequest(tuple(pairs))))
    claims = [claim for claim in ledger.claim(4) if claim.to_buy]
    ledger.reply(claims, [0.0, -2.5, 0.5, None])
    events.append(ledger.labelled(4, Labelled(ledger.labels(4), np.random.default_rng(2).normal(size=(5, 3)))))
    events.append(ledger.request(5, StopRequest("certified", {"width": 0.1})))
    return events
