"""Feature maps: values against slow recomputation, specifications that rebuild, errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spannerlm.errors import InputError
from spannerlm.features import (
    CallableFeatures,
    Concatenation,
    HiddenStates,
    LogprobLength,
    NGrams,
    centre,
    feature_map,
)
from spannerlm.records import Generated

TEXTS = ("let it cool !", "see page two", "")


def batch(texts=TEXTS, width=6, prompt="my printer is hot ;", seed=0):
    rng = np.random.default_rng(seed)
    n = len(texts)
    return Generated(
        prompt=prompt,
        responses=tuple(texts),
        counts=np.arange(1, n + 1),
        logprobs=-np.arange(1.0, n + 1),
        lengths=np.array([len(t.split()) + 1 for t in texts], dtype=np.int64),
        finished=np.ones(n, dtype=bool),
        hidden={name: rng.normal(size=(n, width)) for name in ("mean:-1", "before-eos:-1", "mean:2")},
    )


MAPS = [
    HiddenStates(6),
    HiddenStates(6, layer=2, scale=3.0),
    HiddenStates(6, pooling="before-eos", project=4, seed=7),
    NGrams(16),
    NGrams(8, low=2, high=3, analyzer="char", scale=0.5),
    LogprobLength(),
    LogprobLength(typical=100.0),
    Concatenation((NGrams(4), LogprobLength(), HiddenStates(6)), (1.0, 0.5, 2.0)),
    Concatenation((HiddenStates(6), HiddenStates(6, project=2))),
]


@pytest.mark.parametrize("features", MAPS, ids=lambda m: f"{type(m).__name__}-{m.dim}")
def test_every_map_is_exact_in_float32_and_rebuilt_from_its_specification(features):
    given_batch = batch()
    values = features(given_batch)
    assert values.shape == (3, features.dim)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, values.astype(np.float32))
    again = feature_map(json.loads(json.dumps(features.spec())))
    assert again == features
    assert again.dim == features.dim
    assert again.hidden == features.hidden
    np.testing.assert_array_equal(again(given_batch), values)
    assert set(features.hidden) <= set(given_batch.hidden)


@pytest.mark.parametrize("features", MAPS, ids=lambda m: f"{type(m).__name__}-{m.dim}")
def test_a_row_does_not_depend_on_the_others(features):
    whole = batch()
    alone = Generated(
        prompt=whole.prompt,
        responses=whole.responses[1:2],
        counts=whole.counts[1:2],
        logprobs=whole.logprobs[1:2],
        lengths=whole.lengths[1:2],
        finished=whole.finished[1:2],
        hidden={k: v[1:2] for k, v in whole.hidden.items()},
    )
    np.testing.assert_allclose(features(alone)[0], features(whole)[1], rtol=1e-6)


def test_hidden_states_are_divided_by_the_root_of_the_width():
    b = batch()
    np.testing.assert_allclose(HiddenStates(6)(b), b.hidden["mean:-1"] / np.sqrt(6), rtol=1e-6)
    np.testing.assert_allclose(HiddenStates(6, 2, scale=3.0)(b), 3 * b.hidden["mean:2"] / np.sqrt(6), rtol=1e-6)
    wide = batch(width=4096)
    assert np.linalg.norm(HiddenStates(4096)(wide), axis=1) == pytest.approx(np.ones(3), abs=0.1)


def test_ngrams_count_words_and_their_order():
    features = NGrams(512, low=1, high=2)
    a, b, c, d = features(batch(("cool it !", "it cool !", "cool it", "cool it !")))
    np.testing.assert_array_equal(a, d)
    assert not np.allclose(a, b)
    assert not np.allclose(a, c), "punctuation counts"
    assert np.linalg.norm(a) == pytest.approx(1)
    assert a @ c > a @ b
    assert not NGrams(8)(batch(("",))).any()


def test_logprob_and_length():
    np.testing.assert_allclose(LogprobLength(10.0)(batch()), [[-0.1, 0.5], [-0.2, 0.4], [-0.3, 0.1]], rtol=1e-6)


def test_concatenation_weighs_its_blocks():
    b = batch()
    both = Concatenation((LogprobLength(), NGrams(4)), (2.0, 0.5))
    np.testing.assert_allclose(both(b), np.hstack([2 * LogprobLength()(b), 0.5 * NGrams(4)(b)]), rtol=1e-6)
    assert Concatenation((HiddenStates(6), HiddenStates(6, project=2), HiddenStates(6, 2))).hidden == (
        "mean:-1",
        "mean:2",
    )


# ---- the user's own function


def test_a_function_is_called_with_prompts_and_completions():
    seen = []

    def own(prompts, completions):
        seen.append((prompts, completions))
        return [[len(c), 0.1] for c in completions]

    features = feature_map(own)
    assert features.dim == 2
    np.testing.assert_array_equal(features(batch())[:, 0], [len(t) for t in TEXTS])
    assert seen[-1] == (["my printer is hot ;"] * 3, list(TEXTS))
    with pytest.raises(InputError, match=r"'.*own'; pass the same function again"):
        features.spec()
    with pytest.raises(InputError, match="pass the same function again"):
        Concatenation((NGrams(2), features)).spec()
    with pytest.raises(InputError, match="pass it again"):
        feature_map({"kind": "callable", "name": "own"})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([1.0, 2.0, 3.0], r"expected an array \[3, 2\], got shape \[3\]"),
        ([[1.0, 2.0]] * 2, r"got shape \[2, 2\]; return one row"),
        ([[1.0]] * 3, r"got shape \[3, 1\]"),
        ([[1.0, 2.0], [1.0, np.nan], [0.0, 0.0]], "expected finite numbers, got .* for 'see page two'"),
        ([["a", "b"]] * 3, "the function failed"),
        ([[1.0, 2.0], [1.0], [0.0]], "the function failed"),
        (None, r"got shape \[\]"),
    ],
)
def test_what_a_function_returns_is_checked(out, message):
    with pytest.raises(InputError, match=message):
        CallableFeatures(lambda prompts, completions: out, 2)(batch())


def test_a_function_that_fails_on_the_trial_text_can_state_its_dimension():
    def picky(prompts, completions):
        return [[{"let it cool !": 1.0, "see page two": 2.0, "": 0.0}[c]] for c in completions]

    with pytest.raises(InputError, match=r"trial call .* raised KeyError.*CallableFeatures\(function, dim=...\)"):
        feature_map(picky)
    assert CallableFeatures(picky, 1)(batch())[:, 0].tolist() == [1.0, 2.0, 0.0]


# ---- specifications


def test_short_names():
    assert feature_map("hidden", 96) == HiddenStates(96)
    assert feature_map("hidden", 4096) == HiddenStates(4096, project=256)
    assert feature_map("before-eos:3", 8) == HiddenStates(8, 3, "before-eos")
    assert feature_map("mean:-2", 8).hidden == ("mean:-2",)
    assert feature_map("ngrams") == NGrams()
    assert feature_map(["ngrams", "logprob-length"]).dim == 258
    assert feature_map({"kind": "hidden", "project": 64}, 96) == HiddenStates(96, project=64)
    same = NGrams(4)
    assert feature_map(same) is same


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("hiden", "unknown name 'hiden'; did you mean 'hidden'"),
        ("mean:last", "expected a layer number after ':'"),
        ("ngrams:2", "unknown name"),
        ({"kind": "ngram"}, "did you mean 'ngrams'"),
        ({"dim": 4}, "unknown kind None; valid: hidden, ngrams"),
        ({"kind": "ngrams", "dimension": 4}, "unknown key 'dimension' for kind 'ngrams'"),
        ({"kind": "ngrams", "dim": 0}, "whole number of at least 1 for dim, got 0"),
        ({"kind": "ngrams", "dim": 2.5}, "expected a whole number"),
        ({"kind": "ngrams", "low": 3, "high": 2}, "low <= high"),
        ({"kind": "ngrams", "analyzer": "byte"}, "one of word, char, got 'byte'"),
        ({"kind": "hidden", "pooling": "max"}, "one of mean, before-eos, got 'max'"),
        ({"kind": "hidden", "project": -1}, "at least 1 for project, got -1"),
        ({"kind": "hidden", "layer": "last"}, "expected a whole number"),
        ({"kind": "hidden", "scale": float("nan")}, "finite number for scale"),
        ({"kind": "logprob-length", "typical": "long"}, "typical"),
        ({"kind": "concat", "parts": []}, "at least one feature map"),
        ({"kind": "concat", "parts": ["ngrams"], "weights": [1, 2]}, "expected 1 weights, one per part, got 2"),
        (3, "expected a name, a mapping, a list or a function, got 3"),
    ],
)
def test_wrong_specifications_are_named(config, message):
    with pytest.raises(InputError, match=message):
        feature_map(config, 8)


def test_hidden_states_that_are_not_there():
    with pytest.raises(InputError, match="expected a model whose hidden states can be seen"):
        feature_map("hidden")
    with pytest.raises(InputError, match=r"expected hidden states 'mean:5', got \['before-eos:-1'"):
        HiddenStates(6, 5)(batch())
    with pytest.raises(InputError, match="width 7"):
        HiddenStates(7)(batch())


# ---- centring


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_centring_is_that_of_the_draws_one_by_one(n, d, seed):
    rng = np.random.default_rng(seed)
    features, counts = rng.normal(size=(n, d)), rng.integers(1, 9, size=n)
    one_by_one = np.repeat(features, counts, axis=0)
    np.testing.assert_allclose(centre(features, counts), features - one_by_one.mean(axis=0), atol=1e-12)
    differences = centre(features, counts)[:, None] - centre(features, counts)[None]
    np.testing.assert_allclose(differences, features[:, None] - features[None], atol=1e-12)


def test_centring_needs_draws():
    with pytest.raises(InputError, match="one draw at least"):
        centre(np.ones((2, 3)), np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match="each of 2 rows"):
        centre(np.ones((2, 3)), np.ones(3, dtype=np.int64))
