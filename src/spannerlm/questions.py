"""What workers are asked: queries by id, who gets which, at what price, and which answers fit (RELIABILITY)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from spannerlm.askdriver import ANYBODY, Settings
from spannerlm.errors import InputError
from spannerlm.ledger import Claim, Ledger
from spannerlm.records import Failed, LabelItem, Spec

ANYONE = "anyone"
"""Name of the rater where no worker is named."""
GIVEN = "given"
"""Name of the rater, and purpose of the request, of labels that were there already."""
ID_LENGTH = 20
"""Hex digits of a query's id, the first ones of its claim's key: 80 bits."""


@dataclass(frozen=True)
class Query:
    """One question that is out: what is this response worth, or which of two is better."""

    id: str
    """Stable: the same question to the same worker has the same id in every process."""
    prompt: str
    response: str
    opponent: str | None
    """The other response of a comparison; None where a number is asked for."""
    worker: str
    columns: Mapping[str, Any]
    """What else is known of the prompt."""


@dataclass(frozen=True)
class Answer:
    """One query that was asked, and what became of it."""

    query: Query
    status: str
    """``waiting``, ``label``, ``skip``, ``failed`` or ``released``."""
    value: float | None


class Questions:
    """The ledger's claims as workers see them. Not safe for threads by itself: `Run` holds its lock around every call.

    It reads the ledger, and writes claims alone (`assign`); it costs no draws.
    """

    def __init__(self, ledger: Ledger, spec: Spec, settings: Settings) -> None:
        self._ledger, self._spec, self._settings = ledger, spec, settings
        self._keys: dict[str, str] = {}

    # --- queries ----------------------------------------------------------------------------------------------------

    def query(self, claim: Claim) -> Query:
        """A claim as its worker sees it."""
        name = claim.key[:ID_LENGTH]
        self._keys[name] = claim.key
        claim, _, _ = self._ledger.claim_by_key(claim.key)  # the way round that it was asked first, as answers are told
        columns = {column: values[claim.prompt] for column, values in self._settings.columns.items()}
        prompt = self._ledger.prompts[claim.prompt]
        return Query(name, prompt, claim.response, claim.opponent, claim.rater, columns)

    def by_id(self, name: str) -> tuple[Claim, str | None, float | None]:
        """Claim, status and value of a query's id; `InputError` where there is none."""
        if not isinstance(name, str) or len(name) != ID_LENGTH:
            raise InputError(f"id: expected that of a query, {ID_LENGTH} hex digits, got {name!r:.80}")
        if name not in self._keys:
            self._keys |= {claim.key[:ID_LENGTH]: claim.key for claim, _, _ in self._ledger.purchases()}
        if name not in self._keys:
            raise InputError(f"{name}: expected the id of a query of this run, found none of that name")
        return self._ledger.claim_by_key(self._keys[name])

    def is_given(self, claim: Claim) -> bool:
        """Whether the label was there already, and nobody was asked."""
        return self._ledger.purpose(claim.request) == GIVEN

    def answers(self) -> list[Answer]:
        """Every query that was asked, in order, and what became of it; labels that were added are none."""
        asked = [row for row in self._ledger.purchases() if not self.is_given(row[0])]
        return [Answer(self.query(claim), status or "waiting", value) for claim, status, value in asked]

    def agreement(self) -> tuple[float, int]:
        """`Run.agreement`."""
        by_item: dict[tuple[int, frozenset[str]], list[float]] = defaultdict(list)
        for claim, status, value in self._ledger.purchases():
            if status == "label" and value is not None:
                texts = frozenset(text for text in (claim.response, claim.opponent) if text is not None)
                by_item[claim.prompt, texts].append(value)  # of a comparison: as of the pair's first purchase
        values = [value for group in by_item.values() for value in group]
        width = 0.5 if self._spec.feedback == "comparison" else 0.1 * (max(values) - min(values) if values else 0.0)
        pairs = [abs(a - b) <= width for group in by_item.values() for i, a in enumerate(group) for b in group[:i]]
        return (float(np.mean(pairs)) if pairs else math.nan), len(pairs)

    # --- workers ----------------------------------------------------------------------------------------------------

    def worker(self, name: str | None) -> str:
        """The rater's name; `InputError` where it is none, or where nobody knows what his labels cost."""
        if name is None:
            if self._settings.overlap > 1:
                overlap = self._settings.overlap
                raise InputError(f"worker: expected a name where {overlap} workers rate each response, got None")
            name = ANYONE
        if not isinstance(name, str) or not name.strip() or name == GIVEN:
            raise InputError(f"worker: expected a name, other than {GIVEN!r}, got {name!r:.80}")
        if self._settings.money is not None and math.isnan(self._settings.price(name)):
            raise InputError(f"prices: expected one for {name!r}, or for {ANYBODY!r}, where money is counted; got none")
        return name

    def held(self, worker: str) -> list[Query]:
        """Queries that this worker has been asked and has not answered."""
        found = [item.claim for item in self._ledger.waiting() if item.claim is not None]
        return [self.query(claim) for claim in found if claim.rater == worker]

    def unclaimed(self) -> list[tuple[int, int, LabelItem]]:
        """(request, position, item) that nobody was asked yet."""
        return [(w.request, w.position, w.item) for w in self._ledger.waiting() if w.claim is None]

    def assign(self, worker: str, n: int) -> list[Claim]:
        """At most ``n`` items that nobody was asked yet, asked of this worker: none that he has rated before."""
        rated, turns = self._rated(worker)
        chosen: dict[int, list[int]] = defaultdict(list)
        free = self._money_left()
        price = self._settings.price(worker)
        for k, position, item in self.unclaimed():
            key, turn = _asked(item), (k, position // self._settings.overlap)
            if n <= 0 or key in rated or turn in turns or (free is not None and price > free + 1e-9):
                continue
            rated.add(key)
            turns.add(turn)
            chosen[k].append(position)
            n -= 1
            free = None if free is None else free - price
        return [claim for k, at in chosen.items() for claim in self._ledger.claim(k, rater=worker, positions=at)]

    def shared_out(self, items: tuple[LabelItem, ...], labels_left: int) -> tuple[LabelItem, ...]:
        """The items, each as often as workers rate it (its turn), as many as the budget leaves room for."""
        out = self._ledger.counts.charged + len(self.unclaimed())
        room = max(0, min(labels_left, self._spec.labels - out))
        overlap = self._settings.overlap
        return tuple(item for item in items[: room // overlap] for _ in range(overlap))

    def _rated(self, worker: str) -> tuple[set[tuple[int, frozenset[str]]], set[tuple[int, int]]]:
        """What this worker was asked before, and the turns (`shared_out`) that he has had.

        Where labels are fresh, the same may be asked again once it is answered, but not within one turn.
        """
        rows = [
            (claim, status)
            for claim, status, _ in self._ledger.purchases()
            if claim.rater == worker and status != "released"
        ]
        texts = {
            _asked(LabelItem(claim.prompt, claim.response, opponent=claim.opponent))
            for claim, status in rows
            if status is None or not self._spec.fresh
        }
        return texts, {(claim.request, claim.position // self._settings.overlap) for claim, _ in rows}

    # --- money ------------------------------------------------------------------------------------------------------

    def spent(self) -> float:
        """Money that was charged so far, open queries included; nan without prices."""
        charged = self._ledger.charged_by_rater()
        return sum((self._settings.price(name) * n for name, n in charged.items() if n), start=self._settings.nothing())

    def affords(self) -> bool:
        """Whether the money is enough for a label of the cheapest worker."""
        left = self._money_left()
        return left is None or left + 1e-9 >= self._settings.cheapest()

    def _money_left(self) -> float | None:
        return None if self._settings.money is None else self._settings.money - self.spent()

    # --- answers ----------------------------------------------------------------------------------------------------

    def problem(self, name: str, answer: float | Failed | None, revise: bool) -> str:
        """Why an answer is refused; empty where it is not."""
        try:
            claim, status, value = self.by_id(name)
        except InputError as error:
            return str(error)
        if isinstance(answer, float) and claim.opponent is not None and not 0.0 <= answer <= 1.0:
            return f"{name}: expected a comparison in [0, 1], got {answer:g}"
        if status in (None, "released", "skip") or revise or same_answer(status, value, answer):
            return ""
        now = answer if isinstance(answer, float) else "skip" if answer is None else "failed"
        was = value if status == "label" else status
        return f"{name}: was answered {was}, now {now}: say revise to replace the answer"

    def check_given(self, items: Sequence[LabelItem], values: Sequence[float], rater: str) -> None:
        """`InputError` where an item has another value already, in the ledger or earlier in the batch."""
        known, asked = {}, set()
        for claim, status, value in self._ledger.purchases():
            key, plain = _oriented(claim.prompt, claim.response, claim.opponent, math.nan if value is None else value)
            if claim.rater == rater and status == "label":
                known[key] = plain
            elif claim.rater == rater and status != "released":
                asked.add(key)
        for i, (item, value) in enumerate(zip(items, values, strict=True)):
            if item.opponent is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"values[{i}]: expected a comparison in [0, 1], got {value:g}; nothing was recorded")
            key, plain = _oriented(item.prompt, item.response, item.opponent, value)
            if key in asked and key not in known:
                raise InputError(f"values[{i}]: expected what {rater!r} was not asked, got a query: tell it instead")
            if known.setdefault(key, plain) != plain:
                raise InputError(
                    f"values[{i}]: expected {known[key]:g}, as {rater!r} gave before; nothing was recorded"
                )


def same_answer(status: str | None, value: float | None, answer: float | Failed | None) -> bool:
    """Whether an answer is the one that is there already."""
    if isinstance(answer, float):
        return status == "label" and value == answer
    return status == ("skip" if answer is None else "failed")


def number(name: str, value: object) -> float:
    """A finite number, as a float; `InputError` names what it is not."""
    if value is None:
        raise InputError(f"{name}: expected a number, got None: skip the query instead; nothing was recorded")
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            plain = float(value)
        except OverflowError:
            plain = math.inf
        if math.isfinite(plain):
            return plain
    raise InputError(f"{name}: expected a finite number, got {value!r:.80}; nothing of this batch was recorded")


def _oriented(
    prompt: int, response: str, opponent: str | None, value: float
) -> tuple[tuple[int, str, str | None], float]:
    """What a value is about, and the value, whichever way round a pair is."""
    if opponent is None or response < opponent:
        return (prompt, response, opponent), value
    return (prompt, opponent, response), 1.0 - value


def _asked(item: LabelItem) -> tuple[int, frozenset[str]]:
    return item.prompt, frozenset(text for text in (item.response, item.opponent) if text is not None)
