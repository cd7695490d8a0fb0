"""Frozen records that travel between oracle, explorer, ledger and run. Data only, no behaviour.

Symbols: ``X`` prompts, ``n`` distinct draws, ``d`` feature dimension, ``m`` prompts of one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Info = Mapping[str, Any]
"""Diagnostics that a request carries and its outcome brings back: JSON values only."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What the sampling oracle returned for one prompt: distinct responses and how often each came.

    The draws are independent, so their order holds no information; a random order is a permutation.
    """

    prompt: int
    """Index of the prompt."""
    responses: tuple[str, ...]
    """[n] distinct responses, in order of first appearance."""
    counts: IntArray
    """[n] how often each was drawn; ``counts.sum()`` oracle queries were spent."""
    features: FloatArray
    """[n, d] phi(x, y) of each response, not centred; phi_h of each segment where there is a prefix."""
    prefix: tuple[str, ...] | None = None
    """Segments after which these, the responses, were drawn as the next one; None where they are complete."""
    tokens: int | None = None
    """Tokens generated for all these draws, where the oracle has just counted them; not part of what is recorded."""


@dataclass(frozen=True, eq=False)
class Generated:
    """What a real model generated for one prompt, before any feature map has seen it."""

    prompt: str
    responses: tuple[str, ...]
    """[n] distinct responses, in order of first appearance."""
    counts: IntArray
    """[n] how often each was generated."""
    logprobs: FloatArray
    """[n] log pi_ref(y | x) in nats, end-of-sequence included."""
    lengths: IntArray
    """[n] tokens, end-of-sequence included."""
    finished: NDArray[np.bool_]
    """[n] False where the token limit cut the response off."""
    hidden: Mapping[str, FloatArray] = field(default_factory=dict)
    """Pooled hidden states [n, D] by the name under which a feature map asked for them."""
    tokens: int | None = None
    """Tokens generated for all draws, ends included; None where the responses were given."""
    segments: tuple[str, ...] | None = None
    """[n] the responses as the back end reads them again, as parts of a prefix; None where they are complete."""


@dataclass(frozen=True)
class Spec:
    """What an explorer is told before it starts: sizes and budgets, never p, C_cov or the noise."""

    prompt_probs: FloatArray
    """[X] the prompt distribution rho."""
    dim: int
    """d, the feature dimension."""
    labels: int
    """T_data budget: reward labels it may buy in all."""
    draws: int | None
    """T_comp budget: oracle draws it may spend in all; None = no limit."""
    batch: int
    """Labels asked for at once, at most."""
    beta: float | None = None
    """KL temperature of the objective J_beta; None where a KL budget fixes it."""
    kl: float | None = None
    """KL budget in nats: beta is then whatever spends it."""
    fresh: bool = False
    """Whether a response may be labelled again, each time with fresh noise (exact environments)."""
    feedback: Literal["scalar", "comparison"] = "scalar"
    """What a label is: the reward of one response, or which of two responses of a prompt is preferred (THEORY 6)."""
    scale: float = 1.0
    """s of comparisons, in reward units: P(y preferred to y') = sigmoid((r - r') / s). Only theta / s is identified."""
    target_regret: float | None = None
    """Predicted regret at which to stop before the labels are spent, in reward units; None: spend them all."""
    horizon: int | None = None
    """H where the oracle can extend prefixes: ``dim`` is then H d, phi_h in the h-th block; None: whole answers."""


@dataclass(frozen=True, eq=False)
class Tilt:
    """A truncated softmax score to draw from: <theta, phi(x, y) - anchor>, 0 beyond nu (THEORY 3)."""

    theta: FloatArray
    """[d] reward parameter."""
    beta: float
    """KL temperature."""
    anchors: FloatArray
    """[m, d] phi(x, y') of the comparison response, one per prompt of the request."""
    root: FloatArray
    """[d, d] W with ||phi||_{Sigma^-1} = |W phi|."""
    nu: float
    """Truncation radius in that norm."""
    bound: float
    """M, the sampler's bound on the density ratio."""
    delta: float
    """The sampler's failure probability."""


@dataclass(frozen=True, eq=False)
class StepTilt:
    """A step-by-step score to roll out with: at step h one of the draws is kept, odds exp(<theta_h, phi> / beta)."""

    theta: FloatArray
    """[H, d] parameter of each step (THEORY 5)."""
    beta: float
    """KL temperature."""


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """Draw ``n`` responses for each prompt; with a ``tilt``, one response that its sampler accepts.

    With ``prefixes``, ``n`` next segments after prompt i and prefix i instead; with a ``StepTilt`` on top, one of them
    is kept, ``n`` are drawn after it, and so on to the end: one complete sequence per prompt, every draw returned.
    """

    prompts: tuple[int, ...]
    n: int
    tilt: Tilt | StepTilt | None = None
    info: Info = field(default_factory=dict)
    prefixes: tuple[tuple[str, ...], ...] | None = None
    """[m] segments to go on from; None: complete responses."""


@dataclass(frozen=True)
class LabelItem:
    """One response to be rewarded, or to be compared with ``opponent``.

    ``fresh`` asks for a further replicate if it has a label already.
    """

    prompt: int
    response: str
    fresh: bool = False
    opponent: str | None = None
    """The other response of a comparison; None for a reward."""


@dataclass(frozen=True, eq=False)
class LabelRequest:
    """Buy the rewards of these responses, all of them drawn before."""

    items: tuple[LabelItem, ...]
    info: Info = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StopRequest:
    """The explorer is done: why, and with which certificate in ``info``."""

    reason: str
    info: Info = field(default_factory=dict)


Request = DrawRequest | LabelRequest | StopRequest


@dataclass(frozen=True)
class Label:
    """What became of one label item: a value, or None for a skip or a failure."""

    prompt: int
    response: str
    value: float | None
    """The reward; of a comparison 1 where ``response`` is preferred, 0 where ``opponent`` is, .5 for a tie."""
    replicate: int = 0
    """0 for the first label of this response, 1 for the next fresh one, and so on."""
    status: str = "label"
    """``label``, ``skip`` (the source declined) or ``failed`` (the source broke, retries used up)."""
    charged: bool = True
    """False where an earlier label was reused."""
    opponent: str | None = None
    """The other response of a comparison; None for a reward."""


@dataclass(frozen=True)
class Failed:
    """In place of a value: the source broke for this item, and will not be asked again."""

    reason: str
    charged: bool = True
    """False only where it is certain that the request never reached the source."""


@dataclass(frozen=True)
class Later:
    """In place of a value: the source turned the item away, uncharged, and may be asked again."""

    seconds: float
    """After which to ask again, at the earliest."""
    reason: str


@dataclass(frozen=True)
class Unknown:
    """In place of a value: nobody knows whether the item was charged, so it must not be sent again blindly."""

    reason: str
    raw: bytes = b""
    """What came back, if anything."""


@dataclass(frozen=True)
class Rollout:
    """A complete sequence that was put together step by step."""

    prompt: int
    segments: tuple[str, ...]
    """Those of the prefix it went on from included."""
    response: str
    """The text that they make."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Outcome of a draw request, or draws from elsewhere."""

    draws: tuple[Draws, ...]
    """[m] one record per prompt; with a tilt, the accepted response alone."""
    spent: int
    """Oracle queries that this cost, rejected ones included."""
    exhausted: tuple[bool, ...] = ()
    """[m] with a tilt: whether the sampler ran out and fell back to a base draw."""
    info: Info = field(default_factory=dict)
    paths: tuple[Rollout, ...] = ()
    """[m] the complete sequences of a step-by-step roll-out."""
    tokens: int = 0
    """Tokens generated; 0 where the oracle counts none."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Outcome of a label request, or labels from elsewhere."""

    labels: tuple[Label, ...]
    """[k] in the order of the request's items."""
    features: FloatArray
    """[k, d] phi(x, y) of each labelled response; of a comparison the relative feature phi(x, y) - phi(x, y')."""
    info: Info = field(default_factory=dict)


Outcome = Drawn | Labelled
Event = Request | Outcome
"""What an explorer's state is folded over: each request as it is issued, then its outcome."""
