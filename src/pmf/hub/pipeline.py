"""The diffusers pipeline that stands beside published weights; the package pmf (its wheel or a checkout) does the work.

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(path, custom_pipeline=path, trust_remote_code=True)
images = pipe([3, "golden retriever"], seed=0).images
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

import pmf

PRECISIONS = {torch.float32: "float32", torch.bfloat16: "bf16"}


class PmfPipeline(DiffusionPipeline):
    """Makes the images that ``pmf.load(path).generate`` makes; the weights are read when they are first needed."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.register_modules(weights=weights)
        self._where: str | torch.device | None = None
        self._precision: dict[str, str] = {}
        self._generator: pmf.Generator | None = None

    @property
    def generator(self) -> pmf.Generator:
        """The weights, with all that they can do."""
        if self._generator is None:
            self._generator = pmf.load(self.weights.folder, device=self._where)
        return self._generator

    @property
    def device(self) -> torch.device:
        """Where images are made."""
        return self.generator.device

    def to(self, *args: Any, device: Any = None, dtype: Any = None, **_: Any) -> PmfPipeline:
        """Make images on another device or in another precision; in any order, by position or by name.

        Args:
            *args: a device, a dtype, or both.
            device: ``cpu``, ``cuda``, ...
            dtype: ``torch.float32``, or ``torch.bfloat16`` for products in it, by autocast.

        Raises:
            pmf.UserError: another dtype.
        """
        for given in (*args, device, dtype):
            if isinstance(given, torch.dtype):
                if given not in PRECISIONS:
                    raise pmf.UserError(f"dtype {given}: give one of: {', '.join(map(str, PRECISIONS))}")
                self._precision = {"precision": PRECISIONS[given]}
            elif given is not None:
                self._where, self._generator = given, None
        return self

    def save_pretrained(self, save_directory: Any, *, push_to_hub: bool = False, **_: Any) -> None:
        """Write the whole folder again, as ``pmf.Generator.save_pretrained`` does; diffusers' other options say how to
        split and serialise weights, and have no meaning here.

        Args:
            save_directory: to be made, or empty.

        Raises:
            pmf.UserError: it holds something, storage fails, or ``push_to_hub`` is asked for.
        """
        if push_to_hub:
            raise pmf.UserError("save_pretrained: push with pipe.generator.push_to_hub('owner/name')")
        self.generator.save_pretrained(save_directory)

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
            **{**self._precision, **options},
        )
        images: Any = made if isinstance(made, list) else made.movedim(1, -1).float().div(255).numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
