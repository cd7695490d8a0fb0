"""Both directions: a reward file that TRL's GRPOTrainer uses works here unchanged, and ours work in the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from trl import GRPOConfig, GRPOTrainer

import spannerlm
from spannerlm import bundled
from spannerlm.config import load_config
from spannerlm.errors import InputError, RewardError
from spannerlm.job import run_job
from spannerlm.records import Unknown
from spannerlm.rewards import call_reward
from spannerlm.sources.verifiers import RegexMatch
from spannerlm.tasks import load_task
from spannerlm.tilted import load_policy
from spannerlm.trl_rewards import for_trl, policy_reward

TASK = bundled.load("helpdesk")
PROMPTS = list(TASK.train_prompts[:4])
FILE = '''
import json
SEEN = {seen!r}

def polite(prompts, completions, level, **kwargs):
    """As a user of TRL writes it."""
    values = [float("please" in text) + 0.1 * k for text, k in zip(completions, level)]
    with open(SEEN, "a") as file:
        for row in zip(prompts, completions, level, values):
            file.write(json.dumps(row) + "\\n")
    return values
'''


def explored(folder: Path) -> Path:
    """The directory of a short run."""
    spannerlm.explore(
        model=str(TASK.model_path),
        prompts=PROMPTS,
        features=list(TASK.features),
        reward=TASK.reward,
        labels=10,
        draws=100,
        run_dir=folder,
    )
    return folder


def trained(reward: Any, folder: Path, rows: list[dict[str, Any]]) -> None:
    """One step of a real GRPOTrainer on the bundled model."""
    settings = GRPOConfig(
        output_dir=str(folder / "log"),
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=12,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(TASK.model_path, padding_side="left")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(TASK.model_path),
        processing_class=tokenizer,
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
    ).train()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_same_file_gives_the_same_rewards_in_the_trainer_and_here(tmp_path: Path) -> None:
    """Both write down what they were asked; what both were asked has one value, by the same names and columns."""
    rows = [{"prompt": prompt, "level": i} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(FILE.format(seen=str(tmp_path / "seen.jsonl")))
    namespace: dict[str, Any] = {}
    exec((tmp_path / "reward.py").read_text(), namespace)
    trained(namespace["polite"], tmp_path, rows)
    there = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    (tmp_path / "seen.jsonl").unlink()
    settings = [f"model={TASK.model_path}", f"prompts={tmp_path / 'prompts.jsonl'}", "labels=12", "draws=120"]
    settings += [f"reward={tmp_path / 'reward.py'}:polite", "evaluation.draws=8"]
    report = run_job(load_config(None, settings), tmp_path / "run")
    here = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(there) == 8
    assert len(here) == report["counts"]["labels"] == 12
    levels = {row["prompt"]: row["level"] for row in rows}
    for prompt, completion, level, value in there + here:
        assert level == levels[prompt]
        assert value == float("please" in completion) + 0.1 * level


TALKING = """
import json
SEEN = {seen!r}

async def polite(prompts, completions, log_metric, trainer_state, **kwargs):
    names = sorted(kwargs)
    log_metric("calls", 1.0)
    values = [None if k == 0 else len(c[0]["content"]) + k for c, k in zip(completions, kwargs["level"])]
    with open(SEEN, "a") as file:
        for row in zip(prompts, completions, values):
            file.write(json.dumps([*row, names]) + "\\n")
    return values
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_messages_async_none_and_names_are_those_of_the_trainer(tmp_path: Path) -> None:
    """The same conversational data and async file: messages of the same form, the same names, the same rewards."""
    system = {"role": "system", "content": "Be kind."}
    talks = [[system, {"role": "user", "content": prompt}] for prompt in PROMPTS]
    rows = [{"prompt": talk, "level": min(i, 1)} for i, talk in enumerate(talks)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(TALKING.format(seen=str(tmp_path / "seen.jsonl")))
    namespace: dict[str, Any] = {}
    exec((tmp_path / "reward.py").read_text(), namespace)
    trained(namespace["polite"], tmp_path, rows)
    there = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    (tmp_path / "seen.jsonl").unlink()
    settings = [f"model={TASK.model_path}", f"prompts={tmp_path / 'prompts.jsonl'}"]
    reward = load_task(load_config(None, [*settings, f"reward={tmp_path / 'reward.py'}:polite"])).reward
    assert reward is not None
    users = [prompt[-1]["content"] for prompt, *_ in there]
    levels = [min(PROMPTS.index(user), 1) for user in users]
    found = call_reward(reward, users, [completion[0]["content"] for _, completion, *_ in there], {"level": levels})
    here = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [row[:3] for row in here] == [row[:3] for row in there]
    assert found == [row[2] for row in there]
    assert found.count(None) == 2
    assert here[0][3] == there[0][3] == ["completion_ids", "level", "log_extra"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ours_work_in_the_trainer(tmp_path: Path) -> None:
    calls: list[tuple[int, set[str]]] = []

    def counted(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        calls.append((len(completions), set(columns)))
        return [value or 0.0 for value in RegexMatch("please")(prompts, completions, **columns)]

    trained([for_trl(TASK.reward), for_trl(counted, "counted")], tmp_path, [{"prompt": p, "level": 1} for p in PROMPTS])
    assert calls == [(8, {"level"})]  # nothing of what the trainer adds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ours_and_the_learned_score_work_in_online_dpo(tmp_path: Path) -> None:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    policy = explored(tmp_path / "run")
    settings = OnlineDPOConfig(
        output_dir=str(tmp_path / "log"),
        per_device_train_batch_size=4,
        max_new_tokens=8,
        max_length=128,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = OnlineDPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(TASK.model_path),
        processing_class=transformers.AutoTokenizer.from_pretrained(TASK.model_path, padding_side="left"),
        reward_funcs=[for_trl(TASK.reward), policy_reward(policy)],
        args=settings,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
    )
    trainer.train()
    assert trainer.state.global_step == 1


def test_messages_and_what_trainers_add_are_taken_off() -> None:
    reward = for_trl(RegexMatch("yes"))
    talk = [[{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]] * 2
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    added: dict[str, Any] = {"completion_ids": [[1], [2]], "trainer_state": object(), "log_extra": print}
    assert reward(prompts=talk, completions=said, **added, log_metric=print) == [1.0, 0.0]
    assert reward.__name__ == "RegexMatch"
    with pytest.raises(InputError, match="expected a text or a list of messages"):
        reward(prompts=[3], completions=["x"])
    with pytest.raises(InputError, match="content is text"):
        reward(prompts=["p"], completions=[[{"content": 3}]])


def test_none_stays_none_and_doubt_is_an_error() -> None:
    assert for_trl(lambda prompts, completions: [None, 2])(["p", "p"], ["a", "b"]) == [None, 2.0]
    with pytest.raises(RewardError, match="expected numbers or None for a trainer"):
        for_trl(lambda prompts, completions: [Unknown("cut off")])(["p"], ["a"])


def test_the_learned_score_is_a_reward(tmp_path: Path) -> None:
    """Differences within a prompt are those of <theta, phi> / beta."""
    policy: Any = load_policy(explored(tmp_path / "run"))
    texts = ["please let it cool", "see the manual", "bye"]
    reward = policy_reward(tmp_path / "run")
    found = reward([PROMPTS[0]] * 3 + [PROMPTS[1]], [*texts, "bye"])
    phi = policy.features(policy.model.score(PROMPTS[0], texts, policy.features.hidden))
    np.testing.assert_allclose(found[:3], phi @ policy.theta / policy.beta, rtol=1e-5)
    assert len(found) == 4
