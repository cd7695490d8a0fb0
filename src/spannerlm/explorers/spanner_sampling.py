"""SpannerSampling: inference-time exploration with few labels, and draws in proportion to coverage (THEORY 3).

`SpannerSampling` builds either schedule; this file holds the published one. Its departures from the paper: draws that a
prompt's scan does not need are drawn and counted all the same (one request of 2 N_span draws instead of up to N_span
requests of two); theta is refitted after each batch of labels instead of after each pair (equal for batches of 2); a
pair of equal features, which tells nothing of theta, costs no label.

With comparisons (THEORY 6) a pair is one label, and logistic maximum likelihood with the same norm bound takes the
place of least squares: everything else is unchanged. lambda is the same in Sigma; in logits, a ridge of lambda / 4:
Sigma / (4 s^2) remains the most that the pairs can have told. A comparison that is known costs no label again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers.learner import Learner, asked
from spannerlm.explorers.pools import affordable
from spannerlm.explorers.protocol import Explorer
from spannerlm.explorers.spanner_adaptive import AdaptiveSpannerSampling
from spannerlm.logistic import ridge_comparisons
from spannerlm.policy import LinearSoftmaxPolicy, Policy, TruncatedSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    FloatArray,
    Info,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
    Tilt,
)
from spannerlm.regression import DifferenceStats
from spannerlm.spanner import Spanner, acceptance_bound, first_pair

SCAN = 64
"""Prompts of the spanner phase whose draws are asked for at once: they do not depend on Sigma."""


@dataclass(frozen=True)
class Schedule:
    """The published schedule: orders of THEORY 3 with constants 1 and logarithms log(1/delta)."""

    penalty: float
    """lambda = d (R_max / B)^2: the largest with sqrt(lambda) B <= R_max sqrt(d)."""
    nu: float
    """beta / (R_max sqrt(d log(1/delta)))."""
    t_span: int
    """Prompts scanned: R_max m log(1/delta) / min(eps, beta), m the acceptance bound."""
    n_span: int
    """Pairs drawn per scanned prompt: C_cov log(1/delta)."""
    t_exp: int
    """Exploration rounds: R_max^2 d^2 log(1/delta) / (beta min(eps, beta))."""
    bound: float
    """M = 4 C_cov: twice the truncated policy's density ratio of about 2 C_cov."""


def theory_schedule(
    dim: int, *, beta: float, r_max: float, b: float, eps: float, delta: float, c_cov: float
) -> Schedule:
    """The schedule from what the theorem is told; `InputError` on a non-positive entry."""
    given = {"beta": beta, "r_max": r_max, "b": b, "eps": eps, "c_cov": c_cov}
    wrong = {k: v for k, v in given.items() if not v > 0.0} | ({} if 0.0 < delta < 1.0 else {"delta": delta})
    if wrong:
        raise InputError(f"theory schedule: expected positive numbers and delta in (0, 1), got {wrong}")
    log = np.log(1.0 / delta)
    penalty, nu = dim * (r_max / b) ** 2, beta / (r_max * np.sqrt(dim * log))
    pairs = acceptance_bound(dim, penalty, nu)
    return Schedule(
        penalty=penalty,
        nu=float(nu),
        t_span=int(np.ceil(r_max * pairs * log / min(eps, beta))),
        n_span=int(np.ceil(c_cov * log)),
        t_exp=int(np.ceil(r_max**2 * dim**2 * log / (beta * min(eps, beta)))),
        bound=4.0 * c_cov,
    )


def SpannerSampling(schedule: str = "adaptive", **settings: Any) -> Explorer:
    """The explorer with one of the two schedules; ``settings`` are the fields of the class that holds it.

    ``adaptive`` builds `AdaptiveSpannerSampling`, ``theory`` builds `TheorySpannerSampling`.
    """
    if schedule == "adaptive":
        return AdaptiveSpannerSampling(**settings)
    if schedule == "theory":
        return TheorySpannerSampling(**settings)
    raise InputError(f"schedule: expected 'adaptive' or 'theory', got {schedule!r}")


@dataclass(frozen=True, eq=False)
class TheoryState:
    """Where the published algorithm stands."""

    learner: Learner
    schedule: Schedule
    spanner: Spanner
    differences: DifferenceStats
    scanned: int = 0
    """Prompts of phase 1 done."""
    rounds: int = 0
    """Rounds of phase 2 done."""
    queue: tuple[tuple[LabelItem, ...], ...] = ()
    """Accepted pairs that were not asked for yet: the rewards of both, or their comparison."""
    anchors: tuple[Draws, ...] = ()
    """Comparison responses y' that wait for their softmax draw."""


