"""Pooled ConvNeXt-V2 features (arXiv 2301.00808), as the official code computes them (models/convnext.py).

timm has the network. Its global response normalisation keeps the epsilon out of the square root, the official one has
it inside: ours replaces it.
"""

from __future__ import annotations

import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from pmf.errors import UserError
from pmf.perceptual.weights import at_least_float32

LICENCE = "CC-BY-NC 4.0: non-commercial use only"

# Published names to timm's: Meta's own files, and those of the transformers library.
NAMES = (
    (r"convnextv2\.layernorm\.", r"head.norm."),
    (r"convnextv2\.embeddings\.patch_embeddings\.", r"stem.0."),
    (r"convnextv2\.embeddings\.layernorm\.", r"stem.1."),
    (r"convnextv2\.encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"convnextv2\.encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    (r"^norm\.", r"head.norm."),
    (r"downsample_layers\.0\.", r"stem."),
    (r"downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", r".conv_dw."),
    (r"\.layernorm\.", r".norm."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"(?<!mlp)\.grn\.(?:gamma|weight)$", r".mlp.grn.weight"),
    (r"(?<!mlp)\.grn\.(?:beta|bias)$", r".mlp.grn.bias"),
    (r"^", r"network."),
)


class ResponseNorm(GlobalResponseNorm):
    """Global response normalisation with the official epsilons; features are channels-last or NCHW, as timm says."""

    def forward(self, features: Tensor) -> Tensor:
        """Features plus their scaled share of the mean response, of the same shape."""
        squares = at_least_float32(features).square().sum(self.spatial_dim, keepdim=True)  # one number a channel
        response = (squares + self.eps).sqrt()
        share = response / (response.mean(self.channel_dim, keepdim=True) + self.eps)
        return torch.addcmul(self.bias.view(self.wb_shape), features, 1 + self.weight.view(self.wb_shape) * share)


class ConvNextDistance(nn.Module):
    """Squared Euclidean distance of the features that a ConvNeXt-V2 pools over the image."""

    def __init__(self, network: nn.Module) -> None:
        """Take a network of timm, without its classifier."""
        super().__init__()
        self.network = with_official_norms(network)

    def forward(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            prediction: (P, 3, H, W) in [-1, 1], taken as it is; H and W at least 32.
            image: the same; no gradient flows to it.

        Returns:
            (P,) at least 0.
        """
        with torch.no_grad():
            target = self.features(image)
        return (self.features(prediction) - target).square().sum(1)

    def features(self, images: Tensor) -> Tensor:
        """Features after the pooling and the last normalisation: (P, 3, H, W) -> (P, C)."""
        return at_least_float32(self.network(images))


def with_official_norms(network: nn.Module) -> nn.Module:
    """Replace timm's response normalisations, keeping their weights."""
    for name, module in list(network.named_modules()):
        if isinstance(module, GlobalResponseNorm):
            channels_last = module.channel_dim == -1
            replacement = ResponseNorm(module.weight.numel(), eps=module.eps, channels_last=channels_last)
            replacement.load_state_dict(module.state_dict())
            network.set_submodule(name, replacement)
    return network


def create_convnext(name: str) -> ConvNextDistance:
    """The distance of a network by its name in timm, with random weights.

    Raises:
        UserError: timm has no such ConvNeXt-V2.
    """
    known = timm.list_models("convnextv2_*")
    architecture = name.partition(".")[0]  # without the tag of its weights
    if architecture not in known:
        raise UserError(f"perceptual.convnext_model is '{name}'; choose one of: {', '.join(known)}")
    return ConvNextDistance(timm.create_model(architecture, num_classes=0))
