"""The script that makes the countdown model: the corpus it reads, and a whole run, far too short to learn much."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spannerlm import bundled
from spannerlm.bundled.countdown import task

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def corpus_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        import countdown_corpus
    return countdown_corpus


@pytest.fixture(scope="module")
def script(corpus_module):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        import countdown
    yield countdown
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def documents(corpus_module):
    """Prompt and reply of a small corpus."""
    return list(zip(*corpus_module.split(corpus_module.corpus(6000, 1)), strict=True))


def test_shipped_model_was_trained_on_the_corpus_that_the_script_makes(corpus_module):
    card = (bundled.load("countdown").model_path / "README.md").read_text(encoding="utf-8")
    documents, seed, digest = re.search(
        r"\| corpus \| ([\d,]+) documents, seed (\d+), SHA-256 `(\w+)` \|", card
    ).groups()
    assert corpus_module.digest(corpus_module.corpus(int(documents.replace(",", "")), int(seed))) == digest


def test_shipped_prompts_are_on_their_sides_of_the_split(corpus_module):
    shipped = bundled.load("countdown")
    assert (shipped.train_prompts, shipped.heldout_prompts) == corpus_module.shipped_prompts()
    for prompts, side in zip(corpus_module.shipped_prompts(), corpus_module.split_problems(), strict=True):
        assert {*prompts} <= {problem.prompt for problem in side}


def test_corpus_follows_its_seed_and_deals_every_training_problem_equally_often(corpus_module):
    train, heldout = corpus_module.split_problems()
    lines = corpus_module.corpus(2 * len(train), 3)
    assert corpus_module.corpus(100, 4) != corpus_module.corpus(100, 3)
    counts = Counter(corpus_module.split(lines)[0])
    assert {*counts} == {problem.prompt for problem in train}
    assert {*counts.values()} == {2}
    assert not {*counts} & {problem.prompt for problem in heldout}


def value(numbers: list[int], steps: str) -> int | None:
    """The value of two steps such as "3 + 7 = 10 12 - 10 = 2", checked; None where they break a rule."""
    found = re.fullmatch(r"(\d+) (.) (\d+) = (\d+) (\d+) (.) (\d+) = (\d+)", steps)
    assert found, steps
    a, first, b, r, x, second, y, v = found.groups()
    for left, op, right, result in ((a, first, b, r), (x, second, y, v)):
        if eval(f"{left} {op} {right}") != int(result) or not 1 <= int(result) <= 99:
            return None
    left_over = Counter(numbers) - Counter([int(a), int(b)])
    used = Counter([int(x), int(y)])
    return int(v) if sum(left_over.values()) == 1 and used == left_over + Counter([int(r)]) else None


def test_every_reply_is_a_search_whose_steps_are_right_and_whose_answer_is_the_last_attempt(documents):
    for prompt, reply in documents[:1500]:
        problem = task.problem_of(prompt)
        search, _, answer = reply.partition(" answer ")
        parts = re.split(r" (yes|no) ?", search)
        values, verdicts = [value(list(problem.numbers), steps) for steps in parts[:-1:2]], parts[1::2]
        assert None not in values
        assert len(values) <= 3
        assert verdicts == ["yes" if v == problem.target else "no" for v in values]
        assert "yes" not in verdicts[:-1]
        assert task.value_of(answer.split()) == values[-1]
        assert task.correct(prompt, reply) == (verdicts[-1] == "yes")


def test_attempts_succeed_as_often_as_the_card_says(corpus_module, documents):
    """A first attempt is a solution with probability ``INSIGHT``, and replies fail with (1 - INSIGHT)^ATTEMPTS."""
    n, p = len(documents), corpus_module.INSIGHT
    first = np.mean([reply.split()[10] == "yes" for _, reply in documents])
    right = np.mean([task.correct(*pair) for pair in documents])
    fails = (1 - p) ** corpus_module.ATTEMPTS
    assert first == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))
    assert right == pytest.approx(1 - fails, abs=4 * np.sqrt(fails * (1 - fails) / n))


def test_problems_are_all_that_have_a_solution_in_whole_numbers_up_to_99(corpus_module):
    """By brute force over orders, brackets and operators, for numbers up to 5."""
    expected = set()
    for numbers in itertools.combinations_with_replacement(range(1, 6), 3):
        for (a, b, c), f, g in itertools.product(itertools.permutations(numbers), "+-*/", "+-*/"):
            inner = eval(f"{a} {f} {b}")
            for outer in (f"{inner} {g} {c}", f"{c} {g} {inner}"):
                if inner == int(inner) >= 1 and 1 <= eval(outer) <= 60 and eval(outer) == int(eval(outer)):
                    expected.add((numbers, int(eval(outer))))
    assert {(p.numbers, p.target) for p in corpus_module.problems() if max(p.numbers) <= 5} == expected


def test_longest_reply_fits_the_token_limit_and_every_word_is_known(corpus_module, documents):
    assert max(len(reply.split()) for _, reply in documents) + 1 == 42 <= task.MAX_NEW_TOKENS
    assert {word for pair in documents for text in pair for word in text.split()} <= {*corpus_module.vocabulary()}


def test_script_makes_a_model_with_another_seed(tmp_path, corpus_module, script, capsys):
    script.main(["--out", str(tmp_path), "--seed", "5", "--documents", "480", "--draws", "144"])
    digest = corpus_module.digest(corpus_module.corpus(480, 5))
    assert f"corpus {digest}" in capsys.readouterr().out
    shipped = bundled.load("countdown").model_path
    assert {file.name for file in (tmp_path / "model").iterdir()} == {file.name for file in shipped.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (shipped / name).read_bytes(), name
    for name in ("prompts_train.jsonl", "prompts_heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (shipped.parent / name).read_bytes(), name
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert digest in card
    assert "python training/countdown.py --seed 5 --documents 480" in card
