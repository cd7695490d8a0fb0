"""`random-singles`: one fresh base draw of each random prompt."""

from __future__ import annotations

import laws
import pytest

from spannerlm.errors import InputError
from spannerlm.explorers import RandomSingles
from spannerlm.records import DrawRequest, LabelRequest

ENV = laws.random_table(1)


def test_a_batch_is_one_draw_of_each_of_as_many_prompts() -> None:
    trace = laws.drive(RandomSingles(pool=4), laws.Bench(ENV, laws.spec_of(ENV, labels=15, batch=6)))
    draws = [r for r in trace.requests if isinstance(r, DrawRequest)][1:]
    labels = [r for r in trace.requests if isinstance(r, LabelRequest)]
    assert [(len(r.prompts), r.n) for r in draws] == [(6, 1), (6, 1), (3, 1)]
    assert [tuple(item.prompt for item in r.items) for r in labels] == [r.prompts for r in draws]


def test_prompts_come_alone_and_in_any_order() -> None:
    trace = laws.drive(RandomSingles(pool=4), laws.Bench(ENV, laws.spec_of(ENV, labels=200, batch=20)))
    prompts = [item.prompt for item in trace.bench.asked]
    assert prompts[::2] != prompts[1::2]
    assert set(prompts) == {0, 1, 2}


def test_a_single_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="'random-singles': expected scalar rewards, got feedback='comparison'"):
        RandomSingles().init(laws.spec_of(ENV, feedback="comparison"))
