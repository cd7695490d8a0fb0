"""Helpdesk conversations: their questions, their reward, and a quick form of the benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from spannerlm import bundled
from spannerlm.backends.conversation import written
from spannerlm.bundled.helpdesk.conversation import GOOD_RATE, ConversationReward, conversations, customer, good
from spannerlm.errors import InputError
from spannerlm.rewards import is_pure

QUESTIONS = ("my printer is hot ;", "the phone seems dead ;")
GOOD = ("please let it cool", "so sorry please charge the battery bye")


def test_conversations_ask_the_tasks_own_questions():
    task = bundled.load("helpdesk")
    for heldout, pool in ((False, task.train_prompts), (True, task.heldout_prompts)):
        found = conversations(8, 50, heldout=heldout)
        assert found == conversations(8, 50, heldout=heldout) != conversations(8, 50, heldout=heldout, seed=1)
        asked = [prompt.split("\n") for prompt in found]
        assert all(len(set(questions)) == 8 for questions in asked)
        assert {question for questions in asked for question in questions} <= set(pool)
        assert len(set(found)) == 50
    for wrong in ((0, 1), (1, 0), (25, 1)):
        with pytest.raises(InputError, match="conversations"):
            conversations(*wrong, heldout=True)


def test_the_customer_asks_one_question_after_the_other():
    prompt = "\n".join(QUESTIONS)
    assert [customer(prompt, ("x",) * k) for k in range(3)] == [*QUESTIONS, None]


def test_one_bad_reply_spoils_a_conversation():
    prompt, reward = "\n".join(QUESTIONS), ConversationReward()
    texts = [
        written(list(zip(QUESTIONS, replies, strict=True)))
        for replies in (GOOD, (GOOD[1], GOOD[0]), (GOOD[0], "not you again " + GOOD[1]), (GOOD[0], ""))
    ]
    assert reward([prompt] * 4, texts) == [1.0, 0.0, 0.0, 0.0]
    assert is_pure(reward)
    with pytest.raises(InputError, match="replies to"):
        reward.value(prompt, written([(QUESTIONS[0], GOOD[0])]))
    with pytest.raises(InputError, match="one prompt per completion"):
        reward([prompt], [])


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("transformers")
    path = Path(__file__).parents[2] / "benchmarks" / "conversations.py"
    spec = importlib.util.spec_from_file_location("benchmark_conversations", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(benchmark):
    task = bundled.load("helpdesk")
    return benchmark.HuggingFaceModel.load(str(task.model_path), device="cpu", max_new_tokens=task.max_new_tokens)


def test_the_rate_of_good_replies_is_as_stated(model):
    prompts = bundled.load("helpdesk").heldout_prompts
    found = model.generate(prompts, 40, hidden=(), rng=np.random.default_rng(0))
    rate = np.mean(
        [good(r.prompt, y) for r in found for y, c in zip(r.responses, r.counts, strict=True) for _ in range(c)]
    )
    assert abs(rate - GOOD_RATE) < 0.03  # the standard error is below .01


def test_turn_by_turn_beats_whole_conversations_at_equal_tokens(benchmark, model):
    found = benchmark.best_case(model, 4, 40, 8, 0.1, 0)
    base, whole, turns = (answer.successes.mean() for answer in found.values())
    assert base < 0.15
    assert whole < 0.4
    assert turns > 0.75
    sequence, stepwise = found["whole conversations"].tokens, found["turn by turn"].tokens
    assert abs(sequence - stepwise) < 0.03 * sequence  # equally many replies, whose lengths are random
