"""`TabularEnvironment`: finitely many prompts and responses, everything known exactly (THEORY 1, TESTBEDS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from spannerlm.coverage import coverage_constant
from spannerlm.errors import InputError
from spannerlm.policy import kl_divergence, tilt
from spannerlm.records import Draws, FloatArray
from spannerlm.rewards import NoisyComparison, NoisyReward


@dataclass(frozen=True, eq=False)
class TabularEnvironment:
    """A finite environment that knows its optimum, regret and coverage.

    Any finite features and rewards are accepted: norms and realizability are reported, never enforced. Every label
    is a fresh noisy one. Raises `InputError` on wrong shapes, negative or unnormalised probabilities, beta <= 0.
    """

    prompt_probs: FloatArray
    """[X] rho."""
    base_probs: FloatArray
    """[X, Y] pi_ref(y | x)."""
    features: FloatArray
    """[X, Y, d] phi(x, y)."""
    mean_rewards: FloatArray
    """[X, Y] r*(x, y)."""
    beta: float
    noise_std: float

    def __init__(
        self, prompt_probs: Any, base_probs: Any, features: Any, mean_rewards: Any, *, beta: float, noise_std: float
    ) -> None:
        arrays = {
            "prompt_probs": _array("prompt_probs", prompt_probs, 1),
            "base_probs": _array("base_probs", base_probs, 2),
            "features": _array("features", features, 3),
            "mean_rewards": _array("mean_rewards", mean_rewards, 2),
        }
        for name, value in {**arrays, "beta": float(beta), "noise_std": float(noise_std)}.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        shape = self.base_probs.shape
        for name, got in (
            ("prompt_probs", self.prompt_probs.shape + shape[1:]),
            ("features", self.features.shape[:2]),
            ("mean_rewards", self.mean_rewards.shape),
        ):
            if got != shape:
                raise InputError(f"{name}: expected leading shape to match base_probs {shape}, got {got}")
        _check_probabilities("prompt_probs", self.prompt_probs)
        _check_probabilities("base_probs", self.base_probs)
        if not (self.beta > 0.0 and np.isfinite(self.beta)):
            raise InputError(f"beta: expected a positive KL temperature, got {self.beta}")
        if not (self.noise_std >= 0.0 and np.isfinite(self.noise_std)):
            raise InputError(f"noise_std: expected a non-negative number, got {self.noise_std}")

    @cached_property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts' names: their indices."""
        return [str(x) for x in range(len(self.prompt_probs))]

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return int(self.features.shape[-1])

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` draws each, kept as counts (the sampling oracle). Cost: n m draws."""
        records = []
        for x in prompts:
            counts = rng.multinomial(n, self.base_probs[x] / self.base_probs[x].sum())
            seen = np.flatnonzero(counts)
            records.append(Draws(int(x), tuple(map(str, seen)), counts[seen], self.features[x, seen]))
        return tuple(records)

    def enumerate(self, prompts: Sequence[int], limit: int) -> tuple[Draws, ...]:
        """[m] every response of each prompt, also those of mass 0, once each: what no language model can tell.

        The first ``limit`` by mass where there are more. For explorers that are told the whole response set, as a
        standard that others are measured by. Cost: as many draws as responses.
        """
        records = []
        for x in prompts:
            rows = np.sort(np.argsort(-self.base_probs[x], kind="stable")[:limit])
            counts = np.ones(len(rows), dtype=np.int64)
            records.append(Draws(int(x), tuple(map(str, rows)), counts, self.features[x, rows]))
        return tuple(records)

    def reward(self, seed: int) -> NoisyReward:
        """The rater: mean reward plus Gaussian noise keyed by (seed, prompt, response, replicate)."""
        return NoisyReward(self._mean_reward, self.noise_std, seed)

    def comparison(self, seed: int, scale: float = 1.0) -> NoisyComparison:
        """The rater of pairs: prefers y to y' with probability sigmoid((r*(x, y) - r*(x, y')) / scale) (THEORY 6).

        ``noise_std`` has no part in it. Raises `InputError` unless the scale, in reward units, is positive.
        """
        return NoisyComparison(self._mean_reward, scale, seed)

    def _mean_reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(self.mean_rewards[int(x), int(y)]) for x, y in zip(prompts, completions, strict=True)]

    def optimal_policy(self) -> FloatArray:
        """[X, Y] pi*_beta = pi_ref exp(r* / beta) / Z."""
        return tilt(self.base_probs, self.mean_rewards, self.beta)

    def optimal_value(self) -> float:
        """J_beta(pi*) = beta E_x log Z(x)."""
        log_z = logsumexp(self.mean_rewards / self.beta, axis=1, b=self.base_probs)
        return float(self.prompt_probs @ (self.beta * log_z))

    def value(self, policy: FloatArray) -> float:
        """J_beta of a table [X, Y]: expected reward minus beta times the KL from pi_ref."""
        table = self._policy(policy)
        expected = np.sum(table * self.mean_rewards, axis=1)
        return self._mean(expected - self.beta * kl_divergence(table, self.base_probs))

    def regret(self, policy: FloatArray) -> float:
        """J_beta(pi*) - J_beta(policy) of a table [X, Y], computed as beta E_x KL(policy || pi*) (THEORY 1).

        The identity spares it the cancellation of a difference of values: it is accurate to about 1e-15 beta. In log
        space, because pi* itself may be too small for a float where the regret is not.
        """
        table = self._policy(policy)
        log_optimal = log_softmax(_log(self.base_probs) + self.mean_rewards / self.beta, axis=1)
        log_ratio = np.subtract(_log(table), log_optimal, out=np.zeros_like(table), where=table > 0.0)
        return self._mean(self.beta * np.sum(table * log_ratio, axis=1))

    def _mean(self, values: FloatArray) -> float:
        """Mean under rho of values [X]; what befalls an impossible prompt does not count."""
        possible = self.prompt_probs > 0.0
        return float(self.prompt_probs[possible] @ values[possible])

    def coverage(self) -> float:
        """C_cov = sup over prompts and responses of positive probability of pi* / pi_ref."""
        return coverage_constant(self.optimal_policy(), self.base_probs, self.prompt_probs)

    def realizability_gap(self) -> float:
        """Largest reward difference, over possible responses of one prompt, that least squares leaves unexplained.

        0 if and only if the environment is realizable.
        """
        possible = (self.base_probs > 0.0) & (self.prompt_probs[:, None] > 0.0)
        share = possible / np.maximum(possible.sum(axis=1, keepdims=True), 1)  # [X, Y]
        centred = self.features - np.einsum("xy,xyd->xd", share, self.features)[:, None]
        target = self.mean_rewards - np.sum(share * self.mean_rewards, axis=1, keepdims=True)
        theta = np.linalg.lstsq(centred[possible], target[possible], rcond=None)[0]
        residual = np.where(possible, target - centred @ theta, 0.0)  # mean 0 over each prompt's possible responses
        return float(np.max(np.ptp(residual, axis=1)))

    def feature_norm(self) -> float:
        """Largest |phi(x, y)|; THEORY assumes at most 1."""
        return float(np.max(np.linalg.norm(self.features, axis=-1)))

    def _policy(self, policy: FloatArray) -> FloatArray:
        table = _array("policy", policy, 2)
        if table.shape != self.base_probs.shape:
            raise InputError(f"policy: expected a table of shape {self.base_probs.shape}, got {table.shape}")
        _check_probabilities("policy", table)
        return table


def _log(probs: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probs))


def _array(name: str, value: Any, ndim: int) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise InputError(f"{name}: expected a non-empty array with {ndim} axes, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name}: expected finite numbers, got {np.sum(~np.isfinite(array))} NaN or infinite entries")
    return array


def _check_probabilities(name: str, array: FloatArray) -> None:
    sums = array.sum(axis=-1)
    if np.any(array < 0.0) or np.max(np.abs(sums - 1.0)) > 1e-9:
        raise InputError(
            f"{name}: expected non-negative rows that sum to 1, got minimum {array.min():.3g} and sums "
            f"{sums.min():.9g} .. {sums.max():.9g}: normalise them"
        )
