"""Reward functions, and the noise of simulated ones.

A reward function has the signature that TRL users know, ``reward(prompts, completions, **columns) -> list``, with
one finite number or None per completion. None means that there is no label: recorded as a skip, never a reward.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from scipy.special import ndtri

from spannerlm.errors import RewardError

RewardFunction = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class NoisyReward:
    """A simulated rater: a known mean reward plus Gaussian noise that depends only on what is labelled.

    The noise of replicate k of a response is a function of (seed, prompt, response, k): a purchase that is run
    again after a crash gives the same label, and two explorers that label the same response see the same noise.
    """

    mean: RewardFunction
    """The noiseless reward function."""
    std: float
    """Standard deviation of the noise, in reward units."""
    seed: int
    pure: bool = True

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, replicate: Sequence[int], **columns: Any
    ) -> list[float | None]:
        """[k] noisy labels; None stays None."""
        means = call_reward(self.mean, prompts, completions, columns)
        keys = zip(prompts, completions, replicate, strict=True)
        noise = [self.std * _normal(self.seed, *key) for key in keys]
        return [None if m is None else m + e for m, e in zip(means, noise, strict=True)]


def _normal(seed: int, prompt: str, response: str, replicate: int) -> float:
    """One standard normal number determined by its arguments."""
    parts = (str(seed), prompt, response, str(replicate))
    # No text holds a byte FF: a NUL within a part can not be taken for the NUL between two.
    data = b"\x00".join(p.encode("utf-8", "surrogatepass").replace(b"\x00", b"\x00\xff") for p in parts)
    bits = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 12  # 52 bits: + 0.5 is exact
    return float(ndtri((bits + 0.5) / 2.0**52))


def is_pure(reward: RewardFunction) -> bool:
    """Whether the reward may be run again at no cost: it declares ``pure = True``."""
    return bool(getattr(reward, "pure", False))


def call_reward(
    reward: RewardFunction, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """[k] checked rewards: one finite float or None per completion.

    Columns are handed over by keyword: all of them where the function takes ``**kwargs``, else those it names.
    Cost: k labels, charged by whoever calls. Raises `RewardError` where the function raises, or returns a wrong
    length, a bool, a string, NaN or an infinity; the offending entry is named, and ``reply`` holds all that came.
    """
    expected = len(completions)
    positional, named = _arguments(reward, list(prompts), list(completions), columns)
    try:
        values = reward(*positional, **named)
        values = list(values) if isinstance(values, Iterator) else values
    except (Exception, SystemExit) as error:  # a reward that calls sys.exit() must not end the run as if all were well
        raise RewardError(f"the reward function raised {type(error).__name__}: {error}") from error
    try:
        return check_values(values, expected)
    except RewardError as error:
        error.reply = repr(values)
        raise


def _arguments(
    reward: RewardFunction, prompts: list[str], completions: list[str], columns: Mapping[str, Sequence[Any]]
) -> tuple[tuple[list[str], ...], dict[str, list[Any]]]:
    """Positional and named arguments that the function has a place for, each a copy of its own.

    By name, as TRL calls it; prompts and completions by position where the function gives them other names.
    """
    parameters = inspect.signature(reward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: list(column) for name, column in columns.items() if open_ended or name in parameters}
    completion = parameters.get("completions")
    if completion is None or completion.kind is completion.POSITIONAL_ONLY:
        return (prompts, completions), named
    if open_ended or "prompts" in parameters:
        named["prompts"] = prompts
    return (), {**named, "completions": completions}


def check_values(values: Any, expected: int) -> list[float | None]:
    """The values as floats or None; `RewardError` names the first that is neither, or a wrong length."""
    ordered = not isinstance(values, (str, bytes, Mapping, Set)) and getattr(values, "shape", None) != ()
    if not ordered or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise RewardError(
            f"expected a list of {expected} rewards, got {type(values).__name__}: return one number per completion"
        )
    if len(values) != expected:
        raise RewardError(
            f"expected {expected} rewards, one per completion, got {len(values)}: return them in the same order"
        )
    return [_check_value(i, value) for i, value in enumerate(values)]


def _check_value(index: int, value: Any) -> float | None:
    if value is None:
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a tensor or array of one number
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RewardError(
            f"reward {index}: expected a number or None, got {value!r} ({type(value).__name__}): "
            "return a float, or None for no label"
        )
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"reward {index}: expected a finite number, got {number}: return None for no label")
    return number
