"""Segments of a real model: their law, their ends, their states; and that knowing prefixes changes nothing of these."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_models import (
    HIDDEN,
    KINDS,
    PROMPTS,
    WORDS,
    make,
    pair_tokenizer,
    plain_logprobs,
    plain_states,
    rng,
    tiny_model,
    word_tokenizer,
)

from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.backends.oracle import ModelOracle
from spannerlm.errors import InputError
from spannerlm.features import LogprobLength, feature_map
from spannerlm.records import DrawRequest, StepTilt
from spannerlm.segments import Segments
from spannerlm.stepwise import rolled

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


# ---- the law

N = 2000
"""Roll-outs of a test."""


def exact_law(model: HuggingFaceModel, prompt: str) -> dict[str, float]:
    """Probability of each response text, by enumeration of all token sequences and a plain pass over each."""
    start, found = model.codec.prompt_ids(prompt), defaultdict(float)
    vocabulary = model.config.vocab_size
    for ids in itertools.product(range(vocabulary), repeat=model.max_new_tokens - 1):
        law = np.exp(plain_logprobs(model.model, [*start, *ids])[len(start) - 1 :])
        so_far = np.cumprod([1.0, *(law[k, token] for k, token in enumerate(ids))])
        over = next((k for k in range(len(ids)) if ids[k] == 0 or stopped(model, ids[: k + 1])), None)
        if over is None:
            for last in range(vocabulary):
                found[text_of(model, (*ids, last))] += so_far[-1] * law[-1, last]
        elif not any(ids[over + 1 :]):  # of all sequences with this beginning, count one
            found[text_of(model, ids[: over + 1])] += so_far[over + 1]
    assert sum(found.values()) == pytest.approx(1.0)
    return dict(found)


def stopped(model: HuggingFaceModel, ids: tuple[int, ...]) -> bool:
    return any(s in model.codec.decode([ids])[0] for s in model.stop)


def text_of(model: HuggingFaceModel, ids: tuple[int, ...]) -> str:
    text = model.codec.decode([[token for token in ids if token]])[0]
    return min((text[: text.find(s)] for s in model.stop if s in text), key=len, default=text)


def rolled_texts(model: HuggingFaceModel, segments: Any, horizon: int | None, n: int) -> list[str]:
    """Responses of ``n`` roll-outs of one draw a step; what the oracle is told twice are texts alone."""
    oracle = ModelOracle(model, ["a b"], LogprobLength(), segments=segments, horizon=horizon)
    theta = np.zeros((oracle.horizon or model.max_new_tokens, 2))
    drawn = rolled(oracle, DrawRequest((0,) * n, 1, StepTilt(theta, 1.0), {}, ((),) * n), rng=rng(4))
    assert all(oracle.complete(0, path.segments) for path in drawn.paths)
    assert not any(oracle.complete(0, path.segments[:-1]) for path in drawn.paths)
    assert drawn.tokens == sum(oracle.tokens(record) for record in drawn.draws)
    again = ModelOracle(
        HuggingFaceModel(model.model, model.codec.tokenizer, **options(model)), ["a b"], LogprobLength()
    )
    for path in drawn.paths[:50]:
        assert again.joined(0, path.segments) == path.response  # nothing but the texts is needed to go on
    return [path.response for path in drawn.paths]


def options(model: HuggingFaceModel) -> dict[str, Any]:
    return {"max_new_tokens": model.max_new_tokens, "stop": model.stop}


def fits(law: dict[str, float], texts: list[str]) -> bool:
    assert set(texts) <= set(law)
    seen = np.array([texts.count(text) for text in law])
    expected = len(texts) * np.array(list(law.values()))
    common = expected > 10
    pooled = [*seen[common], seen[~common].sum()], [*expected[common], expected[~common].sum()]
    return bool(chisquare(*(np.array(p)[np.array(pooled[1]) > 0] for p in pooled)).pvalue > 0.001)


@pytest.mark.parametrize(
    ("segments", "horizon", "stop"),
    [
        (1, None, ()),
        (2, None, ()),
        (1, 2, ()),
        (lambda text: text.endswith("b"), None, ()),
        (lambda text: text.endswith("b"), 2, ("a a",)),
        (1, None, ("b c", "c a")),
    ],
)
def test_joined_segments_have_the_law_of_whole_responses(segments, horizon, stop):
    flat = tiny_model("llama", 5, spread=1.0)
    model = HuggingFaceModel(flat, word_tokenizer(("a", "b", "c")), max_new_tokens=4, stop=stop)
    law = exact_law(model, "a b")
    assert fits(law, whole_texts(model, N))
    assert fits(law, rolled_texts(model, segments, horizon, N))


def whole_texts(model: HuggingFaceModel, n: int) -> list[str]:
    record = model.generate(["a b"], n, rng=rng(9))[0]
    return [text for text, count in zip(record.responses, record.counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize("segments", [1, 2, lambda text: "b" in text])
def test_rare_spellings_and_parts_of_characters_keep_the_law(segments):
    """ab is a token, and so are a, b, and the two bytes of an accented letter: most texts have several spellings."""
    model = HuggingFaceModel(tiny_model("gpt2", 6, seed=3, spread=1.0), pair_tokenizer(), max_new_tokens=4)
    law = exact_law(model, "a b")
    assert len(law) < 5**4
    texts = rolled_texts(model, segments, None, N)
    assert any("\u00e9" in text for text in texts)
    assert fits(law, texts)


def test_a_spelling_that_is_read_as_another_would_break_the_law():
    """The check above sees what it is for: roll-outs whose segments are read as the tokenizer would write them."""
    model = HuggingFaceModel(tiny_model("gpt2", 6, seed=3, spread=1.0), pair_tokenizer(), max_new_tokens=4)
    texts = [""] * N
    for _ in range(4):
        going = [i for i, t in enumerate(texts) if not t.endswith("</s>")]
        records = model.extend(["a b"] * len(going), [(texts[i],) for i in going], 1, segments=Segments(1), rng=rng(5))
        for i, record in zip(going, records, strict=True):
            texts[i] += record.responses[0] + "</s>" * (record.segments or ("",))[0].endswith("</s>")
    law = exact_law(model, "a b")
    plain = [text.removesuffix("</s>") for text in texts]
    assert not set(plain) <= set(law) or not fits(law, plain)


def test_segments_follow_the_next_token_law():
    model = make()
    n = 20_000
    options = {"segments": Segments(1), "hidden": ("before-eos:-1",)}
    record = model.extend(["the printer"], [("is hot",)], n, **options, rng=rng())[0]
    prompt = model.codec.prompt_ids("the printer") + model.codec.tokenizer("is hot")["input_ids"]
    law = plain_logprobs(model.model, prompt)[-1]
    names = ["</s>", *(f" {w}" for w in ("?", *WORDS))]
    seen = dict(zip(record.segments, record.counts, strict=True))
    common = np.exp(law) * n > 5
    observed = np.array([seen.get(name, 0) for name in names])
    assert set(seen) <= set(names)
    expected = n * np.exp(law)
    pooled = [*observed[common], observed[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(*pooled).pvalue > 0.001
    i = record.responses.index(names[int(np.argmax(law[1:])) + 1])
    states = plain_states(model.model, [*prompt, int(np.argmax(law[1:])) + 1])[-1]
    np.testing.assert_allclose(record.hidden["before-eos:-1"][i], states[-1], atol=2e-5)
    assert record.prompt == "the printer is hot"


def test_one_long_segment_is_a_whole_response():
    model = make()
    whole = model.generate(PROMPTS, 100, hidden=HIDDEN, rng=rng(3))
    parts = model.extend(PROMPTS, [()] * 3, 100, segments=Segments(6), hidden=HIDDEN, rng=rng(3))
    last = model.extend(PROMPTS, [()] * 3, 100, segments=Segments(1), horizon=1, hidden=HIDDEN, rng=rng(3))
    for a, b, c in zip(whole, parts, last, strict=True):
        assert a.responses == b.responses == c.responses
        assert b.segments == c.segments == ends(b.responses, a.finished)
        assert a.tokens == b.tokens == int(a.counts @ a.lengths)
        np.testing.assert_allclose(a.hidden["mean:-1"], b.hidden["mean:-1"], atol=1e-5)


def ends(texts: tuple[str, ...], finished: np.ndarray) -> tuple[str, ...]:
    return tuple(text + "</s>" * int(over) for text, over in zip(texts, finished, strict=True))


# ---- ends and states


def test_states_are_those_at_the_segments_end():
    model = make()
    options = {"segments": Segments(2), "hidden": HIDDEN, "rng": rng()}
    for record, prefix in zip(model.extend(["a"] * 2, [(), ("b c",)], 60, **options), ([], [3, 4]), strict=True):
        for segment, text, *pooled in zip(
            record.segments, record.responses, *(record.hidden[name] for name in HIDDEN), strict=True
        ):
            assert segment in (text, text + "</s>")
            ids = [2, *prefix, *model.codec.tokenizer(text)["input_ids"]]
            states, own = plain_states(model.model, ids), len(ids) - 1 - len(prefix)
            for name, found in zip(HIDDEN, pooled, strict=True):
                kind, layer = name.split(":")
                state = states[int(layer)]
                mean = kind == "mean" and own
                np.testing.assert_allclose(found, state[-own:].mean(0) if mean else state[-1], atol=2e-5)


def test_a_segment_ends_as_soon_as_its_text_says_so():
    model = make()
    segments = Segments(5, ends=lambda text: text.endswith("is"))
    record = model.extend(["the printer"], [("hot",)], 400, segments=segments, hidden=HIDDEN, rng=rng())[0]
    assert any(segment.endswith("is") for segment in record.segments)
    for segment, text in zip(record.segments, record.responses, strict=True):
        assert text.count(" is") == segment.endswith(" is")
        tokens = len(text.split()) + segment.endswith("</s>")
        assert tokens == 5 or segment.endswith((" is", "</s>"))
    horizon = model.extend(["the printer"], [("hot",)], 400, segments=segments, horizon=2, rng=rng())[0]
    assert any("is" in text.split()[:-1] for text in horizon.responses)


def test_after_the_end_there_is_only_the_empty_segment():
    model = make()
    options = {"segments": Segments(1), "hidden": HIDDEN, "rng": rng()}
    going, over, full = model.extend(["a"] * 3, [("b",), ("b</s>",), ("b b b", " b b b")], 9, **options)
    assert over.segments == full.segments == ("",)
    assert over.counts.tolist() == [9]
    assert over.lengths.tolist() == [0]
    assert over.tokens == 0
    assert going.counts.sum() == going.tokens == 9
    state = plain_states(model.model, model.codec.tokenizer("a b")["input_ids"])[-1][-1]
    np.testing.assert_allclose(over.hidden["mean:-1"][0], state, atol=1e-5)
    only = model.extend(["a"], [("b", "c")], 9, segments=Segments(1), horizon=2, rng=rng())[0]
    assert only.responses == ("",)
    assert model.complete("a", ["b</s>"])
    assert not model.complete("a", ["b b b b b"])
    assert model.complete("a", ["b b b b b", " b"])


def test_a_stop_string_ends_the_response_wherever_segments_meet():
    model = make(stop=["hot b"])
    assert model.complete("a", ["hot", " b"])
    assert not model.complete("a", ["hot", " c b"])
    assert model.joined("a", ["c hot", " b"]) == "c "
    model = make(stop=["hot ;"])
    record = model.extend(["a"], [("hot",)], 2000, segments=Segments(3), rng=rng())[0]
    assert {segment for segment in record.segments if segment.startswith(" ;")} == {" ;"}


def test_draws_do_not_depend_on_other_prefixes_and_their_limits():
    model = make()
    both = model.extend(["a", "a b"], [("b b b",), ("c",)], 40, segments=Segments(4), rng=rng(1))
    other = model.extend(["a", "a b"], [("b b b b b",), ("c",)], 40, segments=Segments(4), rng=rng(1))
    assert both[1].segments == other[1].segments
    assert max(both[0].lengths) == 3
    assert max(both[1].lengths) == 4


# ---- what is known is not encoded again


def count_and_extend(model: HuggingFaceModel, *arguments: Any, **options: Any) -> tuple[int, Any]:
    before = model.encoded
    found = model.extend(*arguments, **options)
    return model.encoded - before, found


def test_known_prefixes_are_not_encoded_again():
    model = make(max_new_tokens=8)
    options = {"segments": Segments(2), "hidden": HIDDEN}
    prompts = ["the printer", "the printer is", "the printer"]
    first, found = count_and_extend(model, prompts, [()] * 3, 8, **options, rng=rng())
    read = sum(read_tokens(record) for record in found)
    assert first == 2 + 1 + read
    prefixes = [(going(record),) for record in found]
    second, after = count_and_extend(model, prompts, prefixes, 8, **options, rng=rng(1))
    assert second == sum(read_tokens(record) for record in after)
    again, same = count_and_extend(model, prompts, [()] * 3, 8, **options, rng=rng())
    assert [record.segments for record in same] == [record.segments for record in found]
    firsts = [{text.split()[0] for text in record.responses if text} for record in found]
    assert again == sum(map(len, firsts))  # what the first of two tokens is followed by is drawn anew
    once = {"segments": Segments(1), "hidden": HIDDEN, "rng": rng(7)}
    count_and_extend(model, ["hot", "hot a"], [(), ("b",)], 9, **once)
    assert count_and_extend(model, ["hot", "hot a"], [(), ("b",)], 9, **{**once, "rng": rng(7)})[0] == 0
    longer, _ = count_and_extend(model, ["the printer is hot b"], [()], 1, segments=Segments(1), rng=rng())
    assert longer <= 2  # two words that no prompt had, fewer where a draw had them
    score = model.encoded
    model.score("a b", ["c", "c a"])
    assert model.encoded - score == 3 + 4


def read_tokens(record: Any) -> int:
    """Distinct prefixes of the segments that were drawn: their ends are not read."""
    rows = [tuple(text.split()) for text in record.responses]
    return len({row[:k] for row in rows for k in range(1, len(row) + 1)})


def going(record: Any) -> str:
    return next(segment for segment in record.segments if not segment.endswith("</s>"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(), HIDDEN])
def test_reuse_changes_neither_draws_nor_values(kind, hidden):
    models = {limit: make(kind, max_new_tokens=8, prefix_cache=limit) for limit in (0, 5000, 2**24)}
    prefixes: list[tuple[str, ...]] = [(), ("b c",), (), ("hot",)]
    prompts = ["the printer", "a", "the printer is hot", "the printer"]
    spent = dict.fromkeys(models, 0)
    for step in range(5):
        found = {}
        for limit, model in models.items():
            options = {"segments": Segments(1 + step % 2), "hidden": hidden, "rng": rng(step)}
            cost, found[limit] = count_and_extend(model, prompts, prefixes, 6, **options)
            spent[limit] += cost
        for limit in (5000, 2**24):
            for a, b in zip(found[0], found[limit], strict=True):
                assert a.segments == b.segments
                np.testing.assert_array_equal(a.counts, b.counts)
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)
                for name in hidden:
                    np.testing.assert_allclose(a.hidden[name], b.hidden[name], atol=1e-5)
        prefixes = [(*p, record.segments[0]) for p, record in zip(prefixes, found[0], strict=True)]
    assert spent[2**24] < spent[5000] <= spent[0]
    store = models[5000]._store
    assert store is not None
    assert 0 < store.bytes <= 5000


def test_sliding_windows_are_encoded_anew():
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
    model = HuggingFaceModel(transformers.MistralForCausalLM(config), word_tokenizer(), max_new_tokens=6)
    for _ in range(2):
        cost, found = count_and_extend(model, ["a b c d e"], [("a",)], 5, segments=Segments(1), rng=rng())
        assert cost == 6
        assert found[0].counts.sum() == 5


def test_wrong_prefix_caches_and_missing_segments_are_named():
    with pytest.raises(InputError, match="prefix_cache: expected a number of bytes, 0 for none, got -1"):
        make(prefix_cache=-1)
    model = make()
    features = feature_map("hidden", model.hidden_size)
    with pytest.raises(InputError, match="segments: expected what a step is, to go on"):
        ModelOracle(model, ["a"], features).extend([0], [()], 2, rng=rng())
