"""Slow sums over all sequences of a token environment, one at a time, and a few environments to hold them against."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spannerlm.environments.token import TokenEnvironment
from spannerlm.records import FloatArray

Sequence = tuple[int, ...]


def odd_environment(seed: int, h: int = 3, s: int = 4, a: int = 3, d: int = 2) -> TokenEnvironment:
    """Nothing special about it: not realizable, zeros in pi_ref and rho, states that no prefix leads to."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.ones(a), size=(h, s))
    base[rng.random(base.shape) < 0.2] = 0.0
    empty = base.sum(axis=-1) == 0.0
    base[empty, 0] = 1.0
    rho = rng.dirichlet(np.ones(s))
    rho[-1] = 0.0 if s > 1 else 1.0
    return TokenEnvironment(
        rng.integers(max(1, s - 1), size=(h, s, a)),
        base / base.sum(axis=-1, keepdims=True),
        rng.normal(size=(h, s, a, d)),
        rng.normal(size=(h, s, a)),
        rho / rho.sum(),
        beta=0.7,
        noise_std=0.4,
    )


def random_policy(env: TokenEnvironment, seed: int) -> FloatArray:
    """[H, S, A] a random policy within the support of pi_ref."""
    weights = env.base_probs * np.random.default_rng(seed).exponential(size=env.base_probs.shape)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Path:
    """One complete sequence of one prompt."""

    actions: Sequence
    states: Sequence
    reward: float


def paths(env: TokenEnvironment, x: int) -> Iterator[Path]:
    """Every complete sequence of a prompt."""
    for actions in itertools.product(range(env.actions), repeat=env.horizon):
        states, reward = [x], 0.0
        for step, action in enumerate(actions):
            reward += float(env.step_rewards[step, states[-1], action])
            states.append(int(env.next_state[step, states[-1], action]))
        yield Path(actions, tuple(states[:-1]), reward)


def mass(policy: FloatArray, path: Path) -> float:
    """Probability of the sequence under a policy [H, S, A]."""
    return math.prod(float(policy[h, s, a]) for h, (s, a) in enumerate(zip(path.states, path.actions, strict=True)))


