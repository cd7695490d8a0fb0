"""`directed`: base draws first, then greedy in the full Bayesian model; when it stops and when it warns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import laws
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import chisquare

import spannerlm
from spannerlm.environments import TabularEnvironment, environment, rare_skill
from spannerlm.errors import InputError
from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.directed import (
    MARGIN,
    MISFIT,
    OPPONENTS,
    TOP,
    Directed,
    DirectedState,
    contenders,
    covariance,
    mixture,
)
from spannerlm.explorers.pooled import PoolExplorer
from spannerlm.logistic import LogisticPosterior
from spannerlm.policy import beta_for_kl, padded, tilt
from spannerlm.records import Label, LabelItem, Labelled, LabelRequest, StopRequest
from spannerlm.regression import Posterior

ENV = laws.random_table(1)


def run(env: TabularEnvironment = ENV, *, labels: int = 30, pool: int = 30, **spec: Any) -> laws.Trace:
    return laws.drive(Directed(pool=pool), laws.Bench(env, laws.spec_of(env, labels=labels, **spec)))


def state_after(env: TabularEnvironment = ENV, labels: int = 30, **spec: Any) -> DirectedState:
    """The state after some labels, with the budget raised."""
    state: DirectedState = run(env, labels=labels, **spec).state
    return replace(state, learner=replace(state.learner, spec=replace(state.learner.spec, labels=10_000)))


def slow_mixture(state: DirectedState, c: Candidates, thetas: np.ndarray, share: float) -> np.ndarray:
    """Prompt by prompt: the mean of the tilted draw frequencies, and a share of the frequencies themselves."""
    spec, rows = state.learner.spec, [c.rows(x) for x in range(len(c.ids))]
    found = np.zeros(len(c))
    for theta in thetas:
        beta = spec.beta
        if beta is None:
            scores = [c.features[r] @ theta for r in rows]
            beta = beta_for_kl(padded([c.weights[r] for r in rows]), padded(scores), spec.kl or 0.0)
        for r in rows:
            found[r] += (1.0 - share) * tilt(c.weights[r], c.features[r] @ theta, beta) / len(thetas)
    return found + share * c.weights


def slow_covariance(c: Candidates, probs: np.ndarray, rho: np.ndarray) -> np.ndarray:
    total = np.zeros((c.features.shape[1],) * 2)
    for x in range(len(c.ids)):
        p, f = probs[c.rows(x)], c.features[c.rows(x)]
        mean = sum(q * phi for q, phi in zip(p, f, strict=True))
        total += rho[x] * sum(q * np.outer(phi - mean, phi - mean) for q, phi in zip(p, f, strict=True))
    return total


@pytest.mark.parametrize("told", [{}, {"beta": None, "kl": 0.3}])
def test_the_goal_is_the_spread_of_features_under_the_mean_policy(told: dict[str, Any]) -> None:
    state = state_after(labels=22, **told)
    c, rng = state.candidates, np.random.default_rng(0)
    thetas = rng.normal(size=(5, 3))
    mixed = mixture(state.learner, c, thetas, 0.1)
    # a temperature within 1 % moves no probability by more than that
    np.testing.assert_allclose(mixed, slow_mixture(state, c, thetas, 0.1), rtol=0, atol=1e-10 if not told else 0.01)
    rho = rng.dirichlet(np.ones(len(c.ids)))
    np.testing.assert_allclose(covariance(c, mixed, rho), slow_covariance(c, mixed, rho), atol=1e-12)


# --- base draws first -----------------------------------------------------------------------------------------------


def test_the_first_labels_are_base_draws() -> None:
    """20,000 of them against rho times draw frequency."""
    state = state_after(labels=12)
    c = state.candidates
    assert state.learner.posterior is not None
    counts: Counter[int] = Counter()
    for seed in range(20):
        for item in Directed().choose(state, 1000, rng=np.random.default_rng(seed)):
            assert item.fresh
            counts[c.index[item.prompt, item.response]] += 1
    rho = ENV.prompt_probs[c.ids] / ENV.prompt_probs[c.ids].sum()
    expected = 20_000 * c.weights * rho[c.owners]
    assert chisquare([counts[i] for i in range(len(c))], expected).pvalue > 1e-4


def test_base_draws_that_say_nothing_are_skipped_and_none_is_repeated_without_noise() -> None:
    state = state_after(labels=6, fresh=False)
    c = state.candidates
    features = c.features.copy()
    features[c.rows(0)] = 0.0
    state.__dict__["candidates"] = replace(c, features=features)  # a prompt all of whose draws are alike
    items = Directed().choose(state, 1000, rng=np.random.default_rng(0))
    free = {key for key in c.index if key not in state.learner.labelled}
    assert len(items) == len(set(items))
    assert {(i.prompt, i.response) for i in items} == {key for key in free if key[0] != c.ids[0]}
    every = Directed(skip=False).choose(state, 1000, rng=np.random.default_rng(0))
    assert {(i.prompt, i.response) for i in every} == free


@pytest.mark.parametrize(
    ("labels", "pending", "designed"), [(12, 0, False), (19, 0, False), (20, 0, True), (15, 5, True)]
)
def test_rewards_have_no_say_before_the_opening_is_over(labels: int, pending: int, designed: bool) -> None:
    """The same labels with other rewards lead to the same choice, or no longer do; what is pending counts."""
    trace = run(labels=labels, batch=labels)
    events = list(trace.events)
    last = events[-1]
    assert isinstance(last, Labelled)
    turned = tuple(replace(label, value=float((-1) ** i) * 50.0) for i, label in enumerate(last.labels))
    chosen = []
    for outcome in (last, Labelled(turned, last.features, last.info)):
        state = Directed(pool=30).init(laws.spec_of(ENV, labels=99))
        for event in (*events[:-1], outcome, LabelRequest((LabelItem(0, "0", True),) * pending)):
            state = Directed(pool=30).absorb(state, event)
        chosen.append(Directed().choose(state, 30, rng=np.random.default_rng(0)))
    assert (chosen[0] != chosen[1]) == designed


# --- the design -----------------------------------------------------------------------------------------------------


class Full:
    """tr(M Cov(theta)) from the joint precision of theta, a flat mean and all intercepts, label by label."""

    def __init__(self, state: DirectedState, events: list[Any], target: np.ndarray, damping: float) -> None:
        learner, posterior = state.learner, state.learner.posterior
        assert isinstance(posterior, Posterior)
        g, k = posterior.mode()
        self.d, self.prompts, self.target = learner.spec.dim, len(learner.spec.prompt_probs), target
        self.learner, self.damping = learner, damping
        inverse = np.linalg.inv(learner.transform)
        self.precision = np.zeros((self.d + 1 + self.prompts,) * 2)
        self.precision[: self.d, : self.d] = posterior.lambdas[k] * inverse @ inverse
        self.precision[self.d, self.d] = 1e-9
        self.precision[self.d + 1 :, self.d + 1 :] = np.eye(self.prompts) / posterior.gammas[g]
        for event in events:
            if isinstance(event, Labelled):
                for label, phi in zip(event.labels, event.features, strict=True):
                    self.add(label.prompt, phi - learner.centres[label.prompt], 1.0)

    def damped(self, f: np.ndarray) -> float:
        return min(1.0 + self.damping * float(f @ f) / self.learner.scale, 10.0)

    def add(self, x: int, f: np.ndarray, h: float) -> None:
        row = np.concatenate([f, [1.0], np.eye(self.prompts)[x]])
        self.precision = self.precision + np.outer(row, row) / h

    def spread(self) -> float:
        return float(np.trace(self.target @ np.linalg.inv(self.precision)[: self.d, : self.d]))

    def best(self, c: Candidates, allowed: np.ndarray) -> int:
        """The row that leaves least."""
        left, kept = np.full(len(c), np.inf), self.precision
        for i in np.flatnonzero(allowed):
            self.add(int(c.ids[c.owners[i]]), c.features[i], self.damped(c.features[i]))
            left[i], self.precision = self.spread(), kept
        return int(np.argmin(left))


@pytest.mark.parametrize("pending", [0, 3])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("damping", [0.0, 1.0, 20.0])
def test_choices_lower_the_spread_most_in_the_full_model(damping: float, fresh: bool, pending: int) -> None:
    env = laws.random_table(5, responses=20)
    trace = run(env, labels=26, fresh=fresh)
    state: DirectedState = trace.state
    explorer = Directed(damping=damping)
    c, learner = state.candidates, state.learner
    waiting = tuple(c.item(learner, int(i)) for i in np.flatnonzero(c.open(learner))[::4][:pending])
    if waiting:
        state = explorer.absorb(state, LabelRequest(waiting))  # type: ignore[assignment]
    rng = np.random.default_rng(7)
    items = explorer.choose(state, 6, rng=rng)
    assert len(items) == 6
    assert isinstance(learner.posterior, Posterior)
    again = np.random.default_rng(7)
    rho = env.prompt_probs[c.ids] / env.prompt_probs[c.ids].sum()
    again.choice(len(rho), len(rho), replace=False, p=rho)  # all prompts are looked at: their order does not matter
    mixed = slow_mixture(state, c, learner.posterior.sample(16, rng=again), 0.1)
    full = Full(state, trace.events, slow_covariance(c, mixed, rho), damping)
    allowed = np.array([fresh or key not in learner.labelled for key in c.index])
    for item in waiting:
        row = c.index[item.prompt, item.response]
        full.add(item.prompt, c.features[row], full.damped(c.features[row]))
        allowed[row] &= fresh
    for item in items:
        row = full.best(c, allowed)
        assert (item.prompt, item.response, item.fresh) == (int(c.ids[c.owners[row]]), c.responses[row], fresh)
        full.add(item.prompt, c.features[row], full.damped(c.features[row]))
        allowed[row] = fresh


def test_what_is_pending_is_not_bought_for_the_same_reason_again() -> None:
    state = state_after()
    first = Directed().choose(state, 4, rng=np.random.default_rng(0))
    waiting = Directed().absorb(state, LabelRequest(first))
    second = Directed().choose(waiting, 4, rng=np.random.default_rng(0))
    both = Directed().choose(state, 8, rng=np.random.default_rng(0))
    assert (*first, *second) == both
    assert second != first


def test_a_request_looks_at_a_few_prompts_only() -> None:
    state = state_after(rare_skill(0.1, prompts=12), labels=24)
    seen = set()
    for seed in range(20):
        items = Directed(round_prompts=2).choose(state, 10, rng=np.random.default_rng(seed))
        prompts = {item.prompt for item in items}
        assert len(prompts) <= 2
        seen |= prompts
    assert len(seen) > 4


def test_where_no_label_gains_anything_base_draws_are_labelled() -> None:
    state = state_after(labels=24)
    state.__dict__["candidates"] = replace(state.candidates, features=0.0 * state.candidates.features)
    assert Directed().choose(state, 5, rng=np.random.default_rng(0)) == ()
    items = Directed(skip=False).choose(state, 5, rng=np.random.default_rng(0))
    assert len(items) == 5


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_contenders_are_rows_of_greatest_reach_with_opponents_by_the_mixture() -> None:
    rng = np.random.default_rng(0)
    env = laws.random_table(4, responses=120)
    c = Candidates.of({r.prompt: r for r in env.draw(range(3), 3000, rng=rng)})
    assert len(c) > TOP
    factor, other = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    sigma, target, mixed = factor @ factor.T, other @ other.T, c.tilted(rng.normal(size=len(c)), 1.0)
    reach = [f @ sigma @ target @ sigma @ f for f in c.features]
    top = set(np.argsort(reach)[::-1][:TOP].tolist())
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(60):
        first, second = contenders(c, sigma, target, mixed, rng=np.random.default_rng(seed))
        assert set(first.tolist()) <= top
        assert (c.owners[first] == c.owners[second]).all()
        assert (first != second).all()
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        counts.update(pairs)
    assert {a for a, _ in counts} == top
    # each opponent is met with the chance that 32 draws from the mixture show it; few counts are not normal, hence 3
    a = max(top, key=lambda i: reach[i])
    rows = c.rows(int(c.owners[a]))
    for b in range(rows.start, rows.stop):
        chance = 0.0 if b == a else 1.0 - (1.0 - mixed[b]) ** OPPONENTS
        assert abs(counts[a, b] - 60 * chance) <= 3 + 5 * np.sqrt(60 * chance * (1 - chance))


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("fresh", [True, False])
def test_comparisons_lower_the_spread_most(fresh: bool, pending: bool) -> None:
    env = laws.compared(laws.random_table(5, responses=20))
    state = state_after(env, labels=26, fresh=fresh)
    c, learner, posterior = state.candidates, state.learner, state.learner.posterior
    assert isinstance(posterior, LogisticPosterior)
    x, waiting = int(c.ids[0]), (c.responses[0], c.responses[1])
    if pending:
        state = Directed().absorb(state, LabelRequest((LabelItem(x, waiting[0], fresh, waiting[1]),)))  # type: ignore[assignment]
    items = Directed().choose(state, 5, rng=np.random.default_rng(3))
    assert len(items) == 5
    again = np.random.default_rng(3)
    rho = env.prompt_probs[c.ids] / env.prompt_probs[c.ids].sum()
    again.choice(len(rho), len(rho), replace=False, p=rho)
    mixed = slow_mixture(state, c, posterior.sample(16, rng=again), 0.1)
    target = slow_covariance(c, mixed, rho)
    first, second = contenders(c, posterior.covariance(), target, mixed, rng=again)
    precision = np.linalg.inv(posterior.covariance())
    if pending:
        z = c.features[0] - c.features[1]
        precision += 0.25 * np.outer(z, z)
    taken = set()
    for item in items:
        left = {}
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            prompt, names = int(c.ids[c.owners[a]]), (c.responses[a], c.responses[b])
            key = (prompt, *sorted(names))
            out = pending and key == (x, *sorted(waiting))
            if not fresh and (key in learner.labelled or key in taken or out):
                continue
            z = c.features[a] - c.features[b]
            p = expit(z @ posterior.mean)
            grown = precision + p * (1.0 - p) * np.outer(z, z)
            left[prompt, *names] = float(np.trace(target @ np.linalg.inv(grown))), grown
        found = (item.prompt, item.response, str(item.opponent))
        assert left[found][0] == pytest.approx(min(value for value, _ in left.values()), rel=1e-9)
        assert item.fresh == fresh
        precision = left[found][1]
        taken.add((item.prompt, *sorted(found[1:])))
    assert fresh or len(taken) == 5


def test_the_first_comparisons_are_of_two_base_draws() -> None:
    env = laws.compared(laws.random_table(2, prompts=2, responses=6))
    state = state_after(env, labels=6)
    c, counts = state.candidates, Counter[tuple[str, str]]()
    for seed in range(30):
        for item in Directed(skip=False).choose(state, 100, rng=np.random.default_rng(seed)):
            assert item.prompt == 0
            counts[item.response, str(item.opponent)] += 1
    names, w = c.responses, c.weights
    pairs = [(a, b) for a in range(len(c)) for b in range(len(c)) if a != b]
    chances = np.array([w[a] * w[b] for a, b in pairs])
    expected = sum(counts.values()) * chances / chances.sum()
    assert sum(counts.values()) == 3000
    found = np.array([counts[names[a], names[b]] for a, b in pairs])
    assert set(counts) <= {(names[a], names[b]) for a, b in pairs}
    many = expected >= 5
    assert chisquare([*found[many], found[~many].sum()], [*expected[many], expected[~many].sum() + 1e-12]).pvalue > 1e-4


def test_comparisons_learn_what_is_rare() -> None:
    env = rare_skill(0.05, prompts=8, seed=0)
    result = spannerlm.explore(env, labels=400, feedback="comparison", scale=0.2, seed=0)
    assert result.labels == 400
    assert env.regret(result.policy.table(env)) < 0.25 * env.regret(env.base_probs)


# --- when to stop, and what to doubt --------------------------------------------------------------------------------


def aimed(state: DirectedState, target: float) -> DirectedState:
    spec = replace(state.learner.spec, target_regret=target)
    return replace(state, learner=replace(state.learner, spec=spec))


def test_it_stops_only_when_both_predictions_are_below_the_target() -> None:
    state = state_after(labels=40)
    low, high = sorted((state.foresight.expected, state.foresight.wide))
    assert 0.0 < low < high
    rng = np.random.default_rng
    explorer = Directed(pool=30)
    request = explorer.decide(aimed(state, 1.001 * MARGIN * high), rng=rng(0))
    assert isinstance(request, StopRequest)
    assert "predicted regret below" in request.reason
    assert (request.info["predicted_regret"], request.info["predicted_regret_wide"]) == (
        state.foresight.expected,
        state.foresight.wide,
    )
    assert not isinstance(explorer.decide(aimed(state, 0.5 * MARGIN * (low + high)), rng=rng(0)), StopRequest)
    assert not isinstance(explorer.decide(aimed(state, 0.999 * MARGIN * low), rng=rng(0)), StopRequest)
    assert not isinstance(explorer.decide(state, rng=rng(0)), StopRequest)
    waiting = explorer.absorb(state, LabelRequest((LabelItem(0, state.candidates.responses[0], True),)))
    assert isinstance(waiting, DirectedState)
    assert not isinstance(explorer.decide(aimed(waiting, 1e6), rng=rng(0)), StopRequest)
    early = state_after(labels=39)
    assert not isinstance(explorer.decide(aimed(early, 1e6), rng=rng(0)), StopRequest)
    assert isinstance(Directed(pool=30, opening=19).decide(aimed(early, 1e6), rng=rng(0)), StopRequest)


def test_the_target_may_be_given_before_anything_is_drawn() -> None:
    explorer = Directed(pool=30)
    state = explorer.init(laws.spec_of(ENV, target_regret=0.1))
    assert not isinstance(explorer.decide(state, rng=np.random.default_rng(0)), StopRequest)
    # labels from elsewhere, more than the opening, and still no pool
    labels = tuple(Label(0, "0", float(k % 2), k) for k in range(60))
    state = explorer.init(laws.spec_of(ENV, labels=99, target_regret=1e6))
    state = explorer.absorb(state, Labelled(labels, np.tile(ENV.features[0, 0], (60, 1))))  # type: ignore[assignment]
    assert not isinstance(explorer.decide(state, rng=np.random.default_rng(0)), StopRequest)


@pytest.mark.parametrize("target", [0.05, 0.02])
def test_exploring_ends_at_the_regret_that_was_asked_for(target: float) -> None:
    """Four runs on rare-skill(.1), whose base model has a regret of .42."""
    regrets, labels = [], []
    for seed in range(4):
        env = rare_skill(0.1, prompts=8, seed=seed)
        result = spannerlm.explore(env, labels=600, seed=seed, target_regret=target)
        assert "predicted regret below" in result.reason
        regrets.append(env.regret(result.policy.table(env)))
        labels.append(result.labels)
    assert max(labels) < 500
    assert min(labels) >= 40
    assert np.mean(regrets) < target
    assert max(regrets) < 1.5 * target


def test_progress_tells_what_is_predicted_and_warns_where_the_features_do_not_fit() -> None:
    small = {"prompts": 4, "responses": 9, "dim": 3, "seed": 0}
    plain = environment("tie", **small)
    wrong = environment("tie", modifiers={"misspecified": {"zeta": 2.0}}, **small)
    explorer = Directed()
    assert "predicted_regret" not in explorer.progress(explorer.init(laws.spec_of(plain)))
    for env, warned in ((plain, False), (wrong, True)):
        state = spannerlm.explore(env, labels=100, seed=1).state
        info = explorer.progress(state)
        assert info["predicted_regret"] == state.foresight.expected
        assert info["predicted_regret_wide"] == state.foresight.wide
        assert info.get("warning") == (MISFIT if warned else None)
        assert info["phase"] == "directed"
        assert sum(g.count for g in state.replicates.values()) == 100


def test_the_predictions_are_the_same_whenever_they_are_looked_at() -> None:
    state = state_after()
    assert replace(state).foresight == state.foresight
    assert replace(state).foresight is not state.foresight


# --- what it is for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.01])
def test_a_rare_value_is_found_with_few_labels(p: float) -> None:
    """Two hundred labels leave less than a tenth of the base model's regret, on average over three environments."""
    found = []
    for seed in range(3):
        env = rare_skill(p, prompts=16, seed=seed)
        result = spannerlm.explore(env, labels=200, seed=seed)
        found.append(env.regret(result.policy.table(env)) / env.regret(env.base_probs))
    assert np.mean(found) < 0.1


@pytest.mark.parametrize("settings", [{"samples": 0}, {"round_prompts": 0}, {"base_share": 0.0}, {"base_share": 1.1}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="directed: expected samples and round_prompts"):
        Directed(**settings)
    assert Directed(base_share=1.0).comparisons
    assert issubclass(Directed, PoolExplorer)
