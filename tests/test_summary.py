"""The stored rows of a report, piece by piece; `test_job` makes whole ones on real models."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.coverage import Interval
from spannerlm.evaluation import EvaluationPool, Fit, knee
from spannerlm.logistic import ComparisonStats, fit_comparisons
from spannerlm.measures import TruthMeasure
from spannerlm.policy import padded
from spannerlm.records import Draws
from spannerlm.summary import KLS, Baseline, Board, _prediction, _reading, recommend, spectrum

NAN = float("nan")


def board(kl: float = 1.0, truth: list[list[float]] | None = None) -> Board:
    """Two held-out prompts with three and four distinct responses; features are the rewards, and noise."""
    counts = [np.array([70, 25, 5]), np.array([40, 30, 20, 10])]
    rewards = truth or [[0.0, 1.0, 3.0], [0.5, 0.0, 2.0, 1.0]]
    rng = np.random.default_rng(0)
    draws = [
        Draws(x, tuple(f"{x}-{i}" for i in range(len(n))), n, np.column_stack([rewards[x], rng.normal(size=len(n))]))
        for x, n in enumerate(counts)
    ]
    return Board(TruthMeasure(EvaluationPool(draws), padded([np.array(r) for r in rewards])), kl)


THETA = np.array([1.0, 0.0])


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_spectrum_against_a_slow_rewrite(rank: int) -> None:
    phi = np.random.default_rng(rank).normal(size=(60, rank)) @ np.random.default_rng(9).normal(size=(rank, 6))
    centred = phi - phi.mean(axis=0)
    found = spectrum(centred.T @ centred / 60)
    relative = np.array([a - b for a in phi for b in phi])  # every ordered pair of draws, itself included
    values = np.linalg.svd(relative, compute_uv=False) ** 2 / len(relative)
    assert found["spectrum"] == pytest.approx(values.tolist(), abs=1e-12 * values[0])
    assert sum(v > 1e-9 * values[0] for v in found["spectrum"]) == rank
    entropy = -sum(v / values.sum() * np.log(v / values.sum()) for v in values[:rank])
    assert found["effective_rank"] == pytest.approx(np.exp(entropy), rel=1e-9)
    assert 1.0 <= found["effective_rank"] <= rank + 1e-9


def test_effective_rank_counts_equal_directions() -> None:
    for k in (1, 2, 5):
        covariance = np.diag([0.3] * k + [0.0] * (6 - k))
        assert spectrum(covariance)["effective_rank"] == pytest.approx(k)
        assert spectrum(covariance)["spectrum"] == pytest.approx([0.6] * k + [0.0] * (6 - k))
    assert spectrum(np.zeros((3, 3))) == {"spectrum": [0.0, 0.0, 0.0], "effective_rank": 1.0}


def test_a_point_against_a_slow_rewrite() -> None:
    table = board()
    scores = table.measure.pool.scores(THETA)
    point = table.point(table.measure.pool.at_beta(scores, 0.5))
    kls, values, costs = [], [], []
    for counts, rewards in (([70, 25, 5], [0.0, 1.0, 3.0]), ([40, 30, 20, 10], [0.5, 0.0, 2.0, 1.0])):
        base = [n / sum(counts) for n in counts]
        raw = [w * np.exp(r / 0.5) for w, r in zip(base, rewards, strict=True)]
        tilted = [q / sum(raw) for q in raw]
        kls.append(sum(q * np.log(q / w) for q, w in zip(tilted, base, strict=True)))
        values.append(sum(q * r for q, r in zip(tilted, rewards, strict=True)))
        costs.append(max(q / w for q, w in zip(tilted, base, strict=True)))
    assert point["kl"] == pytest.approx(np.mean(kls))
    assert point["value"] == pytest.approx(np.mean(values))
    assert point["draws_per_answer"] == pytest.approx(np.mean(costs))
    assert point["low"] < point["value"] < point["high"]


def test_curves_start_at_the_base_model_and_rise() -> None:
    table = board()
    curve = table.curve(table.measure.pool.scores(THETA))
    assert [row["kl"] for row in curve] == list(KLS)
    assert curve[0]["value"] == pytest.approx(np.mean([0.4, 0.7]))
    assert curve[0]["draws_per_answer"] == pytest.approx(1.0)
    values = [row["value"] for row in curve]
    assert values == sorted(values)
    costs = table.per_prompt(table.measure.pool.scores(THETA), 1.0)
    assert len(costs) == 2
    assert np.mean(costs) == pytest.approx(curve[KLS.index(1.0)]["draws_per_answer"])


def test_the_other_curves_are_random_labels_and_the_optimum() -> None:
    table = board()
    random = (Baseline([], np.array([0.0, 1.0])), Baseline([], THETA))
    curves = table.other_curves(random)
    assert list(curves) == ["random, same labels", "true-reward optimum"]
    assert curves["random, same labels"] == table.curve(table.measure.pool.scores(random[0].theta))
    assert curves["true-reward optimum"] == table.curve(table.measure.pool.scores(THETA))
    assert list(table.other_curves(())) == ["true-reward optimum"]


def test_recommends_the_knee() -> None:
    table = board()
    scores = table.measure.pool.scores(THETA)
    curve = table.curve(scores)
    at = knee(np.array(KLS), np.array([row["value"] for row in curve]))
    assert at is not None
    found = recommend(curve, table, scores)
    assert found["kl"] == KLS[at]
    assert {key: found[key] for key in ("value", "low", "high", "draws_per_answer")} == {
        key: curve[at][key] for key in ("value", "low", "high", "draws_per_answer")
    }
    assert table.measure.pool.at_beta(scores, found["beta"]).kl == pytest.approx(KLS[at], abs=1e-3)
    assert found["draws_per_scan"] >= found["draws_per_answer"]
    gained = (curve[at]["value"] - curve[0]["value"]) / (curve[-1]["value"] - curve[0]["value"])
    assert found["reason"].startswith(f"the knee of the curve: {gained:.0%} of what KL = 4 nats gains")


def test_recommends_the_kl_that_was_asked_for_where_there_is_no_knee() -> None:
    table = board(kl=0.75)
    scores = table.measure.pool.scores(THETA)
    curve = table.curve(scores)
    straight = [{**row, "value": 0.3 + 0.1 * row["kl"]} for row in curve]
    found = recommend(straight, table, scores)
    assert found["kl"] == 0.75
    assert "no knee" in found["reason"]
    assert found["value"] == pytest.approx(curve[KLS.index(0.75)]["value"])
    for none in ([{**row, "value": 0.5 - row["kl"]} for row in curve], [{**row, "value": NAN} for row in curve]):
        found = recommend(none, table, scores)
        assert found["kl"] == 0.75
        assert "gains nothing over the base model, or is not known" in found["reason"]
        assert "nan" not in found["reason"]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (Interval(0.62, 0.41, 0.78), "yes: the features explain 62% of the variance of labels left out of the fit"),
        (Interval(0.02, -0.1, 0.08), "no: the features explain 2% of the variance of labels left out of the fit; try"),
        (Interval(-0.2, -0.5, 0.05), "no: labels left out of the fit are predicted no better than by their mean; try"),
        (Interval(0.2, -0.1, 0.5), "40 labels are too few to tell: the features explain 20% of the variance"),
        (Interval(-0.07, -0.5, 0.2), "40 labels are too few to tell: labels left out of the fit are predicted no"),
        (Interval(NAN, NAN, NAN), "too few different labels to tell whether the features explain this reward"),
    ],
)
def test_what_the_fit_means(interval: Interval, words: str) -> None:
    text = _reading(Fit(interval, 40, 5, 0.3))
    assert text.startswith(words)
    assert "-" not in text
    assert "nan" not in text


def test_comparisons_predict_the_gain_over_the_base_model() -> None:
    """Against a loop over prompts and responses; the interval from the posterior's own moments."""
    rng = np.random.default_rng(2)
    relative = rng.normal(size=(300, 2))
    outcomes = (rng.random(300) < 1 / (1 + np.exp(-relative @ THETA / 0.5))).astype(float)
    posterior = fit_comparisons(ComparisonStats().add(relative, outcomes), 1.0, scale=0.5)
    shown = board()
    pool = shown.measure.pool
    tilted = pool.at_kl(pool.scores(posterior.mean), 0.5)
    row = _prediction(posterior, shown.measure, tilted)
    moved = np.zeros(2)
    for x, draws in enumerate(pool.draws):
        for i, phi in enumerate(draws.features):
            moved += (tilted.weights[x, i] - draws.counts[i] / draws.counts.sum()) * phi / 2
    assert row["name"] == "predicted gain over the base model"
    assert row["value"] == pytest.approx(moved @ posterior.mean)
    std = 0.5 * np.sqrt(moved @ np.linalg.inv(posterior.precision()) @ moved)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * std, rel=0.1)
    assert "s = 0.5" in row["note"]
