"""Single values of a configuration in their final form, and what is refused."""

import os
from pathlib import Path

import pytest

from spannerlm import fields


def test_paths_are_absolute_and_functions_are_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert fields.path("a/../b.txt") == tmp_path / "b.txt"
    assert fields.path("~/b.txt") == Path(os.path.expanduser("~/b.txt"))
    assert fields.model("here") == str(tmp_path / "here")
    assert fields.model("org/name") == "org/name"
    assert fields.model("./absent") == str(tmp_path / "absent")
    assert fields.function("r.py:good") == f"{tmp_path}/r.py:good"
    for wrong in ("r.py", "r.py:", ":good", "r.py:not a name"):
        with pytest.raises(ValueError, match=r"path/to/file\.py:function"):
            fields.function(wrong)


def test_what_is_of_another_kind_is_left_to_pydantic():
    for check in (fields.path, fields.model, fields.function, fields.device, fields.as_tuple):
        assert check(3) == 3


def test_feature_maps_alone_and_several():
    assert fields.several(None) is None
    assert fields.several("hidden") == ("hidden",)
    assert fields.several({"kind": "ngrams"}) == ({"kind": "ngrams"},)
    assert fields.several(["hidden", ["hidden", "ngrams"]]) == ("hidden", ["hidden", "ngrams"])
    for wrong in ("", [], 3):
        with pytest.raises(ValueError, match="hidden or ngrams"):
            fields.features(wrong)
    assert fields.as_tuple(["a"]) == ("a",)
    with pytest.raises(ValueError, match="finite"):
        fields.json_value({"a": [float("nan")]})
    with pytest.raises(ValueError, match="cuda:0"):
        fields.device("gpu")
