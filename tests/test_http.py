"""What clients of paid servers share: keys that are hidden, and how long a server wants them to wait."""

from __future__ import annotations

import datetime
from email.utils import format_datetime

import pytest

from spannerlm.errors import InputError
from spannerlm.http import RETRY_S, Usage, api_key, checked_url, hidden, is_address, seconds_until

KEY = "sk-very/secret+key=="


@pytest.mark.parametrize(
    "key", ["a\nb" * 5, "sk-very\u201dsecret", "sk-very\xa0secret", "sk very secret", "sk\x01x", "sk\x7fx"]
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANNERLM_TEST_KEY", key)
    with pytest.raises(InputError, match="SPANNERLM_TEST_KEY: expected an API key of printable ASCII") as caught:
        api_key("SPANNERLM_TEST_KEY")
    assert key not in str(caught.value)


def test_a_key_is_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANNERLM_TEST_KEY", f" {KEY}\n")
    assert (api_key("SPANNERLM_TEST_KEY"), api_key(None)) == (KEY, "")
    monkeypatch.setenv("SPANNERLM_TEST_KEY", " ")
    with pytest.raises(InputError, match="found none"):
        api_key("SPANNERLM_TEST_KEY")


def test_a_secret_is_hidden_however_it_is_written_and_a_word_is_not() -> None:
    assert hidden(rb"sk-very\u002Fsecret\u002bkey=\u003D", KEY) == b"***"
    said = b'{"error": "bad sk-very/secret+key== or sk-very\\/secret+key== or sk-very%2Fsecret%2Bkey%3D%3D"}'
    assert hidden(said, KEY) == b'{"error": "bad *** or *** or ***"}'
    reply = b'{"usage": {"prompt_tokens": 3}, "text": "EMPTY"}'
    for dummy in ("", "token", "EMPTY", "x", "-"):
        assert hidden(reply, dummy) == reply
    assert hidden(b"no Bearer s3cret, token s3cret", "s3cret") == b"no Bearer ***, token s3cret"


def test_how_long_to_wait() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert 90 < seconds_until(format_datetime(soon)) <= 100
    assert seconds_until("2.5") == 2.5
    assert seconds_until("Mon, 01 Jan 2001 00:00:00 GMT") == 0.0
    for garbage in (None, "", "-5", "nan", "inf", "soon", "9" * 5000, "Mon, 01 Jan 99999 00:00:00 GMT"):
        assert seconds_until(garbage) == RETRY_S
    assert seconds_until("Mon, 01 Jan 2000 00:00:00 +99999999999999999") == RETRY_S


def test_bills_add_up() -> None:
    assert Usage(1, 2, 3, 0.5) + Usage(1, 1, 1, 0.25) == Usage(2, 3, 4, 0.75)


def test_addresses_are_checked_and_secrets_in_them_are_not_repeated() -> None:
    assert checked_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"
    for wrong in (
        "",
        "localhost:8000",
        "127.0.0.1/v1",
        "ftp://a/b",
        "http://",
        "http://a:0",
        "http://a:99999",
        "http://[1",
    ):
        assert not is_address(wrong)
        with pytest.raises(InputError, match="base_url: expected http://"):
            checked_url(wrong)
    for secret in ("http://ann:sesame@a/v1", "https://a/v1?key=sesame"):
        assert is_address(secret)
        with pytest.raises(InputError, match="put the key into key_env") as caught:
            checked_url(secret)
        assert "sesame" not in str(caught.value)
