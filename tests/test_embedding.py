"""Feature maps from an embeddings endpoint or a local encoder: settings, what a file says of them, a whole run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from embedders import WIDTH, Embedder, vector

from spannerlm import load_policy
from spannerlm.config import load_config
from spannerlm.embedding import EmbeddingFeatures, EncoderFeatures
from spannerlm.errors import InputError
from spannerlm.feature_parts import gaussian_projection
from spannerlm.features import feature_map
from spannerlm.http import Usage
from spannerlm.job import run_job
from spannerlm.ledger import Ledger
from spannerlm.records import Generated

pytest.importorskip("httpx")

KEY = "sk-very-secret-7"
GIVEN = {"kind": "embeddings", "url": "http://127.0.0.1:1/v1", "model": "m"}
SMALL = [
    *("max_prompts=8", "draws=400", "labels=12", "batch=4", "evaluation.draws=16", "evaluation.max_prompts=4"),
    "explorer=directed",
]


def batch(texts=("let it cool !", "see page two"), prompt="my printer is hot ;"):
    n = len(texts)
    ones = np.ones(n, dtype=np.int64)
    return Generated(prompt, tuple(texts), ones, -np.ones(n), ones, np.ones(n, dtype=bool))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "127.0.0.1:8000"}, "url: expected http"),
        ({"url": "http://me:pw@host/v1"}, "no password and no query"),
        ({"url": "http://host/v1?key=pw"}, "no password and no query"),
        ({"url": 7}, "expected an address for url, got 7"),
        ({"model": ""}, "name of a model for model, got ''"),
        ({"template": "{prompt}"}, "template with {response} in it"),
        ({"key_env": ""}, "environment variable for key_env"),
        ({"project": 0}, "at least 1 for project, got 0"),
        ({"project": None}, "expected width"),
        ({"width": 1.5}, "whole number of at least 1 for width"),
        ({"seed": -1}, "at least 0 for seed"),
        ({"normalise": "yes"}, "true or false for normalise, got 'yes'"),
        ({"scale": float("nan")}, "finite number for scale"),
        ({"batch_size": 0}, "at least 1 for batch_size"),
        ({"concurrency": True}, "at least 1 for concurrency"),
        ({"retries": -1}, "at least 0 for retries"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"modle": "m"}, "unknown key 'modle' for kind 'embeddings'; did you mean 'model'"),
        ({"kind": "embedding"}, "unknown kind 'embedding'; did you mean 'embeddings'"),
        ({"kind": "encoder"}, "unknown key 'url' for kind 'encoder'"),
    ],
)
def test_settings_that_cannot_be_are_named_and_no_secret_is_repeated(change, says):
    with pytest.raises(InputError) as caught:
        feature_map({**GIVEN, **change})
    assert says in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "prompt"}, "expected text to be one of response, both, got 'prompt'"),
        ({"batch_size": 0}, "at least 1 for batch_size"),
        ({"max_tokens": 0}, "at least 1 for max_tokens"),
        ({"model": None}, "name of a model for model"),
    ],
)
def test_settings_of_an_encoder_that_cannot_be(change, says):
    with pytest.raises(InputError) as caught:
        feature_map({"kind": "encoder", "model": "m", **change})
    assert says in str(caught.value)


def test_a_map_is_rebuilt_from_what_a_file_says_of_it():
    for phi in (
        EmbeddingFeatures("m", url="http://host/v1/", key_env="K", project=7, template="{response}", batch_size=3),
        EncoderFeatures("org/name", text="both", revision="main", normalise=False),
    ):
        assert feature_map(json.loads(json.dumps(phi.spec()))) == phi
        assert phi.hidden == ()
    assert feature_map("encoder:org/name") == EncoderFeatures("org/name")
    with pytest.raises(InputError, match="unknown name 'encoder'"):
        feature_map("encoder")


def test_a_directory_is_found_again_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert EncoderFeatures("here").spec()["model"] == str(tmp_path / "here")
    assert EncoderFeatures("org/name").spec()["model"] == "org/name"


def test_beside_another_map_the_bill_is_still_there():
    with Embedder() as first, Embedder() as second:
        parts = [{**GIVEN, "url": server.url, "project": d} for server, d in ((first, 3), (second, 4))]
        phi = feature_map(["ngrams", *parts])
        values = phi(batch())
        assert phi.dim == values.shape[1] == 256 + 3 + 4
        tokens = sum(len(text.split()) for text in first.texts)
        assert phi.usage == Usage(2, 2 * tokens, 0, 0.0)
        for place, d in ((slice(256, 259), 3), (slice(259, 263), 4)):
            raw = np.array([vector(text) for text in first.texts])
            wanted = raw / np.linalg.norm(raw, axis=1, keepdims=True) @ gaussian_projection(WIDTH, d, 0)
            np.testing.assert_allclose(values[:, place], wanted, rtol=1e-6, atol=1e-7)
    assert feature_map(["ngrams", "logprob-length"]).usage is None


def test_a_run_pays_once_keeps_no_key_and_its_policy_asks_again(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("SPANNERLM_TEST_KEY", KEY)
    with Embedder(lambda k: "503" if k == 2 else None) as server:
        told = {**GIVEN, "url": server.url, "key_env": "SPANNERLM_TEST_KEY", "template": "{response}", "project": 16}
        config = load_config(None, [*SMALL, f"features={json.dumps(told)}"])
        report = run_job(config, tmp_path / "run", lambda _: None)
        assert report["usage"]["the embeddings"]["requests"] == len(server.bodies) - 1
        sent = [text for k, body in enumerate(server.bodies) if k != 2 for text in body["input"]]
        assert len(sent) == len(set(sent)), "a text is paid for once"
        assert set(server.keys) == {f"Bearer {KEY}"}
        for file in (tmp_path / "run").rglob("*"):
            assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
        assert "requests to the embeddings" in (tmp_path / "run" / "report.html").read_text()
        policy = load_policy(tmp_path / "run")
        assert policy.features.dim == 16
        asked = len(server.bodies)
        assert policy.sample(["my printer is hot ;"], 1, rng=np.random.default_rng(0))[0].responses
        assert len(server.bodies) > asked
        with Ledger.open(tmp_path / "run") as ledger:
            assert ledger.counts.labels == 12


def test_nothing_heavy_is_imported_until_features_are_asked_for():
    code = "import sys; from spannerlm.features import feature_map; feature_map('encoder:org/name'); "
    code += f"feature_map({GIVEN!r}); sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'httpx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
