"""Every family with every modifier obeys one law; a family is one file and one line."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest

import spannerlm
from spannerlm.environments import FAMILIES, MODIFIERS, HeteroscedasticEnvironment, TabularEnvironment, environment
from spannerlm.errors import InputError


def slow_gap(env: TabularEnvironment) -> float:
    """What linear rewards leave unexplained: one dummy column per prompt instead of centring."""
    rows, targets, owners = [], [], []
    for x, (features, rewards) in enumerate(zip(env.features, env.mean_rewards, strict=True)):
        for phi, reward in zip(features[env.base_probs[x] > 0.0], rewards[env.base_probs[x] > 0.0], strict=True):
            rows.append(np.concatenate([phi, np.arange(len(env.features)) == x]))
            targets.append(reward)
            owners.append(x)
    left = np.array(targets) - np.array(rows) @ np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return max(float(np.ptp(left[np.array(owners) == x])) for x in range(len(env.features)))


def obeys(env: TabularEnvironment, *, zeta: float) -> None:
    """The shared law: what the environment declares of itself is so, and it is as realizable as it should be."""
    for law in laws.ENVIRONMENT_LAWS:
        law(env)
    gap = env.realizability_gap()
    assert gap == pytest.approx(slow_gap(env), rel=1e-6, abs=1e-9)
    if zeta == 0.0:
        assert gap < 1e-9
    else:
        assert zeta * env.beta <= gap <= 4 * zeta * env.beta
    assert env.feature_norm() <= 1 + 1e-12
    np.testing.assert_allclose(env.prompt_probs, 1 / len(env.prompt_probs))


@pytest.mark.parametrize("parts", laws.families().values(), ids=laws.families())
def test_every_family_and_modifier_obeys(parts: tuple[str, ...]) -> None:
    obeys(laws.small(*parts), zeta=laws.SETTINGS["misspecified"]["zeta"] if "misspecified" in parts else 0.0)


def test_the_law_runs_over_everything_and_catches() -> None:
    assert set(laws.SMALL) == set(FAMILIES)
    assert set(laws.SETTINGS) == set(MODIFIERS)
    with pytest.raises(AssertionError):
        obeys(laws.small("tie", "misspecified"), zeta=0.0)
    with pytest.raises(AssertionError):
        obeys(laws.small("tie"), zeta=0.5)
    uneven = laws.small("tie", "heteroscedastic")
    assert isinstance(uneven, HeteroscedasticEnvironment)
    object.__setattr__(uneven, "reward", TabularEnvironment(**fields(uneven)).reward)  # a rater that knows no shape
    with pytest.raises(AssertionError):
        laws.labels_have_the_declared_mean_and_noise(uneven)


def fields(env: TabularEnvironment) -> dict[str, Any]:
    names = ("prompt_probs", "base_probs", "features", "mean_rewards", "beta", "noise_std")
    return {name: getattr(env, name) for name in names}


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_decide_and_defaults_are_those_of_test_beds(name: str) -> None:
    first, again, other = (environment(name, seed=seed, **laws.SMALL[name]) for seed in (5, 5, 6))
    for field in ("base_probs", "features", "mean_rewards"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert not np.array_equal(first.mean_rewards, other.mean_rewards)
    if name == "random-table":  # draws its noise, and is no test-bed of TESTBEDS
        assert environment(name, **laws.SMALL[name]).noise_std in (0.1, 0.3, 0.5)
        return
    noise = {"decoys": 1.0, "max-k-dnf": 2.0}.get(name, 0.5)
    assert inspect.signature(FAMILIES[name]).parameters["noise_std"].default == noise
    assert environment(name, noise_std=0.25, **laws.SMALL[name]).noise_std == 0.25


# --- the factory ----------------------------------------------------------------------------------------------------

HELD_OUT: list[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = [
    ("power-law", {"p": 0.001}, {}),
    ("low-variance", {"dim": 24}, {}),
    ("rare-skill", {"p": 0.01}, {"heavy-noise": {"factor": 4.0}}),
    ("rare-skill", {"p": 0.01}, {"prompt-intercepts": {"std": 1.0}}),
    ("tie", {}, {"irrelevant-directions": {"extra": 48, "rare": None}}),
    ("deceptive", {"p": 0.01}, {"irrelevant-directions": {"extra": 48, "rare": 0.02, "scale": 1.0}}),
    ("decoys", {"mass": 0.01, "rare": 32}, {"heteroscedastic": {"spread": 30.0}, "misspecified": {"zeta": 0.3}}),
    ("max-k-dnf", {"k": 5, "prompts": 500}, {"rotated": {}, "duplicated": {"copies": 3}}),
]


@pytest.mark.parametrize(("name", "parameters", "modifiers"), HELD_OUT)
def test_an_environment_survives_json(name: str, parameters: Any, modifiers: Any) -> None:
    env = environment(name, seed=2, modifiers=modifiers, **parameters)
    name, parameters, modifiers = json.loads(json.dumps([name, {**parameters, "seed": 2}, modifiers]))
    again = environment(name, modifiers=modifiers, **parameters)
    for field in fields(env):
        np.testing.assert_array_equal(getattr(env, field), getattr(again, field))
    assert env.reward(1)(["0"], ["1"], replicate=[0]) == again.reward(1)(["0"], ["1"], replicate=[0])


def test_modifiers_are_applied_in_one_order_and_follow_the_seed() -> None:
    settings = laws.SETTINGS
    forth = environment("tie", seed=4, modifiers=settings, **laws.SMALL["tie"])
    back = environment("tie", seed=4, modifiers=dict(reversed(settings.items())), **laws.SMALL["tie"])
    by_hand = FAMILIES["tie"](seed=4, **laws.SMALL["tie"])
    for name, function in MODIFIERS.items():
        seed = {} if name in ("duplicated", "heavy-noise") else {"seed": 4}
        by_hand = function(by_hand, **seed, **settings[name])
    for env in (back, by_hand):
        np.testing.assert_array_equal(forth.features, env.features)
        np.testing.assert_array_equal(forth.mean_rewards, env.mean_rewards)
    fixed = [
        environment("tie", seed=s, modifiers={"prompt-intercepts": {"std": 1.0, "seed": 9}}).mean_rewards
        - environment("tie", seed=s).mean_rewards
        for s in (0, 1)
    ]
    np.testing.assert_allclose(*fixed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: environment("rare-skil"), "environment: expected one of rare-skill, .* did you mean 'rare-skill'"),
        (lambda: environment("tie", p=0.1), "parameters of 'tie': expected one of prompts, responses, dim, noise_std"),
        (lambda: environment("tie", modifiers={"heavy": {}}), "modifiers: expected one of misspecified, .*got 'heavy'"),
        (
            lambda: environment("tie", modifiers={"heavy-noise": 3}),
            "expected a mapping of parameters for 'heavy-noise'",
        ),
        (lambda: environment("tie", modifiers={"heavy-noise": {}}), "'heavy-noise': expected factor, got nothing"),
        (lambda: environment("tie", modifiers={"rotated": {"env": 1}}), "'rotated': expected one of seed, got 'env'"),
        (lambda: environment("rare-skill", p="1e-2"), "p of 'rare-skill': expected a number such as 0.01, got '1e-2'"),
        (lambda: environment("rare-skill", noise_std=True), "noise_std of 'rare-skill': expected a number"),
        (lambda: environment("rare-skill", p=1.0), "p: expected a number strictly between 0 and 1"),
        (lambda: environment("power-law", p=0), "p: expected a number strictly between 0 and 1"),
        (lambda: environment("deceptive", prompts=0), "prompts: expected an integer of at least 1"),
        (lambda: environment("decoys", rare=1), "rare: expected an integer of at least 2"),
        (lambda: environment("low-variance", dim=1.5), "dim: expected an integer of at least 1, got 1.5"),
        (lambda: environment("near-orthogonal", c=1), "c: expected an integer of at least 2"),
        (lambda: environment("max-k-dnf", k=5, n=4), "k: expected at most n = 4 variables in a term, got 5"),
        (lambda: environment("max-k-dnf", beta=0.0), "beta: expected a finite number above 0"),
        (lambda: environment("max-k-dnf", noise_std=-1.0, prompts=4), "noise_std: expected a non-negative number"),
        *(
            (lambda name=name: environment(name, seed=-1), "seed: expected an integer of at least 0")
            for name in FAMILIES
        ),
    ],
)
def test_what_is_wrong_is_named(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()


# --- a new family ---------------------------------------------------------------------------------------------------

NEW_FILE = '''
"""mine: two responses per prompt, one of them right."""

import numpy as np

from spannerlm.environments.tabular import TabularEnvironment


def mine(*, prompts: int = 4, noise_std: float = 0.1, seed: int = 0) -> TabularEnvironment:
    """mine: phi = e_1 or e_2, drawn with .8 and .2, rewards 0 and 1."""
    features = np.tile(np.eye(2), (prompts, 1, 1))
    rewards = np.tile([0.0, 1.0], (prompts, 1))
    base = np.tile([0.8, 0.2], (prompts, 1))
    return TabularEnvironment([1 / prompts] * prompts, base, features, rewards, beta=0.5, noise_std=noise_std)
'''


def test_a_new_family_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(NEW_FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(FAMILIES, "mine", module.mine)  # the line

    env = environment("mine", prompts=5, seed=1, modifiers={"duplicated": {"copies": 2}})
    obeys(env, zeta=0.0)
    with pytest.raises(InputError, match="parameters of 'mine': expected one of prompts, noise_std, seed, got 'p'"):
        environment("mine", p=0.1)
    result = spannerlm.explore(env, explorer="passive", labels=40, seed=0)
    assert result.labels == 40
    assert env.regret(result.policy.table(env)) < 0.1 * result.history[0]["regret"]
