"""The configured job on real models: the bundled one, and the user's own with prompt and reward files."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import xlogy

import spannerlm
from spannerlm.config import load_config
from spannerlm.errors import InputError, LedgerCorruptError, RewardError
from spannerlm.job import load_report, resume_job, run_job
from spannerlm.ledger import Ledger
from spannerlm.progress import Progress

sys.path.insert(0, str(Path(__file__).parent / "backends"))
from tiny_models import TEMPLATE, WORDS, tiny_model, word_tokenizer

SMALL = ["max_prompts=12", "draws=1200", "evaluation.draws=64", "evaluation.max_prompts=6", "labels=40", "batch=10"]
REWARD = '''
def words(prompts, completions, **columns):
    """One for each "b", minus a half for each "d"."""
    return [text.split().count("b") - 0.5 * text.split().count("d") for text in completions]

def broken(prompts, completions):
    return [1.0]

def more(prompts, completions, opponents, **columns):
    gaps = [a - b for a, b in zip(words(prompts, completions), words(prompts, opponents))]
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]

def picky(prompts, completions, bonus):
    return [None if "c" in text.split() else b + len(text) for text, b in zip(completions, bonus)]
'''


Ran = tuple[Path, dict[str, Any], list[Progress]]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    directory, seen = tmp_path_factory.mktemp("runs") / "helpdesk-1", []
    return directory, run_job(load_config(None, SMALL), directory, seen.append), seen


def own_task(folder: Path, kind: str = "gpt2", template: str | None = None, prompts: int = 12) -> list[str]:
    """Settings for a tiny model, a prompt file and a reward file of the user's own."""
    tiny_model(kind).save_pretrained(folder / "model")
    word_tokenizer(template=template).save_pretrained(folder / "model")
    lines = [{"prompt": " ".join(WORDS[(i + j) % 5] for j in range(3)), "bonus": i} for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "reward.py").write_text(REWARD)
    generation = [f"generation.max_new_tokens={6}", "generation.batch_size=128"]
    paths = [f"model={folder / 'model'}", f"prompts={folder / 'prompts.jsonl'}", f"reward={folder / 'reward.py'}:words"]
    return [*SMALL, *generation, *paths]


def test_the_directory_keeps_everything(bundled: Ran) -> None:
    directory, report, _ = bundled
    for name in ("run.db", "config.yaml", "policy.safetensors", "policy.json", "report.html", "report.json"):
        assert (directory / name).stat().st_size > 0, name
    assert {p.suffix for p in (directory / "figures").iterdir()} == {".png", ".svg"}
    assert list((directory / "draws").glob("*.parquet"))
    assert Ledger.verify(directory).ok
    assert load_config(directory / "config.yaml") == load_config(None, SMALL)
    assert load_report(directory)["table"] == json.loads(json.dumps(report["table"]))


def test_the_table_compares_at_equal_kl_on_heldout_prompts(
    bundled: Ran,
) -> None:
    _, report, _ = bundled
    rows = {row["name"]: row for row in report["table"]}
    assert list(rows) == [
        "base model",
        "random, same labels",
        "random, 10x labels",
        "directed",
        "true-reward optimum",
    ]
    assert rows["random, same labels"]["labels"] == rows["directed"]["labels"] == 40
    assert rows["random, 10x labels"]["labels"] == 400
    assert all(row["kl"] == pytest.approx(2.0, abs=1e-3) for name, row in rows.items() if name != "base model")
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    best = rows["true-reward optimum"]["value"]
    assert rows["base model"]["value"] < rows["directed"]["value"] <= best + 1e-9
    assert report["counts"]["eval_draws"] == 6 * 64
    assert report["counts"]["labels"] == 40
    assert report["counts"]["draws"] <= 1200


