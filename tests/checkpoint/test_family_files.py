"""PyTorch files of iMF and MeanFlow, and FD-Loss's of pMF and iMF."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmf.checkpoint.official.exports import export_pytorch
from pmf.checkpoint.official.families import network_without_values
from pmf.checkpoint.official.layouts import load_official
from pmf.checkpoint.saved_weights import SavedWeights, load_weights
from pmf.config.sections import Config
from pmf.config.yaml_file import load_config
from pmf.data.codec import create_codec
from pmf.errors import UserError
from pmf.generation.images import inference_network
from pmf.net.base import BaseNetwork
from pmf.net.interface import Conditions
from pmf.net.sizes import SIZES
from tests.checkpoint.golden_networks import OfficialNetwork
from tests.latents import write_autoencoder
from tests.launch import ROOT
from tests.official import (
    DIT,
    IMF,
    config_of,
    dit_shapes,
    fd_loss_file,
    imf_file,
    official_imf_shapes,
    official_shapes,
    one_number_each,
    pytorch_file,
    without_v_head,
)
from tests.parity.golden import RELATIVE, Golden

CPU = torch.device("cpu")
# Made once; the larger ones take a second.
NETWORKS: dict[tuple[str, int, int], BaseNetwork] = {}


@pytest.fixture
def official(request, monkeypatch) -> OfficialNetwork:
    network = OfficialNetwork(request.param)
    monkeypatch.setitem(SIZES, "golden", network.size)
    return network


imf_and_meanflow = pytest.mark.parametrize("official", ["imf", "meanflow"], indirect=True)
of_imf = pytest.mark.parametrize("official", ["imf"], indirect=True)
of_meanflow = pytest.mark.parametrize("official", ["meanflow"], indirect=True)


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def numbers_of(tensors: dict[str, torch.Tensor]) -> list[tuple[float, tuple[int, ...]]]:
    """The one number of each tensor and its shape without axes of one, in the order of the numbers."""
    return sorted((float(t.flatten()[0]), tuple(n for n in t.shape if n != 1)) for t in tensors.values())


@pytest.fixture
def load_all(monkeypatch, tmp_path):
    """Loads a file of tensors, and compares names, shapes and numbers of all with our network's and theirs."""
    # A second for each network; values are checked elsewhere.
    monkeypatch.setattr("pmf.checkpoint.official.layouts.require_finite", lambda *_, **__: None)

    def load(content, config: Config, weights, key: str | None = None) -> dict[str, torch.Tensor]:
        loaded = load_official(write(tmp_path / "w.pth", content), config, key=key).weights
        kind = config.model.name, config.data.image_size, config.data.num_classes
        if kind not in NETWORKS:
            NETWORKS[kind] = network_without_values(config)
        network = NETWORKS[kind]
        whole = any(name.startswith("v_") for name in weights)
        own = {name: t.shape for name, t in network.state_dict().items() if whole or not network.is_training_only(name)}
        assert {name: tensor.shape for name, tensor in loaded.items()} == own
        assert numbers_of(loaded) == numbers_of(weights)
        return loaded

    return load


@pytest.mark.parametrize("inference", [True, False], ids=["inference", "training"])
@pytest.mark.parametrize("model", IMF)
def test_every_tensor_of_imfs_official_networks_has_its_place(model, inference, load_all):
    shapes = official_imf_shapes(model)
    weights = one_number_each(shapes)
    content = imf_file(weights) if inference else {f"net.{name}": tensor for name, tensor in weights.items()}
    assert len([name for name in content if "v_final_layer" in name]) == 3
    config = load_config(ROOT / "configs" / f"{model}.yaml")
    loaded = load_all(content, config, without_v_head(weights) if inference else weights)
    order = list(shapes)
    for ours, theirs in {
        "guidance_tokens": "omega_tokens",
        "patch_embedding.projection.weight": "x_embedder.proj.weight",
        "shared_blocks.3.mlp.up.weight": "shared_blocks.3.mlp.w3._flax_linear.weight",
        "shared_blocks.2.attention.value.weight": "shared_blocks.2.attn.v_proj._flax_linear.weight",
        "u_blocks.7.attention.key_norm.weight": "u_heads.7.attn.k_norm.weight",
        "time_embedding.output.bias": "h_embedder.mlp.2._flax_linear.bias",
        "interval_end_embedding.hidden.weight": "cfg_t_end_embedder.mlp.0._flax_linear.weight",
    }.items():
        assert order[int(loaded[ours].flatten()[0])] == theirs


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", DIT)
def test_every_tensor_of_meanflows_networks_has_its_place(size, patch, load_all):
    depth, width, totals = DIT[size]
    shapes = dit_shapes(depth, width, patch)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == totals[(2, 4, 8).index(patch)]
    weights = one_number_each(shapes)
    config = config_of(f"dit_{size}_{patch}", 256, kind="latents")
    loaded = load_all(weights, config, weights)
    order = list(shapes)
    for ours, theirs in {
        "time_embedding.hidden.bias": "t_embedder.mlp.0.bias",
        "duration_embedding.output.weight": "h_embedder.mlp.2.weight",
        "blocks.11.attention.output.weight": "blocks.11.attn.proj.weight",
        "blocks.1.mlp.down.bias": "blocks.1.mlp.fc2.bias",
        "blocks.10.modulation.weight": "blocks.10.adaLN_modulation.1.weight",
        "output.modulation.bias": "final_layer.adaLN_modulation.1.bias",
        "output.linear.weight": "final_layer.linear.weight",
    }.items():
        assert order[int(loaded[ours].flatten()[0])] == theirs


