"""The adaptive schedule: its design, its pools, its epochs, and the certificate on real runs of it."""

from __future__ import annotations

import time
from typing import Any

import laws
import numpy as np
import pytest
from scipy.stats import binom

import spannerlm
from spannerlm.environments import TabularEnvironment, rare_skill, tie
from spannerlm.explorers import AdaptiveSpannerSampling
from spannerlm.explorers.spanner_adaptive import EPOCH_LABELS, MAX_POOL, PATIENCE, AdaptiveState, prior_precision
from spannerlm.ledger import Ledger
from spannerlm.policy import kl_divergence, tilt
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Label,
    LabelItem,
    Labelled,
    LabelRequest,
    StopRequest,
)
from spannerlm.spanner import Spanner, acceptance_bound, spending

EXPLORER = AdaptiveSpannerSampling(pool=16)
ENV = laws.random_table(1)


def driven(env: TabularEnvironment = ENV, explorer: AdaptiveSpannerSampling = EXPLORER, **changes: Any) -> laws.Trace:
    return laws.drive(explorer, laws.Bench(env, laws.spec_of(env, **changes)))


def replayed(trace: laws.Trace) -> list[tuple[AdaptiveState, Any, AdaptiveState]]:
    """(state before, event, state after) of every event of a run."""
    state, out = EXPLORER.init(trace.bench.spec), []
    for event in trace.events:
        after = EXPLORER.absorb(state, event)
        out.append((state, event, after))
        state = after
    return out


# --- design ---------------------------------------------------------------------------------------------------------


def test_sigma_starts_at_the_prior_of_the_regression() -> None:
    """lambda T^-1 T^-1 at the largest lambda S: the precision of theta / sigma before any label."""
    trace = driven(labels=6)
    _, event, after = replayed(trace)[1]
    assert isinstance(event, Drawn)
    assert after.spanner is not None
    inverse = np.linalg.inv(after.learner.transform)
    np.testing.assert_allclose(after.spanner.sigma, after.learner.scale * inverse @ inverse.T, rtol=1e-9)
    np.testing.assert_allclose(prior_precision(after.learner), after.spanner.sigma, rtol=1e-12)
    values = np.linalg.eigvalsh(after.spanner.sigma @ np.eye(3) / after.learner.scale)
    assert values.max() / values.min() <= 100.0**0.3 * 1.001  # T's floor bounds the prior's condition


def test_sigma_is_the_start_and_every_pair_asked_for() -> None:
    trace = driven(labels=60)
    start = next(after.spanner for _, _, after in replayed(trace) if after.spanner is not None)
    sigma, pairs = start.sigma.copy(), 0
    for before, event, _ in replayed(trace):
        if not isinstance(event, LabelRequest):
            continue
        items = list(event.items)
        while items:
            item = items.pop(0)
            phi = ENV.features[item.prompt, int(item.response)]
            if items and items[0].prompt == item.prompt:
                other = items.pop(0)
                relative = phi - ENV.features[other.prompt, int(other.response)]
            else:
                relative = phi - before.learner.centres[item.prompt]
            sigma, pairs = sigma + np.outer(relative, relative), pairs + 1
    assert trace.state.spanner is not None
    np.testing.assert_allclose(trace.state.spanner.sigma, sigma, rtol=1e-9)
    assert trace.state.spanner.accepted == pairs > 20


def test_the_spanner_phase_asks_for_the_farthest_pairs_beyond_nu() -> None:
    seen = 0
    for before, event, _ in replayed(driven(labels=60)):
        if not isinstance(event, LabelRequest) or event.info["phase"] != "span":
            continue
        spanner = before.spanner
        assert spanner is not None
        for first, second in zip(event.items[::2], event.items[1::2], strict=True):
            assert first.prompt == second.prompt
            draws = before.pools[first.prompt]
            phi = dict(zip(draws.responses, draws.features, strict=True))
            relative = phi[first.response] - phi[second.response]
            norms = [spanner.norms(draws.features - f) for f in draws.features]
            assert spanner.norms(relative[None])[0] == pytest.approx(np.max(norms), rel=1e-9)
            assert spanner.norms(relative[None])[0] > event.info["nu"]
            spanner = spanner.accept(relative)
            seen += 1
    assert seen >= 3