def test_values_are_those_of_an_independent_rewrite(bundled: Ran) -> None:
    directory, report, _ = bundled
    from spannerlm import bundled as tasks

    task = tasks.load("helpdesk")
    with Ledger.open(directory, read_only=True) as ledger:
        entries = list(ledger.replay())
        prompts = ledger.prompts
    drawn = next(e.event for e in entries if e.purpose == "evaluate" and type(e.event).__name__ == "Drawn")
    kl, low, high = 2.0, -12.0, 12.0
    rewards = [np.array(task.reward([prompts[d.prompt]] * len(d.responses), d.responses)) for d in drawn.draws]
    weights = [d.counts / d.counts.sum() for d in drawn.draws]

    def tilted(beta: float) -> list[np.ndarray]:
        raw = [w * np.exp((r - r.max()) / beta) for w, r in zip(weights, rewards, strict=True)]
        return [q / q.sum() for q in raw]

    for _ in range(100):
        middle = (low + high) / 2
        costs = [np.sum(xlogy(q, q / w)) for q, w in zip(tilted(np.exp(middle)), weights, strict=True)]
        low, high = (middle, high) if np.mean(costs) > kl else (low, middle)
    value = np.mean([q @ r for q, r in zip(tilted(np.exp(low)), rewards, strict=True)])
    assert report["table"][-1]["value"] == pytest.approx(value, abs=1e-4)
    assert report["table"][0]["value"] == pytest.approx(np.mean([w @ r for w, r in zip(weights, rewards, strict=True)]))


def test_history_starts_at_no_labels_and_progress_is_told(bundled: Ran) -> None:
    _, report, seen = bundled
    labels = [row["labels"] for row in report["history"]]
    assert labels[0] == 0
    assert labels[-1] == 40
    assert all(0 < b - a <= 10 for a, b in pairwise(labels))
    assert report["history"][0]["value"] == pytest.approx(report["table"][0]["value"])
    assert seen[0].phase == "load the model"
    assert max(p.labels for p in seen) == 40
    assert max(p.draws for p in seen) == report["counts"]["draws"]


def test_a_finished_run_resumes_to_the_same_report(bundled: Ran) -> None:
    directory, report, _ = bundled
    again = resume_job(directory)
    for key in ("history", "table", "counts", "recommended", "replies", "fit", "spectrum"):
        assert json.dumps(again[key], default=str) == json.dumps(report[key], default=str), key


def test_the_saved_policy_is_the_runs_and_draws_good_replies(
    bundled: Ran,
) -> None:
    directory, report, _ = bundled
    from spannerlm import bundled as tasks

    task, policy = tasks.load("helpdesk"), spannerlm.load_policy(directory)
    prompts = list(task.heldout_prompts[:16])
    answers = policy.sample(prompts, 2, rng=np.random.default_rng(0))
    assert [a.prompt for a in answers] == prompts
    rewards = [r for a in answers for r in task.reward([a.prompt] * 2, a.responses)]
    base = report["table"][0]["value"]
    half = (report["table"][3]["value"] + base) / 2
    assert np.mean(rewards) - 4 * np.std(rewards) / np.sqrt(32) < report["table"][3]["value"]
    assert np.mean(rewards) + 4 * np.std(rewards) / np.sqrt(32) > half > base
    assert all(a.draws >= 64 for a in answers)
    again = policy.sample(prompts, 2, rng=np.random.default_rng(0))
    assert [a.responses for a in again] == [a.responses for a in answers]


@pytest.mark.parametrize(("kind", "template"), [("gpt2", None), ("llama", TEMPLATE)])
def test_the_users_own_model_prompts_and_reward(kind: str, template: str | None, tmp_path: Path) -> None:
    settings = own_task(tmp_path, kind, template)
    report = run_job(load_config(None, [*settings, "eval_labels=12", "labels=52"]), tmp_path / "run")
    assert report["true_reward_free"] is False
    assert report["baselines"] == {}
    assert [row["name"] for row in report["table"]] == ["base model", "directed"]
    names = [e["name"] for e in report["estimates"]]
    assert names == ["posterior prediction", "off-policy estimate, base model", "off-policy estimate, learned policy"]
    prediction, base, learned = report["estimates"]
    assert prediction["low"] < prediction["value"] < prediction["high"]
    assert learned["high"] > base["low"]
    assert report["counts"]["labels"] + report["counts"]["eval_labels"] <= 52
    assert report["counts"]["labels"] == 40
    answers = spannerlm.load_policy(tmp_path / "run").sample(["a b c"], 3, rng=np.random.default_rng(0))
    assert len(answers[0].responses) == 3


def test_columns_reach_the_reward_and_none_is_a_skip(tmp_path: Path) -> None:
    settings = [s.replace(":words", ":picky") for s in own_task(tmp_path)]
    report = run_job(load_config(None, settings), tmp_path / "run")
    assert report["counts"]["skips"] > 0
    assert report["counts"]["labels"] + report["counts"]["skips"] == 40


