"""The learned policy behind the OpenAI protocol: real clients, the exact law, what is refused and how."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from fastapi.testclient import TestClient
from scipy.stats import chisquare

from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.dialogue import Form
from spannerlm.errors import InputError, ModelError
from spannerlm.features import feature_map
from spannerlm.tilted import SteppedPolicy, TiltedPolicy, load_policy, save_policy
from spannerlm.web.forms import ApiError, understood
from spannerlm.web.serve import QUEUE, Desk, Served, serve_app

sys.path.insert(0, str(Path(__file__).parents[1] / "backends"))
from tiny_models import tiny_model, word_tokenizer

TOKEN = "t" * 20
FEATURES = {"kind": "ngrams", "dim": 8}
THETA = np.linspace(-1.0, 1.0, 8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on a model of sixteen words and responses of at most two tokens, small enough to be enumerated."""
    folder = tmp_path_factory.mktemp("served") / "tiny-run"
    folder.mkdir()
    tiny_model("llama").save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    about = {
        "model": "model",
        "options": {"max_new_tokens": 2, "device": "cpu"},
        "features": FEATURES,
        "coverage": 12.0,
    }
    save_policy(folder, THETA, 0.5, about)
    return folder


@pytest.fixture(scope="module")
def policy(directory: Path) -> TiltedPolicy:
    found = load_policy(directory)
    assert isinstance(found, TiltedPolicy)
    return found


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[str]:
    """The address of `spannerlm serve` in a process of its own, with a token."""
    command = [
        str(Path(sys.executable).with_name("spannerlm")),
        "serve",
        str(directory),
        "--port",
        "0",
        "--max-n",
        "600",
    ]
    env = {**os.environ, "SPANNERLM_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split(" at ")[1].strip()
        process.send_signal(signal.SIGINT)
        assert "Ctrl-C ends it" in process.stdout.read()


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server, api_key=TOKEN, max_retries=0) as found:
        yield found


def page(policy: TiltedPolicy, **options: Any) -> TestClient:
    served = replace(Served(policy, "tiny-run"), **options)
    app = serve_app(served, hosts=frozenset({"testserver"}))
    return TestClient(app, raise_server_exceptions=False)


def exact_law(policy: TiltedPolicy, prompt: str) -> dict[str, float]:
    """Every response with its probability under the tilted policy, by the model's own log-probabilities."""
    model = policy.model
    assert isinstance(model, HuggingFaceModel)
    size = len(model.codec.tokenizer)
    from spannerlm.backends.scoring import score_rows  # each token sequence is one way to a text

    before = model.codec.prompt_ids(prompt)
    eos = set(model.eos)
    words = [i for i in range(size) if i not in eos]
    rows = [[]] + [[a] for a in words] + [[a, b] for a in words for b in words]
    closed = [len(row) < 2 for row in rows]
    found = score_rows(model.model, before, rows, closed, model.eos, {}, 64)
    mass: Counter[str] = Counter()
    for text, part in zip(model.codec.decode(rows), found, strict=True):
        mass[text] += float(np.exp(part.logprob))
    assert sum(mass.values()) == pytest.approx(1.0, abs=1e-5)
    texts = list(mass)
    phi = policy.features(model.score(prompt, texts))
    weights = np.array([mass[t] for t in texts]) * np.exp(phi @ policy.theta / policy.beta)
    return dict(zip(texts, weights / weights.sum(), strict=True))


def pvalue(counts: Counter[str], law: dict[str, float], n: int) -> float:
    """Chi-square of counts against a law; what is expected fewer than eight times shares a cell."""
    cells = [t for t in law if n * law[t] >= 8]
    rest = 1.0 - sum(law[t] for t in cells)
    seen = [counts[t] for t in cells] + [n - sum(counts[t] for t in cells)]
    return float(chisquare(seen, [n * law[t] for t in cells] + [n * rest]).pvalue)