class Slow:
    """What an environment should say of itself, from a list of all its sequences."""

    def __init__(self, env: TokenEnvironment) -> None:
        self.env = env
        self.prompts = [x for x in range(env.states) if env.initial_probs[x] > 0.0]
        self.possible = {x: [p for p in paths(env, x) if mass(env.base_probs, p) > 0.0] for x in self.prompts}
        self.log_z = {
            x: math.log(math.fsum(mass(env.base_probs, p) * math.exp(p.reward / env.beta) for p in found))
            for x, found in self.possible.items()
        }

    def optimum(self, x: int, path: Path) -> float:
        """pi* of a complete sequence."""
        return mass(self.env.base_probs, path) * math.exp(path.reward / self.env.beta - self.log_z[x])

    def optimal_value(self) -> float:
        """J_beta(pi*)."""
        return math.fsum(float(self.env.initial_probs[x]) * self.env.beta * self.log_z[x] for x in self.prompts)

    def value(self, policy: FloatArray) -> float:
        """J_beta(policy), as a sum over sequences of reward minus beta log-ratio."""
        env, total = self.env, []
        for x in self.prompts:
            for path in paths(env, x):
                p = mass(policy, path)
                if p > 0.0:
                    log_ratio = math.log(p / mass(env.base_probs, path))
                    total.append(float(env.initial_probs[x]) * p * (path.reward - env.beta * log_ratio))
        return math.fsum(total)

    def regret(self, policy: FloatArray) -> float:
        """beta E_x KL(policy || pi*) of laws of whole sequences."""
        env, total = self.env, []
        for x in self.prompts:
            for path in self.possible[x]:
                p = mass(policy, path)
                if p > 0.0:
                    total.append(float(env.initial_probs[x]) * p * env.beta * math.log(p / self.optimum(x, path)))
        return math.fsum(total)

    def coverage(self) -> float:
        """C_cov."""
        return max(
            self.optimum(x, p) / mass(self.env.base_probs, p) for x, found in self.possible.items() for p in found
        )

    def conditionals(self) -> dict[tuple[int, Sequence], tuple[int, list[float]]]:
        """(prompt, prefix) of positive probability -> (latent state, [A] pi* of the next action), by summing out."""
        sums: dict[tuple[int, Sequence], float] = defaultdict(float)
        state: dict[tuple[int, Sequence], int] = {}
        for x, found in self.possible.items():
            for path in found:
                for h in range(self.env.horizon + 1):
                    sums[x, path.actions[:h]] += self.optimum(x, path)
                    if h < self.env.horizon:
                        state[x, path.actions[:h]] = path.states[h]
        return {
            (x, prefix): (s, [sums[x, (*prefix, a)] / sums[x, prefix] for a in range(self.env.actions)])
            for (x, prefix), s in list(state.items())
        }

    def step_coverage(self) -> float:
        """C_cond."""
        return max(
            law[a] / float(self.env.base_probs[len(prefix), s, a])
            for (_, prefix), (s, law) in self.conditionals().items()
            for a in range(self.env.actions)
            if self.env.base_probs[len(prefix), s, a] > 0.0
        )

    def occupancy(self, policy: FloatArray) -> FloatArray:
        """[H, S] visits, from a list of all sequences."""
        found = np.zeros((self.env.horizon, self.env.states))
        for x in self.prompts:
            for path in paths(self.env, x):
                for h, s in enumerate(path.states):
                    found[h, s] += self.env.initial_probs[x] * mass(policy, path)
        return found

    def gap(self, step: int) -> float:
        """What least squares on phi_h leaves of Q*_h: one dummy column per latent state instead of centring.

        Q*_h of a prefix and an action: beta log of the sum over all ways on of pi_ref exp(reward to come / beta).
        """
        env = self.env
        rows, targets, owners = [], [], []
        visited = sorted({path.states[step] for found in self.possible.values() for path in found})
        for s in visited:
            for a in np.flatnonzero(env.base_probs[step, s] > 0.0):
                rows.append(np.concatenate([env.features[step, s, a], np.arange(env.states) == s]))
                targets.append(env.beta * math.log(self._ahead(step, s, int(a))))
                owners.append(s)
        design, target = np.array(rows), np.array(targets)
        left = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        return max(float(np.ptp(left[np.array(owners) == s])) for s in visited)

    def _ahead(self, step: int, state: int, action: int) -> float:
        env = self.env
        now = math.exp(float(env.step_rewards[step, state, action]) / env.beta)
        if step + 1 == env.horizon:
            return now
        after = int(env.next_state[step, state, action])
        ways = (float(env.base_probs[step + 1, after, a]) * self._ahead(step + 1, after, a) for a in range(env.actions))
        return now * math.fsum(ways)


def obeys(env: TokenEnvironment) -> None:
    """The shared law: what the environment declares is what the sums over all sequences say, to 1e-12."""
    slow, close = Slow(env), {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(env.optimal_value(), slow.optimal_value(), **close)
    optimum = env.optimal_policy()
    for (_, prefix), (s, law) in slow.conditionals().items():
        np.testing.assert_allclose(optimum[len(prefix), s], law, **close)
    np.testing.assert_allclose(env.coverage(), slow.coverage(), **close)
    np.testing.assert_allclose(env.step_coverage(), slow.step_coverage(), **close)
    for policy in (optimum, env.base_probs, random_policy(env, 1)):
        np.testing.assert_allclose(env.value(policy), slow.value(policy), **close)
        np.testing.assert_allclose(env.regret(policy), slow.regret(policy), **close)
        np.testing.assert_allclose(env.regret(policy), env.optimal_value() - env.value(policy), **close)
        np.testing.assert_allclose(env.occupancy(policy), slow.occupancy(policy), **close)
    gaps = [slow.gap(step) for step in range(env.horizon)]
    np.testing.assert_allclose(env.realizability_gap(), gaps, rtol=1e-9, atol=1e-12)
