"""Prompts that are conversations: their text, and a run on them from the file to what trainers and clients get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_job import SMALL
from tiny_models import tiny_model, word_tokenizer
from trl import data_utils

import spannerlm
from spannerlm import Run
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.config import load_config
from spannerlm.dialogue import PLAIN, ROLES, Form, heard, spoken, written
from spannerlm.errors import InputError, ModelError
from spannerlm.exporting import exported
from spannerlm.features import NGrams
from spannerlm.foundation.job import coverage_job
from spannerlm.inputs import read_prompts
from spannerlm.job import run_job
from spannerlm.tasks import load_task
from spannerlm.tilted import TiltedPolicy, load_policy
from spannerlm.trl_rewards import policy_reward
from spannerlm.web.forms import ApiError, understood

SAID = {"system": "sys:", "user": "user:", "assistant": "bot:"}
TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'sys:', 'user': 'user:', 'assistant': 'bot:'}[m.role] }} {{ m.content }} "
    "{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)
TALKS = [
    [{"role": "user", "content": "a b"}],
    [{"role": "system", "content": "is hot"}, {"role": "user", "content": "c"}],
    [
        {"role": "system", "content": "the printer"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b b"},
        {"role": "user", "content": "d"},
    ],
    *(
        [{"role": "user", "content": first}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "e"}]
        for first in ("a", "b", "c", "d a", "e", "hot")
    ),
]
REWARD = """
import json
SEEN = {seen!r}

def words(prompts, completions, **columns):
    with open(SEEN, "a") as file:
        for row in zip(prompts, completions):
            file.write(json.dumps(row) + "\\n")
    return [float(c[0]["content"].split().count("b")) for c in completions]

def more(prompts, completions, opponents):
    return [float(a[0]["content"] > b[0]["content"]) for a, b in zip(completions, opponents)]
"""


def flat(talk: list[dict[str, str]]) -> str:
    """What the template makes of a conversation, written without it."""
    return " ".join([*(f"{SAID[m['role']]} {m['content']}" for m in talk), "bot:"])


def own_task(folder: Path) -> list[str]:
    tiny_model("llama").save_pretrained(folder / "model")
    word_tokenizer(template=TEMPLATE).save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": talk}) + "\n" for talk in TALKS))
    (folder / "reward.py").write_text(REWARD.format(seen=str(folder / "seen.jsonl")))
    paths = [f"model={folder / 'model'}", f"prompts={folder / 'prompts.jsonl'}", f"reward={folder / 'reward.py'}:words"]
    return [*SMALL, "generation.max_new_tokens=6", "generation.batch_size=128", *paths]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a task of conversations, with a run in it."""
    folder = tmp_path_factory.mktemp("talks")
    run_job(load_config(None, own_task(folder)), folder / "run")
    return folder


# --- their text -----------------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("user: assistant\n\r\t \u2028"))


@given(st.lists(st.tuples(st.sampled_from(ROLES), WORDS), max_size=4))
def test_a_conversation_is_read_back_exactly(said: list[tuple[str, str]]) -> None:
    assert heard(spoken(said), ROLES) == said


@pytest.mark.parametrize("text", ["hello", "user:", "user : a", "tool: a", "user: a\nb", "\nuser: a", "user: a\n"])
def test_other_texts_are_no_conversation(text: str) -> None:
    with pytest.raises(InputError, match="expected lines that begin with one of 'system', 'user', 'assistant'"):
        Form(dialogues=True).messages(text)


def test_forms_say_what_a_text_stands_for() -> None:
    user, system = {"role": "user", "content": "user: a"}, {"role": "system", "content": "s"}
    assert PLAIN.messages("user: a") == [user]
    assert Form("s").messages("user: a") == [system, user]
    for talk in TALKS:
        assert Form(dialogues=True).messages(written(talk)) == talk
        assert Form("s", dialogues=True).messages(written(talk)) == [system, *talk]


# --- a model reads them ---------------------------------------------------------------------------------------------


def test_a_model_reads_what_its_template_makes_of_the_messages() -> None:
    """The law is that of the model on the same tokens, written without a template."""
    model = HuggingFaceModel(tiny_model("llama"), word_tokenizer(template=TEMPLATE), dialogues=True, max_new_tokens=4)
    plain = HuggingFaceModel(tiny_model("llama"), word_tokenizer(), max_new_tokens=4)
    rows = model.generate([written(talk) for talk in TALKS], 40, rng=np.random.default_rng(0))
    same = plain.generate([flat(talk) for talk in TALKS], 40, rng=np.random.default_rng(0))
    for talk, row, other in zip(TALKS, rows, same, strict=True):
        assert model.codec.prompt_ids(written(talk)) == plain.codec.prompt_ids(flat(talk))
        assert row.responses == other.responses
    with pytest.raises(InputError, match="expected lines that begin"):
        model.generate(["a b"], 1, rng=np.random.default_rng(0))
    with pytest.raises(ModelError, match="expected a chat template in use where they are conversations"):
        HuggingFaceModel(tiny_model("llama"), word_tokenizer(), dialogues=True)


