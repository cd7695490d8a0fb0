"""Tiny models made on the spot: random weights from a fixed seed, a word-level tokenizer, no files, no network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spannerlm.backends.huggingface import HuggingFaceModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ("a", "b", "c", "d", "e", "the", "printer", "is", "hot", ";", "!", "user:", "bot:", "sys:")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}sys: {{ m.content }} {% else %}user: {{ m.content }} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


def word_tokenizer(words: tuple[str, ...] = WORDS, template: str | None = None) -> Any:
    """Word-level tokenizer: </s> 0, ? 1 for unknown words, then the words, joined by one space; no start, no padding.

    Only </s> is special, so that any other sequence of tokens and its text determine each other.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("</s>", "?", *words))}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(kind: str, vocabulary: int = 2 + len(WORDS), seed: int = 0, spread: float = 3.0) -> Any:
    """A causal model of two layers and width 16, whose logits, times ``spread``, are far from uniform."""
    ends = {"bos_token_id": None, "eos_token_id": 0}
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=40,
            tie_word_embeddings=False,
            **ends,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=40, tie_word_embeddings=False, **ends
        )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.4 if "lm_head" not in name else 0.25 * spread)
    return model


KINDS = ("llama", "gpt2")
PROMPTS = ["the printer", "the printer is hot ;", "a"]
HIDDEN = ("mean:-1", "before-eos:-1", "mean:1", "before-eos:0")


def make(kind: str = "llama", **options: Any) -> HuggingFaceModel:
    tokenizer = word_tokenizer(template=options.pop("template", None))
    return HuggingFaceModel(tiny_model(kind), tokenizer, **{"max_new_tokens": 6, **options})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_logprobs(model: Any, ids: list[int]) -> np.ndarray:
    """[T, V] next-token log-probabilities after each position, by one unpadded forward pass."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def plain_states(model: Any, ids: list[int]) -> list[np.ndarray]:
    """Per layer [T, D], as transformers returns them."""
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return [h[0].numpy() for h in out.hidden_states]


def pair_tokenizer() -> Any:
    """Byte-level tokenizer of five tokens behind </s> 0: a, b, ab, and the two bytes of an accented letter.

    Texts have several spellings, and some tokens are no text. Blanks and all other characters have no token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"</s>": 0, "a": 1, "b": 2, "ab": 3, "\u00c3": 4, "\u00a9": 5}
    inner = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
