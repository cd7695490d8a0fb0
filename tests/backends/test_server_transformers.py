"""The bundled model behind ``transformers serve`` against the same model in this process."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact
from served import transformers_serve

from spannerlm import bundled
from spannerlm.backends.server import ServerModel
from spannerlm.dialogue import written
from spannerlm.errors import ModelError
from spannerlm.rewards import is_pure
from spannerlm.segments import segments

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from spannerlm.backends.huggingface import HuggingFaceModel

pytestmark = pytest.mark.slow
MODEL = Path(bundled.__file__).parent / "helpdesk" / "model"
PROMPT = "my printer is hot ;"


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """The bundled model with a chat template, which completions do not read."""
    copy = shutil.copytree(MODEL, tmp_path_factory.mktemp("talking") / "model")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(copy)


@pytest.fixture(scope="module")
def url(talking, tmp_path_factory):
    with transformers_serve(talking, tmp_path_factory.mktemp("serve") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def served(talking, url):
    return ServerModel.load(talking, base_url=url, api="completions", max_new_tokens=24)


@pytest.fixture(scope="module")
def own():
    return HuggingFaceModel.load(str(MODEL), device="cpu", max_new_tokens=24)


def rng(seed=0):
    return np.random.default_rng(seed)


def openings(counts):
    """Frequencies of the first word, the last word and the length."""
    out = Counter()
    for text, n in counts.items():
        words = text.split()
        out[f"first {words[0]}"] += n
        out[f"last {words[-1]}"] += n
        out[f"length {len(words)}"] += n
    return out


def check_same_law(a, b):
    """Two samples: no frequency differs by more than one in a million would (Fisher's exact test: many are rare)."""
    n, m = sum(a.values()), sum(b.values())
    left, right = openings(a), openings(b)
    for key in left | right:
        table = [[left[key], n - left[key]], [right[key], m - right[key]]]
        assert fisher_exact(table).pvalue > 1e-6, key


def counted(records):
    out = Counter()
    for record in records:
        out.update(dict(zip(record.responses, record.counts.tolist(), strict=True)))
    return out


def test_draws_have_the_law_of_the_model_in_process(served, own):
    (far,) = served.generate([PROMPT], 300, rng=rng())
    (near,) = own.generate([PROMPT], 3000, rng=rng())
    check_same_law(counted([far]), counted([near]))
    assert any("ignores n" in warning for warning in served.warnings)
    assert any("no log-probabilities" in warning for warning in served.warnings)
    exact = own.score(PROMPT, far.responses)
    np.testing.assert_array_equal(far.lengths, exact.lengths)
    assert far.tokens == int(far.counts @ exact.lengths)
    assert (far.lengths[~far.finished] == 24).all()  # one in 7,000 runs into the limit
    assert fisher_exact([[r.counts[end].sum() for end in (r.finished, ~r.finished)] for r in (far, near)]).pvalue > 1e-6
    reward = bundled.load("helpdesk").reward
    if is_pure(reward):
        means = [np.repeat(reward([PROMPT] * len(r.responses), list(r.responses)), r.counts) for r in (far, near)]
        error = np.sqrt(sum(np.var(x) / len(x) for x in means))
        assert abs(means[0].mean() - means[1].mean()) < 4.5 * error


def test_steps_have_the_law_of_whole_responses(served, own):
    whole = Counter()
    paths = {(): 150}
    while paths:
        records = served.extend([PROMPT] * len(paths), list(paths), 1, segments=segments(6), rng=rng(9))
        assert len(records) == len(paths)
        found = Counter()
        for k, (prefix, n) in enumerate(paths.items()):
            (record,) = served.extend([PROMPT], [prefix], n, segments=segments(6), rng=rng(k + 10 * len(prefix)))
            for piece, count in zip(record.segments, record.counts.tolist(), strict=True):
                found[(*prefix, piece)] += count
        paths = {}
        for prefix, n in found.items():
            if served.complete(PROMPT, prefix):
                whole[served.joined(PROMPT, prefix)] += n
            else:
                paths[prefix] = n
    check_same_law(whole, counted(own.generate([PROMPT], 3000, rng=rng())))
    assert any("put back" in warning for warning in served.warnings)


def test_conversations_have_the_law_of_the_model_in_process(talking, url, own):
    """As messages through the server's template, as messages through the same here, and as one text."""
    words = ["my printer", "is", "hot ;"]
    talk = [{"role": role, "content": text} for role, text in zip(["user", "assistant", "user"], words, strict=True)]
    served = ServerModel.load(talking, base_url=url, dialogues=True, max_new_tokens=24)
    (far,) = served.generate([written(talk)], 150, rng=rng())
    model = HuggingFaceModel.load(talking, device="cpu", dialogues=True, max_new_tokens=24)
    (near,) = model.generate([written(talk)], 3000, rng=rng())
    (same,) = own.generate([PROMPT], 3000, rng=rng())
    assert near.responses == same.responses
    check_same_law(counted([far]), counted([near]))


def test_stop_strings_are_cut_as_in_process(talking, url, own):
    served = ServerModel.load(talking, base_url=url, api="completions", max_new_tokens=24, stop=["please"])
    (far,) = served.generate([PROMPT], 60, rng=rng())
    assert not any("please" in text for text in far.responses)
    (near,) = own.generate([PROMPT], 3000, rng=rng())
    cut, ours = Counter(), Counter()
    for text, n in counted([near]).items():
        cut[text.split("please")[0].strip() or "nothing"] += n
    for text, n in counted([far]).items():
        ours[text.strip() or "nothing"] += n
    check_same_law(ours, cut)
    assert far.finished.all()
    assert any("does not take stop strings" in warning for warning in served.warnings)


def test_a_greedy_model_is_named(tmp_path):
    copy = shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((copy / "generation_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("temperature", "top_k", "top_p")}
    (copy / "generation_config.json").write_text(json.dumps({**settings, "do_sample": False}))
    with transformers_serve(copy, tmp_path / "log") as url:
        model = ServerModel.load(str(copy), base_url=url, api="completions", max_new_tokens=24)
        with pytest.raises(ModelError, match="do_sample: true"):
            model.generate([PROMPT], 4, rng=rng())
