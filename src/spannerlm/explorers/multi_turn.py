"""`multi-turn-spanner`, variant `trunk` (ours): explores step by step, for a learner that may resume any prefix.

THEORY 5 governs the runtime by the coverage of one step. Roll-ins of the current policy, the trunks, say where it goes;
where a draw lies far from the one that was kept, in the norm of what the labels know of that step, the sequence is
branched: that draw is kept instead, and rolled out. All labels, of trunks and branches, serve one fit (`fit_paths`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.paths import PathFit, Paths, Place, Store, fit_paths, information
from spannerlm.policy import StepSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Event,
    FloatArray,
    Info,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Rollout,
    Spec,
    StepTilt,
    StopRequest,
)

INTERCEPT = 10.0
"""Variance of a prompt's intercept in noise units that the design allows for: hardly any prior."""
RIDGE = 0.1
"""Precision that the design starts from, relative to what one draw tells of an average direction."""
SAMPLES = 64
"""Posterior draws whose policies are compared with the learned one."""
MARGIN = 2.0
"""By how much the predicted regret must lie below the one that was asked for."""
LOOKS = 2
"""How often in a row, each time after further labels: one look can be lucky."""
LEAST = 1e-3
"""Radius below which nothing is worth a label: a pair of sequences labelled a million times."""


@dataclass(frozen=True)
class Core:
    """A pair that was found far apart at some place: the draw that was kept and the one that was not."""

    place: Place
    kept: str
    other: str


@dataclass(frozen=True, eq=False)
class Foresight:
    """What is left to gain, as the policy and the labels of the moment see it; in reward units."""

    expected: float
    """sigma^2 / (2 beta) sum_h E tr(Cov_h Cov_pi(phi_h)) along trunks: the second-order term."""
    sampled: float
    """Mean over posterior draws of beta times the KL of the policy from theirs, along trunks: right for large errors
    too."""
    labels: int
    """After how many."""

    @property
    def worse(self) -> float:
        """The larger of the two."""
        return max(self.expected, self.sampled)


@dataclass(frozen=True, eq=False)
class TrunkState:
    """Everything known, and what is planned."""

    learner: Learner
    nu: float
    """Radius beyond which a trunk is branched now."""
    store: Store = field(default_factory=Store)
    labelled: tuple[Rollout, ...] = ()
    """Sequences with labels, one entry per label."""
    values: tuple[float, ...] = ()
    branches: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Prompts and prefixes to roll out."""
    waiting: tuple[Rollout, ...] = ()
    """Sequences to be labelled."""
    asked: Mapping[tuple[int, str], Rollout] = field(default_factory=dict)
    """By prompt and response, what labels were or are to be asked for."""
    cores: tuple[Core, ...] = ()
    fit: PathFit | None = None
    bold: bool = True
    """Whether this round of trunks explores with the parameters that believe the labels as they are: every second."""
    rechecked: bool = False
    """Whether the core pairs were looked at since the last trunks."""
    ahead: Foresight | None = None
    """From the last trunks that the policy rolled out; None before the first."""
    calm: int = 0
    """Looks ahead in a row, each after further labels, that saw less regret than the run may leave."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, d)"""
        horizon = self.learner.spec.horizon or 1
        return horizon, self.learner.spec.dim // horizon

    @cached_property
    def theta(self) -> FloatArray:
        """[H, d]; 0 before the first label."""
        return np.zeros(self.shape) if self.fit is None else self.fit.theta

    def rolled(self, bold: bool) -> FloatArray:
        """[H, d] what a round rolls out with."""
        return self.fit.bold if self.fit is not None and bold else self.theta

    @property
    def beta(self) -> float:
        """KL temperature, which the spec tells."""
        assert self.learner.spec.beta is not None  # init has looked
        return self.learner.spec.beta

    @property
    def free(self) -> int:
        """Labels that are not planned for yet."""
        return self.learner.labels_left - len(self.waiting) - len(self.branches)


