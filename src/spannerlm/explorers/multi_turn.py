"""`multi-turn-spanner`, variant `trunk` (ours): explores step by step, for a learner that may resume any prefix.

THEORY 5 governs the runtime by the coverage of one step. Roll-ins of the current policy, the trunks, say where it goes;
where a draw lies far from the one that was kept, in the norm of what the labels know of that step, the sequence is
branched: that draw is kept instead, and rolled out. All labels, of trunks and branches, serve one fit (`fit_paths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers.foresight import SUSPICION
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.paths import Paths, fit_paths
from spannerlm.explorers.trunk import Core, Design, Foresight, TrunkState, foresight
from spannerlm.policy import StepSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Event,
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

MARGIN = 2.0
"""By how much the predicted regret must lie below the one that was asked for."""
MISFIT = "the features do not explain the reward: labels of sequences that share steps agree better than the fit"
LOOKS = 2
"""How often in a row, each time after further labels: one look can be lucky."""
LEAST = 1e-3
"""Radius below which nothing is worth a label: a pair of sequences labelled a million times."""
IDLE = 25
"""Rounds of trunks without a new label after which there is none to be had: where labels are not fresh, all sequences
that matter may have theirs, and no round changes what the next one finds."""


@dataclass(frozen=True)
class MultiTurnSpanner:
    """Trunks and branches. Cost: ``draws`` segments per step of a trunk or branch; one label per branch and one per
    branched trunk; time N H d^2 + (H d)^3 per refit of N labels.

    ``nu`` is the radius of the first test, and of the test of a branch's later steps; whenever trunks pass the test it
    shrinks by ``shrink`` until one does not. With ``target_regret`` a run stops as soon as the regret predicted along
    fresh trunks is half of it. ``alike``, in [0, 1), is the prior correlation of a feature's worth at two steps: 0
    where steps have nothing in common, near 1 where they are of one kind, as the replies of a conversation are. Needs
    rewards (no comparisons), a ``beta``, and an oracle that resumes prefixes.
    """

    draws: int = 12
    """Draws per step."""
    trunks: int = 4
    """Roll-ins per round."""
    nu: float = 1.2
    shrink: float = 0.7
    alike: float = 0.0
    name: ClassVar[str] = "multi-turn-spanner"

    def __post_init__(self) -> None:
        if self.draws < 2 or self.trunks < 1 or not self.nu > 0.0 or not 0.0 < self.shrink < 1.0:
            raise InputError(
                "multi-turn-spanner: expected draws of at least 2, trunks of at least 1, a positive nu and shrink in "
                f"(0, 1), got {self.draws}, {self.trunks}, {self.nu}, {self.shrink}"
            )
        if not 0.0 <= self.alike < 1.0:
            raise InputError(
                f"multi-turn-spanner: expected alike in [0, 1), got {self.alike}: 0 if steps share nothing"
            )

    def init(self, spec: Spec) -> TrunkState:
        """The state before the first request. Raises `InputError` where the run has no steps, beta or rewards."""
        if spec.horizon is None:
            raise InputError("explorer: multi-turn-spanner needs an oracle that resumes prefixes: choose another")
        if spec.feedback != "scalar":
            raise InputError(f"feedback: multi-turn-spanner learns from 'scalar' alone, got {spec.feedback!r}")
        if spec.beta is None:
            raise InputError("beta: multi-turn-spanner needs one, got a KL budget: give beta")
        return TrunkState(Learner.start(spec), self.nu, self.alike)

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
        if state.idle >= IDLE:
            return StopRequest("no sequence without a label found", self.progress(state))
        if self.trunks * self.draws * state.shape[0] > learner.draws_left:
            return StopRequest("draws spent", self.progress(state))
        rho = np.asarray(spec.prompt_probs) / np.sum(spec.prompt_probs)
        chosen = tuple(int(x) for x in rng.choice(len(rho), self.trunks, p=rho))
        bold = not state.bold
        tilted = StepTilt(state.rolled(bold), state.beta)
        return DrawRequest(chosen, self.draws, tilted, {"phase": "trunk", "bold": bold}, ((),) * len(chosen))

    def absorb(self, state: TrunkState, event: Event) -> TrunkState:
        """The state after an event; roll-outs are tested, labels fitted."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, DrawRequest):
            if event.info.get("phase") == "branch":
                return replace(state, branches=())
            return replace(state, bold=bool(event.info["bold"]), rechecked=False, idle=state.idle + 1)
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
            fit = state.fit
            info |= {"noise_std": fit.noise_std, "normaliser_std": fit.normaliser_std, "misfit": fit.misfit}
            if fit.misfit < SUSPICION:
                info["warning"] = MISFIT
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
        if any(label.charged for label in event.labels):
            state = replace(state, idle=0)
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
        fit = fit_paths(paths, np.array(values), state.beta, state.theta, prompts, alike=self.alike)
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
