"""Official PyTorch files, from and to ours."""

from __future__ import annotations

import argparse
import os
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pmf.checkpoint.official.exports import export_pytorch
from pmf.checkpoint.official.families import network_without_values, rotations
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.official.names import PMF_JAX, official_name
from pmf.checkpoint.saved_weights import load_weights
from pmf.checkpoint.storage import Checkpoint, save_checkpoint
from pmf.config.sections import as_plain
from pmf.config.yaml_file import load_config
from pmf.convert import main
from pmf.errors import UserError
from pmf.flow.parameterization import ImagePrediction
from pmf.flow.sampler import generate
from pmf.generation.command import sample_folder
from pmf.generation.images import inference_network
from pmf.generation.sampling_request import SamplingRequest
from pmf.net.base import BaseNetwork
from pmf.net.sizes import SIZES, NetworkSize, create_network
from tests.launch import ROOT
from tests.official import (
    SIX,
    config_of,
    golden_size,
    jax_params,
    official_shapes,
    pytorch_file,
    without_v_head,
)
from tests.parity.golden import IMAGE, Golden

DIGITS = str(ROOT / "configs" / "digits.yaml")


def digits_network(seed: int = 0) -> torch.nn.Module:
    """The digits recipe's network with no weight left at zero."""
    generator = torch.Generator().manual_seed(seed)
    network = create_network("pmf_tiny_2", image_size=8, num_classes=10, channels=1, generator=generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network


def official_digits() -> dict[str, torch.Tensor]:
    """An official inference file of that network."""
    weights = {official_name(name): tensor for name, tensor in digits_network().state_dict().items()}
    return pytorch_file(without_v_head(weights), grid=4)


def run_convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["pmf.convert", *map(str, arguments)])
    main()


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("with_v_head", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("model", [pytest.param(m, marks=[pytest.mark.slow] * ("_b_" not in m)) for m in SIX])
def test_every_tensor_of_the_six_official_networks_has_its_place(tmp_path, model, with_v_head):
    shapes = official_shapes(model)
    # One value per tensor, at no cost of memory: what is mixed up shows, whatever the size.
    weights = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    weights = weights if with_v_head else without_v_head(weights)
    path = write(tmp_path / "official.pt", pytorch_file(weights, grid=16))
    config = config_of(model, image_size=512 if model.endswith("32") else 256)
    ours = load_official(path, config).weights
    with torch.device("meta"):
        network = create_network(model, image_size=config.data.image_size, num_classes=1000, inference=not with_v_head)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }
    back = {f"net.{official_name(name)}": tensor for name, tensor in ours.items()}
    assert {name: float(tensor.flatten()[0]) for name, tensor in back.items()} == {
        f"net.{name}": float(tensor.flatten()[0]) for name, tensor in weights.items()
    }


@pytest.mark.parametrize("model", [pytest.param(m, marks=[pytest.mark.slow] * ("_b_" not in m)) for m in SIX])
def test_every_tensor_of_the_six_jax_networks_has_its_place(model):
    shapes = official_shapes(model)
    tree = jax_params({name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())})
    theirs = {}

    def flatten(node, path):
        for key, value in node.items():
            flatten(value, (*path, key)) if isinstance(value, dict) else theirs.update({"/".join((*path, key)): value})

    flatten(tree, ())
    with torch.device("meta"):
        network = create_network(model, image_size=512 if model.endswith("32") else 256, num_classes=1000)
    own = network.state_dict()
    assert {PMF_JAX.name(name): tuple(PMF_JAX.store(name, tensor).shape) for name, tensor in own.items()} == {
        name: array.shape for name, array in theirs.items()
    }
    order = list(shapes)
    for name, tensor in own.items():
        array = torch.from_numpy(theirs[PMF_JAX.name(name)])
        assert PMF_JAX.restore(name, array).shape == tensor.shape
        assert order[int(array.flatten()[0])] == official_name(name)


def test_the_layouts_are_undone_exactly():
    for name, tensor in digits_network().state_dict().items():
        assert torch.equal(PMF_JAX.restore(name, PMF_JAX.store(name, tensor)), tensor)


def test_a_file_of_real_size_keeps_every_value(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(shape, generator=generator)
        for name, shape in official_shapes("pmf_b_16").items()
        if not name.startswith("v_")
    }
    path = write(tmp_path / "pMF-B-16.pt", pytorch_file(weights, grid=16))
    saved = load_official(path, load_config(ROOT / "configs" / "pmf_b_16.yaml"))
    assert sum(tensor.numel() for tensor in saved.weights.values()) == 118_234_240
    assert all(torch.equal(saved.weights[name], weights[official_name(name)]) for name in saved.weights)
    assert saved.config.sampling.omega == 8.5
    assert saved.source.startswith("pMF-B-16.pt ")


