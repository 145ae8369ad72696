"""Pushed to the hub and loaded from there, over HTTP to a server on this machine."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants, hf_api

import pmf
from tests.hub.local_hub import COMMIT, local_hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in place of huggingface.co, and an empty cache."""
    monkeypatch.setenv("HF_TOKEN", "may write")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with local_hub() as hub:
        hub.tokens.add("may write")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        yield hub


@pytest.fixture(scope="module")
def model(digits_run):
    return pmf.load(digits_run, device="cpu")


def test_a_model_that_was_pushed_is_loaded_by_its_name(hub, model, monkeypatch):
    assert model.push_to_hub("me/digits", private=True) == f"{hub.url}/me/digits/commit/{COMMIT}"
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("me", "digits")
    assert created.get("private") or created["visibility"] == "private"
    files = hub.repositories["me/digits"]
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "model_index.json",
        "pipeline.py",
        "weights/location.py",
    }
    assert 'pmf.load("me/digits")' in files["README.md"].decode()
    expected = model.generate([3, 7], num_images=6, output="tensor")
    assert torch.equal(pmf.load("me/digits", device="cpu").generate([3, 7], num_images=6, output="tensor"), expected)
    # Without network, what was loaded once is there.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(pmf.load("me/digits", device="cpu").generate([3, 7], num_images=6, output="tensor"), expected)


def test_diffusers_reads_the_files_that_its_options_brought(hub, model, monkeypatch, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: uv sync --extra hub")
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    model.push_to_hub("me/digits")
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        "me/digits",
        custom_pipeline="me/digits",
        trust_remote_code=True,
        revision=COMMIT,
        cache_dir=tmp_path / "elsewhere",
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # what follows needs no network
    assert pipe.to("cpu")([3, 7]).images[1].tobytes() == model.generate(7, first=1)[0].tobytes()
    assert (tmp_path / "elsewhere").resolve() in pipe.weights.folder.resolve().parents


def test_what_the_hub_refuses_is_told_in_a_line(hub, model, monkeypatch, tmp_path):
    hub.repositories["me/other"] = {"README.md": b"# Another kind of model"}
    large = {"model.safetensors": b"not to be downloaded"}
    hub.repositories["me/bert"] = {"config.json": b'{"model_type": "bert"}', **large}
    hub.repositories["me/later"] = {"config.json": b'{"library_name": "pmf", "format": 2}', **large}
    monkeypatch.chdir(tmp_path)

    def told(call) -> str:
        with pytest.raises(pmf.UserError) as error:
            call()
        return str(error.value)

    nowhere = "there is no such file or folder"
    assert told(lambda: pmf.load("me/none")).startswith(
        f"me/none: {nowhere}, and the Hugging Face hub has no such repository, or it is private; correct the name"
    )
    assert told(lambda: pmf.load("me/other")).startswith("me/other: this repository has no config.json, so")
    assert told(lambda: pmf.load("me/bert")).startswith(
        "me/bert: this repository holds another library's model by its config.json, so save_pretrained did not write it"
    )
    assert told(lambda: pmf.load("me/later")) == (
        "me/later: this repository has format 2, and this version of pmf reads format 1; update pmf"
    )
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert told(lambda: pmf.load("runs/a/b")) == f"runs/a/b: {nowhere}"
    assert told(lambda: model.push_to_hub("digits")) == (
        "push_to_hub: 'digits' is no name of a repository; give owner/name"
    )
    monkeypatch.setenv("HF_TOKEN", "may read")
    assert told(lambda: model.push_to_hub("me/digits")) == (
        "me/digits: nothing was pushed: the Hugging Face hub answers 401; log in with a token that may write "
        "(hf auth login)"
    )
    (tmp_path / "me" / "none").mkdir(parents=True)
    assert told(lambda: pmf.load("me/none")).startswith("me/none: is neither a run folder")  # it exists, and goes first
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    unreached = f"me/gone: {nowhere}, and the Hugging Face hub cannot be reached; "
    assert told(lambda: pmf.load("me/gone")).startswith(unreached)
