"""Draws, rewards and labels for a report: counted, kept, resumed, and what is random is random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spannerlm import bundled
from spannerlm.backends import backend
from spannerlm.environments import random_table
from spannerlm.errors import InDoubtError, InputError, RewardError
from spannerlm.foundation.gather import Source, gather, gather_table, map_name, maps_under_test
from spannerlm.ledger import Ledger

TASK = bundled.load("helpdesk")
PROMPTS = TASK.train_prompts[:5]


@pytest.fixture(scope="module")
def model() -> Any:
    return backend("huggingface").load(str(TASK.model_path), max_new_tokens=TASK.max_new_tokens)


def test_a_free_reward_grades_every_draw(model: Any) -> None:
    found = gather(model, PROMPTS, Source(TASK.reward, True, 0.3, parts=TASK.parts), draws=40, seed=1)
    pool = found.pool
    assert (found.counts.eval_draws, found.counts.draws, found.counts.eval_labels) == (200, 0, 0)
    assert pool.n == 40
    assert list(pool.maps) == ["hidden", "before-eos", "ngrams", "logprob-length"]
    assert [s.stop - s.start for s in pool.maps.values()] == [96, 96, 256, 2]
    assert pool.rewards is not None
    assert pool.logprobs is not None
    assert pool.tokens is not None
    for x, draws in enumerate(pool.draws):
        texts = list(draws.responses)
        assert pool.rewards[x].tolist() == TASK.reward([PROMPTS[x]] * len(texts), texts)
        parts = np.sum([part[x] for part in pool.parts.values()], axis=0)
        np.testing.assert_allclose(parts, pool.rewards[x], atol=1e-12)  # the parts add up to the reward
        told = model.score(PROMPTS[x], texts, [])
        np.testing.assert_allclose(pool.logprobs[x], told.logprobs, rtol=1e-4)
        np.testing.assert_array_equal(pool.tokens[x], told.lengths)


def test_the_seed_decides_and_declined_draws_are_told(model: Any) -> None:
    def picky(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if "sorry" in text else 1.0 for text in completions]

    first, again, other = (gather(model, PROMPTS, Source(picky, True), draws=30, seed=s) for s in (1, 1, 2))
    assert [d.responses for d in first.pool.draws] == [d.responses for d in again.pool.draws]
    assert [d.responses for d in first.pool.draws] != [d.responses for d in other.pool.draws]
    assert first.pool.rewards is not None
    assert any(np.isnan(row).any() for row in first.pool.rewards)
    share = sum(d.counts[np.isnan(r)].sum() for d, r in zip(first.pool.draws, first.pool.rewards, strict=True)) / 150
    assert first.warnings == (f"The reward declined {100 * share:.3g} % of the draws: they are left out.",)


class Paid:
    """A reward that costs something: counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.__name__ = "paid"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        self.asked += zip(prompts, completions, strict=True)
        return [None if "rude" in text else float(len(text.split())) for text in completions]


def test_labels_are_random_draws_bought_once_and_kept(model: Any, tmp_path: Path) -> None:
    reward = Paid()
    arguments: dict[str, Any] = {"draws": 30, "seed": 3, "directory": tmp_path / "m"}
    found = gather(model, PROMPTS, Source(reward, labels=23), **arguments)
    labels = found.pool.labels
    assert labels is not None
    assert labels.random
    assert len(set(reward.asked)) == len(reward.asked) == found.counts.eval_labels <= 23
    assert len(labels.values) == 23
    assert max(np.bincount(labels.prompts)) - min(np.bincount(labels.prompts)) <= 1
    for x, row, value in zip(labels.prompts, labels.rows, labels.values, strict=True):
        assert value == len(found.pool.draws[x].responses[row].split())
    for x in range(5):  # without replacement: no response more often than it was drawn
        often = np.bincount(labels.rows[labels.prompts == x], minlength=len(found.pool.draws[x].counts))
        assert np.all(often <= found.pool.draws[x].counts)
    again = gather(model, PROMPTS, Source(reward, labels=23), **arguments)
    assert len(reward.asked) == found.counts.eval_labels  # nothing was bought twice, nothing drawn twice
    assert again.counts == found.counts
    np.testing.assert_array_equal(again.pool.labels.values, labels.values)  # type: ignore[union-attr]
    assert [d.responses for d in again.pool.draws] == [d.responses for d in found.pool.draws]
    with pytest.raises(InputError, match="labels = 23, now it is 24"):
        gather(model, PROMPTS, Source(reward, labels=24), **arguments)
    assert not Ledger.verify(tmp_path / "m").problems


def test_a_reward_that_fails_loses_nothing_that_was_drawn(model: Any, tmp_path: Path) -> None:
    def broken(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        raise ValueError("no rater today")

    arguments: dict[str, Any] = {"draws": 20, "seed": 3, "directory": tmp_path / "m"}
    with pytest.raises(RewardError, match="no rater today"):
        gather(model, PROMPTS, Source(broken, labels=5), **arguments)
    with pytest.raises(InDoubtError):
        gather(model, PROMPTS, Source(Paid(), labels=5), **arguments)
    found = gather(model, PROMPTS, Source(Paid(), labels=5), in_doubt="rebuy", **arguments)
    assert found.counts.eval_draws == 100
    assert found.pool.labels is not None
    assert len(found.pool.labels.values) == 5


def test_random_labels_are_a_fair_sample_of_the_draws() -> None:
    """Each draw is as likely as any other: over seeds the share labelled of each response is its share of the draws."""
    env = random_table(prompts=8, responses=30, seed=1003)
    found, drawn = np.zeros(33), np.zeros(33)
    for seed in range(300):
        pool = gather_table(env, labels=80, draws=40, seed=seed).pool
        assert pool.labels is not None
        for x, row in zip(pool.labels.prompts, pool.labels.rows, strict=True):
            found[int(pool.draws[x].responses[row])] += 1
        for d in pool.draws:
            drawn[np.array(d.responses, dtype=int)] += d.counts
    expected = drawn / drawn.sum() * found.sum()
    statistic = np.sum((found - expected) ** 2 / np.maximum(expected, 1e-9) * (expected > 0))
    assert statistic < 33 + 4 * np.sqrt(66)  # a chi square of some 32 degrees of freedom, fewer as draws are without


def test_an_environment_is_graded_or_labelled() -> None:
    env = random_table(prompts=8, responses=30, seed=1003)
    free = gather_table(env, labels=None, draws=50, seed=0)
    assert free.counts.eval_draws == 400
    assert free.counts.eval_labels == 0
    assert free.pool.rewards is not None
    for x, d in enumerate(free.pool.draws):
        np.testing.assert_array_equal(free.pool.rewards[x], env.mean_rewards[x, np.array(d.responses, dtype=int)])
    paid = gather_table(env, labels=30, draws=50, seed=0)
    assert paid.pool.rewards is None
    assert paid.counts.eval_labels <= 30
    assert paid.pool.labels is not None
    assert len(paid.pool.labels.values) == 30
    none = gather_table(env, labels=0, draws=50, seed=0)
    assert none.pool.labels is None
    assert none.pool.rewards is None


def test_names_of_maps() -> None:
    assert map_name("hidden") == "hidden"
    assert map_name({"kind": "ngrams", "dim": 64}) == "ngrams dim=64"
    assert map_name(["hidden", {"kind": "ngrams"}]) == "hidden + ngrams"
    assert map_name(np.zeros) == "zeros"
    with pytest.raises(InputError, match="got 'ngrams' twice"):
        maps_under_test(["ngrams", "ngrams"], None)
    with pytest.raises(InputError, match="at least one map"):
        maps_under_test([], None)
