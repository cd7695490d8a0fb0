"""What the rows of a journal add up to: claims, labels, what is unfinished, and the counts T_comp and T_data.

A pure fold: ``Books.apply`` takes one row after the other, and nothing else changes it. The running ledger, a
reopened one and a replay of history hold the same books because they apply the same rows. RELIABILITY: the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spannerlm.ledger.codec import items_from
from spannerlm.records import Label, LabelItem

PURPOSES = ("explore", "evaluate", "given")
"""What a request is for, each counted in columns of its own: to learn, to measure, or to enter labels that somebody had
already; those are learned from and cost nothing."""
RELEASED = "released"
"""Status of a claim that was taken back before an answer came, so that somebody else may be asked."""

Slot = tuple[bytes, tuple[str, ...], str]
"""What replicates are numbered within: the prompt's identity, one response or an unordered pair, the rater."""


def slot_of(identity: bytes, item: LabelItem, rater: str) -> Slot:
    """Return the slot of an item: comparisons of the same two responses share theirs, whichever comes first."""
    if item.opponent is None:
        return identity, (item.response,), rater
    return identity, tuple(sorted((item.response, item.opponent))), rater


def mirrored(value: float | None) -> float | None:
    """Return the value of a comparison with its two responses swapped."""
    return None if value is None else 1.0 - value


@dataclass(frozen=True)
class Counts:
    """What a run has spent. Counted here and nowhere else."""

    draws: int = 0
    """T_comp: oracle draws spent to learn, rejected ones included."""
    labels: int = 0
    """T_data: labels bought to learn, each with a value."""
    eval_draws: int = 0
    """Oracle draws spent to evaluate."""
    tokens: int = 0
    """Tokens drawn to learn; 0 where the oracle counts none."""
    eval_tokens: int = 0
    """Tokens drawn to evaluate; 0 where the oracle counts none."""
    eval_labels: int = 0
    """Labels bought to evaluate."""
    skips: int = 0
    """Claims that the source declined; their charge is kept."""
    failed: int = 0
    """Claims whose source broke, or that were dropped while in doubt."""
    in_doubt: int = 0
    """Claims without a reply so far: perhaps charged."""
    away: int = 0
    """Claims that the source turned away, uncharged, and that will be asked again."""
    waiting: int = 0
    """Claims of people and others who answer in their own time, without a reply so far."""
    given: int = 0
    """Labels that were there already: learned from, not bought."""
    free: int = 0
    """Those of ``failed`` that are known not to have been charged."""
    reused: int = 0
    """Items answered by an earlier label of the same response; they cost nothing."""
    rebought: int = 0
    """Claims sent a second time at the user's word, perhaps charged twice; not part of ``charged``."""

    @property
    def charged(self) -> int:
        """Claims that count against the label budget: to learn and to evaluate, answered, declined, failed or open."""
        answered = self.labels + self.eval_labels + self.skips + self.failed - self.free
        return answered + self.in_doubt + self.away + self.waiting


@dataclass(slots=True)
class Purchase:
    """One claim and what became of it."""

    key: str
    request: int
    position: int
    prompt: int
    response: str
    rater: str
    replicate: int
    purpose: str
    status: str | None = None
    """None (unanswered), ``label``, ``skip``, ``failed`` or ``released``."""
    value: float | None = None
    reason: str = ""
    charged: bool = True
    opponent: str | None = None
    """The other response of a comparison: ``value`` is 1 where ``response`` was preferred to it."""
    again: bool = False
    """Whether it may be sent again although it is in doubt (``settle_in_doubt("rebuy")``)."""
    attempts: int = 0
    """Attempts recorded as failed."""
    not_before: float = 0.0
    """Clock time before which the next attempt should not be made."""

    @property
    def answer(self) -> tuple[str | None, float | None]:
        """What later replies are compared with."""
        return self.status, self.value


@dataclass
class Asked:
    """A label request of which something is open."""

    k: int
    items: tuple[LabelItem, ...]
    detached: bool
    """Whether its answers come one by one, in any order, while the run goes on."""
    lines: dict[int, Purchase] = field(default_factory=dict)
    """By position, the claim that answers it."""
    told: set[int] = field(default_factory=set)
    """Positions whose labels are part of an outcome."""

    def labels(self, positions: Sequence[int]) -> tuple[Label, ...]:
        """Return the labels at these positions; their claims must be answered."""
        return tuple(self.label(position) for position in positions)

    def answered(self) -> list[int]:
        """Return the positions whose claims are answered, in order."""
        return sorted(position for position, bought in self.lines.items() if bought.status is not None)

    def label(self, position: int) -> Label:
        """Return what became of one item; its claim must be answered."""
        item, bought = self.items[position], self.lines[position]
        return Label(
            prompt=item.prompt,
            response=item.response,
            value=bought.value if item.response == bought.response else mirrored(bought.value),
            replicate=bought.replicate,
            status=bought.status or "",
            charged=bought.charged and self.buys(position),
            opponent=item.opponent,
        )

    def buys(self, position: int) -> bool:
        """Whether this item is the one that its claim was made for."""
        bought = self.lines[position]
        return bought.request == self.k and bought.position == position


