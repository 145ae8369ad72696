"""Golden A (forward, every stage, and the derivative) and L (parameter counts, initialisation)."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pmf.checkpoint.official.names import official_name
from pmf.flow.derivative import DERIVATIVES
from pmf.flow.parameterization import ImagePrediction
from pmf.net.interface import Conditions
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import SIZES, create_network
from pmf.net.token_transformer import NUM_CONDITION_TOKENS
from tests.parity.golden import RELATIVE, Golden, build_network, golden_path, relative_error

X = ImagePrediction()


def load(name: str) -> tuple[Golden, PixelTransformer, Tensor, Conditions]:
    golden = Golden(name)
    network = build_network(golden.meta["net"], golden.group("params/"), golden.meta.get("mlp_hidden"))
    conditions = Conditions(
        t=golden["in/t"],
        h=golden["in/h"],
        omega=golden["in/w"],
        t_min=golden["in/t_min"],
        t_max=golden["in/t_max"],
        labels=golden["in/y"].long(),
    )
    return golden, network, golden.image("in/x"), conditions


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


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivative_equals_jax_jvp(derivative):
    golden, network, z, conditions = load("A3_hsdp_forward_jvp")
    u, _, du_dt = DERIVATIVES[derivative](network, X, z, conditions, (golden.image("tangent/x"), 0.0, 1.0))
    assert relative_error(u, golden.image("out/u")) < RELATIVE
    assert relative_error(du_dt, golden.image("out/du")) < RELATIVE
    assert not du_dt.requires_grad


@pytest.mark.parametrize("name", [name for name in SIZES if "tiny" not in name])
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


def test_initial_weights_have_the_official_statistics():
    statistics = json.loads(golden_path("L_model_shapes_main.json").read_text())["init_statistics_h256"]
    classes = statistics["y_embedder.embedding_table._flax_embedding.weight"]["shape"][0] - 1
    # hidden 256, patch 8, depth 3 as the file's description says; the rest follows from its shapes.
    network = PixelTransformer(
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
