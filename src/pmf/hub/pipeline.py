"""The diffusers pipeline that stands beside published weights; ``pip install pmf`` does the work.

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(path, custom_pipeline=path, trust_remote_code=True)
images = pipe([3, "golden retriever"], seed=0).images
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

import pmf


class PmfPipeline(DiffusionPipeline):
    """Makes the images that ``pmf.load(path).generate`` makes; the weights are read when they are first needed."""

    def __init__(self) -> None:
        super().__init__()
        self._where: torch.device | None = None
        self._generator: pmf.Generator | None = None

    @property
    def generator(self) -> pmf.Generator:
        """The weights, with all that they can do."""
        if self._generator is None:
            self._generator = pmf.load(self.name_or_path, device=self._where)
        return self._generator

    @property
    def device(self) -> torch.device:
        """Where images are made."""
        return self.generator.device

    def to(self, device: str | torch.device) -> PmfPipeline:
        """Make images there; precision is an option of the call."""
        self._where, self._generator = torch.device(device), None
        return self

    def __call__(
        self,
        class_labels: Any = None,
        *,
        seed: int = 0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Images of classes.

        Args:
            class_labels: numbers or names of classes, one for each image; None: see ``num_images``.
            seed: of the noise.
            guidance_scale: omega; None is the model's own.
            num_inference_steps: network evaluations per image; None is the model's own.
            output_type: ``pil``, or ``np`` for (N, H, W, C) float32 in [0, 1].
            return_dict: an ``ImagePipelineOutput`` with ``images``, or a tuple of them.
            **options: others of ``pmf.Generator.generate``: num_images, first, interval, sampler, noise, precision, ...

        Raises:
            pmf.UserError: an unknown class or option, or a value that cannot be.
        """
        if output_type not in ("pil", "np"):
            raise pmf.UserError(f"output_type is {output_type!r}; give pil or np")
        if guidance_scale is not None:
            options["omega"] = guidance_scale
        made = self.generator.generate(
            class_labels,
            seed=seed,
            steps=num_inference_steps,
            output="pil" if output_type == "pil" else "tensor",
            **options,
        )
        images: Any = made if isinstance(made, list) else made.movedim(1, -1).float().div(255).numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
