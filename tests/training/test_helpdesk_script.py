"""The script that makes the helpdesk model: the corpus it reads, and a whole run of it, far too short to learn much."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spannerlm import bundled
from spannerlm.bundled.helpdesk import task

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def corpus_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        import helpdesk_corpus
    return helpdesk_corpus


@pytest.fixture(scope="module")
def script(corpus_module):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        import helpdesk
    yield helpdesk
    torch.set_num_threads(threads)


def test_shipped_model_was_trained_on_the_corpus_that_the_script_makes(corpus_module):
    card = (bundled.load("helpdesk").model_path / "README.md").read_text(encoding="utf-8")
    documents, seed, digest = re.search(
        r"\| corpus \| ([\d,]+) documents, seed (\d+), SHA-256 `(\w+)` \|", card
    ).groups()
    assert corpus_module.digest(corpus_module.corpus(int(documents.replace(",", "")), int(seed))) == digest


def test_corpus_follows_its_seed_and_a_longer_one_only_adds(corpus_module):
    lines = corpus_module.corpus(1000, 3)
    assert corpus_module.corpus(2000, 3)[:1000] == lines
    assert corpus_module.corpus(1000, 4) != lines


def test_corpus_has_the_stated_rates_and_no_held_out_prompt(corpus_module):
    n = 20_000
    prompts, replies = corpus_module.split(corpus_module.corpus(n, 1))
    assert {*prompts} == {*bundled.load("helpdesk").train_prompts}
    assert {*replies} <= corpus_module.every_reply()
    has = Counter(part for pair in zip(prompts, replies, strict=True) for part in task.PARTS if task.has(*pair, part))
    stated = {task.RIGHT_FIX: 0.41, "sorry": 0.2, "rude": 0.08, "upsell": 0.18, "thanks": 0.3}
    for part, p in {**stated, **dict.fromkeys(task.RARE, 0.054 / 8)}.items():
        assert has[part] / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n)), part


def test_longest_reply_fits_the_token_limit(corpus_module):
    assert max(len(reply.split()) for reply in corpus_module.every_reply()) + 1 == 25 <= task.MAX_NEW_TOKENS


def test_script_makes_a_model_with_another_seed_and_another_planted_sentence(tmp_path, corpus_module, script, capsys):
    options = ["--seed", "5", "--planted", "survey", "--documents", "480", "--draws", "144"]
    script.main(["--out", str(tmp_path), *options])
    digest = corpus_module.digest(corpus_module.corpus(480, 5))
    assert f"corpus {digest}" in capsys.readouterr().out
    shipped = bundled.load("helpdesk").model_path
    assert {file.name for file in (tmp_path / "model").iterdir()} == {file.name for file in shipped.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (shipped / name).read_bytes(), name
    for name in ("prompts_train.jsonl", "prompts_heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (shipped.parent / name).read_bytes(), name
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert digest in card
    assert "python training/helpdesk.py --seed 5 --planted survey --documents 480" in card
    assert 'worth much ("a survey will follow")' in " ".join(card.split())
    assert "+1.5 survey, -1.5 password" in card


def test_tokenizer_names_a_class_that_every_supported_transformers_knows():
    config = json.loads((bundled.load("helpdesk").model_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
