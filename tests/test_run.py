"""The driver: what it records, how it resumes, and what it does when the reward fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment, rare_skill
from spannerlm.errors import InDoubtError, InputError, RewardError
from spannerlm.explorers import AdaptiveSpannerSampling, Explorer, Passive, TheorySpannerSampling
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest, LabelItem, LabelRequest, Spec
from spannerlm.run import Driver, check_budget, explorer_meta, result_of, spec_meta

ENV = rare_skill(0.05, prompts=8)
SPEC = Spec(ENV.prompt_probs, ENV.dim, labels=40, draws=5_000, batch=10, beta=ENV.beta, fresh=True)


def make(
    ledger: Ledger,
    reward: Any = None,
    explorer: Explorer | None = None,
    spec: Spec = SPEC,
    env: TabularEnvironment = ENV,
) -> Driver:
    return Driver(env, explorer or AdaptiveSpannerSampling(), reward or env.reward(0), ledger, spec, seed=4)


def opened(directory: Path | None, **options: Any) -> Ledger:
    return Ledger.open(directory, meta={"seed": 4}, prompts=list(ENV.prompts), **options)


class Impure:
    """A reward that may not be called again for nothing; it counts its calls and fails on demand."""

    def __init__(self, answer: Any = 0.5) -> None:
        self.answer, self.calls, self.bought = answer, 0, 0

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Any:
        self.calls += 1
        answer = (
            self.answer(self.calls, len(completions)) if callable(self.answer) else [self.answer] * len(completions)
        )
        self.bought += len(completions)
        return answer


def test_counts_are_the_ledgers_and_the_budget_is_spent() -> None:
    reward = Impure()
    with opened(None) as ledger:
        run = make(ledger, reward)
        run.explore()
        run.stop()
        result = result_of(run, None)
        assert result.labels == ledger.counts.labels == reward.bought == 40
        assert result.draws == ledger.counts.draws <= 5_000
        assert ledger.stopped is not None
        assert result.reason == ledger.stopped.reason == "labels spent"


def test_a_run_resumed_after_every_request_equals_an_undisturbed_one(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as ledger:
        whole = make(ledger)
        whole.explore()
        whole.stop()
        expected, history = list(ledger.export()), whole.history
    for _ in range(200):  # one request per process, as it were
        with opened(tmp_path / "pieces") as ledger:
            piece = make(ledger)
            piece.replay()
            if piece.reason:
                break
            k = ledger.next_request
            request = piece.explorer.decide(piece.state, rng=np.random.default_rng([4, k]))
            if isinstance(request, (DrawRequest, LabelRequest)):
                piece._issue(k, request, "explore")
            else:
                piece.explore()
                piece.stop()
    with opened(tmp_path / "pieces", read_only=True) as ledger:
        assert list(ledger.export()) == expected
    assert piece.history == history
    np.testing.assert_array_equal(result_of(piece, None).theta, result_of(whole, None).theta)


def test_a_finished_run_decides_and_buys_nothing_more(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        run = make(ledger)
        run.explore()
        run.stop()
    reward = Impure()
    with opened(tmp_path) as ledger:
        again = make(ledger, reward)
        again.replay()
        again.explore()
        again.stop()
        assert ledger.next_request == run.ledger.next_request
    assert reward.calls == 0
    assert again.history == run.history


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda call, n: [0.1] * (n - 1) if call == 2 else [0.1] * n, "expected 10 rewards"),
        (lambda call, n: [float("nan")] * n if call == 2 else [0.1] * n, "finite"),
        (lambda call, n: 1 / 0 if call > 1 else [0.1] * n, "ZeroDivisionError.*10 items in a row"),
    ],
)
def test_a_failing_reward_loses_nothing_and_leaves_its_batch_in_doubt(answer: Any, said: str, tmp_path: Path) -> None:
    with opened(tmp_path) as ledger, pytest.raises(RewardError, match=said):
        make(ledger, Impure(answer), Passive()).explore()
    with opened(tmp_path) as ledger:
        assert ledger.counts.labels == 10  # the first batch is on disk
        assert ledger.counts.in_doubt == 10
        with pytest.raises(InDoubtError, match="10 labels"):
            make(ledger, Impure(), Passive()).replay()
        assert Ledger.verify(tmp_path).ok
    good = Impure()
    with opened(tmp_path) as ledger:
        ledger.settle_in_doubt("rebuy")
        run = make(ledger, good, Passive())
        run.replay()
        run.explore()
        assert ledger.counts.labels == 40
    assert good.bought == 30


def test_labels_dropped_while_in_doubt_keep_their_charge(tmp_path: Path) -> None:
    def fail(call: int, n: int) -> list[float]:
        if call == 2:
            return [float("nan")] * n
        return [0.1] * n

    with opened(tmp_path) as ledger, pytest.raises(RewardError):
        make(ledger, Impure(fail), Passive()).explore()
    with opened(tmp_path) as ledger:
        ledger.settle_in_doubt("drop")
        run = make(ledger, Impure(), Passive())
        run.replay()
        run.explore()
        assert (ledger.counts.labels, ledger.counts.failed) == (30, 10)


def test_a_pure_reward_is_simply_asked_again(tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    class Once:
        pure = True
        inner = ENV.reward(0)
        left = 1

        def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Any:
            if self.left:
                self.left -= 1
                raise Interrupted
            return self.inner(prompts, completions, **columns)

    with opened(tmp_path / "a") as ledger, pytest.raises(Interrupted):
        make(ledger, Once()).explore()
    with opened(tmp_path / "a") as ledger:
        run = make(ledger)
        run.replay()
        run.explore()
        broken = list(ledger.export())
    with opened(tmp_path / "b") as ledger:
        run = make(ledger)
        run.explore()
        assert list(ledger.export()) == broken


def test_skips_are_no_labels_and_are_not_asked_again() -> None:
    asked: list[tuple[str, str]] = []

    def picky(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        asked.extend(zip(prompts, completions, strict=True))
        return [None if i % 2 else 0.5 for i in range(len(completions))]

    spec = replace(SPEC, fresh=False)
    with opened(None) as ledger:
        run = make(ledger, picky, spec=spec)
        run.explore()
        assert ledger.counts.labels + ledger.counts.skips == 40
        assert ledger.counts.skips == 20
    assert len(set(asked)) == len(asked) == 40


def test_evaluation_is_counted_apart_and_hidden_from_the_explorer(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        run = make(ledger)
        drawn = run.draw_for_evaluation([0, 1], 50)
        run.explore()
        items = [LabelItem(0, drawn[0].responses[0]), LabelItem(1, drawn[1].responses[0])]
        run.label_for_evaluation(items)
        run.stop()
        counts = ledger.counts
    assert (counts.eval_draws, counts.eval_labels, counts.labels) == (100, 2, 40)
    assert run.explorer.learner(run.state).stats.labels == 40
    assert run.explorer.learner(run.state).drawn == counts.draws
    with opened(tmp_path) as ledger:
        again = make(ledger)
        again.replay()
        assert again.draw_for_evaluation([0, 1], 50)[0].responses == drawn[0].responses
        assert again.evaluation_labels is not None
        assert again.evaluation_labels.labels == run.evaluation_labels.labels  # type: ignore[union-attr]
        assert ledger.counts == counts


def test_tilted_draws_have_the_truncated_law_and_their_rejections_are_counted() -> None:
    explorer = TheorySpannerSampling(c_cov=30.0, b=4.0, overrides={"nu": 1.5, "t_span": 64, "n_span": 40})
    with opened(None) as ledger:
        run = make(ledger, explorer=explorer, spec=replace(SPEC, draws=None))
        run.explore()
        drawn = [e.event for e in ledger.replay() if type(e.event).__name__ == "Drawn"]
    tilted = [d for d in drawn if d.exhausted]
    assert tilted
    assert not any(any(d.exhausted) for d in tilted)  # M = 4 C_cov accepts
    assert all(d.spent > 100 * len(d.draws) for d in tilted)  # Zhat alone takes 4 M log(4 / delta)
    assert run.state.rounds == sum(len(d.draws) for d in tilted)


def test_the_same_seed_gives_the_same_ledger_and_another_seed_another() -> None:
    exports = []
    for seed in (4, 4, 5):
        with opened(None) as ledger:
            run = Driver(ENV, Passive(), ENV.reward(0), ledger, SPEC, seed=seed)
            run.explore()
            exports.append(list(ledger.export()))
    assert exports[0] == exports[1] != exports[2]


@pytest.mark.parametrize(
    ("labels", "draws", "batch"), [(0, None, 1), (1, 0, 1), (1, None, 0), (1.5, None, 1), (True, 1, 1)]
)
def test_a_budget_that_is_no_positive_whole_number_is_refused(labels: Any, draws: Any, batch: Any) -> None:
    with pytest.raises(InputError, match="whole number"):
        check_budget(labels, draws, batch)


def test_explorer_settings_are_part_of_what_decides_a_run() -> None:
    assert explorer_meta(AdaptiveSpannerSampling(nu=1.5))["settings"]["nu"] == 1.5


def test_what_came_later_is_named_only_where_it_is_not_the_default() -> None:
    old = {"seed": 4, "labels": 40, "draws": 5_000, "batch": 10, "beta": ENV.beta, "kl": None, "fresh": True}
    assert spec_meta(SPEC, 4) == {**old, "dim": ENV.dim}
    changed = replace(SPEC, feedback="comparison", scale=2.0, target_regret=0.1)
    assert spec_meta(changed, 4) == {
        **spec_meta(SPEC, 4),
        "feedback": "comparison",
        "scale": 2.0,
        "target_regret": 0.1,
    }
