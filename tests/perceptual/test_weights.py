"""Weights of the perceptual networks: the layouts that people pass around, downloads, and files of another kind."""

from __future__ import annotations

import functools
import http.server
import pickle
import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pmf.errors import UserError
from pmf.perceptual import convnext, lpips
from pmf.perceptual.convnext import create_convnext
from pmf.perceptual.distances import create_distances
from pmf.perceptual.lpips import Lpips
from pmf.perceptual.options import PerceptualConfig
from pmf.perceptual.weights import find_file, load_published, read_published, url_of
from tests.perceptual.published import published_lpips, random_convnext, random_lpips

KEY = "perceptual.lpips_weights"


@pytest.fixture(scope="module")
def lpips_tensors() -> dict[str, Tensor]:
    return published_lpips(random_lpips())


def assert_loads(files: list[Path], expected: dict[str, Tensor]) -> None:
    network = Lpips()
    load_published(network, KEY, [str(file) for file in files], lpips.NAMES)
    for name, tensor in published_lpips(network).items():
        assert torch.equal(tensor, expected[name]), name


def test_lpips_in_one_file_or_as_trunk_and_heads(lpips_tensors, tmp_path):
    save_file(lpips_tensors, tmp_path / "one.safetensors")
    assert_loads([tmp_path / "one.safetensors"], lpips_tensors)

    trunk = {name: tensor for name, tensor in lpips_tensors.items() if name.startswith("features.")}
    # as torchvision and the lpips package publish them
    torch.save({**trunk, "classifier.0.weight": torch.zeros(2, 3)}, tmp_path / "vgg16.pth")
    heads = {name.replace(".weight", ".model.1.weight"): lpips_tensors[name] for name in lpips_tensors.keys() - trunk}
    torch.save(heads, tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)  # as old as the published file
    assert_loads([tmp_path / "vgg16.pth", tmp_path / "vgg.pth"], lpips_tensors)


# timm's names to those of the transformers library, for the parts of one stage and block.
TRANSFORMERS = {
    "stem.0.": "convnextv2.embeddings.patch_embeddings.",
    "stem.1.": "convnextv2.embeddings.layernorm.",
    "head.norm.": "convnextv2.layernorm.",
    ".conv_dw.": ".dwconv.",
    ".mlp.fc1.": ".pwconv1.",
    ".mlp.fc2.": ".pwconv2.",
    ".mlp.grn.": ".grn.",
}


def transformers_name(name: str) -> str:
    name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.norm\.", r"stages.\1.blocks.\2.layernorm.", name)
    for ours, theirs in TRANSFORMERS.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"^stages\.(\d)\.blocks\.", r"convnextv2.encoder.stages.\1.layers.", name)
    return re.sub(r"^stages\.(\d)\.downsample\.", r"convnextv2.encoder.stages.\1.downsampling_layer.", name)


def test_convnext_of_the_transformers_library(tmp_path):
    expected = random_convnext().network.state_dict()
    theirs = {transformers_name(name): tensor for name, tensor in expected.items()}
    theirs = {name: t.reshape(1, 1, 1, -1) if ".grn." in name else t for name, t in theirs.items()}
    assert "convnextv2.encoder.stages.2.layers.5.grn.weight" in theirs
    assert "convnextv2.encoder.stages.1.downsampling_layer.0.weight" in theirs
    torch.save({**theirs, "classifier.weight": torch.zeros(10, 320)}, tmp_path / "pytorch_model.bin")
    ours = create_convnext("convnextv2_atto")
    load_published(ours, "perceptual.convnext_weights", [str(tmp_path / "pytorch_model.bin")], convnext.NAMES)
    for name, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_metas_files_hold_the_weights_one_level_down(tmp_path):
    torch.save({"model": {"stages.0.0.gamma": torch.ones(2)}, "epoch": 3}, tmp_path / "base.pt")
    assert read_published(tmp_path / "base.pt", KEY).keys() == {"stages.0.0.gamma"}


