"""The token families: locks whose answer is a sequence of right actions, and random token MDPs (TESTBEDS).

Labels have noise .2, rewards of a sequence lie in about 0 .. 1, and beta is such that the reward of one step, or of the
whole where it comes at the end, is worth a factor of 9, or of 9^H. Every prompt is a latent state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spannerlm.environments.factory import built
from spannerlm.environments.parts import check_count, check_number, generator
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_compose import TOKEN_MODIFIERS, random_features
from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray


def additive_lock(
    horizon: int = 8, actions: int = 2, *, states: int = 8, noise_std: float = 0.2, seed: int = 0
) -> TokenEnvironment:
    """additive lock(H, A): index = (a + c_h(s)) mod A, phi_h = e_index, r = sum_h w 1{index = g_h}, uniform pi_ref,
    w = 1/H, beta = w / ln 9; the index moves the state, by a random permutation of its own at each step.

    C_cond = 9A / (A + 8) and C_cov = C_cond^H. Only inference is exponential here: labels of random sequences learn it
    too. d = A.
    """
    _check(horizon, actions, states)
    rng = generator("additive-lock", seed)
    shape = horizon, states, actions
    index, goal = _offsets(shape, rng), rng.integers(actions, size=horizon)
    rewards = (index == goal[:, None, None]) / horizon
    return _uniform(_moves(index, states, rng), np.eye(actions)[index], rewards, states, noise_std)


def gated_lock(
    horizon: int = 8, actions: int = 2, *, states: int = 8, noise_std: float = 0.2, seed: int = 0
) -> TokenEnvironment:
    """gated lock(H, A): good persists while index = g_h, index = (a + c_h(s)) mod A; reward w for each step after
    which good persists, phi = e_{index + A bad}, uniform pi_ref, w = 1/H, beta = w / ln 9.

    Half of the ``states`` are good, the prompts among them; the others are bad for ever. Within its half the index
    moves the state. C_cov is about A^H, C_cond below A. d = 2A. Raises `InputError` where ``states`` is odd.
    """
    gate = _gate("gated-lock", horizon, actions, states, seed)
    return _uniform(gate.next_state, gate.features, gate.persists / horizon, states // 2, noise_std)


def delayed_lock(
    horizon: int = 8, actions: int = 2, *, states: int = 8, noise_std: float = 0.2, seed: int = 0
) -> TokenEnvironment:
    """delayed lock(H, A): as the gated lock, but reward 1 only where good persists to the end; beta = 1/(H ln 9)."""
    gate = _gate("delayed-lock", horizon, actions, states, seed)
    rewards = np.zeros(gate.persists.shape)
    rewards[-1] = gate.persists[-1]
    return _uniform(gate.next_state, gate.features, rewards, states // 2, noise_std)


def embedded_lock(
    horizon: int = 4, actions: int = 20, dim: int = 6, *, states: int = 8, noise_std: float = 0.2, seed: int = 0
) -> TokenEnvironment:
    """embedded lock(H, A, d): as the additive lock, with random unit embeddings E [A, d] of the tokens, the same at
    every step: phi_h(s, a) = E[perm_{h,s}(a)], r = sum_h w <E_{g_h}, phi_h>."""
    _check(horizon, actions, states)
    check_count("dim", dim)
    rng = generator("embedded-lock", seed)
    shape = horizon, states, actions
    tokens = rng.standard_normal((actions, dim))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    index = rng.permuted(np.broadcast_to(np.arange(actions), shape), axis=-1)
    features = tokens[index]
    goals = tokens[rng.integers(actions, size=horizon)]  # [H, d]
    rewards = np.einsum("hsad,hd->hsa", features, goals) / horizon
    return _uniform(_moves(index, states, rng), features, rewards, states, noise_std)


def random_token_mdp(
    horizon: int = 4,
    actions: int = 3,
    dim: int = 6,
    *,
    states: int = 8,
    concentration: float = 1.0,
    noise_std: float = 0.2,
    seed: int = 0,
) -> TokenEnvironment:
    """random token MDP: random moves, step rewards uniform in [0, w], Dirichlet(``concentration``) pi_ref and initial
    states, and `random_features`, under which it is realizable; w = 1/H, beta = w / ln 9."""
    _check(horizon, actions, states)
    check_count("dim", dim, least=2)
    check_number("concentration", concentration, strictly=True)
    rng = generator("random-token-mdp", seed)
    shape = horizon, states, actions
    env = TokenEnvironment(
        rng.integers(states, size=shape),
        rng.dirichlet(np.full(actions, concentration), size=shape[:2]),
        np.zeros((*shape, 1)),
        rng.uniform(0.0, 1.0 / horizon, size=shape),
        rng.dirichlet(np.full(states, concentration)),
        beta=_beta(horizon),
        noise_std=noise_std,
    )
    return random_features(env, dim, seed=seed)


@dataclass(frozen=True, eq=False)
class _Gate:
    next_state: IntArray
    features: FloatArray
    """[H, S, A, 2A]"""
    persists: FloatArray
    """[H, S, A] 1 where the state is good and stays so."""


def _gate(name: str, horizon: int, actions: int, states: int, seed: int) -> _Gate:
    """What the gated and the delayed lock share: states below ``states`` / 2 are good, and lost by one wrong index."""
    _check(horizon, actions, states)
    if states % 2:
        raise InputError(f"states: expected an even number, half of them good, got {states}")
    rng = generator(name, seed)
    shape = horizon, states, actions
    index, goal = _offsets(shape, rng), rng.integers(actions, size=horizon)
    half = states // 2
    bad = (np.arange(states) >= half)[:, None]  # [S, 1]
    persists = ~bad & (index == goal[:, None, None])
    after = _moves(index, half, rng) + half * ~persists
    return _Gate(after, np.eye(2 * actions)[index + actions * bad], persists.astype(np.float64))


def _offsets(shape: tuple[int, int, int], rng: np.random.Generator) -> IntArray:
    """[H, S, A] index (a + c_h(s)) mod A with random c."""
    horizon, states, actions = shape
    return (np.arange(actions) + rng.integers(actions, size=(horizon, states, 1))) % actions


def _moves(index: IntArray, contexts: int, rng: np.random.Generator) -> IntArray:
    """[H, S, A] context after ``index`` [H, S, A] at context s mod ``contexts``: a random permutation per step and
    index, so that whatever the indices are, all contexts stay equally likely."""
    horizon, states, actions = index.shape
    orders = rng.permuted(np.broadcast_to(np.arange(contexts), (horizon, actions, contexts)), axis=-1)
    moved: IntArray = orders[np.arange(horizon)[:, None, None], index, np.arange(states)[:, None] % contexts]
    return moved


def _uniform(
    next_state: IntArray, features: FloatArray, rewards: FloatArray, prompts: int, noise_std: float
) -> TokenEnvironment:
    """The lock of these parts: uniform pi_ref, the first ``prompts`` states equally likely at the start."""
    horizon, states, actions = rewards.shape
    base = np.full(rewards.shape, 1.0 / actions)
    rho = np.where(np.arange(states) < prompts, 1.0 / prompts, 0.0)
    return TokenEnvironment(next_state, base, features, rewards, rho, beta=_beta(horizon), noise_std=noise_std)


def _beta(horizon: int) -> float:
    """w / ln 9 with w = 1/H."""
    return float(1.0 / (horizon * np.log(9.0)))


def _check(horizon: int, actions: int, states: int) -> None:
    for name, count in (("horizon", horizon), ("actions", actions), ("states", states)):
        check_count(name, count)


TOKEN_FAMILIES: dict[str, Callable[..., TokenEnvironment]] = {
    "additive-lock": additive_lock,
    "gated-lock": gated_lock,
    "delayed-lock": delayed_lock,
    "embedded-lock": embedded_lock,
    "random-token-mdp": random_token_mdp,
}
"""Name -> function that makes the token environment from its parameters."""


def token_environment(
    name: str, /, *, modifiers: Mapping[str, Mapping[str, Any]] | None = None, **parameters: Any
) -> TokenEnvironment:
    """The token environment of that family, with these parameters and modifiers; all of them may come from JSON.

    ``modifiers`` maps names of `TOKEN_MODIFIERS` to their parameters, applied in the order of that table. A modifier
    that takes a seed and gets none uses the family's. ``token_environment("gated-lock", horizon=16, seed=3,
    modifiers={"blocks": {"m": 2}})``

    `InputError` names the known families, modifiers or parameters, or what is wrong with a value.
    """
    return built("token environment", name, TOKEN_FAMILIES, TOKEN_MODIFIERS, modifiers or {}, parameters)