# --- a run on them --------------------------------------------------------------------------------------------------


def test_the_reward_of_a_run_gets_the_messages_of_the_file(ran: Path) -> None:
    seen = [json.loads(line) for line in (ran / "seen.jsonl").read_text().splitlines()]
    assert len(seen) >= 40
    assert all(prompt in TALKS for prompt, _ in seen)
    assert {m["role"] for _, completion in seen for m in completion} == {"assistant"}


def test_what_is_exported_are_the_messages_of_the_file(ran: Path, tmp_path: Path) -> None:
    for kind in ("preference", "policy-preference", "sft", "reward", "prompts"):
        rows = exported(ran / "run", kind, conversational=False).rows  # type: ignore[arg-type]
        assert rows
        assert all(row["prompt"] in TALKS for row in rows), kind
        loaded = datasets.Dataset.from_list(list(rows))
        assert data_utils.is_conversational(loaded[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(ran / "model")
    row = exported(ran / "run", "sft").rows[0]
    assert data_utils.apply_chat_template(row, tokenizer)["prompt"].strip() == flat(row["prompt"])


def test_the_policy_of_a_run_answers_conversations(ran: Path) -> None:
    policy = load_policy(ran / "run")
    assert isinstance(policy, TiltedPolicy)
    assert policy.model.form == Form(dialogues=True)  # type: ignore[attr-defined]
    score = policy_reward(policy)
    said = [[{"role": "assistant", "content": text}] for text in ("b b", "d d")]
    good, bad = score(prompts=[TALKS[2]] * 2, completions=said)
    assert good is not None
    assert bad is not None
    assert good > bad
    own = policy.theta @ (policy.base([written(TALKS[2])]).features_of(0, ["b b"])[0]) / policy.beta  # type: ignore[attr-defined]
    assert good == pytest.approx(own)
    assert score(prompts=["a b"] * 2, completions=["b b", "d d"]) == score(prompts=[TALKS[0]] * 2, completions=said)


def test_a_served_policy_understands_conversations() -> None:
    def asked(messages: Any, system: str | None = None, **more: Any) -> tuple[str, ...]:
        body = {"model": "m", "messages": messages, **more}
        return understood(body, chat=True, models=["m"], form=Form(system, dialogues=True), limit=8).prompts

    for talk in TALKS:
        assert asked(talk) == (written(talk),)
    assert asked([{"role": "developer", "content": "s"}, *TALKS[0]]) == ("system: s\nuser: a b",)
    assert asked([{"role": "system", "content": "s"}, *TALKS[0]], "s") == asked(TALKS[0], "s") == ("user: a b",)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]}]
    assert asked(parts) == ("user: a b",)
    with pytest.raises(ApiError, match="run's own system prompt"):
        asked(TALKS[1], "s")
    for wrong in ([*TALKS[0], {"role": "assistant", "content": "c"}], [{"role": "tool", "content": "c"}, *TALKS[0]]):
        with pytest.raises(ApiError, match="the user's last, got the roles"):
            asked(wrong)
    body = {"model": "m", "prompt": ["a", "user: b"]}
    found = understood(body, chat=False, models=["m"], form=Form(dialogues=True), limit=8)
    assert found.prompts == ("user: a", "user: user: b")


def test_a_part_of_a_reward_gets_messages_too(tmp_path: Path) -> None:
    settings = [*own_task(tmp_path), f"coverage.parts={{b: '{tmp_path / 'reward.py'}:words'}}", "coverage.draws=16"]
    coverage_job(load_config(None, [*settings, "coverage.labels=10"]), tmp_path / "coverage")
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) > 10
    assert all(prompt in TALKS for prompt, _ in seen)


def test_heldout_prompts_take_the_form_of_the_others(tmp_path: Path) -> None:
    """One file of single messages and one of conversations are both conversations; texts are neither."""
    settings = [*own_task(tmp_path), f"heldout={tmp_path / 'h.jsonl'}"]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": TALKS[1]}))
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": TALKS[2]}))
    task = load_task(load_config(None, settings))
    assert (task.train, task.heldout) == ((written(TALKS[1]),), (written(TALKS[2]),))
    assert task.form == Form(dialogues=True)
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": TALKS[1]}))
    task = load_task(load_config(None, settings))
    assert (task.train, task.heldout, task.form) == (("c",), ("c",), Form("is hot"))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": TALKS[0]}))
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": TALKS[3]}))
    task = load_task(load_config(None, [*settings, "generation.system_prompt=s"]))
    assert task.form == Form("s", dialogues=True)
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": TALKS[2]}))
    with pytest.raises(InputError, match=r"generation.system_prompt: expected none"):
        load_task(load_config(None, [*settings, "generation.system_prompt=s"]))
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": "a"}))
    with pytest.raises(InputError, match="expected prompts of the same form as those of"):
        load_task(load_config(None, settings))


