"""The bundled countdown task: its reward against hand-written replies, its model against its card."""

from __future__ import annotations

import itertools
import math
import re
import socket
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spannerlm import bundled
from spannerlm.bundled.countdown import task
from spannerlm.config import load_config
from spannerlm.errors import InputError
from spannerlm.job import run_job
from spannerlm.rewards import NoisyReward, is_pure

PROMPT = "make 24 from 2 3 9 ;"


@pytest.fixture(scope="module")
def countdown() -> bundled.BundledTask:
    return bundled.load("countdown")


@pytest.fixture(scope="module")
def transformers(countdown):
    """The library, with one torch thread and no way to the network."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def refuse(*args, **kwargs):
        raise AssertionError("a bundled model asked for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield library
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(countdown, transformers):
    return transformers.AutoTokenizer.from_pretrained(countdown.model_path)


@pytest.fixture(scope="module")
def model(countdown, transformers):
    return transformers.AutoModelForCausalLM.from_pretrained(countdown.model_path).eval()


DRAWS = 64


@pytest.fixture(scope="module")
def replies(countdown, tokenizer, model):
    """Held-out prompt and reply, DRAWS in a row per prompt, as generation_config.json says but for the limit."""
    import torch

    torch.manual_seed(20250310)
    asked = [prompt for prompt in countdown.heldout_prompts[::2] for _ in range(DRAWS)]
    pairs = []
    for start in range(0, len(asked), 1152):
        chunk = asked[start : start + 1152]
        inputs = tokenizer(chunk, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=countdown.max_new_tokens)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs += list(zip(chunk, texts, strict=True))
    return pairs


@pytest.fixture(scope="module")
def text(countdown):
    """The model card."""
    return (countdown.model_path / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card(text):
    """Figure and standard error on held-out prompts, by name, as the model card states them."""
    rows = re.findall(r"^\| ([^|]+) \|[^|]*\|[^|]*\| (\S+) ± (\S+) \|$", text, flags=re.MULTILINE)
    return {name: (float(value), float(se)) for name, value, se in rows}


# Reward ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("answer ( 9 * 2 ) + 6", 0.0),
        ("answer ( 3 * 2 ) + 9", 0.0),
        ("answer ( 9 + 3 ) * 2", 1.0),
        ("answer 2 * ( 9 + 3 )", 1.0),
        ("answer ( 2 * ( 9 + 3 ) )", 1.0),
        ("answer 9 + 3 * 2", 0.0),
        ("9 + 3 = 12 12 * 2 = 24 yes answer ( 9 + 3 ) * 2", 1.0),
        ("9 + 3 = 11 11 * 2 = 80 no answer ( 9 + 3 ) * 2", 1.0),
        ("answer ( 9 + 3 ) answer ( 9 + 3 ) * 2", 1.0),
        ("answer ( 9 + 3 ) * 2 answer ( 9 + 3 )", 0.0),
        ("( 9 + 3 ) * 2", 0.0),
        ("answer 12 * 2", 0.0),
        ("answer 24", 0.0),
        ("answer 2 3 9", 0.0),
        ("answer ( 9 + 3 ) * 2 * 1", 0.0),
        ("answer ( 9 + 3 ) * 2 + 2 - 2", 0.0),
        ("answer ( 9 + 3 ) * 2 ;", 0.0),
        ("answer ( 9 + 3 * 2", 0.0),
        ("answer ( 9 + 3 ) * * 2", 0.0),
        ("answer - 9 + 3 * 2", 0.0),
        ("answer 9 / ( 3 - 2 - 1 )", 0.0),
        ("answer 2 ( 3 ) ( 9 )", 0.0),
        ("answer 9 = 3 + 2", 0.0),
        ("answer " + "( " * 500 + "9 + 3 ) * 2", 0.0),
        ("answer", 0.0),
        ("", 0.0),
        ("  answer   ( 9+3 ) * 2 ", 0.0),
        (" \n answer \t ( 9 + 3 ) *  2 ", 1.0),
    ],
)
def test_reward_of_hand_written_replies(countdown, reply, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (value,) = countdown.reward([PROMPT], [reply])
    assert isinstance(value, float)
    assert value == expected


def test_division_is_exact(countdown):
    prompts, answer = ["make 3 from 2 4 6 ;", "make 27 from 3 9 9 ;"], ["answer ( 6 / 4 ) * 2", "answer ( 9 / 3 ) * 9"]
    assert countdown.reward(prompts, answer) == [1.0, 1.0]
    assert task.value_of(["1", "/", "3", "+", "1", "/", "3", "+", "1", "/", "3"]) == 1


def test_a_number_given_twice_is_used_twice(countdown):
    replies = ["answer ( 7 + 7 ) - 5", "answer 7 + ( 7 - 5 )", "answer 7 + 5 - 3", "answer 14 - 5"]
    assert countdown.reward(["make 9 from 5 7 7 ;"] * 4, replies) == [1.0, 1.0, 0.0, 0.0]


@given(
    numbers=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    operators=st.tuples(*[st.sampled_from("+-*/")] * 2),
    left=st.booleans(),
)
def test_values_are_those_of_the_steps_in_order(numbers, operators, left):
    """Against a slow evaluation of both ways to bracket three numbers."""
    apply = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: None if y == 0 else x / y,
    }
    a, b, c = map(Fraction, numbers)
    first, second = operators
    tokens = f"( {a} {first} {b} ) {second} {c}" if left else f"{a} {first} ( {b} {second} {c} )"
    inner = apply[first](a, b) if left else apply[second](b, c)
    expected = None if inner is None else apply[second](inner, c) if left else apply[first](a, inner)
    assert task.value_of(tokens.split()) == expected


def test_reward_ignores_columns_and_keeps_the_order(countdown):
    answers = ["answer ( 9 + 3 ) * 2", "answer 9"]
    assert countdown.reward([PROMPT] * 2, answers, who=["a", "b"]) == [1.0, 0.0]


def test_noisy_labels_of_the_reward_are_right_on_average(countdown):
    n = 2000
    prompts, answers = [PROMPT] * n, ["answer ( 9 + 3 ) * 2"] * n
    labels = NoisyReward(countdown.reward, countdown.noise_std, seed=0)(prompts, answers, replicate=range(n))
    assert is_pure(countdown.reward)
    assert np.mean(labels) == pytest.approx(1.0, abs=4 * 0.3 / math.sqrt(n))
    assert np.std(labels) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * n))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task.TrueReward()([PROMPT], []), "one prompt per completion; got 1 and 0"),
        (lambda: task.TrueReward()(["my printer is hot ;"], ["answer 1"]), "got 'my printer is hot ;'"),
        (lambda: task.TrueReward()(["make 5 from ;"], ["answer 5"]), "expected one such as 'make 24 from 2 3 4 ;'"),
        (lambda: bundled.load("count"), "did you mean 'countdown'"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Prompts --------------------------------------------------------------------------------------------------------------


def reachable(numbers: tuple[int, ...]) -> set[Fraction]:
    """Every value of an expression that uses each number once, by brute force."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        x, y = Fraction(numbers[i]), Fraction(numbers[j])
        for value in (x + y, x - y, x * y, *((x / y,) if y else ())):
            found |= reachable((value, *rest))  # type: ignore[arg-type]
    return found


