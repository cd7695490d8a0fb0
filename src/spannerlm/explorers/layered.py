"""`multi-turn-spanner-paper`: SpannerSampling at every step, from the last to the first (THEORY 5, layered MTSS).

A core set of pairs per step: two segments after one prefix, farther apart than nu when they were found. Each pair's two
segments are rolled out with the current policy, both labels bought, and a step's parameter is regressed on the
differences of their returns: backward induction, since a step needs the policy of those after it. Draws along roll-ins
and roll-outs are tested; a pair beyond nu joins its step's core set, and the induction starts again from there: all
that was rolled out at earlier steps is rolled out and labelled afresh. Then rounds of exploration at each step, as in
THEORY 3: a segment from pi_ref, one from the truncated softmax sampler, the two rolled out.

With H = 1 nothing is rolled in or out, and on the same draws this is the published algorithm of `spanner_sampling.py`:
same pairs, same labels, same parameter.

Departures: new core pairs are rolled out once before anything is labelled, to find what lies behind them (ours: costs
draws, and spares labels that a restart would make stale); the softmax sampler is fed from a fixed number of draws, its
most; roll-outs are tilted without truncation, which is the same where the test finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers.layered_parts import (
    Layer,
    LayeredState,
    Planned,
    StepPair,
    TruncatedStepPolicy,
    accepted,
    gains,
    most_draws,
)
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pools import affordable
from spannerlm.explorers.spanner_sampling import SCAN, theory_schedule
from spannerlm.policy import TruncatedSoftmaxPolicy
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
    StepTilt,
    StopRequest,
)

LEAST = 1e-3
"""Radius below which nothing is worth a label: a pair labelled a million times."""
PHASES = ("scan", "probe", "roll-in", "roll-out", "anchor", "tilt")
"""What its draws are for; others are not looked at."""
Prefixes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LayeredSpanner:
    """Layered MTSS. Cost of one schedule, with m_h pairs at step h and R restarts that come after labels: at most
    2 (R + 1) sum_h m_h labels; ``t_span`` H 2 ``n_span`` draws to scan, up to 2 H ``draws`` for each pair's roll-outs,
    `most_draws` more for a pair of the exploration.

    The core sets hold at most ``acceptance_bound(d, penalty, nu)`` pairs each. The defaults are for labels in about
    [0, 1] with noise of about .2; ``published`` has the theory's. It never stops by predicted regret. Needs rewards (no
    comparisons), a ``beta``, and an oracle that resumes prefixes.
    """

    penalty: float = 0.1
    """lambda, in Sigma_h and in the regressions."""
    nu: float = 0.7
    """Radius of the first schedule's tests: about 1 / nu^2 pairs per direction of features of norm 1."""
    t_span: int = 32
    """Roll-ins of the spanner phase."""
    n_span: int = 6
    """Pairs drawn at each step of such a roll-in."""
    t_exp: int = 2
    """Exploration rounds at each step."""
    bound: float = 4.0
    """M of the softmax sampler: at least twice C_cond."""
    draws: int = 12
    """Draws per step of all other roll-ins and of the roll-outs."""
    b: float | None = None
    """Largest norm of a step's parameter; None: no limit."""
    delta: float = 0.05
    """The softmax sampler's failure probability."""
    shrink: float | None = 0.7
    """Factor by which nu falls once the schedule is complete, to begin it again while labels last; None: it ends."""
    name: ClassVar[str] = "multi-turn-spanner-paper"

    def __post_init__(self) -> None:
        counts: dict[str, float] = {"t_span": self.t_span, "n_span": self.n_span, "draws": self.draws}
        wrong = {k: v for k, v in counts.items() if v < 1} | ({} if self.t_exp >= 0 else {"t_exp": self.t_exp})
        numbers = {"penalty": self.penalty, "nu": self.nu} | ({} if self.b is None else {"b": self.b})
        wrong |= {k: v for k, v in numbers.items() if not v > 0.0}
        wrong |= {} if self.shrink is None or 0.0 < self.shrink < 1.0 else {"shrink": self.shrink}
        wrong |= {} if self.bound >= 1.0 else {"bound": self.bound}
        wrong |= {} if 0.0 < self.delta < 1.0 else {"delta": self.delta}
        if wrong:
            raise InputError(
                "multi-turn-spanner-paper: expected positive settings, bound of at least 1, delta and shrink in "
                "(0, 1), got " + ", ".join(f"{name} = {value}" for name, value in wrong.items())
            )

    @classmethod
    def published(
        cls, dim: int, *, beta: float, r_max: float, b: float, eps: float, delta: float, c_cond: float, draws: int = 12
    ) -> LayeredSpanner:
        """With the schedule of THEORY 3 for one step of ``dim`` features, C_cond in place of C_cov."""
        schedule = theory_schedule(dim, beta=beta, r_max=r_max, b=b, eps=eps, delta=delta, c_cov=c_cond)
        return cls(
            penalty=schedule.penalty,
            nu=schedule.nu,
            t_span=schedule.t_span,
            n_span=schedule.n_span,
            t_exp=schedule.t_exp,
            bound=schedule.bound,
            draws=draws,
            b=b,
            delta=delta,
            shrink=None,
        )

    def init(self, spec: Spec) -> LayeredState:
        """The state before the first request. Raises `InputError` where the run has no steps, beta or rewards."""
        if spec.horizon is None:
            raise InputError("explorer: multi-turn-spanner-paper needs an oracle that resumes prefixes: choose another")
        if spec.feedback != "scalar":
            raise InputError(f"feedback: multi-turn-spanner-paper learns from 'scalar' alone, got {spec.feedback!r}")
        if spec.beta is None:
            raise InputError("beta: multi-turn-spanner-paper needs one, got a KL budget: give beta")
        layer = Layer.start(spec.dim // spec.horizon, self.penalty)
        return LayeredState(Learner.start(spec), (layer,) * spec.horizon, self.nu, self.nu)

    # --- what to ask for ----------------------------------------------------------------------------------------------

    def decide(self, state: LayeredState, *, rng: np.random.Generator) -> Request:
        """Labels that are planned, an exploration round that has begun, roll-outs; then the next roll-ins."""
        learner = state.learner
        if learner.labels_left < 2:
            return StopRequest("labels spent", self.progress(state))
        if state.queue:
            return self._labels(state)
        if state.anchors:
            places = [(record.prompt, record.prefix or ()) for record in state.anchors]
            info = {"phase": "tilt", "seed": int(rng.integers(2**31))}
            return self._plain(state, places, most_draws(self.bound, self.delta), info)
        if state.contexts:
            return self._plain(state, state.contexts, 1, {"phase": "anchor"})
        if state.probes:
            return self._roll_outs(state, "probe", state.probes, rng)
        if state.at >= 0 and (rows := state.layers[state.at].open):
            return self._roll_outs(
                state, "roll-out", [(state.at, row) for row in rows[: learner.labels_left // 2]], rng
            )
        if state.at >= 0 and self._unexplored(state):
            return self._round(state, rng)
        if state.scanned < self.t_span:
            info = {"phase": "scan", "seed": int(rng.integers(2**31))}
            return self._roll_ins(state, min(SCAN, self.t_span - state.scanned), 2 * self.n_span, info, rng)
        return StopRequest("schedule complete", self.progress(state))

    def _unexplored(self, state: LayeredState) -> bool:
        return state.exploring and state.layers[state.at].rounds < self.t_exp

    def _labels(self, state: LayeredState) -> LabelRequest:
        planned = state.queue[: max(1, state.learner.batch() // 2)]
        info = {
            "phase": "explore" if state.exploring else "span",
            "steps": [p.step for p in planned],
            "rows": [p.row for p in planned],
            "gains": [list(p.gains) for p in planned],
        }
        return LabelRequest(tuple(item for p in planned for item in p.items), info)

    def _round(self, state: LayeredState, rng: np.random.Generator) -> Request:
        """The first request of an exploration round at the step of the moment: where it takes place.

        Sized so that the draws that are left pay for all of it.
        """
        learner, before, after = state.learner, state.at, state.horizon - 1 - state.at
        each = 1 + most_draws(self.bound, self.delta) + 2 * after * self.draws
        each += state.horizon * self.draws if before else 0
        size = min(max(1, learner.spec.batch // 2), self.t_exp - state.layers[state.at].rounds)
        size = max(affordable(learner.draws_left, each, size), 1)
        if learner.draws_left < size * each:
            return StopRequest("draws spent", self.progress(state))
        if before:
            return self._roll_ins(state, size, self.draws, {"phase": "roll-in", "seed": int(rng.integers(2**31))}, rng)
        return DrawRequest(self._prompts(state, size, rng), 1, info={"phase": "anchor"}, prefixes=((),) * size)

    def _prompts(self, state: LayeredState, size: int, rng: np.random.Generator) -> tuple[int, ...]:
        rho = state.learner.spec.prompt_probs
        return tuple(int(x) for x in rng.choice(len(rho), size=size, p=rho))

    def _roll_ins(self, state: LayeredState, size: int, n: int, info: Info, rng: np.random.Generator) -> Request:
        if state.learner.draws_left < size * n * state.horizon:
            return StopRequest("draws spent", self.progress(state))
        return DrawRequest(
            self._prompts(state, size, rng), n, StepTilt(state.theta, state.beta), info, prefixes=((),) * size
        )

    def _roll_outs(
        self, state: LayeredState, phase: str, which: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> Request:
        """Both segments of these pairs (step, row), to the end; no draw where they are the end."""
        pairs = [state.layers[step].pairs[row] for step, row in which]
        prompts = tuple(pair.prompt for pair in pairs for _ in pair.starts)
        prefixes: Prefixes = tuple(start for pair in pairs for start in pair.starts)
        if state.learner.draws_left < self.draws * sum(state.horizon - len(prefix) for prefix in prefixes):
            return StopRequest("draws spent", self.progress(state))
        info = {"phase": phase, "seed": int(rng.integers(2**31)), "which": [list(pair) for pair in which]}
        return DrawRequest(prompts, self.draws, StepTilt(state.theta, state.beta), info, prefixes)

    def _plain(self, state: LayeredState, places: Sequence[tuple[int, tuple[str, ...]]], n: int, info: Info) -> Request:
        if state.learner.draws_left < n * len(places):
            return StopRequest("draws spent", self.progress(state))
        prompts, prefixes = zip(*places, strict=True)
        return DrawRequest(prompts, n, info=info, prefixes=prefixes)

    # --- what came of it ----------------------------------------------------------------------------------------------

    def absorb(self, state: LayeredState, event: Event) -> LayeredState:
        """The state after an event; draws are tested, differences regressed. Labels from elsewhere are not used."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, LabelRequest) and "gains" in event.info:
            return replace(state, queue=state.queue[len(event.items) // 2 :])
        if isinstance(event, Labelled) and "gains" in event.info:
            return self._moved(self._labelled(state, event))
        if isinstance(event, Drawn) and event.info.get("phase") in PHASES:
            return self._moved(self._drawn(state, event))
        return state

    def _drawn(self, state: LayeredState, event: Drawn) -> LayeredState:
        phase = event.info["phase"]
        if phase == "anchor":
            return replace(state, contexts=(), anchors=event.draws)
        if phase == "tilt":
            return self._tilted(state, event)
        state, found = self._tested(state, event)
        if phase == "scan":
            scanned = state.scanned + len(event.paths)
            last = scanned >= self.t_span
            return replace(state, scanned=scanned, exploring=last, at=state.horizon - 1 if last else state.at)
        if phase == "probe":
            return replace(state, probes=state.probes[len(event.info["which"]) :])
        if found:
            return state  # a restart: this step's turn comes again
        if phase == "roll-out":
            return self._planned(state, event)
        step = state.at
        places = tuple((path.prompt, path.segments[:step]) for path in event.paths if len(path.segments) > step)
        ended = state.layers[step].with_pairs((), len(event.paths) - len(places))  # before this step: no round
        return replace(state.with_layer(step, ended), contexts=places)

    def _tested(self, state: LayeredState, event: Drawn) -> tuple[LayeredState, bool]:
        """With what lies beyond nu among these draws as core pairs, and whether there is any: then a restart."""
        rng, layers, probes = np.random.default_rng(event.info["seed"]), list(state.layers), list(state.probes)
        at = -1
        for draws in event.draws:
            step = len(draws.prefix or ())
            known = layers[step]
            layers[step] = known.tested(draws, state.nu, rng=rng)
            if layers[step] is not known:
                at = max(at, step)
                if step < state.horizon - 1:
                    probes.append((step, len(known.pairs)))
        state = replace(state, layers=tuple(layers), at=max(state.at, at), probes=tuple(probes))
        return state, at >= 0

    def _planned(self, state: LayeredState, event: Drawn) -> LayeredState:
        """With the roll-outs of an event to be labelled."""
        which = event.info["which"]
        step = int(which[0][0])
        less = gains(event.draws, [step + 1] * len(event.paths), event.paths, state.theta, state.beta)
        fresh = state.learner.spec.fresh
        items = [LabelItem(path.prompt, path.response, fresh) for path in event.paths]
        planned = tuple(
            Planned(step, int(row), (items[2 * i], items[2 * i + 1]), (float(less[2 * i]), float(less[2 * i + 1])))
            for i, (_, row) in enumerate(which)
        )
        closed = state.layers[step].closed([p.row for p in planned])
        return replace(state.with_layer(step, closed), queue=(*state.queue, *planned))

    def _tilted(self, state: LayeredState, event: Drawn) -> LayeredState:
        """With a pair for each anchor: it, and what the truncated softmax sampler takes of the draws beside it."""
        rng = np.random.default_rng(event.info["seed"])
        for record, anchor in zip(event.draws, state.anchors, strict=True):
            assert record.prefix is not None  # asked for with one
            step = len(record.prefix)
            layer = state.layers[step]
            policy = TruncatedSoftmaxPolicy(layer.theta, state.beta, layer.spanner.root, state.nu)

            def score(phi: FloatArray, policy: TruncatedSoftmaxPolicy = policy, a: Draws = anchor) -> FloatArray:
                return policy.scores(phi, a.features[0]) / policy.beta

            kept = accepted(record, score, self.bound, self.delta, rng=rng)
            relative = kept.features[0] - anchor.features[0]
            pair = StepPair(record.prompt, record.prefix, kept.responses[0], anchor.responses[0], relative)
            state = state.with_layer(step, layer.with_pairs((pair,) if np.any(relative) else (), 1))
        return replace(state, anchors=())

    def _labelled(self, state: LayeredState, event: Labelled) -> LayeredState:
        """With the steps of these labels refitted, and the pairs of earlier steps to be rolled out again."""
        news: dict[int, list[tuple[int, float]]] = {}
        values = [label.value for label in event.labels]
        told = zip(event.info["steps"], event.info["rows"], event.info["gains"], strict=True)
        for i, (step, row, (less, other)) in enumerate(told):
            one, two = values[2 * i], values[2 * i + 1]
            if one is not None and two is not None:
                news.setdefault(int(step), []).append((int(row), (one - less) - (two - other)))
        for step, differences in news.items():
            state = state.with_layer(step, state.layers[step].fitted(differences, self.penalty, self.b))
        last = max(news, default=0)
        layers = tuple(layer.stale() if step < last else layer for step, layer in enumerate(state.layers))
        return replace(state, layers=layers, at=max(state.at, last - 1))

    def _moved(self, state: LayeredState) -> LayeredState:
        """At the last step with anything left to do; where there is none, with a smaller nu from the start."""
        if state.probes or state.queue or state.contexts or state.anchors:
            return state
        while state.at >= 0 and not state.layers[state.at].open and not self._unexplored(state):
            state = replace(state, at=state.at - 1)
        if state.at >= 0 or not state.exploring or self.shrink is None or state.nu < LEAST:
            return state
        if state.learner.bought == state.since:  # all that it asks for is known
            return state
        layers = tuple(replace(layer, rounds=0) for layer in state.layers)
        state = replace(state, layers=layers, nu=self.shrink * state.nu, radius=state.nu)
        return replace(state, since=state.learner.bought, scanned=0, exploring=False)

    # --- what was learned ---------------------------------------------------------------------------------------------

    def policy(self, state: LayeredState) -> TruncatedStepPolicy:
        """The truncated policy of each step's last parameter; the base model before the first label."""
        roots = np.array([layer.spanner.root for layer in state.layers])
        return TruncatedStepPolicy(state.theta, state.beta, roots, state.radius)

    def learner(self, state: LayeredState) -> Learner:
        """Labels and budgets. Its posterior is that of a reward linear in the whole sequence's feature."""
        return state.learner

    def progress(self, state: LayeredState) -> Info:
        """Phase, the step that the induction is at (from 1; 0 between passes), scanned, rounds, core pairs, radius."""
        phase = "explore" if state.exploring else "scan" if state.at < 0 else "span"
        return {
            "phase": phase,
            "step": state.at + 1,
            "scanned": state.scanned,
            "rounds": sum(layer.rounds for layer in state.layers),
            "pairs": sum(layer.spanner.accepted for layer in state.layers),
            "nu": state.nu,
        }
