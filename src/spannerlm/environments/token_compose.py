"""Modifiers of token environments: an exact one in, another one out, still exact (TESTBEDS "Token level").

Each has a random stream of its own for its ``seed``. None costs a draw or a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import logsumexp

from spannerlm.environments.parts import check_count, check_number, generator
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_parts import all_paths
from spannerlm.errors import InputError
from spannerlm.records import FloatArray

SHARE = 0.9
"""c of the action farthest from the middle: how much of its feature lies along theta (TESTBEDS)."""
BLOCK_LIMIT = 4096
"""Actions A^m of a block up to which it is built."""


def blocks(env: TokenEnvironment, m: int) -> TokenEnvironment:
    """``m`` steps made one: H / m steps of A^m actions, ``m`` times the tokens per action, features [m d] that have
    phi of the block's j-th step in the j-th block of d.

    The action (a_1 .. a_m) has the index that these digits write in base A. Sequences, their rewards, features and
    noise stay the same, and so do optimum, values, regrets and C_cov; C_cond grows to at most C_cond^m, and with it
    the tokens per answer. Locks stay realizable. A random token MDP does not, as the later normalizers of a block
    depend on its earlier actions: put `random_features` on top. Raises `InputError` unless m divides H and A^m <= 4096.
    """
    check_count("m", m)
    if env.horizon % m or env.actions**m > BLOCK_LIMIT:
        raise InputError(
            f"m: expected a divisor of H = {env.horizon} with A^m of at most {BLOCK_LIMIT}, got {m} where A = "
            f"{env.actions}: take another m or horizon"
        )
    paths = all_paths(env.actions, m)  # [A^m, m]
    shape = env.horizon // m, env.states, len(paths)
    after = np.empty(shape, dtype=np.int64)
    base, rewards, features = np.ones(shape), np.zeros(shape), np.empty((*shape, m, env.step_dim))
    for block in range(shape[0]):
        state = np.repeat(np.arange(env.states)[:, None], len(paths), axis=1)  # [S, A^m]
        for place in range(m):
            here = block * m + place, state, paths[:, place]
            base[block] *= env.base_probs[here]
            rewards[block] += env.step_rewards[here]
            features[block, :, :, place] = env.features[here]
            state = env.next_state[here]
        after[block] = state
    return replace(
        env,
        next_state=after,
        base_probs=base / base.sum(axis=-1, keepdims=True),  # m rounding errors, where an environment allows one
        features=features.reshape(*shape, m * env.step_dim),
        step_rewards=rewards,
        tokens_per_action=m * env.tokens_per_action,
    )


def random_features(env: TokenEnvironment, dim: int, *, seed: int = 0) -> TokenEnvironment:
    """Other features [``dim``], random ones under which the environment is realizable (TESTBEDS, random token MDP).

    Per step: q = Q* - midrange(Q*) over the actions of each state, U a random unit vector, z random unit vectors
    orthogonal to U, phi = c U + sqrt(1 - c^2) z with c = .9 q / max |q|: unit features, and Q* = <theta_h, phi> plus
    a function of the state where theta_h = U max |q| / .9. Everything but the features stays as it is. Raises
    `InputError` unless ``dim`` is at least 2.
    """
    check_count("dim", dim, least=2)
    rng = generator("random-features", seed)
    return replace(env, features=np.stack([_linear(q, dim, rng) for q in env.action_values]))


def _linear(values: FloatArray, dim: int, rng: np.random.Generator) -> FloatArray:
    """[S, A, dim] unit features of one step, in which ``values`` [S, A] are linear but for a function of the state."""
    middle = 0.5 * (values.max(axis=1, keepdims=True) + values.min(axis=1, keepdims=True))
    q = values - middle
    largest = np.max(np.abs(q))
    share = SHARE * q / (largest if largest > 0.0 else 1.0)
    axis = rng.standard_normal(dim)
    axis /= np.linalg.norm(axis)
    across = rng.standard_normal((*values.shape, dim))
    across -= (across @ axis)[..., None] * axis
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    across -= (across @ axis)[..., None] * axis  # twice: what rounding left of the axis is seen in the gap
    features: FloatArray = share[..., None] * axis + np.sqrt(1.0 - share**2)[..., None] * across
    return features


def misspecified(env: TokenEnvironment, zeta: float, *, seed: int = 0) -> TokenEnvironment:
    """Q*_h(s, a) moved by +-zeta beta, a random sign each, and with it log pi*_h by +-zeta but for its normalizer.

    Step rewards are those of which the moved Q* is the optimum's: each makes up for what the steps after it have
    gained. At H = 1 this is the modifier of tables. `realizability_gap` of a realizable environment is proportional
    to zeta, at least zeta beta at its largest step. Raises `InputError` where zeta < 0, or where the features can
    express the moves at every step.
    """
    check_number("zeta", zeta)
    signs = generator("misspecified", seed).choice(np.array([-1.0, 1.0]), env.base_probs.shape)
    gap = max(env.step_table(step, signs[step]).realizability_gap() for step in range(env.horizon))
    if zeta > 0.0 and gap < 1.0:
        raise InputError(
            f"misspecified: expected features that can not express random moves, got {env.step_dim} dimensions for "
            f"{signs[0].size} values a step, which leave {gap:.2g} of a spread of 2: take more states or actions"
        )
    moved = env.action_values + zeta * env.beta * signs
    rewards, after = np.empty_like(moved), np.zeros(env.states)
    for step in reversed(range(env.horizon)):
        rewards[step] = moved[step] - after[env.next_state[step]]
        after = env.beta * logsumexp(moved[step] / env.beta, axis=1, b=env.base_probs[step])
    return replace(env, step_rewards=rewards)


TOKEN_MODIFIERS: dict[str, Callable[..., TokenEnvironment]] = {
    "blocks": blocks,
    "random-features": random_features,
    "misspecified": misspecified,
}
"""Name -> modifier, in the order in which `token_environment` applies them."""
