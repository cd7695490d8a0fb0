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
from spannerlm.segments import Segments
from spannerlm.tilted import SteppedPolicy, TiltedPolicy, load_policy, save_policy

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


# --- step by step ---------------------------------------------------------------------------------------------------

STEPS: dict[str, Any] = {"segments": {"tokens": 1}, "levels": [2.0, None]}


def stepped(folder: Path, **changes: Any) -> Path:
    return saved(folder, [[0.4, 1.0], [0.0, -0.5]], 0.8, **{**STEPS, **changes})


def test_a_policy_of_steps_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    policy = load_policy(stepped(tmp_path), model=make(max_new_tokens=2))
    assert isinstance(policy, SteppedPolicy)
    np.testing.assert_array_equal(policy.theta, [[0.4, 1.0], [0.0, -0.5]])
    np.testing.assert_array_equal(policy.levels, [2.0, np.inf])
    assert policy.beta == 0.8
    oracle: Any = policy.oracle(["a"])
    assert (oracle.segments, oracle.horizon) == (Segments(1), 2)


def test_step_by_step_answers_have_the_exact_tilted_law(tmp_path: Path) -> None:
    """Of two steps of one token the first: proportional to pi_ref exp(<theta, phi> / beta), phi = (logprob, length)."""
    model = make(max_new_tokens=2)
    policy = load_policy(stepped(tmp_path, levels=[2.0, 0.5]), model=model)
    assert isinstance(policy, SteppedPolicy)
    oracle: Any = policy.oracle(["the printer"])
    first = oracle.extend([0], [()], 20_000, rng=np.random.default_rng(1))[0]
    raw = first.counts / first.counts.sum() * np.exp(first.features @ policy.theta[0] / policy.beta)
    law = dict(zip(first.responses, raw / raw.sum(), strict=True))
    n = 1500
    answer = policy.sample(["the printer"], n, rng=np.random.default_rng(0), draws=48)[0]
    assert len(answer.responses) == n
    assert answer.tokens is not None
    assert answer.tokens <= answer.draws
    starts = Counter(text.split(" ")[0] if text else "" for text in answer.responses)
    for segment in sorted(law, key=lambda text: -law[text])[:6]:
        text = oracle.joined(0, (segment,))
        error = np.sqrt(law[segment] * (1 - law[segment]) / n)
        assert starts[text] / n == pytest.approx(law[segment], abs=4.5 * error + 0.01), segment


def test_answers_of_several_prompts_stay_apart(tmp_path: Path) -> None:
    policy = load_policy(stepped(tmp_path, levels=[None, None]), model=make(max_new_tokens=2))
    found = policy.sample(["a", "the printer"], 3, rng=np.random.default_rng(0))
    assert [(a.prompt, len(a.responses), a.exhausted) for a in found] == [("a", 3, True), ("the printer", 3, True)]
    assert all(3 * 16 <= a.draws <= 3 * 2 * 16 and a.draws % 16 == 0 for a in found)
    with pytest.raises(InputError, match="at least one"):
        policy.sample(["a"], 0, rng=np.random.default_rng(0))


def test_what_a_policy_of_steps_does_not_have_is_refused(tmp_path: Path) -> None:
    model = make(max_new_tokens=2)
    with pytest.raises(InputError, match="kl: expected none for a policy of steps"):
        load_policy(stepped(tmp_path), model=model, kl=1.0)
    with pytest.raises(InputError, match="pass segments="):
        load_policy(stepped(tmp_path, segments=None), model=model)
    with pytest.raises(InputError, match="theta has 2 entries, the features 16"):
        load_policy(stepped(tmp_path), model=model, features="before-eos:-1")
    with pytest.raises(InputError, match="learned on whole responses: leave segments and turns out"):
        load_policy(saved(tmp_path), model=model, segments=3)
    with pytest.raises(InputError, match="expected no turns=, this run had none"):
        load_policy(stepped(tmp_path), model=model, turns=lambda prompt, _: prompt)
    with pytest.raises(InputError, match="turns= as in the run, where it was 'asks'"):
        load_policy(stepped(tmp_path, turns="asks"), model=model)
    with pytest.raises(InputError, match="tilts whole conversations"):
        load_policy(saved(tmp_path, turns="asks"), model=model)
    assert isinstance(load_policy(stepped(tmp_path, segments=None), model=model, segments=1), SteppedPolicy)
