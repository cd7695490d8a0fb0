"""Reward functions: what is accepted, what is refused by name, and the noise of simulated ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, norm

from spannerlm.errors import RewardError
from spannerlm.rewards import NoisyReward, call_reward, check_values, is_pure

PROMPTS, COMPLETIONS = ["a", "b", "a"], ["x", "", "z"]


def length(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def returning(values: Any) -> Any:
    return lambda prompts, completions: values


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5, None],
        (1, 2.5, None),
        [np.int32(1), np.float32(2.5), None],
        np.array([1, 2.5, None], dtype=object),
    ],
)
def test_numbers_and_none_are_kept(values: Any) -> None:
    found = call_reward(returning(values), PROMPTS, COMPLETIONS, {})
    assert found == [1.0, 2.5, None]
    assert [type(v) for v in found] == [float, float, type(None)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64])
def test_numpy_arrays_are_kept(dtype: Any) -> None:
    assert call_reward(returning(np.array([1, 2, 3], dtype=dtype)), PROMPTS, COMPLETIONS, {}) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 2.0], r"expected 3 rewards.*got 2"),
        ([1.0] * 4, r"expected 3 rewards.*got 4"),
        ([], r"expected 3 rewards.*got 0"),
        (1.0, "expected a list of 3 rewards, got float"),
        (None, "expected a list of 3 rewards, got NoneType"),
        ("1.0", "expected a list of 3 rewards, got str"),
        (b"123", "expected a list of 3 rewards, got bytes"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "expected a list of 3 rewards, got dict"),
        ({1.0, 2.0, 3.0}, "expected a list of 3 rewards, got set"),
        (np.array(1.0), "expected a list of 3 rewards, got ndarray"),
        (np.ones((3, 1)), "reward 0: expected a number"),
        ([1.0, float("nan"), 2.0], "reward 1: expected a finite number, got nan"),
        ([1.0, 2.0, float("inf")], "reward 2: expected a finite number, got inf"),
        ([np.float32("-inf"), 1.0, 2.0], "reward 0: expected a finite number, got -inf"),
        ([1.0, 10**400, 2.0], "reward 1: expected a finite number, got inf"),
        ([1.0, True, 2.0], r"reward 1: expected a number or None, got True \(bool\)"),
        ([np.bool_(False), 1.0, 2.0], "reward 0: expected a number or None"),
        ([1.0, "2.0", 3.0], r"reward 1: expected a number or None, got '2.0' \(str\)"),
        ([1.0, [2.0], 3.0], "reward 1: expected a number or None"),
        ([1.0, 2j, 3.0], "reward 1: expected a number or None"),
        ([1.0, np.complex128(2), 3.0], "reward 1: expected a number or None"),
    ],
)
def test_anything_else_is_refused_by_name(values: Any, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        call_reward(returning(values), PROMPTS, COMPLETIONS, {})


def test_a_reward_that_raises_is_named_and_kept_as_cause() -> None:
    def broken(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(RewardError, match=r"the reward function raised KeyError: 'answer'") as caught:
        call_reward(broken, PROMPTS, COMPLETIONS, {})
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interruption_is_not_a_reward_error() -> None:
    def interrupted(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward(interrupted, PROMPTS, COMPLETIONS, {})


def test_columns_go_where_the_signature_has_a_place() -> None:
    columns = {"answer": [1, 2, 3], "level": ["e", "h", "e"]}
    seen: dict[str, Any] = {}

    def named(prompts: Any, completions: Any, *, answer: Sequence[int]) -> list[float]:
        seen["named"] = list(answer)
        return [0.0] * 3

    def every(prompts: Any, completions: Any, **rest: Any) -> list[float]:
        seen["every"] = dict(rest)
        return [0.0] * 3

    class Rater:
        def __call__(self, prompts: Any, completions: Any, level: Sequence[str]) -> list[float]:
            seen["rater"] = list(level)
            return [0.0] * 3

    for reward in (named, every, Rater(), length):
        call_reward(reward, PROMPTS, COMPLETIONS, columns)
    assert seen == {"named": [1, 2, 3], "every": columns, "rater": ["e", "h", "e"]}


def test_a_column_that_is_wanted_and_missing_is_an_error() -> None:
    def named(prompts: Any, completions: Any, *, answer: Any) -> list[float]:
        return [0.0] * 3

    with pytest.raises(RewardError, match="answer"):
        call_reward(named, PROMPTS, COMPLETIONS, {})


def test_only_who_says_so_is_pure() -> None:
    assert is_pure(NoisyReward(length, 0.1, 0))
    assert not is_pure(length)


# --- noise ----------------------------------------------------------------------------------------------------------


def noise(seed: int, prompt: str, response: str, replicate: int) -> float:
    reward = NoisyReward(returning([0.0]), 1.0, seed)
    value = reward([prompt], [response], replicate=[replicate])[0]
    assert value is not None
    return value


def test_noise_depends_on_what_is_labelled_and_on_nothing_else() -> None:
    reward = NoisyReward(length, 0.5, seed=3)
    together = reward(PROMPTS, COMPLETIONS, replicate=[0, 0, 2])
    apart = [reward([p], [c], replicate=[k])[0] for p, c, k in zip(PROMPTS, COMPLETIONS, [0, 0, 2], strict=True)]
    assert together == apart == NoisyReward(length, 0.5, seed=3)(PROMPTS, COMPLETIONS, replicate=[0, 0, 2])
    other = NoisyReward(length, 0.5, seed=4)(PROMPTS, COMPLETIONS, replicate=[0, 0, 2])
    assert all(a != b for a, b in zip(together, other, strict=True))
    assert reward(["a"], ["x"], replicate=[1]) != reward(["a"], ["x"], replicate=[0])
    assert NoisyReward(length, 0.0, 3)(PROMPTS, COMPLETIONS, replicate=[0, 0, 0]) == [1.0, 0.0, 1.0]


def test_none_stays_none_and_columns_pass_through() -> None:
    def picky(prompts: Any, completions: Any, *, keep: Sequence[bool]) -> list[float | None]:
        return [1.0 if k else None for k in keep]

    found = NoisyReward(picky, 0.1, 0)(PROMPTS, COMPLETIONS, replicate=[0, 0, 0], keep=[True, False, True])
    assert [value is None for value in found] == [False, True, False]


def test_noise_is_standard_normal_and_its_replicates_independent() -> None:
    """4,000 numbers along each of seed, prompt, response and replicate: Kolmogorov-Smirnov at 1e-5, and correlations
    of each with its shifted self and between the four within five standard errors of 0."""
    n = 4000
    series = np.array(
        [
            [noise(k, "p", "r", 0) for k in range(n)],
            [noise(0, str(k), "r", 0) for k in range(n)],
            [noise(0, "p", str(k), 0) for k in range(n)],
            [noise(0, "p", "r", k + 1) for k in range(n)],
        ]
    )
    for values in series:
        assert kstest(values, norm.cdf).pvalue > 1e-5
        for lag in (1, 2, 10):
            assert abs(np.mean(values[lag:] * values[:-lag])) < 5 / np.sqrt(n - lag)
    for a, b in itertools.combinations(series[:, 1:], 2):
        assert abs(np.mean(a * b)) < 5 / np.sqrt(n)


def test_hostile_keys_never_share_noise() -> None:
    """Texts made of NULs, of the escape's own bytes, of digits and of lone surrogates, cut at every place."""
    texts = [
        "",
        "\x00",
        "\x01",
        "a",
        "a\x00",
        "\x00a",
        "\x01b\x00c",
        "a\x00b",
        "\x01c",
        "0",
        "1",
        "10",
        "\xff",
        "\ud800",
    ]
    texts += ["\x00\x00", "\x00\x01", "\x01\x00", "\x00\xff"]
    keys = list(itertools.product((0, 1, 10), texts, texts, (0, 1, 10)))
    values = [noise(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert noise(0, "a", "\x01b\x00c", 0) != noise(0, "a\x00b", "\x01c", 0)  # one byte string under a careless escape
    assert np.isfinite(values).all()


def test_check_values_takes_nothing_for_nothing() -> None:
    assert check_values([], 0) == []


def test_generators_decimals_and_tensors_of_one_number_are_rewards() -> None:
    torch = pytest.importorskip("torch")
    values = [Decimal("0.5"), torch.tensor(1.5), np.array(2.0)]
    assert call_reward(lambda prompts, completions: (v for v in values), ["p"] * 3, ["a"] * 3, {}) == [0.5, 1.5, 2.0]


def test_what_a_refused_reply_held_is_kept_and_leaving_is_no_success() -> None:
    with pytest.raises(RewardError) as refused:
        call_reward(lambda prompts, completions: [0.25, float("nan")], ["p"] * 2, ["a"] * 2, {})
    assert "0.25" in refused.value.reply

    def leaves(prompts: list[str], completions: list[str]) -> list[float]:
        raise SystemExit(0)

    with pytest.raises(RewardError, match="SystemExit"):
        call_reward(leaves, ["p"], ["a"], {})


def test_a_reward_gets_copies_and_its_arguments_by_name() -> None:
    def greedy(completions: list[str], **kwargs: Any) -> list[float]:  # as many of TRL's examples have it
        n = len(completions)
        completions.clear()
        kwargs["prompts"].clear()
        return [1.0] * n

    prompts, completions = ["p", "q"], ["a", "b"]
    assert call_reward(greedy, prompts, completions, {"level": [1, 2]}) == [1.0, 1.0]
    assert (prompts, completions) == (["p", "q"], ["a", "b"])
