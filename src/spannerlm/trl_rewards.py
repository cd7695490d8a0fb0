"""Rewards of this package as TRL's trainers take them: `for_trl`, and the learned score itself, `policy_reward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spannerlm.backends.oracle import ModelOracle
from spannerlm.dialogue import PLAIN
from spannerlm.errors import InputError, RewardError
from spannerlm.inputs import TRAINERS, fitted, given_prompts
from spannerlm.rewards import RewardFunction, ask_reward
from spannerlm.tilted import TiltedPolicy, load_policy

TrlReward = Callable[..., list[float | None]]


def for_trl(reward: RewardFunction, name: str | None = None) -> TrlReward:
    """The reward function as GRPOTrainer and its like call it: texts or lists of messages, and what trainers add.

    A prompt of messages is its last message's text, a completion of messages its own. Answers are numbers or None (no
    reward), as TRL has them; an answer that is neither, such as a judge's that is in doubt, raises `RewardError`, for a
    trainer keeps no books. Cost: a label a completion, counted nowhere.
    """

    def called(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        own = {key: values for key, values in columns.items() if key not in (*TRAINERS, "environments")}
        answers = ask_reward(reward, [_text(p) for p in prompts], [_text(c) for c in completions], own)
        if bad := [answer for answer in answers if answer is not None and not isinstance(answer, float)]:
            raise RewardError(f"{called.__name__}: expected numbers or None for a trainer, got {bad[0]}")
        return [answer if isinstance(answer, float) else None for answer in answers]

    called.__name__ = name or str(getattr(reward, "__name__", type(reward).__name__))
    return called


def policy_reward(run: Path | str | TiltedPolicy) -> TrlReward:
    """<theta, phi(x, y)> / beta of a run's policy, up to a constant of each prompt, as a reward function for TRL.

    A trainer with KL weight 1 that maximises it aims at the policy itself (THEORY 1). ``run``: its directory, or its
    policy loaded. Cost: no draws and no labels; a forward pass over each completion, where features are hidden states.
    `InputError` for prompts of another form than the run's, such as another system message.
    """
    policy = run if isinstance(run, TiltedPolicy) else load_policy(run)
    if not isinstance(policy, TiltedPolicy):
        raise InputError(f"{run}: expected a policy of whole responses, got one of steps")

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        found = np.zeros(len(completions))
        for prompt in dict.fromkeys(prompts):
            rows = [i for i, other in enumerate(prompts) if other == prompt]
            oracle = ModelOracle(policy.model, [prompt], policy.features)
            phi = oracle.features_of(0, [completions[i] for i in rows])
            found[rows] = phi @ policy.theta / policy.beta
        return [float(value) for value in found]

    called, form = for_trl(score), getattr(policy.model, "form", PLAIN)

    def policy_reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        return called([fitted(given_prompts([prompt]), form)[0] for prompt in prompts], completions)

    return policy_reward


def _text(value: Any) -> str:
    """A text, or that of the last of several messages."""
    if isinstance(value, str):
        return value
    try:
        content = value[-1]["content"]
    except (TypeError, LookupError) as error:
        raise InputError(f"expected a text or a list of messages, got {value!r:.80}") from error
    if not isinstance(content, str):
        raise InputError(f"expected a message whose content is text, got {content!r:.80}")
    return content
