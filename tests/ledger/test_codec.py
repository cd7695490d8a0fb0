"""Round trips of requests, values and arrays: nothing may change on the way to the ledger and back."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spannerlm.errors import InputError, LedgerCorruptError
from spannerlm.ledger import codec
from spannerlm.records import DrawRequest, LabelItem, LabelRequest, StepTilt, StopRequest, Tilt

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
PLAIN_NAME = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: not name.startswith("$"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(PLAIN_NAME, inner),
    max_leaves=10,
)
ODD_TEXTS = [
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\ud83d\ude00",
    "😀",
    "é\u2028\r\n",
    "\u202eabc",
    '{"$text":"00"}',
    "\x1b[31m",
]


def same(a, b):
    """Equality that tells nan, -0.0, True and 1 apart."""
    return repr(a) == repr(b)


@given(JSON)
def test_values_come_back_as_they_were(value):
    assert same(codec.parse(codec.canonical(value)), _sorted(value))


def _sorted(value):
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_the_fast_and_the_strict_way_write_the_same_ascii_line(value):
    data = codec.canonical(value)
    assert data == codec.strict(value)
    assert data.isascii()
    assert b"\n" not in data
    json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_keep_every_code_point(text):
    assert codec.parse(codec.canonical([text])) == [text]
    assert codec.bytes_text(codec.text_bytes(text)) == text


def test_canonical_does_not_depend_on_the_order_of_names():
    assert codec.canonical({"b": 1, "a": 2}) == codec.canonical({"a": 2, "b": 1}) == b'{"a":2,"b":1}'


@pytest.mark.parametrize(
    "value", [np.float32(1), np.int64(1), np.zeros(2), {1, 2}, b"x", object(), {1: 2}, {"$float": 1}, {"\ud800": 1}]
)
def test_info_must_be_json(value):
    with pytest.raises(InputError, match=r"info\['bad'\]"):
        codec.plain_info({"good": 1, "bad": value})


def test_names_of_info_are_checked_too():
    with pytest.raises(InputError, match="plain text"):
        codec.plain_info({"$float": "nan"})


def test_info_becomes_plain():
    plain = codec.plain_info({"theta": (np.float64(0.5), 1), "wide": float("nan")})
    assert same(plain, {"theta": [0.5, 1], "wide": float("nan")})
    assert type(plain["theta"][0]) is float


@given(st.lists(arrays(np.float64, array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)), max_size=4))
def test_arrays_keep_every_bit(given_arrays):
    back = codec.unpack(codec.pack(given_arrays))
    assert [array.shape for array in back] == [array.shape for array in given_arrays]
    assert [array.tobytes() for array in back] == [np.ascontiguousarray(array).tobytes() for array in given_arrays]


@pytest.mark.parametrize(
    ("values", "stored"),
    [([0.5, -0.0, np.inf, np.nan], "<f4"), ([0.1], "<f8"), ([1e300], "<f8"), ([1e-310], "<f8"), ([16777217.0], "<f8")],
)
def test_float32_only_where_nothing_is_lost(values, stored):
    array = np.array(values)
    assert codec.compact(array).dtype.str == stored
    assert codec.unpack(codec.pack([array]))[0].tobytes() == array.tobytes()


def test_packed_arrays_of_the_wrong_length_are_refused():
    data = codec.pack([np.arange(3.0)])
    with pytest.raises(LedgerCorruptError, match="expected"):
        codec.unpack(data + b"x")


def test_arrays_of_another_order_come_back_equal():
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 3)))
    (back,) = codec.unpack(codec.pack([array]))
    assert back.flags.c_contiguous
    assert np.array_equal(back, array)


def test_as_float64_keeps_what_is_fit_and_names_what_is_not():
    array = np.ones((2, 3))
    assert codec.as_float64(array, (2, None), "x") is array
    assert codec.as_float64(np.ones((2, 3), np.float32), (2, 3), "x").dtype == np.float64
    with pytest.raises(InputError, match=r"x: expected shape \[3, None\], got \[2, 3\]"):
        codec.as_float64(array, (3, None), "x")


def test_text_limit_is_stated_and_counts_bytes():
    codec.check_text("é" * (codec.TEXT_LIMIT // 2), "prompt")
    with pytest.raises(InputError, match="limit of 16777216"):
        codec.check_text("é" * (codec.TEXT_LIMIT // 2) + "x", "prompt")
    with pytest.raises(InputError, match="expected text, got bytes"):
        codec.check_text(b"x", "prompt")


REQUESTS = [
    DrawRequest((3, 1), 7, None, {"phase": "pool"}),
    DrawRequest(
        (3, 1),
        7,
        Tilt(np.array([0.1, 2.0]), 0.2, np.ones((2, 2)), np.array([[1.0, 0.1], [0.0, 2.0]]), 0.3, 4.0, 0.05),
        {},
    ),
    DrawRequest((3, 1), 7, None, {}, ((), ("a", "\ud800"))),
    DrawRequest((3, 1), 7, StepTilt(np.array([[0.1, 2.0]]), 0.2), {}, (("",), ("a", "b"))),
    LabelRequest((LabelItem(0, "\ud800"), LabelItem(5, "", True), LabelItem(1, "", True, "\ud800")), {"theta": [0.1]}),
    StopRequest("certified", {"width": float("inf")}),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_come_back_field_by_field(request_):
    body, given_arrays = codec.request_parts(request_)
    back = codec.request_from(codec.parse(codec.canonical(body)), codec.unpack(codec.pack(given_arrays)))
    assert_equal(back, request_)


def test_every_field_of_the_records_is_tried_above():
    """A field added to a record must not be lost in silence: give it a value in REQUESTS that is not its default."""
    for kind in (DrawRequest, Tilt, StepTilt, LabelRequest, LabelItem, StopRequest):
        known = {
            DrawRequest: {"prompts", "n", "tilt", "info", "prefixes"},
            Tilt: {"theta", "beta", "anchors", "root", "nu", "bound", "delta"},
            StepTilt: {"theta", "beta"},
            LabelRequest: {"items", "info"},
            LabelItem: {"prompt", "response", "fresh", "opponent"},
            StopRequest: {"reason", "info"},
        }[kind]
        assert {field.name for field in dataclasses.fields(kind)} == known


def test_a_reward_is_written_as_before_there_were_comparisons_and_a_comparison_behind_it():
    items = (LabelItem(0, "a"), LabelItem(5, "", True), LabelItem(0, "a", False, "b"))
    body, _ = codec.request_parts(LabelRequest(items))
    assert codec.canonical(body["items"]) == b'[[0,"a",false],[5,"",true],[0,"a",false,"b"]]'
    assert codec.items_from(body) == items


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (LabelItem(0, "a", False, "a"), r"items\[1\]: expected two responses to compare, got the same one twice"),
        (LabelItem(0, "a", False, b"b"), r"items\[1\].opponent: expected text, got bytes"),
        (LabelItem(0, "a", False, "b" * (codec.TEXT_LIMIT + 1)), r"items\[1\].opponent: .* limit"),
    ],
)
def test_an_opponent_is_another_text(item, says):
    with pytest.raises(InputError, match=says):
        codec.request_parts(LabelRequest((LabelItem(0, "a", False, "b"), item)))


def test_a_tilt_of_the_wrong_shape_is_refused():
    tilt = dataclasses.replace(REQUESTS[1].tilt, anchors=np.ones((3, 2)))
    with pytest.raises(InputError, match=r"tilt.anchors \[m, d\]"):
        codec.request_parts(dataclasses.replace(REQUESTS[1], tilt=tilt))


def assert_equal(a, b):
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right)
    else:
        assert same(a, b)
