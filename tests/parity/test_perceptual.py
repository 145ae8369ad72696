"""Golden J (the paired crop) and K (ConvNeXt-V2 features), and LPIPS against the lpips package on the same weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from timm.layers.grn import GlobalResponseNorm
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from pmf.perceptual import convnext
from pmf.perceptual import lpips as our_lpips
from pmf.perceptual.convnext import ConvNextDistance, ResponseNorm
from pmf.perceptual.crop import CropBoxes, crop_boxes, resample
from pmf.perceptual.lpips import Lpips
from pmf.perceptual.weights import load_published
from tests.parity.golden import Golden
from tests.perceptual.published import random_convolution

CROP = "J_random_resized_crop"
# INDEX.md's limit for float32 weights of a kernel evaluated twice: 5.6e-6 measured. Cutting the box out before
# resizing, as torchvision does, differs by up to 0.38 on the same boxes.
CROP_TOLERANCE = 2e-5


def boxes_of(golden: Golden, prefix: str) -> CropBoxes:
    return CropBoxes(**{side: golden[f"{prefix}/{side}"].float() for side in ("top", "left", "height", "width")})


def test_crops_read_past_the_box_as_the_official_ones():
    golden = Golden(CROP)
    images, crops = golden.image("in/images"), golden["out/resampled"]  # crops: box, image, then NHWC
    for number, image in enumerate(images):
        ours = resample(image.expand(len(crops), -1, -1, -1), boxes_of(golden, "in"), golden.meta["out_size"])
        theirs = crops[:, number].permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs, atol=CROP_TOLERANCE, rtol=0)


def test_boxes_and_both_crops_follow_the_same_uniforms():
    golden = Golden(CROP)
    first, second = golden.image("paired/x1"), golden.image("paired/x2")
    ours = crop_boxes(golden["paired/u_area_ratio_top_left"], *first.shape[2:])
    for side, expected in vars(boxes_of(golden, "paired")).items():
        assert torch.equal(getattr(ours, side), expected), side
    for images, key in ((first, "paired/y1"), (second, "paired/y2")):
        crops = resample(images, ours, golden.meta["out_size"])
        torch.testing.assert_close(crops, golden.image(key), atol=CROP_TOLERANCE, rtol=0)


def golden_convnext(golden: Golden, tmp_path) -> ConvNextDistance:
    shape = {"depths": golden.meta["depths"], "dims": golden.meta["dims"]}
    distance = ConvNextDistance(ConvNeXt(**shape, use_grn=True, ls_init_value=None, num_classes=0))
    file = tmp_path / "convnext.safetensors"
    save_file(golden.group("params/"), file)
    load_published(distance, "perceptual.convnext_weights", [str(file)], convnext.NAMES)
    return distance


def test_convnext_features_distance_and_gradient_equal_the_official_ones(tmp_path):
    golden = Golden("K_convnext")
    distance = golden_convnext(golden, tmp_path)
    x, y = golden.image("in/x").requires_grad_(), golden.image("in/y")
    # INDEX.md's limit for float32 through 5 blocks: 1.4e-6 measured on features, 1.2e-6 relative on distances.
    torch.testing.assert_close(distance.features(x), golden["out/feat_x"], atol=2e-5, rtol=0)
    torch.testing.assert_close(distance.features(y), golden["out/feat_y"], atol=2e-5, rtol=0)
    found = distance(x, y)
    torch.testing.assert_close(found, golden["out/dist"], atol=0, rtol=1e-5)
    gradient = torch.autograd.grad(found.sum(), x)[0]
    torch.testing.assert_close(gradient, golden.image("out/grad_x_of_sum_dist"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_response_norm_has_the_official_epsilons(channels_last):
    """On golden K timm's own would pass too: where a channel is silent the epsilon's place shows."""
    ours, timms = (cls(4, channels_last=channels_last).double() for cls in (ResponseNorm, GlobalResponseNorm))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    features = features * torch.tensor([1e-4, 1e-3, 1e-2, 1.0], dtype=torch.float64)
    gamma, beta = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    ours.load_state_dict({"weight": gamma, "bias": beta})
    timms.load_state_dict(ours.state_dict())
    response = ((features**2).sum((1, 2), keepdim=True) + 1e-6) ** 0.5
    expected = gamma * (features * (response / (response.mean(-1, keepdim=True) + 1e-6))) + beta + features
    found, without = (
        norm(features) if channels_last else norm(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        for norm in (ours, timms)
    )
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-12)
    difference = ((without - expected).abs() / features.abs()).amax((0, 1, 2)).detach()
    assert float(difference[0]) > 1e-4  # of the quietest channel


def random_pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, 3, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1
    return images[0].to(dtype), images[1].to(dtype)


def random_lpips_package(seed: int) -> nn.Module:
    """The lpips package with its published heads on a random trunk whose activations keep their size."""
    torch.manual_seed(seed)
    lpips = pytest.importorskip("lpips", reason="needs the lpips package")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, parameter in theirs.net.named_parameters():
            random_convolution(name, parameter)
    return theirs


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight")
@pytest.mark.parametrize("seed", range(3))
def test_lpips_and_its_gradient_equal_the_lpips_package(seed, tmp_path):
    theirs = random_lpips_package(seed)
    file = tmp_path / "lpips.pth"
    torch.save(theirs.state_dict(), file)  # the package's own names
    ours = Lpips()
    load_published(ours, "perceptual.lpips_weights", [str(file)], our_lpips.NAMES)
    # float32 sums over up to 512 channels and 4096 pixels in another order: 1.2e-7 measured; 3e-16 in float64
    prediction, image = random_pair(torch.float32)
    torch.testing.assert_close(ours(prediction, image), theirs(prediction, image).flatten(), atol=0, rtol=1e-6)

    prediction, image = random_pair(torch.float64)
    prediction.requires_grad_()
    ours, theirs = ours.double(), theirs.double()
    found, expected = ours(prediction, image), theirs(prediction, image).flatten()
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), prediction)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, atol=0, rtol=1e-7)