def test_what_is_served_has_the_exact_tilted_law(client: openai.OpenAI, policy: TiltedPolicy) -> None:
    """4,200 responses against all that there can be; the base model's law is told apart from the same counts."""
    prompt, counts = "a b", Counter[str]()
    for seed in range(7):
        found = client.completions.create(model="tiny-run", prompt=prompt, n=600, seed=seed)
        counts.update(choice.text for choice in found.choices)
    law = exact_law(policy, prompt)
    assert set(counts) <= set(law)
    assert pvalue(counts, law, 4200) > 1e-3
    assert pvalue(counts, exact_law(replace(policy, beta=np.inf), prompt), 4200) < 1e-12


def test_completions_and_chat_of_the_openai_client(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-run"]
    four = client.completions.create(model="tiny-run", prompt="a b", n=4, seed=1)
    assert [choice.index for choice in four.choices] == [0, 1, 2, 3]
    again = client.completions.create(model="tiny-run", prompt="a b", n=4, seed=1)
    other = client.completions.create(model="tiny-run", prompt="a b", n=4, seed=2)
    texts = [[choice.text for choice in found.choices] for found in (four, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert four.usage is not None
    assert four.usage.total_tokens == four.usage.prompt_tokens + four.usage.completion_tokens
    extra = four.usage.model_extra
    assert extra is not None
    assert extra["spannerlm"]["draws"] >= 64
    assert extra["spannerlm"]["exhausted"] is False
    chat = client.chat.completions.create(model="tiny-run", messages=[{"role": "user", "content": "a b"}], n=4, seed=1)
    assert [choice.message.content for choice in chat.choices] == texts[0]
    two = client.completions.create(model="tiny-run", prompt=["a b", "c"], n=2, seed=3)
    assert len(two.choices) == 4


def test_a_stream_joins_to_the_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny-run", prompt="a b", n=3, seed=5)
    joined = {0: "", 1: "", 2: ""}
    reasons = {}
    options: Any = {"include_usage": True}
    last = None
    for part in client.completions.create(
        model="tiny-run", prompt="a b", n=3, seed=5, stream=True, stream_options=options
    ):
        last = part
        for choice in part.choices:
            joined[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert joined == {c.index: c.text for c in whole.choices}
    assert reasons == {c.index: c.finish_reason for c in whole.choices}
    assert last is not None
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    chat = client.chat.completions.create(
        model="tiny-run", messages=[{"role": "user", "content": "a b"}], seed=5, stream=True
    )
    alone = client.chat.completions.create(model="tiny-run", messages=[{"role": "user", "content": "a b"}], seed=5)
    assert "".join(p.choices[0].delta.content or "" for p in chat if p.choices) == alone.choices[0].message.content


def test_stop_strings_and_token_limits_cut_what_was_accepted(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny-run", prompt="a b", n=40, seed=7)
    cut = client.completions.create(model="tiny-run", prompt="a b", n=40, seed=7, stop=["b"])
    assert [c.text for c in cut.choices] == [c.text.split("b")[0] for c in whole.choices]
    short = client.completions.create(model="tiny-run", prompt="a b", n=40, seed=7, max_tokens=1)
    for long, one in zip(whole.choices, short.choices, strict=True):
        assert one.text == (long.text.split() or [""])[0]
        assert one.finish_reason == ("length" if len(long.text.split()) > 1 else "stop")


def test_errors_are_the_clients_own(client: openai.OpenAI, server: str) -> None:
    with (
        openai.OpenAI(base_url=server, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError, match="n: expected a whole number from 1 to 600, got 601"):
        client.completions.create(model="tiny-run", prompt="a", n=601)
    with pytest.raises(openai.BadRequestError, match="temperature: expected 1 or nothing"):
        client.completions.create(model="tiny-run", prompt="a", temperature=0.5)
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    client.completions.create(model="tiny-run", prompt="a", temperature=1.0, user="me")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl(server: str) -> None:
    body = json.dumps({"model": "tiny-run", "messages": [{"role": "user", "content": "a b"}], "n": 2})
    command = ["curl", "-sS", f"{server}/chat/completions", "-H", f"Authorization: Bearer {TOKEN}"]
    command += ["-H", "Content-Type: application/json", "-d", body, "-D", "-"]
    head, _, found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n\n")
    head, found = (head, found) if found else head.split("\r\n\r\n", 1)
    assert len(json.loads(found)["choices"]) == 2
    assert "x-spannerlm-draws" in head.lower()
    refused = subprocess.run(command[:3], capture_output=True, text=True, check=True).stdout
    assert json.loads(refused)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(("fallback", "status"), [("best", 200), ("base", 200), ("error", 422)])
def test_at_the_cap_the_owners_choice_applies_and_is_told(policy: TiltedPolicy, fallback: Any, status: int) -> None:
    found = page(policy, max_draws=4, fallback=fallback).post(
        "/v1/completions", json={"model": "tiny-run", "prompt": "a b", "n": 3, "seed": 1}
    )
    assert found.status_code == status
    if status == 422:
        assert found.json()["error"]["code"] == "draws_exhausted"
        return
    told = found.json()["usage"]["spannerlm"]
    assert told == {"draws": 12 + (3 if fallback == "base" else 0), "exhausted": True, "fallback": fallback}
    assert found.headers["x-spannerlm-draws"] == str(told["draws"])


HOSTILE: list[Any] = [
    [], "x", None, 3, {}, {"model": 3}, {"model": "tiny-run"},
    *({"model": "tiny-run", "prompt": p} for p in (None, 3, [], [1, 2], [[1]], "", ["a", 3], "\ud800", {"a": 1})),
    *({"model": "tiny-run", "prompt": "a", "n": n} for n in (0, -1, True, 1.5, "2", 10**30, [1])),
    *({"model": "tiny-run", "prompt": "a", "stop": s} for s in (3, [3], [""], ["a"] * 5, {"a": 1})),
    *({"model": "tiny-run", "prompt": "a", "seed": s} for s in (-1, 2**70, "1", 0.5, True)),
    *({"model": "tiny-run", "prompt": "a", "max_tokens": m} for m in (0, -3, "x", 1.5)),
    *({"model": "tiny-run", "prompt": "a", "stream": s} for s in (1, "yes")),
    *({"model": "tiny-run", "prompt": "a", k: v} for k, v in (("temperature", 0), ("temperature", True), ("top_p", 0.9),
      ("logprobs", 1), ("echo", True), ("best_of", 3), ("top_k", 5), ("suffix", "x"), ("logit_bias", {"1": 2}))),
    {"model": "tiny-run", "prompt": "a", "stream_options": 3},
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE)
def test_a_wrong_body_is_an_error_with_its_field(policy: TiltedPolicy, body: Any) -> None:
    found = page(policy).post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "expected" in error["message"] or "does not know" in error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"model": NaN}', b"[" * 100_000, b'{"a"' + b" " * 100])
def test_what_is_no_json_is_said_so(policy: TiltedPolicy, raw: bytes) -> None:
    found = page(policy).post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert (found.status_code, found.json()["error"]["message"][:26]) == (400, "expected a body of JSON: "[:26]) or (
        found.json()["error"]["message"].startswith("expected a body of JSON")
    )


MESSAGES: list[tuple[Any, str]] = [
    (None, "expected a list of messages"),
    ([], "expected a list of messages"),
    (["x"], "expected a list of messages"),
    ([{"role": "user"}], "expected content that is text"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "expected content that is text"),
    ([{"role": "system", "content": "Be rude."}, {"role": "user", "content": "a"}], "the run's own system prompt"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "learned on single prompts"),
    ([{"role": "system", "content": "Be kind."}], "learned on single prompts"),
]


@pytest.mark.parametrize(("messages", "says"), MESSAGES)
def test_messages_that_the_policy_was_not_learned_on_are_refused(messages: Any, says: str) -> None:
    with pytest.raises(ApiError, match=says):
        understood({"model": "m", "messages": messages}, chat=True, models=["m"], form=Form("Be kind."), limit=8)


def test_a_message_is_its_text() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]},
        ],
        "max_completion_tokens": 5,
    }
    asked = understood(body, chat=True, models=["m"], form=Form("Be kind."), limit=8)
    assert (asked.prompts, asked.max_tokens, asked.n) == (("a b",), 5, 1)


def test_hosts_sizes_and_routes_are_checked_in_the_same_form(policy: TiltedPolicy) -> None:
    there = page(policy)
    for found, status in (
        (there.get("/v1/models", headers={"host": "evil.example"}), 400),
        (there.post("/v1/completions", json={}, headers={"origin": "http://evil.example"}), 403),
        (there.post("/v1/completions", content="{}", headers={"content-type": "text/plain"}), 415),
        (there.post("/v1/completions", content=b" " * 2**22, headers={"content-type": "application/json"}), 413),
        (there.get("/v1/completions"), 405),
        (there.get("/nowhere"), 404),
        (there.post("/v1/completions/", json={}), 404),
        (there.post("/v1/completions", json={}, headers={"origin": "http://["}), 403),
        (there.post("/v1/completions", json={}, headers={"origin": "http://a]b"}), 403),
        (there.get("/v1/models/other"), 404),
    ):
        assert found.status_code == status
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert there.get("/v1/models/tiny-run").json()["id"] == "tiny-run"


class Slow:
    """A policy that waits to be let go on, and knows which prompts it was asked."""

    def __init__(self, policy: TiltedPolicy) -> None:
        self.policy, self.asked, self.go = policy, list[str](), threading.Event()
        self.model = policy.model

    def sample(self, prompts: Sequence[str], n: int, **options: Any) -> Any:
        """What the policy gives, in the end."""
        self.asked += prompts
        assert self.go.wait(30)
        return self.policy.sample(prompts, n, **options)


def asked(prompt: str) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "seed": 1}


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_who_hangs_up_while_waiting_costs_no_draws(policy: TiltedPolicy) -> None:
    slow: Any = Slow(policy)
    app = serve_app(Served(slow, "m"), hosts=None)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen(128)
        url = f"http://127.0.0.1:{place.getsockname()[1]}/v1/completions"
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
        thread.start()
        with ThreadPoolExecutor(2) as pool, httpx.Client(timeout=30, trust_env=False) as client:
            first = pool.submit(client.post, url, json=asked("a"))
            until(lambda: slow.asked == ["a"])
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(url, json=asked("b"), timeout=0.2, trust_env=False)
            last = pool.submit(client.post, url, json=asked("c"))
            slow.go.set()
            found = [first.result(), last.result()]
        running.should_exit = True
        thread.join(30)
    assert [one.status_code for one in found] == [200, 200]
    assert slow.asked == ["a", "c"]


def test_ctrl_c_ends_it_though_a_response_is_far_from_accepted(directory: Path, tmp_path: Path) -> None:
    """Draws that would take minutes: the client is told, and the process ends."""
    shutil.copytree(directory, tmp_path / "far")
    about = json.loads((tmp_path / "far" / "policy.json").read_text())
    save_policy(tmp_path / "far", 40.0 * THETA, 0.01, {**about, "coverage": 1e9})
    command = [str(Path(sys.executable).with_name("spannerlm")), "serve", str(tmp_path / "far"), "--port", "0"]
    with (
        subprocess.Popen(
            [*command, "--max-draws", str(10**9)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().split(" at ")[1].strip()
        body = {"model": "far", "prompt": "a b", "n": 100}
        one = pool.submit(httpx.post, f"{url}/completions", json=body, timeout=120, trust_env=False)
        time.sleep(2.0)
        assert not one.done()
        process.send_signal(signal.SIGINT)
        told = one.result()
        assert process.wait(60) == 130
        assert process.stderr.read().endswith("stopped\n")
    assert (told.status_code, told.json()["error"]["message"]) == (503, "this server is being ended")


def test_a_full_queue_says_when_to_come_back(policy: TiltedPolicy) -> None:
    slow: Any = Slow(policy)
    desk = Desk(Served(slow, "m"))
    one = understood(asked("a"), chat=False, models=["m"], form=Form(), limit=8)

    async def here() -> bool:
        return False

    async def crowd() -> None:
        tasks = [asyncio.create_task(desk.turn(one, here)) for _ in range(QUEUE)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="come back") as caught:
            await desk.turn(one, here)
        assert (caught.value.status, caught.value.after) == (429, 1)
        slow.go.set()
        found = await asyncio.gather(*tasks)
        assert all(answer == found[0] for answer in found), "each has its own seed"
        assert await desk.turn(one, here) == found[0]

    asyncio.run(crowd())
    assert len(slow.asked) == QUEUE + 1


def test_a_token_limit_behind_a_server_is_refused_before_anything_is_drawn(policy: TiltedPolicy) -> None:
    slow: Any = Slow(policy)
    slow.model = SimpleNamespace(max_new_tokens=7)  # tokens are not known
    found = page(slow).post("/v1/completions", json={"model": "tiny-run", "prompt": "a", "max_tokens": 6})
    assert (found.status_code, found.json()["error"]["param"]) == (400, "max_tokens")
    assert slow.asked == []


def test_what_a_models_server_said_is_the_owners_to_know_and_clients_do_not_pay_again(
    policy: TiltedPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    class Behind(Slow):
        def sample(self, prompts: Sequence[str], n: int, **options: Any) -> Any:
            raise ModelError("http://10.0.0.7/v1: refused with 503: the prompt cache is down")

    behind: Any = Behind(policy)
    behind.model = SimpleNamespace(max_new_tokens=7)
    found = page(behind).post("/v1/completions", json={"model": "tiny-run", "prompt": "a"})
    assert (found.status_code, found.headers["x-should-retry"]) == (503, "false")
    assert "10.0.0.7" not in found.text
    assert "10.0.0.7" in caplog.text
    here: Any = Behind(policy)
    found = page(here).post("/v1/completions", json={"model": "tiny-run", "prompt": "a"})
    assert (found.status_code, found.headers["x-should-retry"]) == (400, "false")


def test_what_breaks_is_an_error_in_the_same_form(policy: TiltedPolicy) -> None:
    class Broken(Slow):
        def sample(self, prompts: Sequence[str], n: int, **options: Any) -> Any:
            raise RuntimeError("secret details")

    broken: Any = Broken(policy)
    found = page(broken).post("/v1/completions", json={"model": "tiny-run", "prompt": "a"})
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in found.text


def test_a_policy_of_steps_is_served_too(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "model", tmp_path / "model")
    about = {"model": "model", "options": {"max_new_tokens": 2, "device": "cpu"}, "features": FEATURES}
    save_policy(tmp_path, np.stack([THETA, THETA]), 0.5, {**about, "segments": {"tokens": 1}, "levels": [None, None]})
    policy = load_policy(tmp_path)
    assert isinstance(policy, SteppedPolicy)
    found = page(policy, fallback="base").post(  # type: ignore[arg-type]
        "/v1/completions", json={"model": "tiny-run", "prompt": "a b", "n": 3, "seed": 1}
    )
    assert found.status_code == 200
    assert found.json()["usage"]["spannerlm"]["draws"] > 3


def test_beyond_this_machine_it_does_not_start_without_a_token(directory: Path) -> None:
    command = [str(Path(sys.executable).with_name("spannerlm")), "serve", str(directory), "--host", "0.0.0.0"]
    env = {name: value for name, value in os.environ.items() if name != "SPANNERLM_TOKEN"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert found.returncode == 1
    assert "expected a token" in found.stderr


def test_with_a_token_it_answers_under_any_name(server: str) -> None:
    for headers, status in (({"authorization": f"Bearer {TOKEN}"}, 200), ({}, 401)):
        found = httpx.get(f"{server}/models", headers={"host": "gpu-box.lan:8000", **headers}, trust_env=False)
        assert found.status_code == status


def test_health_needs_no_token(server: str) -> None:
    root = server.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"state": "up"}
    assert httpx.get(f"{root}/v1/models").status_code == 401
    assert TOKEN not in httpx.get(f"{root}/v1/models?token={TOKEN}").text
    assert httpx.get(f"{root}/v1/models?token={TOKEN}").status_code == 401  # no token in an address


def test_a_directory_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no policy"):
        load_policy(tmp_path)


def test_features_are_those_of_the_run(policy: TiltedPolicy) -> None:
    assert policy.features == feature_map(FEATURES)
