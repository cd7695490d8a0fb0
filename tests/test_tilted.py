"""The learned policy on disk: exact round trip, refusals, and the law of what it draws."""

from __future__ import annotations

import json
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spannerlm.errors import InputError
from spannerlm.features import feature_map
from spannerlm.tilted import TiltedPolicy, load_policy, save_policy

sys.path.insert(0, str(Path(__file__).parent / "backends"))
from tiny_models import make

ABOUT: dict[str, Any] = {"model": None, "options": {}, "features": "logprob-length", "coverage": 20.0}


def saved(folder: Path, theta: Any = (1.0, -0.5), beta: float = 0.7, **about: Any) -> Path:
    save_policy(folder, np.array(theta), beta, {**ABOUT, **about})
    return folder


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    theta = np.random.default_rng(0).standard_normal(2) * np.array([1e-300, 1e300])
    policy = load_policy(saved(tmp_path, theta, 1 / 3), model=make())
    np.testing.assert_array_equal(policy.theta, theta)
    assert policy.beta == 1 / 3
    assert policy.coverage == 20.0


def test_an_infinite_temperature_survives_json(tmp_path: Path) -> None:
    assert load_policy(saved(tmp_path, beta=float("inf")), model=make()).beta == float("inf")
    json.loads((tmp_path / "policy.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def enumerated(model: Any, prompt: str, policy: TiltedPolicy) -> dict[str, float]:
    """The exact tilted law of a model that answers in at most two tokens."""
    record = model.generate([prompt], 60_000, hidden=(), rng=np.random.default_rng(1))[0]
    scores = policy.features(record) @ policy.theta / policy.beta
    raw = np.exp(record.logprobs + scores)
    assert np.exp(record.logprobs).sum() > 0.9995  # what was never drawn has next to no mass
    return dict(zip(record.responses, raw / raw.sum(), strict=True))


@pytest.mark.parametrize("coverage", [None, 40.0])
def test_answers_have_the_exact_tilted_law(coverage: float | None) -> None:
    model = make(max_new_tokens=2)
    policy = TiltedPolicy(np.array([0.4, 1.0]), 0.8, model, feature_map("logprob-length"), coverage)
    law = enumerated(model, "the printer", policy)
    n = 3000
    answers = [
        a
        for i in range(15)
        for a in policy.sample(["the printer"] * 20, n // 300, rng=np.random.default_rng(i), max_draws=4096)
    ]
    found = Counter(text for a in answers for text in a.responses)
    assert sum(found.values()) == n
    top = sorted(law, key=lambda text: -law[text])[:12]
    for text in top:
        error = np.sqrt(law[text] * (1 - law[text]) / n)
        assert found[text] / n == pytest.approx(law[text], abs=4.5 * error + 0.01), text


def test_no_tilt_is_the_base_model() -> None:
    model = make(max_new_tokens=2)
    flat = TiltedPolicy(np.zeros(2), 1.0, model, feature_map("logprob-length"), 1.0)
    record = model.generate(["a"], 30_000, hidden=(), rng=np.random.default_rng(1))[0]
    base = dict(zip(record.responses, np.exp(record.logprobs), strict=True))
    answers = flat.sample(["a"] * 400, 1, rng=np.random.default_rng(2))
    found = Counter(a.responses[0] for a in answers)
    for text in sorted(base, key=lambda t: -base[t])[:4]:
        assert found[text] / 400 == pytest.approx(base[text], abs=4.5 * np.sqrt(base[text] * (1 - base[text]) / 400))


def test_the_cap_on_draws_is_kept_and_told() -> None:
    policy = TiltedPolicy(np.zeros(2), 1.0, make(), feature_map("logprob-length"), 1000.0)
    answer = policy.sample(["a"], 1, rng=np.random.default_rng(0), max_draws=128)[0]
    assert (answer.draws, answer.exhausted) == (128, True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "policy.json").unlink(), "found no policy.json"),
        (lambda d: (d / "policy.safetensors").write_bytes(pickle.dumps([1.0])), "not what a run writes"),
        (lambda d: (d / "policy.safetensors").write_bytes(b""), "not what a run writes"),
        (lambda d: (d / "policy.json").write_text("{"), "not what a run writes"),
        (lambda d: (d / "policy.json").write_text('{"format": 99}'), "format 1"),
    ],
)
def test_damaged_and_foreign_files_are_refused(damage: Any, said: str, tmp_path: Path) -> None:
    damage(saved(tmp_path))
    with pytest.raises(InputError, match=said):
        load_policy(tmp_path, model=make())


def test_what_cannot_be_rebuilt_must_be_passed_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass model="):
        load_policy(saved(tmp_path))
    with pytest.raises(InputError, match="pass features="):
        load_policy(saved(tmp_path, features=None), model=make())
    with pytest.raises(InputError, match="theta has 3 entries, the features 2"):
        load_policy(saved(tmp_path, theta=(1.0, 2.0, 3.0)), model=make())


def test_less_than_one_answer_is_refused() -> None:
    policy = TiltedPolicy(np.zeros(2), 1.0, make(), feature_map("logprob-length"))
    with pytest.raises(InputError, match="at least one"):
        policy.sample(["a"], 0, rng=np.random.default_rng(0))


def test_another_kl_lies_between_those_that_were_measured(tmp_path: Path) -> None:
    rows = [{"kl": 1.0, "beta": 0.4, "coverage": 8.0}, {"kl": 2.0, "beta": 0.1, "coverage": 32.0}]
    folder = saved(tmp_path, beta=0.1, by_kl=rows)
    assert load_policy(folder, model=make()).beta == 0.1
    exact, between = (load_policy(folder, kl=kl, model=make()) for kl in (1.0, 1.5))
    assert (exact.beta, exact.coverage) == (pytest.approx(0.4), pytest.approx(8.0))
    assert (between.beta, between.coverage) == (pytest.approx(0.2), pytest.approx(16.0))
    with pytest.raises(InputError, match="1 to 2 nats"):
        load_policy(folder, kl=3.0, model=make())
    with pytest.raises(InputError, match="one KL only"):
        load_policy(saved(tmp_path), kl=1.0, model=make())
