"""Folders of new runs; the options themselves are tested through the commands that take them."""

from __future__ import annotations

from spannerlm import options


def test_new_runs_get_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "helpdesk-1").mkdir(parents=True)
    names = [str(options.next_free(name)) for name in ("helpdesk", "helpdesk", "../a b", "..")]
    assert names == ["runs/helpdesk-2", "runs/helpdesk-3", "runs/a-b-1", "runs/own-1"]
