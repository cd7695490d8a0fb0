"""From a configuration to what is explored: prompts, their split, the reward and who pays for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spannerlm.config import dump_config, load_config
from spannerlm.errors import InputError
from spannerlm.rewards import NoisyComparison, NoisyReward, call_comparison, call_reward, is_pure
from spannerlm.tasks import load_task, model_options


def files(folder: Path, prompts: int = 10) -> list[str]:
    lines = [{"prompt": f"p{i}", "bonus": i} for i in range(prompts)]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "r.py").write_text("def r(prompts, completions, bonus):\n    return [float(b) for b in bonus]\n")
    return [f"model={folder}", f"prompts={folder / 'p.jsonl'}", f"reward={folder / 'r.py'}:r"]


def test_the_bundled_task_has_a_free_noisy_reward() -> None:
    task = load_task(load_config(None))
    assert isinstance(task.reward, NoisyReward)
    assert task.reward.std == 0.3
    assert task.truth is not None
    assert not set(task.train) & set(task.heldout)
    assert load_task(load_config(None, ["reward_noise=0"])).reward.std == 0.0  # type: ignore[attr-defined]


def test_a_users_reward_is_neither_free_nor_pure_unless_declared(tmp_path: Path) -> None:
    settings = files(tmp_path)
    task = load_task(load_config(None, settings))
    assert task.truth is None
    assert not is_pure(task.reward)
    free = load_task(load_config(None, [*settings, "reward_free=true", "reward_noise=0.5"]))
    assert is_pure(free.reward)
    assert isinstance(free.reward, NoisyReward)
    assert free.reward.std == 0.5
    assert free.truth is not None


def test_the_split_is_disjoint_complete_and_keeps_columns_with_their_prompts(tmp_path: Path) -> None:
    task = load_task(load_config(None, [*files(tmp_path), "heldout_fraction=0.3", "seed=5"]))
    assert len(task.train) == 7
    assert len(task.heldout) == 3
    assert sorted(task.prompts) == sorted(f"p{i}" for i in range(10))
    assert [f"p{b}" for b in task.columns["bonus"]] == list(task.prompts)
    values = call_reward(task.reward, task.prompts, ["x"] * 10, task.columns)
    assert values == [float(p[1:]) for p in task.prompts]
    again = load_task(load_config(None, [*files(tmp_path), "heldout_fraction=0.3", "seed=5"]))
    assert again.prompts == task.prompts


def test_a_heldout_file_takes_the_place_of_the_split(tmp_path: Path) -> None:
    settings = [*files(tmp_path), f"heldout={tmp_path / 'h.txt'}"]
    (tmp_path / "h.txt").write_text("other one\nother two\n")
    with pytest.raises(InputError, match="bonus"):  # the reward reads a column that held-out prompts do not have
        load_task(load_config(None, settings))
    (tmp_path / "r.py").write_text("def r(prompts, completions):\n    return [0.0] * len(prompts)\n")
    task = load_task(load_config(None, settings))
    assert task.heldout == ("other one", "other two")
    assert len(task.train) == 10
    assert task.columns == {}  # the held-out file has none, so no reward can read them


def test_generation_options_reach_the_back_end(tmp_path: Path) -> None:
    settings = [*files(tmp_path), "generation.stop=['.']", "generation.chat_template=never"]
    config = load_config(None, settings)
    options = model_options(config, load_task(config))
    assert options["stop"] == ["."]
    assert options["chat_template"] == "never"
    assert options["trust_remote_code"] is False


def test_an_own_task_needs_all_three_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompts"):
        load_task(load_config(None, files(tmp_path)[:1]))


def test_noise_of_the_bundled_labels_has_its_stated_size() -> None:
    task = load_task(load_config(None))
    assert task.truth is not None
    n = 4000
    prompts, replies = [task.train[0]] * n, [f"please reset it {i}" for i in range(n)]
    noisy = np.array(call_reward(task.reward, prompts, replies, {"replicate": [0] * n}), dtype=float)
    exact = np.array(call_reward(task.truth, prompts, replies, {}), dtype=float)
    assert np.std(noisy - exact) == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * n))


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_a_free_reward_is_turned_into_comparisons() -> None:
    task = load_task(load_config(None, ["feedback=comparison", "scale=0.2", "seed=3"]))
    assert isinstance(task.compare, NoisyComparison)
    assert (task.compare.scale, task.compare.seed, task.compare.mean) == (0.2, 3, task.truth)
    assert task.reward_name == "helpdesk, comparisons at s = 0.2"
    assert load_task(load_config(None)).compare is None


def test_the_users_comparison_needs_no_reward(tmp_path: Path) -> None:
    own = [*files(tmp_path)[:2], "feedback=comparison", f"compare={tmp_path / 'c.py'}:c"]
    body = "return [float(a > b) for a, b in zip(completions, opponents)]"
    (tmp_path / "c.py").write_text(f"def c(prompts, completions, opponents, **_):\n    {body}\n")
    task = load_task(load_config(None, own))
    assert (task.reward, task.truth) == (None, None)
    assert task.compare is not None
    assert call_comparison(task.compare, ["p", "p"], ["b", "a"], ["a", "b"], {"bonus": [0, 0]}) == [1.0, 0.0]
    assert task.reward_name.endswith("c.py:c")
    beside = load_task(load_config(None, [*own, files(tmp_path)[2]]))
    assert beside.reward is not None
    assert beside.truth is None
    bundled = load_task(load_config(None, ["task=helpdesk", *own[2:]]))
    assert (bundled.reward, bundled.truth) == (None, None)


def test_a_model_behind_a_server_is_told_where_and_how_and_nothing_of_this_machine(tmp_path: Path) -> None:
    settings = [*files(tmp_path), "model=served-name", "server.url=http://127.0.0.1:8000/v1", "server.price=[1, 2.5]"]
    config = load_config(None, [*settings, "generation.max_new_tokens=9", "generation.stop=[x]"])
    task = load_task(config)
    options = model_options(config, task)
    assert task.features == "ngrams"
    assert (options["base_url"], options["price"]) == ("http://127.0.0.1:8000/v1", [1.0, 2.5])
    assert (options["max_new_tokens"], options["stop"]) == (9, ["x"])
    assert not {"device", "dtype", "trust_remote_code"} & set(options)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("features", ["hidden", "[ngrams, 'before-eos:2']", "{kind: concat, parts: [hidden]}"])
def test_hidden_states_behind_a_server_are_refused_before_anything_is_made(features: str, tmp_path: Path) -> None:
    settings = [*files(tmp_path), "server.url=http://127.0.0.1:1/v1"]
    assert load_task(load_config(None, settings)).features == "ngrams"
    with pytest.raises(InputError, match=r"hidden states can be seen, got one behind a server.*set features to ngrams"):
        load_task(load_config(None, [*settings, f"features={features}"]))