@dataclass(frozen=True)
class TheorySpannerSampling:
    """SpannerSampling as published: spanner, then exploration with the truncated softmax policy (THEORY 3).

    It must be told R_max, B, eps, delta and C_cov; beta and d come from the task. Cost: T_data = O~(R_max^2 d^2 / (beta
    min(eps, beta))), T_comp = O~(C_cov R_max^2 / beta^2 T_data^2).
    """

    c_cov: float
    r_max: float = 1.0
    b: float = 1.0
    eps: float = 0.1
    delta: float = 0.05
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Schedule` to replace: the published constants are worst-case."""
    name: ClassVar[str] = "spanner-sampling-theory"
    comparisons: ClassVar[bool] = True

    def init(self, spec: Spec) -> TheoryState:
        """The state before the first request; `InputError` where the task has no beta."""
        if spec.beta is None:
            raise InputError("theory schedule: expected a task with beta, got a KL budget: set beta, or use 'adaptive'")
        schedule = theory_schedule(
            spec.dim, beta=spec.beta, r_max=self.r_max, b=self.b, eps=self.eps, delta=self.delta, c_cov=self.c_cov
        )
        schedule = replace(schedule, **self.overrides)
        spanner = Spanner.start(schedule.penalty * np.eye(spec.dim))
        return TheoryState(Learner.start(spec), schedule, spanner, DifferenceStats.empty(spec.dim))

    def decide(self, state: TheoryState, *, rng: np.random.Generator) -> Request:
        """Scan prompts for their first pair beyond nu; then rounds of y' from pi_ref, y from the truncated softmax."""
        learner, schedule = state.learner, state.schedule
        each = _per_pair(state)
        if learner.labels_left < each:
            return StopRequest("labels spent", self.progress(state))
        if state.queue:
            size = max(1, learner.batch() // each)
            items = tuple(item for pair in state.queue[:size] for item in pair)
            return LabelRequest(items, {"phase": "span" if state.rounds == 0 else "explore"})
        if state.anchors:
            return DrawRequest(tuple(d.prompt for d in state.anchors), 1, self._tilt(state), {"phase": "tilt"})
        if state.scanned < schedule.t_span:
            size = min(SCAN, schedule.t_span - state.scanned)
            info = {"phase": "scan", "seed": int(rng.integers(2**31))}
            return self._draws(state, size, 2 * schedule.n_span, info, rng)
        if state.rounds >= schedule.t_exp:
            return StopRequest("published schedule complete", self.progress(state))
        size = min(max(1, learner.spec.batch // each), schedule.t_exp - state.rounds)  # whatever labels are left
        size = affordable(learner.draws_left, 1 + self._most_draws(schedule), size)
        return self._draws(state, max(size, 1), 1, {"phase": "anchor"}, rng, later=self._most_draws(schedule))

    def _most_draws(self, schedule: Schedule) -> int:
        """What one call of `softmax_sampler` may draw: 2 N, and one more where nothing was accepted."""
        return 2 * int(np.ceil(4.0 * schedule.bound * np.log(4.0 / self.delta))) + 1

    def _draws(
        self, state: TheoryState, size: int, n: int, info: Info, rng: np.random.Generator, later: int = 0
    ) -> Request:
        """``n`` draws for each of ``size`` prompts from rho, if ``later`` more for each can be paid too."""
        spec = state.learner.spec
        if state.learner.draws_left < size * (n + later):
            return StopRequest("draws spent", self.progress(state))
        prompts = rng.choice(len(spec.prompt_probs), size=size, p=spec.prompt_probs)
        return DrawRequest(tuple(int(x) for x in prompts), n, info=info)

    def _tilt(self, state: TheoryState) -> Tilt:
        spec = state.learner.spec
        anchors = np.array([d.features[0] for d in state.anchors])
        return Tilt(
            theta=self._theta(state),
            beta=float(spec.beta or 0.0),
            anchors=anchors,
            root=state.spanner.root,
            nu=state.schedule.nu,
            bound=state.schedule.bound,
            delta=self.delta,
        )

    def _theta(self, state: TheoryState) -> FloatArray:
        spec, stats = state.learner.spec, state.learner.comparisons
        if spec.feedback == "comparison":
            return ridge_comparisons(stats, state.schedule.penalty / 4.0, self.b, scale=spec.scale, dim=spec.dim)
        return state.differences.ridge(state.schedule.penalty, self.b)

    def absorb(self, state: TheoryState, event: Event) -> TheoryState:
        """The state after an event; single rewards from elsewhere do not enter the difference regression."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, LabelRequest) and event.info.get("phase") in ("span", "explore"):
            return replace(state, queue=state.queue[len(event.items) // _per_pair(state) :])
        if isinstance(event, Labelled):
            return replace(state, differences=_add_pairs(state.differences, event))
        if isinstance(event, Drawn):
            return self._drawn(state, event)
        return state

    def _drawn(self, state: TheoryState, event: Drawn) -> TheoryState:
        phase = event.info.get("phase")
        if phase == "scan":
            return self._scan(state, event)
        if phase == "anchor":
            return replace(state, anchors=event.draws)
        if phase == "tilt":
            queue = state.queue
            for d, a in zip(event.draws, state.anchors, strict=True):
                if _differ(d, a):
                    queue += _pair(state.learner, queue, d.prompt, d.responses[0], a.responses[0])
            return replace(state, queue=queue, anchors=(), rounds=state.rounds + len(event.draws))
        return state

    def _scan(self, state: TheoryState, event: Drawn) -> TheoryState:
        """Phase 1 over the prompts of one request, one after the other: Sigma grows with each accepted pair."""
        rng = np.random.default_rng(event.info["seed"])
        spanner, queue = state.spanner, state.queue
        for draws in event.draws:
            pair, _ = first_pair(spanner, draws, state.schedule.nu, rng=rng)
            if pair is not None:
                spanner = spanner.accept(draws.features[pair.first] - draws.features[pair.second])
                one, other = draws.responses[pair.first], draws.responses[pair.second]
                queue += _pair(state.learner, queue, draws.prompt, one, other)
        return replace(state, spanner=spanner, queue=queue, scanned=state.scanned + len(event.draws))

    def policy(self, state: TheoryState) -> Policy:
        """The truncated softmax policy of the last theta; the base model before the first label."""
        beta = float(state.learner.spec.beta or 0.0)
        if state.differences.pairs == state.learner.comparisons.comparisons == 0:
            return LinearSoftmaxPolicy(np.zeros(state.learner.spec.dim), beta)
        return TruncatedSoftmaxPolicy(self._theta(state), beta, state.spanner.root, state.schedule.nu)

    def learner(self, state: TheoryState) -> Learner:
        """Labels, moments and posterior."""
        return state.learner

    def progress(self, state: TheoryState) -> Info:
        """Phase, prompts scanned, rounds, pairs in the spanner."""
        phase = "span" if state.scanned < state.schedule.t_span else "explore"
        pairs = state.spanner.accepted
        return {
            "phase": phase,
            "scanned": state.scanned,
            "rounds": state.rounds,
            "pairs": pairs,
            "nu": state.schedule.nu,
        }


def _differ(first: Draws, second: Draws) -> bool:
    return not np.array_equal(first.features[0], second.features[0])


def _per_pair(state: TheoryState) -> int:
    """Labels that a pair costs."""
    return 1 if state.learner.spec.feedback == "comparison" else 2


def _pair(
    learner: Learner, queue: tuple[tuple[LabelItem, ...], ...], prompt: int, first: str, second: str
) -> tuple[tuple[LabelItem, ...], ...]:
    """The entry of the queue for a pair; none where its comparison is known, asked for or queued."""
    fresh = learner.spec.fresh
    if learner.spec.feedback == "scalar":
        return ((LabelItem(prompt, first, fresh), LabelItem(prompt, second, fresh)),)
    item = LabelItem(prompt, first, fresh, second)
    if not fresh and asked(item) in {asked(other) for (other,) in queue}:
        return ()
    return ((item,),) if learner.open(prompt, first, second) else ()


def _add_pairs(stats: DifferenceStats, event: Labelled) -> DifferenceStats:
    """The statistics with every pair of consecutive labels of one prompt whose two values came."""
    values = [label.value for label in event.labels]
    rows = [
        i
        for i in range(0, len(values) - 1, 2)
        if event.labels[i].prompt == event.labels[i + 1].prompt and values[i] is not None and values[i + 1] is not None
    ]
    if event.info.get("phase") not in ("span", "explore") or not rows:
        return stats
    relative = np.array([event.features[i] - event.features[i + 1] for i in rows])
    differences = np.array([float(values[i] or 0.0) - float(values[i + 1] or 0.0) for i in rows])
    return stats.add(relative, differences)
