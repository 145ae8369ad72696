"""Both perceptual distances through one crop: what the objective calls (official utils/auxloss_util.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pmf.perceptual import lpips
from pmf.perceptual.crop import crop_boxes, resample
from pmf.perceptual.options import PerceptualConfig
from pmf.perceptual.weights import load_published


class PerceptualDistances:
    """Distances of predicted and true images, by name. Not a module, so no wrapper or checkpoint sees its weights.

    Attributes:
        factors: what each distance, after its adaptive weight, is multiplied with in the loss.
    """

    def __init__(self, networks: Mapping[str, nn.Module], factors: Mapping[str, float], crop_size: int) -> None:
        self.networks = networks
        self.factors = factors
        self.crop_size = crop_size

    def __call__(self, prediction: Tensor, image: Tensor, uniform_crop: Tensor) -> dict[str, Tensor]:
        """Distances of each pair, seen through the same random crop.

        Args:
            prediction: (P, C, H, W) in [-1, 1]; C is 3, or 1 for grey images, shown as three equal channels.
            image: the same; no gradient flows to it.
            uniform_crop: (P, 4) uniforms on [0, 1); see :func:`crop_boxes`.

        Returns:
            (P,) by the names of ``factors``.
        """
        seen, true = self._crop(prediction, image, uniform_crop)
        return {name: network(seen, true) for name, network in self.networks.items()}

    def _crop(self, prediction: Tensor, image: Tensor, uniform_crop: Tensor) -> list[Tensor]:
        """What the networks see of both, (P, 3, crop_size, crop_size)."""
        boxes = crop_boxes(uniform_crop, image.shape[2], image.shape[3])
        crops = (resample(images, boxes, self.crop_size) for images in (prediction, image))
        layout = layout_of(image.device)
        return [crop.expand(-1, 3, -1, -1).contiguous(memory_format=layout) for crop in crops]

    def compile_networks(self) -> None:
        """Compile the crop and each network by itself, for any number of rows."""
        self._crop = torch.compile(self._crop, fullgraph=True)  # type: ignore[method-assign]
        for network in self.networks.values():
            network.compile(fullgraph=True)


def layout_of(device: torch.device) -> torch.memory_format:
    """How images lie in memory: channels last on a GPU, where half-precision convolutions want it."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def build_distances(config: PerceptualConfig) -> PerceptualDistances | None:
    """The distances that the config asks for, with random weights, or None.

    Raises:
        UserError: an unknown network.
    """
    networks: dict[str, nn.Module] = {}
    factors: dict[str, float] = {}
    if config.lpips:
        networks["lpips"], factors["lpips"] = lpips.Lpips(), config.lpips_factor
    if config.convnext:
        from pmf.perceptual import convnext  # timm takes three seconds

        networks["convnext"] = convnext.create_convnext(config.convnext_model)
        factors["convnext"] = config.convnext_factor
    return PerceptualDistances(networks, factors, config.crop_size) if networks else None


def create_distances(
    config: PerceptualConfig, device: torch.device, say: Callable[[str], None]
) -> PerceptualDistances | None:
    """The distances that the config asks for, with their weights, or None.

    Args:
        say: told which weights are used, and under which licence.

    Raises:
        UserError: weights are missing, unreadable or of another network.
    """
    distances = build_distances(config)
    if distances is None:
        return None
    networks = distances.networks
    if config.lpips:
        load_published(networks["lpips"], "perceptual.lpips_weights", config.lpips_weights, lpips.NAMES)
        say(f"perceptual: LPIPS x {config.lpips_factor:g}; weights: {', '.join(config.lpips_weights)}")
    if config.convnext:
        from pmf.perceptual import convnext

        load_published(networks["convnext"], "perceptual.convnext_weights", config.convnext_weights, convnext.NAMES)
        say(
            f"perceptual: {config.convnext_model} x {config.convnext_factor:g}; weights: "
            f"{', '.join(config.convnext_weights)} (Meta's are licensed {convnext.LICENCE})"
        )
    for network in networks.values():
        network.requires_grad_(False).eval().to(device).to(memory_format=layout_of(device))
    return distances