def test_a_reward_declared_free_brings_baselines(tmp_path: Path) -> None:
    report = run_job(load_config(None, [*own_task(tmp_path, prompts=6), "reward_free=true"]), tmp_path / "run")
    assert [row["name"] for row in report["table"]][-1] == "true-reward optimum"
    assert "random-singles" in report["baselines"]


def test_comparisons_of_the_bundled_task_are_simulated(tmp_path: Path) -> None:
    """One comparison is one label; values come from the true reward, and random pairs are compared beside them."""
    settings = [*SMALL, "feedback=comparison", "scale=0.3", "labels=30"]
    report = run_job(load_config(None, settings), tmp_path / "run")
    assert report["counts"]["labels"] == 30
    assert report["feedback"] == "comparison"
    names = [row["name"] for row in report["table"]]
    same, more = "random, same labels", "random, 10x labels"
    assert names == ["base model", same, more, "directed", "true-reward optimum"]
    assert [row["labels"] for row in report["table"]] == [0, 30, 300, 30, None]
    assert list(report["baselines"]) == ["random comparisons"]
    assert report["fit"]["reading"].startswith("not known: the fit is cross-validated on rewards only")
    assert report["estimates"] == []
    assert "comparisons at s = 0.3" in (tmp_path / "run" / "report.html").read_text()
    assert Ledger.verify(tmp_path / "run").ok
    assert load_config(tmp_path / "run" / "config.yaml").scale == 0.3


def test_the_users_comparisons_predict_a_gain_and_no_level(tmp_path: Path) -> None:
    own = [setting for setting in own_task(tmp_path) if not setting.startswith("reward=")]
    own += ["feedback=comparison", f"compare={tmp_path / 'reward.py'}:more"]
    report = run_job(load_config(None, own), tmp_path / "run")
    assert (report["true_reward_free"], report["baselines"]) == (False, {})
    (gain,) = report["estimates"]
    assert gain["name"] == "predicted gain over the base model"
    assert gain["low"] < gain["value"] < gain["high"]
    assert gain["value"] > 0.0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "is predicted to earn" in page
    assert "Comparisons tell which reply is better, not how good it is." in page
    assert np.isnan([row["value"] for row in report["table"]]).all()
    (tmp_path / "reward.py").write_text(REWARD + "\n# another version\n")
    again = resume_job(tmp_path / "run")
    assert "file has changed" in again["warnings"][0]
    assert again["estimates"] == report["estimates"]


def test_rewards_beside_comparisons_measure_the_result(tmp_path: Path) -> None:
    """They are bought for held-out responses only, from the same budget."""
    own = [*own_task(tmp_path), "feedback=comparison", f"compare={tmp_path / 'reward.py'}:more"]
    report = run_job(load_config(None, [*own, "labels=52", "eval_labels=12"]), tmp_path / "run")
    names = [e["name"] for e in report["estimates"]]
    gain = "predicted gain over the base model"
    assert names == [gain, "off-policy estimate, base model", "off-policy estimate, learned policy"]
    assert (report["counts"]["labels"], report["counts"]["eval_labels"]) == (40, 12)
    assert all(e["low"] < e["value"] < e["high"] for e in report["estimates"])


