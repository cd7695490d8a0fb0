"""Loading models: quietly, and with errors that say what to do."""

from __future__ import annotations

import pytest
from tiny_models import KINDS, PROMPTS, make, rng

from spannerlm.backends import backend
from spannerlm.backends.huggingface import HuggingFaceModel
from spannerlm.errors import InputError, ModelError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_quietly_and_draws_the_same(kind, tmp_path, capfd):
    original = make(kind)
    original.model.save_pretrained(tmp_path)
    original.codec.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = backend("huggingface").load(str(tmp_path), device="cpu", max_new_tokens=6)
    assert capfd.readouterr() == ("", "")
    a, b = (m.generate(PROMPTS, 20, rng=rng())[1] for m in (original, loaded))
    assert a.responses == b.responses
    assert loaded.end == "</s>"
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="could not be loaded"):
        HuggingFaceModel.load(str(tmp_path))


def test_models_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr("spannerlm.backends.loading._hub_known", lambda: False)
    (tmp_path / "file").write_text("x")
    cases = {
        str(tmp_path / "nowhere"): "no such directory; check the path",
        str(tmp_path / "file"): "is a file; give the directory",
        str(tmp_path): "has no config.json",
        "nobody/no-such-model": "neither a local directory nor .* give its directory",
        "": "an empty name",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message):
            HuggingFaceModel.load(name)


def test_devices_and_dtypes_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="sees no CUDA device"):
        HuggingFaceModel.load(str(tmp_path), device="cuda")
    with pytest.raises(ModelError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:NUMBER'"):
        HuggingFaceModel.load(str(tmp_path), device="gpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="dtype: expected"):
        HuggingFaceModel.load(str(tmp_path), dtype="int4")
