"""The perceptual losses in the step and in whole runs, on random weights; on the real ones where they are at hand."""

from __future__ import annotations

import json
import os

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.reference_step import Fault, reference_step
from pmf.flow.options import PixelMeanFlowOptions
from pmf.flow.pixel_mean_flow import PixelMeanFlow
from pmf.perceptual import lpips as our_lpips
from pmf.perceptual.crop import crop_boxes, resample
from pmf.perceptual.distances import PerceptualDistances
from pmf.perceptual.lpips import Lpips
from pmf.perceptual.weights import load_published
from pmf.training.trainer import Trainer
from tests.flow.small_step import CLASSES, ROWS, gradients, inputs, shape_draws, small_network, worst_relative_error
from tests.launch import run_command, train_tiny
from tests.perceptual.published import random_convnext, random_lpips, thin_convnext, thin_lpips, write_weights
from tests.runs import tiny_config

REAL_LPIPS = os.environ.get("PMF_LPIPS_WEIGHTS", "")
TERMS = {"lpips": 0.4, "convnext": 0.1}
MAX_T = 0.7


@pytest.fixture(scope="module")
def double_distances() -> PerceptualDistances:
    with thin_lpips():
        networks = {"lpips": random_lpips().double(), "convnext": thin_convnext().double()}
    return PerceptualDistances(networks, TERMS, 32)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    return write_weights(tmp_path_factory.mktemp("weights"))


# float64 of the same operations on fewer rows: 1.5e-15 measured; the smallest of the faults gives 0.1.
EXACT = 1e-9


def gradient_error(
    distances: PerceptualDistances,
    literal_crop: Tensor | None = None,
    derivative: str = "auto",
    max_t: float = MAX_T,
    few_sizes: bool = False,
    **fault: bool,
) -> float:
    """Worst relative difference of a gradient, our step with perceptual terms on some rows against the literal one."""
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions(derivative=derivative)
    network = small_network()
    objective = PixelMeanFlow(
        settings, num_classes=CLASSES, perceptual=distances, perceptual_max_t=max_t, few_sizes=few_sizes
    )
    draws = objective.shape(standard)
    assert 1 < draws.perceptual_weight.sum() < ROWS - 1
    assert (len(draws.perceptual_rows) > draws.perceptual_weight.sum()) == few_sizes
    ours = objective.loss(network, images, labels, draws).total
    if literal_crop is not None:
        standard.uniform_crop.copy_(literal_crop)
    theirs = reference_step(network, settings, CLASSES, images, labels, standard, Fault(**fault), distances, max_t).loss
    return worst_relative_error(gradients(ours, network), gradients(theirs, network))


@pytest.mark.parametrize("derivative", ["jvp", "dual"])
def test_the_step_with_both_terms_equals_the_literal_step(double_distances, derivative):
    assert gradient_error(double_distances, derivative=derivative) < EXACT


def test_rows_that_fill_count_for_nothing(double_distances):
    assert gradient_error(double_distances, max_t=0.6, few_sizes=True) < EXACT


@pytest.mark.parametrize("name", TERMS)
def test_the_step_with_one_term_equals_the_literal_step(double_distances, name):
    alone = PerceptualDistances({name: double_distances.networks[name]}, {name: TERMS[name]}, 32)
    assert gradient_error(alone) < EXACT


@pytest.mark.parametrize("fault", ["denoised_by_compound", "perceptual_on_all_rows"])
def test_the_comparison_notices_mistakes(double_distances, fault):
    assert gradient_error(double_distances, **{fault: True}) > 1e5 * EXACT


def test_the_comparison_notices_crops_of_other_rows(double_distances):
    others = inputs()[2].uniform_crop.roll(1, 0)
    assert gradient_error(double_distances, literal_crop=others) > 1e5 * EXACT