@pytest.mark.parametrize("with_v_head", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("model", ["pmf_b_16", "pmf_h_32", "imf_b_2", "imf_xl_2"])
def test_every_tensor_of_fd_losses_networks_has_its_place(model, with_v_head, load_all):
    shapes = official_imf_shapes(model) if model in IMF else official_shapes(model)
    shapes = {name: shape for name, shape in shapes.items() if with_v_head or not name.startswith("v_")}
    weights, average = one_number_each(shapes), one_number_each(shapes, first=10_000)
    content = {"model": fd_loss_file(weights), "model_ema1": fd_loss_file(average), "epoch": 3}
    config = load_config(ROOT / "configs" / f"{model}.yaml")
    loaded = load_all(content, config, average, key="model_ema1")
    order = list(shapes)
    for ours, theirs in {
        "u_output.linear.weight": "u_final_layer.linear._flax_linear.weight",
        "class_tokens": "class_tokens",
        "shared_blocks.1.mlp.gate.weight": "shared_blocks.1.mlp.w1._flax_linear.weight",
    }.items():
        assert order[int(loaded[ours].flatten()[0]) - 10_000] == theirs


@imf_and_meanflow
def test_outputs_are_those_of_the_official_network(official, tmp_path):
    content = imf_file(official.weights) if official.name == "imf" else official.weights
    weights = load_official(write(tmp_path / "w.pth", content), official.config()).weights
    assert official.u_error(weights) < RELATIVE
    wrapped = {f"net.{name.removeprefix('net.')}": tensor for name, tensor in content.items()}
    same = load_official(write(tmp_path / "wrapped.pth", wrapped), official.config()).weights
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())
    # The comparison can fail.
    weights["time_embedding.output.bias"] = weights["time_embedding.output.bias"] + 0.1
    assert official.u_error(weights) > 100 * RELATIVE


@pytest.mark.parametrize("official", ["pmf", "imf"], indirect=True)
def test_an_fd_loss_file_is_the_network_that_the_official_file_is(official, tmp_path):
    theirs = write(tmp_path / "fd.pth", {"model_ema": fd_loss_file(without_v_head(official.weights))})
    weights = load_official(theirs, official.config()).weights
    same = {f"net.{name}": tensor for name, tensor in without_v_head(official.weights).items()}
    expected = load_official(write(tmp_path / "official.pt", same), official.config()).weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@of_imf
def test_an_fd_loss_file_of_two_sets_of_weights_wants_a_key(official, tmp_path):
    content = {name: fd_loss_file(official.weights) for name in ("model", "model_ema1")}
    with pytest.raises(UserError, match="choose with --key one of: model, model_ema1"):
        load_official(write(tmp_path / "w.pth", content), official.config())


def rotations(golden: Golden) -> torch.Tensor:
    return torch.complex(golden["rope_freqs/re"], golden["rope_freqs/im"])


@of_imf
def test_imfs_table_of_rotations_is_compared_and_left_out(official, tmp_path):
    content = imf_file(official.weights)
    table = rotations(official.golden)
    weights = load_official(write(tmp_path / "w.pth", content | {"net.rope_freqs": table}), official.config()).weights
    assert not any("rope" in name for name in weights)
    for wrong in (table.flip(0), table[20:]):  # of patches alone, as pMF's
        path = write(tmp_path / "wrong.pth", content | {"net.rope_freqs": wrong})
        with pytest.raises(UserError, match=r"net.rope_freqs is not the rotation of golden at 128 pixels"):
            load_official(path, official.config())


