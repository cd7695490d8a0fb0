"""Models behind servers: a small server of known law that keeps to the protocol, and ignores parts of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import numpy as np
import pytest
from served import WORDS, Small

from spannerlm.backends import backend, endpoint, probing
from spannerlm.backends.oracle import ModelOracle
from spannerlm.backends.server import ServerModel
from spannerlm.backends.wire import Choice, Plan, Reply, request
from spannerlm.dialogue import written
from spannerlm.errors import InputError, ModelError
from spannerlm.features import NGrams
from spannerlm.foundation.gather import Source, StepPlan, gather
from spannerlm.foundation.steps import quantile
from spannerlm.segments import segments

PROMPTS = ["a;", "b;", "c;"]
APIS = ["completions", "chat"]


def rng(seed=0):
    return np.random.default_rng(seed)


def loaded(small, **options):
    return ServerModel.load("m", base_url=small.url, **{"max_new_tokens": 5, "retries": 2, **options})


def exact(limit):
    """The law of `served.drawn` by hand: text -> probability."""
    out, open_ = {}, {"": 1.0}
    for k in range(limit):
        found = {}
        for text, p in open_.items():
            if k:
                out[text] = out.get(text, 0.0) + p / 3
                p *= 2 / 3
            for word in WORDS:
                found[f"{text} {word}".strip()] = found.get(f"{text} {word}".strip(), 0.0) + p / len(WORDS)
        open_ = found
    for text, p in open_.items():
        out[text] = out.get(text, 0.0) + p
    return out


def check_law(counts, law):
    """Frequencies within 4.5 standard errors, of the texts and of the number of words."""
    n = sum(counts.values())
    assert set(counts) <= set(law)
    grouped, wanted = Counter(), Counter()
    for text, count in counts.items():
        grouped[len(text.split())] += count
        grouped[text.split()[0]] += count
    for text, p in law.items():
        wanted[len(text.split())] += p
        wanted[text.split()[0]] += p
    for key, p in wanted.items():
        assert abs(grouped[key] / n - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1e-9


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("ignores", [(), ("n",), ("logprobs",)])
def test_draws_have_the_servers_law_and_counts(api, ignores):
    with Small(ignores=ignores) as small:
        model = loaded(small, api=api, max_new_tokens=3)
        records = model.generate(PROMPTS, 100, rng=rng())
        counts = Counter()
        for record in records:
            assert record.counts.sum() == 100
            counts.update(dict(zip(record.responses, record.counts.tolist(), strict=True)))
            words = [len(text.split()) for text in record.responses]
            ends = record.finished.astype(int)
            assert all(words[i] == 3 for i in np.flatnonzero(~record.finished))
            true = int(record.counts @ (np.array(words) + ends))
            if ignores != ("logprobs",):
                np.testing.assert_array_equal(record.lengths, np.array(words) + ends)
                assert np.all(np.isnan(record.logprobs)) == (ignores == ("logprobs",))
                np.testing.assert_allclose(record.logprobs, -1.5 * record.lengths)
            assert record.tokens == true
        check_law(counts, exact(3))
        per = 1 if ignores == ("n",) else 8
        asked = [body for body in small.bodies if body["max_tokens"] == 3][-3 * -(-100 // per) :]
        assert {body.get("n", 1) for body in asked} == ({1} if per == 1 else {8, 4})
        assert len({body["seed"] for body in asked}) == len(asked)
        assert all(body["temperature"] == 1.0 and body["top_p"] == 1.0 and "top_k" not in body for body in asked)
        assert bool(model.warnings) == bool(ignores)
        assert model.usage.completion_tokens >= sum(r.tokens for r in records)


def test_the_same_generator_asks_the_same():
    with Small() as small:
        first = loaded(small).generate(PROMPTS, 20, rng=rng(3))
        again = loaded(small, concurrency=1).generate(PROMPTS, 20, rng=rng(3))
        other = loaded(small).generate(PROMPTS, 20, rng=rng(4))
    assert [r.responses for r in first] == [r.responses for r in again]
    assert [r.responses for r in first] != [r.responses for r in other]


@pytest.mark.parametrize("ignores", [("seed", "temperature"), ("seed",)])
def test_a_server_that_repeats_itself_is_refused(ignores):
    with Small(ignores=(*ignores, "n")) as small, pytest.raises(ModelError, match="do_sample: true"):
        loaded(small).generate(["a;"], 5, rng=rng())


def test_a_peaked_law_is_a_warning():
    def alike(k):
        return None

    class Peaked(Small):
        def serve(self, handler, body, fate):
            if body["temperature"] == 1.0:
                body = {**body, "seed": 0, "messages": []}
            super().serve(handler, body, fate)

    with Peaked(alike, ignores=("n",)) as small:
        model = loaded(small)
        assert len(model.generate(["a;"], 5, rng=rng())[0].responses) == 1
    assert any("peaked law" in warning for warning in model.warnings)


def test_copies_within_a_request_are_seen():
    class Copies(Small):
        def serve(self, handler, body, fate):
            n = body.pop("n", 1)
            super().serve(_Copying(handler, n), body, fate)

    class _Copying:
        def __init__(self, handler, n):
            self.handler, self.n = handler, n

        def give(self, status, data, headers=None):
            found = json.loads(data)
            found["choices"] = found.get("choices", []) * self.n
            self.handler.give(status, json.dumps(found).encode(), headers)

    with Copies() as small:
        model = loaded(small)
        record = model.generate(["a;"], 30, rng=rng())[0]
    assert any("copies of each other" in warning for warning in model.warnings)
    assert len(record.responses) > 5


@pytest.mark.parametrize("name", ["logprobs", "n", "seed", "top_k"])
def test_what_a_server_refuses_is_left_out(name):
    with Small(refuses=(name,), owner="vllm") as small:
        model = loaded(small)
        assert model.generate(["a;"], 9, rng=rng())[0].counts.sum() == 9
        assert name not in small.bodies[-1]
        assert all(other in body for body in small.bodies[-1:] for other in {"logprobs", "seed", "top_k"} - {name})


def test_vllm_and_sglang_are_asked_for_the_whole_vocabulary():
    with Small(owner="vllm") as small:
        loaded(small).generate(["a;"], 2, rng=rng())
    assert small.bodies[-1]["top_k"] == -1


def test_auto_takes_completions_where_there_is_no_chat():
    with Small(chat=False) as small:
        model = loaded(small)
        model.generate(["a;"], 2, rng=rng())
        assert "prompt" in small.bodies[-1]
        with pytest.raises(ModelError, match="404"):
            loaded(small, system="be kind").generate(["a;"], 2, rng=rng())
    with Small() as small:
        loaded(small, system="be kind").generate(["a;"], 2, rng=rng())
    assert [m["role"] for m in small.bodies[-1]["messages"]] == ["system", "user"]


def test_conversations_are_sent_as_messages():
    said = [{"role": "user", "content": "a;\nuser: b"}, {"role": "assistant", "content": "b;"}]
    talk = [*said, {"role": "user", "content": "c;"}]
    with Small() as small:
        loaded(small, dialogues=True).generate([written(talk)], 2, rng=rng())
        assert [body["messages"] for body in small.bodies] == [talk] * len(small.bodies)
        loaded(small, dialogues=True, system="be kind").generate([written(talk)], 2, rng=rng())
    assert small.bodies[-1]["messages"] == [{"role": "system", "content": "be kind"}, *talk]
    for options in ({"dialogues": True}, {"system": "be kind"}):
        with pytest.raises(InputError, match="expected the user's words alone with api: completions"):
            loaded(small, api="completions", **options)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("ignores", [(), ("logprobs",)])
@pytest.mark.parametrize("kind", ["2", "1"])
def test_steps_have_the_law_of_whole_responses(api, kind, ignores):
    with Small(ignores=ignores) as small:
        model = loaded(small, api=api, max_new_tokens=4)
        counts = Counter()
        paths = {("a;", ()): 120}
        while paths:
            found = Counter()
            source = rng(len(counts) + 1)
            for (prompt, prefix), n in paths.items():
                (record,) = model.extend([prompt], [prefix], n, segments=segments(kind), rng=source)
                for piece, count in zip(record.segments, record.counts.tolist(), strict=True):
                    found[prompt, (*prefix, piece)] += count
            paths = {}
            for (prompt, prefix), n in found.items():
                if model.complete(prompt, prefix):
                    counts[model.joined(prompt, prefix)] += n
                else:
                    paths[prompt, prefix] = n
        assert sum(counts.values()) == 120
        check_law(counts, exact(4))
        (over,) = model.extend(["a;"], [("red\x03",)], 3, segments=segments(2), rng=rng())
        assert over.responses == ("",)
        assert over.tokens == 0


def test_a_horizon_runs_to_the_end_and_features_see_plain_text():
    with Small() as small:
        oracle = ModelOracle(loaded(small, api="chat"), PROMPTS, NGrams(16), segments="1", horizon=2)
        (first,) = oracle.extend([0], [()], 12, rng=rng())
        assert oracle.tokens(first) == 12
        prefix = next(text for text in first.responses if not oracle.complete(0, [text]))
        (rest,) = oracle.extend([0], [(prefix,)], 12, rng=rng(1))
        assert all(oracle.complete(0, [prefix, text]) for text in rest.responses)
        assert all(text.endswith("\x03") for text in rest.responses)
        assert not any(c in oracle.joined(0, [prefix, text]) for text in rest.responses for c in "\x03\x1f")
        assert rest.features.shape == (len(rest.responses), 16)


def test_segments_that_end_by_their_text_are_cut():
    with Small() as small:
        model = loaded(small, api="completions", max_new_tokens=6)
        (record,) = model.extend(
            ["a;"], [()], 40, segments=segments(lambda text: text.endswith(("blue", "grey"))), rng=rng()
        )
    for text, piece, length in zip(record.responses, record.segments, record.lengths.tolist(), strict=True):
        words = text.split()
        assert not any(word in ("blue", "grey") for word in words[:-1])
        if words[-1] in ("blue", "grey"):
            assert length in (len(words), len(words) + 1)  # with the end, where it came at once
        assert piece.startswith(text)
    assert record.tokens >= int(record.counts @ record.lengths)


@pytest.mark.parametrize("fails", [(), ("stop",)])
@pytest.mark.parametrize("ignores", [(), ("logprobs",)])
def test_stop_strings_are_cut_and_end_a_response(fails, ignores, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.001)
    with Small(fails=fails, ignores=ignores) as small:
        model = loaded(small, api="chat", stop=["blue"])
        (record,) = model.generate(["a;"], 60, rng=rng())
        assert not any("blue" in text for text in record.responses)
        assert ("stop" in small.bodies[-1]) == (not fails)
        assert any("stop strings" in warning for warning in model.warnings) == bool(fails)
        if not ignores:
            whole = np.array([len(text.split()) + 1 for text in record.responses])
            np.testing.assert_array_equal(record.lengths[record.finished], whole[record.finished])
            np.testing.assert_allclose(record.logprobs, -1.5 * record.lengths)
        (record,) = model.extend(["a;"], [()], 60, segments=segments(2), rng=rng())
        for piece in record.segments:
            assert model.complete("a;", [piece]) == (piece.endswith("\x03"))
            assert "blue" not in model.joined("a;", [piece])


def test_chat_that_answers_afresh_is_refused():
    with Small(ignores=("continue_final_message",)) as small, pytest.raises(ModelError, match="answers afresh"):
        loaded(small, api="chat").extend(["a;"], [("red",)], 2, segments=segments(2), rng=rng())


def test_dropped_spaces_are_put_back_only_between_words():
    class Dropping(Small):
        letters = False

        def serve(self, handler, body, fate):
            super().serve(_Stripping(handler, self.letters), body, fate)

    class _Stripping:
        def __init__(self, handler, letters):
            self.handler, self.letters = handler, letters

        def give(self, status, data, headers=None):
            found = json.loads(data)
            for choice in found.get("choices", []):
                choice["text"] = choice["text"].strip()[: 2 if self.letters and len(choice["text"]) < 6 else None]
            self.handler.give(status, json.dumps(found).encode(), headers)

    with Dropping() as small:
        model = loaded(small, api="completions")
        (record,) = model.extend(["a;"], [("red",)], 9, segments=segments(1), rng=rng())
        assert {text[:1] for text in record.responses if text} == {" "}
        assert any("put back" in warning for warning in model.warnings)
        small.letters = True
        with pytest.raises(ModelError, match="segments: line"):
            loaded(small, api="completions").extend(["a;"], [("red",)], 2, segments=segments(1), rng=rng())


def test_given_responses_have_no_log_probabilities():
    with Small() as small:
        record = loaded(small).score("a;", ["red", "", "red"])
        assert small.bodies == []
    assert record.responses == ("red", "", "red")
    assert np.isnan(record.logprobs).all()
    assert record.lengths.tolist() == [2, 1, 2]


def test_settings_are_checked():
    assert backend("server") is ServerModel
    url = "http://127.0.0.1:1/v1"
    for options, says in [
        ({"api": "both"}, "api"),
        ({"api": "completions", "system": "x"}, "system"),
        ({"stop": "x"}, "stop"),
        ({"per_request": 0}, "per_request"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"price": (1.0,)}, "price"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"base_url": "http://me:secret@host/v1"}, "no password"),
        ({"key_env": "SPANNERLM_NO_SUCH_KEY"}, "SPANNERLM_NO_SUCH_KEY"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            ServerModel.load("m", **{"base_url": url, **options})
        assert "secret" not in str(caught.value)
    model = ServerModel.load("m", base_url=url)
    assert model.hidden_size is None
    for call in (
        lambda: model.generate(["a"], 1, hidden=("mean:-1",), rng=rng()),
        lambda: model.extend(["a"], [()], 1, segments=segments(1), hidden=("mean:-1",), rng=rng()),
        lambda: model.score("a", ["b"], ("mean:-1",)),
    ):
        with pytest.raises(InputError, match="shows no hidden states"):
            call()
    assert model.generate([], 1, rng=rng()) == ()


def test_a_caller_with_an_event_loop_is_served():
    async def inside(model):
        return model.generate(["a;"], 3, rng=rng())

    with Small() as small:
        (record,) = asyncio.run(inside(loaded(small)))
    assert record.counts.sum() == 3


def test_lengths_without_log_probabilities():
    choices = (Choice("aaaa", True), Choice("aaaaaaaaaaaa", True))
    assert Reply(choices).lengths() == (2, 4)
    assert Reply(choices, 1, 9).lengths() == (3, 6)
    shown = Reply((Choice("a", True, ("a", "</s>"), (-1.0, -2.0)),), 1, 9)
    assert shown.lengths() == (2,)
    assert Reply.of(json.loads(json.dumps(shown.row()))) == shown


def test_requests_read_as_documented():
    plan = Plan("chat", logprobs=True)
    asked = request(plan, "m", "hi", n=2, limit=7, seed=5, behind="so far", stop=["x"])
    assert asked.path == "/chat/completions"
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_tokens": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "n": 2,
        "stop": ["x"],
        "seed": 5,
        "logprobs": True,
    }
    assert probing.HOT == 2.0


@pytest.mark.parametrize("ignores", [(), ("logprobs", "n")])
def test_whether_steps_would_help_is_told_of_a_served_model(ignores, tmp_path):
    """The report's C_cond and C_cov beside those of the law by hand, and nothing is asked for twice."""
    law = exact(3)

    def reward(prompts, completions):
        return [float(text == "blue blue blue") + 0.1 * text.count("red") for text in completions]

    def found():
        model = loaded(small, api="completions", max_new_tokens=3, concurrency=4)
        plan = StepPlan(1, 1.5, prompts=2, pool=200, rollouts=12)
        return gather(
            model,
            PROMPTS[:2],
            Source(reward, True),
            features=["ngrams"],
            draws=200,
            seed=3,
            steps=plan,
            directory=tmp_path,
        )

    with Small(ignores=ignores) as small:
        told = found()
        asked = len(small.bodies)
        assert found().steps == told.steps
        assert len(small.bodies) - asked <= 16  # the second time the server is looked at, and nothing is drawn
    steps = told.steps
    weight = {text: np.exp(reward([""], [text])[0] / steps.beta) for text in law}

    def worth(prefix):
        """The mean weight of what begins with these words."""
        mine = [text for text in law if text.split()[: len(prefix)] == prefix]
        return sum(law[text] * weight[text] for text in mine) / sum(law[text] for text in mine)

    total = worth([])
    mass = np.array([law[text] * weight[text] / total for text in law])
    for h, row in enumerate(steps.rows):
        ratios, masses = [], []
        for text, p in zip(law, mass, strict=True):
            words = text.split()
            if h <= len(words):  # step h gives the word h + 1, or the end
                after = weight[text] if h == len(words) else worth(words[: h + 1])
                ratios.append(after / worth(words[:h]))
                masses.append(p)
        assert row.ratio_q99.value == pytest.approx(quantile(np.array(ratios), np.array(masses)), rel=0.4)
    whole = np.array([weight[text] / total for text in law])
    assert len(steps.rows) == 3
    assert steps.sequence.value == pytest.approx(quantile(whole, mass), rel=0.4)
    assert steps.told
    assert steps.step.value < steps.sequence.value
