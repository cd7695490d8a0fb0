"""The driver where labels are comparisons, alone or beside rewards: sources, reuse, failures, resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duels import Duels
from laws import Bench
from test_run import ENV, SPEC, Impure, opened

from spannerlm.errors import InDoubtError, InputError, RewardError
from spannerlm.ledger import Ledger
from spannerlm.records import Labelled, LabelRequest, Spec, StopRequest
from spannerlm.run import Driver

DUELS = replace(SPEC, feedback="comparison")


def duelling(ledger: Ledger, explorer: Any, reward: Any = None, compare: Any = None, spec: Spec = DUELS) -> Driver:
    return Driver(ENV, explorer, reward, ledger, spec, seed=4, compare=compare)


class Rater:
    """Prefers what is worth more, and counts what it is asked; not to be called again for nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], opponents: Sequence[str], replicate: Sequence[int]
    ) -> list[float]:
        self.asked += zip(prompts, completions, opponents, strict=True)
        means = ENV.mean_rewards
        return [
            float(means[int(x), int(a)] > means[int(x), int(b)])
            for x, a, b in zip(prompts, completions, opponents, strict=True)
        ]


def test_comparisons_are_bought_from_their_own_source_and_their_features_are_relative() -> None:
    rater, reward = Rater(), Impure(0.25)
    with opened(None) as ledger:
        run = duelling(ledger, Duels(rewards=3), reward, rater)
        run.explore()
        events = list(ledger.events())
        counts = ledger.counts
    assert (counts.labels, reward.bought, len(rater.asked)) == (40, 12, 28)
    outcomes = [event for event in events if isinstance(event, Labelled)]
    assert [label.opponent is None for label in outcomes[0].labels] == [True] * 3 + [False] * 7
    for outcome in outcomes:
        for label, phi in zip(outcome.labels, outcome.features, strict=True):
            x, rows = label.prompt, ENV.features[label.prompt]
            if label.opponent is None:
                assert label.value == 0.25
                np.testing.assert_array_equal(phi, rows[int(label.response)])
            else:
                first, second = int(label.response), int(label.opponent)
                assert label.value == float(ENV.mean_rewards[x, first] > ENV.mean_rewards[x, second])
                np.testing.assert_array_equal(phi, rows[first] - rows[second])
    assert len(run.labels_seen) == 40


def test_a_pair_that_was_compared_is_not_compared_again_unless_afresh() -> None:
    for fresh in (True, False):
        rater = Rater()
        with opened(None) as ledger:
            duelling(ledger, Duels(fresh=fresh), compare=rater, spec=replace(DUELS, labels=300, batch=50)).explore()
            labels = [label for e in ledger.events() if isinstance(e, Labelled) for label in e.labels]
            counts = ledger.counts
        unordered = [(x, *sorted(pair)) for x, *pair in rater.asked]
        assert (len(rater.asked) == 300) == fresh
        assert (len(set(unordered)) == len(unordered)) != fresh
        assert counts.labels == len(rater.asked) == sum(label.charged for label in labels)
        assert counts.reused == 300 - counts.labels
        means = ENV.mean_rewards
        for label in labels:  # mirrored or not, each says what its own order says
            assert label.opponent is not None
            gap = means[label.prompt, int(label.response)] - means[label.prompt, int(label.opponent)]
            assert label.value == float(gap > 0.0)


@pytest.mark.parametrize(
    ("rewards", "sources", "says"),
    [
        (0, {"reward": Impure()}, "compare: expected a source of comparisons, for which explorer 'duels' asks"),
        (3, {"compare": Rater()}, "reward: expected a source of rewards, for which .* where feedback is 'comparison'"),
    ],
)
def test_a_label_that_nothing_gives_is_an_error_before_anything_is_claimed(
    rewards: int, sources: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with opened(tmp_path) as ledger, pytest.raises(InputError, match=says):
        duelling(ledger, Duels(rewards), **sources).explore()
    with opened(tmp_path) as ledger:
        assert ledger.counts.charged == ledger.counts.in_doubt == 0
        assert ledger.unfinished() is not None
        run = duelling(ledger, Duels(rewards), Impure(), Rater())  # with both it goes on where it was
        run.replay()
        run.explore()
        assert ledger.counts.labels == 40


def test_a_comparison_that_fails_leaves_the_rewards_of_its_batch_on_disk(tmp_path: Path) -> None:
    def broken(prompts: Any, completions: Any, opponents: Any) -> list[float]:
        return [0.5] * (len(completions) - 1) + [7.0]

    with opened(tmp_path) as ledger, pytest.raises(RewardError, match="comparison 6: expected a number from 0 to 1"):
        duelling(ledger, Duels(rewards=3), Impure(), broken).explore()
    with opened(tmp_path) as ledger:
        assert (ledger.counts.labels, ledger.counts.in_doubt) == (3, 7)
        with pytest.raises(InDoubtError, match="7 labels"):
            duelling(ledger, Duels(rewards=3), Impure(), Rater()).replay()
    with opened(tmp_path) as ledger:  # what is pure is asked again at no cost, whatever the rewards are
        run = duelling(ledger, Duels(rewards=3), Impure(), ENV.comparison(0))
        run.replay()
        assert (ledger.counts.labels, ledger.counts.rebought) == (10, 0)


def test_a_run_by_comparison_resumed_after_every_request_equals_an_undisturbed_one(tmp_path: Path) -> None:
    explorer, sources = Duels(rewards=2), (ENV.reward(0), ENV.comparison(0, 0.5))
    with opened(tmp_path / "whole") as ledger:
        run = duelling(ledger, explorer, *sources)
        run.explore()
        run.stop()
        expected = list(ledger.export())
    for _ in range(20):
        with opened(tmp_path / "pieces") as ledger:
            piece = duelling(ledger, explorer, *sources)
            piece.replay()
            if ledger.stopped is not None:
                break
            k = ledger.next_request
            request = explorer.decide(piece.state, rng=np.random.default_rng([4, k]))
            if isinstance(request, StopRequest):
                ledger.stop(k, request)
            elif k % 2:
                ledger.request(k, request)  # cut off before it is executed
            else:
                piece._issue(k, request, "explore")
    with opened(tmp_path / "pieces", read_only=True) as ledger:
        assert list(ledger.export()) == expected


@pytest.mark.parametrize("fresh", [True, False])
def test_the_bench_of_the_laws_labels_as_a_run_does(fresh: bool) -> None:
    spec = replace(DUELS, labels=120, scale=0.5)
    with opened(None) as ledger:
        duelling(ledger, Duels(2, fresh), ENV.reward(1), ENV.comparison(1, 0.5), spec).explore()
        events = list(ledger.events())
    bench = Bench(ENV, spec)
    bench.rows |= {(x, str(y)): ENV.features[x, y] for x, y in np.ndindex(*ENV.base_probs.shape)}
    asked = [event for event in events if isinstance(event, LabelRequest)]
    told = [event for event in events if isinstance(event, Labelled)]
    for k, (request, outcome) in enumerate(zip(asked, told, strict=True)):
        found = bench.answer(k, request)
        assert isinstance(found, Labelled)
        assert found.labels == outcome.labels
        np.testing.assert_array_equal(found.features, outcome.features)
    assert bench.bought == ledger.counts.labels
    assert fresh or any(not label.charged and label.value == 1.0 for event in told for label in event.labels)