@of_meanflow
def test_the_fixed_positions_are_compared_and_left_out(official, tmp_path):
    table = official.golden["pos_embed_fixed"][None]
    for prefix in ("", "net."):
        content = {f"{prefix}{name}": tensor for name, tensor in (official.weights | {"pos_embed": table}).items()}
        assert official.u_error(load_official(write(tmp_path / "w.pt", content), official.config()).weights) < RELATIVE
    path = write(tmp_path / "wrong.pt", official.weights | {"pos_embed": table.flip(1)})
    with pytest.raises(UserError, match=r"pos_embed is not the position table of golden at 128 pixels"):
        load_official(path, official.config())


def change(**changes):
    """A fault: the tensors under these names (dots as two underscores) are replaced, or None removes them."""

    def apply(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in changes.items():
            content.pop(name.replace("__", "."), None)
            if tensor is not None:
                content[name.replace("__", ".")] = tensor
        return content

    return apply


FAULTS = [
    ("imf", change(net__class_tokens=None), r"net.class_tokens is missing"),
    ("imf", change(net__class_tokens=torch.ones(1, 8, 48)), r"class_tokens is \(1, 8, 48\) there and \(8, 48\) here"),
    ("imf", change(net__pos_embed=torch.ones(1, 84, 48)), r"net.pos_embed is unknown here"),
    ("imf", change(net__v_final_layer__norm__weight=None), r"net.v_heads.0.attn_scale is missing; .* and \d+ more"),
    ("imf", change(net__v_final_layer__norm__weight=torch.ones(3)), r"norm.weight is \(3,\) there and \(48,\) here"),
    ("imf", change(net__omega_tokens=torch.full((4, 48), torch.nan)), r"omega_tokens holds 192 of 192 values that"),
    ("meanflow", change(x_embedder__proj__bias=None), r"x_embedder.proj.bias is missing"),
    ("meanflow", change(blocks__2__attn__qkv__bias=torch.ones(144)), r"blocks.2.attn.qkv.bias is unknown here"),
    ("meanflow", change(blocks__1__mlp__fc1__bias=torch.ones(48)), r"fc1.bias is \(48,\) there and \(192,\) here"),
    (
        "imf",
        change(net__blocks__0__mlp__w12__weight=torch.ones(2, 2)),
        r"a JiT network \(net.blocks.0.mlp.w12.wei",
    ),
    ("pmf", change(net__in_context_posemb=torch.ones(1, 32, 8)), r"a JiT network \(net.in_context_posemb\); what can"),
    ("meanflow", change(net__blocks__0__mlp__w12__bias=torch.ones(2)), r"holds a JiT network"),
]


@pytest.mark.parametrize(("official", "spoil", "message"), FAULTS, indirect=["official"])
def test_what_is_no_file_of_the_network_is_one_line(official, spoil, message, tmp_path):
    content = {
        "pmf": lambda: pytorch_file(without_v_head(official.weights), grid=8),
        "imf": lambda: imf_file(official.weights),
        "meanflow": lambda: dict(official.weights),
    }[official.name]()
    path = write(tmp_path / "w.pth", spoil(content))
    with pytest.raises(UserError, match=message) as error:
        load_official(path, official.config())
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_file_of_another_size_names_what_differs_first(tmp_path):
    path = write(tmp_path / "MiT_M_2.pth", imf_file(one_number_each(official_imf_shapes("imf_m_2"))))
    with pytest.raises(UserError) as error:
        load_official(path, load_config(ROOT / "configs" / "imf_b_2.yaml"))
    first = "net.shared_blocks.10.attn.k_norm.weight is unknown here; net.shared_blocks.10.attn.k_proj"
    assert str(error.value).startswith(f"{path}: not the weights of imf_b_2: {first}")
    assert str(error.value).endswith("more; give the --config of the model that it is")


def test_pmfs_idle_v_output_is_left_out_too(tmp_path):
    weights = one_number_each(official_shapes("pmf_b_16"))
    idle = {name: tensor for name, tensor in weights.items() if name.startswith("v_final_layer")}
    content = {f"net.{name}": tensor for name, tensor in (without_v_head(weights) | idle).items()}
    loaded = load_official(write(tmp_path / "w.pt", content), load_config(ROOT / "configs" / "pmf_b_16.yaml")).weights
    assert numbers_of(loaded) == numbers_of(without_v_head(weights))


def saved_from(official: OfficialNetwork, content: dict[str, torch.Tensor], tmp_path: Path) -> SavedWeights:
    return load_official(write(tmp_path / "first.pth", content), official.config())


@of_imf
@pytest.mark.parametrize("inference", [True, False], ids=["inference", "training"])
def test_imf_there_and_back_is_the_same(official, inference, tmp_path):
    whole = {f"net.{name}": tensor for name, tensor in official.weights.items()}
    saved = saved_from(official, whole, tmp_path)
    export_pytorch(tmp_path / "second.pth", saved, inference=inference)
    written, expected = torch.load(tmp_path / "second.pth"), imf_file(official.weights) if inference else whole
    assert written.keys() == expected.keys()  # the official module loads it strictly: it has no buffers
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    again = load_official(tmp_path / "second.pth", official.config()).weights
    assert all(torch.equal(saved.weights[name], tensor) for name, tensor in again.items())
    assert any(name.startswith("v_") for name in again) == (not inference)


@of_imf
def test_without_a_v_head_the_idle_layer_is_written_as_before_training(official, tmp_path):
    saved = saved_from(official, imf_file(official.weights), tmp_path)
    export_pytorch(tmp_path / "second.pth", saved, inference=False)
    written = torch.load(tmp_path / "second.pth")
    assert written.keys() == imf_file(official.weights).keys()
    assert written["net.v_final_layer.norm.weight"].tolist() == [1.0] * 48
    assert float(written["net.v_final_layer.linear._flax_linear.weight"].abs().max()) == 0
    again = load_official(tmp_path / "second.pth", official.config()).weights
    assert again.keys() == saved.weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.weights.items())