def test_images_from_an_official_file_are_the_official_images(tmp_path, monkeypatch):
    golden, weights = Golden("F_generate"), Golden("B_params").group("params/")
    name = sorted(golden.meta["cases"])[-1]
    net, case = golden.meta["net"], golden.meta["cases"][name]
    monkeypatch.setitem(SIZES, "golden", golden_size(net))
    config = config_of("golden", net["input_size"], net["num_classes"])
    grid = net["input_size"] // net["patch_size"]
    path = write(tmp_path / "official.pt", pytorch_file(without_v_head(weights), grid))
    saved = load_official(path, config)
    network = inference_network(config, saved.weights, torch.device("cpu"), where="test")
    images = generate(
        network,
        ImagePrediction(),
        golden.image("z1_standard_normal") * case["noise_scale"],
        golden[f"{name}/labels"].long(),
        omega=case["omega"],
        interval=(case["t_min"], case["t_max"]),
        num_steps=case["num_steps"],
    )
    torch.testing.assert_close(images, golden.image(f"{name}/images"), atol=IMAGE, rtol=0)


def save_run(folder: Path) -> Path:
    config = load_config(DIGITS)
    tensors = {
        "model": digits_network(1).state_dict(),
        "ema_10": digits_network(2).state_dict(),
    }
    save_checkpoint(folder, Checkpoint(tensors=tensors, state={"step": 1, "config": as_plain(config)}), keep=1)
    return folder


def test_export_and_import_give_back_the_same_bits_and_the_same_images(tmp_path, monkeypatch, capsys):
    run = save_run(tmp_path / "run")
    exported, again = tmp_path / "official.pt", tmp_path / "again.safetensors"
    run_convert(monkeypatch, "export", "--checkpoint", run, "--output", exported)
    run_convert(monkeypatch, "import", "--checkpoint", exported, "--config", DIGITS, "--output", again)
    assert "with the v head" in capsys.readouterr().out
    ours, theirs = load_weights(run, None), load_weights(again, None)
    assert ours.config == theirs.config == load_config(DIGITS)
    assert ours.weights.keys() == theirs.weights.keys()
    for name, tensor in ours.weights.items():
        assert torch.equal(tensor.view(torch.int32), theirs.weights[name].view(torch.int32)), name
    sources = {"run": (run, None), "again": (again, None), "exported": (exported, Path(DIGITS))}
    for name, (checkpoint, recipe) in sources.items():
        request = SamplingRequest(
            checkpoint=checkpoint, recipe=recipe, num_images=3, labels="all", seed=0, ema=None, overrides={}
        )
        sample_folder(request, tmp_path / "images" / name)
    for image in ("000000.png", "000001.png", "000002.png"):
        assert len({(tmp_path / "images" / name / image).read_bytes() for name in sources}) == 1


def test_an_exported_inference_file_is_what_the_official_module_holds(tmp_path, monkeypatch):
    exported = tmp_path / "official.pt"
    run = save_run(tmp_path / "run")
    run_convert(monkeypatch, "export", "--checkpoint", run, "--ema", "online", "--inference", "--output", exported)
    written, expected = torch.load(exported), official_digits()
    assert written.keys() == expected.keys()
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    # two ways to the same float32 angles: one unit in the last place of cos and sin
    torch.testing.assert_close(written["net.rope_freqs"], expected["net.rope_freqs"], atol=1e-6, rtol=0)
    weights = digits_network(1).state_dict()
    assert torch.equal(written["net.omega_tokens"], weights["guidance_tokens"])


def test_our_table_of_rotations_is_the_official_one():
    golden = Golden("A1_pmfdit_forward")
    net = golden.meta["net"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "golden", golden_size(net))
        table = rotations(network_without_values(config_of("golden", net["input_size"])))
    official = torch.complex(golden["rope_freqs/re"], golden["rope_freqs/im"])
    torch.testing.assert_close(table, official, atol=1e-6, rtol=0)  # one unit in the last place of cos and sin


def test_an_architecture_without_published_files_is_told(monkeypatch, tmp_path):
    class Other(BaseNetwork):
        def __init__(self, **_numbers) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

    monkeypatch.setitem(SIZES, "other", NetworkSize(Other, patch_size=2))
    path = write(tmp_path / "w.pt", {"weight": torch.tensor([1.0, 2.0])})
    saved = load_official(path, config_of("other", 8))  # by our names
    assert saved.weights["weight"].tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match=r"model.name is other: there are no official files of its architecture"):
        export_pytorch(tmp_path / "out.pt", saved, inference=True)
    assert not (tmp_path / "out.pt").exists()


def damage(change):
    def apply(path: Path) -> None:
        content = official_digits()
        change(content)
        torch.save(content, path)

    return apply


def edit_bytes(change):
    def apply(path: Path) -> None:
        torch.save(official_digits(), path)
        path.write_bytes(change(path.read_bytes()))

    return apply


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint_1/_METADATA", "{}")