def test_logs_have_the_raw_means_over_all_rows_and_the_same_keys_without_any(double_distances):
    images, labels, standard = inputs()
    settings = PixelMeanFlowOptions()
    keys = {"loss", "loss_u", "loss_v", "loss_lpips", "loss_convnext"}
    for max_t, rows in ((MAX_T, range(1, ROWS)), (0.0, [0])):
        objective = PixelMeanFlow(settings, num_classes=CLASSES, perceptual=double_distances, perceptual_max_t=max_t)
        draws = shape_draws(standard, settings, max_t)
        assert len(draws.perceptual_rows) in rows
        terms = objective.loss(small_network(), images, labels, draws)
        assert terms.logs.keys() == keys
        if len(draws.perceptual_rows):
            step = objective.evaluate(small_network(), images, labels, draws)
            u = step.u[draws.perceptual_rows]
            denoised = step.z[draws.perceptual_rows] - draws.t[draws.perceptual_rows, None, None, None] * u
            for name, found in double_distances(denoised, images[draws.perceptual_rows], draws.uniform_crop).items():
                assert float(terms.logs[f"loss_{name}"]) == pytest.approx(float(found.detach().sum() / ROWS), rel=1e-12)
        else:
            assert float(terms.logs["loss_lpips"]) == float(terms.parts["weighted_perceptual"].abs().sum()) == 0


def test_boxes_stay_inside_the_image_at_the_ends_of_their_uniforms():
    last = 1 - 2**-24  # the largest float32 below 1
    corners = torch.cartesian_prod(*[torch.tensor([0.0, last])] * 4)
    for height, width in ((32, 32), (8, 8), (40, 24), (512, 512)):
        boxes = crop_boxes(corners, height, width)
        for start, extent, length in ((boxes.top, boxes.height, height), (boxes.left, boxes.width, width)):
            assert torch.equal(start, start.round()) and torch.equal(extent, extent.round())
            assert float(start.min()) == 0 and float((start + extent).max()) == length and float(extent.min()) >= 1
            assert bool((start + extent <= length).all())


@pytest.mark.parametrize("size", [16, 48])
def test_a_crop_of_everything_is_the_antialiased_cubic_resize(size):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = crop_boxes(torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64), 32, 32)
    expected = torch.nn.functional.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    # torch computes its weights in float64 here; the two differ in the order of sums only
    torch.testing.assert_close(resample(images, whole, size), expected, atol=1e-12, rtol=0)


def test_crops_keep_float32_under_autocast():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    boxes = crop_boxes(torch.full((2, 4), 0.5), 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = resample(images, boxes, 32)
    assert torch.equal(found, resample(images, boxes, 32))


def test_the_gradient_is_finite_where_all_features_are_zero():
    features = torch.zeros(1, 4, 2, 2)
    features[:, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    gradients = []
    lpips = pytest.importorskip("lpips", reason="needs the lpips package")
    for function in (our_lpips.unit_vectors, lpips.normalize_tensor):
        argument = features.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(argument)[:, 0].sum(), argument)[0])
    ours, theirs = gradients
    assert bool(ours.isfinite().all())
    assert bool(theirs.isnan().any())  # the package's own
    torch.testing.assert_close(ours[..., 0, 0], theirs[..., 0, 0], atol=0, rtol=1e-6)

    network = random_lpips()
    with torch.no_grad():
        network.features[28].bias.fill_(-1e4)  # the features of the last stage die
    images = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prediction = images[0].requires_grad_()
    gradient = torch.autograd.grad(network(prediction, images[1]).sum(), prediction)[0]
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


def test_under_autocast_distances_and_gradients_stay_near_those_of_float32():
    distances = PerceptualDistances({"lpips": random_lpips(), "convnext": random_convnext()}, TERMS, 32)
    generator = torch.Generator().manual_seed(0)
    prediction, image = torch.rand(2, 2, 3, 16, 16, generator=generator) * 2 - 1
    prediction.requires_grad_()
    uniforms = torch.rand(2, 4, generator=generator)
    exact = distances(prediction, image, uniforms)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distances(prediction, image, uniforms)
    for name in TERMS:
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], exact[name], rtol=0.05, atol=0)  # 8 bits through 13 layers and more
        pair = [
            torch.autograd.grad(d[name].sum(), prediction, retain_graph=True)[0].flatten() for d in (rounded, exact)
        ]
        assert float(torch.nn.functional.cosine_similarity(*pair, dim=0)) > 0.98, name


real_weights = pytest.mark.skipif(not REAL_LPIPS, reason="PMF_LPIPS_WEIGHTS names no file with VGG16 and the heads")


@pytest.fixture(scope="module")
def real_lpips() -> Lpips:
    network = Lpips()
    load_published(network, "perceptual.lpips_weights", [REAL_LPIPS], our_lpips.NAMES)
    return network.requires_grad_(False)


def photograph() -> Tensor:
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    return pixels[None, :, 100:356, 200:456].float() / 127.5 - 1


