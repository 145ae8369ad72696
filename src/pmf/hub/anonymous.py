"""What is published names no place on the machine that it was made on."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from pmf.config.sections import Config, TrainingConfig, as_plain
from pmf.config.yaml_file import config_from_plain


def without_places(value: Any) -> Any:
    """Plain values in which paths that lead out of the working directory are reduced to their last part."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    path = PurePath(value.removeprefix("file://"))
    return path.name or value if path.is_absolute() or ".." in path.parts else value


def published_config(config: Config) -> Config:
    """The config without places. A local autoencoder keeps its path: without it latents could not be decoded."""
    values = without_places(as_plain(config))
    values["training"]["output_dir"] = TrainingConfig.model_fields["output_dir"].default
    values["data"]["autoencoder"] = config.data.autoencoder
    return config_from_plain(values, "the published config")
