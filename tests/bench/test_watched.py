"""What can be played with the responses drawn so far, against a slow rewrite."""

import numpy as np

from spannerlm.bench.rows import Job, work
from spannerlm.bench.watched import WatchedEnvironment
from spannerlm.environments import environment


def test_only_drawn_responses_are_played_and_nothing_else_changes():
    env = environment("near-orthogonal", c=12, dim=4, seed=1)
    watched = WatchedEnvironment(env)
    rng, same = np.random.default_rng(0), np.random.default_rng(0)
    policy = env.optimal_policy()
    assert watched.regret(policy) == env.regret(policy)
    assert watched.regrets == [env.regret(env.base_probs)]  # nothing was drawn
    seen = set()
    for n in (1, 3, 20):
        (record,), (other,) = watched.draw([0], n, rng=rng), env.draw([0], n, rng=same)
        assert record.responses == other.responses
        seen |= set(map(int, record.responses))
        assert watched.regret(policy) == env.regret(policy)
        table = np.array([[p if y in seen else 0.0 for y, p in enumerate(policy[0])]])
        assert np.isclose(watched.regrets[-1], env.regret(table / table.sum()))


def test_a_prompt_of_which_nothing_was_drawn_is_answered_by_the_base_model():
    env = environment("tie", prompts=3, seed=0)
    watched = WatchedEnvironment(env)
    watched.draw([1], 5, rng=np.random.default_rng(0))
    policy = env.optimal_policy()
    watched.regret(policy)
    played = np.where(watched._seen, policy, 0.0)
    played[1] /= played[1].sum()
    played[[0, 2]] = env.base_probs[[0, 2]]
    assert np.isclose(watched.regrets[0], env.regret(played))


def test_rows_say_both_regrets_and_whether_the_job_stopped():
    settings = {"pool": 10**6, "doubling": None}
    job = Job("t", "near-orthogonal", {"c": 64}, {}, "coreset", settings, 0, 60, 20, draws=8, drawn=True)
    rows = work("s", job)
    assert rows["error"][0] is None
    assert rows["draws"][-1] == 8
    assert rows["start"][0] == rows["regret"][0]
    assert np.isclose(rows["regret_drawn"][0], rows["start"][0])
    assert min(rows["regret_drawn"][1:]) > 0.1 * rows["start"][0]  # the best of 64 is not among these eight
    assert rows["stopped"] == [False] * 4
    assert rows["updates"] == [0, 1, 2, 3]
