"""The perceptual section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pmf.options import Files, Fraction, PositiveFloat, Section, Whole


class PerceptualConfig(Section):
    """Distances of the denoised image from the true one; see docs/perceptual.md for weights and licences.

    A file is a local path (.safetensors, or a .pth pickle whose code is never run), a URL, or a model on the Hugging
    Face hub (owner/name, or a timm name).
    """

    lpips: bool = False
    """LPIPS over VGG16."""
    lpips_factor: PositiveFloat = 0.4
    """Factor of the LPIPS term, after its adaptive weight."""
    lpips_weights: Files = [
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    ]
    """One file with VGG16 and heads, or one of each."""
    convnext: bool = False
    """Squared distance of the features pooled by a ConvNeXt-V2. Meta's weights are for non-commercial use only."""
    convnext_factor: PositiveFloat = 0.1
    """Factor of the ConvNeXt term, after its adaptive weight."""
    convnext_model: str = "convnextv2_base"
    """Which network, by timm's name."""
    convnext_weights: Files = ["timm/convnextv2_base.fcmae_ft_in22k_in1k"]
    """Its weights, of timm, Meta or the transformers library."""
    max_t: Fraction = 0.8
    """Only rows whose time t is below this have perceptual terms (0.6 in the recipes of L/32 and H)."""
    crop_size: Annotated[Whole, Field(ge=32)] = 224
    """Side of the square that the random crop is resized to, in pixels."""
