"""Modifiers: an exact environment in, another one out, still exact; they can be chained in any order (TESTBEDS).

Each has a random stream of its own for its ``seed``. None costs a draw or a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spannerlm.environments.parts import check_count, check_number, check_share, generator
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray
from spannerlm.rewards import NoisyReward, call_reward


def misspecified(env: TabularEnvironment, zeta: float, *, seed: int = 0) -> TabularEnvironment:
    """Mean rewards moved by +-zeta beta, each response by a random sign: log-densities of pi* by +-zeta (TESTBEDS).

    `realizability_gap` of a realizable environment is then proportional to zeta: 2 zeta beta, up to twice that where
    few responses decide a direction of theta (decoys), as least squares is not best in the largest error. Raises
    `InputError` where zeta < 0, or where the features can express the moves: the gap would be below zeta beta.
    """
    check_number("zeta", zeta)
    signs = generator("misspecified", seed).choice(np.array([-1.0, 1.0]), env.mean_rewards.shape)
    gap = replace(env, mean_rewards=signs).realizability_gap()
    if zeta > 0.0 and gap < 1.0:
        raise InputError(
            f"misspecified: expected features that can not express random moves, got {env.dim} dimensions for "
            f"{env.mean_rewards.size} rewards, which leave {gap:.2g} of a spread of 2: take more prompts or responses"
        )
    return replace(env, mean_rewards=env.mean_rewards + zeta * env.beta * signs)


def prompt_intercepts(env: TabularEnvironment, std: float, *, seed: int = 0) -> TabularEnvironment:
    """A constant c(x) ~ N(0, std^2), in reward units, added to all rewards of prompt x.

    Optimum, regret, coverage and realizability do not change (THEORY 1); every value grows by E_x c(x).
    """
    check_number("std", std)
    shifts = std * generator("prompt-intercepts", seed).standard_normal((len(env.prompt_probs), 1))
    return replace(env, mean_rewards=env.mean_rewards + shifts)


def irrelevant_directions(
    env: TabularEnvironment, extra: int, *, rare: float | None = None, scale: float = 1.0, seed: int = 0
) -> TabularEnvironment:
    """``extra`` more feature dimensions that the reward ignores; values and coverage do not change.

    Without ``rare`` each response gets a random vector of norm ``scale`` there. With it, a share ``rare`` of each
    response's mass becomes a twin of equal reward, response 2y + 1 beside 2y, which alone carries ``scale`` times one
    of the new axes, drawn per twin: rare directions not worth a label. All features are divided by sqrt(1 + scale^2),
    so that norms of at most 1 remain so. Raises `InputError` unless extra >= 1, 0 < rare < 1, scale > 0.
    """
    check_count("extra", extra)
    check_number("scale", scale, strictly=True)
    rng = generator("irrelevant-directions", seed)
    shape = env.base_probs.shape
    if rare is None:
        added = rng.standard_normal((*shape, extra))
        added /= np.linalg.norm(added, axis=-1, keepdims=True)
    else:
        check_share("rare", rare)
        env = _split(env, [1.0 - rare, rare])
        added = np.zeros((shape[0], 2 * shape[1], extra))
        added[:, 1::2] = np.eye(extra)[rng.integers(extra, size=shape)]
    features = np.concatenate([env.features, scale * added], axis=-1) / np.sqrt(1.0 + scale**2)
    return replace(env, features=features)


def rotated(env: TabularEnvironment, *, seed: int = 0) -> TabularEnvironment:
    """Features times one random orthogonal matrix [d, d]; nothing else changes."""
    from scipy.stats import ortho_group  # takes as long to import as the rest of the package

    turn: FloatArray = ortho_group.rvs(env.dim, random_state=generator("rotated", seed))
    return replace(env, features=env.features @ turn)


def duplicated(env: TabularEnvironment, copies: int) -> TabularEnvironment:
    """Each response y split into ``copies`` equal ones, ``copies`` y and those that follow: the same features and mean
    reward, equal shares of its mass. Values and coverage do not change."""
    check_count("copies", copies)
    return _split(env, [1.0 / copies] * copies)


def heavy_noise(env: TabularEnvironment, factor: float) -> TabularEnvironment:
    """Label noise ``factor`` times as large; comparisons have noise of their own and stay as they are."""
    check_number("factor", factor)
    return replace(env, noise_std=factor * env.noise_std)


def heteroscedastic(env: TabularEnvironment, spread: float, *, seed: int = 0) -> HeteroscedasticEnvironment:
    """Noise whose standard deviation differs by response: log-uniform over a range whose ends have the ratio
    ``spread``.

    The mean square over base draws stays noise_std^2. Applied twice, the ratios multiply. Raises `InputError` unless
    spread >= 1.
    """
    check_number("spread", spread, least=1.0)
    logs = np.log(spread) * generator("heteroscedastic", seed).random(env.base_probs.shape)
    shape = np.exp(logs) * (env.noise_shape if isinstance(env, HeteroscedasticEnvironment) else 1.0)
    mass = env.prompt_probs[:, None] * env.base_probs
    shape /= np.sqrt(np.sum(mass * shape**2) / mass.sum())
    return HeteroscedasticEnvironment(
        env.prompt_probs,
        env.base_probs,
        env.features,
        env.mean_rewards,
        beta=env.beta,
        noise_std=env.noise_std,
        noise_shape=shape,
    )


@dataclass(frozen=True, eq=False)
class HeteroscedasticEnvironment(TabularEnvironment):
    """An environment with noise of its own for each response: standard deviation noise_std * noise_shape[x, y].

    Built as `TabularEnvironment` is, with ``noise_shape`` in addition; `dataclasses.replace` keeps it. Raises
    `InputError` where its shape is wrong or an entry negative or not finite.
    """

    noise_shape: FloatArray
    """[X, Y] factors of noise_std; their mean square over base draws is 1 where `heteroscedastic` made them."""

    def __init__(self, *arrays: Any, noise_shape: Any, **options: Any) -> None:
        super().__init__(*arrays, **options)
        shape = np.asarray(noise_shape, dtype=np.float64)
        if shape.shape != self.base_probs.shape:
            raise InputError(f"noise_shape: expected shape {self.base_probs.shape} of base_probs, got {shape.shape}")
        if not np.all(np.isfinite(shape) & (shape >= 0.0)):
            raise InputError(f"noise_shape: expected finite numbers of at least 0, got {shape.min()} .. {shape.max()}")
        object.__setattr__(self, "noise_shape", shape)

    def reward(self, seed: int) -> NoisyReward:
        """The rater: the noise that the plain environment would give a label of this key, times ``noise_shape``."""
        return ShapedNoise(self._mean_reward, self.noise_std, seed, shape=self._factors)

    def _factors(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(self.noise_shape[int(x), int(y)]) for x, y in zip(prompts, completions, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ShapedNoise(NoisyReward):
    """A simulated rater whose noise is scaled by a function of what is labelled."""

    shape: Callable[[Sequence[str], Sequence[str]], list[float]]
    """(prompts, responses) -> [k] factors of ``std``."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, replicate: Sequence[int], **columns: Any
    ) -> list[float | None]:
        """[k] noisy labels; None stays None."""
        means = call_reward(self.mean, prompts, completions, columns)
        noise = NoisyReward(_zeros, self.std, self.seed)(prompts, completions, replicate=replicate)
        factors = self.shape(prompts, completions)
        return [None if m is None else m + f * (e or 0.0) for m, f, e in zip(means, factors, noise, strict=True)]


def _zeros(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:  # noqa: ARG001 the names are the protocol
    return [0.0] * len(completions)


def _split(env: TabularEnvironment, shares: Sequence[float]) -> TabularEnvironment:
    """Each response y replaced by len(shares) equal ones next to each other, which share its mass as told."""
    parents: IntArray = np.repeat(np.arange(env.base_probs.shape[1]), len(shares))
    base = env.base_probs[:, parents] * np.tile(shares, env.base_probs.shape[1])
    changes: dict[str, Any] = {"features": env.features[:, parents], "mean_rewards": env.mean_rewards[:, parents]}
    if isinstance(env, HeteroscedasticEnvironment):
        changes["noise_shape"] = env.noise_shape[:, parents]
    return replace(env, base_probs=base, **changes)


MODIFIERS: dict[str, Callable[..., TabularEnvironment]] = {
    "misspecified": misspecified,
    "irrelevant-directions": irrelevant_directions,
    "duplicated": duplicated,
    "rotated": rotated,
    "prompt-intercepts": prompt_intercepts,
    "heteroscedastic": heteroscedastic,
    "heavy-noise": heavy_noise,
}
"""Name -> modifier, in the order in which `environment` applies them."""