@dataclass(frozen=True)
class MultiTurnSpanner:
    """Trunks and branches. Cost: ``draws`` segments per step of a trunk or branch; one label per branch and one per
    branched trunk; time N H d^2 + (H d)^3 per refit of N labels.

    ``nu`` is the radius of the first test, and of the test of a branch's later steps; whenever trunks pass the test it
    shrinks by ``shrink`` until one does not. With ``target_regret`` a run stops as soon as the regret predicted along
    fresh trunks is half of it. Needs rewards (no comparisons), a ``beta``, and an oracle that resumes prefixes.
    """

    draws: int = 12
    """Draws per step."""
    trunks: int = 4
    """Roll-ins per round."""
    nu: float = 1.2
    shrink: float = 0.7
    name: ClassVar[str] = "multi-turn-spanner"

    def __post_init__(self) -> None:
        if self.draws < 2 or self.trunks < 1 or not self.nu > 0.0 or not 0.0 < self.shrink < 1.0:
            raise InputError(
                "multi-turn-spanner: expected draws of at least 2, trunks of at least 1, a positive nu and shrink in "
                f"(0, 1), got {self.draws}, {self.trunks}, {self.nu}, {self.shrink}"
            )

    def init(self, spec: Spec) -> TrunkState:
        """The state before the first request. Raises `InputError` where the run has no steps, beta or rewards."""
        if spec.horizon is None:
            raise InputError("explorer: multi-turn-spanner needs an oracle that resumes prefixes: choose another")
        if spec.feedback != "scalar":
            raise InputError(f"feedback: multi-turn-spanner learns from 'scalar' alone, got {spec.feedback!r}")
        if spec.beta is None:
            raise InputError("beta: multi-turn-spanner needs one, got a KL budget: give beta")
        return TrunkState(Learner.start(spec), self.nu)

    def decide(self, state: TrunkState, *, rng: np.random.Generator) -> Request:
        """Branches that are planned, then labels that are, then trunks."""
        learner, spec = state.learner, state.learner.spec
        target = spec.target_regret
        if target is not None and state.calm >= LOOKS:
            return StopRequest(f"predicted regret below {target:g}", self.progress(state))
        if learner.labels_left <= 0:
            return StopRequest("labels spent", self.progress(state))
        if state.nu < LEAST:
            return StopRequest("nothing left to tell apart", self.progress(state))
        if state.branches:
            steps = sum(state.shape[0] - len(prefix) for _, prefix in state.branches)
            if steps * self.draws <= learner.draws_left:
                prompts, prefixes = zip(*state.branches, strict=True)
                info = {"phase": "branch", "starts": [len(prefix) for prefix in prefixes]}
                tilted = StepTilt(state.rolled(state.bold), state.beta)
                return DrawRequest(prompts, self.draws, tilted, info, prefixes)
        if state.waiting:
            paths = state.waiting[: spec.batch]
            items = tuple(LabelItem(path.prompt, path.response, fresh=spec.fresh) for path in paths)
            return LabelRequest(items, {"phase": "label"})
        if self.trunks * self.draws * state.shape[0] > learner.draws_left:
            return StopRequest("draws spent", self.progress(state))
        rho = np.asarray(spec.prompt_probs) / np.sum(spec.prompt_probs)
        chosen = tuple(int(x) for x in rng.choice(len(rho), self.trunks, p=rho))
        info = {"phase": "trunk", "bold": not state.bold}
        tilted = StepTilt(state.rolled(not state.bold), state.beta)
        return DrawRequest(chosen, self.draws, tilted, info, ((),) * len(chosen))

    def absorb(self, state: TrunkState, event: Event) -> TrunkState:
        """The state after an event; roll-outs are tested, labels fitted."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, DrawRequest):
            branch = event.info.get("phase") == "branch"
            return (
                replace(state, branches=())
                if branch
                else replace(state, bold=bool(event.info["bold"]), rechecked=False)
            )
        if isinstance(event, LabelRequest):
            known = {(item.prompt, item.response) for item in event.items}
            kept = tuple(path for path in state.waiting if (path.prompt, path.response) not in known)
            return replace(state, waiting=kept)
        if isinstance(event, Drawn):
            return self._rolled(state, event)
        if isinstance(event, Labelled):
            return self._labelled(state, event)
        return state

    def policy(self, state: TrunkState) -> StepSoftmaxPolicy:
        """The step-by-step policy of the fit; the base model before the first label."""
        return StepSoftmaxPolicy(state.theta, state.beta)

    def learner(self, state: TrunkState) -> Learner:
        """Labels and budgets. Its posterior is that of a reward linear in the whole sequence's feature."""
        return state.learner

    def progress(self, state: TrunkState) -> Info:
        """Phase, radius, core pairs, estimated noise, predicted regrets."""
        phase = "branch" if state.branches else "label" if state.waiting else "trunk"
        info: dict[str, float | str] = {"phase": phase, "nu": state.nu, "pairs": len(state.cores)}
        if state.fit is not None:
            info |= {"noise_std": state.fit.noise_std, "normaliser_std": state.fit.normaliser_std}
        if state.ahead is not None:
            info |= {
                "predicted_regret": state.ahead.expected,
                "predicted_regret_wide": state.ahead.sampled,
                "predicted_at": state.ahead.labels,
            }
        return info

    # --- roll-outs --------------------------------------------------------------------------------------------------

    def _rolled(self, state: TrunkState, event: Drawn) -> TrunkState:
        state = replace(state, store=state.store.add(event.draws))
        if not event.paths:
            return state
        if event.info.get("phase") == "branch":
            state = self._with_labels(state, event.paths)
            state, _ = self._tested(state, event.paths, event.info["starts"], self.nu)
            return state
        if state.fit is not None and not state.bold:
            state = self._looked(state, foresight(state, event.paths))
        found: tuple[Rollout, ...] = ()
        while not found and state.nu >= LEAST and state.free >= 2:
            state, found = self._tested(state, event.paths, [0] * len(event.paths), state.nu)
            state = replace(state, nu=state.nu if found else state.nu * self.shrink)
        if state.free == 1 and not found:  # one label is left: too few for a pair
            found = event.paths[:1]
        return self._with_labels(state, found)

    @staticmethod
    def _looked(state: TrunkState, ahead: Foresight) -> TrunkState:
        target = state.learner.spec.target_regret
        if target is None or MARGIN * ahead.worse > target:
            return replace(state, ahead=ahead, calm=0)
        again = state.ahead is not None and state.ahead.labels == ahead.labels
        return replace(state, ahead=ahead, calm=state.calm if again else state.calm + 1)

    def _with_labels(self, state: TrunkState, paths: Sequence[Rollout]) -> TrunkState:
        asked = {**state.asked, **{(path.prompt, path.response): path for path in paths}}
        return replace(state, waiting=(*state.waiting, *paths), asked=asked)

    def _tested(
        self, state: TrunkState, paths: Sequence[Rollout], starts: Sequence[int], nu: float
    ) -> tuple[TrunkState, tuple[Rollout, ...]]:
        """Branches wherever a draw lies beyond ``nu`` of the one that was kept; and the paths that have some."""
        design = Design.of(state)
        branches, cores, found = list(state.branches), list(state.cores), []
        free = state.free
        for path, start in zip(paths, starts, strict=True):
            before = len(branches)
            for h in range(start, len(path.segments)):
                choice = state.store.choices[path.prompt, path.segments[:h]]
                kept = choice.segments.index(path.segments[h])
                relative = choice.features - choice.features[kept]
                squares = design.squares(h, relative)
                other = int(np.argmax(squares))
                if squares[other] > nu * nu and free > (1 if len(branches) == before and start == 0 else 0):
                    branches.append((path.prompt, (*path.segments[:h], choice.segments[other])))
                    cores.append(Core((path.prompt, path.segments[:h]), path.segments[h], choice.segments[other]))
                    free -= 2 if len(branches) == before + 1 and start == 0 else 1
                    design = design.with_pair(h, relative[other])
            if len(branches) > before:
                found.append(path)
        return replace(state, branches=tuple(branches), cores=tuple(cores)), tuple(found)

    # --- labels -----------------------------------------------------------------------------------------------------

    def _labelled(self, state: TrunkState, event: Labelled) -> TrunkState:
        news = [
            (state.asked[label.prompt, label.response], label.value)
            for label in event.labels
            if label.charged and label.value is not None and (label.prompt, label.response) in state.asked
        ]
        if not news:
            return state
        labelled = (*state.labelled, *(path for path, _ in news))
        values = (*state.values, *(value for _, value in news))
        paths = Paths.of(state.store, labelled, state.shape)
        prompts = len(state.learner.spec.prompt_probs)
        fit = fit_paths(paths, np.array(values), state.beta, state.theta, prompts)
        state = replace(state, labelled=labelled, values=values, fit=fit)
        return state if state.waiting or state.branches or state.rechecked else self._rechecked(state)

    def _rechecked(self, state: TrunkState) -> TrunkState:
        """Core pairs of the past that the new fit knows less well than ``nu``: one of the two rolled out again, the one
        that tells more, without new trunks; once between two rounds of trunks."""
        design = Design.of(state)
        branches: list[tuple[int, tuple[str, ...]]] = []
        theta = state.rolled(state.bold)
        for core in state.cores:
            x, prefix = core.place
            choice = state.store.choices[core.place]
            pair = [choice.segments.index(core.kept), choice.segments.index(core.other)]
            relative = choice.features[pair[1]] - choice.features[pair[0]]
            if design.squares(len(prefix), relative[None])[0] > self.nu**2 and len(branches) < state.free:
                mean = choice.tilted(theta[len(prefix)], state.beta) @ choice.features
                side = int(np.argmax([design.told(len(prefix), relative, choice.features[k] - mean) for k in pair]))
                branches.append((x, (*prefix, choice.segments[pair[side]])))
                design = design.with_label(len(prefix), choice.features[pair[side]] - mean)
        return replace(state, branches=tuple(branches), rechecked=True)


