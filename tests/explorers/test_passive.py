"""`passive`: pairs of fresh base draws of one prompt."""

from __future__ import annotations

import laws
import numpy as np
import pytest

from spannerlm.explorers import Passive
from spannerlm.records import LabelRequest

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
