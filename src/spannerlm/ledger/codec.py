"""Requests and outcomes as canonical JSON and arrays, and back, exactly (RELIABILITY: same ledger, fault 16).

Canonical JSON is pure ASCII on one line: sorted keys, no blanks, no NaN. What JSON cannot say travels as an
object with one ``$`` key: ``{"$float": "nan"}`` and, for text with lone surrogates, ``{"$text": hex}``.
Arrays never pass through JSON: ``pack`` writes their bytes, as float32 wherever nothing is lost by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spannerlm.errors import InputError, LedgerCorruptError
from spannerlm.records import DrawRequest, FloatArray, LabelItem, LabelRequest, Request, StepTilt, StopRequest, Tilt

TEXT_LIMIT = 16 * 2**20
"""Largest single text in UTF-8 bytes: beyond any model's context, and far below SQLite's limit of 1 GB a row."""

Json = dict[str, Any]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def check_text(text: object, what: str) -> None:
    """Raise InputError unless ``text`` is a str of at most ``TEXT_LIMIT`` UTF-8 bytes; any code point is allowed."""
    if not isinstance(text, str):
        raise InputError(f"{what}: expected text, got {type(text).__name__}")
    if 4 * len(text) > TEXT_LIMIT:  # a code point takes at most 4 bytes, so shorter texts need no encoding here
        size = len(text_bytes(text))
        if size > TEXT_LIMIT:
            raise InputError(f"{what}: {size} bytes of text, more than the limit of {TEXT_LIMIT}; shorten it")


def text_bytes(text: str) -> bytes:
    """Return the UTF-8 bytes of any str, lone surrogates included; ``bytes_text`` is its inverse."""
    return text.encode("utf-8", "surrogatepass")


def bytes_text(data: bytes) -> str:
    """Return the str whose ``text_bytes`` are ``data``."""
    return data.decode("utf-8", "surrogatepass")


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value built of None, bool, int, float, str, list, tuple and dicts of str.

    A tuple is written as a list. Raises InputError for anything else.
    """
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError):  # not finite, not a dict, or not JSON at all
        return strict(value)
    return strict(value) if "\\ud" in text or '"$' in text else text.encode("ascii")


def strict(value: object) -> bytes:
    """Return what ``canonical`` does, slower, for values from elsewhere: a name that is no str is refused."""
    return _ENCODER.encode(_wire(value)).encode("ascii")


def parse(data: bytes) -> Any:
    """Return the value that ``canonical`` wrote: equal to the original, with lists for tuples."""
    return json.loads(data, object_hook=_unwire if b'"$' in data else None)


def plain_info(info: Mapping[str, Any]) -> Json:
    """Return a request's diagnostics as ``parse`` would give them back; InputError names the entry at fault."""
    plain: Json = {}
    for name, value in info.items():
        try:
            plain[name] = parse(strict(value))
        except InputError as error:
            raise InputError(f"info[{name!r}]: {error}") from None
    strict(plain)  # the names themselves
    return plain


