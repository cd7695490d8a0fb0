"""Prompts to tokens and back: templates, boundaries, stop strings, byte-level tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import HIDDEN, TEMPLATE, make, plain_logprobs, plain_states, rng, tiny_model, word_tokenizer

from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.text import TextCodec
from spannerlm.errors import ModelError

transformers = pytest.importorskip("transformers")


def test_chat_template_and_system_prompt():
    plain, chat, off, system = (
        make(),
        make(template=TEMPLATE),
        make(template=TEMPLATE, chat_template="never"),
        make(template=TEMPLATE, chat_template="always", system="is hot"),
    )
    tokens = word_tokenizer()
    assert plain.codec.prompt_ids("the printer") == tokens("the printer")["input_ids"]
    assert off.codec.prompt_ids("the printer") == tokens("the printer")["input_ids"]
    assert chat.codec.prompt_ids("the printer") == tokens("user: the printer bot:")["input_ids"]
    assert system.codec.prompt_ids("the printer") == tokens("sys: is hot user: the printer bot:")["input_ids"]
    record = chat.generate(["the printer"], 50, hidden=HIDDEN, rng=rng())[0]
    direct = plain.generate(["user: the printer bot:"], 50, hidden=HIDDEN, rng=rng())[0]
    assert record.responses == direct.responses
    np.testing.assert_allclose(record.hidden["mean:-1"], direct.hidden["mean:-1"], atol=1e-5)
    np.testing.assert_allclose(chat.score("the printer", record.responses).logprobs, record.logprobs, atol=1e-4)


def test_a_template_that_refuses_and_one_that_is_missing():
    with pytest.raises(ModelError, match="has no chat template; use 'auto' or 'never'"):
        make(chat_template="always")
    with pytest.raises(ModelError, match="system prompt needs a chat template"):
        make(system="be kind")
    refusing = make(template="{{ raise_exception('no system here') }}")
    with pytest.raises(ModelError, match="no system here"):
        refusing.generate(["a"], 1, rng=rng())


def test_a_tokenizer_that_closes_every_text_leaves_prompts_open():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    model = HuggingFaceModel(tiny_model("llama"), tokenizer)
    assert tokenizer("a b")["input_ids"][-1] == 0
    assert model.codec.prompt_ids("a b") == word_tokenizer()("a b")["input_ids"]


def byte_tokenizer():
    """GPT-2's kind: bytes and a few merges, so that one text has several spellings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i + 1 for i, letter in enumerate(letters)} | {"</s>": 0}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("hell", "o")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def test_byte_level_responses_keep_their_spaces_and_characters():
    tokenizer = byte_tokenizer()
    codec = TextCodec(tokenizer, (0,))
    ids = tokenizer("hello w\u00e9")["input_ids"]
    assert codec.decode([ids]) == ["hello w\u00e9"]
    assert codec.response_ids("hello", " w\u00e9") == tokenizer(" w\u00e9")["input_ids"]
    assert codec.response_ids("hel", "lo") == tokenizer("lo")["input_ids"]  # merged across the border: spelt alone
    assert codec.continuations([tokenizer("hello")["input_ids"]], [tokenizer(" w")["input_ids"]]) == [" w"]


def test_stop_strings_are_found_across_tokens_and_inside_them():
    tokenizer = byte_tokenizer()
    codec = TextCodec(tokenizer, (0,))
    test = codec.stop_test(("ell", "\u00e9"))
    rows = [tokenizer(text)["input_ids"][-4:] for text in ("hel hell", "a hello", "hhe he", "el w\u00e9")]
    rows = [[1] * (4 - len(row)) + row for row in rows]
    assert test(np.arange(4), np.array(rows)).tolist() == [True, True, False, True]
    behind = codec.stop_test(("ell",), [tokenizer(text)["input_ids"] for text in ("he", "xe")])
    assert behind(np.array([1, 0, 0]), np.array([tokenizer("l")["input_ids"]] * 3)).tolist() == [False] * 3
    assert behind(np.array([1, 0]), np.array([tokenizer("ll")["input_ids"]] * 2)).tolist() == [True] * 2
    assert codec.stop_test(()) is None


def test_a_byte_level_model_generates_and_scores_alike():
    tokenizer = byte_tokenizer()
    model = HuggingFaceModel(tiny_model("gpt2", len(tokenizer)), tokenizer, max_new_tokens=5)
    record = model.generate(["hello w"], 40, hidden=HIDDEN, rng=rng())[0]
    assert record.counts.sum() == 40
    assert len(set(record.responses)) == len(record.responses)
    texts = ["", "hello", " w", "he", "é"]
    scored = model.score("hello w", texts, HIDDEN)
    prompt = tokenizer("hello w")["input_ids"]
    for text, logprob, state in zip(texts, scored.logprobs, scored.hidden["before-eos:-1"], strict=True):
        ids = tokenizer(text)["input_ids"]
        law = plain_logprobs(model.model, prompt + ids)[len(prompt) - 1 :]
        assert logprob == pytest.approx(sum(law[k, i] for k, i in enumerate([*ids, 0])), abs=1e-4)
        np.testing.assert_allclose(state, plain_states(model.model, prompt + ids)[-1][-1], atol=2e-5)
