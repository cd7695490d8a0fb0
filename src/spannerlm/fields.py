"""What single values of a configuration may be: paths, functions in files, devices, counts, feature maps.

Each validator returns the value in its final form, leaves what is of another kind for pydantic to refuse, and raises
ValueError with what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from spannerlm.http import is_address
from spannerlm.settings import show

LARGEST_COUNT = 10**9
"""Labels, draws or tokens at most: far beyond any purse, and every sum of them fits in 63 bits."""


def path(value: object) -> object:
    """The absolute path of a text; anything else as it is, for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    if not value or not value.isprintable():
        raise ValueError("expected the path of a file")
    return Path(os.path.abspath(os.path.expanduser(value)))


def model(value: object) -> object:
    """A local directory's absolute path; a hub id as it is."""
    if not isinstance(value, str):
        return value
    if not value or not value.isprintable():
        raise ValueError("expected a hub id or the path of a model directory")
    place = os.path.abspath(os.path.expanduser(value))
    return place if value.startswith((".", "/", "~")) or os.path.isdir(place) else value


def function(value: object) -> object:
    """``/absolute/path.py:function``, or ``package.module:function`` as it is."""
    if not isinstance(value, str):
        return value
    file, _, name = value.rpartition(":")
    if not file or not name.isidentifier() or not file.isprintable():
        raise ValueError("expected path/to/file.py:function or package.module:function")
    return value if in_module(value) else f"{path(file)}:{name}"


def in_module(reference: str) -> bool:
    """Whether a function is named by a module that can be imported, not by its file."""
    place = reference.rpartition(":")[0]
    return not place.endswith(".py") and all(part.isidentifier() for part in place.split("."))


def device(value: object) -> object:
    """A device as torch names it, or auto."""
    if isinstance(value, str) and not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError("expected auto, cpu, mps, cuda or cuda:0")
    return value


def url(value: object) -> object:
    """The address of a server."""
    if isinstance(value, str) and not is_address(value):
        raise ValueError("expected http://... or https://...")
    return value


def as_tuple(value: object) -> object:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def json_value(value: object) -> object:
    """A JSON value; ValueError for dates, bytes, sets, numbers without an end, and keys that are no text."""
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"expected keys that are text, got the key {show(bad[0])}; put it in quotes")
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("expected finite numbers only")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"expected text, numbers, true, false, lists and mappings, got {show(value)}; put it in quotes")


def features(value: object) -> object:
    """The specification of a feature map, or of several side by side; None as it is."""
    if value is None:
        return None
    if not isinstance(value, (str, list, dict)) or not value:
        raise ValueError("expected a name such as hidden or ngrams, a mapping with its kind, or a list of these")
    return json_value(value)


def several(value: object) -> object:
    """A tuple of feature specifications; one alone is a tuple of one."""
    found = features(value)
    return tuple(found) if isinstance(found, list) else found if found is None else (found,)


Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
File = Annotated[Path, BeforeValidator(path)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
