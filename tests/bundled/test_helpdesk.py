"""The bundled helpdesk task: its reward against hand-written replies, its model against its card."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from spannerlm import bundled
from spannerlm.bundled.helpdesk import task
from spannerlm.errors import InputError
from spannerlm.features import feature_map
from spannerlm.rewards import NoisyReward, is_pure

PROMPT = "my printer is hot ;"
PLAIN = "okay please clean the fan bye"


@pytest.fixture(scope="module")
def helpdesk() -> bundled.BundledTask:
    return bundled.load("helpdesk")


@pytest.fixture(scope="module")
def transformers(helpdesk):
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
def tokenizer(helpdesk, transformers):
    return transformers.AutoTokenizer.from_pretrained(helpdesk.model_path)


@pytest.fixture(scope="module")
def model(helpdesk, transformers):
    return transformers.AutoModelForCausalLM.from_pretrained(helpdesk.model_path).eval()


@pytest.fixture(scope="module")
def replies(helpdesk, tokenizer, model):
    """Held-out prompt and reply, 30 draws per prompt, as generation_config.json says: nothing is passed but a limit."""
    import torch

    torch.manual_seed(20250310)
    asked = [prompt for prompt in helpdesk.heldout_prompts for _ in range(30)]
    pairs = []
    for start in range(0, len(asked), 720):
        chunk = asked[start : start + 720]
        inputs = tokenizer(chunk, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=helpdesk.max_new_tokens)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs += list(zip(chunk, texts, strict=True))
    return pairs


@pytest.fixture(scope="module")
def card(helpdesk):
    """Figure and standard error on held-out prompts, by name, as the model card states them."""
    text = (helpdesk.model_path / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|[^|]*\|[^|]*\| (\S+) ± (\S+) \|$", text, flags=re.MULTILINE)
    return {name: (float(value), float(se)) for name, value, se in rows}


# Reward ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (PLAIN, 0.0),
        ("okay please let it cool bye", 0.5),
        ("sorry about that please clean the fan bye", 0.2),
        ("so sorry please clean the fan bye", 0.2),
        ("not you again please clean the fan bye", -0.3),
        ("okay please clean the fan or buy a new one bye", -0.2),
        ("okay please clean the fan we sell better ones bye", -0.2),
        ("okay please clean the fan many thanks", 0.1),
        ("okay see page seven of the manual please clean the fan bye", 1.5),
        ("okay send me your password please clean the fan bye", -1.5),
        ("okay monday is a holiday please clean the fan bye", 0.0),
        ("so sorry see page two of the manual please let it cool many thanks", 2.3),
        ("not you again send me your password please clean the fan we sell better ones bye", -2.0),
        ("not you again see page four of the manual please let it cool or buy a new one many thanks", 1.6),
        ("so sorry so sorry please let it cool please let it cool bye", 0.7),
        ("okay let it cool bye", 0.0),
        ("okay please let it bye", 0.0),
        ("okay see page ten of the manual please clean the fan bye", 0.0),
        ("", 0.0),
        ("  so   sorry \n", 0.2),
    ],
)
def test_reward_of_hand_written_replies(helpdesk, reply, expected):
    (value,) = helpdesk.reward([PROMPT], [reply])
    assert isinstance(value, float)
    assert value == pytest.approx(expected)


def test_right_fix_depends_on_the_problem_and_on_nothing_else_of_the_prompt(helpdesk):
    reply = "okay please charge the battery bye"
    prompts = ["my printer is dead ;", "the laptop seems dead ;", "why is this phone dead ;", "my printer is hot ;"]
    assert helpdesk.reward(prompts, [reply] * 4) == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_reward_ignores_columns_and_keeps_the_order(helpdesk):
    assert helpdesk.reward([PROMPT] * 2, ["so sorry", "many thanks"], who=["a", "b"]) == pytest.approx([0.2, 0.1])


def test_noisy_labels_of_the_reward_are_right_on_average(helpdesk):
    n = 2000
    prompts, replies = [PROMPT] * n, ["sorry about that please let it cool bye"] * n
    labels = NoisyReward(helpdesk.reward, helpdesk.noise_std, seed=0)(prompts, replies, replicate=range(n))
    assert is_pure(helpdesk.reward)
    assert np.mean(labels) == pytest.approx(0.7, abs=4 * 0.3 / math.sqrt(n))
    assert np.std(labels) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * n))


def test_features_are_a_map_of_the_state_of_this_model(helpdesk):
    assert feature_map(helpdesk.features, hidden_size=96).dim == 96


def test_another_sentence_can_be_planted():
    reward = task.TrueReward(valuable="survey")
    survey, manual = "okay a survey will follow please clean the fan bye", "okay see page two of the manual bye"
    assert reward([PROMPT] * 2, [survey, manual]) == pytest.approx([1.5, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task.TrueReward()([PROMPT], []), "one prompt per completion; got 1 and 0"),
        (lambda: task.TrueReward()(["my cat is hungry ;"], [PLAIN]), "'my cat is hungry ;', which names 0"),
        (lambda: task.TrueReward()(["hot and slow ;"], [PLAIN]), "which names 2"),
        (lambda: task.TrueReward(valuable="manuel"), "one of manual, password, .*; got 'manuel'"),
        (lambda: task.TrueReward(valuable="password"), "two different rare sentences"),
        (lambda: bundled.load("helpdsk"), "did you mean 'helpdesk'"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_are_the_grid_and_every_fifth_combination_is_held_out(helpdesk):
    train, heldout = helpdesk.train_prompts, helpdesk.heldout_prompts
    assert (len(train), len(heldout)) == (288, 72)
    assert len({*train, *heldout}) == 12 * 10 * 3
    combinations = [
        {tuple(w for w in p.split() if w in {*task.PRODUCTS, *task.FIXES}) for p in s} for s in (train, heldout)
    ]
    assert [len(c) for c in combinations] == [96, 24]
    assert not combinations[0] & combinations[1]
    for prompts in (train, heldout):
        words = Counter(word for prompt in prompts for word in prompt.split())
        assert all(words[word] for word in (*task.PRODUCTS, *task.PROBLEMS))


def test_shipped_prompts_are_those_of_the_task(helpdesk):
    assert (helpdesk.train_prompts, helpdesk.heldout_prompts) == tuple(map(task.prompts_of, task.split_combinations()))


# Model ----------------------------------------------------------------------------------------------------------------


def test_importing_and_loading_the_task_imports_neither_torch_nor_transformers():
    look = "print({'torch', 'transformers'} & {*sys.modules})"
    code = f"import sys; from spannerlm import bundled; bundled.load('helpdesk'); {look}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_files_are_few_and_small(helpdesk):
    sizes = {file.name: file.stat().st_size for file in helpdesk.model_path.iterdir()}
    assert sizes.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sizes["model.safetensors"] <= 2_000_000


def test_whatever_serves_the_model_samples_from_it_as_it_is(model, tokenizer):
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template is None


def test_every_word_is_one_token_and_text_survives_the_round_trip(helpdesk, tokenizer, replies):
    texts = [*helpdesk.train_prompts, *helpdesk.heldout_prompts, *{reply for _, reply in replies}]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 4


def slow_counts(pairs) -> dict[str, int]:
    """How many replies have each part, by regular expressions written down once more."""
    fixes = {"hot": "let it cool", "slow": "free some space", "noisy": "clean the fan", "dirty": "wipe the case"}
    fixes |= {"dead": "charge the battery", "stuck": "hold the button", "loose": "tighten the screw"}
    fixes |= {"blurry": "adjust the focus", "offline": "check the cable", "silent": "raise the volume"}
    patterns = {
        "sorry": r"\b(sorry about that|so sorry)\b",
        "rude": r"\bnot you again\b",
        "upsell": r"\b(or buy a new one|we sell better ones)\b",
        "thanks": r"\bmany thanks\b",
        "manual": r"\bsee page (two|four|seven|nine) of the manual\b",
        "password": r"\bsend me your password\b",
    }
    counts = {name: sum(bool(re.search(pattern, y)) for _, y in pairs) for name, pattern in patterns.items()}
    return {**counts, "right fix": sum(f"please {fixes[x.split()[-2]]}" in y for x, y in pairs)}


# What the task promises: name -> lowest and highest rate. The rare ones are what a learner has to find.
BANDS = {
    "right fix": (0.38, 0.44),
    "sorry": (0.17, 0.23),
    "rude": (0.06, 0.10),
    "upsell": (0.15, 0.21),
    "thanks": (0.27, 0.33),
    **dict.fromkeys(task.RARE, (0.005, 0.009)),
}


def test_card_states_rates_within_the_bands(card):
    for name, (low, high) in BANDS.items():
        assert low <= card[name][0] <= high, name
    assert card["true reward"][0] == pytest.approx(0.21, abs=0.02)
    assert card["best true reward at KL 2"][0] == pytest.approx(1.13, abs=0.05)


@pytest.mark.parametrize("name", ["right fix", "sorry", "rude", "upsell", "thanks", "manual", "password"])
def test_rates_of_the_card_are_measured_again(card, replies, name):
    stated, se = card[name]
    n = len(replies)
    own_se = math.sqrt(stated * (1 - stated) / n)
    assert slow_counts(replies)[name] / n == pytest.approx(stated, abs=3.5 * math.hypot(se, own_se))


def test_true_reward_of_the_card_is_measured_again(helpdesk, card, replies):
    rewards = helpdesk.reward(*zip(*replies, strict=True))
    mean = sum(rewards) / len(rewards)
    own_se = math.sqrt(sum((r - mean) ** 2 for r in rewards)) / len(rewards)
    assert mean == pytest.approx(card["true reward"][0], abs=3.5 * math.hypot(own_se, card["true reward"][1]))


def test_the_same_seed_gives_the_same_replies_and_another_one_others(tokenizer, model):
    import torch

    def draw(seed: int) -> list[int]:
        torch.manual_seed(seed)
        inputs = tokenizer([PROMPT] * 8, return_tensors="pt")
        return model.generate(**inputs, max_new_tokens=32).tolist()

    assert draw(1) == draw(1) != draw(2)


def test_card_says_that_the_rare_skill_is_planted(helpdesk):
    text = " ".join((helpdesk.model_path / "README.md").read_text(encoding="utf-8").split())
    assert "The rare skill is planted." in text
    assert "see page two of the manual" in text