def test_spanner_pairs_are_no_more_than_the_potential_allows() -> None:
    """Sigma starts at least at lambda I, lambda its least eigenvalue, and these features have norm 1."""
    env = tie(prompts=6, responses=9, dim=3)
    trace = driven(env, labels=400, batch=20)
    start = next(after.spanner for _, _, after in replayed(trace) if after.spanner is not None)
    penalty = float(np.linalg.eigvalsh(start.sigma)[0])
    requests = [r for r in trace.requests if isinstance(r, LabelRequest) and r.info["phase"] == "span"]
    pairs = 0
    for r in requests:
        pairs += len(r.items) // 2
        assert pairs <= acceptance_bound(3, penalty, r.info["nu"])
    assert pairs > 20


def test_a_kl_budget_sets_the_temperature() -> None:
    trace = driven(labels=40, beta=None, kl=0.3)
    policy = EXPLORER.policy(trace.state)
    base = [d.counts / d.counts.sum() for d in trace.state.pools.values()]
    tilted = [
        tilt(b, d.features @ policy.theta, policy.beta) for b, d in zip(base, trace.state.pools.values(), strict=True)
    ]
    spent = [kl_divergence(q, b) for q, b in zip(tilted, base, strict=True)]
    assert np.mean(spent) == pytest.approx(0.3, rel=1e-5)


def test_epochs_shrink_nu_and_grow_the_pools() -> None:
    trace = driven(labels=80)
    requests = [r for r in trace.requests if isinstance(r, DrawRequest)]
    assert [r.n for r in requests] == [16 * 4**k for k in range(len(requests))]
    assert len(requests) > 3
    nus = {r.info["epoch"]: r.info["nu"] for r in trace.requests if isinstance(r, LabelRequest)}
    assert nus == pytest.approx({k: 2.0 * 0.7**k for k in nus})
    sizes: dict[int, dict[str, int]] = {}
    for r in trace.requests:
        if isinstance(r, LabelRequest):
            epoch = sizes.setdefault(r.info["epoch"], {"span": 0, "explore": 0})
            epoch[r.info["phase"]] += len(r.items)
    for epoch in list(sizes.values())[:-1]:  # the last may have been cut off by the budget
        least = max(epoch["span"], EPOCH_LABELS)
        assert least <= epoch["explore"] < least + 6


def test_without_draws_it_lives_on_its_first_pool() -> None:
    trace = driven(labels=90, draws=50)
    assert trace.bench.bought == 90
    assert trace.bench.spent == 48
    epochs = [r.info["epoch"] for r in trace.requests if isinstance(r, LabelRequest)]
    assert max(epochs) > 2


def test_one_label_at_a_time_explores() -> None:
    trace = driven(labels=9, batch=1)
    assert trace.bench.bought == 9
    assert {len(r.items) for r in trace.requests if isinstance(r, LabelRequest)} == {1}


@pytest.mark.parametrize("labels", [1, 3, 7, 21])
def test_odd_budgets_are_spent(labels: int) -> None:
    assert driven(labels=labels).bench.bought == labels


def test_it_stops_where_everything_is_labelled_and_nothing_new_comes() -> None:
    env = tie(prompts=2, responses=5, dim=2)
    trace = driven(env, labels=500, fresh=False)
    assert trace.bench.bought == 10
    assert "no unlabelled response" in trace.stop.reason
    pools = [isinstance(r, DrawRequest) for r in trace.requests[:-1]]
    assert pools[-PATIENCE:] == [True] * PATIENCE
    assert trace.bench.spent < 2 * 16 * 4**9


