"""What stands before the page: host, origin, token, limits, headers (RELIABILITY, faults 19, 20, 21, 23 and 24)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from spannerlm import Run
from spannerlm.environments import environment
from spannerlm.errors import InputError
from spannerlm.web.desk import Desk
from spannerlm.web.label import FILES, label_app
from spannerlm.web.security import BODY_LIMIT, BURST, HEADERS, check_bind, is_loopback

HOSTS = frozenset({"localhost:8765", "127.0.0.1:8765"})
RATER, OWNER = "r" * 20, "o" * 20
ROUTES = [*(("GET", path) for path in FILES), ("GET", "/api/about"), ("POST", "/api/next"), ("POST", "/api/previous")]
ROUTES += [("POST", "/api/answer"), ("GET", "/owner/panel"), ("GET", "/owner/export/labels.csv"), ("GET", "/nowhere")]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Run.open(tmp_path, env=environment("rare-skill", seed=1), budget=6, batch=2) as run:
        found = Desk(run)
        yield found
        found.close()


def client(desk: Desk, **options: Any) -> TestClient:
    return TestClient(label_app(desk, hosts=HOSTS, **options), base_url="http://localhost:8765", follow_redirects=False)


def guarded(desk: Desk) -> TestClient:
    return client(desk, tokens={RATER: "rater", OWNER: "owner"})


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_token_no_route_answers_but_health(desk: Desk, method: str, path: str) -> None:
    page = guarded(desk)
    wrong = [{}, {"authorization": "Bearer x"}, {"authorization": f"Basic {RATER}"}, {"cookie": "spannerlm=x"}]
    for headers in wrong:
        found = page.request(method, path, headers={"content-type": "application/json", **headers}, content="{}")
        assert found.status_code == 401
        assert RATER not in found.text
        assert OWNER not in found.text
    assert page.get("/health").json() == {"state": "up"}


def test_a_rater_is_no_owner(desk: Desk) -> None:
    page = guarded(desk)
    rater, owner = {"authorization": f"Bearer {RATER}"}, {"authorization": f"Bearer {OWNER}"}
    assert page.get("/", headers=rater).status_code == 200
    for path in ("/owner", "/owner/panel", "/owner/export/labels.csv"):
        assert page.get(path, headers=rater).status_code == 401
        assert page.get(path, headers=owner).status_code == 200
    assert client(desk).get("/owner/panel").status_code == 200  # no token is set: this machine alone


def test_a_token_in_an_address_becomes_a_cookie_and_leaves_the_address(desk: Desk) -> None:
    page = guarded(desk)
    found = page.get(f"/?token={RATER}")
    assert found.status_code == 303
    assert found.headers["location"] == "/"
    cookie = found.headers["set-cookie"]
    assert cookie.startswith(f"spannerlm={RATER};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert page.get("/").status_code == 200  # the client keeps the cookie
    assert guarded(desk).get("/?token=wrong").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost:1", "localhost.evil.example:8765", ""])
def test_another_host_is_refused(desk: Desk, host: str) -> None:
    assert client(desk).get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_request_of_another_page_is_refused(desk: Desk, headers: dict[str, str]) -> None:
    for path in ("/api/next", "/api/answer"):
        sent = client(desk).post(path, headers=headers, json={"rater": "ann"})
        assert sent.status_code == 403
    assert desk.run.counts.charged == 0


def test_a_form_cannot_post(desk: Desk) -> None:
    page = client(desk)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        found = page.post("/api/next", headers={"content-type": kind}, content='{"rater": "ann"}')
        assert found.status_code == 415
    same = {"origin": "http://localhost:8765", "sec-fetch-site": "same-origin"}
    assert page.post("/api/next", headers=same, json={"rater": "ann"}).status_code == 200


def test_every_answer_has_the_headers(desk: Desk) -> None:
    page = guarded(desk)
    for found in (page.get("/health"), page.get("/"), page.get("/nowhere"), page.get("/", headers={"host": "x"})):
        for name, value in HEADERS.items():
            assert found.headers[name] == value
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_bodies_and_paces_are_limited(desk: Desk) -> None:
    page = client(desk)
    assert page.post("/api/next", json={"rater": "x" * BODY_LIMIT}).status_code == 413
    app = label_app(desk, hosts=HOSTS)
    app.clock = lambda: 0.0
    page = TestClient(app, base_url="http://localhost:8765")
    codes = [page.get("/health").status_code for _ in range(int(BURST) + 50)]
    assert codes == [200] * int(BURST) + [429] * 50
    app.clock = lambda: 1.0
    assert page.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../desk.py",
        "/static/%2e%2e/desk.py",
        "/owner/export/..%2Frun.db",
        "/owner/export/%2Fetc%2Fpasswd",
        "/owner/export/run.db",
        "/static/label.html",
    ],
)
def test_no_file_is_named_by_a_client(desk: Desk, path: str) -> None:
    found = client(desk).get(path)
    assert found.status_code in (400, 404)


@pytest.mark.parametrize("body", ["", "[]", "{", "1", '"x"', "null", '{"rater": 3}', '{"rater": ""}', "[" * 50_000])
def test_broken_bodies_are_named_and_change_nothing(desk: Desk, body: str) -> None:
    found = client(desk).post("/api/answer", headers={"content-type": "application/json"}, content=body)
    assert found.status_code == 400
    assert found.json()["state"] == "error"
    assert desk.run.counts.labels == 0


def test_beyond_this_machine_a_token_is_needed() -> None:
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(InputError, match="expected a token"):
            check_bind(host, None)
        check_bind(host, "x" * 16)
    for token in ("geheimnis-ü-1234567890", "with a space in it", "a\x00b" * 9):
        with pytest.raises(InputError, match="printable ASCII"):
            check_bind("127.0.0.1", token)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        assert is_loopback(host)
        check_bind(host, None)
    with pytest.raises(InputError, match="16 characters"):
        check_bind("127.0.0.1", "short")


def test_a_spreadsheet_executes_nothing(desk: Desk) -> None:
    page = client(desk)
    shown = {}
    for _ in range(300):
        shown = page.post("/api/next", json={"rater": "=cmd|' /C calc'!A0"}).json()
        if shown["state"] == "item":
            break
    body = {"rater": "=cmd|' /C calc'!A0", "id": shown["item"]["id"], "value": -1.5}
    assert page.post("/api/answer", json=body).json()["state"] == "saved"
    table = page.get("/owner/export/labels.csv").text
    assert "'=cmd" in table
    assert ",=cmd" not in table
    assert "-1.5" in table
    assert '"rater": "=cmd' in page.get("/owner/export/labels.jsonl").text