QUERY = "net.shared_blocks.0.attn.q_proj._flax_linear.weight"
FAULTS = {
    "truncated": (edit_bytes(lambda content: content[:-1000]), "is no whole PyTorch file .*; download it again"),
    "flipped": (edit_bytes(flip_a_bit), "is damaged .* does not match its checksum.; download it again"),
    "html": (lambda path: path.write_text("<!DOCTYPE html>log in"), "this is a web page .*; log in and download"),
    "empty": (lambda path: path.write_bytes(b""), "this file is empty .*; download it again"),
    "zip": (write_zip, "is a zip archive but no PyTorch file; unzip it"),
    "missing": (
        damage(lambda c: c.pop(QUERY)),
        f"not the weights of pmf_tiny_2: {QUERY} is missing; give the --config",
    ),
    "shape": (
        damage(lambda c: c.update({QUERY: torch.zeros(64, 32)})),
        rf"{QUERY} is \(64, 32\) there and \(64, 64\) here",
    ),
    "extra": (damage(lambda c: c.update({"net.bias": torch.zeros(1)})), "net.bias is unknown here"),
    "no prefix": (damage(lambda c: c.update(pos_embed=c.pop("net.pos_embed"))), "net.pos_embed is missing; pos_embed"),
    "half a v head": (
        damage(lambda c: c.update({"net.v_final_layer.norm.weight": torch.ones(64)})),
        r"net.v_heads.0.attn_scale is missing; .* and \d+ more",
    ),
    "rotations": (
        damage(lambda c: c["net.rope_freqs"].mul_(1j)),
        "net.rope_freqs is not the rotation of pmf_tiny_2 at 8 pixels",
    ),
    "nested": (damage(lambda c: c.update(model={})), "'model' is a dict; official files map names to tensors"),
    "list": (lambda path: torch.save([1], path), "holds a list; official files map names to tensors"),
    "full pickle": (
        damage(lambda c: c.update(arguments=argparse.Namespace())),
        r"holds more than tensors \(argparse.Namespace\); if you trust",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_official_file_of_the_model_is_one_line(tmp_path, fault):
    spoil, message = FAULTS[fault]
    path = tmp_path / "official.pt"
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        load_official(path, load_config(DIGITS))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


class Payload:
    """A pickle that would create a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_runs_nothing_unless_told(tmp_path):
    path = write(tmp_path / "official.pt", official_digits() | {"payload": Payload(tmp_path / "made")})
    with pytest.raises(UserError, match=r"\(posix.mkdir\)"):
        load_official(path, load_config(DIGITS))
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="'payload' is a NoneType"):
        load_official(path, load_config(DIGITS), allow_pickle=True)
    assert (tmp_path / "made").exists()


class Weights(dict):
    """A mapping of a class that only its own code base knows."""


def test_a_trusted_pickle_of_weights_loads(tmp_path):
    path = write(tmp_path / "official.pt", Weights(official_digits()))
    with pytest.raises(UserError, match="holds more than tensors"):
        load_official(path, load_config(DIGITS))
    weights = load_official(path, load_config(DIGITS), allow_pickle=True).weights
    assert torch.equal(weights["guidance_tokens"], digits_network().state_dict()["guidance_tokens"])


def test_what_does_not_apply_is_refused(tmp_path):
    path = write(tmp_path / "official.pt", official_digits())
    with pytest.raises(UserError, match="holds one set of weights; leave out --ema 10"):
        load_official(path, load_config(DIGITS), "10")
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_official(tmp_path / "none.pt", load_config(DIGITS))
    with pytest.raises(UserError, match="is ours and carries its config; --config is for official checkpoints"):
        load_official(save_run(tmp_path / "run"), load_config(DIGITS))
    with pytest.raises(UserError, match="is no JAX checkpoint and holds no checkpoint_STEP"):
        load_official(tmp_path, load_config(DIGITS))


@pytest.mark.skipif(find_spec("flax") is not None, reason="flax is installed; this is about its absence")
def test_a_missing_extra_is_named(tmp_path):
    (tmp_path / "checkpoint_1").mkdir()
    with pytest.raises(
        UserError, match="JAX checkpoints need flax and orbax; install them: uv sync --extra jax, or pip "
    ):
        load_official(tmp_path, load_config(DIGITS))


def test_a_converted_file_carries_its_recipe(tmp_path, monkeypatch):
    path, output = write(tmp_path / "official.pt", official_digits()), tmp_path / "ours.safetensors"
    run_convert(monkeypatch, "import", "--checkpoint", path, "--config", DIGITS, "--output", output)
    with safe_open(output, "pt") as file:
        assert '"max_steps": 800' in file.metadata()["config"]
    assert not [name for name in load_weights(output, None).weights if name.startswith("v_")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["official.pt", "ours.safetensors"]
