"""The durable journal of draws and labels: the one truth of a run, and the only place that counts T_comp and T_data.

    ledger = Ledger.open(directory, meta={...}, prompts=[...])   # None = in memory: same rows, counts, export
    for event in ledger.events(): state = explorer.absorb(state, event)      # or replay(), with k, purpose and counts
    ledger.next_request, ledger.unfinished()        # number of the next request; (k, request) to be executed, or None
    request = ledger.request(k, request, purpose="explore")      # the explorer absorbs what is returned: it is exactly
    drawn = ledger.drawn(k, drawn)                               # ... what a replay will give (plain info, C-ordered
    labelled = ledger.labelled(k, labelled)                      # ... float64, the same object wherever it can be)
    claims = ledger.claim(k, rater="reward")        # durable before the reward is called; one Claim per item
    todo = [claim for claim in claims if claim.to_buy]           # look at .in_doubt first, unless the reward is pure
    ledger.reply(todo, values)                      # float, None (skip) or Failed; durable when it returns
    labels = ledger.labels(k)                       # [k] Label records for Labelled(labels, features, info)
    ledger.attempt(claims), ledger.reject(claims, raw, why)      # a failed attempt; a reply that was refused
    ledger.in_doubt(), ledger.settle_in_doubt("rebuy" | "drop")
    ledger.stop(k, StopRequest(...)), ledger.stopped, ledger.counts, ledger.meta, ledger.notes, ledger.prompts
    ledger.export()                                 # canonical JSON lines: equal for a killed and an undisturbed run
    Ledger.verify(directory), ledger.backup(file), Ledger.restore(file, directory), ledger.close()

Requests are numbered 0, 1, 2, ..., one is open at a time, and a recorded request is executed, never decided again. A
*detached* label request stays open beside others, for people who answer in their own time; each answer is an outcome:
    ledger.request(k, request, detached=True); claims = ledger.claim(k, rater="ann", positions=[3]); ledger.reply(...)
    ledger.labelled(k, Labelled(ledger.labels(k, [3]), features, info), [3]); ledger.waiting(), ledger.release(claims)
    ledger.reopen(key), ledger.revise(claim, value)               # a late answer; another answer than before
One process writes, one thread at a time; ``read_only=True`` reads beside it. RELIABILITY: the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from spannerlm.errors import InputError
from spannerlm.ledger.backup import Verification, back_up, restore, verify
from spannerlm.ledger.books import PURPOSES, RELEASED, Asked, Books, Counts, Purchase
from spannerlm.ledger.claims import Claim, answer_of, claim_of, identities_of, plan, stored_reply
from spannerlm.ledger.codec import Json, as_float64, canonical, check_text, plain_info, request_from, request_parts
from spannerlm.ledger.history import Entry, History
from spannerlm.ledger.journal import DATABASE, Journal, Trace, no_trace
from spannerlm.records import (
    Drawn,
    Draws,
    Event,
    Failed,
    FloatArray,
    Label,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Rollout,
    StopRequest,
)

__all__ = ["Claim", "Counts", "Entry", "Failed", "Ledger", "Verification", "Waiting"]

Purpose = Literal["explore", "evaluate", "given"]


@dataclass(frozen=True)
class Waiting:
    """An item of a detached request that has no answer so far."""

    request: int
    position: int
    item: LabelItem
    claim: Claim | None
    """Who was asked; None while nobody was."""


class Ledger:
    """Draws, claims and labels of one run; made by ``Ledger.open``."""

    def __init__(self, journal: Journal, directory: Path | None) -> None:
        self._journal = journal
        self._directory = directory
        self._history = History(journal, directory)
        self._books = Books()
        self._header: Json = {}
        for row, body in self._history.bodies():
            self._header = body if row.kind == "open" else self._header
            self._books.apply(row.seq, row.kind, row.k, body)

    @classmethod
    def open(
        cls,
        directory: Path | str | None,
        *,
        meta: Mapping[str, Any] | None = None,
        prompts: Sequence[str] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        notes: Mapping[str, Any] | None = None,
        read_only: bool = False,
        trace: Trace = no_trace,
    ) -> Ledger:
        """Return the ledger of a directory, new or resumed; None = in memory.

        ``meta`` (seed, explorer, budgets: what decides the run) and ``prompts`` [X] are stored when it is made; given
        again, they must be equal. ``notes`` (versions, times) may differ and are no part of the export. Two prompts
        that are equal in text and in all ``columns`` that the reward reads (each [X]) share their labels.
        ``trace`` is told each point of every write: ``before-``, ``within-``, ``after-`` and ``head-`` + row kind.
        Raises InputError, LedgerLockedError, LedgerCorruptError (nothing was changed) or LedgerError.
        """
        folder = None if directory is None else Path(directory)
        if folder is not None and meta is None and not (folder / DATABASE).exists():
            raise InputError(f"{folder}: expected a run directory to resume, found no {DATABASE} in it")
        journal = Journal.open(folder, read_only=read_only, trace=trace)
        try:
            ledger = cls(journal, folder)
            ledger._begin(meta, prompts, columns or {}, notes)
        except BaseException:
            journal.close()
            raise
        return ledger

    def _begin(
        self,
        meta: Mapping[str, Any] | None,
        prompts: Sequence[str] | None,
        columns: Mapping[str, Sequence[Any]],
        notes: Mapping[str, Any] | None,
    ) -> None:
        plain = None if meta is None else plain_info(meta)
        identities = None if prompts is None else identities_of(prompts, columns)
        if self._header:
            self._compare(plain, identities)
            if self._journal.writable and notes is not None and plain_info(notes) != self._books.notes:
                self._append("note", 0, {"notes": plain_info(notes)})
            return
        if identities is None or prompts is None:
            raise InputError("this ledger holds nothing yet; a new one needs meta= and prompts=")
        self._header = {"meta": plain or {}, "notes": plain_info(notes or {}), "identities": identities}
        self._header["prompts"] = list(prompts)
        self._append("open", 0, self._header)

    def _compare(self, meta: Json | None, identities: list[str] | None) -> None:
        stored = self._header["meta"]
        for name in sorted(set(meta) | set(stored)) if meta is not None else ():
            was, now = stored.get(name), (meta or {}).get(name)
            if canonical(was) != canonical(now):
                raise InputError(
                    f"this ledger was made with {name} = {was!r}, now it is {now!r}; "
                    "resume with the former, or use another directory"
                )
        if identities is not None and identities != self._header["identities"]:
            raise InputError("this ledger was made with other prompts; resume with those, or use another directory")

    @property
    def meta(self) -> Json:
        """What decides the run, as it was given when the ledger was made."""
        return dict(self._header["meta"])

    @property
    def notes(self) -> Json:
        """The last notes: versions, times."""
        return dict(self._books.notes)

    @property
    def prompts(self) -> tuple[str, ...]:
        """[X] the prompts."""
        return tuple(self._header["prompts"])

    @property
    def counts(self) -> Counts:
        """What has been spent: T_comp, T_data and the rest."""
        return self._books.counts

    @property
    def next_request(self) -> int:
        """Number of the next request; its randomness comes from (seed, this number)."""
        return self._books.requests

    @property
    def stopped(self) -> StopRequest | None:
        """The last stop request, if there is one."""
        if self._books.stopped is None:
            return None
        stop = self._history.request(self._books.stopped)
        assert isinstance(stop, StopRequest)
        return stop

    def unfinished(self) -> tuple[int, Request] | None:
        """Return the request that has no outcome yet, with its number: it is executed, never decided again."""
        if self._books.current is None:
            return None
        return self._books.current, self._history.request(self._books.current_row)

    def purpose(self, k: int) -> str:
        """Return what request ``k`` is for."""
        return self._books.purposes[k]

    # --- writing ----------------------------------------------------------------------------------------------------

    def request(self, k: int, request: Request, *, purpose: Purpose = "explore", detached: bool = False) -> Request:
        """Return the request as recorded, durable: the explorer absorbs this one.

        ``detached``: a label request whose answers come one by one and in their own time, while others are issued.
        """
        if k != self._books.requests:
            raise InputError(f"expected request {self._books.requests}, got {k}")
        if detached and not isinstance(request, LabelRequest):
            raise InputError(f"detached: expected a request for labels, got {type(request).__name__}")
        if self._books.current is not None and not detached:
            raise InputError(f"request {self._books.current} has no outcome yet; finish it before the next")
        if purpose not in PURPOSES:
            raise InputError(f"expected a purpose of {PURPOSES}, got {purpose!r}")
        body, arrays = request_parts(request)
        for prompt in body.get("prompts", ()) or (item[0] for item in body.get("items", ())):
            self._check_prompt(prompt)
        apart: Json = {"detached": True} if detached else {}
        self._append("request", k, {**body, "purpose": purpose, **apart}, arrays)
        return request_from(body, arrays)

    def stop(self, k: int, request: StopRequest) -> StopRequest:
        """Return the stop request as recorded."""
        self.request(k, request)
        return request

    def drawn(self, k: int, drawn: Drawn) -> Drawn:
        """Return the outcome of draw request ``k`` as recorded, durable: the explorer absorbs this one."""
        self._check_current(k, "draw")
        draws = tuple(self._plain_draws(record) for record in drawn.draws)
        if len({record.features.shape[1] for record in draws}) > 1:
            raise InputError("features [n, d]: d differs between the draws of one outcome")
        exhausted = tuple(bool(flag) for flag in drawn.exhausted)
        paths = tuple(Rollout(int(path.prompt), tuple(path.segments), path.response) for path in drawn.paths)
        plain = Drawn(draws, int(drawn.spent), exhausted, plain_info(drawn.info), paths, int(drawn.tokens))
        body: Json = {"spent": plain.spent, "exhausted": list(exhausted), "info": plain.info}
        if paths:
            body["paths"] = [[path.prompt, list(path.segments), path.response] for path in paths]
        if plain.tokens:
            body["tokens"] = plain.tokens
        self._books.apply(self._history.append_drawn(k, body, draws), "drawn", k, body)
        return plain

    def claim(self, k: int, *, rater: str = "reward", positions: Sequence[int] | None = None) -> tuple[Claim, ...]:
        """Return one claim per item of label request ``k`` (or per position), committed before this returns.

        A response that has a label of this rater is answered by it, unless its item is ``fresh``: then it is the next
        replicate. So is a comparison by one of the same two responses, mirrored where they are swapped. Equal items
        that are not fresh are bought once. Items that were claimed before are returned as they stand. Those ``to_buy``
        are then sent to the reward, or compared; if ``in_doubt``, only where sending twice is harmless.
        """
        asked = self._asked(k)
        items = asked.items
        at = [int(i) for i in (range(len(items)) if positions is None else positions)]
        if len(set(at)) != len(at) or not all(0 <= i < len(items) for i in at):
            raise InputError(f"positions: expected distinct indices below {len(items)}, got {at}")
        new = [i for i in at if i not in asked.lines]
        if new:
            check_text(rater, "rater")
            self._append("claim", k, plan(self._books, asked, new, rater))
        resent = [asked.lines[i].key for i in at if self._may_resend(asked, i)]
        if resent:
            self._append("resent", k, {"keys": resent})
        known = set(new).union(i for i in at if asked.lines[i].key in set(resent))
        return tuple(claim_of(asked, i, doubt=i not in known) for i in at)

    def release(self, claims: Sequence[Claim]) -> None:
        """Take unanswered claims of detached requests back: their items may be claimed again, by whomever.

        Raises InputError for others. Should an answer come all the same, `reopen` takes it.
        """
        for number, claim in enumerate(claims):
            bought = self._purchase(claim, number)
            if bought.status is not None or not self._books.is_detached(bought):
                raise InputError(
                    f"claims[{number}]: expected one that waits for an answer, got {bought.status or 'open'}"
                )
        if len({claim.key for claim in claims}) != len(claims):
            raise InputError("claims: expected each once, got one twice")
        if claims:
            self._append("release", self._books.requests - 1, {"keys": [claim.key for claim in claims]})

    def reopen(self, key: str) -> tuple[int, Claim]:
        """Return a new detached request for the item of a claim that was taken back, and that claim, open again."""
        bought = self._books.purchases.get(key)
        if bought is None or bought.status != RELEASED:
            raise InputError(f"{key[:12]}: expected a claim that was taken back, got {bought and bought.status}")
        item = LabelItem(bought.prompt, bought.response, fresh=True, opponent=bought.opponent)
        k = self._books.requests
        self.request(k, LabelRequest((item,), {"phase": "late"}), detached=True)
        return k, self.claim(k, rater=bought.rater)[0]

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the items of detached requests without an answer so far, in order of request and position."""
        found = []
        for asked in self._books.asked.values():
            people = asked.detached and self._books.purposes[asked.k] != "given"
            for position, item in enumerate(asked.items if people else ()):
                bought = asked.lines.get(position)
                if bought is None or bought.status is None:
                    claim = None if bought is None else claim_of(asked, position, doubt=True)
                    found.append(Waiting(asked.k, position, item, claim))
        return tuple(found)

    def untold(self) -> tuple[tuple[int, str, tuple[tuple[int, LabelItem], ...]], ...]:
        """Return (number, purpose, (position, item) each) of detached requests with answers that no outcome holds."""
        found = []
        for asked in self._books.asked.values():
            at = [position for position in asked.answered() if position not in asked.told]
            if asked.detached and at:
                rows = tuple((position, asked.items[position]) for position in at)
                found.append((asked.k, self._books.purposes[asked.k], rows))
        return tuple(found)

    def claim_by_key(self, key: str) -> tuple[Claim, str | None, float | None]:
        """Return the claim of this key as it was made, its status (None: no answer yet) and its value."""
        try:
            bought = self._books.purchases[key]
        except KeyError:
            raise InputError(f"{key[:12]}: expected the id of a query of this run, found none of that name") from None
        claim = Claim(
            key=key,
            request=bought.request,
            position=bought.position,
            prompt=bought.prompt,
            response=bought.response,
            rater=bought.rater,
            replicate=bought.replicate,
            label=None,
            in_doubt=bought.status is None,
            duplicate=False,
            attempts=bought.attempts,
            not_before=bought.not_before,
            opponent=bought.opponent,
        )
        return claim, bought.status, bought.value

    def revise(self, claim: Claim, value: float | Failed | None) -> None:
        """Record another answer to an answered claim, durable. What was answered before stays in the ledger; from now
        on `replay` gives the last answer at the place of the first."""
        bought = self._purchase(claim, 0)
        if bought.status not in ("label", "skip", "failed"):
            raise InputError(f"{claim.key[:12]}: expected an answered query to revise, got one without an answer")
        self._append(
            "revise", self._books.requests - 1, {"key": claim.key, "reply": stored_reply(claim, bought, value, 0)}
        )

    def charged_by_rater(self) -> dict[str, int]:
        """Return how many claims of each rater count against the budget: what prices are multiplied with."""
        found: Counter[str] = Counter()
        for bought in self._books.purchases.values():
            found[bought.rater] += bought.purpose != "given" and bought.status != RELEASED and bought.charged
        return dict(found)

    def purchases(self) -> Iterator[tuple[Claim, str | None, float | None]]:
        """Yield every claim in the order in which they were made, with its status and value."""
        return (self.claim_by_key(key) for key in self._books.purchases)

    def reply(self, claims: Sequence[Claim], values: Sequence[float | Failed | None]) -> None:
        """Record what was answered to these claims, all or nothing; durable when this returns.

        None is a skip; a comparison is in [0, 1], 1 where the claim's response is preferred. The same answer twice is
        a no-op. Raises InputError naming the entry at fault: nothing of the batch is then recorded, and its claims
        stay unanswered.
        """
        if len(claims) != len(values):
            raise InputError(f"expected {len(claims)} values, one per claim, got {len(values)}")
        keys: list[str] = []
        replies: list[Any] = []
        for number, (claim, value) in enumerate(zip(claims, values, strict=True)):
            bought = self._purchase(claim, number)
            plain = stored_reply(claim, bought, value, number)
            if claim.key in keys:
                raise InputError(f"claims[{number}]: the same claim twice in one reply")
            if bought.status is None:
                keys.append(claim.key)
                replies.append(plain)
            elif bought.answer != answer_of(plain):
                raise InputError(f"claims[{number}]: was answered {bought.answer}, now {answer_of(plain)}")
        if keys:
            self._append("reply", self._books.requests - 1, {"keys": keys, "replies": replies})

    def labels(self, k: int, positions: Sequence[int] | None = None) -> tuple[Label, ...]:
        """Return [m] what became of each item of a label request, or of those at these positions.

        Raises InputError while some are unanswered.
        """
        asked = self._asked(k)
        at = range(len(asked.items)) if positions is None else positions
        answered = set(asked.answered())
        open_ones = sum(i not in answered for i in at)
        if open_ones:
            raise InputError(f"request {k}: {open_ones} items are unanswered")
        return asked.labels(at)

    def labelled(self, k: int, labelled: Labelled, positions: Sequence[int] | None = None) -> Labelled:
        """Return the outcome of label request ``k`` as recorded, durable: the explorer absorbs this one.

        Its labels must be ``labels(k, positions)``: the row refers to them, and holds features and info. Of a detached
        request an outcome may hold a part, each position once.
        """
        asked = self._asked(k)
        if positions is not None and (not asked.detached or asked.told.intersection(positions)):
            raise InputError(f"request {k}: expected positions of a detached request without an outcome")
        labels = self.labels(k, positions)
        if labelled.labels != labels:
            raise InputError(f"request {k}: the labels of its outcome are not those of its claims")
        features = as_float64(labelled.features, (len(labels), None), "features [k, d]")
        plain = Labelled(labels, features, plain_info(labelled.info))
        part: Json = {} if positions is None else {"at": [int(i) for i in positions]}
        self._append("labelled", k, {"info": plain.info, **part}, (features,))
        return plain

    def attempt(self, claims: Sequence[Claim], *, not_before: float = 0.0) -> None:
        """Record that an attempt at these claims failed and may be repeated, from clock time ``not_before`` on."""
        keys = [self._purchase(claim, number).key for number, claim in enumerate(claims)]
        self._append("attempt", self._books.requests - 1, {"keys": keys, "not_before": float(not_before)})

    def reject(self, claims: Sequence[Claim], raw: bytes, why: str) -> None:
        """Record a reply that was refused, its bytes and why. The claims stay unanswered, their charge stands."""
        keys = [self._purchase(claim, number).key for number, claim in enumerate(claims)]
        self._append("rejected", self._books.requests - 1, {"keys": keys, "raw": raw.hex(), "why": why})

    def in_doubt(self) -> tuple[Claim, ...]:
        """Return the claims without a reply: after a crash, or a time-out, nobody knows whether they were charged.

        Those that were turned away last are in no doubt: they were not charged, and are asked again.
        """
        return tuple(
            claim_of(asked, i, doubt=True)
            for asked in self._books.asked.values()
            for i, bought in (() if asked.detached else asked.lines.items())
            if bought.status is None and asked.buys(i) and not bought.not_before
        )

    def settle_in_doubt(self, how: Literal["rebuy", "drop"]) -> None:
        """Let claims in doubt be sent once more (perhaps charged twice), or record them as failed, charge kept."""
        if how not in ("rebuy", "drop"):
            raise InputError(f"expected 'rebuy' or 'drop', got {how!r}")
        open_ = self._books.unanswered.items()
        keys = [key for key, bought in open_ if not (self._books.is_detached(bought) or bought.not_before)]
        if keys and how == "rebuy":
            self._append("rebuy", self._books.requests - 1, {"keys": keys})
        elif keys:
            dropped = {"failed": "dropped while in doubt", "charged": True}
            self._append("reply", self._books.requests - 1, {"keys": keys, "replies": [dropped] * len(keys)})

    # --- reading ----------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Yield requests and outcomes in order, as they were recorded, of purpose ``explore``: what a state folds."""
        return (entry.event for entry in self.replay() if entry.purpose == "explore")

    def replay(self) -> Iterator[Entry]:
        """Yield every event in order, with its number, purpose and the counts once it was recorded.

        Raises LedgerCorruptError where a row or a shard is not what was written.
        """
        return self._history.replay(self._books.revised)

    def export(self) -> Iterator[str]:
        """Yield canonical JSON lines: requests, draws and labels, in order; equal for equal runs, killed or not.

        Neither attempts nor process ids, clock times or versions are part of it; features stand as a digest.
        """
        return self._history.export()

    @staticmethod
    def verify(directory: Path | str) -> Verification:
        """Return what is found of the rows, the head outside the database and the shards; raises nothing for damage."""
        return verify(Path(directory))

    def backup(self, file: Path | str) -> None:
        """Write one consistent file with all rows and shards; raises LedgerError, or InputError if in memory."""
        if self._directory is None:
            raise InputError("a ledger in memory has no files to back up; give it a directory")
        back_up(self._journal, self._directory, Path(file))

    @staticmethod
    def restore(file: Path | str, directory: Path | str) -> None:
        """Unpack a backup into a directory that holds no ledger, once it is found whole."""
        restore(Path(file), Path(directory))

    def close(self) -> None:
        """Close the database and release the lock; closing twice does nothing."""
        self._journal.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- within -----------------------------------------------------------------------------------------------------

    def _append(self, kind: str, k: int, body: Json, arrays: Sequence[FloatArray] = ()) -> None:
        """Write one row, then enter it into the books: a row that failed is in neither."""
        self._books.apply(self._history.append(kind, k, body, arrays), kind, k, body)

    def _check_current(self, k: int, asks: str) -> None:
        books = self._books
        if books.current != k or books.asks != asks:
            now = "none is open" if books.current is None else f"{books.asks} request {books.current} is open"
            raise InputError(f"expected {asks} request {k} to be open; {now}")

    def _check_prompt(self, prompt: int) -> None:
        if not 0 <= prompt < len(self._books.identities):
            raise InputError(f"prompt {prompt}: expected an index below {len(self._books.identities)}")

    def _plain_draws(self, record: Draws) -> Draws:
        """Return draws with C-ordered float64 features and int64 counts: the same record if it has them."""
        n = len(record.responses)
        self._check_prompt(int(record.prompt))
        for text in record.responses:
            check_text(text, f"a response to prompt {record.prompt}")
        features = as_float64(record.features, (n, None), f"features [n, d] of prompt {record.prompt}")
        counts = np.asarray(record.counts)
        if counts.shape != (n,) or (n and counts.dtype.kind not in "iu"):
            raise InputError(f"counts [n] of prompt {record.prompt}: expected {n} integers, got {counts!r}")
        same = features is record.features and counts is record.counts and counts.dtype == np.int64
        if same and type(record.prompt) is int:
            return record
        return Draws(int(record.prompt), tuple(record.responses), counts.astype(np.int64), features, record.prefix)

    def _asked(self, k: int) -> Asked:
        if k not in self._books.asked:
            self._check_current(k, "label")
        return self._books.asked[k]

    @staticmethod
    def _may_resend(asked: Asked, position: int) -> bool:
        bought = asked.lines[position]
        return bought.again and bought.status is None and asked.buys(position)

    def _purchase(self, claim: Claim, number: int) -> Purchase:
        try:
            return self._books.purchases[claim.key]
        except KeyError:
            raise InputError(f"claims[{number}]: {claim.key[:12]} is not a claim of this ledger") from None