# --- from Python ----------------------------------------------------------------------------------------------------


def counted(prompts: Any, completions: Any) -> list[float]:
    assert all(prompt in TALKS for prompt in prompts)
    return [float(c[0]["content"].count("b")) for c in completions]


def more_of_b(prompts: Any, completions: Any, opponents: Any) -> list[float]:
    pairs = zip(counted(prompts, completions), counted(prompts, opponents), strict=True)
    return [0.5 if a == b else float(a > b) for a, b in pairs]


def test_explore_takes_lists_of_messages(ran: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"labels": 20, "draws": 200, "features": NGrams(64), "kl": 1.0}
    options = {"max_new_tokens": 4}
    model = str(ran / "model")
    found = spannerlm.explore(
        prompts=TALKS, model=model, reward=counted, generation=options, run_dir=tmp_path / "run", **own
    )
    assert found.labels == 20
    assert all(row["prompt"] in TALKS for row in exported(tmp_path / "run", "reward").rows)
    loaded = HuggingFaceModel.load(model, dialogues=True, **options)
    again = spannerlm.explore(prompts=TALKS, model=loaded, reward=[counted], **own)
    np.testing.assert_array_equal(again.theta, found.theta)
    paired = spannerlm.explore(prompts=TALKS, model=loaded, compare=more_of_b, feedback="comparison", **own)
    assert paired.labels == 20
    with pytest.raises(InputError, match="loaded with system=None and dialogues=True"):
        spannerlm.explore(prompts=TALKS, model=HuggingFaceModel.load(model), reward=counted, **own)
    with pytest.raises(InputError, match=r"generation\['system'\]: expected none"):
        spannerlm.explore(prompts=TALKS, model=model, reward=counted, generation={"system": "s"}, **own)
    with pytest.raises(InputError, match=r"prompts\[1\]: expected text, got 3"):
        spannerlm.explore(prompts=["a", 3], model=model, reward=counted, **own)
    with pytest.raises(InputError, match="all texts, or all lists of messages, got 1 texts and 9 lists"):
        spannerlm.explore(prompts=["a", *TALKS], model=model, reward=counted, **own)


def test_messages_of_one_system_prompt_stay_the_users_words(ran: Path, tmp_path: Path) -> None:
    talks = [[{"role": "system", "content": "is hot"}, {"role": "user", "content": text}] for text in ("a", "b", "c")]
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any) -> list[float]:
        seen.extend(prompts)
        return [float(len(c[0]["content"])) for c in completions]

    own: dict[str, Any] = {"prompts": talks, "model": str(ran / "model"), "features": "ngrams", "draws": 60}
    own["generation"] = {"max_new_tokens": 4}
    with Run.open(tmp_path / "run", budget=4, **own) as run:
        assert {query.prompt for query in run.ask(3)} <= {"a", "b", "c"}
    assert all(row["prompt"] in talks for row in exported(tmp_path / "run", "prompts", conversational=True).rows)
    spannerlm.explore(reward=reward, labels=6, **own)
    assert len(seen) == 6
    kind = HuggingFaceModel.load(own["model"], system="is hot", max_new_tokens=4)  # which puts it in front by itself
    own |= {"prompts": [talk[1:] for talk in talks], "model": kind, "run_dir": tmp_path / "kind"}
    spannerlm.explore(reward=reward, labels=6, **own)
    assert exported(tmp_path / "kind", "reward", conversational=True).rows[0]["prompt"] in talks
    assert len(seen) == 12
    assert all(prompt in talks for prompt in seen)


def test_a_file_for_another_policy_is_refused_by_name(ran: Path, tmp_path: Path) -> None:
    from spannerlm.inputs import fitted

    found = read_prompts(ran / "prompts.jsonl")
    assert fitted(found, Form(dialogues=True)) == found.texts
    with pytest.raises(InputError, match=r"prompts\[1\]: expected the run's own system message \(none\), got 'is hot'"):
        fitted(found, PLAIN)
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": TALKS[3]}))
    with pytest.raises(InputError, match="learned on such, got a conversation of 3"):
        fitted(read_prompts(tmp_path / "p.jsonl"), Form("s"))
