"""A model, its prompts and a feature map as the sampling oracle."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import PROMPTS, make, plain_states, rng

from spannerlm.backends.oracle import ModelOracle
from spannerlm.errors import InputError
from spannerlm.features import HiddenStates, LogprobLength, NGrams, feature_map
from spannerlm.records import DrawRequest, Draws, StepTilt
from spannerlm.segments import Segments
from spannerlm.stepwise import rolled


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
        assert oracle.tokens(d) == int(model.score(PROMPTS[d.prompt], d.responses).lengths @ d.counts)
    with pytest.raises(InputError, match="at least one text"):
        ModelOracle(model, [], features)


def test_a_feature_map_of_another_model_is_refused():
    with pytest.raises(InputError, match="width 32"):
        ModelOracle(make(), PROMPTS, HiddenStates(32)).draw([0], 2, rng=rng())


def test_ngrams_need_no_hidden_states():
    oracle = ModelOracle(make(), PROMPTS, NGrams(16))
    assert oracle.draw([0], 5, rng=rng())[0].features.shape[1] == 16


def test_steps_bring_features_of_their_own_and_count_their_tokens():
    model = make()
    features = feature_map(["before-eos:-1", {"kind": "ngrams", "dim": 8}], model.hidden_size)
    oracle = ModelOracle(model, PROMPTS, features, segments=2)
    prefixes = [(), ("b", " c"), ("b</s>",)]
    first, second, over = oracle.extend([0, 1, 0], prefixes, 10, rng=rng())
    for record, prefix in zip((first, second, over), prefixes, strict=True):
        assert record.prefix == prefix
        assert record.counts.sum() == 10
        assert record.features.shape == (len(record.responses), oracle.dim)
    lengths = [len(text.replace("</s>", " </s>").split()) for text in second.responses]
    assert oracle.tokens(second) == int(second.counts @ lengths)
    assert oracle.tokens(over) == 0
    tokens = model.codec.prompt_ids(PROMPTS[1])
    for text, row in zip(second.responses, second.features, strict=True):
        ids = model.codec.tokenizer("b c" + text.removesuffix("</s>"))["input_ids"]
        np.testing.assert_allclose(row[:16] * 4, plain_states(model.model, tokens + ids)[-1][-1], atol=1e-4)
        assert row[16:].any() == bool(text.removesuffix("</s>"))  # an end has no words
    with pytest.raises(InputError, match="prefixes: expected one per prompt, 1 in all, got 2"):
        oracle.extend([0], [(), ()], 2, rng=rng())
    with pytest.raises(InputError, match="expected draws as a model made them"):
        oracle.tokens(Draws(0, ("a",), np.array([1]), np.zeros((1, 2))))


def test_the_horizon_is_the_one_given_or_what_the_token_limit_allows():
    model, phi = make(), LogprobLength()
    assert ModelOracle(model, PROMPTS, phi).horizon is None
    assert ModelOracle(model, PROMPTS, phi, segments=4).horizon == 2  # of 6 tokens
    assert ModelOracle(model, PROMPTS, phi, segments="line").horizon is None
    oracle = ModelOracle(model, PROMPTS, phi, segments="sentence:3", horizon=2)
    assert oracle.horizon == 2
    assert oracle.segments == Segments(3, "sentence")
    assert oracle.complete(0, ("a", " b"))
    assert not oracle.complete(0, ("a",))
    assert oracle.joined(0, ("a", " b</s>")) == "a b"
    for horizon in (0, True, 2.0):
        with pytest.raises(InputError, match="horizon: expected a whole number of segments"):
            ModelOracle(model, PROMPTS, phi, segments=4, horizon=horizon)
    with pytest.raises(InputError, match="segments: expected what a step is where horizon=3 is given"):
        ModelOracle(model, PROMPTS, phi, horizon=3)


def test_a_request_gives_the_same_bits_whatever_was_asked_before():
    """Float noise moves with what a batch is made of, so what one request has encoded serves no other."""
    model = make(max_new_tokens=12)
    phi = feature_map("before-eos:-1", model.hidden_size)
    request = DrawRequest((0, 1, 0), 5, StepTilt(np.ones((6, phi.dim)), 1.0), {}, ((), (), ()))
    outcomes, spent = [], []
    for before in ([], [0, 1], [1, 2, 0]):
        oracle = ModelOracle(model, PROMPTS, phi, segments=2)
        if before:
            oracle.extend(before, [("a",)] * len(before), 9, rng=rng(5))
        start = model.encoded
        outcomes.append(rolled(oracle, request, rng=rng(1)))
        spent.append(model.encoded - start)
    assert len(set(spent)) == 1
    for other in outcomes[1:]:
        assert other.paths == outcomes[0].paths
        for a, b in zip(other.draws, outcomes[0].draws, strict=True):
            assert a.responses == b.responses
            np.testing.assert_array_equal(a.features, b.features)
