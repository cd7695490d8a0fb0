"""`TokenEnvironment`: responses built step by step in a latent state, everything known exactly (THEORY 5, TESTBEDS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from spannerlm.coverage import coverage_constant
from spannerlm.environments.parts import check_count
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.environments.token_parts import (
    all_paths,
    check_probabilities,
    checked_array,
    checked_states,
    log_probs,
    parsed,
    sequence_text,
    walk,
)
from spannerlm.errors import InputError
from spannerlm.policy import kl_divergence, tilt
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.rewards import NoisyComparison, NoisyReward

LIMIT = 4096
"""Sequences per prompt up to which tables over all of them are made unless more are asked for."""


@dataclass(frozen=True, eq=False)
class TokenEnvironment:
    """Sequences of H actions that know their optimum, regret and coverage, by dynamic programming over latent states.

    The prompt is the index of the initial state, and transitions are deterministic: a prefix fixes its latent state,
    which the learner never sees. A complete sequence is the text of its actions with blanks between them, "3 0 1". Its
    mean reward is the sum of its step rewards, its feature [H d] has phi_h in the h-th block of d, and its label is
    its mean reward plus noise: nothing is revealed on the way. Everything costs time H S A, never A^H.

    Costs: a complete sequence is one draw of H ``tokens_per_action`` tokens, an extension ``tokens_per_action`` tokens
    per draw. The environment counts nothing: that is for the run.

    Any finite features and rewards are accepted: norms and realizability are reported, never enforced. Raises
    `InputError` on wrong shapes, negative or unnormalised probabilities, states that there are not, beta <= 0.
    """

    next_state: IntArray
    """[H, S, A] latent state after an action; what follows the last step is never used."""
    base_probs: FloatArray
    """[H, S, A] pi_ref,h(a | s)."""
    features: FloatArray
    """[H, S, A, d] phi_h(s, a)."""
    step_rewards: FloatArray
    """[H, S, A] mean reward of a step."""
    initial_probs: FloatArray
    """[S] rho: the probability that a prompt is this state."""
    beta: float
    noise_std: float
    """Standard deviation of a label, in reward units."""
    tokens_per_action: int = 1
    """Tokens that one action stands for."""

    def __init__(
        self,
        next_state: Any,
        base_probs: Any,
        features: Any,
        step_rewards: Any,
        initial_probs: Any,
        *,
        beta: float,
        noise_std: float,
        tokens_per_action: int = 1,
    ) -> None:
        base = checked_array("base_probs [H, S, A]", base_probs, (None, None, None))
        h, s, a = base.shape
        check_count("tokens_per_action", tokens_per_action)
        values = {
            "next_state": checked_states("next_state [H, S, A]", next_state, (h, s, a)),
            "base_probs": base,
            "features": checked_array("features [H, S, A, d]", features, (h, s, a, None)),
            "step_rewards": checked_array("step_rewards [H, S, A]", step_rewards, (h, s, a)),
            "initial_probs": checked_array("initial_probs [S]", initial_probs, (s,)),
            "beta": float(beta),
            "noise_std": float(noise_std),
            "tokens_per_action": int(tokens_per_action),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_probabilities("base_probs", self.base_probs)
        check_probabilities("initial_probs", self.initial_probs)
        if not (self.beta > 0.0 and np.isfinite(self.beta)):
            raise InputError(f"beta: expected a positive KL temperature, got {self.beta}")
        if not (self.noise_std >= 0.0 and np.isfinite(self.noise_std)):
            raise InputError(f"noise_std: expected a non-negative number, got {self.noise_std}")

    # --- sizes ------------------------------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """H, the actions of a complete sequence."""
        return int(self.base_probs.shape[0])

    @property
    def states(self) -> int:
        """S, latent states, which are the prompts too."""
        return int(self.base_probs.shape[1])

    @property
    def actions(self) -> int:
        """A, actions at each step."""
        return int(self.base_probs.shape[2])

    @property
    def step_dim(self) -> int:
        """Dimension d of phi_h(s, a), what `extend` returns."""
        return int(self.features.shape[-1])

    @property
    def dim(self) -> int:
        """Dimension H d of a complete sequence's feature, what `draw` returns."""
        return self.horizon * self.step_dim

    @property
    def prompt_probs(self) -> FloatArray:
        """[S] rho under the name that tables have for it."""
        return self.initial_probs

    @cached_property
    def prompts(self) -> Sequence[str]:
        """[S] the prompts' names: the indices of the initial states."""
        return [str(x) for x in range(self.states)]

    # --- the oracle and the raters ----------------------------------------------------------------------------------

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` complete sequences each, kept as counts, with features [k, H d].

        Cost: n m draws of H ``tokens_per_action`` tokens. Time: H A per distinct prefix, never A^H.
        """
        records = []
        for x in prompts:
            paths = np.zeros((1, 0), dtype=np.int64)
            states, counts = np.array([self._prompt(x)]), np.array([n])
            for law, after in zip(self._laws, self.next_state, strict=True):
                split = rng.multinomial(counts, law[states])  # [k, A]
                rows, chosen = np.nonzero(split)
                paths = np.concatenate([paths[rows], chosen[:, None]], axis=1)
                states, counts = after[states[rows], chosen], split[rows, chosen]
            phi = self.sequence_features(np.full(len(paths), x), paths)
            records.append(Draws(int(x), tuple(map(sequence_text, paths)), counts, phi))
        return tuple(records)

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        """[m] records of ``n`` next actions each, after prompt i and prefix i, with step features [k, d].

        A prefix holds fewer than H actions, each as its text; a response is the text of the one action drawn. Cost:
        n m draws of ``tokens_per_action`` tokens. Raises `InputError` for a prefix that is none, or complete already.
        """
        steps = np.array([len(prefix) for prefix in prefixes], dtype=np.int64)
        starts = np.array([self._prompt(x) for x in prompts], dtype=np.int64)
        if len(starts) != len(steps):
            raise InputError(f"prefixes: expected one per prompt, {len(starts)} in all, got {len(steps)}")
        if np.any(steps >= self.horizon):
            raise InputError(f"prefix: expected fewer than {self.horizon} actions, got {steps.max()}: none can follow")
        states = np.empty_like(starts)
        for length in set(steps.tolist()):
            rows = np.flatnonzero(steps == length)
            paths = parsed([prefixes[row] for row in rows.tolist()], length, self.actions)
            states[rows] = walk(self.next_state, starts[rows], paths)[:, -1]
        records = []
        drawn = rng.multinomial(n, self._laws[steps, states])  # [m, A]
        for x, prefix, h, s, counts in zip(starts, prefixes, steps, states, drawn, strict=True):
            seen = np.flatnonzero(counts)
            phi = self.features[h, s, seen]
            records.append(Draws(int(x), tuple(map(str, seen)), counts[seen], phi, tuple(prefix)))
        return tuple(records)

    def joined(self, prompt: int, segments: Sequence[str]) -> str:  # noqa: ARG002
        """The text of a sequence of these actions, whatever the prompt."""
        return " ".join(segments)

    def complete(self, prompt: int, segments: Sequence[str]) -> bool:  # noqa: ARG002
        """Whether these are all H actions, whatever the prompt."""
        return len(segments) == self.horizon

    def tokens(self, draws: Draws) -> int:
        """Tokens that these draws took: of one action where they have a prefix, else of H."""
        steps = self.horizon if draws.prefix is None else 1
        return int(draws.counts.sum()) * steps * self.tokens_per_action

    def reward(self, seed: int) -> NoisyReward:
        """The rater of complete sequences: sum of step rewards plus noise keyed by (seed, prompt, text, replicate)."""
        return NoisyReward(self._mean_reward, self.noise_std, seed)

    def comparison(self, seed: int, scale: float = 1.0) -> NoisyComparison:
        """The rater of pairs of complete sequences: prefers y with probability sigmoid((r(y) - r(y')) / scale)
        (THEORY 6). ``noise_std`` has no part in it. Raises `InputError` unless the scale is positive."""
        return NoisyComparison(self._mean_reward, scale, seed)

    def _mean_reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        paths = parsed([text.split(" ") for text in completions], self.horizon, self.actions)
        starts = np.array([self._prompt(int(x)) for x in prompts], dtype=np.int64)
        return [float(reward) for reward in self._along(self.step_rewards, starts, paths).sum(axis=1)]

    def sequence_features(self, prompts: IntArray, paths: IntArray) -> FloatArray:
        """[k, H d] features of complete sequences ``paths`` [k, H] of prompts [k]: phi_h in the h-th block of d."""
        return self._along(self.features, prompts, paths).reshape(len(paths), self.dim)

    def _along(self, array: FloatArray, prompts: IntArray, paths: IntArray) -> FloatArray:
        """[k, H, ...] entries of an array [H, S, A, ...] along complete sequences."""
        states = walk(self.next_state, prompts, paths)[:, :-1]
        found: FloatArray = array[np.arange(self.horizon), states, paths]
        return found

    def _prompt(self, x: int) -> int:
        if not 0 <= x < self.states:
            raise InputError(f"prompt: expected one of 0 .. {self.states - 1}, got {x}")
        return int(x)

    @cached_property
    def _laws(self) -> FloatArray:
        """[H, S, A] pi_ref, its rows summing to 1 exactly: what is missing must not fall to an impossible action."""
        laws: FloatArray = self.base_probs / self.base_probs.sum(axis=-1, keepdims=True)
        return laws

    # --- the optimum ------------------------------------------------------------------------------------------------

    @property
    def soft_values(self) -> FloatArray:
        """[H, S] V*_h(s) = beta log E_{a ~ pi_ref} exp(Q*_h(s, a) / beta) (THEORY 5)."""
        return self._solved[1]

    @property
    def action_values(self) -> FloatArray:
        """[H, S, A] Q*_h(s, a): the step's reward plus V*_{h+1} of the state that follows."""
        return self._solved[0]

    @cached_property
    def _solved(self) -> tuple[FloatArray, FloatArray]:
        return self._backward(self.step_rewards)

    def _backward(self, rewards: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Soft backward induction: Q [H, S, A] and V [H, S] of these step rewards."""
        values, after = np.zeros((self.horizon, self.states)), np.zeros(self.states)
        actions = np.zeros_like(self.base_probs)
        for step in reversed(range(self.horizon)):
            actions[step] = rewards[step] + after[self.next_state[step]]
            after = values[step] = self.beta * logsumexp(actions[step] / self.beta, axis=1, b=self.base_probs[step])
        return actions, values

    def optimal_policy(self) -> FloatArray:
        """[H, S, A] pi*_h(a | s), proportional to pi_ref,h exp(Q*_h / beta)."""
        return tilt(self.base_probs, self.action_values, self.beta)

    def tilted(self, scores: FloatArray) -> FloatArray:
        """[H, S, A] the law pi_ref(y | x) exp(sum_h scores_h / beta) / Z(x) of whole sequences, step by step.

        ``scores`` [H, S, A], in reward units: with those of a sequence-level score <theta, phi(y)> in blocks of d, this
        is the sequence-level linear softmax policy (THEORY 1). A step-level one, THEORY 5's, is
        `spannerlm.policy.tilt` of each step.
        """
        checked = checked_array("scores [H, S, A]", scores, self.base_probs.shape)
        return tilt(self.base_probs, self._backward(checked)[0], self.beta)

    def optimal_value(self) -> float:
        """J_beta(pi*) = E_x V*_1(x)."""
        return float(self.initial_probs @ self.soft_values[0])

    # --- policies ---------------------------------------------------------------------------------------------------

    def occupancy(self, policy: FloatArray) -> FloatArray:
        """[H, S] probability that the state before step h is s, under a policy [H, S, A]; each row sums to 1."""
        table = self._policy(policy)
        found = np.zeros((self.horizon, self.states))
        found[0] = self.initial_probs
        for step in range(self.horizon - 1):
            mass = found[step][:, None] * table[step]
            found[step + 1] = np.bincount(self.next_state[step].ravel(), mass.ravel(), minlength=self.states)
        return found

    def value(self, policy: FloatArray) -> float:
        """J_beta of a policy [H, S, A]: expected sum of rewards minus beta times the KL of sequences from pi_ref."""
        table = self._policy(policy)
        expected = np.sum(table * self.step_rewards, axis=-1)
        return self._mean(table, expected - self.beta * kl_divergence(table, self.base_probs))

    def regret(self, policy: FloatArray) -> float:
        """J_beta(pi*) - J_beta(policy) of a policy [H, S, A].

        Computed as beta E sum_h KL(policy_h || pi*_h) along the policy's own sequences: the identity of THEORY 1, which
        spares it the cancellation of a difference of values. inf where the policy leaves the support of pi_ref.
        """
        table = self._policy(policy)
        log_optimal = log_softmax(log_probs(self.base_probs) + self.action_values / self.beta, axis=-1)
        log_ratio = np.subtract(log_probs(table), log_optimal, out=np.zeros_like(table), where=table > 0.0)
        return self._mean(table, self.beta * np.sum(table * log_ratio, axis=-1))

    def _mean(self, table: FloatArray, values: FloatArray) -> float:
        """Expected sum over steps of values [H, S]; what befalls a state that is never visited does not count."""
        visits = self.occupancy(table)
        visited = visits > 0.0
        return float(visits[visited] @ values[visited])

    # --- coverage and realizability ---------------------------------------------------------------------------------

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """[H, S] whether some prefix of positive probability, of a prompt of positive probability, leads there."""
        found = np.zeros((self.horizon, self.states), dtype=np.bool_)
        found[0] = self.initial_probs > 0.0
        for step in range(self.horizon - 1):
            found[step + 1, self.next_state[step][found[step][:, None] & (self.base_probs[step] > 0.0)]] = True
        return found

    def coverage(self) -> float:
        """C_cov = sup over possible prompts and complete sequences of pi* / pi_ref; inf beyond the largest float.

        The ratio is exp((r(y) - V*_1(x)) / beta): a max-plus recursion finds the sequence of largest reward.
        """
        best = np.zeros(self.states)
        for step in reversed(range(self.horizon)):
            reward = self.step_rewards[step] + best[self.next_state[step]]
            best = np.max(reward, axis=1, where=self.base_probs[step] > 0.0, initial=-np.inf)
        gain = (best - self.soft_values[0]) / self.beta
        with np.errstate(over="ignore"):
            return float(np.exp(np.max(gain[self.initial_probs > 0.0])))

    def step_coverages(self) -> FloatArray:
        """[H] sup over the possible prefixes of each step of pi*_h / pi_ref,h."""
        steps = zip(self.optimal_policy(), self.base_probs, self.reachable, strict=True)
        return np.array([coverage_constant(*step) for step in steps])

    def step_coverage(self) -> float:
        """C_cond, the largest of `step_coverages` (THEORY 1)."""
        return float(np.max(self.step_coverages()))

    def realizability_gap(self) -> FloatArray:
        """[H] largest difference of Q*_h, over possible actions of one reachable state, that least squares on phi_h
        leaves unexplained: all 0 if and only if the environment is realizable, up to a function of the prefix."""
        return np.array(
            [self.step_table(step, self.action_values[step]).realizability_gap() for step in range(self.horizon)]
        )

    def step_table(self, step: int, rewards: FloatArray) -> TabularEnvironment:
        """Step h alone as a table: reachable states as equally likely prompts, actions as responses, these rewards
        [S, A]."""
        rho = self.reachable[step] / self.reachable[step].sum()
        return TabularEnvironment(
            rho, self.base_probs[step], self.features[step], rewards, beta=self.beta, noise_std=self.noise_std
        )

    def feature_norm(self) -> float:
        """Largest |phi_h(s, a)|; THEORY assumes at most 1. That of a sequence is at most sqrt(H) times it."""
        return float(np.max(np.linalg.norm(self.features, axis=-1)))

    # --- tables over all sequences ----------------------------------------------------------------------------------

    def to_table(self, limit: int = LIMIT) -> TabularEnvironment:
        """The same task as a table of all A^H sequences, response y being the y-th in lexicographic order.

        Prompts, label noise and features [S, A^H, H d] are as here; a response's name is its index. Raises `InputError`
        where A^H exceeds ``limit``.
        """
        prompts, paths = self._everything(limit)
        shape = self.states, self.actions**self.horizon
        rewards = self._along(self.step_rewards, prompts, paths).sum(axis=1).reshape(shape)
        features = self.sequence_features(prompts, paths).reshape(*shape, self.dim)
        base = self.sequence_table(self.base_probs, limit)
        base /= base.sum(axis=1, keepdims=True)  # H rounding errors, where a table allows one
        return TabularEnvironment(self.initial_probs, base, features, rewards, beta=self.beta, noise_std=self.noise_std)

    def sequence_table(self, policy: FloatArray, limit: int = LIMIT) -> FloatArray:
        """[S, A^H] probability of each sequence under a policy [H, S, A], in the order of `to_table`."""
        table = self._policy(policy)
        law: FloatArray = self._along(table, *self._everything(limit)).prod(axis=1).reshape(self.states, -1)
        return law

    def _everything(self, limit: int) -> tuple[IntArray, IntArray]:
        """[S A^H] prompts and [S A^H, H] their complete sequences, in lexicographic order for each prompt."""
        count = self.actions**self.horizon
        if count > limit:
            raise InputError(f"limit: expected at least A^H = {count} sequences, got {limit}: shorten the horizon")
        return np.repeat(np.arange(self.states), count), np.tile(
            all_paths(self.actions, self.horizon), (self.states, 1)
        )

    def _policy(self, policy: FloatArray) -> FloatArray:
        table = checked_array("policy [H, S, A]", policy, self.base_probs.shape)
        check_probabilities("policy", table)
        return table