def test_frozen_networks_ask_for_no_gradient(tmp_path, lpips_tensors):
    save_file(lpips_tensors, tmp_path / "lpips.safetensors")
    config = PerceptualConfig(lpips=True, lpips_weights=[str(tmp_path / "lpips.safetensors")])
    said: list[str] = []
    distances = create_distances(config, torch.device("cpu"), said.append)
    network = distances.networks["lpips"]
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert said == [f"perceptual: LPIPS x 0.4; weights: {tmp_path / 'lpips.safetensors'}"]
    assert create_distances(PerceptualConfig(), torch.device("cpu"), said.append) is None


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("https://example.org/a/vgg.pth?download=1", "https://example.org/a/vgg.pth?download=1"),
        ("owner/some_model-v1.2", "https://huggingface.co/owner/some_model-v1.2/resolve/main/model.safetensors"),
        (
            "convnextv2_base.fcmae_ft_in22k_in1k",
            "https://huggingface.co/timm/convnextv2_base.fcmae_ft_in22k_in1k/resolve/main/model.safetensors",
        ),
        ("weights/vgg.pth", None),
        ("vgg.safetensors", None),
        ("/weights/model", None),
        ("../weights/model", None),
    ],
)
def test_where_a_source_is_downloaded_from(source, url):
    assert url_of(source) == url


def test_downloads_once_into_torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "site").mkdir()
    torch.save({"lin0.weight": torch.ones(2)}, tmp_path / "site" / "heads.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()  # a test that fails must end all the same
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            file = find_file(f"{url}/heads.pth", KEY)
        finally:
            server.shutdown()
    with pytest.raises(UserError) as error:
        find_file(f"{url}/nothing.pth", KEY)
    cached = tmp_path / "torch" / "hub" / "checkpoints"
    assert file == cached / "heads.pth"
    assert str(error.value) == (
        f"{KEY}: {url}/nothing.pth cannot be downloaded to this machine (<urlopen error [Errno 111] Connection "
        f"refused>); download it elsewhere and put it at {cached / 'nothing.pth'}"
    )
    assert [path.name for path in cached.iterdir()] == ["heads.pth"]
    assert torch.equal(read_published(find_file(f"{url}/heads.pth", KEY), KEY)["lin0.weight"], torch.ones(2))


class Malicious:
    """Unpickled without care, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bad_file(kind: str, folder: Path, tensors: dict[str, Tensor]) -> str:
    """A file of that kind; its name in the folder."""
    some = dict(list(tensors.items())[:4])
    match kind:
        case "truncated safetensors":
            save_file(some, folder / "a.safetensors")
            (folder / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-100])
            return "a.safetensors"
        case "truncated pickle":
            torch.save(some, folder / "a.pth")
            (folder / "a.pth").write_bytes((folder / "a.pth").read_bytes()[:-100])
            return "a.pth"
        case "empty":
            (folder / "a.pth").write_bytes(b"")
            return "a.pth"
        case "web page":
            (folder / "a.pth").write_text("\n<!DOCTYPE html><html>Sign in</html>")
            return "a.pth"
        case "code":
            (folder / "a.pth").write_bytes(pickle.dumps({"a": Malicious(folder / "written")}, protocol=2))
            return "a.pth"
        case "list":
            torch.save([torch.ones(2)], folder / "a.pth")
            return "a.pth"
        case "other network":
            save_file({"layer1.weight": torch.ones(2)}, folder / "a.safetensors")
            return "a.safetensors"
        case "other layout":
            torch.save(
                {**tensors, "features.0.weight": tensors["features.0.weight"].permute(2, 3, 1, 0)}, folder / "a.pth"
            )
            return "a.pth"
        case "no heads":
            torch.save({name: t for name, t in tensors.items() if name.startswith("features.")}, folder / "a.pth")
            return "a.pth"
    return "missing.safetensors"


BAD = {
    "missing": "there is no such file; download https://download.pytorch.org/models/vgg16-397923af.pth and https://",
    "truncated safetensors": "cannot be read as weights (",
    "truncated pickle": "cannot be read as weights (",
    "empty": "cannot be read as weights (it is empty); delete it and get it again",
    "web page": "is a web page, not weights; download the file that the page links to",
    "code": "holds more than tensors, or no tensors; no other pickle is loaded",
    "list": "holds a list instead of named tensors",
    "other network": "weights of another network: features.0.weight is missing",
    "other layout": "weights of another network: features.0.weight is (3, 3, 3, 64) there and (64, 3, 3, 3) here",
    "no heads": "weights of another network: heads.0 is missing",
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_no_weights_get_one_line(kind, lpips_tensors, tmp_path):
    file = tmp_path / bad_file(kind, tmp_path, lpips_tensors)
    with pytest.raises(UserError) as error:
        load_published(Lpips(), KEY, [str(file)], lpips.NAMES)
    assert str(error.value).startswith(f"{KEY}: {file}: {BAD[kind]}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "written").exists()


def test_an_unknown_convnext_lists_the_known_ones():
    with pytest.raises(UserError, match=r"is 'resnet50'; choose one of: convnextv2_atto, convnextv2_base"):
        create_convnext("resnet50")
