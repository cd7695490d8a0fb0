"""The explorer protocol: three pure functions on a frozen state, and what may be read off it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from spannerlm.explorers.learner import Learner
from spannerlm.policy import Policy
from spannerlm.records import Event, Info, Request, Spec


class Explorer(Protocol):
    """Decides what to draw and what to label; never touches a model, a file or a clock.

    A run is a fold: ``state = absorb(state, event)`` over every request as it is issued and every outcome as it comes.
    The state is frozen and knows what is pending, so `decide` may be called while labels are out.
    """

    @property
    def name(self) -> str:
        """Under which it is known on the command line."""

    def init(self, spec: Spec) -> Any:
        """The state before the first request."""

    def decide(self, state: Any, *, rng: np.random.Generator) -> Request:
        """The next request: draw, label or stop. Pure: all randomness comes from ``rng``."""

    def absorb(self, state: Any, event: Event) -> Any:
        """The state after a request was issued or an outcome came, also one that was never asked for."""

    def policy(self, state: Any) -> Policy:
        """The policy learned so far; the base model before the first label."""

    def learner(self, state: Any) -> Learner:
        """Labels, moments and posterior, for prediction and reports."""

    def progress(self, state: Any) -> Info:
        """Phase, spanner and certificate for the live view and the history: JSON values."""
