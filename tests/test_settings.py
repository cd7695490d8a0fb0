"""Settings as written: what a message may show of them, and that plain data survives writing and reading."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spannerlm.settings import Settings, clean, dump, show

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing (null)"),
        (True, "true (true or false)"),
        (3, "3 (a whole number)"),
        (0.5, "0.5 (a number)"),
        ("a\x1b[31m\n", "'a\\x1b[31m\\n' (text)"),
        ({"a": 1}, "a mapping of 1"),
        ([1, 2], "a list of 2"),
        (b"x", "b'x' (bytes)"),
        pytest.param(10**5000, "very long (a whole number)", id="long"),
    ],
)
def test_a_value_is_shown_with_its_kind(value, shown):
    assert show(value) == shown


def test_shown_text_is_short_and_printable():
    assert clean("x" * 1000) == "x" * 77 + "..."
    assert clean("a\nb\u202e") == "a\\nb\\u202e"


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=4))
def test_plain_data_survives_writing_and_reading(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("dump") / "data.yaml"
    path.write_text(dump(data), encoding="utf-8")
    found = Settings(str(path))
    found.read_file(path, lambda read, _folder: read)
    assert (found.data, found.problems) == (data, [])


def test_what_is_dumped_is_yaml_to_everyone_and_has_no_anchors():
    same = ["x"]
    assert yaml.safe_load(dump({"a": same, "b": same})) == {"a": ["x"], "b": ["x"]}
    assert "&" not in dump({"a": same, "b": same})


def test_the_place_of_a_key_is_that_of_the_nearest_one_written_down(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a:\n  b: [1,\n   2]\n")
    found = Settings(str(path))
    found.read_file(path, lambda read, _folder: read)
    assert found.place(("a", "b", 1)) == f"{path}:3: a.b.1"
    assert found.place(("a", "c")) == f"{path}:1: a.c"
    assert found.place(("z",)) == f"{path}: z"
    found.override("a.b=7")
    assert found.place(("a", "b", 1)) == "--set a.b.1"
    assert found.data == {"a": {"b": 7}}
