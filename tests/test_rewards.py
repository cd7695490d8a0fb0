"""Reward functions: what is accepted, what is refused by name, and the noise of simulated ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kstest, norm

from spannerlm.errors import InputError, LedgerError, RewardError
from spannerlm.records import Failed, Later, Unknown
from spannerlm.rewards import (
    FunctionRaisedError,
    NoisyComparison,
    NoisyReward,
    Raised,
    ask_comparison,
    ask_reward,
    call_comparison,
    call_reward,
    check_values,
    is_pure,
)

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


# --- sources that can break -----------------------------------------------------------------------------------------


def test_what_stands_for_a_value_is_let_through_where_labels_are_bought_and_nowhere_else() -> None:
    values = [Failed("no"), Later(1.5, "busy"), Unknown("cut", b"x"), Raised("oops"), None, 1]
    texts = ["p"] * 6, ["a"] * 6
    assert ask_reward(returning(values), *texts, {}) == [*values[:5], 1.0]
    assert ask_comparison(comparing(values), *texts, ["b"] * 6, {}) == [*values[:5], 1.0]
    for stands in values[:4]:
        with pytest.raises(RewardError, match=f"reward 1: expected a number or None, got {type(stands).__name__}") as e:
            call_reward(returning([0.0, stands]), ["p"] * 2, ["a"] * 2, {})
        assert type(stands).__name__ in e.value.reply


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Later(-1.0, ""), "reward 0: expected Later with its seconds, at least 0, got -1.0"),
        (Later(float("nan"), ""), "got nan"),
        (Later(float("inf"), ""), "got inf"),
        (Later(True, ""), "got True"),
        (Later("1", ""), "got '1'"),  # type: ignore[arg-type]
        (Unknown("", "text"), "reward 0: expected Unknown with raw bytes, got str"),  # type: ignore[arg-type]
    ],
)
def test_what_stands_for_a_value_is_checked(value: Any, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        ask_reward(returning([value]), ["p"], ["a"], {})


def test_async_functions_are_waited_for_also_within_an_event_loop() -> None:
    async def reward(prompts: Any, completions: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(c)) for c in completions]

    async def broken(prompts: Any, completions: Any, opponents: Any) -> list[float]:
        await asyncio.sleep(0)
        raise KeyError("rater")

    async def notebook() -> list[float | None]:
        return call_reward(reward, PROMPTS, COMPLETIONS, {})

    assert call_reward(reward, PROMPTS, COMPLETIONS, {}) == call_reward(length, PROMPTS, COMPLETIONS, {})
    assert asyncio.run(notebook()) == call_reward(length, PROMPTS, COMPLETIONS, {})
    with pytest.raises(FunctionRaisedError, match="the comparison function raised KeyError: 'rater'"):
        call_comparison(broken, PROMPTS, COMPLETIONS, OPPONENTS, {})


def test_errors_of_a_source_that_knows_better_are_its_own() -> None:
    def wrong(prompts: Any, completions: Any) -> list[float]:
        error = RewardError("reward 0: no number")
        error.reply = "what came"
        raise error

    def full(prompts: Any, completions: Any) -> list[float]:
        raise LedgerError("no room")

    with pytest.raises(RewardError, match=r"^reward 0: no number") as caught:
        ask_reward(wrong, ["p"], ["a"], {})
    assert caught.value.reply == "what came"
    with pytest.raises(LedgerError, match="no room"):
        ask_reward(full, ["p"], ["a"], {})


# --- comparisons ----------------------------------------------------------------------------------------------------

OPPONENTS = ["y", "long", "z'"]


def longer(prompts: Sequence[str], completions: Sequence[str], opponents: Sequence[str]) -> list[float]:
    return [0.5 * (1.0 + np.sign(len(a) - len(b))) for a, b in zip(completions, opponents, strict=True)]


def comparing(values: Any) -> Any:
    return lambda prompts, completions, opponents: values


def test_comparisons_are_numbers_from_0_to_1_or_none() -> None:
    assert call_comparison(longer, PROMPTS, COMPLETIONS, OPPONENTS, {}) == [0.5, 0.0, 0.0]
    found = call_comparison(comparing(np.array([1, 0, None])), PROMPTS, COMPLETIONS, OPPONENTS, {})
    assert found == [1.0, 0.0, None]
    assert [type(v) for v in found] == [float, float, type(None)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 0.0], "expected 3 comparisons, one per pair, got 2: return them in the same order"),
        (1.0, "expected a list of 3 comparisons, got float: return one number per pair"),
        ([1.0, 1.5, 0.0], "comparison 1: expected a number from 0 to 1, got 1.5: return 1 where the completion is"),
        ([-1, 1.0, 0.0], "comparison 0: expected a number from 0 to 1, got -1"),
        ([1.0, 0.0, float("nan")], "comparison 2: expected a finite number, got nan"),
        ([True, 1.0, 0.0], r"comparison 0: expected a number or None, got True \(bool\)"),
        (["A", 1.0, 0.0], r"comparison 0: expected a number or None, got 'A' \(str\)"),
    ],
)
def test_any_other_comparison_is_refused_by_name_and_kept(values: Any, says: str) -> None:
    with pytest.raises(RewardError, match=says) as refused:
        call_comparison(comparing(values), PROMPTS, COMPLETIONS, OPPONENTS, {})
    assert refused.value.reply == repr(values)


def test_a_comparison_that_raises_is_named_and_kept_as_cause() -> None:
    def broken(prompts: Any, completions: Any, opponents: Any) -> list[float]:
        raise KeyError("rater")

    with pytest.raises(RewardError, match="the comparison function raised KeyError: 'rater'") as caught:
        call_comparison(broken, PROMPTS, COMPLETIONS, OPPONENTS, {})
    assert isinstance(caught.value.__cause__, KeyError)


def test_texts_and_columns_of_a_comparison_go_where_the_signature_has_a_place() -> None:
    seen: list[Any] = []

    def every(prompts: Any, completions: Any, opponents: Any, **columns: Any) -> list[float]:
        seen.append((prompts, completions, opponents, columns))
        return [0.0] * 3

    def by_name(*, level: Any, opponents: Any, completions: Any, prompts: Any) -> list[float]:
        seen.append((prompts, completions, opponents, {"level": level}))
        return [0.0] * 3

    def other_names(question: Any, left: Any, right: Any, /, level: Any = None) -> list[float]:
        seen.append((question, left, right, {"level": level}))
        return [0.0] * 3

    def third_named_otherwise(prompts: Any, completions: Any, others: Any, level: Any) -> list[float]:
        seen.append((prompts, completions, others, {"level": level}))
        return [0.0] * 3

    def without_prompts(opponents: Any, completions: Any) -> list[float]:
        seen.append((PROMPTS, completions, opponents, {"level": [1, 2, 3]}))
        return [0.0] * 3

    for compare in (every, by_name, other_names, third_named_otherwise, without_prompts):
        call_comparison(compare, PROMPTS, COMPLETIONS, OPPONENTS, {"level": [1, 2, 3]})
    assert seen == [(PROMPTS, COMPLETIONS, OPPONENTS, {"level": [1, 2, 3]})] * 5
    assert seen[0][2] is not OPPONENTS


def test_texts_are_found_by_name_among_the_rest_where_there_is_no_place_for_them() -> None:
    def all_of_it(**everything: Any) -> list[float]:
        return [float(len(c)) + len(p) for c, p in zip(everything["completions"], everything["prompts"], strict=True)]

    def one_column(level: Any, **others: Any) -> list[float]:
        return [k + len(c) for k, c in zip(level, others["completions"], strict=True)]

    def two_places(texts: Any, replies: Any, **others: Any) -> list[float]:
        assert list(others) == ["level"]
        return [float(len(t) - len(r)) for t, r in zip(texts, replies, strict=True)]

    for function, wanted in ((all_of_it, [4.0]), (one_column, [8.0]), (two_places, [-2.0])):
        assert call_reward(function, ["p"], ["xyz"], {"level": [5]}) == wanted


def test_a_reward_function_is_not_taken_for_a_comparison() -> None:
    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [1.0] * 3

    for function in (reward, length):
        with pytest.raises(RewardError, match=r"comparison function raised TypeError: .* takes 2 positional arguments"):
            call_comparison(function, PROMPTS, COMPLETIONS, OPPONENTS, {})


# --- a simulated rater of pairs -------------------------------------------------------------------------------------


def duel(rater: NoisyComparison, prompt: str, response: str, opponent: str, replicate: int = 0) -> float | None:
    return rater([prompt], [response], [opponent], replicate=[replicate])[0]


def test_a_rater_answers_swapped_pairs_by_the_mirrored_answer_and_needs_no_company() -> None:
    rater = NoisyComparison(length, 2.0, seed=3)
    assert is_pure(rater)
    responses = ["", "a", "bb", "ccc", "\ud800", "\x00", "a\x00"]
    pairs = [(a, b, k) for a, b in itertools.permutations(responses, 2) for k in range(5)]
    prompts, first, second, replicates = ["p"] * len(pairs), *(list(column) for column in zip(*pairs, strict=True))
    answers = rater(prompts, first, second, replicate=replicates)
    assert set(answers) == {0.0, 1.0}
    swapped = rater(prompts, second, first, replicate=replicates)
    assert all(a + b == 1.0 for a, b in zip(answers, swapped, strict=True))  # type: ignore[operator]
    assert answers == [duel(rater, "p", *pair) for pair in pairs]
    for other in (NoisyComparison(length, 2.0, seed=4)(prompts, first, second, replicate=replicates),
                  rater(["q"] * len(pairs), first, second, replicate=replicates)):  # fmt: skip
        assert answers != other


@pytest.mark.parametrize(("gap", "scale"), [(0, 1.0), (1, 1.0), (3, 1.0), (3, 2.5), (1, 0.2), (8, 4.0)])
def test_a_rater_prefers_as_bradley_and_terry_say(gap: int, scale: float) -> None:
    """4,000 replicates each way: frequency within five standard errors of sigmoid(gap / scale), and of no memory."""
    n, rater = 4000, NoisyComparison(length, scale, seed=1)
    long, short = "b" * (gap + 1), "a"
    for response, opponent, p in ((long, short, expit(gap / scale)), (short, long, expit(-gap / scale))):
        wins = np.array(rater(["p"] * n, [response] * n, [opponent] * n, replicate=range(n)), dtype=np.float64)
        error = np.sqrt(p * (1.0 - p) / n)
        assert abs(wins.mean() - p) < 5 * error
        for lag in (1, 2, 10):
            left, right = wins[lag:] - p, wins[:-lag] - p
            assert abs(np.mean(left * right)) < 5 * p * (1.0 - p) / np.sqrt(n - lag)


def test_a_rater_hands_columns_on_and_declines_where_the_reward_does() -> None:
    def picky(prompts: Any, completions: Any, *, level: Sequence[int]) -> list[float | None]:
        return [None if c == "x" else float(k) for c, k in zip(completions, level, strict=True)]

    rater = NoisyComparison(picky, 1e-9, seed=0)
    found = rater(["p"] * 3, ["x", "y", "z"], ["y", "x", "w"], replicate=[0, 0, 0], level=[1, 2, 3])
    assert found[:2] == [None, None]
    assert found[2] in (0.0, 1.0)
    certain = NoisyComparison(length, 1e-300, seed=0)  # whatever the scale: never NaN
    assert duel(certain, "p", "aa", "a") == 1.0
    assert duel(certain, "p", "a", "aa") == 0.0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive(scale: float) -> None:
    with pytest.raises(InputError, match="scale: expected a positive number of reward units, got"):
        NoisyComparison(length, scale, 0)
