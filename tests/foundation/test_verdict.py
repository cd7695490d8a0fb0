"""The verdicts: each kind where an exact table leaves no doubt that it is right, and the order of the questions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spannerlm.coverage import Interval
from spannerlm.environments import TabularEnvironment
from spannerlm.foundation.forecast import Forecast, forecast
from spannerlm.foundation.maps import maps
from spannerlm.foundation.pool import Labels, Pool, pool_of, random_labels
from spannerlm.foundation.reach import reach
from spannerlm.foundation.success import Level, success
from spannerlm.foundation.unseen import unseen
from spannerlm.foundation.verdict import ORDER, Evidence, random_does_it, verdict


def skill(mass: float, *, told: bool = True, reward: float = 1.0, alike: bool = False) -> TabularEnvironment:
    """Twelve prompts with 40 responses worth nothing and one of this mass worth ``reward``; ``told`` by a feature."""
    rng = np.random.default_rng(0)
    features = 0.3 * rng.standard_normal((12, 41, 6))
    if told:
        features = np.concatenate([features, np.zeros((12, 41, 1))], axis=-1)
        features[:, -1] = np.eye(7)[6] * 0.8
    rewards = np.zeros((12, 41))
    rewards[:, -1] = reward
    base = np.full((12, 41), (1.0 - mass) / 40)
    base[:, -1] = mass
    if alike:
        base = np.tile(np.eye(41)[3], (12, 1))
    return TabularEnvironment(np.full(12, 1 / 12), base, features, rewards, beta=0.2, noise_std=0.3)


def evidence(
    env: TabularEnvironment, n: int = 256, *, given: bool = True, kl: float = 2.0, most: int = 1000
) -> Evidence:
    rng = np.random.default_rng(1)
    pool = pool_of(env, n, rng=rng)
    assert pool.rewards is not None
    tilted = reach(pool, pool.rewards, kls=(1.0, kl), kl=kl, share=0.9, by="true reward", rng=rng)
    return Evidence(
        prompts=12,
        draws=n,
        max_draws=most,
        unseen=unseen(pool),
        success=success(pool, Level(1.0, "given"), max_draws=most, rng=rng),
        reach=tilted,
        maps=maps(pool, kl=kl, rng=rng),
        forecast=None,
        spread=float(np.ptp(np.concatenate(pool.rewards))),
        given=given,
    )


def told(env: TabularEnvironment, found: Evidence, **changes: Any) -> Forecast:
    pool = pool_of(env, 256, rng=np.random.default_rng(1))
    made = forecast(
        pool, "features", kl=2.0, share=0.9, labels=200, batch=10, simulations=2, rng=np.random.default_rng(2)
    )
    assert made is not None
    return replace(made, **changes)


def test_go_says_what_it_costs() -> None:
    env = skill(0.05)
    found = evidence(env)
    answer = verdict(replace(found, forecast=told(env, found, labels=Interval(30.0, 20.0, 45.0))))
    assert answer.kind == "go"
    assert answer.title == "Go: about 30 labels [20, 45] bring 90 % of what this model can gain."
    assert answer.advice == ("Explore with 50 labels, on the feature map features.",)
    assert any("keeps 100 %" in reason for reason in answer.reasons)
    assert any(reason.startswith("Serving: an answer at KL = 2 costs ") for reason in answer.reasons)


def test_no_foundation_where_no_draw_succeeds_and_what_is_left_is_told() -> None:
    answer = verdict(evidence(skill(1e-7), 1024))
    assert answer.kind == "no foundation"
    assert "no amount of exploration will help" in answer.title
    assert any("12 of 12 prompts" in reason for reason in answer.reasons)
    some = skill(1e-7).mean_rewards + 0.3 * np.random.default_rng(3).random((12, 41))
    env = skill(1e-7)
    other = TabularEnvironment(env.prompt_probs, env.base_probs, env.features, some, beta=0.2, noise_std=0.3)
    assert any("What tilting can still reach" in reason for reason in verdict(evidence(other, 1024)).reasons)


def test_half_of_the_prompts_beyond_the_model_are_named_and_the_rest_is_a_foundation() -> None:
    env = skill(0.05)
    base = env.base_probs.copy()
    base[:4] = np.append(np.full(40, 1 / 40), 0.0)
    half = TabularEnvironment(env.prompt_probs, base, env.features, env.mean_rewards, beta=0.2, noise_std=0.3)
    answer = verdict(evidence(half, 1024))
    assert answer.kind == "go"
    assert "4 of 12 prompts are beyond the model: exploration will not help there." in answer.reasons


def test_too_few_draws_to_call_it_no_foundation() -> None:
    answer = verdict(evidence(skill(1e-7), 16))
    assert answer.kind == "cannot tell"
    assert "--draws 3000" in answer.advice[0]


def test_an_optimums_level_follows_the_model_and_cannot_condemn_it() -> None:
    assert verdict(evidence(skill(1e-7), 1024, given=False)).kind != "no foundation"


@pytest.mark.parametrize(("mass", "given", "kind"), [(0.995, True, "nothing to gain"), (0.7, True, "go")])
def test_nothing_to_gain_where_the_base_model_does_it_already(mass: float, given: bool, kind: str) -> None:
    assert verdict(evidence(skill(mass), 512, given=given, kl=0.2)).kind == kind


def test_rewards_that_never_differ_cannot_tell_whether_more_is_possible() -> None:
    answer = verdict(evidence(skill(0.05, reward=0.0), given=False))
    assert answer.kind == "cannot tell"
    assert "worth the same" in answer.title
    assert "--success" in answer.advice[0]
    assert verdict(evidence(skill(0.05), 1, given=False)).kind == "cannot tell"  # one draw differs from no other


def test_nothing_to_gain_at_a_small_kl_does_not_say_that_replies_are_worth_the_same() -> None:
    env = skill(0.5)
    found = evidence(env, 512, given=False, kl=1e-4)
    assert found.reach is not None
    assert found.reach.at.told
    assert found.reach.at.gain < 0.02
    answer = verdict(found)
    assert answer.kind == "nothing to gain"
    assert "the same" not in answer.title
    assert answer.reasons[0].startswith("At KL = 0.0001 tilting by the true reward earns ")
    by = "reward fitted to labels on features"
    fitted = verdict(replace(found, reach=replace(found.reach, by=by)))
    assert by in fitted.reasons[0]


def test_a_model_that_answers_everything_alike() -> None:
    answer = verdict(evidence(skill(0.05, alike=True), given=False))
    assert answer.kind == "no foundation"
    assert "answers everything alike" in answer.title
    assert answer.reasons == ("For every prompt all 256 draws are one and the same response.",)
    good = evidence(skill(0.05, alike=True))
    assert good.success is not None
    fine = success(
        pool_of(skill(0.05, alike=True), 256, rng=np.random.default_rng(0)),
        Level(0.0, "given"),
        max_draws=1000,
        rng=np.random.default_rng(0),
    )
    assert verdict(replace(good, success=fine)).kind == "nothing to gain"  # alike, and what was asked for


def test_better_features_first() -> None:
    found = evidence(skill(0.05, told=False))
    answer = verdict(found)
    assert answer.kind == "better features"
    assert found.maps is not None
    kept = found.maps.rows[0].share
    assert kept.high < 0.5
    assert f"keeps {round(100 * kept.value)} % [" in answer.reasons[0]


def test_only_with_more_draws_or_at_a_price() -> None:
    answer = verdict(evidence(skill(0.002), 1024))
    assert answer.kind == "go with draws"
    assert answer.title.startswith("Go only with ")
    cheap = evidence(skill(0.05), 1024)
    assert cheap.reach is not None
    at = replace(cheap.reach.at, draws_per_answer=Interval(5000.0, 1.0, 9000.0))
    price = verdict(replace(cheap, reach=replace(cheap.reach, at=at)))
    assert price.kind == "go with draws"
    assert "an answer may cost 5,000 draws" in price.title


def test_draws_that_hardly_show_the_policy() -> None:
    found = evidence(skill(0.004), 64, kl=3.0, given=False)
    assert found.reach is not None
    assert not found.reach.at.told
    answer = verdict(found)
    assert answer.kind == "cannot tell"
    assert "--draws 256" in answer.advice[0]


def labelled(env: TabularEnvironment, k: int) -> tuple[Pool, Labels]:
    rng = np.random.default_rng(5)
    pool = pool_of(env, 256, graded=False, rng=rng)
    labels = random_labels(pool, env, k, rng=rng)
    return replace(pool, labels=labels), labels


def test_without_a_reward_and_with_too_few_labels_nobody_can_tell() -> None:
    env = skill(0.05)
    found = evidence(env)
    bare = verdict(replace(found, success=None, reach=None, maps=None))
    assert bare.kind == "cannot tell"
    assert bare.reasons == found.unseen.statements[:1]
    pool, _ = labelled(env, 20)
    tested = maps(pool, kl=2.0, rng=np.random.default_rng(0))
    few = verdict(replace(found, reach=None, maps=tested))
    assert few.kind == "cannot tell"
    assert "20 labels" in few.title


def test_random_labels_that_do_as_well_are_said_to() -> None:
    env = skill(0.05)
    found = evidence(env)
    same = told(env, found, labels=Interval(30.0, 20.0, 45.0), random_labels=Interval(30.0, 20.0, 45.0))
    assert "does not pay here" in random_does_it(same)
    assert any("does not pay here" in reason for reason in verdict(replace(found, forecast=same)).reasons)
    assert random_does_it(replace(same, random_labels=Interval(10.0, 5.0, 20.0))).endswith("with fewer, about 10.")
    assert random_does_it(replace(same, by="labels")) == ""
    assert random_does_it(replace(same, random_labels=Interval(300.0, 200.0, 450.0))) == ""
    assert random_does_it(replace(same, labels=Interval(np.inf, 200.0, np.inf))) == ""
    assert random_does_it(None) == ""


def test_more_labels_than_the_horizon_are_said_to_be() -> None:
    env = skill(0.05)
    found = evidence(env)
    beyond = told(env, found, labels=Interval(np.inf, 200.0, np.inf))
    answer = verdict(replace(found, forecast=beyond))
    goal = "90 % of what this model can gain"
    assert answer.title == f"Go: more than 200 labels are expected to be needed for {goal}."


def test_kinds_are_ranked_from_the_best_foundation_to_the_worst() -> None:
    assert ORDER.index("go") < ORDER.index("go with draws") < ORDER.index("better features")
    assert ORDER[-1] == "no foundation"
    assert len(set(ORDER)) == 6


def test_two_draws_alike_do_not_make_a_model_that_answers_everything_alike() -> None:
    for n, kind in ((2, "cannot tell"), (256, "no foundation")):
        found = evidence(skill(0.05, alike=True), n, given=False)
        assert verdict(found).kind == kind
        assert verdict(replace(found, success=None, reach=None, maps=None)).kind == kind


def test_features_are_not_blamed_where_any_map_keeps_half_of_the_gain() -> None:
    found = evidence(skill(0.05, told=False))
    assert found.maps is not None
    row = found.maps.rows[0]
    least, most = (replace(row, map=m, share=replace(row.share, value=v)) for m, v in (("a", 0.49), ("b", 0.5)))
    assert verdict(replace(found, maps=replace(found.maps, rows=(least, most), best="a"))).kind != "better features"
    worse = replace(most, share=replace(row.share, value=0.495))
    answer = verdict(replace(found, maps=replace(found.maps, rows=(least, worse), best="a")))
    assert answer.kind == "better features"
    assert "half" in answer.title


def test_noise_of_labels_is_not_blamed_on_features_alone() -> None:
    found = evidence(skill(0.05))
    assert found.maps is not None
    nan = Interval(np.nan, np.nan, np.nan)
    row = replace(found.maps.rows[0], share=nan, r2=Interval(0.05, 0.02, 0.08))
    answer = verdict(replace(found, maps=replace(found.maps, rows=(row,), by="labels", labels=400)))
    assert answer.kind == "better features"
    assert "noise" in answer.title
    none = replace(row, r2=Interval(0.0, -0.1, 0.1))
    chosen = verdict(replace(found, reach=None, maps=replace(found.maps, rows=(none,), by="labels", labels=400)))
    assert "random" not in chosen.title  # labels of a run that was looked at are no random draws
