"""A model, its prompts and a feature map as the sampling oracle."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import PROMPTS, make, rng

from spannerlm.backends.oracle import ModelOracle
from spannerlm.errors import InputError
from spannerlm.features import HiddenStates, NGrams, feature_map


def test_the_oracle_brings_features_of_its_draws():
    model = make()
    features = feature_map(["hidden", {"kind": "ngrams", "dim": 8}, "logprob-length"], model.hidden_size)
    oracle = ModelOracle(model, PROMPTS, features)
    draws = oracle.draw([2, 0, 2], 30, rng=rng())
    assert oracle.dim == 16 + 8 + 2
    assert [d.prompt for d in draws] == [2, 0, 2]
    for d in draws:
        assert d.features.shape == (len(d.responses), oracle.dim)
        assert d.counts.sum() == 30
        np.testing.assert_allclose(oracle.features_of(d.prompt, d.responses), d.features, atol=1e-5)
        np.testing.assert_array_equal(d.features, d.features.astype(np.float32))
    steps = oracle.extend([0, 1], [(), ("b", " c")], 10, rng=rng())
    assert all(s.counts.sum() == 10 and s.features.shape[1] == oracle.dim for s in steps)
    with pytest.raises(InputError, match="at least one text"):
        ModelOracle(model, [], features)


def test_a_feature_map_of_another_model_is_refused():
    with pytest.raises(InputError, match="width 32"):
        ModelOracle(make(), PROMPTS, HiddenStates(32)).draw([0], 2, rng=rng())


def test_ngrams_need_no_hidden_states():
    oracle = ModelOracle(make(), PROMPTS, NGrams(16))
    assert oracle.draw([0], 5, rng=rng())[0].features.shape[1] == 16
