"""What `Run` is made of: settings, a driver whose steps are taken one by one, a model that is loaded when needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spannerlm.backends.oracle import ModelOracle
from spannerlm.errors import InputError
from spannerlm.ledger import Counts
from spannerlm.records import Drawn, DrawRequest, Draws, Event, FloatArray, LabelRequest
from spannerlm.run import Driver

ANYBODY = "*"
"""Name of the price of whoever has none of his own."""


@dataclass(frozen=True)
class Settings:
    """What a run of ask and tell has beside its spec."""

    overlap: int
    """Workers who rate each response."""
    prices: Mapping[str, float]
    """Price of a label by worker."""
    money: float | None
    """Budget in the same currency; None: labels alone are counted."""
    columns: Mapping[str, Sequence[Any]]
    """[X] what else is known of the prompts."""
    about: dict[str, Any] = field(default_factory=dict)
    """Model, its options and features, as a policy keeps them."""
    seed: int = 0
    folder: Path = Path()

    def __post_init__(self) -> None:
        for name, price in self.prices.items():
            if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0.0 <= price < math.inf:
                raise InputError(f"prices[{name!r}]: expected a price per label of at least 0, got {price!r}")
        if self.money is not None and (not self.prices or not 0.0 < self.money < math.inf):
            raise InputError(f"money: expected a positive amount, and prices, got {self.money} and {dict(self.prices)}")

    def price(self, worker: str) -> float:
        """Price of this worker's label; nan where nobody has said one."""
        return float(self.prices.get(worker, self.prices.get(ANYBODY, math.nan)))

    def nothing(self) -> float:
        """What no label costs: 0; nan where there are no prices."""
        return 0.0 if self.prices else math.nan

    def cheapest(self) -> float:
        """The lowest price."""
        return min(self.prices.values(), default=0.0)

    def affordable(self) -> int:
        """Labels that the money buys at most."""
        if self.money is None or self.cheapest() <= 0.0:
            raise InputError("budget: expected a number of labels where some labels cost nothing, got None")
        return int(self.money / self.cheapest() + 1e-9)

    def meta(self) -> dict[str, Any]:
        """As a ledger keeps them."""
        columns = {name: list(values) for name, values in self.columns.items()}
        return {"overlap": self.overlap, "prices": dict(self.prices), "money": self.money, "columns": columns}


class AskDriver(Driver):
    """A driver that is told what happens; it buys nothing and keeps no history."""

    def fold(self, event: Event, *, purpose: str = "explore") -> None:
        """Fold one recorded event into the explorer's state. Asking for labels that were there already is no event."""
        if not (purpose == "given" and isinstance(event, LabelRequest)):
            self._fold(event, purpose, Counts())

    def generate(self, k: int, request: DrawRequest) -> Drawn:
        """The outcome of a draw request, not yet recorded. Cost: draws."""
        return self._draw(k, request)

    def phi(self, prompt: int, response: str, what: str = "responses") -> FloatArray:
        """[d] the feature of a response, drawn or not; ``what``: its name in errors.

        `InputError` where the oracle knows drawn ones alone, and for a text that no tokenizer can read.
        """
        known = self._rows.get((prompt, response))
        if known is not None:
            return known
        if not hasattr(self.oracle, "features_of"):
            raise InputError(f"{what}: expected one that was drawn for prompt {prompt}, got {response[:80]!r}")
        if any("\ud800" <= letter <= "\udfff" for letter in response):
            raise InputError(f"{what}: expected text that a model can read, got a lone surrogate in {response[:80]!r}")
        found: FloatArray = np.asarray(self.oracle.features_of(prompt, [response]))[0]
        return found

    def _row(self, counts: Counts) -> None:
        """Nothing: a policy per label would cost more than the label's fold."""


class LazyOracle:
    """A `ModelOracle` whose model is loaded at the first draw: who only tells or looks needs none."""

    def __init__(self, prompts: Sequence[str], dim: int, load: Callable[[], ModelOracle]) -> None:
        self._prompts, self._dim, self._load = tuple(prompts), dim, load
        self._loaded: ModelOracle | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""
        return self._prompts

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self._dim

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` responses each (`ModelOracle.draw`)."""
        return self._oracle().draw(prompts, n, rng=rng)

    def features_of(self, prompt: int, responses: Sequence[str]) -> FloatArray:
        """[n, d] features of given responses (`ModelOracle.features_of`)."""
        return self._oracle().features_of(prompt, responses)

    def tokens(self, draws: Draws) -> int:
        """Tokens generated for the draws of one record (`ModelOracle.tokens`)."""
        return self._oracle().tokens(draws)

    def _oracle(self) -> ModelOracle:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded
