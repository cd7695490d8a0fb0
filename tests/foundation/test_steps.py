"""Step by step against whole answers: the tree's sums, the prices, and exact environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spannerlm
from spannerlm import bundled
from spannerlm.backends import backend
from spannerlm.environments import TokenEnvironment, rare_skill, token_environment
from spannerlm.errors import InputError, RewardError
from spannerlm.foundation.gather import Gathered, Source, StepPlan, beta_of, gather
from spannerlm.foundation.pool import pool_of
from spannerlm.foundation.reach import reach
from spannerlm.foundation.steps import bound_for, quantile, steps_by_rollouts, steps_of_policy
from spannerlm.foundation.trees import Tree, asked, graded, kept, missed, wholes_of
from spannerlm.foundation.unseen import unseen
from spannerlm.foundation.verdict import Evidence, verdict
from spannerlm.ledger import Ledger
from spannerlm.policy import beta_for_kl

PROMPTS = range(8)


def lock(family: str = "gated-lock", horizon: int = 5, kl: float = 1.0, **parameters: object) -> TokenEnvironment:
    """A token environment of 8 prompts at this KL."""
    env = token_environment(family, horizon=horizon, seed=3, **parameters)
    table = env.to_table()
    used = np.flatnonzero(env.initial_probs)[: len(PROMPTS)]
    return replace(env, beta=beta_for_kl(table.base_probs[used], table.mean_rewards[used], kl))


def score_of(env: TokenEnvironment):
    mean = env.reward(0).mean
    return lambda prompts, texts: np.array(mean([str(x) for x in prompts], texts), dtype=np.float64)


def rolled_out(env: TokenEnvironment, seed: int = 0, **options: object):
    rng = np.random.default_rng(seed)
    return steps_by_rollouts(
        env, asked(env, rng), score_of(env), **{"prompts": PROMPTS, "beta": env.beta, "rng": rng, **options}
    )


def exact_rows(env: TokenEnvironment) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ratios and their masses under pi*, of each step."""
    optimal = env.optimal_policy()
    visits = env.occupancy(optimal)
    mass = visits[:, :, None] * optimal
    return [((o / b)[m > 0], m[m > 0]) for o, b, m in zip(optimal, env.base_probs, mass, strict=True)]


@pytest.mark.parametrize("family", ["gated-lock", "delayed-lock"])
def test_estimates_on_locks_are_near_the_exact_ones(family: str) -> None:
    env = lock(family, states=16)
    found = rolled_out(env)
    rows = exact_rows(env)
    clipped = 0.01 / env.horizon
    for row, (ratios, masses) in zip(found.rows, rows, strict=True):
        assert row.ratio_q99.value == pytest.approx(quantile(ratios, masses), rel=0.3)
        assert row.ratio_q99.high >= quantile(ratios, masses) / 1.01
        assert row.draws == pytest.approx(bound_for(ratios, masses, clipped) / (1 - clipped), rel=0.2)
        assert row.share == 1.0
        assert row.tokens == 1.0
    table = env.to_table()
    law, base = table.optimal_policy()[:8], table.base_probs[:8]
    whole = bound_for((law / base).ravel(), law.ravel(), 0.01) / 0.99 * env.horizon
    steps = sum(bound_for(r, m, clipped) / (1 - clipped) for r, m in rows)
    assert found.sequence_tokens.value == pytest.approx(whole, rel=0.25)
    assert found.fewer.value == pytest.approx(whole / steps, rel=0.25)
    assert found.fewer.low <= whole / steps <= found.fewer.high
    assert found.told
    assert found.helps
    assert found.step.value == max(row.ratio_q99.value for row in found.rows)
    assert "times fewer tokens per answer" in found.statements[1]


def test_a_fitted_policy_needs_no_rollouts_and_no_reward() -> None:
    env = lock("gated-lock", states=16)
    theta = np.array(
        [
            np.linalg.lstsq(phi.reshape(-1, env.step_dim), q.ravel(), rcond=None)[0]
            for phi, q in (
                (f - f.mean(axis=1, keepdims=True), v - v.mean(axis=1, keepdims=True))
                for f, v in zip(env.features, env.action_values, strict=True)
            )
        ]
    )
    rng = np.random.default_rng(1)
    found = steps_of_policy(env, asked(env, rng), theta, prompts=PROMPTS, beta=env.beta, rng=rng)
    for row, (ratios, masses) in zip(found.rows, exact_rows(env), strict=True):
        assert row.ratio_q99.value == pytest.approx(quantile(ratios, masses), rel=0.25)
    assert found.draws == found.tokens == 8 * 40 * 5 * 128


def test_one_step_is_the_whole_answer() -> None:
    env = lock("additive-lock", horizon=1, actions=8, kl=0.5)
    found = rolled_out(env, pool=2000)
    assert found.step.value == pytest.approx(found.sequence.value, rel=1e-9)
    assert found.fewer.value == pytest.approx(1.0, rel=0.05)
    assert found.helps is False
    assert found.draws == 8 * 2000
    assert "would not help" in found.statements[1]


def test_the_tree_sums_to_the_mean_over_all_base_rollouts() -> None:
    env = lock("random-token-mdp", horizon=3, states=8)
    tree = Tree(env, asked(env, np.random.default_rng(2)))
    ends = tree.walk({(x, ()): 200 for x in PROMPTS})
    assert tree.draws == tree.tokens == 8 * 200 * 3
    leaves = graded(score_of(env), env.beta, ends, env)
    value = tree.values(leaves, PROMPTS)
    for x in PROMPTS:
        mine = [(n, leaves[leaf]) for leaf, n in ends.items() if leaf[0] == x]
        plain = sum(n * np.exp(log) for n, log in mine) / 200
        assert value[x, ()] == pytest.approx(np.log(plain), abs=1e-12)
        logs, masses = tree.law(leaves, x)
        assert sorted(masses * 200) == pytest.approx(sorted(n for n, _ in mine))
        assert masses @ np.exp(logs) == pytest.approx(plain)
    exact = np.log(np.exp(env.soft_values[0] / env.beta))
    assert np.array([value[x, ()] for x in PROMPTS]) == pytest.approx(exact[: len(PROMPTS)], abs=0.4)


def test_ratios_of_the_steps_multiply_to_that_of_the_answer() -> None:
    env = lock("delayed-lock", horizon=4, states=16)
    tree = Tree(env, asked(env, np.random.default_rng(3)))
    ends = tree.walk({(0, ()): 300})
    leaves = graded(score_of(env), env.beta, ends, env)
    tree.walk(tree.step({(0, ("0",)): 50, (0, ("1",)): 50}))
    leaves.update(graded(score_of(env), env.beta, {n: 1 for n in _complete(tree, env) if n not in leaves}, env))
    value = tree.values(leaves, [0])
    for y in kept(leaves, ends, 0, 5, np.random.default_rng(0)):
        along = np.diff([value[0, y[:h]] for h in range(5)])
        assert along.sum() == pytest.approx(leaves[0, y] - value[0, ()])


def _complete(tree: Tree, env: TokenEnvironment) -> list:
    return [child for counts in tree.after.values() for child in counts if env.complete(*child)]


def test_walkers_keep_their_numbers_whatever_the_binary_digits() -> None:
    env = lock(horizon=2, states=16)
    sizes: list[int] = []
    plain = asked(env, np.random.default_rng(0))

    def ask(prompts, prefixes, n):
        sizes.append(n)
        return plain(prompts, prefixes, n)

    tree = Tree(env, ask)
    found = tree.step({(0, ()): 13, (1, ()): 4})
    assert sizes == [1, 4, 8]
    assert sum(n for node, n in found.items() if node[0] == 0) == 13
    assert sum(n for node, n in found.items() if node[0] == 1) == 4


def test_declined_answers_are_never_kept() -> None:
    env = lock(horizon=3, states=16)
    score = score_of(env)

    def picky(prompts, texts):
        return np.where([text.startswith("1") for text in texts], np.nan, score(prompts, texts))

    rng = np.random.default_rng(0)
    found = steps_by_rollouts(env, asked(env, rng), picky, prompts=PROMPTS, beta=env.beta, rng=rng)
    assert found.rows[0].ratio_q99.value == pytest.approx(2.0, rel=0.3)  # half of the first actions are lost
    with pytest.raises(InputError, match="every draw was declined"):
        steps_by_rollouts(env, asked(env, rng), _nothing, prompts=PROMPTS, beta=env.beta, rng=rng)


def _nothing(prompts, texts):
    return np.full(len(texts), np.nan)


def test_rejection_at_the_bound_clips_what_it_should() -> None:
    rng = np.random.default_rng(5)
    base = rng.dirichlet(np.ones(30))
    law = rng.dirichlet(np.full(30, 0.3))
    for clipped in (0.001, 0.01, 0.2):
        bound = bound_for(law / base, law, clipped)
        accepted = np.minimum(base, law / bound)
        assert 1.0 - bound * accepted.sum() == pytest.approx(clipped)
        assert 1.0 / accepted.sum() == pytest.approx(bound / (1 - clipped))
    assert quantile(law / base, law) in law / base
    assert law[law / base > quantile(law / base, law)].sum() <= 0.01


def test_draws_without_a_good_answer_do_not_tell() -> None:
    one = np.zeros(1)
    assert missed([(np.array([0.0, 1.0]), np.array([0.5, 0.5]))], 1000) < 0.01
    assert missed([(one, one + 1.0)], 1000) == 1.0  # all alike: nothing to tell by
    assert missed([(np.array([0.0, 50.0]), np.array([0.99, 0.01])), (one, one + 1.0)], 100) > 0.5
    ratios, masses = wholes_of([(np.array([0.0, 1.0]), np.array([0.5, 0.5]))], 10)(np.ones(1), None)
    assert masses.sum() == pytest.approx(1.0)
    assert ratios == pytest.approx(np.array([2.0, 2.0 * np.e]) / (1.0 + np.e))
    spike = lock("delayed-lock", horizon=10, states=16, kl=3.0)
    found = rolled_out(spike, pool=16, rollouts=2)
    assert not found.told
    assert found.helps is None
    assert np.isinf(found.fewer.high)
    assert "cannot tell" in found.statements[1]


def test_the_same_seed_gives_the_same_figures() -> None:
    env = lock(horizon=3, states=16)
    assert asdict(rolled_out(env, seed=4)) == asdict(rolled_out(env, seed=4))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": ()}, "prompts"),
        ({"prompts": (0, 0)}, "prompts"),
        ({"beta": np.inf}, "beta"),
        ({"pool": 0}, "pool"),
        ({"rollouts": 1.5}, "rollouts"),
        ({"paths": 0}, "paths"),
    ],
)
def test_what_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        rolled_out(lock(horizon=2, states=16), **options)


# --- on a real model, and in the report ------------------------------------------------------------------------------


TASK = bundled.load("helpdesk")
PLAN = StepPlan(4, 2.0, prompts=2, pool=24, rollouts=2)


@pytest.fixture(scope="module")
def model() -> Any:
    return backend("huggingface").load(str(TASK.model_path), max_new_tokens=TASK.max_new_tokens)


def gathered(model: Any, reward: Any = TASK.reward, **options: Any) -> Gathered:
    source = Source(reward, True)
    return gather(model, TASK.train_prompts[:3], source, features=["ngrams"], draws=40, seed=1, steps=PLAN, **options)


def test_a_model_is_rolled_out_through_a_ledger_that_goes_on_where_it_was_cut_off(model: Any, tmp_path: Path) -> None:
    whole = gathered(model, directory=tmp_path / "whole")
    assert whole.steps is not None
    assert whole.steps.prompts == 2
    assert whole.steps.by == "base roll-outs in segments of 4 tokens"
    assert whole.steps.beta == pytest.approx(beta_of(whole.pool, 2.0))
    assert whole.counts.eval_draws == 3 * 40 + whole.steps.draws
    with Ledger.open(tmp_path / "whole" / "steps", read_only=True) as ledger:
        assert ledger.counts.eval_draws == whole.steps.draws
        assert ledger.counts.eval_tokens == whole.steps.tokens
        assert (ledger.counts.draws, ledger.counts.eval_labels) == (0, 0)
    calls: list[int] = []

    def breaking(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        calls.append(len(completions))
        if len(calls) > 4:  # the pool's three prompts and the first roll-outs were graded
            raise ValueError("cut off")
        return TASK.reward(prompts, completions)

    with pytest.raises(RewardError):
        gathered(model, breaking, directory=tmp_path / "cut")
    again = gathered(model, directory=tmp_path / "cut")
    assert again.steps is not None
    assert asdict(again.steps) == asdict(whole.steps)
    assert again.counts == whole.counts


def test_nothing_is_compared_where_all_draws_are_worth_the_same(model: Any) -> None:
    found = gathered(model, lambda prompts, completions: [1.0] * len(completions))
    assert found.steps is None
    assert found.counts.eval_draws == 3 * 40


@pytest.mark.slow
def test_the_report_says_it(model: Any, tmp_path: Path) -> None:
    options = {"prompts": TASK.train_prompts[:3], "features": ["hidden"], "draws": 64, "simulations": 0}
    found = spannerlm.coverage_report(
        model=model, reward=TASK.reward, reward_free=True, segments="6", kl=0.5, out=tmp_path, **options
    )
    section = found.document["models"][0]
    assert section["steps"]["rows"][0]["step"] == 1
    page = (tmp_path / "coverage.html").read_text()
    assert "Step by step, from base roll-outs in segments of 6 tokens" in page
    assert all(escape(sentence) in page for sentence in section["steps"]["statements"])
    stored = json.loads((tmp_path / "coverage.json").read_text())["models"][0]["steps"]
    assert stored["fewer"]["value"] == pytest.approx(section["steps"]["fewer"]["value"])
    with pytest.raises(InputError, match="segments: expected a free reward"):
        spannerlm.coverage_report(model=model, reward=TASK.reward, labels=4, segments=6, **options)


@pytest.mark.parametrize(("helps", "says"), [(True, "Go step by step"), (False, "Tilt whole answers"), (None, "")])
def test_the_verdicts_advice(helps: bool | None, says: str) -> None:
    env = rare_skill(0.05)
    pool = pool_of(env, 512, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    tilted = reach(pool, pool.rewards or (), kls=(1.0,), kl=1.0, share=0.9, by="true reward", rng=rng)
    steps = replace(rolled_out(lock(horizon=2, states=16), pool=32, rollouts=2), helps=helps)
    found = Evidence(
        prompts=32,
        draws=512,
        max_draws=1000,
        unseen=unseen(pool),
        success=None,
        reach=tilted,
        maps=None,
        forecast=None,
        spread=1.0,
        given=False,
        steps=steps,
    )
    plain = verdict(replace(found, steps=None))
    assert plain.kind == "go"
    more = verdict(found).advice[len(plain.advice) :]
    assert len(more) == (says != "")
    assert all(says in line for line in more)