@dataclass(frozen=True, eq=False)
class Design:
    """What the labels will know of theta once all that are planned are in: covariance in noise units."""

    covariance: FloatArray
    """[H d, H d]"""
    dim: int
    """d"""

    @classmethod
    def of(cls, state: TrunkState) -> Design:
        """From the sequences that are labelled, asked for or waiting."""
        pending = [state.asked[key] for i in state.learner.pending if (key := (i.prompt, i.response)) in state.asked]
        rollouts = (*state.labelled, *pending, *state.waiting)
        horizon, dim = state.shape
        known = np.zeros((horizon * dim, horizon * dim))
        if rollouts:
            jacobian = Paths.of(state.store, rollouts, state.shape).at(state.rolled(state.bold), state.beta).jacobian()
            owners = np.array([path.prompt for path in rollouts])
            known = information(jacobian, owners, len(state.learner.spec.prompt_probs), INTERCEPT)
        precision: FloatArray = known + RIDGE * typical(state.store, dim) * np.eye(len(known))
        return cls(np.linalg.inv(precision), dim)

    def squares(self, h: int, relative: FloatArray) -> FloatArray:
        """[k] squared lengths, in the norm of step h, of differences [k, d]."""
        block = self.covariance[h * self.dim : (h + 1) * self.dim, h * self.dim : (h + 1) * self.dim]
        return np.asarray(np.einsum("ki,ij,kj->k", relative, block, relative))

    def with_pair(self, h: int, relative: FloatArray) -> Design:
        """With two sequences more that differ by this [d] at step h: half an observation of the difference."""
        return self._observed(h, relative, 2.0)

    def with_label(self, h: int, own: FloatArray) -> Design:
        """With one sequence more of this Jacobian [d] at step h; what it tells of other steps is left out."""
        return self._observed(h, own, 1.0)

    def told(self, h: int, relative: FloatArray, own: FloatArray) -> float:
        """By how much a label of Jacobian ``own`` [d] at step h lowers the square of ``relative`` [d]."""
        block = self.covariance[h * self.dim : (h + 1) * self.dim, h * self.dim : (h + 1) * self.dim]
        return float((relative @ block @ own) ** 2 / (1.0 + own @ block @ own))

    def _observed(self, h: int, direction: FloatArray, noise: float) -> Design:
        onto = self.covariance[:, h * self.dim : (h + 1) * self.dim] @ direction
        own = float(direction @ onto[h * self.dim : (h + 1) * self.dim])
        less: FloatArray = np.outer(onto, onto) / (noise + own)
        return Design(self.covariance - less, self.dim)