@of_meanflow
def test_meanflow_there_and_back_is_the_same(official, tmp_path):
    saved = saved_from(official, official.weights, tmp_path)
    export_pytorch(tmp_path / "second.pt", saved, inference=True)
    written = torch.load(tmp_path / "second.pt")
    assert written.keys() == {*official.weights, "pos_embed"}
    assert all(torch.equal(written[name], tensor) for name, tensor in official.weights.items())
    # sines and cosines in float64, then rounded: one unit in the last place
    torch.testing.assert_close(written["pos_embed"][0], official.golden["pos_embed_fixed"], atol=1e-6, rtol=0)
    again = load_official(tmp_path / "second.pt", official.config()).weights
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.weights.items())


RECIPE = """
model: {name: golden}
objective: {name: METHOD}
perceptual: {lpips: false, convnext: false}
data: {kind: latents, path: nowhere, image_size: 128, num_classes: 10, autoencoder: FOLDER}
training: {max_steps: 1}
ema: {half_lives_kimg: [], decays: [0.9999]}
sampling: {omega: 1.0, interval: [0.0, 1.0], ema: 0.9999}
"""


@imf_and_meanflow
def test_the_commands_take_the_official_file(official, tmp_path, monkeypatch, capsys):
    method = official.name
    autoencoder = write_autoencoder(tmp_path / "autoencoder")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("METHOD", method).replace("FOLDER", str(autoencoder)))
    content = imf_file(official.weights) if method == "imf" else official.weights
    source = ("--checkpoint", write(tmp_path / "w.pth", content), "--config", recipe)

    def call(module: str, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        importlib.import_module(module).main()

    call("pmf.convert", "import", *source, "--output", tmp_path / "w.safetensors")
    ending = " tensors, without the v head\n" if method == "imf" else " tensors\n"
    assert capsys.readouterr().out.endswith(ending)
    made = ("--num-images", 20, "--noise", "official", "--labels", "blocks", "--seed", 42)
    call("eval", "sample", *source, *made, "--output", tmp_path / "direct")
    call("eval", "sample", "--checkpoint", tmp_path / "w.safetensors", *made, "--output", tmp_path / "converted")
    images = [(tmp_path / place / "000003.png").read_bytes() for place in ("direct", "converted")]
    assert images[0] == images[1]
    # By hand: the official noise, label 3 // 2, one step with u, and the decoder.
    config, weights = load_config(recipe), load_weights(tmp_path / "w.safetensors", None).weights
    network = inference_network(config, weights, CPU, where="test")
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3 ^ 42))
    ones, zeros = torch.ones(1), torch.zeros(1)
    conditions = Conditions(t=ones, h=ones, omega=ones, t_min=zeros, t_max=ones, labels=torch.tensor([1]))
    with torch.no_grad():
        image = create_codec(config.data).decode(z - network(z, conditions, heads="u").u)[0]
    written = np.asarray(Image.open(tmp_path / "direct" / "000003.png"), int)
    # in another batch a value on the edge between two bytes may fall to the other side
    assert np.abs(written - image.permute(1, 2, 0).numpy()).max() <= 1
    assert written.std() > 1
