"""Golden A, G, H (forward, every stage, and the derivative) and L (parameter counts, initialisation)."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import Tensor

from pmf.checkpoint.official.names import official_name
from pmf.flow.derivative import DERIVATIVES
from pmf.flow.parameterization import ImagePrediction
from pmf.net.imf_transformer import ImfTransformer
from pmf.net.interface import Conditions
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import SIZES, create_network
from pmf.net.token_transformer import NUM_CONDITION_TOKENS
from tests.parity.golden import (
    RELATIVE,
    Golden,
    build_dit,
    build_imf,
    build_network,
    golden_path,
    imf_name,
    relative_error,
)

X = ImagePrediction()


def load(name: str) -> tuple[Golden, PixelTransformer, Tensor, Conditions]:
    golden = Golden(name)
    network = build_network(golden.meta["net"], golden.group("params/"), golden.meta.get("mlp_hidden"))
    return golden, network, golden.image("in/x"), conditions_of(golden)


def conditions_of(golden: Golden) -> Conditions:
    """As they are stored; ones for what the official network knows nothing of."""
    names = {"t": "t", "h": "h", "omega": "w", "t_min": "t_min", "t_max": "t_max"}
    absent = torch.ones_like(golden["in/t"])
    stored = golden.group("in/")
    numbers = {ours: stored.get(theirs, absent) for ours, theirs in names.items()}
    return Conditions(**numbers, labels=golden["in/y"].long())


@pytest.mark.parametrize("name", ["A1_pmfdit_forward", "A2_pmfdit_forward", "A3_hsdp_forward_jvp"])
def test_both_heads_equal_the_official_network(name):
    golden, network, z, conditions = load(name)
    outputs = network(z, conditions)
    assert relative_error(X.to_velocity(outputs.u, z, conditions.t), golden.image("out/u")) < RELATIVE
    assert relative_error(X.to_velocity(outputs.v, z, conditions.t), golden.image("out/v")) < RELATIVE


@pytest.mark.parametrize("name", ["A1_pmfdit_forward", "A2_pmfdit_forward"])
def test_every_stage_equals_the_official_network(name):
    golden, network, z, conditions = load(name)
    stages = {"mid/sequence": network._embed(z, conditions.h, conditions)}
    stages |= {
        "mid/x_embedder": network.patch_embedding(z),
        "mid/h_embedder": network.time_embedding(conditions.h),
        "mid/omega_embedder": network.guidance_embedding(1 - 1 / conditions.omega),
        "mid/cfg_t_start_embedder": network.interval_start_embedding(conditions.t_min),
        "mid/cfg_t_end_embedder": network.interval_end_embedding(conditions.t_max),
        "mid/y_embedder": network.label_embedding(conditions.labels),
    }

    def record(key):
        return lambda _module, _inputs, output: stages.update({key: output})

    hooks = [
        module.register_forward_hook(record(f"mid/{official_name(name)}"))
        for name, module in network.named_modules()
        if name.rpartition(".")[0] in ("shared_blocks", "u_blocks", "v_blocks")
    ]
    network(z, conditions)
    for hook in hooks:
        hook.remove()
    recorded = [key for key in golden.arrays if key.startswith("mid/")]
    assert len(recorded) >= 9
    for key in recorded:
        assert relative_error(stages[key], golden[key]) < RELATIVE, key


@pytest.mark.parametrize("name", ["A1_pmfdit_forward", "A2_pmfdit_forward"])
def test_rotation_angles_equal_the_official_table(name):
    golden, network, _, _ = load(name)
    # cos and sin of float32 angles up to the grid's side: one unit in the last place.
    torch.testing.assert_close(network.rotation.cos[NUM_CONDITION_TOKENS:], golden["rope_freqs/re"], atol=1e-6, rtol=0)
    torch.testing.assert_close(network.rotation.sin[NUM_CONDITION_TOKENS:], golden["rope_freqs/im"], atol=1e-6, rtol=0)


def test_both_heads_of_imf_equal_the_official_network():
    golden = Golden("G_imf_forward")
    network = build_imf(golden.meta["net"], golden.group("params/"))
    outputs = network(golden.image("in/x"), conditions_of(golden))
    assert relative_error(outputs.u, golden.image("out/u")) < RELATIVE
    assert relative_error(outputs.v, golden.image("out/v")) < RELATIVE
    # Angles reach the number of tokens, of which float32 leaves 2^-24; and as much again by a frequency's rounding.
    slack = 2**-23 * network.rotation.cos.shape[0]
    torch.testing.assert_close(network.rotation.cos, golden["rope_freqs/re"], atol=slack, rtol=0)
    torch.testing.assert_close(network.rotation.sin, golden["rope_freqs/im"], atol=slack, rtol=0)


def test_the_diffusion_transformer_equals_the_official_network():
    golden = Golden("H_meanflow_forward")
    network = build_dit(golden.meta["net"], golden.group("params/"))
    assert relative_error(network(golden.image("in/x"), conditions_of(golden)).u, golden.image("out/u")) < RELATIVE
    # One unit in the last place of numbers up to 1.
    torch.testing.assert_close(network.position_embedding, golden["pos_embed_fixed"], atol=2**-23, rtol=0)


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivative_equals_jax_jvp(derivative):
    golden, network, z, conditions = load("A3_hsdp_forward_jvp")
    u, _, du_dt = DERIVATIVES[derivative](network, X, z, conditions, (golden.image("tangent/x"), 0.0, 1.0))
    assert relative_error(u, golden.image("out/u")) < RELATIVE
    assert relative_error(du_dt, golden.image("out/du")) < RELATIVE
    assert not du_dt.requires_grad


@pytest.mark.parametrize("name", [name for name in SIZES if re.fullmatch("pmf_[blh]_(16|32)", name)])
@pytest.mark.parametrize("inference", [False, True])
def test_names_shapes_and_counts_are_the_official_ones(name, inference):
    # The official H models train from the branch that rounds the SwiGLU width up.
    table = json.loads(golden_path(f"L_model_shapes_{'hsdp' if '_h_' in name else 'main'}.json").read_text())
    golden = table[f"pmfDiT_{name[4:].upper()}" + ("/eval" if inference else "")]
    image_size = 512 if name.endswith("32") else 256
    with torch.device("meta"):
        network = create_network(name, image_size=image_size, num_classes=1000, inference=inference)
    assert sum(p.numel() for p in network.parameters()) == golden["total"]
    if "shapes" in golden:
        ours = {official_name(key): list(value.shape) for key, value in network.state_dict().items()}
        assert ours == golden["shapes"]


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("imf_") and "tiny" not in name])
@pytest.mark.parametrize("inference", [False, True])
def test_names_shapes_and_counts_of_imf_are_the_official_ones(name, inference):
    table = json.loads(golden_path("L_model_shapes_imf.json").read_text())
    golden = table[f"imfDiT_{name[4:].upper()}"]
    shapes, total = golden["shapes"], golden["total"]
    if inference:  # The official network for inference keeps the layer behind the v head that it does not have.
        unused = {key: shape for key, shape in shapes.items() if key.startswith("v_final_layer")}
        total = table[f"imfDiT_{name[4:].upper()}/eval"]["total"] - sum(map(math.prod, unused.values()))
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(("v_heads", "v_final_layer"))}
    with torch.device("meta"):
        network = create_network(name, image_size=32, channels=4, num_classes=1000, inference=inference)
    assert sum(p.numel() for p in network.parameters()) == total
    ours = {imf_name(key): list(value.shape) for key, value in network.state_dict().items()}
    # Official tokens are (n, width), ours have a dimension for the batch.
    assert {key: shape[1:] if key.endswith("tokens") else shape for key, shape in ours.items()} == shapes


@pytest.mark.parametrize("architecture", [PixelTransformer, ImfTransformer])
def test_initial_weights_have_the_official_statistics(architecture):
    statistics = json.loads(golden_path("L_model_shapes_main.json").read_text())["init_statistics_h256"]
    classes = statistics["y_embedder.embedding_table._flax_embedding.weight"]["shape"][0] - 1
    # hidden 256, patch 8, depth 3 as the file's description says; the rest follows from its shapes.
    # The file is pMF's; what iMF has too starts alike.
    network = architecture(
        image_size=64,
        patch_size=8,
        channels=3,
        num_classes=classes,
        width=256,
        depth=3,
        head_depth=1,
        num_heads=4,
        generator=torch.Generator().manual_seed(0),
    )
    ours = {official_name(name): parameter.detach() for name, parameter in network.named_parameters()}
    common = [name for name in statistics if name in ours and list(ours[name].shape) == statistics[name]["shape"]]
    assert len(common) > 40
    for name in common:
        golden, tensor = statistics[name], ours[name]
        # Standard deviations of two independent samples of n numbers differ by about std / sqrt(n); six of those.
        slack = 6 * golden["std"] / tensor.numel() ** 0.5
        assert abs(float(tensor.std(correction=0)) - golden["std"]) <= slack, name
        assert abs(float(tensor.mean()) - golden["mean"]) <= 2 * slack, name
