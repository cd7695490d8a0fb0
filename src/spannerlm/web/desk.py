"""What raters see and what becomes of their answers: leases, order of the two sides, undo. No web server in it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spannerlm.asking import Run
from spannerlm.errors import InputError, SpannerError
from spannerlm.questions import Answer, Query

READY = 4
"""Items that wait for a rater, so that nobody waits for a decision."""
RATINGS = "ratings.jsonl"
"""File in the run directory: what each rater saw and pressed. The labels themselves are in the ledger."""
CHOICES = {"left": 1.0, "right": 0.0, "tie": 0.5, "bad": 0.5}
"""Answers to a comparison, and how far the left side is preferred."""
NAME_LIMIT, REASON_LIMIT = 80, 500
"""Characters of a rater's name, and of the reason of a skip."""


class Desk:
    """Items for raters, from a `Run`. Safe to use from several threads; every method but `close` takes milliseconds."""

    def __init__(self, run: Run, *, lease_s: float = 600.0, clock: Callable[[], float] = time.monotonic) -> None:
        if not lease_s > 0.0:
            raise InputError(f"lease: expected a positive number of seconds, got {lease_s}")
        self.run, self.lease_s, self._clock = run, lease_s, clock
        self._leases: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self.problem = ""
        self._panel: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        self._thread.start()

    # --- raters -----------------------------------------------------------------------------------------------------

    def next(self, rater: str) -> dict[str, Any]:
        """The item that this rater is to look at: ``state`` is ``item``, ``thinking`` or ``done``.

        The same one until it is answered, also after a reload or a restart.
        """
        name = self._name(rater)
        found = self.run.ask(1, worker=name, wait=False)
        if not found and self._expire(name):
            found = self.run.ask(1, worker=name, wait=False)
        self._wake.set()
        with self._lock:
            for query in found:
                self._leases[query.id] = (name, self._clock() + self.lease_s)
        if found:
            return {"state": "item", "item": self._item(found[0]), **self._progress(name)}
        over = bool(self.run.reason) or bool(self.problem)
        return {"state": "done" if over else "thinking", "why": self.problem or self.run.reason, **self._progress(name)}

    def previous(self, rater: str, before: str | None) -> dict[str, Any]:
        """The item that this rater answered last, or before the item of that id; ``none`` where there is none."""
        name = self._name(rater)
        mine = [answer for answer in self.run.answers() if answer.query.worker == name and answer.status != "waiting"]
        ids = [answer.query.id for answer in mine]
        at = ids.index(before) if before in ids else len(ids)
        if at == 0:
            return {"state": "none", **self._progress(name)}
        return {"state": "item", "item": self._item(mine[at - 1].query, mine[at - 1]), **self._progress(name)}

    def answer(self, rater: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Record an answer of this rater, durable when this returns; another one than before is a revision.

        ``given`` has ``choice`` (of a comparison), ``value`` (a number) or ``skip`` (a reason). Raises `InputError`.
        """
        who = self._name(rater)
        query = self.run.query(name)
        if query.worker != who:
            raise InputError(f"id: expected a query of {who!r}, got one of somebody else")
        value = self._value(query, given)
        self.run.tell_all({name: value}, revise=True)
        self._note({"id": name, "rater": who, "left": "opponent" if _flipped(query) else "response", **given})
        with self._lock:
            self._leases.pop(name, None)
        self._wake.set()
        return {"state": "saved", **self._progress(who)}

    def _value(self, query: Query, given: Mapping[str, Any]) -> float | None:
        kinds = [kind for kind in ("choice", "value", "skip") if given.get(kind) is not None]
        if len(kinds) != 1:
            raise InputError(f"expected one of choice, value and skip, got {', '.join(kinds) or 'none'}")
        if kinds == ["skip"]:
            if not isinstance(given["skip"], str) or len(given["skip"]) > REASON_LIMIT:
                raise InputError(f"skip: expected a reason of at most {REASON_LIMIT} characters")
            return None
        if query.opponent is None:
            value = given.get("value")
            if kinds != ["value"] or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"value: expected a number, got {given.get(kinds[0])!r:.40}")
            return float(value)
        choice = given.get("choice")
        if not isinstance(choice, str) or choice not in CHOICES:
            raise InputError(f"choice: expected one of {', '.join(CHOICES)}, got {choice!r:.40}")
        return 1.0 - CHOICES[choice] if _flipped(query) else CHOICES[choice]

    def _item(self, query: Query, answer: Answer | None = None) -> dict[str, Any]:
        """What is shown of a query: never the model, a score or who else rated it."""
        item: dict[str, Any] = {"id": query.id, "prompt": query.prompt, "columns": dict(query.columns)}
        if query.opponent is None:
            item["sides"] = [query.response]
        else:
            sides = [query.response, query.opponent]
            item["sides"] = sides[::-1] if _flipped(query) else sides
        if answer is not None:
            shown = answer.value
            if shown is not None and query.opponent is not None and _flipped(query):
                shown = 1.0 - shown
            item |= {"was": answer.status, "value": shown}
        return item

    def _progress(self, name: str) -> dict[str, Any]:
        counts = self.run.counts
        left = max(self.run.spec.labels - counts.charged, 0)
        return {"mine": self._count(name), "left": left, "budget": self.run.spec.labels}

    def _count(self, name: str) -> int:
        answers = self.run.answers()
        return sum(answer.query.worker == name and answer.status in ("label", "skip") for answer in answers)

    @staticmethod
    def _name(rater: object) -> str:
        if not isinstance(rater, str) or not rater.strip() or len(rater) > NAME_LIMIT:
            raise InputError(f"rater: expected a name of at most {NAME_LIMIT} characters, got {rater!r:.90}")
        return rater.strip()

    def _expire(self, name: str) -> bool:
        """Take back what others have had for too long; whether there was any. By a clock that nobody can set."""
        now = self._clock()
        with self._lock:
            old = [key for key, (who, until) in self._leases.items() if until < now and who != name]
            for key in old:
                del self._leases[key]
        known = {answer.query.id: answer for answer in self.run.answers()}
        open_ones = [key for key in old if known[key].status == "waiting"]
        if open_ones:
            self.run.release(open_ones)
        return bool(open_ones)

    def _note(self, row: Mapping[str, Any]) -> None:
        path = Path(self.run.directory) / RATINGS
        line = json.dumps({**row, "at": time.time()}, ensure_ascii=True) + "\n"
        with self._lock, open(path, "ab") as file:
            file.write(line.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    # --- the owner --------------------------------------------------------------------------------------------------

    def panel(self) -> dict[str, Any]:
        """What the owner sees; made in the background, at most a few seconds old."""
        self._wake.set()
        counts, answers = self.run.counts, self.run.answers()
        by_rater = Counter(answer.query.worker for answer in answers if answer.status == "label")
        share, pairs = self.run.agreement()
        spent = self.run.spent()
        return {
            "labels": counts.labels,
            "waiting": counts.waiting,
            "skips": counts.skips,
            "given": counts.given,
            "budget": self.run.spec.labels,
            "draws": counts.draws,
            "money": spent if spent == spent else None,
            "raters": [{"name": name, "labels": n} for name, n in by_rater.most_common()],
            "agreement": {"share": share if pairs else None, "pairs": pairs},
            "overlap": self.run.overlap,
            "reason": self.problem or self.run.reason,
            **self._panel,
        }

    def close(self) -> None:
        """Stop preparing; waits for the decision at hand."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _prepare(self) -> None:
        told = -1
        while not self._closed:
            try:
                self.run.prepare(READY * self.run.overlap)
                labels = self.run.counts.labels
                if labels != told:
                    told, self._panel = labels, _foreseen(self.run)
                self.problem = ""
            except SpannerError as error:  # the owner and the raters see it; asking goes on once it is mended
                self.problem = str(error)
            self._wake.wait(timeout=5.0)
            self._wake.clear()


def _flipped(query: Query) -> bool:
    """Whether the opponent is on the left: half of all queries, and always the same for one query."""
    return int(query.id[-1], 16) % 2 == 1


def _foreseen(run: Run) -> dict[str, Any]:
    """Predicted regret, and how many labels are left to the target, as far as the explorer says."""
    found, target, labels = run.progress(), run.spec.target_regret, run.counts.labels
    regret = found.get("predicted_regret")
    if not isinstance(regret, float) or regret != regret:
        return {}
    more = None
    if target is not None and regret > 0.0 and labels > 0:  # regret falls like 1 / labels (DIRECTED.md)
        more = max(0, round(labels * (2.0 * regret / target - 1.0)))
    return {"predicted_regret": regret, "target_regret": target, "labels_to_target": more}