def _wire(value: object) -> object:
    if isinstance(value, str):
        return _wire_text(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {_wire_key(key): _wire(item) for key, item in value.items()}
    raise InputError(f"expected JSON values, got {type(value).__name__}: {str(value)[:80]}; use .item() or .tolist()")


def _wire_text(text: str) -> object:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON would join a high and a low surrogate into one character
            return {"$text": text_bytes(text).hex()}
    return str(text)


def _wire_key(key: object) -> str:
    if not isinstance(key, str) or key.startswith("$") or _wire_text(key) != key:
        raise InputError(f"expected a name that is plain text without leading '$', got {key!r}")
    return key


def _unwire(item: Json) -> object:
    if len(item) == 1:
        if "$float" in item:
            return float(item["$float"])
        if "$text" in item:
            return bytes_text(bytes.fromhex(item["$text"]))
    return item


# --- arrays ---------------------------------------------------------------------------------------------------------


def compact(array: FloatArray) -> NDArray[Any]:
    """Return ``array`` as little-endian float32 if every bit survives the way there and back, else as float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        small = array.astype("<f4")
    same = np.array_equal(small.astype("<f8").view(np.int64), np.ascontiguousarray(array, "<f8").view(np.int64))
    return small if same else np.ascontiguousarray(array, "<f8")


def pack(arrays: Sequence[FloatArray]) -> bytes:
    """Return float64 arrays of any shape as bytes: one line of JSON with types and shapes, then the raw values."""
    stored = [compact(np.atleast_1d(array)) for array in arrays]
    head = [[kept.dtype.str, list(array.shape)] for kept, array in zip(stored, arrays, strict=True)]
    return canonical(head) + b"\n" + b"".join(kept.tobytes() for kept in stored)


def unpack(data: bytes) -> tuple[FloatArray, ...]:
    """Return the arrays given to ``pack``, as C-contiguous float64 with every bit the same."""
    end = data.index(b"\n")
    arrays, start = [], end + 1
    for kind, shape in json.loads(data[:end]):
        count = math.prod(shape)
        flat = np.frombuffer(data, dtype=np.dtype(kind), count=count, offset=start)
        arrays.append(flat.astype(np.float64, copy=True).reshape(shape))
        start += flat.nbytes
    if start != len(data):
        raise LedgerCorruptError(f"packed arrays: expected {start} bytes, found {len(data)}")
    return tuple(arrays)


def as_float64(array: object, shape: tuple[int | None, ...], what: str) -> FloatArray:
    """Return ``array`` as C-contiguous float64, itself if it is that already; InputError unless of ``shape``.

    None in ``shape`` stands for any length; at least one dimension.
    """
    result: FloatArray = np.ascontiguousarray(array, dtype=np.float64)
    fits = result.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, result.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{what}: expected shape {list(shape)}, got {list(result.shape)}")
    return result


# --- requests -------------------------------------------------------------------------------------------------------


def request_parts(request: Request) -> tuple[Json, tuple[FloatArray, ...]]:
    """Return a request as a JSON object and its float64 arrays (a tilt's theta, anchors, root; else none)."""
    info = plain_info(request.info)
    if isinstance(request, StopRequest):
        return {"type": "stop", "reason": request.reason, "info": info}, ()
    if isinstance(request, LabelRequest):
        items = [_item_parts(item, number) for number, item in enumerate(request.items)]
        return {"type": "label", "items": items, "info": info}, ()
    prompts = [int(prompt) for prompt in request.prompts]
    scalars, arrays = (None, ()) if request.tilt is None else _tilt_parts(request.tilt, len(prompts))
    body: Json = {"type": "draw", "prompts": prompts, "n": int(request.n), "tilt": scalars, "info": info}
    if request.prefixes is not None:  # a request for whole responses is written as it was before there were prefixes
        body["prefixes"] = _prefix_parts(request.prefixes, len(prompts))
    return body, arrays


def _prefix_parts(prefixes: Sequence[tuple[str, ...]], m: int) -> list[list[str]]:
    if len(prefixes) != m:
        raise InputError(f"prefixes [m]: expected {m}, one per prompt, got {len(prefixes)}")
    for i, prefix in enumerate(prefixes):
        for segment in prefix:
            check_text(segment, f"prefixes[{i}]")
    return [list(prefix) for prefix in prefixes]


def _item_parts(item: LabelItem, number: int) -> list[Any]:
    """Return [prompt, response, fresh], and the opponent behind them where there is one.

    A reward is written as it was before there were comparisons: old ledgers and new ones are told by the same reader.
    """
    check_text(item.response, f"items[{number}].response")
    parts = [int(item.prompt), item.response, bool(item.fresh)]
    if item.opponent is None:
        return parts
    check_text(item.opponent, f"items[{number}].opponent")
    if item.opponent == item.response:
        raise InputError(f"items[{number}]: expected two responses to compare, got the same one twice: leave it out")
    return [*parts, item.opponent]


def items_from(body: Json) -> tuple[LabelItem, ...]:
    """Return the items of a label request as it is stored."""
    return tuple(LabelItem(*parts) for parts in body["items"])


def _tilt_parts(tilt: Tilt | StepTilt, m: int) -> tuple[Json, tuple[FloatArray, ...]]:
    if isinstance(tilt, StepTilt):
        return {"beta": float(tilt.beta)}, (as_float64(tilt.theta, (None, None), "tilt.theta [H, d]"),)
    theta = as_float64(tilt.theta, (None,), "tilt.theta [d]")
    anchors = as_float64(tilt.anchors, (m, len(theta)), "tilt.anchors [m, d]")
    root = as_float64(tilt.root, (None, len(theta)), "tilt.root [d, d]")
    scalars = {name: float(getattr(tilt, name)) for name in ("beta", "nu", "bound", "delta")}
    return scalars, (theta, anchors, root)


def request_from(body: Json, arrays: Sequence[FloatArray]) -> Request:
    """Return the request that ``request_parts`` took apart; lists stand in ``info`` where tuples were."""
    if body["type"] == "stop":
        return StopRequest(body["reason"], body["info"])
    if body["type"] == "label":
        return LabelRequest(items_from(body), body["info"])
    prefixes = tuple(map(tuple, body["prefixes"])) if "prefixes" in body else None
    request = DrawRequest(tuple(body["prompts"]), body["n"], None, body["info"], prefixes)
    if body["tilt"] is None:
        return request
    if len(arrays) == 1:
        return replace(request, tilt=StepTilt(theta=arrays[0], **body["tilt"]))
    theta, anchors, root = arrays
    return replace(request, tilt=Tilt(theta=theta, anchors=anchors, root=root, **body["tilt"]))
