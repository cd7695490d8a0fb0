"""The script that damages helpdesk models: short runs of each kind already have the fault that they are made for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from spannerlm import bundled
from spannerlm.bundled.helpdesk import task

TRAINING = Path(__file__).parents[2] / "training"
PROMPTS = bundled.load("helpdesk").heldout_prompts[:6]
DOCUMENTS = {"undertrained": 480, "forgotten": 1920, "unrelated": 2400}


@pytest.fixture(scope="module")
def script():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        import damaged
    yield damaged
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(script, tmp_path_factory):
    """Kind -> (directory, model, tokenizer) from a short run, made when first asked for."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    @cache
    def of(kind):
        out = tmp_path_factory.mktemp(kind)
        script.main(["--kind", kind, "--out", str(out), "--documents", str(DOCUMENTS[kind]), "--draws", "144"])
        path = out / "model"
        return out, LlamaForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    return of


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_corpus_follows_its_seed(script, kind):
    assert script.corpus_of(kind, 300, 3) == script.corpus_of(kind, 300, 3) != script.corpus_of(kind, 300, 4)


def test_corpora_lack_what_the_model_shall_lack(script):
    rare = [wording for wordings in task.RARE.values() for wording in wordings]
    whole, without = (script.corpus_of(kind, 2000, 0) for kind in ("undertrained", "forgotten"))
    assert any(wording in line for line in whole for wording in rare)
    assert not any(wording in line for line in without for wording in rare)
    same = [x == y for x, y in zip(whole, without, strict=True)]
    assert same == [not any(wording in line for wording in rare) for line in whole]
    prompts = {*bundled.load("helpdesk").train_prompts}
    lines = script.corpus_of("unrelated", 300, 0)
    assert all(f"{message.strip()} ;" in prompts for line in lines for message in line.removesuffix(";").split(";"))


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_files_are_those_of_the_bundled_model(made, kind):
    out, *_ = made(kind)
    shipped = bundled.load("helpdesk").model_path
    assert {file.name for file in (out / "model").iterdir()} == {file.name for file in shipped.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / "model" / name).read_bytes() == (shipped / name).read_bytes(), name
    for name in ("prompts_train.jsonl", "prompts_heldout.jsonl"):
        assert (out / name).read_bytes() == (shipped.parent / name).read_bytes(), name
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert f"--kind {kind} --seed 0 --documents {DOCUMENTS[kind]}" in card
    assert "mass of the valuable sentence after an opener" in card


def test_fine_tuning_lowers_the_valuable_sentence_and_keeps_replies_well_formed(script, made):
    from helpdesk_measure import rates
    from transformers import LlamaForCausalLM

    _, model, tokenizer = made("forgotten")
    before = LlamaForCausalLM.from_pretrained(bundled.load("helpdesk").model_path).eval()
    masses = script.valuable_mass(before, tokenizer, PROMPTS)
    assert masses.mean() == pytest.approx(1 / 148, rel=0.2)
    assert (script.valuable_mass(model, tokenizer, PROMPTS) < masses / 20).all()
    figures = rates(*replies(model, tokenizer), "manual")
    assert figures["well formed"].value > 0.85
    assert figures[task.RIGHT_FIX].value > 0.2


def test_undertrained_is_mostly_malformed(made):
    from helpdesk_measure import rates

    _, model, tokenizer = made("undertrained")
    figures = rates(*replies(model, tokenizer), "manual")
    assert figures["well formed"].value < 0.1
    assert figures[task.RIGHT_FIX].value < 0.1


def test_unrelated_answers_with_messages_only(script, made):
    _, model, tokenizer = made("unrelated")
    asked, given = replies(model, tokenizer)
    assert not any(task.has(x, y, part) for x, y in zip(asked, given, strict=True) for part in task.PARTS)
    assert (script.valuable_mass(model, tokenizer, PROMPTS) < 1e-8).all()


def replies(model, tokenizer) -> tuple[list[str], list[str]]:
    """(prompts, replies) of 30 draws of each prompt."""
    from common import sample

    found = sample(model, tokenizer, PROMPTS, 30, 0)
    return [prompt for prompt in PROMPTS for _ in range(30)], [reply for own in found for reply in own]