@pytest.mark.weights
@real_weights
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight")
def test_real_lpips_equals_the_package_on_the_same_trunk(real_lpips):
    lpips = pytest.importorskip("lpips", reason="needs the lpips package")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)  # with the heads that the package carries
    for name, parameter in theirs.net.named_parameters():
        parameter.copy_(real_lpips.features.get_parameter(name.partition(".")[2]))
    image = photograph()
    other = image.roll(1, 3)
    torch.testing.assert_close(real_lpips(other, image), theirs(other, image).flatten().detach(), atol=0, rtol=1e-6)


@pytest.mark.weights
@real_weights
def test_real_lpips_orders_degradations(real_lpips):
    image = photograph()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.interpolate(
        torch.nn.functional.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True),
        scale_factor=4,
        mode="bicubic",
    )
    degraded = {
        "identity": image,
        "one pixel": image.roll(1, 3),
        "blur": blurred,
        "noise": (image + noise).clamp(-1, 1),
    }
    found = {name: float(real_lpips(other, image)) for name, other in degraded.items()}
    assert found["identity"] == 0
    assert 0.005 < found["one pixel"] < found["blur"] / 2
    assert found["blur"] < found["noise"] / 1.5


def test_a_run_with_both_terms_trains_and_keeps_them_out_of_its_checkpoints(tmp_path, overrides):
    short = ["training.max_steps=2", "training.log_every=1"]
    printed = {ranks: train_tiny(tmp_path / f"{ranks}", *short, *overrides, ranks=ranks) for ranks in (1, 2)}
    metrics = {}
    for ranks, text in printed.items():
        assert text.count("perceptual: LPIPS x 0.4; weights: ") == 1
        assert text.count("CC-BY-NC 4.0: non-commercial use only") == 1
        lines = (tmp_path / f"{ranks}" / "metrics.jsonl").read_text().splitlines()
        metrics[ranks] = [json.loads(line) for line in lines]
        assert all(line["loss_lpips"] > 0 and line["loss_convnext"] > 0 for line in metrics[ranks])
    for one, two in zip(metrics[1], metrics[2], strict=True):
        for name in ("loss_lpips", "loss_convnext", "loss_u", "grad_norm"):
            # the same micro-batches; Muon enlarges rounding from step to step, see test_training.py
            assert one[name] == pytest.approx(two[name], rel=1e-4), name

    network = Trainer(tiny_config(tmp_path / "plain")).state.network
    assert f"test_pmf_2: {sum(p.numel() for p in network.parameters()):,} parameters" in printed[1]
    checkpoint = tmp_path / "1" / "checkpoints" / "step_00000002"
    for name in ("model", "ema_10"):
        assert load_file(checkpoint / f"{name}.safetensors").keys() == network.state_dict().keys()
    assert checkpoint.joinpath("optimizer.safetensors").stat().st_size < 1e6  # VGG16 alone has 59 MB


def test_gradients_on_two_processes_equal_those_on_one(tmp_path, overrides):
    for ranks in (1, 2):
        outputs = (f"{tmp_path}/{ranks}.safetensors", f"{tmp_path}/run{ranks}")
        result = run_command("tests/gradient_worker.py", *outputs, "digits", *overrides, ranks=ranks)
        assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / f"{ranks}.safetensors") for ranks in (1, 2))
    assert (int(one.pop("world_size")), int(two.pop("world_size"))) == (1, 2)
    assert len(one) == len(two) > 50
    for name in one:
        # means of the same four micro-batch gradients in float32, added in another order
        assert float((one[name] - two[name]).norm() / one[name].norm()) < 1e-6, name


def test_the_terms_change_the_gradients_of_a_step(tmp_path, overrides):
    found = []
    for name, extra in (("plain", []), ("perceptual", overrides)):
        trainer = Trainer(tiny_config(tmp_path / name, *extra))
        assert not any("perceptual" in key for key in trainer.train_step.module.state_dict())
        captured: dict[str, Tensor] = {}
        trainer.state.optimizer.move = lambda _rates, into=captured, trainer=trainer: into.update(
            {key: p.grad.clone() for key, p in trainer.state.network.named_parameters()}
        )
        trainer.train_step(list(trainer._batches())[:2])
        found.append(captured)
        AcceleratorState._reset_state(reset_partial_state=True)
    plain, perceptual = (gradient["u_output.linear.weight"] for gradient in found)
    assert float((perceptual - plain).norm() / plain.norm()) > 1e-3
