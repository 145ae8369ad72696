"""The model card: what a stranger has to know of published weights, from what is recorded and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pmf.config.sections import Config
from pmf.data.options import network_shape, pixel_space
from pmf.report.markdown import fid_cell, inception_cell, reference_cell, table

CONVNEXT_LICENCE = "CC-BY-NC 4.0, non-commercial use only"
"""Of Meta's weights of ConvNeXt-V2, whichever copy of them was used."""
LPIPS_LICENCE = "BSD: VGG16 of torchvision (3-clause), the distance's heads (2-clause)"


def model_card(name: str, config: Config, class_names: Sequence[str], training: Mapping[str, Any]) -> str:
    """A README.md with front matter for the Hugging Face hub.

    Args:
        name: of the folder or repository.
        config: that the weights were trained with.
        class_names: by label.
        training: what is known, by the names of :class:`pmf.hub.pretrained.Training`; what is not known is absent.
    """
    objective, data = config.objective.name, config.data
    side, channels = data.image_size, data.channels
    front = {
        "library_name": "pmf",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["image-generation", "one-step", "class-conditional", "diffusers", objective],
    }
    shown = ", ".join(class_names[:10]) + (f" and {len(class_names) - 10:,} more" if len(class_names) > 10 else "")
    steps = config.sampling.num_steps
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {name}\n",
        f"A class-conditional generator of {side}x{side} {'grey' if channels == 1 else 'RGB'} images, which takes "
        f"{steps} network evaluation{'s' if steps > 1 else ''} an image: `{config.model.name}`, trained by the method "
        f"`{objective}`.\n",
        f"Classes ({len(class_names):,}): {shown}.\n",
        _usage(name, config, class_names),
        "## Training\n",
        table(_training_rows(config, training)) + "\n",
        _perceptual(config),
        "## Evaluation\n",
        _evaluation(training.get("evaluations", ())),
    ]
    return "\n".join(part for part in parts if part)


def _usage(name: str, config: Config, class_names: Sequence[str]) -> str:
    sampling = config.sampling
    label = json.dumps(class_names[-1].split(",")[0], ensure_ascii=False)
    latent = (
        f"\nIts latents are decoded by `{config.data.autoencoder}`, which is not part of this folder.\n"
        if network_shape(config.data) != pixel_space(config.data)
        else ""
    )
    return f"""## Use

```python
import pmf

model = pmf.load("{name}")  # this folder, or its name on the hub
images = model.generate(labels=[0, {label}], seed=0)
```

With diffusers, where `{name}` is the same:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)
images = pipe([0, {label}], seed=0).images
```

Both need the package `pmf`, installed from its wheel or a checkout: it is on no package index. Without other options
they sample with guidance scale omega {sampling.omega}, guidance interval {list(sampling.interval)} and
{sampling.num_steps} step(s).
{latent}"""


def _training_rows(config: Config, training: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    data, options, optimizer = config.data, config.training, config.optimizer
    yield "weights", training["weights"]
    if "average" in training:
        average = training["average"]
        yield "average of the weights", "none, the last weights" if average == "online" else average
    if "images_seen" in training:
        yield "images seen", f"{training['images_seen']:,}"
    if "step" in training:
        yield "optimizer steps", f"{training['step']:,}"
    folder = f" `{Path(data.path).name}`" if data.path else ""
    yield "data", f"{data.kind}{folder}{f', split {data.split}' if data.kind == 'parquet' else ''}"
    yield "images", f"{data.image_size} pixels, {data.channels} channel(s), {data.num_classes:,} classes"
    yield "horizontal flip", "yes" if data.horizontal_flip else "no"
    length = f"{options.epochs:g} epochs" if options.epochs else f"{options.max_steps:,} steps"
    yield "planned length", f"{length} of {options.global_batch_size:,} images a step"
    yield "optimizer", f"{optimizer.name}, rate {optimizer.lr:g}, schedule {optimizer.schedule}"
    yield "precision", options.mixed_precision if options.mixed_precision != "no" else "float32"
    yield "seed", options.seed
    if "commit" in training:
        yield "commit of the library", training["commit"]


def _perceptual(config: Config) -> str:
    used = [
        (name, licence)
        for name, licence in (("lpips", LPIPS_LICENCE), ("convnext", CONVNEXT_LICENCE))
        if getattr(config.perceptual, name)
    ]
    if not used:
        return "No perceptual network took part in the training. The whole config is in `config.json`.\n"
    rows = [
        (f"`{name}`: {', '.join(getattr(config.perceptual, f'{name}_weights'))}", licence) for name, licence in used
    ]
    lead = (
        "Perceptual networks took part in the training; whether their licences bind these weights is for these "
        "licences to say. The published files are under:\n"
    )
    return f"{lead}\n{table(rows, ('network and its weights', 'licence'))}\n\nThe whole config is in `config.json`.\n"


def _evaluation(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "No evaluation of these weights is recorded. `pmf fid` makes one.\n"
    columns = ("FID", "Inception score", "images", "reference", "features", "omega", "interval", "steps", "date")
    return table([_evaluation_row(record) for record in records], columns) + "\n"


def _evaluation_row(record: Mapping[str, Any]) -> tuple[Any, ...]:
    images = record.get("images", {})
    return (
        fid_cell(record),
        inception_cell(record),
        record.get("num_images", "-"),
        reference_cell(record),
        record.get("extractor", {}).get("name", "-"),
        images.get("omega", "-"),
        images.get("interval", "-"),
        images.get("num_steps", "-"),
        str(record.get("date", "-"))[:10],
    )
