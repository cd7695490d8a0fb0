"""Labels from sources that can break: what is answered is recorded, and nothing is sent twice blindly.

Each item of a call ends in one of these ways (RELIABILITY: faults 9 to 14):

- A number, None or `Failed` is recorded at once.
- `Later`: the source turned it away, uncharged. That is recorded with the time of the next try, which also holds after
  a crash; an item turned away `LATER_LIMIT` times, or for longer than `PATIENCE_S`, ends the run until it is resumed.
- `Unknown`: perhaps charged. What came back is kept, the claim stays in doubt, and the run stops once the rest is done.
- The source raised: each item is then asked alone, up to `TRIES` times, in rounds, and recorded as failed after that. A
  source that is broken must not eat the budget: the run stops, and nothing is recorded as failed, as soon as `BROKEN`
  items in a row were asked without an answer, or the first ones of the run were.
- Anything else (NaN, a wrong length, ...): the reply of the call is kept, refused whole, and the run stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from spannerlm.errors import InDoubtError, RewardError
from spannerlm.ledger import Claim, Ledger
from spannerlm.records import Failed, Later, Unknown
from spannerlm.rewards import Answer, FunctionRaisedError, Raised

TRIES = 3
"""How often an item is asked alone where the source raises; attempts recorded before a crash count."""
BROKEN = 5
"""Items in a row without an answer from which on the source is held to be broken."""
LATER_LIMIT = 8
"""How often an item may be turned away before the run ends; each run resumed asks at least once more."""
PATIENCE_S = 900.0
"""Longest wait in seconds."""
BACK_OFF_S = 0.5
"""Shortest wait after the first refusal; it doubles with each further one."""

Ask = Callable[[Sequence[Claim]], Sequence[Answer]]
Pair = tuple[Claim, Raised]


class Buyer:
    """Buys labels of one kind for one run: asks, records, waits, asks again.

    ``ask`` gives checked answers, one per claim, or raises `RewardError`. ``clock`` gives seconds since 1970; the times
    it gives are recorded, and only shorten what a resumed run waits, so that a wrong clock delays nothing.
    """

    def __init__(self, ledger: Ledger, ask: Ask, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._ledger, self._ask, self._clock, self._sleep = ledger, ask, clock, sleep
        self._unanswered = 0
        self._unknown: list[str] = []
        self._turned: Counter[str] = Counter()

    def buy(self, claims: Sequence[Claim]) -> list[str]:
        """Why labels are in doubt, one reason each; every other claim is answered when this returns.

        Raises `RewardError` where the source is broken, gives a wrong reply, or turns items away for too long: what was
        answered until then is recorded, the other claims stand.
        """
        self._unknown = []
        away = [claim for claim in claims if turned_away(claim)]
        self._turned = Counter({claim.key: (claim.attempts + 1) // 2 for claim in away})  # two rows for each refusal
        tried = Counter({claim.key: claim.attempts for claim in claims if not turned_away(claim)})
        if away:
            until = max(claim.not_before for claim in away)
            self._sleep(min(max(0.0, until - self._clock()), PATIENCE_S))
            self._ledger.attempt(away)
        raised = self._send(claims)
        answered = len(claims) - len(raised)
        if raised:
            answered += self._alone(raised, tried, answered, first=len(claims) == 1)
        if answered:
            self._unanswered = 0
        return self._unknown

    def _alone(self, raised: list[Pair], tried: Counter[str], answered: int, *, first: bool) -> int:
        """Ask each of these alone, in rounds, and record those that get no answer as failed; how many got one.

        ``first``: the call before was such a try already. Raises `RewardError` where the source is broken.
        """
        before, given_up = answered, list[Pair]()
        while raised:
            if first:
                tried.update(claim.key for claim, _ in raised)
            given_up += [pair for pair in raised if first and tried[pair[0].key] >= TRIES]
            asked = [pair for pair in raised if not first or tried[pair[0].key] < TRIES]
            if first and not answered and len(asked) + len(given_up) >= BROKEN:
                given_up += asked
                break
            first, raised = True, []
            for claim, _ in asked:
                again = self._send([claim])
                answered += not again
                raised += again
        if given_up:
            self._give_up(given_up, broken=not answered)
        return answered - before

    def _give_up(self, given_up: Sequence[Pair], *, broken: bool) -> None:
        """Record these as failed; stop instead where nothing was answered (``broken``) for long, or ever."""
        claims = [claim for claim, _ in given_up]
        counts = self._ledger.counts
        if broken:
            self._unanswered += len(claims)
            if self._unanswered >= BROKEN or not counts.labels + counts.eval_labels + counts.skips:
                why = given_up[-1][1].reason
                self._ledger.reject(claims, b"", why)
                raise RewardError(
                    f"{why}; {self._unanswered} items in a row have no answer, so nothing more is bought: repair the "
                    "source, then resume with --in-doubt rebuy"
                )
        self._ledger.reply(claims, [Failed(raised.reason) for _, raised in given_up])

    def _send(self, claims: Sequence[Claim]) -> list[Pair]:
        """Ask for these, and again for those turned away, until none is; returns those for which the source raised."""
        raised: list[Pair] = []
        while claims:
            pairs = list(zip(claims, self._answers(claims), strict=True))
            known = [(c, a) for c, a in pairs if a is None or isinstance(a, (float, Failed))]
            if known:
                self._ledger.reply([claim for claim, _ in known], [answer for _, answer in known])
            for claim, answer in pairs:
                if isinstance(answer, Unknown):
                    self._ledger.reject([claim], answer.raw, answer.reason)
                    self._unknown.append(answer.reason)
            again = [(claim, answer) for claim, answer in pairs if isinstance(answer, Raised)]
            if again:
                self._ledger.attempt([claim for claim, _ in again])
            raised += again
            claims = self._wait([(claim, answer) for claim, answer in pairs if isinstance(answer, Later)])
        return raised

    def _answers(self, claims: Sequence[Claim]) -> Sequence[Answer]:
        """[k] answers of one call; what it raises is one of them. A wrong reply is kept, and raised."""
        try:
            return self._ask(claims)
        except FunctionRaisedError as error:
            return [Raised(str(error))] * len(claims)
        except RewardError as error:
            self._ledger.reject(claims, error.reply.encode("utf-8", "surrogatepass"), str(error))
            raise

    def _wait(self, away: Sequence[tuple[Claim, Later]]) -> list[Claim]:
        """Record who was turned away, wait, record that they are sent once more; returns their claims."""
        if not away:
            return []
        claims = [claim for claim, _ in away]
        self._turned.update(claim.key for claim in claims)
        times = max(self._turned[claim.key] for claim in claims)
        asked = max(later.seconds for _, later in away)
        seconds = max(asked, BACK_OFF_S * 2.0 ** min(times - 1, LATER_LIMIT))
        self._ledger.attempt(claims, not_before=max(self._clock(), 0.0) + seconds)
        if times >= LATER_LIMIT or asked > PATIENCE_S:
            raise RewardError(
                f"{len(claims)} items were turned away {times} times, at last because: {away[-1][1].reason}; nothing "
                f"was charged for them, and they will be asked again: resume in {seconds:g} s"
            )
        self._sleep(seconds)
        self._ledger.attempt(claims)
        return claims


def turned_away(claim: Claim) -> bool:
    """Whether the last that is known of a claim is that it was turned away: then it is in no doubt.

    An attempt with a time to come back says so; before such a claim is sent again, one without a time is recorded.
    """
    return claim.not_before > 0.0


def refuse_doubtful(reasons: Sequence[str]) -> None:
    """Raise `InDoubtError` where labels are in doubt, one reason ("" where none is known) for each of them."""
    if reasons:
        why = f" ({reasons[-1]})" if reasons[-1] else ""
        raise InDoubtError(
            f"{len(reasons)} labels were asked for and never answered{why}: they may have been charged. Say what "
            "becomes of them: resume with --in-doubt rebuy (ask again, perhaps paying twice) or drop (go on without "
            "them); in Python, explore(..., in_doubt=...)"
        )
