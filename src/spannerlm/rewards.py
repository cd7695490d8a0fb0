"""Reward functions and comparison functions, and the noise of simulated ones.

A reward function has the signature that TRL users know, ``reward(prompts, completions, **columns) -> list``, with
one finite number or None per completion. A comparison function, ``compare(prompts, completions, opponents, **columns)
-> list``, has one number from 0 to 1 or None per pair: 1 where the completion is preferred, 0 where its opponent is, .5
for a tie. None means that there is no label: recorded as a skip, never a reward. Both may be ``async def``.

A source that can break may return `records.Failed`, `records.Later`, `records.Unknown` or `Raised` for an item: labels
are bought by `ask_reward` and `ask_comparison`, which let these through; `call_reward` takes numbers and None alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from scipy.special import expit, ndtri

from spannerlm.errors import InputError, LedgerError, RewardError
from spannerlm.records import Failed, Later, Unknown


@dataclass(frozen=True)
class Raised:
    """In place of a value: the source raised for this item, which may be asked again; the others have answers."""

    reason: str


Answer = float | Failed | Later | Unknown | Raised | None
"""What becomes of one item: a number, None (a skip), or why there is neither."""
RewardFunction = Callable[..., Sequence[Any] | Awaitable[Sequence[Any]]]
CompareFunction = RewardFunction


class FunctionRaisedError(RewardError):
    """A reward or comparison function raised: it returned nothing, so there is no reply to keep."""


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


@dataclass(frozen=True)
class NoisyComparison:
    """A simulated rater of pairs: prefers y to y' with probability sigmoid((r(y) - r(y')) / scale) (THEORY 6).

    Replicate k of a pair is a function of (seed, prompt, unordered pair, k): swapped responses get the mirrored
    answer, a purchase that is run again the same one. Raises `InputError` unless the scale is positive and finite.
    """

    mean: RewardFunction
    """The noiseless reward function r."""
    scale: float
    """s, in reward units."""
    seed: int
    pure: bool = True

    def __post_init__(self) -> None:
        if not (self.scale > 0.0 and math.isfinite(self.scale)):
            raise InputError(f"scale: expected a positive number of reward units, got {self.scale}")

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        opponents: Sequence[str],
        *,
        replicate: Sequence[int],
        **columns: Any,
    ) -> list[float | None]:
        """[k] 1.0 where the completion is preferred, else 0.0; None where either of the two has no reward."""
        twice = {name: [*column, *column] for name, column in columns.items()}
        means = call_reward(self.mean, [*prompts, *prompts], [*completions, *opponents], twice)
        keys = zip(prompts, completions, opponents, replicate, strict=True)
        pairs = zip(keys, means[: len(prompts)], means[len(prompts) :], strict=True)
        return [None if a is None or b is None else self._prefers(key, a, b) for key, a, b in pairs]

    def _prefers(self, key: tuple[str, str, str, int], reward: float, other: float) -> float:
        prompt, completion, opponent, replicate = key
        first, second = sorted((completion, opponent))
        gap = (reward - other) / self.scale if completion == first else (other - reward) / self.scale
        first_wins = _uniform(str(self.seed), prompt, first, second, str(replicate)) < expit(gap)
        return float(first_wins == (completion == first))


def _normal(seed: int, prompt: str, response: str, replicate: int) -> float:
    """One standard normal number determined by its arguments."""
    return float(ndtri(_uniform(str(seed), prompt, response, str(replicate))))


def _uniform(*parts: str) -> float:
    """One number in (0, 1) determined by its arguments."""
    # No text holds a byte FF: a NUL within a part can not be taken for the NUL between two.
    data = b"\x00".join(p.encode("utf-8", "surrogatepass").replace(b"\x00", b"\x00\xff") for p in parts)
    bits = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 12  # 52 bits: + 0.5 is exact
    return (bits + 0.5) / 2.0**52


def is_pure(reward: RewardFunction | CompareFunction) -> bool:
    """Whether the function may be run again at no cost: it declares ``pure = True``."""
    return bool(getattr(reward, "pure", False))


def call_reward(
    reward: RewardFunction, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """[k] checked rewards: one finite float or None per completion.

    Columns are handed over by keyword: all of them where the function takes ``**kwargs``, else those it names.
    Cost: k labels, charged by whoever calls. Raises `RewardError` where the function raises, or returns a wrong
    length, a bool, a string, NaN or an infinity; the offending entry is named, and ``reply`` holds all that came.
    """
    return _numbers(ask_reward(reward, prompts, completions, columns), "reward")


def ask_reward(
    reward: RewardFunction, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[Answer]:
    """[k] what a source that can break answers: as `call_reward`, but with `Failed`, `Later`, `Unknown`, `Raised`.

    Raises `FunctionRaisedError` where the function itself raises.
    """
    texts = {"prompts": list(prompts), "completions": list(completions)}
    return _call(reward, "reward", texts, columns)


def call_comparison(
    compare: CompareFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    opponents: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """[k] checked comparisons: a number from 0 to 1 or None per pair; 1 where the completion is preferred.

    Arguments, cost and errors are those of `call_reward`; a number outside [0, 1] is an error too. The function must
    take ``opponents`` by this name or as its third argument: a reward function is not mistaken for a comparison.
    """
    return _numbers(ask_comparison(compare, prompts, completions, opponents, columns), "comparison")


def ask_comparison(
    compare: CompareFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    opponents: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[Answer]:
    """[k] what a source of comparisons that can break answers: as `call_comparison`, otherwise as `ask_reward`."""
    texts = {"prompts": list(prompts), "completions": list(completions), "opponents": list(opponents)}
    return _call(compare, "comparison", texts, columns)


Kind = Literal["reward", "comparison"]


def _call(
    function: Callable[..., Any], kind: Kind, texts: dict[str, list[str]], columns: Mapping[str, Sequence[Any]]
) -> list[Answer]:
    expected = len(texts["completions"])  # before the function has had its hands on the list
    positional, named = _arguments(function, texts, columns)
    try:
        values = function(*positional, **named)
        values = _awaited(values) if inspect.isawaitable(values) else values
        values = list(values) if isinstance(values, Iterator) else values
    except (RewardError, LedgerError):  # a source that knows what went wrong, and what came back; or a full disk
        raise
    except (Exception, SystemExit) as error:  # a reward that calls sys.exit() must not end the run as if all were well
        raise FunctionRaisedError(f"the {kind} function raised {type(error).__name__}: {error}") from error
    try:
        return check_values(values, expected, kind)
    except RewardError as error:
        error.reply = repr(values)
        raise


def _awaited(values: Awaitable[Any]) -> Any:
    """What it comes to; in a thread of its own where this one has an event loop already, as in a notebook."""

    async def wait() -> Any:
        return await values

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _numbers(answers: Sequence[Answer], kind: Kind) -> list[float | None]:
    """The answers, all of which must be numbers or None; `RewardError` names the first that is not."""
    for i, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, float):
            error = RewardError(
                f"{kind} {i}: expected a number or None, got {answer!r:.200}: it cannot wait or fail here"
            )
            error.reply = repr(answers)
            raise error
    return [answer for answer in answers if answer is None or isinstance(answer, float)]


def _arguments(
    function: Callable[..., Any], texts: dict[str, list[str]], columns: Mapping[str, Sequence[Any]]
) -> tuple[tuple[list[str], ...], dict[str, list[Any]]]:
    """Positional and named arguments that the function has a place for, each a copy of its own.

    By name, as TRL calls it; the texts by position where the function gives completions or opponents other names. A
    reward that takes ``**kwargs``, and has no places for both, finds them there.
    """
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: list(column) for name, column in columns.items() if open_ended or name in parameters}
    places = [parameters.get(name) for name in texts if name != "prompts"]
    ordered = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    free = [p for p in parameters.values() if p.kind in ordered and p.name not in columns]
    fits = (
        "opponents" in texts
        or not open_ended
        or len(free) >= len(texts)
        or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    )
    if fits and any(place is None or place.kind is place.POSITIONAL_ONLY for place in places):
        return tuple(texts.values()), named
    return (), {**named, **{name: text for name, text in texts.items() if open_ended or name in parameters}}


def check_values(values: Any, expected: int, kind: Kind = "reward") -> list[Answer]:
    """The values as floats, None or what stands for them; `RewardError` names the first other, or a wrong length."""
    per = "completion" if kind == "reward" else "pair"
    ordered = not isinstance(values, (str, bytes, Mapping, Set)) and getattr(values, "shape", None) != ()
    if not ordered or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise RewardError(
            f"expected a list of {expected} {kind}s, got {type(values).__name__}: return one number per {per}"
        )
    if len(values) != expected:
        raise RewardError(
            f"expected {expected} {kind}s, one per {per}, got {len(values)}: return them in the same order"
        )
    return [_check_value(i, value, kind) for i, value in enumerate(values)]


def _check_value(index: int, value: Any, kind: Kind) -> Answer:
    if value is None or isinstance(value, (Failed, Raised)):
        return value
    if isinstance(value, Later):
        if (
            isinstance(value.seconds, bool)
            or not isinstance(value.seconds, (int, float))
            or not 0 <= value.seconds < math.inf
        ):
            raise RewardError(f"{kind} {index}: expected Later with its seconds, at least 0, got {value.seconds!r}")
        return value
    if isinstance(value, Unknown):
        if not isinstance(value.raw, bytes):
            raise RewardError(f"{kind} {index}: expected Unknown with raw bytes, got {type(value.raw).__name__}")
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a tensor or array of one number
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RewardError(
            f"{kind} {index}: expected a number or None, got {value!r} ({type(value).__name__}): "
            "return a float, or None for no label"
        )
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"{kind} {index}: expected a finite number, got {number}: return None for no label")
    if kind == "comparison" and not 0.0 <= number <= 1.0:
        raise RewardError(
            f"comparison {index}: expected a number from 0 to 1, got {number:g}: return 1 where the completion is "
            "preferred, 0 where its opponent is, .5 for a tie"
        )
    return number