def test_an_explorer_of_rewards_refuses_comparisons(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'random-singles': expected scalar rewards, got feedback='comparison'"):
        run_job(load_config(None, [*SMALL, "feedback=comparison", "explorer=random-singles"]), tmp_path / "run")


def test_a_broken_reward_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    settings = [s.replace(":words", ":broken") for s in own_task(tmp_path)]
    with pytest.raises(RewardError, match="one per completion"):
        run_job(load_config(None, settings), tmp_path / "run")
    assert Ledger.verify(tmp_path / "run").ok
    (tmp_path / "reward.py").write_text(REWARD.replace("return [1.0]", "return [1.0] * len(completions)"))
    report = resume_job(tmp_path / "run", in_doubt="rebuy")
    assert report["counts"]["labels"] == 40


def test_a_run_ends_at_its_target(tmp_path: Path) -> None:
    """One predicted regret is far above what there is to gain, and met at once; the other is never met."""
    settings = [*SMALL, "baselines=false", "evaluation.draws=16", "labels=60"]
    early = run_job(load_config(None, [*settings, "target_regret=50"]), tmp_path / "early")
    late = run_job(load_config(None, [*settings, "target_regret=0.000001"]), tmp_path / "late")
    assert (early["counts"]["labels"], late["counts"]["labels"]) == (40, 60)  # 40: twice the random beginning
    assert early["reason"] == "predicted regret below 50"
    assert late["reason"] == "labels spent"


def test_one_prompt_is_enough_to_run(tmp_path: Path) -> None:
    report = run_job(load_config(None, [*own_task(tmp_path, prompts=1), "labels=6"]), tmp_path / "run")
    assert report["table"] == []  # no prompt is left to hold out
    assert report["counts"]["labels"] == 6
    assert (tmp_path / "run" / "report.html").exists()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml"):
        resume_job(tmp_path)
    with pytest.raises(InputError, match=r"report\.json"):
        load_report(tmp_path)


def test_unknown_explorers_and_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spanner-sampling"):
        run_job(load_config(None, [*SMALL, "explorer=spaner"]), tmp_path)
    with pytest.raises(InputError, match="nuu"):
        run_job(load_config(None, [*SMALL, "explorer_settings={nuu: 1}"]), tmp_path)


def test_a_changed_reward_file_is_told(tmp_path: Path) -> None:
    settings = own_task(tmp_path)
    assert run_job(load_config(None, settings), tmp_path / "run")["warnings"] == []
    (tmp_path / "reward.py").write_text(REWARD + "\n# another version\n")
    for _ in range(2):  # and told again whenever the run is taken up: its labels stay mixed
        (warning,) = resume_job(tmp_path / "run")["warnings"]
        assert "reward's file has changed" in warning
    assert "reward&#39;s file has changed" in (tmp_path / "run" / "report.html").read_text()


def test_labels_that_are_all_equal_tilt_nothing(tmp_path: Path) -> None:
    settings = own_task(tmp_path)
    (tmp_path / "reward.py").write_text("def words(prompts, completions):\n    return [1.1] * len(completions)\n")
    report = run_job(load_config(None, settings), tmp_path / "run")
    assert report["recommended"]["draws_per_answer"] == pytest.approx(1.0)
    assert "gains nothing" in report["recommended"]["reason"]


def test_a_source_that_declines_everything_gets_no_recommendation(tmp_path: Path) -> None:
    settings = own_task(tmp_path)
    (tmp_path / "reward.py").write_text("def words(prompts, completions):\n    return [None] * len(completions)\n")
    report = run_job(load_config(None, settings), tmp_path / "run")
    assert report["counts"]["labels"] == 0
    assert report["counts"]["skips"] == 40
    assert report["recommended"] is None
    assert report["replies"] == []


def test_a_directory_with_somebody_elses_configuration_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("labels: 7  # mine\n")
    with pytest.raises(InputError, match="another configuration"):
        run_job(load_config(None, SMALL), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "labels: 7  # mine\n"


def test_labels_to_evaluate_need_a_prompt_to_hold_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 prompts"):
        run_job(load_config(None, [*own_task(tmp_path, prompts=1), "eval_labels=3"]), tmp_path / "run")
    report = run_job(load_config(None, [*own_task(tmp_path, prompts=2), "eval_labels=3"]), tmp_path / "run")
    assert report["counts"]["eval_labels"] == 3


def test_doubt_is_not_settled_where_the_run_is_damaged(tmp_path: Path) -> None:
    settings = [s.replace(":words", ":broken") for s in own_task(tmp_path)]
    with pytest.raises(RewardError):
        run_job(load_config(None, [*settings, "features=ngrams"]), tmp_path / "run")  # wide: draws go to shards
    shard = next((tmp_path / "run" / "draws").glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    before = (tmp_path / "run" / "run.head").read_bytes()
    with pytest.raises(LedgerCorruptError):
        resume_job(tmp_path / "run", in_doubt="drop")
    assert (tmp_path / "run" / "run.head").read_bytes() == before
    shard.write_bytes(whole)
    with Ledger.open(tmp_path / "run") as ledger:
        assert ledger.counts.in_doubt > 0


def test_a_contradicting_configuration_leaves_the_runs_own_alone(tmp_path: Path) -> None:
    settings = own_task(tmp_path)
    run_job(load_config(None, settings), tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="seed"):
        run_job(load_config(None, [*settings, "seed=9"]), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