def test_every_open_response_is_labelled_however_little_mass_it_has() -> None:
    """Twenty responses of mass 1e-9 each that came from elsewhere: no tilted draw finds them, the labels do."""
    base = np.array([[1.0 - 2e-8, *np.full(20, 1e-9)]])
    rng = np.random.default_rng(0)
    env = TabularEnvironment([1.0], base, rng.normal(size=(1, 21, 2)), rng.normal(size=(1, 21)), beta=1, noise_std=0.1)
    bench = laws.Bench(env, laws.spec_of(env, labels=50, fresh=False, draws=100))
    state = EXPLORER.init(bench.spec)
    records = laws.Draws(0, tuple(map(str, range(21))), np.array([10**9] + [1] * 20), env.features[0])
    state = EXPLORER.absorb(state, Drawn((records,), 0))
    bench.rows.update({(0, str(y)): env.features[0, y] for y in range(21)})
    for k in range(200):
        request = EXPLORER.decide(state, rng=np.random.default_rng(k))
        if isinstance(request, StopRequest):
            break
        state = EXPLORER.absorb(EXPLORER.absorb(state, request), bench.answer(k, request))
    assert bench.bought == 21


# --- from elsewhere -------------------------------------------------------------------------------------------------


def test_draws_from_elsewhere_before_the_first_pool_join_it() -> None:
    state = EXPLORER.init(laws.spec_of(ENV))
    record = ENV.draw([0], 30, rng=np.random.default_rng(0))
    state = EXPLORER.absorb(state, Drawn(record, 30))
    request = EXPLORER.decide(state, rng=np.random.default_rng(1))
    assert isinstance(request, DrawRequest)
    assert request.info["phase"] == "pool"
    state = EXPLORER.absorb(state, request)
    state = EXPLORER.absorb(
        state, Drawn(ENV.draw(request.prompts, request.n, rng=np.random.default_rng(2)), 48, info=request.info)
    )
    assert state.pools[0].counts.sum() == 46
    assert isinstance(EXPLORER.decide(state, rng=np.random.default_rng(3)), LabelRequest)


def test_labels_from_elsewhere_enter_the_design_before_and_after_the_first_pool() -> None:
    label = Labelled((Label(0, "3", 1.0), Label(0, "1", None, status="skip")), ENV.features[0, [3, 1]])
    pool = Drawn(ENV.draw([0, 1, 2], 16, rng=np.random.default_rng(0)), 48, info={"phase": "pool", "seed": 1})
    spec = laws.spec_of(ENV)
    early = EXPLORER.absorb(EXPLORER.absorb(EXPLORER.init(spec), label), pool)
    late = EXPLORER.absorb(EXPLORER.absorb(EXPLORER.init(spec), pool), label)
    assert early.spanner is not None
    assert late.spanner is not None
    relative = ENV.features[0, 3] - late.learner.centres[0]
    expected = prior_precision(late.learner) + np.outer(relative, relative)
    np.testing.assert_allclose(late.spanner.sigma, expected, rtol=1e-9)
    np.testing.assert_allclose(early.spanner.sigma, expected, rtol=1e-6)


def test_pools_that_were_not_asked_for_are_not_tested() -> None:
    state = driven(labels=20).state
    foreign = Drawn(ENV.draw([0, 1, 2], 40, rng=np.random.default_rng(5)), 120, info={"phase": "pool"})
    assert EXPLORER.absorb(state, foreign).certificates == state.certificates
    nothing = Drawn((), 0, info={"phase": "pool", "seed": 3})
    assert EXPLORER.absorb(state, nothing).certificates == state.certificates


# --- certificate ----------------------------------------------------------------------------------------------------


def true_mass(env: TabularEnvironment, prompts: list[int], spanner: Spanner, nu: float) -> float:
    """Mass of pairs of base draws strictly beyond nu, on average over the prompts, by enumeration."""
    masses = []
    for x in prompts:
        relative = env.features[x][:, None] - env.features[x][None, :]
        norms = spanner.norms(relative.reshape(-1, env.dim)).reshape(relative.shape[:2])
        masses.append(env.base_probs[x] @ (norms > nu) @ env.base_probs[x])
    return float(np.mean(masses))