def typical(store: Store, dim: int) -> float:
    """Variance of a feature at one place under pi_ref, mean over places and directions; 1 where there is none."""
    traces = []
    for choice in store.choices.values():
        share = choice.counts / choice.counts.sum()
        traces.append(float(share @ np.sum((choice.features - share @ choice.features) ** 2, axis=1)))
    mean = float(np.mean(traces)) / dim if traces else 0.0
    return mean if mean > 0.0 else 1.0


def foresight(state: TrunkState, trunks: Sequence[Rollout]) -> Foresight:
    """The regrets that the fit predicts along these trunks; pure, its randomness depends on the labels alone."""
    assert state.fit is not None  # the caller has looked
    paths, fit, beta = Paths.of(state.store, trunks, state.shape), state.fit, state.beta
    (horizon, dim), here = state.shape, paths.at(fit.theta, beta)
    weight = np.bincount(paths.rows[paths.rows >= 0], minlength=len(paths.steps)) / len(trunks)
    blocks = fit.covariance.reshape(horizon, dim, horizon, dim)[range(horizon), :, range(horizon)]
    off = paths.features - here.means[:, None]
    squares = np.einsum("rki,rij,rkj->rk", off, blocks[paths.steps], off)
    expected = float(weight @ np.sum(here.laws * squares, axis=1)) * fit.noise_std**2 / (2.0 * beta)
    rng = np.random.default_rng([state.learner.bought, 65])
    lost = [
        weight @ np.sum(here.laws * (here.gains - paths.at(theta, beta).gains), axis=1)
        for theta in fit.samples(SAMPLES, rng=rng)
    ]
    return Foresight(expected, float(np.mean(lost)), len(state.values))
