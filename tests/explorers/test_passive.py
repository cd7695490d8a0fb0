"""`passive`: pairs of fresh base draws of one prompt."""

from __future__ import annotations

import laws
import numpy as np
import pytest

from spannerlm.explorers import Passive
from spannerlm.records import Drawn, Draws, LabelRequest

ENV = laws.random_table(1)


@pytest.mark.parametrize("batch", [2, 6, 7, 20])
def test_items_come_in_pairs_of_one_prompt(batch: int) -> None:
    trace = laws.drive(Passive(pool=4), laws.Bench(ENV, laws.spec_of(ENV, labels=40, batch=batch)))
    for request in trace.requests:
        if isinstance(request, LabelRequest):
            prompts = [item.prompt for item in request.items]
            assert prompts[::2] == prompts[1::2]
            assert len(prompts) <= batch


def test_an_odd_budget_ends_with_half_a_pair() -> None:
    trace = laws.drive(Passive(pool=4), laws.Bench(ENV, laws.spec_of(ENV, labels=9, batch=4)))
    assert [len(r.items) for r in trace.requests if isinstance(r, LabelRequest)] == [4, 4, 1]


def test_both_of_a_pair_are_independent_draws() -> None:
    """4,000 pairs of one prompt: P(second | first) = pi_ref; five standard errors in every cell."""
    env = laws.random_table(2, prompts=2)
    trace = laws.drive(Passive(pool=4), laws.Bench(env, laws.spec_of(env, labels=8000, batch=200)))
    rows = np.array([int(item.response) for item in trace.bench.asked]).reshape(-1, 2)
    table = np.zeros((7, 7))
    np.add.at(table, tuple(rows.T), 1.0)
    symmetric = (table + table.T) / 8000  # the order within a record is that of the responses
    law = np.outer(env.base_probs[0], env.base_probs[0])
    assert (np.abs(symmetric - law) <= 5 * np.sqrt(law * (1 - law) / 4000)).all()


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_a_pair_is_one_comparison_of_independent_draws() -> None:
    """2,000 comparisons of one prompt: unordered pairs of different responses, by pi_ref x pi_ref; five errors."""
    env = laws.random_table(2, prompts=2)
    bench = laws.Bench(laws.compared(env), laws.spec_of(env, labels=2000, batch=100, feedback="comparison"))
    trace = laws.drive(Passive(pool=4), bench)
    assert all(item.opponent is not None and item.fresh for item in trace.bench.asked)
    table = np.zeros((7, 7))
    for item in trace.bench.asked:
        table[int(item.response), int(item.opponent or "")] += 1.0
    law = np.outer(env.base_probs[0], env.base_probs[0])
    np.fill_diagonal(law, 0.0)
    law = 2.0 * law / law.sum()
    found = (table + table.T) / 2000
    assert (np.abs(found - law) <= 5 * np.sqrt(law * (1 - law) / 2000) + 1e-12).all()
    assert not np.diag(found).any()
    assert trace.bench.spent >= 8 + 2 * 2000


def test_copies_and_equal_features_are_compared_with_nothing() -> None:
    features = ENV.features[0, [0, 0, 3]]
    explorer = Passive(pool=4)
    for fresh, expected in ((True, [("0", "2"), ("0", "2")]), (False, [("0", "2")])):
        state = explorer.init(laws.spec_of(ENV, fresh=fresh, feedback="comparison"))
        for counts in ([2, 0, 0], [1, 1, 0], [2, 0, 2], [1, 1, 0]):
            kept = np.flatnonzero(counts)
            draws = Draws(0, tuple(str(k) for k in kept), np.array(counts)[kept], features[kept])
            state = explorer.absorb(state, Drawn((draws,), sum(counts)))
        assert [(item.response, item.opponent) for item in state.fresh] == expected


def test_every_comparison_is_made_once_where_a_label_settles_it() -> None:
    env = laws.tie(prompts=2, responses=3, dim=2)
    spec = laws.spec_of(env, labels=100, fresh=False, feedback="comparison")
    trace = laws.drive(Passive(pool=4), laws.Bench(laws.compared(env), spec))
    assert trace.bench.bought == 2 * 3
    assert "no unlabelled response" in trace.stop.reason
