"""Which claim answers which item of a label request (RELIABILITY: claims, duplicates, replicates, faults 11 and 17)."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from spannerlm.errors import InputError
from spannerlm.ledger.books import RELEASED, Asked, Books, Purchase, Slot, mirrored, slot_of
from spannerlm.ledger.codec import Json, canonical, check_text, text_bytes
from spannerlm.records import Failed, Label


@dataclass(frozen=True, slots=True)
class Claim:
    """What buys, or has bought, the label of one item of a request."""

    key: str
    """Hex sha256 of prompt, response or unordered pair, rater and replicate: the idempotency key."""
    request: int
    """Number k of the request that the item is of."""
    position: int
    """Index of the item in that request."""
    prompt: int
    response: str
    rater: str
    replicate: int
    label: Label | None
    """What became of it; None while unanswered. ``label.charged`` is False where an earlier label is reused."""
    in_doubt: bool
    """Unanswered and committed before this call: it may have been sent, and charged."""
    duplicate: bool
    """Whether an earlier item, of this request or another, made the claim that answers this one."""
    attempts: int
    """Failed attempts so far (``Ledger.attempt``)."""
    not_before: float
    """Clock time before which it should not be tried again."""
    opponent: str | None = None
    """The other response, where ``response`` is to be compared with it; None where it is to be rewarded."""

    @property
    def to_buy(self) -> bool:
        """Whether this item is to be sent to the reward: unanswered, and each claim once."""
        return self.label is None and not self.duplicate


def plan(books: Books, asked: Asked, at: Sequence[int], rater: str) -> Json:
    """Return the row of claims for these positions of a request: which key answers each."""
    planned: Counter[Slot] = Counter()
    keys, replicates = [], []
    for item in (asked.items[i] for i in at):
        slot = slot_of(books.identities[item.prompt], item, rater)
        known = books.replicates.get(slot, ())
        number = len(known) + planned[slot]
        back = next((bought.replicate for bought in known if bought.status == RELEASED), None)
        if back is not None and not planned[slot]:  # asked before, and taken back: the same question again
            planned[slot] += 1
            number = back
        elif item.fresh or not number:
            planned[slot] += 1
        else:  # the first with a value, if any has one
            number = next((bought.replicate for bought in known if bought.status == "label"), 0)
        replicates.append(number)
        keys.append(_key(slot, number))
    return {"rater": rater, "at": list(at), "keys": keys, "replicates": replicates}


def claim_of(asked: Asked, position: int, *, doubt: bool) -> Claim:
    """Return the claim that answers one item of a request; ``doubt``: whether it was made before."""
    bought, item = asked.lines[position], asked.items[position]
    answered = bought.status is not None
    return Claim(
        key=bought.key,
        request=asked.k,
        position=position,
        prompt=item.prompt,
        response=item.response,
        rater=bought.rater,
        replicate=bought.replicate,
        label=asked.label(position) if answered else None,
        in_doubt=doubt and not answered,
        duplicate=not asked.buys(position),
        attempts=bought.attempts,
        not_before=bought.not_before,
        opponent=item.opponent,
    )


def identities_of(prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return [X] hex digests that are equal where prompt and columns are."""
    for name, column in columns.items():
        if len(column) != len(prompts):
            raise InputError(f"column {name!r}: expected {len(prompts)} values, one per prompt, got {len(column)}")
    digests = []
    for x, prompt in enumerate(prompts):
        check_text(prompt, f"prompts[{x}]")
        row = canonical({name: column[x] for name, column in columns.items()})
        digests.append(hashlib.sha256(f"{len(row)} ".encode() + row + text_bytes(prompt)).hexdigest())
    return digests


def _key(slot: Slot, replicate: int) -> str:
    """Return the hex idempotency key of one purchase; lengths in front keep the parts apart.

    That of a pair has a word before them where that of a single response has a digit.
    """
    identity, responses, rater = slot
    name, *texts = (text_bytes(text) for text in (rater, *responses))
    sizes = f"{len(name)} {replicate} " if len(texts) == 1 else f"pair {len(name)} {len(texts[0])} {replicate} "
    return hashlib.sha256(b"".join([identity, sizes.encode(), name, *texts])).hexdigest()


def stored_reply(claim: Claim, bought: Purchase, value: object, number: int) -> float | Json | None:
    """Return a reply as it is stored; InputError names the entry unless it is a finite number, None or Failed.

    A comparison's is in [0, 1], 1 where the claim's response is preferred, and stored as of what was bought first.
    """
    plain = _plain_reply(value, number)
    if claim.opponent is None or not isinstance(plain, float):
        return plain
    if not 0.0 <= plain <= 1.0:
        raise InputError(f"values[{number}]: expected a comparison in [0, 1], None (skip) or Failed, got {value!r:.80}")
    return plain if claim.response == bought.response else mirrored(plain)


def _plain_reply(value: object, number: int) -> float | Json | None:
    if value is None:
        return None
    if isinstance(value, Failed):
        return {"failed": str(value.reason), "charged": bool(value.charged)}
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int beyond the largest float
            plain = float(value)
            if math.isfinite(plain):
                return plain
    raise InputError(f"values[{number}]: expected a finite number, None (skip) or Failed, got {value!r:.80}")


def answer_of(reply: float | Json | None) -> tuple[str | None, float | None]:
    """Return (status, value) of a reply as it is stored."""
    if reply is None:
        return "skip", None
    return ("failed", None) if isinstance(reply, dict) else ("label", reply)
