"""The published schedule: its formulas by hand, its two phases on a small table, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import laws
import numpy as np
import pytest
from scipy.optimize import minimize

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import AdaptiveSpannerSampling, SpannerSampling, TheorySpannerSampling
from spannerlm.explorers.spanner_sampling import SCAN, TheoryState, theory_schedule
from spannerlm.policy import LinearSoftmaxPolicy, TruncatedSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Label,
    LabelItem,
    Labelled,
    LabelRequest,
    StopRequest,
)
from spannerlm.samplers import softmax_sampler

ENV = laws.random_table(1)
SHORT = {"t_span": 100, "n_span": 6, "t_exp": 25, "nu": 0.9, "bound": 3.0}
EXPLORER = TheorySpannerSampling(c_cov=3.0, b=2.0, overrides=SHORT)


def driven(explorer: TheorySpannerSampling = EXPLORER, env: TabularEnvironment = ENV, **changes: Any) -> laws.Trace:
    told = {"labels": 1000, **changes}
    return laws.drive(explorer, laws.Bench(env, laws.spec_of(env, **told)))


def states(trace: laws.Trace, explorer: TheorySpannerSampling = EXPLORER) -> list[tuple[TheoryState, Any, TheoryState]]:
    state, out = explorer.init(trace.bench.spec), []
    for event in trace.events:
        after = explorer.absorb(state, event)
        out.append((state, event, after))
        state = after
    return out


# --- the schedule ---------------------------------------------------------------------------------------------------


def test_schedule_by_hand() -> None:
    """d = 2, beta = .5, R_max = 2, B = 4, eps = .25, delta = e^-3, C_cov = 7: log(1/delta) = 3 (THEORY 3)."""
    schedule = theory_schedule(2, beta=0.5, r_max=2.0, b=4.0, eps=0.25, delta=float(np.exp(-3.0)), c_cov=7.0)
    assert schedule.penalty == pytest.approx(0.5)  # d (R_max / B)^2
    assert np.sqrt(schedule.penalty) * 4.0 == pytest.approx(2.0 * np.sqrt(2.0))  # sqrt(lambda) B = R_max sqrt(d)
    assert schedule.nu == pytest.approx(0.5 / (2.0 * np.sqrt(6.0)))  # beta / (R_max sqrt(d log))
    right = [m for m in range(1, 2000) if m <= 2 * np.log(1 + 4 * m / (2 * 0.5)) / np.log(1 + 1 / 96)]
    assert schedule.t_span == 2 * max(right) * 3 * 4  # R_max m log / min(eps, beta)
    assert schedule.n_span == 21  # C_cov log
    assert schedule.t_exp == 4 * 4 * 3 / (0.5 * 0.25)  # R_max^2 d^2 log / (beta min)
    assert schedule.bound == 28.0


def test_schedule_grows_as_the_theorem_says() -> None:
    given = {"beta": 0.1, "r_max": 1.0, "b": 1.0, "eps": 0.05, "delta": 0.1, "c_cov": 10.0}

    def of(dim: int = 4, **changes: float) -> Any:
        return theory_schedule(dim, **{**given, **changes})

    assert of(dim=8).t_exp == pytest.approx(4 * of().t_exp, abs=4)
    assert of(eps=0.025).t_exp == pytest.approx(2 * of().t_exp, abs=2)
    assert of(beta=0.2).t_exp == pytest.approx(of().t_exp / 2, abs=2)
    assert of(eps=0.5).t_exp == of(eps=0.1).t_exp
    assert of(c_cov=100.0).n_span == pytest.approx(10 * of().n_span, abs=10)
    assert of(c_cov=100.0).t_exp == of().t_exp, "labels do not grow with coverage"
    assert of(r_max=2.0).nu == of().nu / 2
    assert of(delta=0.01).n_span == pytest.approx(2 * of().n_span, abs=1)


@pytest.mark.parametrize("name", ["beta", "r_max", "b", "eps", "c_cov", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), 1.0])
def test_schedule_refuses_what_it_cannot_use(name: str, value: float) -> None:
    given = {"beta": 0.1, "r_max": 1.0, "b": 1.0, "eps": 0.05, "delta": 0.1, "c_cov": 10.0}
    if value == 1.0 and name != "delta":
        assert theory_schedule(4, **{**given, name: value}).nu > 0.0
        return
    with pytest.raises(InputError, match=name):
        theory_schedule(4, **{**given, name: value})


def test_names_of_schedules() -> None:
    assert SpannerSampling() == AdaptiveSpannerSampling()
    assert SpannerSampling(pool=8) == AdaptiveSpannerSampling(pool=8)
    assert SpannerSampling(schedule="theory", c_cov=3.0) == TheorySpannerSampling(c_cov=3.0)
    with pytest.raises(InputError, match=r"'adaptive' or 'theory', got 'practical'"):
        SpannerSampling(schedule="practical")


def test_it_needs_a_beta() -> None:
    with pytest.raises(InputError, match="expected a task with beta"):
        EXPLORER.init(laws.spec_of(ENV, beta=None, kl=2.0))


# --- phase 1 --------------------------------------------------------------------------------------------------------


def test_the_scan_accepts_at_most_one_pair_a_prompt_each_beyond_nu() -> None:
    trace = driven()
    scans = [r for r in trace.requests if isinstance(r, DrawRequest) and r.info["phase"] == "scan"]
    assert [len(r.prompts) for r in scans] == [SCAN, 100 - SCAN]
    assert all(r.n == 12 for r in scans)
    assert all(ENV.prompt_probs[x] > 0 for r in scans for x in r.prompts)
    assert 0 < trace.state.spanner.accepted < 100
    for before, event, after in states(trace):
        if not isinstance(event, Drawn) or event.info["phase"] != "scan":
            continue
        sigma, accepted = before.spanner.sigma.copy(), 0
        new = after.queue[len(before.queue) :]
        for first, second in new:
            assert first.prompt == second.prompt
            relative = (
                ENV.features[first.prompt, int(first.response)] - ENV.features[second.prompt, int(second.response)]
            )
            assert np.sqrt(relative @ np.linalg.solve(sigma, relative)) > after.schedule.nu
            sigma, accepted = sigma + np.outer(relative, relative), accepted + 1
        assert accepted <= len(event.draws)
        np.testing.assert_allclose(after.spanner.sigma, sigma, rtol=1e-9)
        assert after.spanner.accepted == before.spanner.accepted + accepted


def test_the_spanner_starts_at_lambda_and_is_labelled_before_exploring() -> None:
    trace = driven()
    start = EXPLORER.init(trace.bench.spec)
    np.testing.assert_allclose(start.spanner.sigma, 3 * (1.0 / 2.0) ** 2 * np.eye(3))
    phases = [r.info["phase"] for r in trace.requests[:-1]]
    first = phases.index("anchor")
    assert set(phases[:first]) == {"scan", "span"}
    assert set(phases[first:]) == {"anchor", "tilt", "explore"}
    asked = sum(len(r.items) for r in trace.requests if isinstance(r, LabelRequest) and r.info["phase"] == "span")
    assert asked == 2 * trace.state.spanner.accepted


# --- phase 2 --------------------------------------------------------------------------------------------------------


def test_rounds_draw_an_anchor_and_a_truncated_softmax_response() -> None:
    trace = driven()
    assert trace.stop.reason == "published schedule complete"
    assert trace.state.rounds == 25
    for before, event, after in states(trace):
        if isinstance(event, Drawn) and event.info["phase"] == "anchor":
            assert [d.counts.sum() for d in event.draws] == [1] * len(event.draws)
        if isinstance(event, DrawRequest) and event.tilt is not None:
            tilt, schedule = event.tilt, before.schedule
            assert event.prompts == tuple(d.prompt for d in before.anchors)
            np.testing.assert_array_equal(tilt.anchors, [d.features[0] for d in before.anchors])
            expected = before.differences.ridge(schedule.penalty, EXPLORER.b)
            np.testing.assert_array_equal(tilt.theta, expected)
            np.testing.assert_array_equal(tilt.root, before.spanner.root)
            assert (tilt.beta, tilt.nu, tilt.bound, tilt.delta) == (ENV.beta, 0.9, 3.0, EXPLORER.delta)
        if isinstance(event, Drawn) and event.info["phase"] == "tilt":
            assert after.anchors == ()
            assert after.rounds == before.rounds + len(event.draws)


def test_regression_is_least_squares_on_all_pairs_that_were_labelled() -> None:
    trace = driven()
    relative, values = [], []
    for event in trace.events:
        if isinstance(event, Labelled):
            for i in range(0, len(event.labels), 2):
                relative.append(event.features[i] - event.features[i + 1])
                values.append(event.labels[i].value - event.labels[i + 1].value)  # type: ignore[operator]
    penalty = trace.state.schedule.penalty
    design = np.vstack([np.array(relative), np.sqrt(penalty) * np.eye(3)])
    free = np.linalg.lstsq(design, np.concatenate([values, np.zeros(3)]), rcond=None)[0]
    wide = TheorySpannerSampling(c_cov=3.0, b=100.0, overrides=SHORT)
    assert trace.state.differences.pairs == len(values) > 20
    np.testing.assert_allclose(trace.state.differences.ridge(penalty, wide.b), free, rtol=1e-8)
    theta = EXPLORER.policy(trace.state).theta
    assert np.linalg.norm(theta) <= EXPLORER.b * (1 + 1e-9)


def test_policy_is_the_truncated_softmax_of_the_last_theta() -> None:
    trace = driven()
    policy = EXPLORER.policy(trace.state)
    assert isinstance(policy, TruncatedSoftmaxPolicy)
    assert policy.nu == 0.9
    assert ENV.regret(policy.table(ENV)) < ENV.regret(ENV.base_probs)
    before = EXPLORER.policy(EXPLORER.init(trace.bench.spec))
    assert isinstance(before, LinearSoftmaxPolicy)
    np.testing.assert_allclose(before.table(ENV), ENV.base_probs, atol=1e-14)


def test_the_whole_schedule_learns_a_realizable_table() -> None:
    """Three directions, little noise: in-span errors are far below beta, and next to no regret is left but for the
    truncation, which covers everything here."""
    theta = np.array([0.5, -0.3, 0.2])
    env = TabularEnvironment(
        ENV.prompt_probs, ENV.base_probs, ENV.features, ENV.features @ theta, beta=0.5, noise_std=0.05
    )
    wide = TheorySpannerSampling(c_cov=3.0, b=2.0, overrides={**SHORT, "nu": 1.2, "t_exp": 60})
    trace = driven(wide, env)
    np.testing.assert_allclose(wide.policy(trace.state).theta, theta, atol=0.1)
    assert env.regret(wide.policy(trace.state).table(env)) < 0.05 * env.regret(env.base_probs)


def test_pairs_of_equal_features_are_not_bought() -> None:
    """One response, one prompt: nothing to learn, hence no label, and the rounds end all the same."""
    env = TabularEnvironment([1.0], [[0.5, 0.5]], np.ones((1, 2, 3)), [[1.0, 0.0]], beta=0.5, noise_std=0.1)
    trace = driven(EXPLORER, env)
    assert trace.bench.bought == 0
    assert trace.state.rounds == 25
    assert trace.stop.reason == "published schedule complete"


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 700, 800, 1500, 2600])
def test_draws_of_the_sampler_are_within_the_budget(draws: int) -> None:
    trace = driven(draws=draws, labels=400)
    assert trace.bench.spent <= draws
    if trace.bench.spent < 1200:  # the scan is all that can be had
        assert trace.state.rounds == 0
    assert trace.stop.reason in ("draws spent", "published schedule complete")
    assert draws < 2600 or trace.state.rounds > 0


@pytest.mark.parametrize("bound", [1.0, 3.0, 7.5])
def test_the_most_that_a_sampler_draws_is_not_exceeded(bound: float) -> None:
    schedule = EXPLORER.init(laws.spec_of(ENV)).schedule
    most = EXPLORER._most_draws(laws.replace(schedule, bound=bound))
    spent = []

    def draw(n: int) -> Any:
        spent.append(n)
        return ENV.draw([0], n, rng=np.random.default_rng(len(spent)))[0]

    def steep(phi: np.ndarray) -> np.ndarray:
        return 400.0 * phi[:, 0]  # next to nothing is accepted

    softmax_sampler(draw, steep, bound=bound, delta=EXPLORER.delta, rng=np.random.default_rng(0))
    assert sum(spent) <= most
    assert sum(spent) > most / 3


def test_labels_are_bought_in_pairs() -> None:
    for labels, batch in ((9, 6), (20, 1), (1, 6)):
        trace = driven(labels=labels, batch=batch)
        assert trace.bench.bought == labels - labels % 2
        assert trace.stop.reason == "labels spent"


# --- from elsewhere -------------------------------------------------------------------------------------------------


def test_pairs_with_a_skip_are_left_out() -> None:
    bench = laws.Bench(ENV, laws.spec_of(ENV, labels=1000), declined=lambda x, y: y == "3")
    trace = laws.drive(EXPLORER, bench)
    pairs = [
        all(label.value is not None for label in event.labels[i : i + 2])
        for event in trace.events
        if isinstance(event, Labelled)
        for i in range(0, len(event.labels), 2)
    ]
    assert not all(pairs)
    assert trace.state.differences.pairs == sum(pairs)


def test_what_others_ask_or_tell_does_not_disturb_the_queue() -> None:
    trace = driven()
    state = next(after for _, _, after in states(trace) if len(after.queue) > 2)
    foreign = LabelRequest((LabelItem(0, "1"), LabelItem(0, "3")), {"who": "somebody"})
    asked = EXPLORER.absorb(state, foreign)
    assert asked.queue == state.queue
    told = EXPLORER.absorb(asked, Labelled((Label(0, "1", 1.0), Label(0, "3", 0.0)), ENV.features[0, [1, 3]]))
    assert told.differences.pairs == state.differences.pairs
    assert told.learner.stats.labels == state.learner.stats.labels + 2
    request = EXPLORER.decide(told, rng=np.random.default_rng(0))
    assert isinstance(request, LabelRequest)
    assert request.items[:2] == state.queue[0]


def test_progress_and_stop_carry_where_it_stands() -> None:
    trace = driven()
    assert isinstance(trace.requests[-1], StopRequest)
    assert trace.stop.info == EXPLORER.progress(trace.state)
    assert trace.stop.info["scanned"] == 100
    assert trace.stop.info["rounds"] == 25
    assert EXPLORER.progress(EXPLORER.init(trace.bench.spec))["phase"] == "span"


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_with_comparisons_a_pair_is_one_label_and_least_squares_is_logistic() -> None:
    """The same scan, draws and rounds; theta maximises the likelihood less lambda |theta / s|^2 / 8, |theta| <= B."""
    told = {"feedback": "comparison", "scale": 0.5}
    trace = laws.drive(EXPLORER, laws.Bench(laws.compared(ENV), laws.spec_of(ENV, labels=1000, **told)))
    assert "published schedule complete" in trace.stop.reason
    assert all(item.opponent not in (None, item.response) for item in trace.bench.asked)
    sizes = [len(r.items) for r in trace.requests if isinstance(r, LabelRequest)]
    assert max(sizes) == 6
    spanner = trace.state.spanner.accepted
    assert spanner < trace.bench.bought <= spanner + 25
    stats, penalty = trace.state.learner.comparisons, trace.state.schedule.penalty

    def loss(theta: np.ndarray) -> float:
        logits = stats.relative @ theta / 0.5
        signed = stats.outcomes * np.logaddexp(0, -logits) + (1 - stats.outcomes) * np.logaddexp(0, logits)
        return float(signed.sum() + penalty / 8 * theta @ theta / 0.25)

    found = minimize(loss, np.zeros(3), tol=1e-10).x
    theta = EXPLORER.policy(trace.state).theta
    assert np.linalg.norm(found) < 2.0
    np.testing.assert_allclose(theta, found, atol=1e-4)
    tight = replace(EXPLORER, b=0.5 * float(np.linalg.norm(found)))
    fixed = replace(trace.state, schedule=replace(trace.state.schedule, penalty=penalty))
    assert np.linalg.norm(tight.policy(fixed).theta) == pytest.approx(tight.b)


def test_a_comparison_that_is_known_or_queued_is_not_asked_again() -> None:
    told = {"feedback": "comparison", "fresh": False, "labels": 500}
    trace = laws.drive(EXPLORER, laws.Bench(laws.compared(ENV), laws.spec_of(ENV, **told)))
    pairs = [(item.prompt, *sorted((item.response, item.opponent or ""))) for item in trace.bench.asked]
    assert len(pairs) == len(set(pairs)) == trace.bench.bought
    assert trace.state.rounds == 25