@dataclass
class Books:
    """The state of a ledger after some of its rows."""

    identities: list[bytes] = field(default_factory=list)
    """[X] what tells prompts apart: equal ones share their labels."""
    requests: int = 0
    """How many requests there are: the number of the next one."""
    current: int | None = None
    """Number of the request that has no outcome yet."""
    current_row: int = 0
    """Its sequence number."""
    purposes: list[str] = field(default_factory=list)
    """[requests] what each is for."""
    asks: str = ""
    """What it asks for: ``draw`` or ``label``."""
    asked: dict[int, Asked] = field(default_factory=dict)
    """Label requests that are open, by number: one, and any number of detached ones."""
    told: tuple[Asked, tuple[int, ...]] | None = None
    """What the last outcome of a label request was about: the request, and which positions."""
    purchases: dict[str, Purchase] = field(default_factory=dict)
    """Every claim by its key, in order."""
    replicates: dict[Slot, list[Purchase]] = field(default_factory=dict)
    """Claims of one prompt, rater, and response or pair, in order of replicate."""
    unanswered: dict[str, Purchase] = field(default_factory=dict)
    revised: dict[str, Any] = field(default_factory=dict)
    """The last reply for each claim whose answer was revised."""
    stopped: int | None = None
    """Sequence number of the last stop request."""
    notes: dict[str, Any] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counts:
        """What was spent up to here."""
        out = [bought for bought in self.unanswered.values() if bought.purpose != "given"]
        waiting = sum(map(self.is_detached, out))
        away = sum(bought.not_before > 0.0 for bought in out if not self.is_detached(bought))
        return Counts(in_doubt=len(out) - waiting - away, away=away, waiting=waiting, **self.tally)

    def is_detached(self, bought: Purchase) -> bool:
        """Whether the claim is of an open request whose answers come in their own time."""
        return bought.request in self.asked and self.asked[bought.request].detached

    def apply(self, seq: int, kind: str, k: int, body: dict[str, Any]) -> None:
        """Enter one row."""
        if kind == "request":
            self._request(seq, k, body)
        elif kind == "claim":
            self._claim(k, body)
        elif kind == "drawn":
            self.tally["draws" if self.purposes[k] == "explore" else "eval_draws"] += body["spent"]
            if "tokens" in body:
                self.tally["tokens" if self.purposes[k] == "explore" else "eval_tokens"] += body["tokens"]
            self.current = None
        elif kind == "labelled":
            self._labelled(k, body)
        elif kind != "rejected":  # the bytes of a reply that was refused are evidence, and change nothing
            getattr(self, f"_{kind}")(body)

    def _open(self, body: dict[str, Any]) -> None:
        self.identities = [bytes.fromhex(digest) for digest in body["identities"]]
        self.notes = body["notes"]

    def _note(self, body: dict[str, Any]) -> None:
        self.notes = body["notes"]

    def _request(self, seq: int, k: int, body: dict[str, Any]) -> None:
        self.requests = k + 1
        self.purposes.append(body["purpose"])
        if body["type"] == "stop":
            self.stopped = seq
            return
        if body["type"] == "label":
            self.asked[k] = Asked(k, items_from(body), body.get("detached", False))
        if not body.get("detached", False):
            self.current, self.current_row, self.asks = k, seq, body["type"]

    def _labelled(self, k: int, body: dict[str, Any]) -> None:
        asked = self.asked[k]
        positions = tuple(body.get("at", range(len(asked.items))))
        asked.told.update(positions)
        self.told = asked, positions
        if len(asked.told) == len(asked.items):
            del self.asked[k]
            self.current = None if self.current == k else self.current

    def _claim(self, k: int, body: dict[str, Any]) -> None:
        rater, purpose, asked = body["rater"], self.purposes[k], self.asked[k]
        for position, key, replicate in zip(body["at"], body["keys"], body["replicates"], strict=True):
            bought = self.purchases.get(key)
            if bought is None:
                item = asked.items[position]
                bought = Purchase(key, k, position, item.prompt, item.response, rater, replicate, purpose)
                bought.opponent = item.opponent
                self.purchases[key] = self.unanswered[key] = bought
                self.replicates.setdefault(slot_of(self.identities[item.prompt], item, rater), []).append(bought)
            elif bought.status == RELEASED:
                bought.status, bought.request, bought.position, bought.purpose = None, k, position, purpose
                self.unanswered[key] = bought
            else:
                self.tally["reused"] += 1
            asked.lines[position] = bought

    def _release(self, body: dict[str, Any]) -> None:
        for key in body["keys"]:
            bought = self.unanswered.pop(key)
            bought.status = RELEASED
            asked = self.asked[bought.request]
            asked.lines = {at: other for at, other in asked.lines.items() if other is not bought}

    def _reply(self, body: dict[str, Any]) -> None:
        for key, reply in zip(body["keys"], body["replies"], strict=True):
            self._answer(self.unanswered.pop(key), reply)

    def _revise(self, body: dict[str, Any]) -> None:
        bought = self.purchases[body["key"]]
        self._count(bought, -1)
        self._answer(bought, body["reply"])
        self.revised[bought.key] = body["reply"]

    def _answer(self, bought: Purchase, reply: Any) -> None:
        bought.status, bought.value, bought.reason, bought.charged = "label", None, "", True
        if reply is None:
            bought.status = "skip"
        elif isinstance(reply, dict):
            bought.status, bought.reason, bought.charged = "failed", reply["failed"], reply["charged"]
        else:
            bought.value = reply
        self._count(bought, 1)

    def _count(self, bought: Purchase, by: int) -> None:
        columns = {"explore": "labels", "evaluate": "eval_labels", "given": "given"}
        column = {"skip": "skips", "failed": "failed"}.get(bought.status or "", columns[bought.purpose])
        self.tally[column] += by
        self.tally["free"] += by * (bought.status == "failed" and not bought.charged)

    def _rebuy(self, body: dict[str, Any]) -> None:
        for key in body["keys"]:
            self.purchases[key].again = True

    def _resent(self, body: dict[str, Any]) -> None:
        for key in body["keys"]:
            self.purchases[key].again = False  # the user's word is good for one more sending
            self.tally["rebought"] += 1

    def _attempt(self, body: dict[str, Any]) -> None:
        for key in body["keys"]:
            self.purchases[key].attempts += 1
            self.purchases[key].not_before = body["not_before"]
