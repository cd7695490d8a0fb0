"""A run's own draws and labels as a pool: the same numbers, nothing spent, nothing changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spannerlm.config import load_config
from spannerlm.errors import InputError
from spannerlm.features import NGrams
from spannerlm.foundation.past import gather_run
from spannerlm.job import run_job
from spannerlm.ledger import Ledger
from spannerlm.records import Generated, Labelled

SMALL = [
    "labels=30",
    "draws=2048",
    "max_prompts=8",
    "evaluation.draws=16",
    "evaluation.max_prompts=4",
    "baselines=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("past") / "run"
    run_job(load_config(None, SMALL), directory)
    return directory


def content(run: Path) -> dict[Path, bytes]:
    """Every file but SQLite's shared memory, which readers make and drop."""
    files = [file for file in run.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
    return {file: file.read_bytes() for file in files}


def test_the_pool_is_what_the_run_drew_and_labelled(run: Path) -> None:
    before = content(run)
    past = gather_run(run)
    assert content(run) == before
    pool, counts = past.found.pool, past.found.counts
    with Ledger.open(run, read_only=True) as ledger:
        spent = ledger.counts
        bought = [a for e in ledger.replay() if isinstance(e.event, Labelled) for a in e.event.labels]
        names = ledger.prompts
    assert counts.eval_draws == spent.draws
    assert counts.eval_labels == spent.labels == 30
    assert pool.n * len(pool.prompts) == spent.draws
    assert set(pool.prompts) <= set(names)
    assert pool.labels is not None
    assert not pool.labels.random
    found = sorted(
        (pool.prompts[x], pool.draws[x].responses[row], value)
        for x, row, value in zip(pool.labels.prompts, pool.labels.rows, pool.labels.values, strict=True)
    )
    assert found == sorted((names[a.prompt], a.response, a.value) for a in bought)


def test_rewards_maps_and_texts_are_those_of_the_task(run: Path) -> None:
    past = gather_run(run)
    pool = past.found.pool
    assert pool.rewards is not None
    assert pool.noise_std == 0.3
    assert past.task.truth is not None
    assert list(pool.maps) == ["hidden", "ngrams"]
    for x, d in enumerate(pool.draws):
        texts = list(d.responses)
        assert pool.rewards[x].tolist() == past.task.truth([pool.prompts[x]] * len(texts), texts)
        none = np.zeros(len(texts))
        text = Generated(pool.prompts[x], d.responses, d.counts, none, none.astype(np.int64), none > 0)
        np.testing.assert_array_equal(pool.features("ngrams")[x], NGrams()(text))
        assert pool.features("hidden")[x].shape == (len(texts), 96)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no config\.yaml"):
        gather_run(tmp_path)
