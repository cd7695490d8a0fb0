"""`Pool`: the draws of one model, and what is known of their rewards, that every part of a coverage report rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.policy import padded
from spannerlm.records import Draws, FloatArray, IntArray

CONFIDENCE = 0.95
"""Of every interval of a report."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Rewards bought for some of the draws, or known from before."""

    prompts: IntArray
    """[k] row of the pool's prompt."""
    rows: IntArray
    """[k] row of that prompt's draws."""
    values: FloatArray
    """[k] rewards, noisy."""
    random: bool
    """Whether the responses labelled are random draws of the base model (one label for each draw chosen), so that
    rates may be estimated from them. Labels that an explorer chose are not."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Draws of one model, prompt by prompt, and what is known of their rewards."""

    prompts: tuple[str, ...]
    """[X] the prompts' texts."""
    draws: tuple[Draws, ...]
    """[X] one record per prompt, in their order: responses, counts [n_x], features [n_x, d] of all maps side by side.
    Every prompt has the same number of draws."""
    maps: Mapping[str, slice]
    """Name of each feature map under test -> its columns."""
    rewards: tuple[FloatArray, ...] | None = None
    """[X] of [n_x]: true mean reward of each distinct response, nan where it was declined; None where not free."""
    noise_std: float = 0.0
    """Standard deviation of the noise that a label of a free reward has."""
    parts: Mapping[str, tuple[FloatArray, ...]] = field(default_factory=dict)
    """Name of a part of the reward -> its values, as ``rewards``; free rewards only."""
    labels: Labels | None = None
    logprobs: tuple[FloatArray, ...] | None = None
    """[X] of [n_x]: log pi_ref(y | x) in nats; None where it is not known."""
    tokens: tuple[IntArray, ...] | None = None
    """[X] of [n_x]: tokens of each response; None where they are not known."""

    def __post_init__(self) -> None:
        sizes = {int(d.counts.sum()) for d in self.draws}
        if not self.draws or len(self.draws) != len(self.prompts) or len(sizes) != 1 or 0 in sizes:
            raise InputError(
                f"pool: expected as many draws for each of {len(self.prompts)} prompts, got {len(self.draws)} records "
                f"of {sorted(sizes)[:5]} draws: draw the same number for each"
            )
        if not (self.noise_std >= 0.0 and math.isfinite(self.noise_std)):
            raise InputError(f"noise_std: expected a standard deviation, got {self.noise_std}: give 0 where none is")
        rows = self.rewards if self.rewards is not None else ()
        whole = self.rewards is None or [len(r) for r in rows] == [len(d.counts) for d in self.draws]
        if not whole or any(np.isinf(r).any() for r in rows):
            raise InputError(
                "rewards: expected a number for each distinct response of each prompt, nan where it was declined, got "
                "infinite ones or other shapes: grade the responses in the order of the draws"
            )
        if self.labels is not None and not np.all(np.isfinite(self.labels.values)):
            raise InputError("labels: expected finite rewards, got nan or infinite ones: leave the declined ones out")

    @property
    def n(self) -> int:
        """Draws per prompt."""
        return int(self.draws[0].counts.sum())

    @property
    def base(self) -> FloatArray:
        """[X, n] how often each distinct response was drawn, as a share; rows are filled up with zeros."""
        return padded([d.counts / d.counts.sum() for d in self.draws])

    def features(self, name: str) -> tuple[FloatArray, ...]:
        """[X] of [n_x, d]: the features of one map."""
        return tuple(d.features[:, self.maps[name]] for d in self.draws)

    def counts(self) -> tuple[IntArray, ...]:
        """[X] of [n_x]: how often each distinct response was drawn."""
        return tuple(d.counts for d in self.draws)


def pool_of(env: TabularEnvironment, n: int, *, graded: bool = True, rng: np.random.Generator) -> Pool:
    """A pool of ``n`` draws for each prompt of an exact environment; ``graded``: with the true mean rewards.

    Cost: n X draws, no labels.
    """
    draws = env.draw(range(len(env.prompt_probs)), n, rng=rng)
    rewards = tuple(env.mean_rewards[d.prompt, np.array(d.responses, dtype=np.int64)] for d in draws)
    return Pool(
        prompts=tuple(env.prompts),
        draws=draws,
        maps={"features": slice(0, env.dim)},
        rewards=rewards if graded else None,
        noise_std=env.noise_std,
    )


def random_labels(pool: Pool, env: TabularEnvironment, k: int, *, rng: np.random.Generator) -> Labels:
    """Noisy labels of ``k`` of the pool's draws, spread evenly over prompts, without replacement. Cost: k labels."""
    prompts = np.sort(np.resize(rng.permutation(len(pool.prompts)), k))
    rows = np.empty(k, dtype=np.int64)
    for x in np.unique(prompts):
        mine = np.flatnonzero(prompts == x)
        order = rng.permutation(np.repeat(np.arange(len(pool.draws[x].counts)), pool.draws[x].counts))
        rows[mine] = np.resize(order, len(mine))
    names = [int(pool.draws[x].responses[i]) for x, i in zip(prompts, rows, strict=True)]
    means = env.mean_rewards[[pool.draws[x].prompt for x in prompts], names]
    return Labels(prompts, rows, means + rng.normal(0.0, env.noise_std, k), random=True)