def test_prompts_are_problems_with_a_solution_and_the_sides_share_none(countdown):
    train, heldout = countdown.train_prompts, countdown.heldout_prompts
    assert (len(train), len(heldout)) == (288, 72)
    assert len({*train, *heldout}) == 360
    for prompt in (*train, *heldout):
        problem = task.problem_of(prompt)
        assert problem.prompt == prompt
        assert len(problem.numbers) == 3
        assert max(problem.numbers) <= 12
        assert problem.target <= 60
        assert problem.target in reachable(problem.numbers)


# Model ----------------------------------------------------------------------------------------------------------------


def test_importing_and_loading_the_task_imports_neither_torch_nor_transformers():
    look = "print({'torch', 'transformers'} & {*sys.modules})"
    code = f"import sys; from spannerlm import bundled; bundled.load('countdown'); {look}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_files_are_few_and_small(countdown):
    sizes = {file.name: file.stat().st_size for file in countdown.model_path.iterdir()}
    assert sizes.keys() == {file.name for file in bundled.load("helpdesk").model_path.iterdir()}
    assert sizes["model.safetensors"] <= 2_000_000


def test_whatever_serves_the_model_samples_from_it_as_it_is(model, tokenizer):
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template is None


def test_every_word_is_one_token_and_text_survives_the_round_trip(countdown, tokenizer, replies):
    texts = [*countdown.train_prompts, *countdown.heldout_prompts, *{reply for _, reply in replies}]
    for line, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert len(ids) == len(line.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == line


def test_card_states_what_the_task_promises(card, text):
    assert card["true reward"][0] == card["pass@1"][0] == pytest.approx(0.62, abs=0.05)
    assert card["pass@64"][0] >= 0.985
    assert card["right where found"][0] >= 0.8
    assert card["right where given up"][0] <= 0.05
    plain = " ".join(text.split())
    assert "**Exploration does not pay here.** This is the honest counter-example" in plain


def test_rates_of_the_card_are_measured_again(countdown, card, replies):
    """Half the held-out prompts: the difference to all of them is part of the tolerance, over prompts."""
    rewards = np.array(countdown.reward(*zip(*replies, strict=True))).reshape(-1, DRAWS)
    for name, per_prompt in {"pass@1": rewards.mean(axis=1), "pass@64": rewards.max(axis=1)}.items():
        stated, se = card[name]
        own = float(per_prompt.std()) / math.sqrt(len(rewards))
        assert per_prompt.mean() == pytest.approx(stated, abs=3.5 * math.hypot(own, se) + 0.005), name
    found = ["yes" in reply.split() for _, reply in replies]
    assert rewards.ravel()[found].mean() == pytest.approx(card["right where found"][0], abs=0.03)


@pytest.mark.slow
def test_a_run_of_the_task_beats_the_base_model(tmp_path):
    settings = ["task=countdown", "labels=20", "kl=1.0", "max_prompts=24", "explorer=random-singles"]
    settings += ["evaluation.max_prompts=12", "evaluation.draws=128", "baselines=false"]
    report = run_job(load_config(None, settings), tmp_path / "run")
    assert report["task"] == "countdown"
    assert report["history"][-1]["labels"] == 20
    assert report["history"][-1]["value"] > report["history"][0]["value"] + 0.1