def rare_and_rarer(seed: int) -> TabularEnvironment:
    """Two prompts, twelve directions whose masses fall from .1 to .0005: there is always one that few draws show."""
    rng = np.random.default_rng(seed)
    masses = np.geomspace(0.1, 5e-4, 12)
    base = np.append(masses, 1.0 - masses.sum())
    features = np.vstack([np.eye(12), np.zeros(12)])
    return TabularEnvironment(
        [0.3, 0.7], [base, np.append(rng.permutation(masses), base[-1])], [features] * 2,
        rng.normal(size=(2, 13)), beta=1.0, noise_std=0.5,
    )  # fmt: skip


def test_certificates_of_whole_runs_are_violated_in_at_most_delta_of_them() -> None:
    """150 runs, delta = .3, several tests each: the explorer decides from what it saw when to test what. One-sided at
    1e-6. (How sharp the rule is, and what a wrong one does, is shown in test_spanner.py.)"""
    explorer = AdaptiveSpannerSampling(pool=8, growth=2, delta=0.3)
    violated, tests = 0, 0
    for seed in range(150):
        env = rare_and_rarer(seed)
        spec = laws.spec_of(env, labels=80, batch=20)
        state, bench, bad = explorer.init(spec), laws.Bench(env, spec), False
        for k in range(500):
            request = explorer.decide(state, rng=np.random.default_rng([seed, k]))
            if isinstance(request, StopRequest):
                break
            state = explorer.absorb(state, request)
            before, state = state, explorer.absorb(state, bench.answer(seed * 1000 + k, request))
            for certificate in state.certificates[len(before.certificates) :]:
                assert before.spanner is not None
                tests += 1
                bad |= true_mass(env, [0, 1], before.spanner, before.nu) > certificate.eta
                bad |= true_mass(env, [0, 1], before.spanner, certificate.radius) > certificate.eta_radius
        violated += bad
    assert tests > 300
    assert binom.sf(violated - 1, 150, 0.3) > 1e-6, violated


def test_each_number_of_acceptances_is_tested_once() -> None:
    """delta_j pays for one test. Where all is labelled, pool follows pool without an acceptance between them."""
    env = tie(prompts=2, responses=5, dim=2)
    trace = driven(env, labels=500, fresh=False)
    numbers = [c.acceptances for c in trace.state.certificates]
    assert len(numbers) < sum(isinstance(r, DrawRequest) for r in trace.requests) - 1
    assert len(set(numbers)) == len(numbers)
    spent = sum(spending(EXPLORER.delta, j) for j in numbers)
    assert spent <= EXPLORER.delta


