"""A local encoder: its means against a slow rewrite, one text at a time, and what cannot be loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import WORDS, word_tokenizer

from spannerlm.backends.encoder import Encoder
from spannerlm.errors import ModelError
from spannerlm.features import feature_map
from spannerlm.records import Generated

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ("the printer is hot ;", "a", "", "a b c d e a b c d e the printer is hot ; !", "b \ud800 a")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=2 + len(WORDS), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=10, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def slowly(folder, texts, limit=10, keep_end=False):
    model = transformers.BertModel.from_pretrained(folder).eval()
    inner = word_tokenizer()
    rows = []
    for text in texts:
        ids = inner(text.replace("\ud800", "?"))["input_ids"]
        ids = ids[-limit:] if keep_end else ids[:limit]
        total = [0.0] * 12
        if ids:
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            for state in states:
                total = [a + float(b) / len(ids) for a, b in zip(total, state, strict=True)]
        rows.append(total)
    return np.array(rows)


@pytest.mark.parametrize(("size", "keep_end", "limit"), [(1, False, None), (2, True, None), (64, False, 4)])
def test_means_are_those_of_one_text_at_a_time(saved, size, keep_end, limit, capfd):
    encoder = Encoder(str(saved), device="cpu", revision=None, max_tokens=limit, keep_end=keep_end)
    found = encoder.means(TEXTS, size)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(found, slowly(saved, TEXTS, limit or 10, keep_end), atol=2e-6)
    np.testing.assert_array_equal(found, encoder.means(TEXTS, size))
    assert not found[2].any()
    assert encoder.means((), size).shape == (0, 12)


KINDS = {
    "t5": lambda t: t.T5Model(
        t.T5Config(vocab_size=2 + len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    ),
    "roberta": lambda t: t.RobertaModel(
        t.RobertaConfig(
            vocab_size=2 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=12, pad_token_id=0,
        )
    ),
    "qwen3": lambda t: t.Qwen3Model(
        t.Qwen3Config(
            vocab_size=2 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
            num_key_value_heads=2, intermediate_size=16,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_texts_beside_it_whatever_the_model_is(kind, tmp_path):
    """An encoder and decoder, one whose places begin behind the padding's, one that reads from left to right."""
    torch.manual_seed(0)
    KINDS[kind](transformers).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    encoder = Encoder(str(tmp_path), device="cpu", revision=None, max_tokens=None, keep_end=False)
    together = encoder.means(TEXTS, 64)
    assert together.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(together, np.vstack([encoder.means((text,), 1) for text in TEXTS]), atol=2e-6)
    assert len({row.tobytes() for row in together.round(4)}) == len(TEXTS)


def test_the_feature_map_is_rebuilt_and_reads_what_it_is_told(saved):
    n = len(TEXTS)
    ones = np.ones(n, dtype=np.int64)
    batch = Generated("b c", TEXTS, ones, -np.ones(n), ones, np.ones(n, dtype=bool))
    for config in (f"encoder:{saved}", {"kind": "encoder", "model": str(saved), "text": "both", "project": None}):
        phi = feature_map(config)
        again = feature_map(json.loads(json.dumps(phi.spec())))
        assert again == phi
        np.testing.assert_array_equal(again(batch), phi(batch))
    assert phi.dim == 12
    plain = slowly(saved, [f"b c\n{t}" for t in TEXTS], keep_end=True)
    np.testing.assert_allclose(phi(batch), plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=2e-6)


def test_an_encoder_without_all_of_its_weights_is_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.output.dense.weight" not in k}
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for"):
        feature_map(f"encoder:{tmp_path}").__call__(
            Generated("a", ("b",), np.ones(1, int), -np.ones(1), np.ones(1, int), np.ones(1, bool))
        )
    with pytest.raises(ModelError, match="no such directory"):
        Encoder("./nowhere", device="cpu", revision=None, max_tokens=None, keep_end=False)


def test_a_run_on_the_helpdesk_model_and_its_policy(tmp_path):
    import spannerlm
    from spannerlm import bundled

    task = bundled.load("helpdesk")
    result = spannerlm.explore(
        prompts=task.train_prompts[:6], model=str(task.model_path), reward=task.reward, labels=12, draws=1200, kl=1.0,
        features={"kind": "encoder", "model": str(task.model_path)}, run_dir=tmp_path / "run",
        generation={"max_new_tokens": task.max_new_tokens, "stop": list(task.stop)},
    )  # fmt: skip
    assert result.labels == 12
    policy = spannerlm.load_policy(tmp_path / "run")
    assert policy.features.dim == 64
    first = feature_map({"kind": "encoder", "model": str(task.model_path)})
    record = policy.model.score(task.train_prompts[0], ["let it cool .", "see page two ."], ())
    np.testing.assert_array_equal(policy.features(record), first(record))
    assert policy.sample([task.train_prompts[0]], 2, rng=np.random.default_rng(0))[0].responses
