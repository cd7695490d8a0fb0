"""Parts of layered exploration: gains of roll-outs, the sampler fed from a record, the truncated policy of steps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chisquare

from spannerlm.environments import tie, token_environment
from spannerlm.errors import InputError
from spannerlm.explorers.layered_parts import Layer, TruncatedStepPolicy, accepted, gains, most_draws
from spannerlm.policy import StepSoftmaxPolicy, tilt
from spannerlm.records import DrawRequest, Draws, StepTilt
from spannerlm.stepwise import rolled

ENV = token_environment("gated-lock", horizon=4, seed=1)


def test_returns_net_of_gains_are_soft_values_at_the_optimum() -> None:
    """Without label noise r less the gains is V*_h of where the roll-out began, whatever its draws (THEORY 5)."""
    env = token_environment("gated-lock", horizon=5, seed=4, noise_std=0.0)
    theta = np.zeros((5, env.step_dim))
    for h in range(5):
        for s in range(env.states):
            theta[h] += env.features[h, s].T @ env.action_values[h, s] / (env.states / 2)
    starts = ((), ("0",), ("1", "0"), ("0", "1", "1", "0", "1"))
    prompts = (0, 3, 1, 2)
    request = DrawRequest(prompts, 200_000, StepTilt(theta, env.beta), {}, starts)
    drawn = rolled(env, request, rng=np.random.default_rng(0))
    less = gains(drawn.draws, [len(s) for s in starts], drawn.paths, theta, env.beta)
    rewards = env.reward(0)([str(x) for x in prompts], [path.response for path in drawn.paths], replicate=[0] * 4)
    for x, start, reward, gain in zip(prompts, starts, rewards, less, strict=True):
        state, passed = x, 0.0
        for h, action in enumerate(map(int, start)):
            passed += env.step_rewards[h, state, action]
            state = env.next_state[h, state, action]
        later = env.soft_values[len(start), state] if len(start) < 5 else 0.0
        assert reward - gain == pytest.approx(passed + later, abs=0.005)
    assert less[3] == 0.0


def test_gains_by_hand() -> None:
    """Two roll-outs through the same places: each is measured by its own draws."""
    theta = np.random.default_rng(1).normal(size=(4, ENV.step_dim)) * 0.1
    request = DrawRequest((2, 2, 0), 3, StepTilt(theta, ENV.beta), {}, (("0",), ("0",), ("1", "0", "1")))
    drawn = rolled(ENV, request, rng=np.random.default_rng(5))
    expected = np.zeros(3)
    left = list(drawn.draws)
    for later in range(3):
        for i, path in enumerate(drawn.paths):
            h = len(request.prefixes[i]) + later  # type: ignore[index]
            if h < 4:
                record = left.pop(0)
                assert (record.prompt, record.prefix) == (path.prompt, path.segments[:h])
                law = tilt(record.counts / 3, record.features @ theta[h], ENV.beta)
                k = record.responses.index(path.segments[h])
                expected[i] += ENV.beta * np.log(law[k] / (record.counts[k] / 3))
    assert left == []
    np.testing.assert_allclose(gains(drawn.draws, [1, 1, 3], drawn.paths, theta, ENV.beta), expected, atol=1e-12)


def test_the_truncated_policy_by_hand() -> None:
    env = token_environment("random-token-mdp", horizon=2, actions=4, dim=3, states=3, seed=1)
    rng = np.random.default_rng(0)
    theta, roots = rng.normal(size=(2, 3)) * 0.5, rng.normal(size=(2, 3, 3))
    table = TruncatedStepPolicy(theta, env.beta, roots, 1.0).table(env)
    cut = 0
    for h, s in np.ndindex(2, 3):
        expected = np.zeros(4)
        for anchor in range(4):
            relative = env.features[h, s] - env.features[h, s, anchor]
            inside = np.linalg.norm(relative @ roots[h].T, axis=1) <= 1.0
            cut += np.sum(~inside)
            logits = np.log(env.base_probs[h, s]) + inside * (relative @ theta[h]) / env.beta
            expected += env.base_probs[h, s, anchor] * np.exp(logits - logsumexp(logits))
        np.testing.assert_allclose(table[h, s], expected, atol=1e-12)
    assert 0 < cut < 2 * 3 * 12
    wide = TruncatedStepPolicy(theta, env.beta, roots, 1e6).table(env)
    np.testing.assert_allclose(wide, StepSoftmaxPolicy(theta, env.beta).table(env), atol=1e-12)
    with pytest.raises(InputError, match="expected one of steps"):
        TruncatedStepPolicy(theta, env.beta, roots, 1.0).table(tie(prompts=2))


def test_the_sampler_fed_from_a_record_keeps_its_law() -> None:
    base, scores = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 1.5])
    features, most = np.eye(4), most_draws(6.0, 0.05)
    rng, found = np.random.default_rng(3), Counter[str]()
    for _ in range(1500):
        counts = rng.multinomial(most, base)
        seen = np.flatnonzero(counts)
        record = Draws(0, tuple("abcd"[i] for i in seen), counts[seen], features[seen])
        kept = accepted(record, lambda phi: phi @ scores, 6.0, 0.05, rng=rng)
        assert kept.spent <= most
        found[kept.responses[0]] += 1
    law = tilt(base, scores, 1.0)
    assert chisquare([found[a] for a in "abcd"], 1500 * law).pvalue > 1e-3


def test_one_pair_a_place_at_most() -> None:
    layer = Layer.start(2, 0.1)
    draws = Draws(0, ("a", "b"), np.array([5, 5]), np.eye(2), ("x",))
    once = layer.tested(draws, 0.7, rng=np.random.default_rng(0))
    assert len(once.pairs) == 1
    assert set(once.pairs[0].starts) == {("x", "a"), ("x", "b")}
    same = Draws(0, ("a",), np.array([10]), np.eye(2)[:1], ("x",))
    assert layer.tested(same, 0.7, rng=np.random.default_rng(0)) is layer
