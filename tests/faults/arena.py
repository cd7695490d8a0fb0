"""The real driver and ledger, and what must hold of them and the referee whatever breaks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from referees import Referee

from spannerlm.environments import rare_skill
from spannerlm.explorers import Passive
from spannerlm.ledger import Ledger
from spannerlm.records import Spec
from spannerlm.run import Driver

ENV = rare_skill(0.05, prompts=8)
SPEC = Spec(ENV.prompt_probs, ENV.dim, labels=20, draws=5_000, batch=10, beta=ENV.beta, fresh=True)


class Clock:
    """A clock that only moves when somebody sleeps; ``interrupt``: sleeping is interrupted instead."""

    def __init__(self, now: float = 1e9, interrupt: bool = False) -> None:
        self.now, self.slept, self.interrupt = now, list[float](), interrupt

    def sleep(self, seconds: float) -> None:
        if self.interrupt:
            raise KeyboardInterrupt
        self.slept.append(seconds)
        self.now += seconds


def opened(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "run", meta={"seed": 4}, prompts=list(ENV.prompts))


def driver(ledger: Ledger, reward: Any, clock: Clock | None = None, **spec: Any) -> Driver:
    clock = clock or Clock()
    options: Any = {"seed": 4, "clock": lambda: clock.now, "sleep": clock.sleep}
    return Driver(ENV, Passive(), reward, ledger, replace(SPEC, **spec), **options)


def go(ledger: Ledger, reward: Any, clock: Clock | None = None, **spec: Any) -> None:
    """Resume, run on to the end."""
    run = driver(ledger, reward, clock, **spec)
    run.replay()
    run.explore()
    run.stop()


def check(referee: Referee, ledger: Ledger) -> None:
    """No key charged twice; every label was charged; charged minus stored equals in doubt."""
    charged = referee.charged
    assert len(set(charged)) == len(charged)
    stored = {claim.key for claim, status, _ in ledger.purchases() if status == "label"}
    assert stored <= set(charged)
    assert len(charged) - len(stored) == ledger.counts.in_doubt


def rejected(ledger: Ledger) -> list[tuple[int, bytes, str]]:
    """(claims, bytes, why) of the replies that were refused."""
    rows = (body for row, body in ledger._history.bodies() if row.kind == "rejected")
    return [(len(body["keys"]), bytes.fromhex(body["raw"]), body["why"]) for body in rows]


def attempts(ledger: Ledger) -> Counter[int]:
    """How many claims have had how many attempts."""
    return Counter(claim.attempts for claim, _, _ in ledger.purchases())
