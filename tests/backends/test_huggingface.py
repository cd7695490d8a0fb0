"""The Hugging Face back end against slow, independent recomputation: plain forward passes, one row at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_models import (
    HIDDEN,
    KINDS,
    PROMPTS,
    WORDS,
    make,
    plain_logprobs,
    plain_states,
    rng,
    tiny_model,
    word_tokenizer,
)

from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.errors import InputError, ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


# ---- the law of the draws


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_exact_law_of_all_responses(kind):
    words = ("a", "b", "c")
    model = HuggingFaceModel(tiny_model(kind, 5), word_tokenizer(words), max_new_tokens=2, batch_size=700)
    n = 20_000
    for record in model.generate(["a b", "c a b a"], n, rng=rng(1)):
        prompt = model.codec.prompt_ids(record.prompt)
        names = ("</s>", "?", *words)
        first = plain_logprobs(model.model, prompt)[-1]
        exact = {"": first[0]}
        for i, j in itertools.product(range(1, 5), range(5)):
            second = plain_logprobs(model.model, [*prompt, i])[-1]
            exact[names[i] if j == 0 else f"{names[i]} {names[j]}"] = first[i] + second[j]
        seen = dict(zip(record.responses, record.counts, strict=True))
        probs = np.exp(list(exact.values()))
        assert probs.sum() == pytest.approx(1)
        assert set(seen) <= set(exact)
        assert chisquare([seen.get(text, 0) for text in exact], n * probs).pvalue > 0.001
        np.testing.assert_allclose(record.logprobs, [exact[text] for text in record.responses], atol=1e-5)


def test_generation_settings_do_not_touch_the_law():
    base = make()
    expected = base.generate(PROMPTS, 50, rng=rng())
    settings = base.model.generation_config
    settings.update(temperature=0.1, top_k=1, top_p=0.2, repetition_penalty=3.0, num_beams=4)
    for a, b in zip(expected, base.generate(PROMPTS, 50, rng=rng()), strict=True):
        assert a.responses == b.responses


def test_several_end_ids_are_one_event():
    two = make()
    two.eos = (0, 5)
    record = two.generate(["the printer"], 400, rng=rng())[0]
    prompt = two.codec.prompt_ids("the printer")
    assert record.finished.any()
    for text, logprob, finished in zip(record.responses, record.logprobs, record.finished, strict=True):
        ids = two.codec.response_ids("the printer", text)
        assert 5 not in ids
        law = plain_logprobs(two.model, prompt + ids)[len(prompt) - 1 :]
        expected = sum(law[k, i] for k, i in enumerate(ids)) + finished * np.logaddexp(law[-1, 0], law[-1, 5])
        assert logprob == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(two.score("the printer", record.responses).logprobs, record.logprobs, atol=1e-4)


# ---- log-probabilities and hidden states


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_lengths_and_states_are_those_of_a_plain_pass(kind):
    model = make(kind)
    for record in model.generate(PROMPTS, 40, hidden=HIDDEN, rng=rng()):
        prompt = model.codec.prompt_ids(record.prompt)
        assert record.counts.sum() == 40
        assert len(set(record.responses)) == len(record.responses)
        for i, text in enumerate(record.responses):
            ids = model.codec.tokenizer(text, add_special_tokens=False)["input_ids"]
            law = plain_logprobs(model.model, prompt + ids)[len(prompt) - 1 :]
            expected = sum(law[k, token] for k, token in enumerate(ids)) + record.finished[i] * law[-1, 0]
            assert record.logprobs[i] == pytest.approx(expected, abs=1e-4)
            assert record.lengths[i] == len(ids) + record.finished[i]
            assert record.finished[i] == (len(ids) < 6)
            states = [s[len(prompt) - 1 :] for s in plain_states(model.model, prompt + ids)]
            for name in HIDDEN:
                pooling, layer = name.split(":")
                own = states[int(layer)]
                pooled = own[1:].mean(0) if pooling == "mean" and ids else own[-1]
                np.testing.assert_allclose(record.hidden[name][i], pooled, atol=2e-5)


def test_an_empty_response_has_the_state_at_the_prompts_end():
    model = make()
    scored = model.score("the printer", [""], HIDDEN)
    last = plain_states(model.model, model.codec.prompt_ids("the printer"))[-1][-1]
    np.testing.assert_allclose(scored.hidden["mean:-1"][0], last, atol=1e-5)
    np.testing.assert_allclose(scored.hidden["before-eos:-1"][0], last, atol=1e-5)
    assert scored.lengths.tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_score_agrees_with_generate(kind):
    model = make(kind)
    for record in model.generate(PROMPTS, 60, hidden=HIDDEN, rng=rng()):
        scored = model.score(record.prompt, record.responses, HIDDEN)
        np.testing.assert_allclose(scored.logprobs, record.logprobs, atol=1e-4)
        np.testing.assert_array_equal(scored.lengths, record.lengths)
        np.testing.assert_array_equal(scored.finished, record.finished)
        for name in HIDDEN:
            np.testing.assert_allclose(scored.hidden[name], record.hidden[name], atol=2e-5)


def test_a_sliding_window_is_respected_when_rows_branch():
    config = transformers.MistralConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=3,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    inner = transformers.MistralForCausalLM(config)
    model = HuggingFaceModel(inner, word_tokenizer(), max_new_tokens=6)
    for record in model.generate(PROMPTS, 30, hidden=HIDDEN, rng=rng()):
        scored = model.score(record.prompt, record.responses, HIDDEN)
        np.testing.assert_allclose(scored.logprobs, record.logprobs, atol=1e-4)
        np.testing.assert_allclose(scored.hidden["mean:-1"], record.hidden["mean:-1"], atol=2e-5)


# ---- batches, seeds, duplicates


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_padding_change_nothing(kind):
    whole = make(kind, batch_size=1000).generate(PROMPTS, 20, hidden=HIDDEN, rng=rng())
    for size in (1, 7, 50):
        for a, b in zip(
            whole, make(kind, batch_size=size).generate(PROMPTS, 20, hidden=HIDDEN, rng=rng()), strict=True
        ):
            assert a.responses == b.responses
            np.testing.assert_array_equal(a.counts, b.counts)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)
            np.testing.assert_allclose(a.hidden["mean:-1"], b.hidden["mean:-1"], atol=1e-5)


def test_seeds_decide_and_prompts_are_independent():
    model = make()
    first, again, other = (model.generate(["a", "a"], 60, rng=rng(s)) for s in (0, 0, 1))
    assert [r.responses for r in first] == [r.responses for r in again]
    assert [r.responses for r in first] != [r.responses for r in other]
    assert first[0].responses != first[1].responses


def test_draws_come_in_order_of_first_appearance():
    model = make()
    few, many = (model.generate(["a"], n, rng=rng())[0] for n in (5, 200))
    assert many.responses[: len(few.responses)] == few.responses
    assert many.counts.sum() == 200
    assert many.counts.max() > 1


def test_spellings_of_one_text_are_one_response_with_the_likeliest_ones_logprob():
    model = make()
    model.codec.tokenizer.add_special_tokens({"additional_special_tokens": ["hot", "the"]})  # no longer in the text
    record = model.generate(["a"], 3000, rng=rng())[0]
    assert len(set(record.responses)) == len(record.responses)
    assert record.counts.sum() == 3000
    assert not any(word in text.split() for text in record.responses for word in ("hot", "the"))
    prompt, spellings = model.codec.prompt_ids("a"), []
    for length in range(6):
        for ids in itertools.product([7, 10], repeat=length):
            law = plain_logprobs(model.model, [*prompt, *ids])[len(prompt) - 1 :]
            spellings.append(sum(law[k, token] for k, token in enumerate(ids)) + law[-1, 0])
    empty = record.responses.index("")
    assert record.logprobs[empty] == pytest.approx(max(spellings), abs=1e-4)
    assert record.counts[empty] / 3000 == pytest.approx(np.exp(spellings).sum(), rel=0.3)


# ---- stop strings


@pytest.mark.parametrize("stop", [("is",), ("b a",), ("d", "c a")])
def test_stop_strings_end_and_are_cut(stop):
    free = make().generate(PROMPTS, 300, hidden=HIDDEN, rng=rng(2))
    model = make(stop=stop)
    for full, record in zip(free, model.generate(PROMPTS, 300, hidden=HIDDEN, rng=rng(2)), strict=True):
        expected = {min((t[: t.find(s)] for s in stop if s in t), key=len, default=t) for t in full.responses}
        assert set(record.responses) == expected
        assert record.counts.sum() == 300
        for i, text in enumerate(record.responses):
            assert not any(s in text for s in stop)
            if not record.finished[i]:
                assert text in full.responses


def test_the_token_that_stops_is_in_the_logprob_and_not_in_the_states():
    model = make(stop=("is",))
    record = model.generate(["the printer"], 400, hidden=HIDDEN, rng=rng())[0]
    prompt = model.codec.prompt_ids("the printer")
    word = 2 + WORDS.index("is")
    checked = 0
    for i, text in enumerate(record.responses):
        ids = model.codec.tokenizer(text, add_special_tokens=False)["input_ids"]
        law = plain_logprobs(model.model, prompt + ids)[len(prompt) - 1 :]
        start = sum(law[k, token] for k, token in enumerate(ids))
        if record.finished[i] and record.logprobs[i] == pytest.approx(start + law[-1, word], abs=1e-4):
            checked += 1
            states = plain_states(model.model, prompt + ids)[-1]
            np.testing.assert_allclose(record.hidden["before-eos:-1"][i], states[-1], atol=2e-5)
            assert record.lengths[i] == len(ids) + 1
    assert checked > 3


# ---- prompts


def test_prompts_without_tokens_and_beyond_the_context():
    model = make(max_new_tokens=30)
    with pytest.raises(ModelError, match="has no tokens"):
        model.generate([""], 1, rng=rng())
    with pytest.raises(ModelError, match=r"12 tokens and 30 more .* holds 40; .*at most 28 fit"):
        model.generate(["a " * 12], 1, rng=rng())
    model.codec.tokenizer.bos_token = "</s>"
    assert model.codec.prompt_ids("") == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens: expected a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number above 0"),
        ({"batch_size": -1}, "batch_size: expected"),
        ({"stop": "is"}, "stop: expected a list"),
        ({"stop": [""]}, "non-empty strings"),
        ({"chat_template": "yes"}, "chat_template: expected 'auto', 'always' or 'never'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("name", ["mean", "mean:3", "mean:-4", "max:-1", "mean:x"])
def test_unknown_hidden_states_are_named(name):
    with pytest.raises(InputError, match="from -3 to 2"):
        make().generate(["a"], 1, hidden=[name], rng=rng())


def test_a_model_without_a_cache_is_refused():
    config = transformers.MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(ModelError, match="no key-value cache"):
        HuggingFaceModel(transformers.MambaForCausalLM(config), word_tokenizer())