def test_a_certificate_counts_the_same_disjoint_pairs_of_every_prompt() -> None:
    trace = driven(labels=40)
    found = [r for r in trace.requests if isinstance(r, DrawRequest)][1:]
    tested = trace.state.certificates
    assert [c.pairs for c in tested] == [3 * (r.n // 2) for r in found[: len(tested)]]
    nus = [before.nu for before, _, after in replayed(trace) if len(after.certificates) > len(before.certificates)]
    assert [c.nu for c in tested] == nus
    assert all(c.eta == (c.eta_radius if c.beyond == 0 else 1.0) for c in tested)
    assert all(c.eta_radius == pytest.approx(1 - spending(0.05, c.acceptances) ** (1 / c.pairs)) for c in tested)


def test_one_draw_a_prompt_is_no_test() -> None:
    """A draws budget that leaves one draw a prompt: no pair, no certificate, and nothing that JSON cannot hold."""
    trace = driven(labels=60, draws=51)
    assert trace.bench.spent == 51
    assert trace.state.certificates == ()
    with Ledger.open(None, meta={}, prompts=list(ENV.prompts)) as ledger:
        ledger.stop(0, trace.stop)


def test_equal_features_are_never_beyond_nu_however_far_from_the_origin() -> None:
    """Gram matrices cancel: copies of one feature, 1e4 away from 0, must not look apart."""
    features = np.full((2, 4, 3), 1e4 / 3)
    env = TabularEnvironment([0.5, 0.5], np.full((2, 4), 0.25), features, np.zeros((2, 4)), beta=1.0, noise_std=1.0)
    trace = driven(env, labels=60)
    assert trace.bench.bought == 60
    assert all(r.info["phase"] == "explore" for r in trace.requests if isinstance(r, LabelRequest))
    assert all(c.radius < 1e-6 for c in trace.state.certificates)


# --- scale ----------------------------------------------------------------------------------------------------------


def test_time_does_not_grow_with_the_draws() -> None:
    """2,000 labels draw 10^8 responses of 32 prompts; no array of that length is ever made (20 s when one was)."""
    start = time.process_time()
    result = spannerlm.explore(rare_skill(0.001), labels=2000, batch=100, seed=0)
    assert result.draws > 4 * 10**7
    assert time.process_time() - start < 10.0


def test_pools_have_a_largest_size() -> None:
    state = driven(labels=12).state
    grown = laws.replace(state, size=MAX_POOL, explored=10**6, learner=laws.replace(state.learner, bought=0))
    request = EXPLORER.decide(laws.replace(grown, clean=True), rng=np.random.default_rng(0))
    assert isinstance(request, DrawRequest)
    assert request.n == MAX_POOL


def test_progress_names_where_it_stands() -> None:
    spec = laws.spec_of(ENV)
    assert EXPLORER.progress(EXPLORER.init(spec))["phase"] == "pool"
    phases = {EXPLORER.progress(after)["phase"] for _, _, after in replayed(driven(labels=60))}
    assert phases == {"pool", "span", "explore"}
    last = EXPLORER.progress(driven(labels=60).state)
    assert set(last) == {"phase", "epoch", "nu", "pairs", "certificate"}
    assert last["certificate"]["acceptances"] <= last["pairs"]


def test_labels_of_single_items_stand_against_their_prompts_mean() -> None:
    pool = Drawn(ENV.draw([0, 1, 2], 16, rng=np.random.default_rng(0)), 48, info={"phase": "pool", "seed": 1})
    state = EXPLORER.absorb(EXPLORER.init(laws.spec_of(ENV)), pool)
    assert state.spanner is not None
    y = state.pools[0].responses[0]
    asked = EXPLORER.absorb(state, LabelRequest((LabelItem(0, y), LabelItem(1, "never drawn")), {"phase": "explore"}))
    assert asked.spanner is not None
    relative = ENV.features[0, int(y)] - state.learner.centres[0]
    np.testing.assert_allclose(asked.spanner.sigma - state.spanner.sigma, np.outer(relative, relative), atol=1e-9)


# --- comparisons ----------------------------------------------------------------------------------------------------


def compared(env: TabularEnvironment = ENV, explorer: AdaptiveSpannerSampling = EXPLORER, **changes: Any) -> laws.Trace:
    return laws.drive(explorer, laws.Bench(laws.compared(env), laws.spec_of(env, feedback="comparison", **changes)))


def test_a_pair_is_one_comparison_that_adds_a_quarter_to_sigma() -> None:
    """p (1 - p) <= 1/4: Sigma is the prior's precision of theta / s, and the most that the pairs can tell."""
    trace = compared(labels=60)
    start = next(after.spanner for _, _, after in replayed(trace) if after.spanner is not None)
    learner = trace.state.learner
    assert learner.comparisons.comparisons == trace.bench.bought == 60
    assert trace.state.spanner is not None
    relative = learner.comparisons.relative
    np.testing.assert_allclose(trace.state.spanner.sigma, start.sigma + 0.25 * relative.T @ relative, rtol=1e-9)
    assert trace.state.spanner.accepted == 60
    assert not np.any(np.all(relative == 0.0, axis=1))
    sizes = {len(r.items) for r in trace.requests if isinstance(r, LabelRequest) and r.info["phase"] == "explore"}
    assert max(sizes) == 6


def test_the_spanner_phase_compares_the_farthest_pairs_that_are_open() -> None:
    """Against a loop over all pairs, where a comparison settles its pair."""
    seen, turned_away = 0, 0
    explorer = AdaptiveSpannerSampling(pool=16, nu=0.8)
    for before, event, _ in replayed(compared(explorer=explorer, labels=45, fresh=False)):
        if not isinstance(event, LabelRequest) or event.info["phase"] != "span":
            continue
        spanner = before.spanner
        assert spanner is not None
        for item in event.items:
            draws = before.pools[item.prompt]
            n = len(draws.responses)
            norms = {
                (i, j): float(spanner.norms((draws.features[i] - draws.features[j])[None])[0])
                for i in range(n)
                for j in range(i)
            }
            open_ = {
                pair: norm
                for pair, norm in norms.items()
                if before.learner.open(item.prompt, draws.responses[pair[0]], draws.responses[pair[1]])
            }
            turned_away += max(norms.values()) > max(open_.values())
            rows = [draws.responses.index(text) for text in (item.response, item.opponent or "")]
            assert open_[max(rows), min(rows)] == pytest.approx(max(open_.values()), rel=1e-9)
            assert max(open_.values()) > event.info["nu"]
            spanner = spanner.accept(0.5 * (draws.features[rows[0]] - draws.features[rows[1]]))
            seen += 1
    assert seen > turned_away > 0


def test_every_pair_is_compared_once_and_then_it_stops() -> None:
    """Three prompts of 5 responses, two of which have equal features: 9 pairs each."""
    env = tie(prompts=3, responses=5, dim=2)
    features = env.features.copy()
    features[:, 4] = features[:, 3]
    base = np.array([0.5, 0.3, 0.1, 0.05, 0.05])
    env = TabularEnvironment(
        env.prompt_probs, np.tile(base, (3, 1)), features, env.mean_rewards, beta=1.0, noise_std=0.1
    )
    trace = compared(env, labels=200, fresh=False, draws=10**7)
    assert trace.bench.bought == 3 * 9
    assert "no comparison that tells anything is left" in trace.stop.reason


def test_features_that_are_all_equal_cost_no_comparison_and_come_to_an_end() -> None:
    env = TabularEnvironment([1.0], [[0.5, 0.5]], np.ones((1, 2, 3)), [[0.0, 1.0]], beta=1.0, noise_std=0.1)
    trace = compared(env)
    assert trace.bench.bought == 0
    assert "no comparison that tells anything is left" in trace.stop.reason


def test_comparisons_from_elsewhere_enter_sigma_and_rewards_do_not() -> None:
    state = compared(labels=6).state
    relative = np.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
    labels = (Label(0, "0", 1.0, opponent="1"), Label(0, "0", 2.0))
    after = EXPLORER.absorb(state, Labelled(labels, relative))
    assert after.spanner is not None
    np.testing.assert_allclose(
        after.spanner.sigma, state.spanner.sigma + 0.25 * np.outer(relative[0], relative[0]), rtol=1e-12
    )
    early = EXPLORER.absorb(EXPLORER.init(laws.spec_of(ENV, feedback="comparison")), Labelled(labels, relative))
    drawn = ENV.draw([0, 1], 30, rng=np.random.default_rng(0))
    begun = EXPLORER.absorb(early, Drawn(drawn, 60, info={"phase": "pool"}))
    assert begun.spanner is not None
    expected = prior_precision(begun.learner) + 0.25 * np.outer(relative[0], relative[0])
    np.testing.assert_allclose(begun.spanner.sigma, expected, rtol=1e-12)


def test_comparisons_find_a_hidden_value_with_fewer_labels_than_random_ones() -> None:
    """rare-skill p = .01, s = .3, 150 comparisons: median regret of three seeds, as a share of where it started."""
    env = rare_skill(0.01, prompts=8, seed=1)
    ends = {}
    for name in ("spanner-sampling", "passive"):
        runs = [
            spannerlm.explore(env, explorer=name, labels=150, seed=seed, feedback="comparison", scale=0.3)
            for seed in range(3)
        ]
        ends[name] = np.median([run.history[-1]["regret"] / run.history[0]["regret"] for run in runs])
    assert ends["spanner-sampling"] < 0.15
    assert ends["spanner-sampling"] < 0.5 * ends["passive"]
