"""Asking a server for embeddings: what it said is checked, what failed is asked for again, nothing is paid twice."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from embedders import WIDTH, Embedder, vector

from spannerlm import embedding_client
from spannerlm.embedding import EmbeddingFeatures
from spannerlm.errors import InputError, ModelError
from spannerlm.feature_parts import gaussian_projection
from spannerlm.records import Generated

pytest.importorskip("httpx")

PROMPT = "my printer is hot ;"
TEXTS = tuple(f"let it cool {word} !" for word in ("a", "bit", "while", "day", "night", "week", "year"))
KEY = "sk-very-secret-9"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of a few milliseconds, and the key."""
    monkeypatch.setattr(embedding_client, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("SPANNERLM_TEST_KEY", KEY)


def batch(texts=TEXTS, prompt=PROMPT):
    n = len(texts)
    ones = np.ones(n, dtype=np.int64)
    return Generated(prompt, tuple(texts), ones, -np.ones(n), ones, np.ones(n, dtype=bool))


def features(server, **options):
    defaults = {"model": "m", "url": server.url, "key_env": "SPANNERLM_TEST_KEY", "batch_size": 2, "concurrency": 1}
    return EmbeddingFeatures(**{**defaults, **options})


def slowly(texts=TEXTS, prompt=PROMPT, dim=64, seed=0):
    """[n, d] the features, text by text and coordinate by coordinate."""
    rows = []
    matrix = gaussian_projection(WIDTH, dim, seed)
    for text in texts:
        found = vector(f"{prompt}\n{text}")
        norm = sum(x * x for x in found) ** 0.5
        rows.append([sum(x / norm * float(m) for x, m in zip(found, matrix[:, j], strict=True)) for j in range(dim)])
    return np.array(rows)


@pytest.fixture(scope="module")
def expected():
    return slowly()


def test_vectors_are_asked_for_in_batches_normalised_and_projected(expected):
    with Embedder() as server:
        phi = features(server)
        values = phi(batch())
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(values, values.astype(np.float32))
    assert [len(body["input"]) for body in server.bodies] == [2, 2, 2, 1]
    assert server.texts == [f"{PROMPT}\n{text}" for text in TEXTS]
    assert {(body["model"], body["encoding_format"]) for body in server.bodies} == {("m", "float")}
    assert set(server.paths) == {"/v1/embeddings"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert phi.usage.requests == 4
    assert phi.usage.prompt_tokens == sum(len(text.split()) for text in server.texts)


def test_without_projection_or_norm():
    with Embedder() as server:
        plain = features(server, project=None, width=WIDTH, normalise=False, scale=2.0)
        assert plain.dim == WIDTH
        wanted = 2.0 / np.sqrt(WIDTH) * np.array([vector(f"{PROMPT}\n{text}") for text in TEXTS])
        np.testing.assert_allclose(plain(batch()), wanted, rtol=1e-6)
        with pytest.raises(ModelError, match="expected vectors of width 39, got 40: is this the same model"):
            features(server, width=39)(batch())


@pytest.mark.parametrize("fate", ["429", "500", "503", "408", "drop", "half", "words", "reversed"])
def test_a_fault_now_and_then_changes_nothing(fate, expected):
    with Embedder(lambda k: fate if k in (1, 3) else None) as server:
        phi = features(server, concurrency=3)
        np.testing.assert_allclose(phi(batch()), expected, rtol=1e-6, atol=1e-7)
    again = 0 if fate == "reversed" else 2
    assert len(server.bodies) == 4 + again
    assert phi.usage.requests == 4 + (2 if fate == "words" else 0), "what came complete may have been charged"


LASTING = {
    "429": "gave up after 3 attempts: the server answered 429",
    "503": "gave up after 3 attempts: the server answered 503",
    "drop": "no whole reply came",
    "half": "no whole reply came",
    "words": "no JSON: 'try again later'",
    "slow": "no whole reply came .ReadTimeout|not complete within",
    "400": "refused with 400",
    "401": "refused with 401.*put the right key into key_env",
    "302": "refused with 302",
    "fewer": "expected 2 embeddings, one per text, got 1",
    "twice": r"each index from 0 to 1 once, got \[0, 0\]",
    "ragged": "all of one length",
    "nan": "expected finite numbers",
    "huge": "expected finite numbers",
    "base64": "expected lists of numbers",
    "empty": r"got shape \[2, 0\]",
    "chat": "OpenAI form.*is 'm' a model of embeddings",
    "narrow": "expected vectors of width 40, got 39",
}


@pytest.mark.parametrize("fate", LASTING)
def test_a_fault_that_lasts_is_named_without_the_key_and_what_came_is_kept(fate, expected):
    with Embedder(lambda k: fate if k >= 2 else None) as server:
        phi = features(server, retries=2, timeout_s=0.2 if fate == "slow" else 20.0)
        with pytest.raises(ModelError, match=LASTING[fate]) as caught:
            phi(batch())
        assert server.url in str(caught.value)
        assert KEY not in str(caught.value)
        resent = fate in ("429", "503", "drop", "half", "words", "slow")
        assert len(server.bodies) == 2 + (3 if resent else 1)
        server.release.set()
        server.fate = lambda k: None
        before = len(server.bodies)
        if fate != "slow":  # a busy machine may be late again
            np.testing.assert_allclose(phi(batch()), expected, rtol=1e-6, atol=1e-7)
            assert [len(body["input"]) for body in server.bodies[before:]] == [2, 1]


def test_a_server_that_is_not_there():
    with Embedder() as server:
        pass
    with pytest.raises(ModelError, match=r"gave up at once: no whole reply came .ConnectError"):
        features(server, retries=0)(batch())


def test_a_text_is_paid_for_once_and_blank_ones_never(expected):
    with Embedder() as server:
        phi = features(server)
        phi(batch(TEXTS[:3]))
        np.testing.assert_allclose(phi(batch()), expected, rtol=1e-6, atol=1e-7)
        phi(batch())
        assert len(server.texts) == len(set(server.texts)) == len(TEXTS)
        phi(batch(prompt="another"))
        assert len(server.texts) == 2 * len(TEXTS)
        bare = features(server, template="{response}")
        values = bare(batch(("", " \n", "one")))
        assert not values[:2].any()
        assert values[2].any()
        assert server.texts[2 * len(TEXTS) :] == ["one"]
        assert bare(batch(())).shape == (0, 64)


def test_what_is_kept_is_bounded(monkeypatch, expected):
    monkeypatch.setattr(embedding_client, "KEPT", 3 * 64)
    with Embedder() as server:
        phi = features(server)
        np.testing.assert_allclose(phi(batch()), expected, rtol=1e-6, atol=1e-7)
        phi(batch(TEXTS[-3:]))
        assert len(server.texts) == 7
        phi(batch(TEXTS[:1]))
        phi(batch(TEXTS[-2:]))
        assert len(server.texts) == 8, "what was not used for longest went first"


def test_no_more_requests_than_allowed_are_under_way(expected):
    with Embedder() as server:
        values = features(server, batch_size=1, concurrency=3)(batch())
        assert 1 <= server.most <= 3
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def test_a_row_is_the_same_to_the_last_bit_whatever_is_asked_beside_it():
    with Embedder() as server:
        whole = features(server, batch_size=7)(batch())
        for size in (1, 2, 5):
            np.testing.assert_array_equal(features(server, batch_size=size, concurrency=2)(batch()), whole)


def test_names_within_texts_are_no_places_and_any_text_is_sent():
    odd = ("{prompt}", "a\x00b", "\ud800", "שלום 🙂")
    with Embedder() as server:
        server.send_back = lambda texts, fate: json.dumps(
            {"data": [{"index": i, "embedding": [1.0 + len(t)] * WIDTH} for i, t in enumerate(texts)]}
        ).encode()
        phi = features(server, template="<{prompt}|{response}>")
        assert phi(batch(odd, prompt="{response}")).shape == (4, 64)
    assert server.texts == [f"<{{response}}|{text}>" for text in odd]
    assert phi.usage.prompt_tokens == 0


def test_the_key_comes_from_its_variable_at_each_call(monkeypatch):
    with Embedder() as server:
        phi = features(server)
        monkeypatch.delenv("SPANNERLM_TEST_KEY")
        with pytest.raises(InputError, match="SPANNERLM_TEST_KEY: expected the API key"):
            phi(batch())
        assert server.bodies == []
        features(server, key_env=None)(batch())
        assert set(server.keys) == {None}


def test_the_test_servers_vectors_differ():
    digests = {hashlib.sha256(json.dumps(vector(text)).encode()).digest() for text in TEXTS}
    assert len(digests) == len(TEXTS)
